"""Figures of regressions: coupling, stops, terms of the error, spectrum, sizes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.kernels.coupling import CouplingSlopes, CouplingTable, ErrorTerms
from analysis.kernels.critical_radius import CLASSICAL, kernel_complexity
from analysis.kernels.power_law import PowerLaw
from analysis.plots import COLOURS, STYLES, open_panels
from analysis.regression_study.measurements import (
    ErrorChain,
    LearningCurve,
    NetworkPath,
    SpectrumStudy,
    StopStudy,
)

__all__ = [
    "plot_coupling",
    "plot_error_chain",
    "plot_learning_curve",
    "plot_movement",
    "plot_spectrum",
    "plot_stop_ratios",
    "plot_stops",
]


def plot_coupling(table: CouplingTable, slopes: Mapping[str, CouplingSlopes]) -> Figure:
    """Draw the distance of networks from their kernel against the width.

    Args:
        table: Result of `coupling_curve`.
        slopes: By column: rel, and for the right panel lin and initk.
    """
    figure, (left, right) = open_panels(2, 10, 4.2)
    for i, tau in enumerate(np.unique(table.tau).tolist()):
        at, colour = table.tau == tau, COLOURS[i % len(COLOURS)]
        one = slopes["rel"]
        interval = f"{one.low[i]:.2f} to {one.high[i]:.2f}"
        label = f"{tau} steps: width^{one.slope[i]:.2f} ({interval})"
        _against_width(left, table, table.rel, at, "o-", colour, label)
        for name, style, word in (("lin", "^:", "moving"), ("initk", "s--", "start")):
            label = f"{tau} steps, {word}: width^{slopes[name].slope[i]:.2f}"
            values = getattr(table, name)
            _against_width(right, table, values, at, style, colour, label)
    for axes in (left, right):
        _width_axis(axes, table)
        axes.legend(fontsize=7)
    left.set(ylabel="relative distance from the kernel", title="Network - kernel")
    right.set_title("Its parts: moving features, kernel at the start")
    return figure


def _against_width(
    axes: Axes,
    table: CouplingTable,
    values: NDArray[np.float64],
    at: NDArray[np.bool_],
    style: str,
    colour: str,
    label: str,
) -> None:
    """Draw means over starts, and all starts as points."""
    widths = np.unique(table.width)
    means = [values[at & (table.width == m)].mean() for m in widths]
    axes.plot(widths, means, style, color=colour, ms=4, label=label)
    axes.plot(table.width[at], values[at], ".", color=colour, ms=3, alpha=0.5)


def _width_axis(axes: Axes, table: CouplingTable) -> None:
    widths = np.unique(table.width).tolist()
    axes.set(xscale="log", yscale="log", xlabel="width (neurons)")
    axes.set_xticks(widths, map(str, widths))
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def plot_movement(table: CouplingTable) -> Figure:
    """Draw changed activations and the largest movement against the width."""
    figure, (left, right) = open_panels(2, 10, 4.2)
    for i, tau in enumerate(np.unique(table.tau).tolist()):
        at, colour = table.tau == tau, COLOURS[i % len(COLOURS)]
        for axes, values in ((left, table.flip), (right, table.max_dw)):
            _against_width(axes, table, values, at, "o-", colour, f"{tau} steps")
    for axes in (left, right):
        _width_axis(axes, table)
        axes.legend(fontsize=8)
    left.set(ylabel="share of activations changed", title="Activations")
    right.set(ylabel="largest |w - w(0)| of a neuron", title="Weights")
    return figure


def plot_stops(study: StopStudy, paths: Sequence[NetworkPath]) -> Figure:
    """Draw the error against training time with every rule's stop.

    Args:
        study: Stopping rules on several training sets; the first one's stops are drawn.
        paths: Networks trained on the first set.
    """
    figure, (axes,) = open_panels(1, 10, 5)
    times, errors = study.times[0], study.errors
    axes.plot(times, errors[0], "-", color="k", label="kernel, first set")
    axes.fill_between(
        times, errors.min(axis=0), errors.max(axis=0), color="k", alpha=0.12
    )
    for i, one in enumerate(paths):
        style = STYLES[i % len(STYLES)][1:]
        label = f"network of width {one.width}"
        axes.plot(one.times, one.errors, style, color="0.45", lw=1, label=label)
    for i, name in enumerate(study.rules):
        s = study.stops[0, i]
        if np.isfinite(s):
            colour = COLOURS[i % len(COLOURS)]
            style = ("-", "--")[i // len(COLOURS) % 2]
            axes.axvline(s, color=colour, ls=style, lw=1)
            height = study.stop_errors[0, i]
            axes.plot([s], [height], f"o{style}", ms=5, color=colour, label=name)
    axes.set(xscale="log", xlabel="training time s = eta steps")
    axes.set(ylabel="root mean square error (data units)", title="When to stop")
    top = errors[:, 0].max()
    axes.set_ylim(0.9 * errors.min(), 1.02 * top)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return figure


def plot_stop_ratios(study: StopStudy) -> Figure:
    """Draw the error at each rule's stop over the least: mean and worst."""
    figure, (axes,) = open_panels(1, 8, 4.2)
    places = np.arange(len(study.rules))
    axes.bar(places, study.ratios.mean(axis=0), color=COLOURS[0], label="mean")
    for row in study.ratios:
        axes.plot(places, row, ".", color="0.3", ms=4)
    worst = study.ratios.max(axis=0)
    axes.plot(places, worst, "_", ms=16, color=COLOURS[1], label="worst")
    axes.axhline(1, color="0.5", lw=0.8)
    axes.set_xticks(places, study.rules, rotation=30, ha="right")
    axes.set(ylabel="error / least error", ylim=(0.95, None))
    axes.set_title(f"Stopping rules on {len(study.times)} training sets")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    return figure


