"""Reconstruction functions as scores: what a denoising auto-encoder learns.

Over all functions r the denoising loss E|r(x + sigma z) - x|^2, z standard normal, is
least at the posterior mean, so by Tweedie's formula

    r(x) = x + sigma^2 grad log p_sigma(x),
    dr/dx = I + sigma^2 Hess log p_sigma(x) = Cov[x0 | x] / sigma^2,

with p_sigma the density of noisy samples: exactly, and for every sigma.  Hence r(x) - x
is a score up to sigma^2, and no energy (Alain & Bengio, arXiv 1211.4246).  A
reconstruction is any callable from (B, *event) to (B, *event); what is trained at one
sigma is a `Denoiser` there, and there alone (`AutoencoderDenoiser`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from analysis.kernels.checks import check_finite
from configs.errors import InputError
from diffusion.closed_form import EmpiricalDenoiser
from diffusion.denoiser import Denoiser, expand_sigma, score
from diffusion.loss import denoising_loss

__all__ = [
    "Reconstruction",
    "at_sigma",
    "check_sigma",
    "dae_loss",
    "hessian_from_recon",
    "kde_reconstruction",
    "reconstruct",
    "reconstruction_jacobian",
    "score_from_recon",
]

Reconstruction = Callable[[Array], Array]
"""r: (B, *event) -> (B, *event); a sample's result depends on that sample alone."""


def reconstruct(reconstruction: Reconstruction, x: ArrayLike) -> Array:
    """Return r(x), after a look at its shape.

    Args:
        reconstruction: r.
        x: (B, *event) floats, data units.

    Returns:
        (B, *event), data units.

    Raises:
        InputError: If r returns another shape than it was given.
    """
    x = jnp.asarray(x)
    value = reconstruction(x)
    if jnp.shape(value) != x.shape:
        raise InputError(
            f"the reconstruction of x of shape {x.shape} has shape "
            f"{jnp.shape(value)}; an auto-encoder must return the shape that it is "
            "given"
        )
    return value


def dae_loss(
    reconstruction: Reconstruction,
    x: ArrayLike,
    key: Array,
    sigma: ArrayLike,
    *,
    weight: ArrayLike | None = None,
) -> Array:
    """Estimate lambda E|r(x + sigma z) - x|^2, one z per sample.

    With the default weight 1/sigma^2 the identity has loss D, and the best r about the
    number of directions normal to the data.

    Args:
        reconstruction: r.
        x: (B, *event) clean samples, data units.
        key: A `jax.random.key`.
        sigma: () or (B,) noise levels, above 0, data units.
        weight: lambda, () or (B,); None for 1/sigma^2.

    Returns:
        () the mean over samples of the sum over elements.

    Raises:
        InputError: If r returns another shape, a sample is not finite, or (outside of
            jit) a sigma is not finite and above 0.
    """
    x = jnp.asarray(x)
    level = expand_sigma(sigma, x)
    check_finite("x", x)
    noisy = x + level.astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype)
    losses = denoising_loss(
        _as_denoiser(reconstruction),
        noisy,
        x,
        level.reshape(-1),
        weight=level.reshape(-1) ** -2 if weight is None else jnp.asarray(weight),
    )
    return losses.mean() * (x.size // len(x))


def score_from_recon(
    reconstruction: Reconstruction, x: ArrayLike, sigma: ArrayLike
) -> Array:
    """Return the score (r(x) - x) / sigma^2 of the noisy density.

    Args:
        reconstruction: r, trained at `sigma`.
        x: (B, *event), data units.
        sigma: () or (B,), above 0, data units.

    Returns:
        (B, *event), one over data units, in the dtype of `x`.

    Raises:
        InputError: If r returns another shape or a sigma is not finite and above 0.
    """
    return score(_as_denoiser(reconstruction), x, sigma)


def reconstruction_jacobian(reconstruction: Reconstruction, x: ArrayLike) -> Array:
    """Return dr/dx of each sample by forward differentiation, D products.

    Args:
        reconstruction: r.
        x: (B, *event), data units.

    Returns:
        (B, D, D), entry [b, i, j] = d r_i / d x_j at sample b; no unit.

    Raises:
        InputError: If r returns another shape than it was given.
    """
    x = jnp.asarray(x)
    event = x.shape[1:]

    def one(flat: Array) -> Array:
        return reconstruct(reconstruction, flat.reshape(1, *event)).reshape(-1)

    return jax.vmap(jax.jacfwd(one))(x.reshape(len(x), -1))


def hessian_from_recon(
    reconstruction: Reconstruction, x: ArrayLike, sigma: ArrayLike
) -> Array:
    """Return the Hessian of log p_sigma, (dr/dx - I) / sigma^2.

    Of a trained r it need not be symmetric; see `local_geometry.curl_norm`.

    Args:
        reconstruction: r, trained at `sigma`.
        x: (B, *event), data units.
        sigma: () or (B,), above 0, data units.

    Returns:
        (B, D, D), one over squared data units.

    Raises:
        InputError: If r returns another shape or a sigma is not finite and above 0.
    """
    x = jnp.asarray(x)
    level = expand_sigma(sigma, x).reshape(-1, 1, 1)
    jacobian = reconstruction_jacobian(reconstruction, x)
    return (jacobian - jnp.eye(jacobian.shape[-1], dtype=jacobian.dtype)) / level**2


def kde_reconstruction(points: ArrayLike, sigma: ArrayLike) -> Reconstruction:
    """Return the r that is best on the points themselves: their kernel average.

    It is `EmpiricalDenoiser` held at one noise level; p_sigma is the kernel density
    estimate with bandwidth sigma.

    Args:
        points: (N, *event) floats in data units, or uint8 pixels.
        sigma: () above 0, data units.

    Returns:
        r, a pytree.

    Raises:
        InputError: If a point is not finite or sigma is not a finite number above 0.
    """
    points = jnp.asarray(points)
    check_finite("points", points)
    return at_sigma(EmpiricalDenoiser(points), sigma)


def at_sigma(denoiser: Any, sigma: ArrayLike) -> Reconstruction:
    """Return any `Denoiser` held at one noise level, r(x) = D(x, sigma), a pytree.

    Raises:
        InputError: If sigma is not one finite number above 0.
    """
    check_sigma(sigma)
    return jax.tree_util.Partial(_call_at, denoiser, jnp.asarray(sigma))


def check_sigma(sigma: ArrayLike) -> None:
    """Refuse a noise level that is not one finite number above 0; traced ones pass.

    Raises:
        InputError: If it is not.
    """
    if isinstance(sigma, Tracer):
        return
    value = np.asarray(sigma)
    if value.shape != () or not np.isfinite(value) or value <= 0:
        raise InputError(
            f"sigma is {sigma}; an auto-encoder has one noise level, a finite number "
            "above 0, in data units"
        )


def _as_denoiser(reconstruction: Reconstruction) -> Denoiser:
    def denoise(x: Array, sigma: ArrayLike) -> Array:
        return reconstruct(reconstruction, x)  # one noise level, its own

    return denoise


def _call_at(denoiser: Any, sigma: Array, x: Array) -> Array:
    return denoiser(x, sigma)
