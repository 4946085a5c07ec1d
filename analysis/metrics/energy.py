"""The energy distance between two sets of points.

    2 E|X - Y| - E|X - X'| - E|Y - Y'|   >= 0,   0 for equal laws alone,

without bias: X, X' are different points of a set, so that for equal laws the estimate
is around 0 and may be below (Szekely & Rizzo 2013).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist

from analysis.kernels.checks import check_finite
from configs.errors import InputError

__all__ = ["energy_distance"]

_ROWS = 1024


def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Estimate the energy distance of two laws from points of each.

    Args:
        x: (n, D) points, n >= 2.
        y: (m, D) points, m >= 2.

    Returns:
        The estimate, in the unit of the points.

    Raises:
        InputError: If a shape does not fit or a value is not finite.

    >>> energy_distance([[0.0], [2.0]], [[1.0], [3.0]])
    -1.0
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if (
        a.ndim != 2
        or b.ndim != 2
        or a.shape[1] != b.shape[1]
        or min(len(a), len(b)) < 2
    ):
        raise InputError(
            f"the sets have shapes {a.shape} and {b.shape}; give (n, D) and (m, D), "
            "two points or more in each"
        )
    check_finite("x", a)
    check_finite("y", b)
    return 2 * _mean_between(a, b) - float(pdist(a).mean()) - float(pdist(b).mean())


def _mean_between(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # In pieces: all distances at once may not fit into memory.
    sums = [cdist(a[i : i + _ROWS], b).sum() for i in range(0, len(a), _ROWS)]
    return float(sum(sums)) / (len(a) * len(b))
