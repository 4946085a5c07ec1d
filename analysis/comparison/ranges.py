"""Ranges of noise levels: where each candidate is the best, and where one suffices."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.score_comparison import Comparison

__all__ = ["SigmaRange", "best_ranges", "ranges_where", "unexplained_ranges"]

_CLEAR = 2.0  # standard errors between the best and the next


class SigmaRange(NamedTuple):
    """Neighbouring noise levels of one candidate.

    Attributes:
        name: The candidate.
        lowest: Smallest level, data units.
        highest: Largest level, data units.
        num_levels: How many levels it is measured at.
        num_clear: At how many of them the next best is worse by more than two standard
            errors; those of a threshold are all clear.
    """

    name: str
    lowest: float
    highest: float
    num_levels: int
    num_clear: int


def best_ranges(comparison: Comparison) -> tuple[SigmaRange, ...]:
    """Return, from low to high sigma, which candidate explains most of the score.

    Args:
        comparison: Result of `compare_denoisers`, its levels rising.

    Returns:
        Ranges that hold every level once.
    """
    unexplained = 1 - comparison.score.mean
    best = np.argmin(unexplained, axis=0)
    clear = _is_clear(unexplained, comparison.score.standard_error)
    found = []
    for index, group in groupby(range(len(best)), key=lambda level: int(best[level])):
        levels = list(group)
        found.append(
            SigmaRange(
                comparison.names[index],
                float(comparison.sigmas[levels[0]]),
                float(comparison.sigmas[levels[-1]]),
                len(levels),
                int(clear[levels].sum()),
            )
        )
    return tuple(found)


def unexplained_ranges(
    comparison: Comparison, name: str, threshold: float
) -> tuple[SigmaRange, ...]:
    """Return where a candidate leaves less than a threshold of the score unexplained.

    Args:
        comparison: Result of `compare_denoisers`, its levels rising.
        name: The candidate.
        threshold: Such as .01.

    Returns:
        Ranges of neighbouring levels, from low to high.
    """
    below = 1 - comparison.score.mean[comparison.names.index(name)] < threshold
    return tuple(ranges_where(comparison.sigmas, below, name))


def ranges_where(
    sigmas: NDArray[np.float64], mask: NDArray[np.bool_], name: str
) -> Iterator[SigmaRange]:
    """Yield the ranges of neighbouring levels at which a condition holds.

    Args:
        sigmas: (L,) rising.
        mask: (L,) whether it holds.
        name: What the ranges are called.
    """
    for holds, group in groupby(
        range(len(sigmas)), key=lambda level: bool(mask[level])
    ):
        levels = list(group)
        if holds:
            lowest, highest = float(sigmas[levels[0]]), float(sigmas[levels[-1]])
            yield SigmaRange(name, lowest, highest, len(levels), len(levels))


def _is_clear(
    unexplained: NDArray[np.float64], errors: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tell at which levels (L,) the best of (M, L) is clearly so.

    The probes are the same for all, so this allows for more chance than there is.
    """
    if len(unexplained) < 2:
        return np.ones(unexplained.shape[1], np.bool_)
    first, second = np.argsort(unexplained, axis=0)[:2]
    levels = np.arange(unexplained.shape[1])
    gap = unexplained[second, levels] - unexplained[first, levels]
    return gap > _CLEAR * np.hypot(errors[second, levels], errors[first, levels])
