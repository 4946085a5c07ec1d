"""Bootstrap: how much a number would vary with other samples of the same kind.

n members are drawn from the n at hand, with replacement, again and again: member i is
taken w_i times, w ~ Multinomial(n, 1/n), and the metric of each resample is computed
(Efron 1979).  A metric that is a mean, or a function of moments or of sorted values,
takes the counts w as weights, which is cheap; each metric's module has such a form.

A distance is biased upward by what is random in a finite set, and a resample has that
twice: its values lie above the metric's.  The interval is therefore that of the
deviations from their own mean, put around the value: it says how the number would vary
at this n, not what it would become with more samples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError, require

__all__ = [
    "Interval",
    "bootstrap_interval",
    "interval_around",
    "mean_interval",
    "random_subset",
    "resample_counts",
]


class Interval(NamedTuple):
    """A two-sided interval around a number.

    Attributes:
        low: Lower end.
        high: Upper end.
        confidence: Share of resamples inside, in (0, 1).
        num_resamples: From how many it was estimated.
    """

    low: float
    high: float
    confidence: float
    num_resamples: int


def resample_counts(
    count: int, *, num_resamples: int = 200, size: int | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """Return how often each member is drawn in each resample.

    Args:
        count: n, members of the set.
        num_resamples: B, at least 1.
        size: Members of a resample; None for n.
        seed: Of the draws, >= 0.

    Returns:
        (B, n); every row sums to `size`.

    Raises:
        InputError: If a number is out of range.
    """
    require(count >= 1, "count", count, ">= 1")
    require(num_resamples >= 1, "num_resamples", num_resamples, ">= 1")
    require(size is None or size >= 1, "size", size, ">= 1")
    require(seed >= 0, "seed", seed, ">= 0")
    rng = np.random.default_rng(seed)
    drawn = count if size is None else size
    return np.stack(
        [
            np.bincount(rng.integers(count, size=drawn), minlength=count)
            for _ in range(num_resamples)
        ]
    )


def random_subset(
    members: NDArray[Any], count: int, rng: np.random.Generator
) -> NDArray[Any]:
    """Return at most `count` members, drawn without replacement, in their order.

    Args:
        members: (n, ...); memory maps too.
        count: How many; all of them where there are no more.
        rng: Drawn from only where some are left out.
    """
    if len(members) <= count:
        return members
    return members[np.sort(rng.choice(len(members), count, replace=False))]


def interval_around(
    value: float, resampled: ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Return the interval of the resamples' deviations from their mean, around a value.

    Args:
        value: The metric of the set itself.
        resampled: (B,) the metric of resamples, B >= 2.
        confidence: In (0, 1).

    Returns:
        The interval, around `value`.

    Raises:
        InputError: If there are fewer than two resamples or the confidence is out of
            range.

    >>> interval_around(5.0, [1.0, 2.0, 3.0], confidence=0.5)
    Interval(low=4.5, high=5.5, confidence=0.5, num_resamples=3)
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; it must be in (0, 1)")
    values = np.asarray(resampled, np.float64)
    require(values.size >= 2, "the number of resamples", values.size, ">= 2")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values - values.mean(), (tail, 100 - tail))
    # The value itself is inside, even where almost all resamples are equal.
    return Interval(
        float(value + min(low, 0.0)),
        float(value + max(high, 0.0)),
        confidence,
        values.size,
    )


def bootstrap_interval(
    metric: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the interval of any metric, computed anew for every resample.

    Args:
        metric: Takes indices (n,) into the set, some of them repeated.
        count: n, members of the set.
        num_resamples: B, at least 2.
        confidence: In (0, 1).
        seed: Of the draws.

    Returns:
        The interval around the metric of the set itself.

    Raises:
        InputError: If a number is out of range.
    """
    counts = resample_counts(count, num_resamples=num_resamples, seed=seed)
    members = np.arange(count)
    resampled = [metric(np.repeat(members, row)) for row in counts]
    return interval_around(metric(members), resampled, confidence=confidence)


def mean_interval(
    values: ArrayLike,
    *,
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the interval of a mean: of indicators, of blocks, of any numbers.

    Args:
        values: (n,), one for each member.
        num_resamples: B, at least 2.
        confidence: In (0, 1).
        seed: Of the draws.

    Returns:
        The interval around the mean.

    Raises:
        InputError: If there are no values or a number is out of range.
    """
    array = np.asarray(values, np.float64)
    counts = resample_counts(len(array), num_resamples=num_resamples, seed=seed)
    return interval_around(
        float(array.mean()), counts @ array / len(array), confidence=confidence
    )
