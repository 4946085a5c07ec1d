"""Why a bounded set of points looks Gaussian from afar, and how far is far enough.

With z = x - mean, rho = |z|, R the largest distance of a point from the mean, lambda_1
the largest variance and a = (R rho + R^2/2) / sigma^2,

    |D_empirical - D_Gaussian| <= R a^2 + R^3/(2 sigma^2) + lambda_1^2 rho / sigma^4.

D_empirical - mean is the mean of the points y under weights e^phi, phi = z.y/sigma^2 -
|y|^2/(2 sigma^2).  Its first order in phi is Sigma z / sigma^2 - E[y |y|^2]/(2 sigma^2)
and the rest at most R a^2, because the third cumulant of (y, phi, phi) is at most
2 R a^2 under every such weighting; the Gaussian has the same Sigma z / sigma^2.  Beyond
the bound, the leading difference is known:

    s_empirical - s_Gaussian ~ 1/2 P K3[(P z)(P z)^T - P],   P = (Sigma + sigma^2)^-1,

with the third central moments K3 (`diffusion.closed_form.EdgeworthDenoiser`).  Source:
Wang & Vastola, arXiv 2412.09726, who state the limit in words.

All gaps here are those of the denoised sample; divided by sigma^2 they are the score's.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form import (
    EdgeworthDenoiser,
    EmpiricalDenoiser,
    GaussianDenoiser,
)
from diffusion.closed_form.image_rows import ImageRows
from diffusion.denoiser import Denoiser

__all__ = [
    "CloudExtent",
    "FarFieldComparison",
    "cloud_extent",
    "compare_far_field",
    "far_field_bound",
    "far_field_gap",
    "far_field_rows",
    "third_cumulant_gap",
]


class CloudExtent(NamedTuple):
    """How large a set of points is.

    Attributes:
        radius: Largest distance of a point from the mean, R, data units.
        largest_variance: lambda_1 of the covariance, squared data units.
    """

    radius: float
    largest_variance: float


class FarFieldComparison(NamedTuple):
    """The training set against its Gaussian at several noise levels.

    Attributes:
        sigmas: (L,) noise levels, data units.
        num_probes: Noisy samples behind every number.
        extent: Size of the set.
        gap: (L,) median of |D_empirical - D_Gaussian|, data units.
        bound: (L,) median of the bound on it, data units.
        largest_ratio: (L,) largest gap / bound of any probe; at most 1.
        unpredicted: (L,) median of |gap - third-cumulant gap| / |gap|; 1 where the
            correction is left out, below 1.5 sqrt(lambda_1).
        left: (L,) median of |gap - third-cumulant gap|, data units.
    """

    sigmas: NDArray[np.float64]
    num_probes: int
    extent: CloudExtent
    gap: NDArray[np.float64]
    bound: NDArray[np.float64]
    largest_ratio: NDArray[np.float64]
    unpredicted: NDArray[np.float64]
    left: NDArray[np.float64]


def cloud_extent(points: ArrayLike, gaussian: GaussianDenoiser) -> CloudExtent:
    """Return the radius of a set of points and its largest variance.

    Args:
        points: (N, *event), uint8 or data units.
        gaussian: Fitted to the same points.

    Returns:
        See `CloudExtent`.

    Raises:
        InputError: If the shapes do not fit.
    """
    rows = ImageRows(np.asarray(points))
    if rows.event != gaussian.mean.shape:
        raise InputError(
            f"points have shape {rows.event}, the Gaussian {gaussian.mean.shape}; fit "
            "it to the same points"
        )
    mean = jnp.ravel(gaussian.mean)
    squared = 0.0
    for block in rows.blocks():
        distances = jnp.sum((block.rows[: block.count] - mean) ** 2, axis=1)
        squared = max(squared, float(jnp.max(distances)))
    variances = np.append(np.asarray(gaussian.variances), gaussian.residual_variance)
    return CloudExtent(float(np.sqrt(squared)), float(variances.max()))


def far_field_bound(
    extent: CloudExtent, distance: ArrayLike, sigma: ArrayLike
) -> NDArray[np.float64]:
    """Return the bound on |D_empirical - D_Gaussian|; see the module.

    It holds for the Gaussian with all of the points' covariance, not for a truncated
    one.  For x from the noised density it is of the order R^3 D / sigma^2.

    Args:
        extent: Size of the set.
        distance: |x - mean|, (...), data units.
        sigma: Noise level, (...), above 0.

    Returns:
        (...) data units, float64.
    """
    rho, s2 = np.asarray(distance, np.float64), np.asarray(sigma, np.float64) ** 2
    radius = extent.radius
    a = (radius * rho + radius**2 / 2) / s2
    second = radius * a**2 + radius**3 / (2 * s2)
    return second + extent.largest_variance**2 * rho / s2**2


def far_field_gap(
    empirical: Denoiser, gaussian: Denoiser, x: Array, sigma: ArrayLike
) -> Array:
    """Return D_empirical - D_Gaussian.

    In float32 it is known to about 1e-6 of D; what is smaller needs float64.

    Args:
        empirical: The denoiser of the points.
        gaussian: That of their Gaussian.
        x: (B, *event).
        sigma: () or (B,), above 0.

    Returns:
        (B, *event), data units.
    """
    return empirical(x, sigma) - gaussian(x, sigma)


def third_cumulant_gap(
    edgeworth: EdgeworthDenoiser, x: Array, sigma: ArrayLike
) -> Array:
    """Return the predicted D_empirical - D_Gaussian, sigma^2 times that of the scores.

    Args:
        edgeworth: Gaussian and third cumulant of the points.
        x: (B, *event).
        sigma: () or (B,), above 0; below `EdgeworthDenoiser.lowest_sigma` the answer
            is 0.

    Returns:
        (B, *event), data units.
    """
    return edgeworth(x, sigma) - edgeworth.gaussian(x, sigma)


def compare_far_field(
    points: ArrayLike,
    edgeworth: EdgeworthDenoiser,
    sigmas: Sequence[float] | NDArray[np.float64],
    key: Array,
    *,
    num_probes: int = 256,
) -> FarFieldComparison:
    """Measure gap, bound and prediction on noised points.

    Args:
        points: (N, *event), uint8 or data units.
        edgeworth: Their Gaussian, of full rank, with a third cumulant
            (`GaussianDenoiser.with_third_cumulant`).
        sigmas: (L,) noise levels, data units.
        key: A `jax.random.key`; level l uses ``fold_in(key, l)``.
        num_probes: Noisy samples at each level, x = y + sigma n.

    Returns:
        Medians over the probes.

    Raises:
        InputError: If a level is not above 0, or the shapes do not fit.
    """
    levels = np.atleast_1d(np.asarray(sigmas, np.float64))
    if not (np.isfinite(levels) & (levels > 0)).all() or num_probes < 1:
        raise InputError(
            f"sigmas are {sigmas} and num_probes is {num_probes}; give levels above 0 "
            "and at least one probe"
        )
    extent = cloud_extent(points, edgeworth.gaussian)
    empirical = EmpiricalDenoiser(jnp.asarray(points))
    columns = []
    for index, sigma in enumerate(levels):
        level_key = jax.random.fold_in(key, index)
        found = _probe(empirical, edgeworth, level_key, jnp.asarray(sigma), num_probes)
        gap, left, distance = (np.asarray(part, np.float64) for part in found)
        bound = far_field_bound(extent, distance, sigma)
        columns.append(
            (
                np.median(gap),
                np.median(bound),
                np.max(gap / bound),
                np.median(left / np.maximum(gap, np.finfo(np.float64).tiny)),
                np.median(left),
            )
        )
    return FarFieldComparison(levels, num_probes, extent, *np.array(columns).T)


@functools.partial(jax.jit, static_argnums=4)
def _probe(
    empirical: EmpiricalDenoiser,
    edgeworth: EdgeworthDenoiser,
    key: Array,
    sigma: Array,
    num_probes: int,
) -> tuple[Array, Array, Array]:
    """Return |gap|, |gap - prediction| and |x - mean|, (B,) each."""
    x = empirical.sample(key, num_probes, sigma).astype(edgeworth.gaussian.mean.dtype)
    gap = far_field_gap(empirical, edgeworth.gaussian, x, sigma)
    left = gap - third_cumulant_gap(edgeworth, x, sigma)
    return _norm(gap), _norm(left), _norm(x - edgeworth.gaussian.mean)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def far_field_rows(comparison: FarFieldComparison) -> list[dict[str, Any]]:
    """Return a row of plain numbers per noise level, for a table."""
    return [
        {
            "sigma": float(sigma),
            "gap": float(comparison.gap[level]),
            "bound": float(comparison.bound[level]),
            "largest_gap_over_bound": float(comparison.largest_ratio[level]),
            "not_predicted_by_third_cumulant": float(comparison.unpredicted[level]),
            "gap_less_third_cumulant": float(comparison.left[level]),
        }
        for level, sigma in enumerate(comparison.sigmas)
    ]
