"""One optimizer step, and the evaluation of a loss on fixed noise.

The batch is gathered, flipped and brought to data units inside the compiled step.  The
gradient is that of the per-image sum of squared errors, averaged over the batch, as in
EDM; what is logged is the mean over pixels, which is 1 at the start.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from configs.schema import ExperimentConfig, OptimConfig
from diffusion.data.batches import to_data_units
from diffusion.data.builtin import Dataset
from diffusion.loss import denoising_loss
from diffusion.networks.functional import ModuleNetwork
from diffusion.neural import NeuralDenoiser
from diffusion.noise import NoiseLaw
from diffusion.preconditioning import Preconditioning
from diffusion.training.ema import ema_decay, update_ema
from diffusion.training.state import (
    UNCERTAINTY,
    LossSums,
    TrainState,
    network_params,
)
from diffusion.uncertainty import log_uncertainty

__all__ = [
    "Examples",
    "Problem",
    "build_evaluation",
    "build_optimizer",
    "build_step",
    "sigma_bins",
]

# Training uses the streams 0, 1, 2, ... of the seed, one per step.
_EVALUATION_STREAM = 2**31


class Problem(NamedTuple):
    """What is learned, without arrays.

    Attributes:
        network: The network.
        noise: The law of sigma in training.
        inverse_square_weight: Whether the loss is weighted by 1/sigma^2, as in VP and
            VE; otherwise by the preconditioning's 1/c_out^2.
        num_classes: Length of one-hot labels; 0 to train without.
    """

    network: ModuleNetwork
    noise: NoiseLaw
    inverse_square_weight: bool = False
    num_classes: int = 0


class Examples(NamedTuple):
    """What the compiled functions get as arrays, never as constants.

    Attributes:
        images: (N, *event), uint8 pixels or floats in data units.
        labels: (N,) classes.
        preconditioning: A pytree; one with a Gaussian holds its basis.
    """

    images: Array
    labels: Array
    preconditioning: Preconditioning


def examples_of(data: Dataset, preconditioning: Preconditioning) -> Examples:
    """Put samples on the device."""
    images, labels = jax.device_put((data.images, np.asarray(data.labels, np.int32)))
    return Examples(images, labels, preconditioning)


def build_optimizer(
    config: OptimConfig, batch_size: int
) -> optax.GradientTransformation:
    """Return Adam with a linear warm-up, then constant or 1/sqrt(images).

    The rate never depends on the number of steps asked for, so a finished run can be
    trained further as if it had never stopped.
    """

    def rate(count: ArrayLike) -> Array:
        images = jnp.asarray(count) * jnp.float32(batch_size)
        value = jnp.float32(config.learning_rate)
        if config.warmup_images:
            value = value * jnp.minimum(images / config.warmup_images, 1)
        if config.decay_images:
            value = value / jnp.sqrt(jnp.maximum(images / config.decay_images, 1))
        return value

    adam = optax.adam(rate, b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    if config.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def sigma_bins(sigma: Array, edges: tuple[float, ...]) -> Array:
    """Return each level's bin as one-hot rows, (B,) -> (B, len(edges) + 1) float32."""
    index = jnp.searchsorted(jnp.asarray(edges), sigma, side="right")
    return jax.nn.one_hot(index, len(edges) + 1, dtype=jnp.float32)


