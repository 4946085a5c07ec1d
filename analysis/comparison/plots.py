"""Figures of a network against closed forms: what is left unexplained, and where."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.plots import COLOURS, SIGMA_LABEL, STYLES, open_panels
from analysis.score_comparison import Comparison, Summary

__all__ = [
    "nearest_levels",
    "plot_direction_errors",
    "plot_pixel_errors",
    "plot_ranks",
    "plot_unexplained",
]

_THRESHOLDS = (0.01, 0.05)
_SHARES = (1e-6, 20.0)  # where anything can be seen
_FRACTIONS = (1e-8, 200.0)


def plot_unexplained(
    comparisons: Mapping[str, Comparison], quantity: str, label: str
) -> Figure:
    """Draw the unexplained fraction against sigma, on logarithmic axes.

    Args:
        comparisons: By kind of probe, all of the same candidates.
        quantity: A field of `Comparison` that holds explained variances.
        label: What it is a fraction of.

    Returns:
        A panel per kind of probe; thin lines at 1 and 5 %.
    """
    count = len(comparisons)
    figure, panels = open_panels(count, 4.2 * count + 1.8, 4.4, share_y=True)
    for axes, (kind, comparison) in zip(panels, comparisons.items(), strict=True):
        summary: Summary = getattr(comparison, quantity)
        for index, name in enumerate(comparison.names):
            _draw(axes, comparison.sigmas, summary, index, name)
        for threshold in _THRESHOLDS:
            axes.axhline(threshold, color="0.6", lw=0.8)
        axes.set(xscale="log", yscale="log", xlabel=SIGMA_LABEL)
        axes.set_title(f"{kind} probes")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, _FRACTIONS[0]), min(high, _FRACTIONS[1]))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"unexplained fraction of the {label}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def _draw(
    axes: Axes, sigmas: NDArray[np.float64], summary: Summary, index: int, name: str
) -> None:
    colour = COLOURS[index % len(COLOURS)]
    style = STYLES[index // len(COLOURS) % len(STYLES)]
    left = 1 - summary.mean[index]
    left = np.where(np.isfinite(left) & (left > 0), left, np.nan)
    error = 2 * np.nan_to_num(summary.standard_error[index])
    axes.plot(sigmas, left, style, ms=3, lw=1.2, color=colour, label=name)
    low = np.maximum(left - error, left / 10)
    axes.fill_between(sigmas, low, left + error, color=colour, alpha=0.15)


def plot_ranks(
    comparison: Comparison, ranks: Mapping[str, int], sigmas: Sequence[float]
) -> Figure:
    """Draw the unexplained fraction of the score against the Gaussian's rank.

    Args:
        comparison: Result of `compare_denoisers`.
        ranks: Rank by name of candidate.
        sigmas: Noise levels to draw, the nearest measured ones.

    Returns:
        One panel, a line for each level.
    """
    figure, (axes,) = open_panels(1, 6.4, 4.2)
    names = sorted(ranks, key=lambda name: ranks[name])
    rows = [comparison.names.index(name) for name in names]
    for position, level in enumerate(nearest_levels(comparison, sigmas)):
        left = 1 - comparison.score.mean[rows, level]
        axes.errorbar(
            [ranks[name] for name in names],
            left,
            2 * np.nan_to_num(comparison.score.standard_error[rows, level]),
            fmt="o-",
            ms=3,
            color=COLOURS[position % len(COLOURS)],
            label=f"{comparison.sigmas[level]:g}",
        )
    axes.set(xscale="log", yscale="log", xlabel="rank of the Gaussian")
    axes.set_ylabel("unexplained fraction of the score")
    axes.grid(alpha=0.3)
    axes.legend(title="sigma", fontsize=8)
    return figure


def plot_direction_errors(
    comparison: Comparison,
    directions: NDArray[np.int64],
    names: Sequence[str],
    sigmas: Sequence[float],
) -> Figure:
    """Draw errors along principal directions, relative to the network's own spread.

    Args:
        comparison: Result of `compare_denoisers` with directions.
        directions: (k,) which ones, 0 the largest.
        names: Candidates to draw, a panel each.
        sigmas: Noise levels to draw, the nearest measured ones.

    Returns:
        E (u.(D - D_c))^2 / E (u.(D - mean))^2 over the number of the direction.
    """
    count = len(names)
    figure, panels = open_panels(count, 3.9 * count + 0.6, 4.0, share_y=True)
    levels = nearest_levels(comparison, sigmas)
    for axes, name in zip(panels, names, strict=True):
        row = comparison.names.index(name)
        for position, level in enumerate(levels):
            error = comparison.directions.error.mean[row, level]
            power = comparison.directions.power[level]
            share = error / np.where(power > 0, power, np.nan)
            axes.plot(
                directions + 1,
                np.where(share > 0, share, np.nan),
                "o-",
                ms=3,
                lw=1,
                color=COLOURS[position % len(COLOURS)],
                label=f"{comparison.sigmas[level]:g}",
            )
        axes.axhline(1, color="0.6", lw=0.8)
        axes.set(xscale="log", yscale="log", title=name, ylim=_SHARES)
        axes.set_xlabel("principal direction")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("squared error / network's own spread")
    panels[-1].legend(title="sigma", fontsize=8)
    return figure


def plot_pixel_errors(
    comparison: Comparison, names: Sequence[str], sigmas: Sequence[float]
) -> Figure:
    """Draw where on the image the denoised samples differ.

    Args:
        comparison: Result of `compare_denoisers` on images (H, W, C).
        names: Candidates to draw, a row each.
        sigmas: Noise levels to draw, the nearest measured ones, a column each.

    Returns:
        Mean |D - D_c| over probes and channels, one scale for each column.
    """
    levels = nearest_levels(comparison, sigmas)
    figure = Figure(
        figsize=(1.9 * len(levels) + 1, 1.9 * len(names) + 0.8), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(names), len(levels), squeeze=False)
    rows = [comparison.names.index(name) for name in names]
    maps = comparison.pixel_error.mean(axis=-1)[np.ix_(rows, levels)]
    for column, level in enumerate(levels):
        top = float(maps[:, column].max()) or 1.0
        shown = None
        for row, name in enumerate(names):
            axes = panels[row][column]
            shown = axes.imshow(maps[row, column], vmin=0, vmax=top, cmap="magma")
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
        panels[0][column].set_title(f"sigma {comparison.sigmas[level]:g}", fontsize=9)
        if shown is not None:
            bar = figure.colorbar(
                shown, ax=list(panels[:, column]), location="bottom", shrink=0.9
            )
            bar.ax.tick_params(labelsize=7)
    figure.suptitle("mean |D - D_c| (data units)", fontsize=10)
    return figure


def nearest_levels(comparison: Comparison, sigmas: Sequence[float]) -> list[int]:
    """Return the indices of the measured levels nearest to some, each once."""
    logs = np.log(comparison.sigmas)
    return sorted({int(np.argmin(np.abs(logs - np.log(s)))) for s in sigmas})
