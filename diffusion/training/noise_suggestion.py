"""Which noise levels to train and to sample on: a proposal from the images.

For each sigma the EDM-weighted loss is measured for the Gaussian of the training
images, the first thing that a network learns.  It is 1 for a network that knows
nothing.  Where the Gaussian gains nothing, at small sigma because the noise drowns no
structure and at large sigma because it drowns all of it, there is little to learn at
all; what it gains elsewhere, g(sigma) = 1 - loss, says where learning pays.  The
proposed law of training has the mean and the standard deviation of log sigma under g.

sigma_min is the standard deviation of rounding to 8 bits, below which noise is
invisible.  At sigma_max the images may shift the noise by as much as EDM lets CIFAR-10
do: KL(p_sigma || N(0, sigma^2)) <= sum_i E[x_i^2] / (2 sigma^2) = .06 nats (sigma 80
for 3,072 pixels of mean square 1/4).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from configs.schema import DataConfig
from diffusion.data import split_of, to_data_units
from diffusion.denoiser import Denoiser
from diffusion.loss import denoising_loss
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training.building import fit_training_gaussian

__all__ = ["NoiseSuggestion", "format_suggestion", "suggest_noise"]

_SIGMAS = np.geomspace(1e-3, 1e3, 49)
_MAX_IMAGES = 512
_KL_AT_SIGMA_MAX = 0.06
_ROUNDING = 1 / 127.5 / math.sqrt(12)


class NoiseSuggestion(NamedTuple):
    """What was measured, and what it suggests.

    Attributes:
        sigma_data: Root mean square of the training pixels.
        p_mean: Mean of log sigma in training.
        p_std: Its standard deviation.
        sigma_min: Last level of sampling.
        sigma_max: First level of sampling.
        sigmas: (L,) levels.
        losses: (L,) EDM-weighted losses of the Gaussian.
        held_out: Whether they were measured on held-out images.
    """

    sigma_data: float
    p_mean: float
    p_std: float
    sigma_min: float
    sigma_max: float
    sigmas: np.ndarray
    losses: np.ndarray
    held_out: bool


def suggest_noise(data: DataConfig) -> NoiseSuggestion:
    """Measure a data set and propose its noise levels.

    Args:
        data: Which images; horizontal flips are taken into the Gaussian.

    Returns:
        The proposal with what it rests on.

    Raises:
        InputError: If the images cannot be had.
    """
    split = split_of(data)
    gaussian = fit_training_gaussian(split.training.images, flip=data.horizontal_flip)
    held_out = len(split.held_out.images) > 0
    chosen = split.held_out.images if held_out else split.training.images
    images = to_data_units(chosen[:_MAX_IMAGES])
    weight = EDMPreconditioning(split.sigma_data).loss_weight
    noise = jax.random.normal(jax.random.key(0), images.shape)

    @jax.jit
    def loss(gaussian: Denoiser, images: Array, noise: Array, sigma: Array) -> Array:
        noisy = images + sigma * noise
        losses = denoising_loss(gaussian, noisy, images, sigma, weight=weight(sigma))
        return jnp.mean(losses)

    losses = np.array(
        [float(loss(gaussian, images, noise, jnp.float32(s))) for s in _SIGMAS]
    )
    p_mean, p_std = _moments(losses)
    total = split.sigma_data**2 * math.prod(images.shape[1:])
    return NoiseSuggestion(
        sigma_data=split.sigma_data,
        p_mean=p_mean,
        p_std=p_std,
        sigma_min=_ROUNDING,
        sigma_max=math.sqrt(total / (2 * _KL_AT_SIGMA_MAX)),
        sigmas=_SIGMAS,
        losses=losses,
        held_out=held_out,
    )


def _moments(losses: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of log sigma under what the Gaussian gains."""
    # What is left at the largest sigma is the mean image, which is learned at once.
    gain = np.clip(1 - losses, 0, None)
    gain = np.clip(gain - gain[-1], 0, None)
    logs = np.log(_SIGMAS)
    if not gain.sum() > 0:
        return -1.2, 1.2
    mean = float(gain @ logs / gain.sum())
    return mean, math.sqrt(float(gain @ (logs - mean) ** 2 / gain.sum()))


def format_suggestion(found: NoiseSuggestion) -> str:
    """Return the proposal as lines of text, with the options that set it."""
    where = "held-out" if found.held_out else "training"
    rows = [
        f"{sigma:10.4f} {loss:8.4f} {'#' * max(0, round(40 * (1 - loss)))}"
        for sigma, loss in zip(found.sigmas[::4], found.losses[::4], strict=True)
    ]
    return "\n".join(
        [
            f"sigma_data {found.sigma_data:.4f} (measured; used unless given)",
            f"EDM-weighted loss of the Gaussian on {where} images, 1 before learning:",
            "     sigma     loss",
            *rows,
            "training:  "
            f"--noise.p-mean {found.p_mean:.2f} --noise.p-std {found.p_std:.2f}",
            f"sampling:  --sampler.sigma-min {found.sigma_min:.4f} "
            f"--sampler.sigma-max {found.sigma_max:.0f}",
        ]
    )