def plot_error_chain(chain: ErrorChain) -> Figure:
    """Draw the four terms as stacked bars against the norm of f_H."""
    figure, (axes,) = open_panels(1, 8, 4.2)
    places = np.arange(len(chain.norms))
    base = np.zeros(len(places))
    for i, name in enumerate(ErrorTerms._fields[:4]):
        values = np.array([getattr(terms, name) for terms in chain.terms])
        label = name.replace("_", " ")
        axes.bar(places, values, bottom=base, color=COLOURS[i], label=label)
        base += values
    totals = [terms.total for terms in chain.terms]
    axes.plot(places, totals, "k_-", ms=12, label="the error itself")
    axes.set_xticks(places, [f"{norm:.3g}" for norm in chain.norms])
    axes.set(xlabel="norm of f_H", ylabel="root mean square (data units)")
    axes.set_title(f"Four terms, width {chain.width}, {chain.steps} steps")
    axes.legend(fontsize=8)
    return figure


def plot_spectrum(study: SpectrumStudy, n: int) -> Figure:
    """Draw eigenvalues with their power law, and complexity against its bound.

    Args:
        study: The spectrum.
        n: Number of points.
    """
    figure, (left, right) = open_panels(2, 10, 4.2)
    j = np.arange(1, len(study.mu) + 1)
    left.plot(j, study.mu, ".", color=COLOURS[0], ms=4, label="mu_j")
    middle = min(len(j), 10) - 1
    guide = study.mu[middle] * (j / j[middle]) ** study.theory
    left.plot(j, guide, "--", color="0.4", label=f"j^{study.theory:.3f} (sphere)")
    left.axhline(1 / study.gcv, color=COLOURS[1], lw=1, label="1/s at the GCV stop")
    left.axhspan(study.mu[-1], 1 / study.gcv, color=COLOURS[1], alpha=0.08)
    left.set(xscale="log", yscale="log", xlabel="j", ylabel="eigenvalue of K / n")
    left.set_title(f"Spectrum: fitted exponent {study.exponent:.3f}")
    s = np.geomspace(0.1 / study.mu[0], 1e6 / study.mu[0], 200)
    complexity = kernel_complexity(study.mu, 1 / s, n=n)
    right.plot(s, complexity, color="k", label="R_K(1 / sqrt(s))")
    for i, (name, c) in enumerate((("1", 1.0), ("2e", CLASSICAL))):
        bound = study.norm / (c * study.sigma * s)
        right.plot(
            s, bound, "--", color=COLOURS[i], label=f"B / (c sigma s), c = {name}"
        )
        stop = study.stops[name]
        if np.isfinite(stop):
            height = float(kernel_complexity(study.mu, 1 / stop, n=n))
            right.plot([stop], [height], "o", color=COLOURS[i])
    right.axvline(study.gcv, color=COLOURS[2], lw=1, label="GCV stop")
    low = complexity.min() / 3
    right.set(xscale="log", yscale="log", ylim=(low, complexity.max() * 10))
    right.set(xlabel="training time s", ylabel="complexity", title="Critical radius")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def plot_learning_curve(
    curve: LearningCurve, law: PowerLaw | None, *, log: bool
) -> Figure:
    """Draw errors of kernel and closed forms against the number of samples.

    Args:
        curve: The errors.
        law: Fitted to the kernel's error with fewest draws, or None.
        log: Whether the error's axis is logarithmic.
    """
    figure, (axes,) = open_panels(1, 8, 5)
    all_draws = np.unique(curve.draws).tolist()
    for i, draws in enumerate(all_draws):
        at = curve.draws == draws
        label = "kernel, GCV" + (f", {draws} draws" if len(all_draws) > 1 else "")
        colour = COLOURS[i % len(COLOURS)]
        _mean_curve(axes, curve.size[at], curve.gcv[at], "o-", colour, label)
        _mean_curve(axes, curve.size[at], curve.best[at], ":", colour, None)
    first = curve.draws == all_draws[0]
    for i, (name, values) in enumerate(curve.others.items()):
        style = STYLES[(i + 1) % len(STYLES)]
        _mean_curve(axes, curve.size[first], values[first], style, "0.45", name)
    if law is not None:
        n = np.array([curve.size.min(), curve.size.max()])
        label = f"n^{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f})"
        axes.plot(n, law.factor * n**law.exponent, color=COLOURS[1], lw=1, label=label)
    axes.set(xscale="log", xlabel="clean samples n")
    if log:
        axes.set_yscale("log")
    axes.set(ylabel="mean squared error (squared data units)")
    axes.set_title("Generalization (dotted: best training time)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _mean_curve(
    axes: Axes,
    sizes: NDArray[np.int64],
    values: NDArray[np.float64],
    style: str,
    colour: str,
    label: str | None,
) -> None:
    different = np.unique(sizes)
    means = [values[sizes == n].mean() for n in different]
    axes.plot(different, means, style, ms=4, color=colour, label=label)