def build_step(
    config: ExperimentConfig, problem: Problem, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Examples, Array], TrainState]:
    """Return the compiled step ``(state, examples, indices) -> state``.

    ``examples`` is the whole training set on the device and ``indices`` the (B,)
    samples of the step.  The state's buffers are donated.
    """
    training, ema = config.training, config.ema

    def loss_of(params: dict[str, Any], batch: Examples, key: Array) -> Any:
        sigma_key, noise_key, dropout_key = jax.random.split(key, 3)
        sigma = problem.noise.sample(sigma_key, (batch.images.shape[0],))
        losses = _losses_on_fresh_noise(
            problem, params, batch, sigma, noise_key, dropout_key
        )
        objective = losses
        if UNCERTAINTY in params:
            c_noise = batch.preconditioning(sigma).c_noise
            log = log_uncertainty(params[UNCERTAINTY], c_noise)
            objective = losses / jnp.exp(log) + log
        return jnp.mean(objective) * math.prod(batch.images.shape[1:]), (losses, sigma)

    def step(state: TrainState, examples: Examples, indices: Array) -> TrainState:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        flip_key, loss_key = jax.random.split(key)
        images = to_data_units(examples.images[indices])
        if config.data.horizontal_flip:
            images = _flip_half(images, flip_key)
        batch = examples._replace(images=images, labels=examples.labels[indices])
        gradient, (losses, sigma) = jax.grad(loss_of, has_aux=True)(
            state.params, batch, loss_key
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        count = state.step + 1
        decay = ema_decay(
            count * jnp.float32(training.batch_size),
            training.batch_size,
            ema.half_life_images,
            ema.ramp_fraction,
        )
        bins = sigma_bins(sigma, training.sigma_bin_edges)
        sums = LossSums(
            loss=state.sums.loss + losses @ bins,
            count=state.sums.count + bins.sum(axis=0),
            gradient_norm=state.sums.gradient_norm + optax.tree.norm(gradient),
            steps=state.sums.steps + 1,
        )
        average = update_ema(state.ema_params, params, decay)
        return TrainState(count, params, average, opt_state, sums)

    return jax.jit(step, donate_argnums=0)


def _flip_half(images: Array, key: Array) -> Array:
    """Mirror each image of (B, H, W, C) left to right with probability one half."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def build_evaluation(
    config: ExperimentConfig, problem: Problem
) -> Callable[[dict[str, Any], Examples, Array, Array], tuple[Array, Array]]:
    """Return ``(params, batch, valid, block) -> (loss sums, counts)``, by sigma bin.

    Block b always gets the same noise, and its images the quantiles (i + 1/2)/B of the
    training law in a fixed random order as sigma: two evaluations differ by the
    parameters alone.  ``valid`` (B,) masks the padding of the last block.
    """

    def evaluate(
        params: dict[str, Any], batch: Examples, valid: Array, block: Array
    ) -> tuple[Array, Array]:
        batch = batch._replace(images=to_data_units(batch.images))
        count = batch.images.shape[0]
        key = jax.random.fold_in(jax.random.key(config.seed), _EVALUATION_STREAM)
        sigma_key, noise_key = jax.random.split(jax.random.fold_in(key, block))
        order = jax.random.permutation(sigma_key, count)
        sigma = problem.noise.quantile((order + 0.5) / count)
        losses = _losses_on_fresh_noise(problem, params, batch, sigma, noise_key)
        bins = sigma_bins(sigma, config.training.sigma_bin_edges) * valid[:, None]
        return losses @ bins, bins.sum(axis=0)

    return jax.jit(evaluate)


def _losses_on_fresh_noise(
    problem: Problem,
    params: dict[str, Any],
    batch: Examples,
    sigma: Array,
    noise_key: Array,
    dropout_key: Array | None = None,
) -> Array:
    """Noise the images of a batch and return their (B,) weighted losses."""
    images, labels = batch.images, None
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    noisy = images + sigma.reshape((-1,) + (1,) * (images.ndim - 1)) * noise
    if problem.num_classes:
        labels = jax.nn.one_hot(batch.labels, problem.num_classes)
    denoiser = NeuralDenoiser(
        network_params(params),
        problem.network,
        batch.preconditioning,
        labels=labels,
        dropout_key=dropout_key,
    )
    weight = sigma**-2
    if not problem.inverse_square_weight:
        weight = batch.preconditioning.loss_weight(sigma)
    return denoising_loss(denoiser, noisy, images, sigma, weight=weight)
