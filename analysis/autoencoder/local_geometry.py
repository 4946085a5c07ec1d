"""The shape of the data around a point, from a reconstruction or from a density.

The Jacobian of the best r is a posterior covariance over sigma^2: near a manifold of
the data it is about 1 along tangents and about 0 along normals, and symmetric.  A
trained r is neither exactly, and how far it is off says whether r - x is a score.

Moments of p over a ball of radius delta around x hold the same information (Bengio,
Alain & Rifai, arXiv 1207.0057): with d dimensions

    mean - x = delta^2/(d+2) grad log p + O(delta^4),
    covariance = delta^2/(d+2) I + O(delta^4).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from analysis.autoencoder.reconstruction import Reconstruction, reconstruction_jacobian
from configs.errors import InputError, is_positive, require

__all__ = [
    "LocalMoments",
    "LogDensity",
    "TangentNormal",
    "angle_error",
    "curl_norm",
    "local_moments",
    "tangent_normal_singular_values",
]

LogDensity = Callable[[Array], Array]
"""log p up to a constant: (n, d) -> (n,), each value of its own row alone."""


class LocalMoments(NamedTuple):
    """Moments of p restricted to a ball around each point.

    Attributes:
        mean: (B, d) mean minus the centre, data units.
        covariance: (B, d, d) covariance, squared data units.
        score: (B, d) mean (d+2)/delta^2, an estimate of grad log p to O(delta^2).
        effective: (B,) Kish's effective number of draws; few mean noise.
    """

    mean: Array
    covariance: Array
    score: Array
    effective: Array


class TangentNormal(NamedTuple):
    """What r keeps of moves along the data and across it.

    Attributes:
        tangent: (B, k) singular values of dr/dx on the tangent space; 1 at the best r
            of a flat manifold.
        normal: (B, D - k) singular values on the normal space; 0 there.
        tangents: (B, D, k) orthonormal basis of the tangent space that was used.
    """

    tangent: Array
    normal: Array
    tangents: Array


def local_moments(
    logp: LogDensity,
    x: ArrayLike,
    delta: float,
    key: Array,
    *,
    draws: int = 16_384,
) -> LocalMoments:
    """Estimate mean and covariance of p over balls, from uniform draws weighted by p.

    Draws come in pairs x + u, x - u: without them the noise of the mean, delta /
    sqrt(draws), would bury a mean of order delta^2.

    Args:
        logp: Log density, up to a constant.
        x: (B, d) centres, data units.
        delta: Radius, above 0, data units.
        key: A `jax.random.key`; centre i depends on it and on i alone.
        draws: Pairs per centre, at least 2.

    Returns:
        The moments, in the dtype of `x`.

    Raises:
        InputError: If an argument is out of range or `logp` returns another shape.
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise InputError(f"x has shape {x.shape}; give centres (B, d)")
    if not isinstance(delta, Tracer):
        require(is_positive(float(delta)), "delta", delta, "a finite number above 0")
    require(draws >= 2, "draws", draws, "at least 2")
    d = x.shape[1]

    def one(index: Array, centre: Array) -> LocalMoments:
        u = delta * _ball(jax.random.fold_in(key, index), draws, d, x.dtype)
        offsets = jnp.concatenate([u, -u])
        values = logp(centre + offsets)
        if values.shape != (2 * draws,):
            raise InputError(
                f"logp of points {offsets.shape} has shape {values.shape}; it must "
                f"return one value per point, ({2 * draws},)"
            )
        weights = jax.nn.softmax(values)
        mean = weights @ offsets
        centred = offsets - mean
        covariance = (centred * weights[:, None]).T @ centred
        effective = 1 / jnp.sum(weights**2)
        return LocalMoments(mean, covariance, mean * (d + 2) / delta**2, effective)

    return jax.lax.map(lambda pair: one(*pair), (jnp.arange(len(x)), x))


