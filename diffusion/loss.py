"""Denoising score matching.

    L = lambda(sigma) |D(x, sigma) - x0|^2 / D,    x = x0 + sigma n

Its minimiser over all functions is E[x0 | x], hence the score (Vincent 2011).  The loss
takes the noisy sample and its target apart, so that a transform may act on both.

Published losses are this one with a law of sigma and a weight (arXiv 2206.00364, table
1): EDM, log sigma ~ N(-1.2, 1.2^2) and lambda = 1/c_out^2; VP, uniform time and lambda
= 1/sigma^2; VE, log-uniform sigma and lambda = 1/sigma^2.  Here it is the mean over the
D elements of a sample; the training step multiplies it by D, the sum that EDM's
learning rates are for.
"""

import jax.numpy as jnp
from jax import Array

from configs.errors import InputError
from diffusion.denoiser import Denoiser

__all__ = ["denoising_loss"]


def denoising_loss(
    denoiser: Denoiser,
    noisy: Array,
    target: Array,
    sigma: Array,
    *,
    weight: Array | None = None,
) -> Array:
    """Return the weighted squared error of each sample, averaged over its elements.

    Args:
        denoiser: Any `Denoiser`.
        noisy: Noisy samples, (B, *event).
        target: What the denoiser should return, (B, *event).
        sigma: Noise levels, () or (B,).
        weight: lambda(sigma), () or (B,); None for 1.

    Returns:
        (B,) losses, in the dtype of `noisy` or float32 where that is narrower.

    Raises:
        InputError: If the shapes of `noisy` and `target` differ.
    """
    if noisy.shape != target.shape:
        raise InputError(
            f"noisy has shape {noisy.shape} and target {target.shape}; they must agree"
        )
    dtype = jnp.promote_types(noisy.dtype, jnp.float32)
    error = denoiser(noisy, sigma).astype(dtype) - target.astype(dtype)
    loss = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    return loss if weight is None else jnp.asarray(weight) * loss
