"""Reconstruction contractive auto-encoders: denoising to first order in sigma^2.

    loss = E[ |r(x) - x|^2 + sigma^2 |dr/dx|_F^2 ],

the contraction on the whole of r rather than on its encoder (arXiv 1211.4246).  By
Taylor's formula for r(x + sigma z) the denoising loss is

    E|r(x) - x|^2 + sigma^2 E[ |dr/dx|_F^2 + (r(x) - x) . Laplacian r(x) ] + O(sigma^4),

so the two differ by o(sigma^2) where r - x vanishes with sigma, as it does at their
optima, and by a term of order sigma^2 for an r that is held fixed.

Hutchinson's estimate of |J|_F^2 is E|J v|^2 with E[v v^T] = I.  The probes of a sample
are orthogonal directions of length sqrt(D): unbiased, and exact with D of them.  (Pairs
v, -v would gain nothing: |J v|^2 is even.)
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from analysis.autoencoder.reconstruction import (
    Reconstruction,
    reconstruct,
    reconstruction_jacobian,
)
from analysis.kernels.checks import check_finite
from configs.errors import InputError
from diffusion.denoiser import expand_sigma

__all__ = ["LARGEST_EXACT", "contraction_penalty", "rcae_loss"]

LARGEST_EXACT = 64
"""Elements of a sample up to which the exact Jacobian is allowed: it takes D products
and D^2 numbers per sample."""


def rcae_loss(
    reconstruction: Reconstruction,
    x: ArrayLike,
    sigma: ArrayLike,
    *,
    key: Array | None = None,
    probes: int | None = None,
    weight: ArrayLike | None = None,
) -> Array:
    """Return lambda E[|r(x) - x|^2 + sigma^2 |dr/dx|_F^2].

    Args:
        reconstruction: r.
        x: (B, *event) clean samples, data units.
        sigma: () or (B,), above 0, data units.
        key: A `jax.random.key` for the probes.
        probes: Probes per sample, in [1, D]; None takes the exact Jacobian.
        weight: lambda, () or (B,); None for 1/sigma^2, as in `dae_loss`.

    Returns:
        () the mean over samples of the sum over elements.

    Raises:
        InputError: If r returns another shape, a sample is not finite, probes are out
            of range or lack a key, or (outside of jit) a sigma is not finite and above
            0.
    """
    x = jnp.asarray(x)
    level = expand_sigma(sigma, x).reshape(-1)
    check_finite("x", x)
    error = (reconstruct(reconstruction, x) - x).reshape(len(x), -1)
    penalty = contraction_penalty(reconstruction, x, key=key, probes=probes)
    losses = jnp.sum(error**2, axis=1) + level**2 * penalty
    factor = level**-2 if weight is None else jnp.asarray(weight)
    return jnp.mean(factor * losses)


def contraction_penalty(
    reconstruction: Reconstruction,
    x: ArrayLike,
    *,
    key: Array | None = None,
    probes: int | None = None,
) -> Array:
    """Return |dr/dx|_F^2 of each sample, exactly or by Hutchinson's estimate.

    Args:
        reconstruction: r.
        x: (B, *event), data units.
        key: A `jax.random.key` for the probes.
        probes: Probes per sample, in [1, D]; None takes the exact Jacobian.

    Returns:
        (B,), no unit.

    Raises:
        InputError: If probes are out of range or lack a key, or D is too large for the
            exact Jacobian.
    """
    x = jnp.asarray(x)
    size = x.size // len(x)
    if probes is None:
        if size > LARGEST_EXACT:
            raise InputError(
                f"the exact Jacobian takes at most {LARGEST_EXACT} elements per sample "
                f"and x has {size}; give probes, such as probes=4, and a key"
            )
        jacobian = reconstruction_jacobian(reconstruction, x)
        return jnp.sum(jacobian**2, axis=(1, 2))
    if key is None or not 1 <= probes <= size:
        raise InputError(
            f"probes is {probes} and key is {'missing' if key is None else 'given'}; "
            f"give a key and a number of probes in [1, {size}]"
        )
    return _probed(reconstruction, x, _probes(key, len(x), size, probes, x.dtype))


def _probes(key: Array, count: int, size: int, probes: int, dtype: jnp.dtype) -> Array:
    """Return (P, B, D): orthogonal directions of length sqrt(D) for each sample."""
    normal = jax.random.normal(key, (count, size, probes), dtype)
    basis = jnp.linalg.qr(normal)[0] * jnp.sqrt(jnp.asarray(size, dtype))
    return jnp.moveaxis(basis, 2, 0)


def _probed(reconstruction: Reconstruction, x: Array, directions: Array) -> Array:
    """Return the mean of |J v|^2 over probes; samples do not see each other."""

    def along(direction: Array) -> Array:
        tangent = direction.reshape(x.shape)
        moved = jax.jvp(reconstruction, (x,), (tangent,))[1]
        return jnp.sum(moved.reshape(len(x), -1) ** 2, axis=1)

    return jax.vmap(along)(directions).mean(axis=0)
