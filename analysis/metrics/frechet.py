"""Frechet distance: how far two Gaussians are apart, by their moments.

    d^2 = |m_a - m_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)),

the squared 2-Wasserstein distance of N(m_a, A) and N(m_b, B) (Dowson & Landau 1982; as
a distance between images, Heusel et al., arXiv 1706.08500).  With A = F F^T and
B = G G^T the last trace is the sum of the singular values of F^T G.  The factors come
from symmetric eigendecompositions: nothing is ever complex, a singular covariance needs
no ridge, and small variances are not lost in the root of a product.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError

__all__ = [
    "factor_covariance",
    "frechet_distance",
    "frechet_in_basis",
    "frechet_of_factors",
]

_ASYMMETRY = 1e-5  # of the largest entry: more than float32 accumulation leaves
_NEGATIVE = 1e-5  # of the largest eigenvalue, likewise


def frechet_distance(
    mean_a: ArrayLike,
    covariance_a: ArrayLike,
    mean_b: ArrayLike,
    covariance_b: ArrayLike,
) -> float:
    """Return the squared Frechet distance of two Gaussians, in float64.

    Args:
        mean_a: (D,).
        covariance_a: (D, D), symmetric, no eigenvalue below 0 but for rounding.
        mean_b: (D,).
        covariance_b: (D, D).

    Returns:
        At least 0, in squared units of the features; 0 for equal moments.

    Raises:
        InputError: If the shapes do not fit, a number is not finite, or a covariance is
            not symmetric or has a negative eigenvalue.

    >>> frechet_distance([0.0], [[1.0]], [3.0], [[4.0]])
    10.0
    """
    first, second = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise InputError(
            f"the means have shapes {first.shape} and {second.shape}; both must be "
            "(D,) with one D"
        )
    for name, mean in (("a", first), ("b", second)):
        if not np.isfinite(mean).all():
            raise InputError(f"mean_{name} holds a number that is not finite")
    return frechet_of_factors(
        first - second,
        factor_covariance(covariance_a, first.size, "covariance_a"),
        factor_covariance(covariance_b, first.size, "covariance_b"),
    )


def frechet_of_factors(
    shift: NDArray[np.float64],
    factor_a: NDArray[np.float64],
    factor_b: NDArray[np.float64],
) -> float:
    """Return |shift|^2 + |F|^2 + |G|^2 - 2 |F^T G|_*, with the nuclear norm |.|_*.

    Centred rows over sqrt(n - 1), transposed, are such a factor: with n below D the
    product is small, and no eigendecomposition of a covariance is needed.

    Args:
        shift: (D,) difference of the means.
        factor_a: F, (D, r) with F F^T the one covariance.
        factor_b: G, (D, s), likewise.

    Returns:
        The squared Frechet distance, at least 0.
    """
    traces = np.sum(factor_a**2) + np.sum(factor_b**2)
    shared = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()
    return max(0.0, float(np.sum(shift**2) + traces - 2 * shared))


def frechet_in_basis(
    samples: ArrayLike, reference: ArrayLike, basis: ArrayLike
) -> float:
    """Return the squared Frechet distance of two sets in given directions.

    The moments are those of the coefficients basis^T x.  Two samples of one
    distribution are not at distance 0: what two independent draws are apart is the
    floor below which nothing can be told.

    Args:
        samples: (n, *event), n >= 2.
        reference: (m, *event), m >= 2.
        basis: (D, R), D = prod(event); orthonormal columns, such as the leading
            principal directions of the reference.

    Returns:
        At least 0, squared units of the samples.

    Raises:
        InputError: If the shapes do not fit, a set has fewer than two members, or a
            number is not finite.
    """
    directions = np.asarray(basis, np.float64)
    if directions.ndim != 2:
        raise InputError(f"basis has shape {directions.shape}; give (D, R)")
    moments = []
    for name, values in (("samples", samples), ("reference", reference)):
        moments += _moments(values, directions, name)
    return frechet_distance(*moments)


def _moments(
    values: ArrayLike, directions: NDArray[np.float64], name: str
) -> list[NDArray[np.float64]]:
    """Return mean and unbiased covariance of the coefficients."""
    array = np.asarray(values)
    rows = array.reshape(len(array), -1) if array.ndim > 1 else array
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != len(directions):
        raise InputError(
            f"{name} have shape {array.shape}; give (n, *event), n >= 2, with "
            f"{len(directions)} numbers each, as the basis has"
        )
    coefficients = rows @ directions
    mean = coefficients.mean(axis=0)
    centred = coefficients - mean
    return [mean, centred.T @ centred / (len(rows) - 1)]


def factor_covariance(
    covariance: ArrayLike, dimension: int, name: str
) -> NDArray[np.float64]:
    """Return F, (D, rank), with F F^T = covariance.

    Args:
        covariance: (D, D).
        dimension: D, that of the mean.
        name: What an error calls it.

    Returns:
        Eigenvectors times deviations, without those of variance 0.

    Raises:
        InputError: If the shape is another one, a number is not finite, or it is not
            symmetric or has a negative eigenvalue.
    """
    matrix = np.asarray(covariance, np.float64)
    if matrix.shape != (dimension, dimension):
        raise InputError(
            f"{name} has shape {matrix.shape}; means of {dimension} numbers need "
            f"({dimension}, {dimension})"
        )
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} holds a number that is not finite")
    if np.abs(matrix - matrix.T).max() > _ASYMMETRY * np.abs(matrix).max():
        raise InputError(f"{name} is not symmetric; give E (x - m)(x - m)^T")
    variances, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if variances[0] < -_NEGATIVE * max(variances[-1], 0.0):
        raise InputError(
            f"{name} has the eigenvalue {variances[0]:.3g}; a covariance has none "
            "below 0"
        )
    # A variance of 0 comes out as rounding, of which the root would be 1e-8.
    rounding = dimension * np.finfo(np.float64).eps * variances[-1]
    kept = variances > max(rounding, 0.0)
    return vectors[:, kept] * np.sqrt(variances[kept])
