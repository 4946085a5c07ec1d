"""A denoiser is a pytree that can be called: D(x, sigma) = E[x0 | x].

One frame for everything: x = x0 + sigma * n with n standard normal and data in about
[-1, 1].  By Tweedie's formula (Robbins 1956; Vincent 2011; arXiv 1211.4246) the score
of the noised density follows from the denoiser,

    score(x, sigma) = (D(x, sigma) - x) / sigma**2,

and so does the noise that a network would predict, (x - D(x, sigma)) / sigma.  Neural
networks, Gaussians, mixtures and the training set itself are all denoisers, so every
sampler, loss and figure works on each of them.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError

__all__ = [
    "Denoiser",
    "as_pytree",
    "expand_per_sample",
    "expand_sigma",
    "predicted_noise",
    "score",
]


@runtime_checkable
class Denoiser(Protocol):
    """The posterior mean of the clean sample, E[x0 | x0 + sigma * n = x]."""

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise a batch.

        Args:
            x: Noisy samples, (B, *event), in data units.
            sigma: Noise level, () or (B,), above 0, in data units.

        Returns:
            Denoised samples, (B, *event), in the dtype of `x`.
        """
        ...


def score(denoiser: Denoiser, x: ArrayLike, sigma: ArrayLike) -> Array:
    """Return the gradient of log p(x; sigma), (D(x, sigma) - x) / sigma**2.

    Args:
        denoiser: Any `Denoiser`.
        x: Noisy samples, (B, *event).
        sigma: Noise level, () or (B,), above 0.

    Returns:
        The score, (B, *event), in the dtype of `x`.

    Raises:
        InputError: If a sigma is not a finite number above 0 or has the wrong shape.
    """
    x = jnp.asarray(x)
    noise_level = expand_sigma(sigma, x)
    return ((denoiser(x, jnp.asarray(sigma)) - x) / noise_level**2).astype(x.dtype)


def predicted_noise(denoiser: Denoiser, x: ArrayLike, sigma: ArrayLike) -> Array:
    """Return the posterior mean of the noise, (x - D(x, sigma)) / sigma.

    Args:
        denoiser: Any `Denoiser`.
        x: Noisy samples, (B, *event).
        sigma: Noise level, () or (B,), above 0.

    Returns:
        Noise of unit variance, (B, *event), in the dtype of `x`.

    Raises:
        InputError: If a sigma is not a finite number above 0 or has the wrong shape.
    """
    x = jnp.asarray(x)
    noise_level = expand_sigma(sigma, x)
    return ((x - denoiser(x, jnp.asarray(sigma))) / noise_level).astype(x.dtype)


def expand_sigma(
    sigma: ArrayLike, x: Array, *, allow_zero: bool = False, name: str = "sigma"
) -> Array:
    """Shape sigma so that it broadcasts against a batch, and check it.

    The result has at least 32 bits: noise levels span five decades, which bfloat16
    samples could not resolve.

    Args:
        sigma: () or (B,).
        x: (B, *event).
        allow_zero: Whether sigma = 0 is meaningful for the caller.
        name: What an error calls it.

    Returns:
        sigma as (1, ..., 1) or (B, 1, ..., 1), with as many axes as `x`.

    Raises:
        InputError: If `x` has no batch axis or is not of floating type, or if sigma has
            another shape, or (outside of jit) is not finite and above 0.
    """
    if x.ndim < 2:
        raise InputError(
            f"x has shape {x.shape}; give a batch, (B, *event), such as x[None]"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"x has dtype {x.dtype}; give floats in data units (uint8: x / 127.5 - 1)"
        )
    if not isinstance(sigma, Tracer):
        _check_values(np.asarray(sigma), allow_zero, name)
    level = jnp.asarray(sigma, dtype=jnp.promote_types(x.dtype, jnp.float32))
    if level.shape not in ((), (1,), (x.shape[0],)):
        raise InputError(
            f"{name} has shape {level.shape}; it must be () or ({x.shape[0]},), "
            "one value per sample"
        )
    return expand_per_sample(level, x)


def expand_per_sample(values: Array, x: Array) -> Array:
    """Shape () or (B,) so that it broadcasts against a batch.

    Args:
        values: () or (B,).
        x: (B, *event).

    Returns:
        (1, ..., 1) or (B, 1, ..., 1), with as many axes as `x`.
    """
    return values.reshape((-1,) + (1,) * (x.ndim - 1))


def as_pytree(denoiser: Callable[..., Array]) -> Denoiser:
    """Wrap a plain function, so that it can be an argument of a compiled one.

    Arrays that it closes over are then compiled in; pytrees are returned as they are.
    """
    plain = jax.tree_util.all_leaves([denoiser])
    return jax.tree_util.Partial(denoiser) if plain else denoiser


def _check_values(sigma: np.ndarray, allow_zero: bool, name: str) -> None:
    allowed = (sigma >= 0) if allow_zero else (sigma > 0)
    if not np.all(allowed & np.isfinite(sigma)):
        bound = ">= 0" if allow_zero else "> 0"
        raise InputError(
            f"{name} contains {sigma[~(allowed & np.isfinite(sigma))].flat[0]}; "
            f"every value must be a finite number {bound}"
        )
