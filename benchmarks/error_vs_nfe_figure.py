"""The figure of the benchmark: error and distance, by calls and by where to start."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.error_vs_nfe_report import OURS
from benchmarks.error_vs_nfe_table import SIGMA_MAX

_FAMILIES = {"none": "no skip", "teleport": "teleport", "prefix": "prefix"}
_COLOURS = {"none": "#444444", "teleport": "#c8553d", "prefix": "#0b6e99"}
_PLAIN = {"Heun": (0, (1, 1.5)), "DPM++ 2M midpoint": "-."}
_SHOWN_CALLS = (5, 6, 8, 10, 15, 25)
_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)


def draw_figure(figures: dict[str, Any]) -> Figure:
    """Draw errors (above) and distances (below), by calls and by sigma_skip."""
    figure = Figure(figsize=(10.5, 8.8), layout="constrained")
    FigureCanvasAgg(figure)
    (by_calls, by_skip), (apart, apart_by_skip) = figure.subplots(2, 2, sharey="row")
    summary, distributions = figures["summary"], figures["distributions"]
    _errors_by_calls(by_calls, summary)
    _errors_by_skip(by_skip, summary)
    _distances_by_calls(apart, distributions["rows"])
    _distances_by_skip(apart_by_skip, distributions["rows"], summary["calls"])
    for axes in (apart, apart_by_skip):
        _mark_floor(axes, distributions["floor"]["sliced_wasserstein"])
    for axes, low, high in ((by_calls, 1e-3, 0.7), (apart, 0.025, 0.7)):
        _log_axis(axes, low, high)
    for axes in (by_calls, apart):
        axes.set_xlabel("network calls")
        axes.set_xticks(summary["calls"])
    by_calls.set_ylabel(f"rms error per pixel, {figures['samples']} samples")
    count = distributions["samples"]
    apart.set_ylabel(f"sliced Wasserstein distance, {count:,} samples")
    for letter, axes, title in (
        ("a", by_calls, "error of single samples, best grid and skip"),
        ("b", by_skip, "the same by start, published solvers"),
        ("c", apart, "distance from the truth's samples, rows of least rms"),
        ("d", apart_by_skip, "the same by start, published solvers"),
    ):
        axes.set_title(f"({letter}) {title}", fontsize=10, loc="left")
        axes.grid(alpha=0.25)
    figure.legend(
        *by_calls.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        title="(a) and (c)",
        title_fontsize=8,
    )
    return figure


def _errors_by_calls(axes: Axes, summary: dict[str, Any]) -> None:
    calls = summary["calls"]
    for name, rms in summary["plain_rms"].items():
        solver, schedule = name.split(", ")
        if solver in _PLAIN:
            told = f"{solver}, {schedule}, not searched"
            axes.plot(calls, rms, ls=_PLAIN[solver], color="0.6", label=told)
    for family, told in _FAMILIES.items():
        rows = [
            rms
            for start, rms in summary["least_rms_of_published_solvers_by_start"].items()
            if start.split()[0] == family
        ]
        published = [min(values) for values in zip(*rows, strict=True)]
        best = [row["rms"] for row in summary["best"][f"any solver, {told}"]]
        _pair(axes, family, calls, published, best, told)


def _errors_by_skip(axes: Axes, summary: dict[str, Any]) -> None:
    by_start = summary["least_rms_of_published_solvers_by_start"]
    for calls in summary["calls"]:
        if calls not in _SHOWN_CALLS:
            continue
        place = summary["calls"].index(calls)
        for family in ("teleport", "prefix"):
            points = {SIGMA_MAX: by_start["none"][place]} | {
                float(start.split()[1]): rms[place]
                for start, rms in by_start.items()
                if start.split()[0] == family
            }
            _skip_line(axes, family, calls, points)
    _skip_axis(axes, by_start)
    _skip_legend(axes, summary["calls"])


def _distances_by_calls(axes: Axes, rows: list[dict[str, Any]]) -> None:
    searched = [row for row in rows if "solver" in row]
    for solver, style in _PLAIN.items():
        first = {row["calls"]: row for row in searched if _is_plain(row, solver)}
        distances = [row["sliced_wasserstein"] for row in first.values()]
        axes.plot(list(first), distances, ls=style, color="0.6")
    for family, told in _FAMILIES.items():
        some = [row for row in searched if row["family"] == family]
        calls = sorted({row["calls"] for row in some})
        published, best = (
            [_distance_of_least_rms(among, count) for count in calls]
            for among in (_published(some), some)
        )
        _pair(axes, family, calls, published, best, told)


def _distances_by_skip(
    axes: Axes, rows: list[dict[str, Any]], all_calls: Sequence[int]
) -> None:
    searched = _published(row for row in rows if "solver" in row)
    for calls in all_calls:
        if calls not in _SHOWN_CALLS:
            continue
        for family in ("teleport", "prefix"):
            some = [row for row in searched if row["family"] in ("none", family)]
            skips = sorted({row["sigma_skip"] for row in some}, reverse=True)
            points = {
                skip: _distance_of_least_rms(
                    [row for row in some if row["sigma_skip"] == skip], calls
                )
                for skip in skips
            }
            _skip_line(axes, family, calls, points)
    _skip_axis(axes, [f"{row['family']} {row['sigma_skip']:g}" for row in searched])


def _published(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["solver"] not in OURS]


def _is_plain(row: dict[str, Any], solver: str) -> bool:
    schedule = "Karras 7" if solver == "Heun" else "log-uniform"
    wanted = (solver, "none", schedule, 0.002)
    named = ("solver", "family", "schedule", "last_sigma")
    return tuple(row[name] for name in named) == wanted


def _distance_of_least_rms(rows: list[dict[str, Any]], calls: int) -> float:
    best = min((r for r in rows if r["calls"] == calls), key=lambda r: r["rms"])
    return best["sliced_wasserstein"]


def _pair(
    axes: Axes,
    family: str,
    calls: Sequence[int],
    published: Sequence[float],
    best: Sequence[float],
    told: str,
) -> None:
    """Draw published solvers dashed and all solvers solid."""
    style: dict[str, Any] = {"color": _COLOURS[family], "ms": 4}
    axes.plot(calls, published, "o--", **style, label=f"published solvers, {told}")
    axes.plot(calls, best, "s-", **style, label=f"all solvers, {told}")


def _skip_line(axes: Axes, family: str, calls: int, points: dict[float, float]) -> None:
    shade = _SHOWN_CALLS.index(calls) / (len(_SHOWN_CALLS) - 1)
    style = "o-" if family == "teleport" else "^:"
    colour = colormaps["viridis"](0.9 * shade)
    axes.plot(list(points), list(points.values()), style, color=colour, ms=4, lw=1.2)


def _skip_axis(axes: Axes, starts: Iterable[str]) -> None:
    skips = {float(name.split()[1]) for name in starts if name.split()[0] != "none"}
    ticks = [SIGMA_MAX, *sorted(skips, reverse=True)]
    axes.set_xscale("log")
    axes.set_xlim(1.15 * ticks[0], ticks[-1] / 1.15)
    axes.set_xticks(ticks, ["none", *(f"{skip:g}" for skip in ticks[1:])])
    axes.minorticks_off()
    axes.set_xlabel("sigma_skip")


def _skip_legend(axes: Axes, all_calls: Sequence[int]) -> None:
    shown = [calls for calls in _SHOWN_CALLS if calls in all_calls]
    span = len(_SHOWN_CALLS) - 1
    lines = [
        Line2D([], [], color=colormaps["viridis"](0.9 * _SHOWN_CALLS.index(c) / span))
        for c in shown
    ]
    names = [f"{c} calls" for c in shown]
    lines += [
        Line2D([], [], color="0.3", marker="o", ms=4),
        Line2D([], [], color="0.3", marker="^", ms=4, ls=":"),
    ]
    names += ["teleport", "prefix"]
    axes.legend(lines, names, fontsize=8, loc="lower right")


def _mark_floor(axes: Axes, floor: dict[str, float]) -> None:
    low, high = (floor["mean"] + sign * 2 * floor["deviation"] for sign in (-1, 1))
    axes.axhspan(low, high, color="0.9", zorder=0)
    axes.annotate(
        "two draws of the truth",
        (0.98, low),
        (0, -2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="0.35",
    )


def _log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
