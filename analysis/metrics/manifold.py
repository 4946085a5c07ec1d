"""Fidelity and diversity apart: which samples lie among the data, and the reverse.

A set's manifold is the union of the balls around its members that reach to their k-th
nearest other member, with radii rho.  With 1[.] the indicator,

    precision = mean over samples s of      1[some |s - r_j| <= rho_j]
    recall    = mean over references r of   1[some |r - s_i| <= rho_i]

(Kynkaanniemi et al., arXiv 1904.06991).  One outlying reference has a large ball that
any sample falls into; counting balls, and asking only whether those of the data are
met, is less at its mercy:

    density  = mean over samples s of      (number of |s - r_j| < rho_j) / k
    coverage = mean over references r of   1[some |r_j - s| < rho_j]

(Naeem et al., arXiv 2002.09797).  Density may exceed 1; a set has density and coverage
1 against itself.  Distances are exact where a rounding could change an indicator.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.feature_statistics import check_features
from analysis.neighbours import nearest_neighbours
from configs.errors import require

__all__ = [
    "DensityCoverage",
    "Membership",
    "PrecisionRecall",
    "density_coverage",
    "density_coverage_members",
    "precision_recall",
    "precision_recall_members",
]

_ROWS = 1024
_ROUNDING = 1e-11  # of |q|^2 + |c|^2: more than a float64 product of features loses
_PAIRS_AT_ONCE = 4096


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of samples among the references, and the reverse."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Balls of references around a sample, over k; share of balls with a sample."""

    density: float
    coverage: float


class Membership(NamedTuple):
    """What each member adds to the two means.

    Attributes:
        samples: (n,) float64: precision is, or density, the mean of these.
        reference: (m,) float64: recall, or coverage, likewise.
    """

    samples: NDArray[np.float64]
    reference: NDArray[np.float64]


def precision_recall(
    samples: ArrayLike, reference: ArrayLike, *, k: int = 3
) -> PrecisionRecall:
    """Return improved precision and recall of features.

    Both fall as the other set grows sparse: compare at one n only.

    Args:
        samples: (n, d), n > k; memory maps too.
        reference: (m, d), m > k.
        k: Which neighbour sets the radius, at least 1.

    Returns:
        Both shares.

    Raises:
        InputError: If shapes do not fit, a set has at most k members, or a number is
            not finite.
    """
    return PrecisionRecall(*_means(precision_recall_members(samples, reference, k=k)))


def density_coverage(
    samples: ArrayLike, reference: ArrayLike, *, k: int = 5
) -> DensityCoverage:
    """Return density and coverage of features.

    Args:
        samples: (n, d), n > k; memory maps too.
        reference: (m, d), m > k.
        k: Which neighbour sets the radius, at least 1.

    Returns:
        Both numbers.

    Raises:
        InputError: If shapes do not fit, a set has at most k members, or a number is
            not finite.
    """
    return DensityCoverage(*_means(density_coverage_members(samples, reference, k=k)))


def precision_recall_members(
    samples: ArrayLike, reference: ArrayLike, *, k: int = 3
) -> Membership:
    """Return which members lie in the other set's manifold, 1 or 0.

    Args:
        samples: See `precision_recall`.
        reference: See `precision_recall`.
        k: Likewise.

    Returns:
        The indicators, whose means are precision and recall.

    Raises:
        InputError: See `precision_recall`.
    """
    first, second = _check(samples, reference, k)
    inside, _ = _count(first, second, _radii(second, k), closed=True)
    covered, _ = _count(second, first, _radii(first, k), closed=True)
    return Membership(*((c > 0).astype(np.float64) for c in (inside, covered)))


def density_coverage_members(
    samples: ArrayLike, reference: ArrayLike, *, k: int = 5
) -> Membership:
    """Return balls around each sample over k, and whether each ball holds a sample.

    Args:
        samples: See `density_coverage`.
        reference: See `density_coverage`.
        k: Likewise.

    Returns:
        The numbers whose means are density and coverage.

    Raises:
        InputError: See `density_coverage`.
    """
    first, second = _check(samples, reference, k)
    balls, members = _count(first, second, _radii(second, k), closed=False)
    return Membership(balls / k, (members > 0).astype(np.float64))


def _check(samples: ArrayLike, reference: ArrayLike, k: int) -> list[NDArray[Any]]:
    require(k >= 1, "k", k, ">= 1")
    return check_features(k + 1, samples=samples, reference=reference)


def _means(members: Membership) -> tuple[float, float]:
    return float(members.samples.mean()), float(members.reference.mean())


def _radii(features: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Return the distance of each member to its k-th nearest other one, (n,)."""
    # The nearest is the member itself, at distance 0.
    return nearest_neighbours(features, features, count=k + 1).distances[:, k]


def _count(
    queries: NDArray[Any],
    centres: NDArray[Any],
    radii: NDArray[np.float64],
    *,
    closed: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return balls that each query lies in, (n,), and queries in each ball, (m,)."""
    origin = centres[:_ROWS].mean(axis=0, dtype=np.float64)
    around = np.zeros(len(queries), np.int64)
    within = np.zeros(len(centres), np.int64)
    for start in range(0, len(queries), _ROWS):
        some = slice(start, start + _ROWS)
        rows = queries[some].astype(np.float64)
        for other in range(0, len(centres), _ROWS):
            balls = slice(other, other + _ROWS)
            points = centres[balls].astype(np.float64)
            inside = _inside(rows, points, radii[balls], origin, closed)
            around[some] += inside.sum(axis=1)
            within[balls] += inside.sum(axis=0)
    return around, within


def _inside(
    rows: NDArray[np.float64],
    points: NDArray[np.float64],
    radii: NDArray[np.float64],
    origin: NDArray[np.float64],
    closed: bool,
) -> NDArray[np.bool_]:
    """Return whether each row lies in each ball, (b, c)."""
    a, b = rows - origin, points - origin
    sizes = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    excess = sizes - 2 * (a @ b.T) - np.square(radii)
    inside = excess < 0
    # Differences decide where a product could be wrong: copies, and neighbours at the
    # radius itself.
    doubtful = np.argwhere(np.abs(excess) <= _ROUNDING * (sizes + np.square(radii)))
    for start in range(0, len(doubtful), _PAIRS_AT_ONCE):
        i, j = doubtful[start : start + _PAIRS_AT_ONCE].T
        distance = np.sqrt(np.square(rows[i] - points[j]).sum(axis=1))
        inside[i, j] = distance <= radii[j] if closed else distance < radii[j]
    return inside
