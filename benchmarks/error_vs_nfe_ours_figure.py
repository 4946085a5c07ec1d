"""The figure of the second part: error and distance by calls, theirs and ours."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

_TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_PLAIN = "DPM++ 2M midpoint, log-uniform"


def draw_ours(figures: dict[str, Any]) -> Figure:
    """Draw errors (left), distances (middle) and the Gaussians (right), by calls."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    errors, distances, parts = figure.subplots(1, 3)
    calls, best = figures["calls"], figures["best"]
    fitted = next(name for name in best if name.startswith("fitted"))
    gains = f"{fitted}, gains"
    lines: dict[str, tuple[list[float], dict[str, Any]]] = {
        "DPM-Solver++ 2M as it is": (
            figures["plain_rms"].get(_PLAIN, []),
            {"color": "0.6", "ls": ":"},
        ),
        "best published, no skip": (_rms(best["published, no skip"]), {"color": "0.3"}),
        "best published, teleported": (_rms(best["published"]), {"color": "#c8553d"}),
        "tuned without the network": (
            [row["rms"] for row in figures["tuned"]["all"]],
            {"color": "#0b6e99", "ls": "--"},
        ),
        "ours, teleported": (_rms(best[gains]), {"color": "#0b6e99"}),
        "ours, from a mixture prefix": (
            _rms(best[f"{gains}, prefix"]),
            {"color": "#0b6e99", "lw": 2.8},
        ),
    }
    for name, (rms, style) in lines.items():
        if rms:
            errors.plot(calls, rms, marker="o", ms=4, label=name, **style)
    _distances(distances, figures, gains)
    for name in best:
        if not name.startswith(("published", "v3")) and "prefix" not in name:
            style = {"ls": "-" if "gains" in name else ":"}
            parts.plot(calls, _rms(best[name]), marker="o", ms=3, label=name, **style)
    parts.plot(calls, _rms(best["published"]), color="0.3", label="best published")
    for axes, title in (
        (errors, f"(a) rms error per pixel, {figures['samples']} samples"),
        (distances, "(b) sliced Wasserstein distance"),
        (parts, "(c) rms by affine part, no skip or teleport"),
    ):
        axes.set(yscale="log", xlabel="network calls", xticks=calls)
        axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure


def _rms(rows: list[dict[str, Any]]) -> list[float]:
    return [row["rms"] for row in rows]


def _distances(axes: Axes, figures: dict[str, Any], gains: str) -> None:
    judged = {
        _key(row): row["sliced_wasserstein"] for row in figures["distributions"]["rows"]
    }
    for name, told, colour in (
        ("published, no skip", "best published, no skip", "0.3"),
        ("published", "best published, teleported", "#c8553d"),
        (gains, "ours, teleported", "#0b6e99"),
    ):
        # A row that was not judged leaves a gap.
        values = [judged.get(_key(row), math.nan) for row in figures["best"][name]]
        axes.plot(figures["calls"], values, marker="o", ms=4, color=colour, label=told)
    floor = figures["distributions"]["floor"]["sliced_wasserstein"]
    low, high = (floor["mean"] + k * floor["deviation"] for k in (-2, 2))
    axes.axhspan(low, high, color="0.85", label="two draws of the truth")
    axes.set_ylim(0.02, 0.2)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("solver", "family", "sigma_skip", "schedule", "last_sigma", "calls")
    return tuple(row[name] for name in names)
