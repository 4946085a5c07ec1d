"""What a step trains on: images with noise, augmented, and what the network is told.

Everything random is drawn for the whole batch at once, from the step's key.  What an
image gets depends on its place in the batch alone, not on the device that holds it or
on the part of the batch that it is computed with; nor does its noise depend on the
augmentation, so runs that differ in it alone are paired.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffusion.augmentation import ScoreAugmentation
from diffusion.denoiser import expand_per_sample
from diffusion.networks.functional import ModuleNetwork
from diffusion.noise import NoiseLaw

__all__ = ["NoisyBatch", "Problem", "draw_noisy_batch"]

_AUGMENTATION_STREAM = 3  # of the loss key; sigma, noise and dropout have 0, 1 and 2


class Problem(NamedTuple):
    """What is learned, without arrays.

    Attributes:
        network: The network.
        noise: The law of sigma in training.
        inverse_square_weight: Whether the loss is weighted by 1/sigma^2, as in VP and
            VE; otherwise by the preconditioning's 1/c_out^2.
        num_classes: Length of one-hot labels; 0 to train without.
        augmentation: What is done to noisy or clean images; None for nothing.
        horizontal_flip: Whether half of the images are mirrored besides.
    """

    network: ModuleNetwork
    noise: NoiseLaw
    inverse_square_weight: bool = False
    num_classes: int = 0
    augmentation: ScoreAugmentation | None = None
    horizontal_flip: bool = False


class NoisyBatch(NamedTuple):
    """A batch as the loss takes it.

    Attributes:
        noisy: (B, *event) network input, data units.
        target: (B, *event) what it should return.
        labels: (B,) classes.
        sigma: (B,) noise levels that the network is told.
        condition: (B, k) augmentation condition, or None.
        factor: (B,) on each image's loss, or None for 1.
        family: (B,) int32, which transform was drawn, or None without augmentation.
        dropout_keys: (B,) keys, or None for no dropout.
    """

    noisy: Array
    target: Array
    labels: Array
    sigma: Array
    condition: Array | None = None
    factor: Array | None = None
    family: Array | None = None
    dropout_keys: Array | None = None


def draw_noisy_batch(
    problem: Problem,
    images: Array,
    labels: Array,
    key: Array,
    *,
    images_seen: ArrayLike = 0,
) -> NoisyBatch:
    """Flip, noise and augment the images of a step.

    Args:
        problem: What is learned.
        images: (B, *event), data units.
        labels: (B,) classes.
        key: The step's key.
        images_seen: Images trained on before this step.
    """
    flip_key, loss_key = jax.random.split(key)
    sigma_key, noise_key, dropout_key = jax.random.split(loss_key, 3)
    if problem.horizontal_flip:
        images = _flip_half(images, flip_key)
    count = images.shape[0]
    sigma = problem.noise.sample(sigma_key, (count,)).astype(images.dtype)
    scale = expand_per_sample(sigma, images)
    noise = scale * jax.random.normal(noise_key, images.shape, images.dtype)
    plain = NoisyBatch(
        noisy=images + noise,
        target=images,
        labels=labels,
        sigma=sigma,
        dropout_keys=_keys(dropout_key, count),
    )
    augmentation = problem.augmentation
    if augmentation is None:
        return plain
    keys = _keys(jax.random.fold_in(loss_key, _AUGMENTATION_STREAM), count)
    draw = augmentation.draw(keys, images.shape[1:], images_seen=images_seen)
    augmented = augmentation.apply(draw, images, noise, sigma)
    return plain._replace(
        **augmented._asdict(),
        factor=augmentation.loss_factor(draw, images.shape[1:]),
        family=augmentation.family(draw),
    )


def _keys(key: Array, count: int) -> Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


def _flip_half(images: Array, key: Array) -> Array:
    """Mirror each image of (B, H, W, C) left to right with probability one half."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
