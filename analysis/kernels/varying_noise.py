"""Noise that differs between points: estimated over time, and weighted for.

A label X_0 at diffusion time t has the noise Var[X_0 | X_t], which never decreases in
t.  Residuals of a fit at the GCV stop, averaged in bins of t and made monotone, give
sigma^2(t).  With weights w = 1 / sigma^2 the regression of

    W^(1/2) K W^(1/2),   W^(1/2) y,     and rows k(x, Z) W^(1/2) at other points

is that with weighted residuals, by the same code (features: W^(1/2) phi, and phi(x) as
it is).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.checks import as_labels
from configs.errors import InputError, require

__all__ = [
    "TimeNoise",
    "WeightedProblem",
    "estimate_time_noise",
    "isotonic",
    "weight_problem",
]


class TimeNoise(NamedTuple):
    """The variance of the noise as a function of time.

    Attributes:
        edges: (bins + 1,) edges of the bins.
        variance: (bins,) variance per output in each bin, non-decreasing.
        per_point: (n,) variance at each point, by its bin.
    """

    edges: NDArray[np.float64]
    variance: NDArray[np.float64]
    per_point: NDArray[np.float64]


class WeightedProblem(NamedTuple):
    """A regression with weights, in the form of one without.

    Attributes:
        K: (n, n) W^(1/2) K W^(1/2).
        y: (n, d) W^(1/2) y.
        roots: (n,) W^(1/2), by which rows k(x, Z) are multiplied.
    """

    K: Array
    y: Array
    roots: Array


def estimate_time_noise(
    residuals: ArrayLike, t: ArrayLike, df: float, *, bins: int = 16
) -> TimeNoise:
    """Return the variance of the noise in bins of equally many points, increasing in t.

    Args:
        residuals: (n, d) y - f at the training points, of a fit at its GCV stop.
        t: (n,) times of the points.
        df: Degrees of freedom of the fit: residuals are too small by 1 - df / n.
        bins: Number of bins, at most n.

    Returns:
        Edges, variances and the variance at each point.

    Raises:
        InputError: If a shape or range does not fit.
    """
    times = np.asarray(t, np.float64)
    n = len(times)
    errors = np.asarray(as_labels(residuals, n, "residuals"), np.float64)
    require(0 <= df < n, "df", df, f"in [0, {n}), below the number of points")
    require(1 <= bins <= n, "bins", bins, f"in [1, {n}], the number of points")
    edges = np.quantile(times, np.linspace(0, 1, bins + 1))
    place = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, np.mean(errors**2, axis=1), minlength=bins)
    # Equal times may leave a bin without points: it has no say, by its weight.
    means = sums / np.maximum(counts, 1) / (1 - df / n)
    variance = isotonic(means, counts)
    return TimeNoise(edges, variance, variance[place])


def isotonic(values: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the nearest non-decreasing sequence, in weighted squares.

    Neighbours out of order are pooled into their mean until there are none.

    Args:
        values: (k,) values.
        weights: (k,) weights, >= 0, not all 0.

    Returns:
        (k,) float64.

    Raises:
        InputError: If the shapes differ or a weight is negative.

    >>> isotonic([1.0, 3.0, 2.0, 4.0], [1, 1, 1, 1]).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    x, w = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    if x.shape != w.shape or x.ndim != 1 or (w < 0).any() or not (w > 0).any():
        raise InputError(
            f"values have shape {x.shape} and weights {w.shape}; give (k,) both, "
            "weights >= 0 and one above it"
        )
    pools: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(x.tolist(), w.tolist(), strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and (pools[-2][0] >= pools[-1][0] or not pools[-2][1]):
            mean, total, length = pools.pop()
            below = pools[-1]
            both = below[1] + total
            if both:
                below[0] = (below[0] * below[1] + mean * total) / both
            below[1], below[2] = both, below[2] + length
    if len(pools) > 1 and not pools[-1][1]:
        last = pools.pop()
        pools[-1][2] += last[2]
    return np.concatenate([np.full(int(length), mean) for mean, _, length in pools])


def weight_problem(K: ArrayLike, y: ArrayLike, variance: ArrayLike) -> WeightedProblem:
    """Return the regression in which each point counts by 1 / its noise variance.

    Weights have mean 1, so that training times keep their meaning.

    Args:
        K: (n, n) Gram matrix.
        y: (n, d) labels less the first guess, or (n,).
        variance: (n,) variance of the noise at each point, > 0.

    Returns:
        What `decompose` and `fit` take, and the factor of rows k(x, Z).

    Raises:
        InputError: If a shape does not fit or a variance is not above 0.
    """
    noise = jnp.asarray(variance)
    n = len(noise)
    labels = jnp.asarray(as_labels(y, n))
    require(np.shape(K) == (n, n), "the shape of K", np.shape(K), f"({n}, {n})")
    lowest = float(noise.min())
    require(lowest > 0, "the lowest variance", lowest, "above 0; pool it with others")
    weights = 1 / noise
    roots = jnp.sqrt(weights / weights.mean())
    matrix = roots[:, None] * jnp.asarray(K) * roots
    return WeightedProblem(matrix, roots[:, None] * labels, roots)
