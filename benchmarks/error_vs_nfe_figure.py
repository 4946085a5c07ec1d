"""The figure of the benchmark: error and distance against network calls."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colour by start, line by solver: published, or DPM-Solver-v3 with Gaussian statistics.
_STARTS = {"none": "C0", "teleport": "C1", "prefix": "C2"}
_STARTS_TOLD = {"none": "no skip", "teleport": "teleport", "prefix": "mixture prefix"}


def draw_figure(figures: dict[str, Any]) -> Figure:
    """Draw the errors (left) and the distances between distributions (right)."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    errors, distances = figure.subplots(1, 2)
    _draw_errors(errors, figures["summary"])
    _draw_distances(distances, figures["distributions"])
    for axes in (errors, distances):
        axes.set_xlabel("network calls")
        axes.set_xticks(figures["summary"]["calls"])
        axes.grid(alpha=0.3)
    figure.legend(
        *errors.get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return figure


def _draw_errors(axes: Axes, summary: dict[str, Any]) -> None:
    calls = summary["calls"]
    for name, rms in summary["plain_rms"].items():
        if name.startswith(("Heun", "DPM++ 2M")):
            style = ":" if name.startswith("Heun") else "-."
            axes.plot(calls, rms, style, color="0.5", label=f"{name}, no search")
    by_start = summary["least_rms_of_published_solvers_by_start"]
    ours = summary["least_rms_by_solver_and_start"]
    for family, colour in _STARTS.items():
        rows = [rms for name, rms in by_start.items() if name.split()[0] == family]
        told = _STARTS_TOLD[family]
        published = [min(values) for values in zip(*rows, strict=True)]
        axes.plot(calls, published, "o--", color=colour, label=f"published, {told}")
        rows = [ours[name][family] for name in ours if name.startswith("v3")]
        best = [min(values) for values in zip(*rows, strict=True)]
        axes.plot(calls, best, "s-", color=colour, label=f"v3 Gaussian, {told}")
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 0.6)
    axes.set_ylabel("rms error per pixel, 64 samples")
    axes.set_title("Error against the exact solution")


def _draw_distances(axes: Axes, distributions: dict[str, Any]) -> None:
    rows = [row for row in distributions["rows"] if "solver" in row]
    calls = sorted({row["calls"] for row in rows})
    judged = {name: [r for r in rows if r["family"] == name] for name in _STARTS}
    plain = {
        name: [
            row
            for row in rows
            if (row["solver"], row["schedule"], row["family"], row["last_sigma"])
            == (*name, "none", 0.002)
        ]
        for name in (("Heun", "Karras 7"), ("DPM++ 2M midpoint", "log-uniform"))
    }
    for name, style in zip(plain, (":", "-."), strict=True):
        values = {row["calls"]: row["sliced_wasserstein"] for row in plain[name]}
        axes.plot(list(values), list(values.values()), style, color="0.5")
    for name, colour in _STARTS.items():
        best = [
            min(
                (r["sliced_wasserstein"] for r in judged[name] if r["calls"] == count),
                default=float("nan"),
            )
            for count in calls
        ]
        axes.plot(calls, best, "^-", color=colour)
    floor = distributions["floor"]["sliced_wasserstein"]
    low, high = (floor["mean"] + sign * 2 * floor["deviation"] for sign in (-1, 1))
    axes.axhspan(low, high, color="0.85")
    axes.annotate(
        "two draws of the truth",
        (calls[-1], high),
        (0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.set_yscale("log")
    axes.set_ylim(0.025, 0.6)
    axes.set_ylabel(f"sliced Wasserstein, {distributions['samples']:,} samples")
    axes.set_title("Distance of the distributions, rows of least rms")
