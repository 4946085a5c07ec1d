"""Figures of what a run learned and when."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.gaussian_first import Departure, TrainingComparison, departures
from analysis.plots import COLOURS, open_panels

__all__ = ["plot_gaussian_first"]


def plot_gaussian_first(
    comparison: TrainingComparison, *, sigmas: Sequence[float] | None = None
) -> Figure:
    """Draw the unexplained part of the score against the images seen.

    Args:
        comparison: Result of `compare_over_training`.
        sigmas: Noise levels to draw, the nearest measured ones; None for up to six
            spread over those measured.

    Returns:
        One panel for each candidate, one line for each noise level, its minimum
        marked, with a band of two standard errors.
    """
    levels = _levels(comparison, sigmas)
    count = len(comparison.names)
    figure, panels = open_panels(count, 4.6 * count, 4.2, share_y=True)
    for index, (name, axes) in enumerate(zip(comparison.names, panels, strict=True)):
        nearest = departures(comparison, name)
        for position, level in enumerate(levels):
            colour = COLOURS[position % len(COLOURS)]
            _draw(axes, comparison, index, level, nearest[level], colour)
        axes.set(yscale="log", title=name)
        axes.set_xscale("symlog", linthresh=_first_step(comparison))
        axes.set_xlabel("training images seen")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("unexplained fraction of the score")
    panels[-1].legend(title="sigma", fontsize=8)
    return figure


def _draw(
    axes: Axes,
    comparison: TrainingComparison,
    index: int,
    level: int,
    nearest: Departure,
    colour: str,
) -> None:
    seen = comparison.num_images
    unexplained = 1 - comparison.score.mean[:, index, level]
    error = 2 * comparison.score.standard_error[:, index, level]
    label = f"{comparison.sigmas[level]:g}"
    axes.plot(seen, unexplained, "o-", ms=3, color=colour, label=label)
    low = np.maximum(unexplained - error, unexplained / 10)
    axes.fill_between(seen, low, unexplained + error, color=colour, alpha=0.2)
    lowest = list(comparison.steps).index(nearest.step)
    axes.plot(seen[lowest], unexplained[lowest], "v", ms=8, color=colour)


def _levels(
    comparison: TrainingComparison, sigmas: Sequence[float] | None
) -> list[int]:
    measured = comparison.sigmas
    if sigmas is None:
        count = min(len(measured), len(COLOURS))
        chosen = np.linspace(0, len(measured) - 1, count).round().astype(int)
    else:
        chosen = [int(np.argmin(np.abs(np.log(measured / s)))) for s in sigmas]
    return sorted({int(level) for level in chosen})


def _first_step(comparison: TrainingComparison) -> float:
    """Return the fewest images above 0, where the axis becomes logarithmic."""
    later = comparison.num_images[comparison.num_images > 0]
    return float(later[0]) if later.size else 1.0