def tangent_normal_singular_values(
    reconstruction: Reconstruction,
    x: ArrayLike,
    tangents: ArrayLike | None = None,
    *,
    dimension: int = 1,
) -> TangentNormal:
    """Return the singular values of dr/dx along the data and across it.

    Args:
        reconstruction: r.
        x: (B, *event), near the manifold, data units.
        tangents: (B, D, k) or (B, D) true tangent vectors, independent, of any length;
            None takes the leading right singular vectors of dr/dx.
        dimension: Of the manifold, in [1, D - 1], where no tangents are given.

    Returns:
        Both sets of singular values, largest first, and the tangents.

    Raises:
        InputError: If the tangents' shape or the dimension does not fit.
    """
    jacobian = reconstruction_jacobian(reconstruction, x)
    count, size = jacobian.shape[:2]
    if tangents is None:
        require(
            1 <= dimension < size, "dimension", dimension, f"in [1, {size - 1}] here"
        )
        right = jnp.swapaxes(jnp.linalg.svd(jacobian)[2], 1, 2)
    else:
        given = jnp.asarray(tangents, jacobian.dtype)
        given = given[:, :, None] if given.ndim == 2 else given
        if given.shape[:2] != (count, size) or not 1 <= given.shape[2] < size:
            raise InputError(
                f"tangents have shape {given.shape}; give ({count}, {size}, k) with k "
                f"in [1, {size - 1}]"
            )
        dimension = given.shape[2]
        right = jnp.linalg.qr(given, mode="complete")[0]
    moved = jacobian @ right
    return TangentNormal(
        jnp.linalg.svd(moved[:, :, :dimension], compute_uv=False),
        jnp.linalg.svd(moved[:, :, dimension:], compute_uv=False),
        right[:, :, :dimension],
    )


def curl_norm(reconstruction: Reconstruction, x: ArrayLike) -> Array:
    """Return |J - J^T|_F / |J + J^T|_F of each sample, J = dr/dx.

    0 where r - x is locally a gradient; a trained r need not be one.

    Args:
        reconstruction: r.
        x: (B, *event), data units.

    Returns:
        (B,), no unit.
    """
    jacobian = reconstruction_jacobian(reconstruction, x)
    transposed = jnp.swapaxes(jacobian, 1, 2)
    odd = jnp.linalg.norm(jacobian - transposed, axis=(1, 2))
    even = jnp.linalg.norm(jacobian + transposed, axis=(1, 2))
    return odd / jnp.maximum(even, jnp.finfo(even.dtype).tiny)


def angle_error(vectors: ArrayLike, reference: ArrayLike) -> Array:
    """Return the angle between two fields, sample by sample.

    2 atan2(|a - b|, |a + b|) of unit vectors, which keeps its digits near 0 and 180
    degrees, where arccos loses half of them.  A zero vector is at 90 degrees to all.

    Args:
        vectors: (B, *event), such as r(x) - x.
        reference: (B, *event).

    Returns:
        (B,) degrees in [0, 180].

    Raises:
        InputError: If the shapes differ.
    """
    vectors, reference = jnp.asarray(vectors), jnp.asarray(reference)
    if vectors.shape != reference.shape or vectors.ndim < 2:
        raise InputError(
            f"vectors have shape {vectors.shape} and the reference {reference.shape}; "
            "give two of one shape, (B, *event)"
        )
    a, b = _unit(vectors), _unit(reference)
    apart = jnp.linalg.norm(a - b, axis=1)
    along = jnp.linalg.norm(a + b, axis=1)
    return jnp.degrees(2 * jnp.arctan2(apart, along))


def _unit(vectors: Array) -> Array:
    rows = vectors.reshape(len(vectors), -1)
    # By the largest element first: squares of tiny scores would vanish.
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    rows = rows / jnp.where(largest > 0, largest, 1)
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(length > 0, length, 1)


def _ball(key: Array, count: int, d: int, dtype: jnp.dtype) -> Array:
    """Return points uniform in the unit ball, their radii stratified, (count, d)."""
    first, second = jax.random.split(key)
    normal = jax.random.normal(first, (count, d), dtype)
    direction = normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
    share = (jnp.arange(count) + jax.random.uniform(second, (count,), dtype)) / count
    return direction * share[:, None].astype(dtype) ** (1 / d)
