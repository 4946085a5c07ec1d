"""The Frechet distance of resamples of a set, without its features' covariances.

With K = (X - m) G / sqrt(n - 1) for centred features X - m and a factor G of the
reference's covariance, the nuclear norm in the distance is tr (K^T K)^(1/2).  A
resample with counts w has K_w^T K_w = sum w_i K_i K_i^T, centred anew: small matrices
where G has few columns, or X few rows.

Elsewhere the distance is replaced by its tangent at w = 1,

    d^2(w) = d^2 + sum_i (w_i - 1) h_i,
    h_i = 2 (m - m_ref).(x_i - m) / n + |x_i - m|^2 / (n - 1) - [(K K^T)^(1/2)]_ii,

one pass over the features for any number of resamples.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.feature_statistics import (
    Factored,
    FeatureStatistics,
    check_features,
    factored,
    feature_statistics,
)
from configs.errors import InputError, require_choice

__all__ = ["frechet_floor", "frechet_resamples"]

_METHODS = ("auto", "exact", "tangent")
_EXACT_SIDE = 256
_EXACT_NUMBERS = 2**25
_ROWS = 4096


def frechet_resamples(
    features: ArrayLike,
    reference: ArrayLike | FeatureStatistics | Factored,
    counts: NDArray[np.int64],
    *,
    method: str = "auto",
) -> NDArray[np.float64]:
    """Return the squared Frechet distance of resamples from a fixed reference.

    Args:
        features: (n, d), n >= 2; memory maps too.
        reference: (m, d), or its statistics, or those factored.
        counts: (B, n), how often each member is taken; every row sums to n.
        method: "exact", "tangent", or "auto": exact where the matrices are at most 256
            wide and there are more members than that.

    Returns:
        (B,).  Those of the tangent are not biased by the resampling, as exact ones are.

    Raises:
        InputError: If shapes do not fit or a number is not finite.
    """
    require_choice("method", method, _METHODS)
    (rows,) = check_features(2, features=features)
    mean, factor, _ = factored(reference, "reference")
    if len(mean) != rows.shape[1]:
        raise InputError(
            f"samples have {rows.shape[1]} features and the reference {len(mean)}; "
            "both must come from one network and layer"
        )
    # With fewer members than features a resample, which repeats some, has a smaller
    # rank, and exact distances would vary with that rank by chance.
    small = factor.shape[1] <= min(_EXACT_SIDE, len(rows) - 1)
    if method == "exact" or (
        method == "auto" and small and rows.size <= _EXACT_NUMBERS
    ):
        return _exact(rows.astype(np.float64), mean, factor, counts)
    weights = _tangent(rows, mean, factor)
    return (counts - 1) @ weights


def frechet_floor(
    reference: ArrayLike, counts_a: NDArray[np.int64], counts_b: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return distances of pairs of resamples of one set.

    With n and m drawn in a pair these are what two samples of one distribution, of n
    and m members, are apart: the floor below which nothing can be told.

    Args:
        reference: (N, d), d small.
        counts_a: (B, N), every row sums to n.
        counts_b: (B, N), every row sums to m.

    Returns:
        (B,) squared Frechet distances.

    Raises:
        InputError: If shapes do not fit or a number is not finite.
    """
    (rows,) = check_features(2, reference=reference)
    values = rows.astype(np.float64)
    distances = []
    for first, second in zip(counts_a, counts_b, strict=True):
        mean_a, covariance_a = _weighted(values, first)
        mean_b, covariance_b = _weighted(values, second)
        root = _root(covariance_a)
        shared = _sum_of_roots(root @ covariance_b @ root)
        traces = np.trace(covariance_a) + np.trace(covariance_b)
        distances.append(np.sum((mean_a - mean_b) ** 2) + traces - 2 * shared)
    return np.maximum(distances, 0.0)


def _exact(
    rows: NDArray[np.float64],
    mean: NDArray[np.float64],
    factor: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> NDArray[np.float64]:
    count = len(rows)
    centre = rows.mean(axis=0)
    centred = rows - centre
    shifts = counts @ centred / count
    spread = counts @ np.square(centred).sum(axis=1)
    traces = (spread - count * np.square(shifts).sum(axis=1)) / (count - 1)
    means = np.square(centre + shifts - mean).sum(axis=1)
    products, moved = centred @ factor, shifts @ factor
    shared = np.empty(len(counts))
    for i, (row, shift) in enumerate(zip(counts, moved, strict=True)):
        scaled = np.sqrt(row)[:, None] * (products - shift)
        small = scaled.T @ scaled if len(factor.T) <= count else scaled @ scaled.T
        shared[i] = _sum_of_roots(small / (count - 1))
    return np.maximum(means + traces + np.sum(factor**2) - 2 * shared, 0.0)


def _tangent(
    rows: NDArray[np.floating], mean: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return h, (n,), up to a constant."""
    count = len(rows)
    if count < factor.shape[1]:
        values = rows.astype(np.float64)
        centre = values.mean(axis=0)
        products = (values - centre) @ factor
        shared = np.diag(_root(products @ products.T / (count - 1)))
        inverse_root = None
    else:
        statistics = feature_statistics(rows)
        centre, shared = statistics.mean, np.empty(0)
        inverse_root = _root(factor.T @ statistics.covariance @ factor, inverse=True)
    parts = []
    for start in range(0, count, _ROWS):
        some = rows[start : start + _ROWS].astype(np.float64) - centre
        if inverse_root is None:
            root = shared[start : start + _ROWS]
        else:
            products = some @ factor
            root = np.sum((products @ inverse_root) * products, axis=1) / (count - 1)
        along = 2 * (some @ (centre - mean)) / count
        parts.append(along + np.square(some).sum(axis=1) / (count - 1) - root)
    return np.concatenate(parts)


def _weighted(
    values: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance, n - 1, of a resample."""
    total = counts.sum()
    mean = counts @ values / total
    centred = values - mean
    return mean, (centred * counts[:, None]).T @ centred / (total - 1)


def _root(matrix: NDArray[np.float64], *, inverse: bool = False) -> NDArray[np.float64]:
    """Return the symmetric root, or its pseudo-inverse."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    roots = np.sqrt(np.where(kept, values, 0.0))
    if inverse:
        roots = np.divide(1.0, roots, out=np.zeros_like(roots), where=kept)
    return vectors * roots @ vectors.T


def _sum_of_roots(matrix: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(matrix), 0.0)).sum())
