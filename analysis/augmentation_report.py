"""Arms of an augmentation study side by side: table, figure, page.

Intervals over seeds are Student's; ratios are taken within a seed, because the arms of
one seed share their images and noise, and averaged as logarithms.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis.plots import save_figure
from analysis.report import Report
from diffusion.atomic import write_atomically

__all__ = ["Interval", "plot_study", "seed_interval", "study_rows", "write_study"]

_COLOURS = ("#444444", "#0b6e99", "#c8553d", "#5a7d2a", "#7a4f9a", "#8a6d00", "#b0468a")

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Measures of `augmentation_runs.measure_run` by arm, one for each seed."""


class Interval(NamedTuple):
    """A mean over seeds with its interval; low and high are nan for a single seed."""

    mean: float
    low: float
    high: float


def seed_interval(
    values: ArrayLike, *, confidence: float = 0.95, logarithmic: bool = False
) -> Interval:
    """Return mean and Student's interval, mean -+ t s / sqrt(n), of a few seeds.

    Args:
        values: (n,) one number a seed.
        confidence: Two-sided, in (0, 1).
        logarithmic: Whether to average logarithms, as of ratios.

    Returns:
        Mean (geometric for logarithms) and the ends of its interval.
    """
    from scipy.stats import t  # scikit-learn brings it

    numbers = np.asarray(values, np.float64)
    if logarithmic:
        numbers = np.log(numbers)
    count, mean = len(numbers), float(numbers.mean())
    half = math.nan
    if count > 1:
        spread = float(numbers.std(ddof=1)) / math.sqrt(count)
        half = float(t.ppf((1 + confidence) / 2, count - 1)) * spread
    ends = (mean, mean - half, mean + half)
    return Interval(*(map(math.exp, ends) if logarithmic else ends))


def study_rows(runs: Runs, baseline: str = "none") -> list[dict[str, Any]]:
    """Return a row per arm, of plain numbers and intervals.

    Args:
        runs: Measures by arm.
        baseline: The arm that ratios are to; left out where it has other seeds.

    Returns:
        ``arm``, ``seeds``, ``training``, ``held_out``, ``best_held_out``, ``best_step``
        (of each seed), ``ratio_to_last``, ``ratio_to_best``, ``memorised``,
        ``copy_rate``, and per transform ``leak`` and ``clear leak``.

    Losses are averages over the noise levels, held-out ones at the last checkpoint and
    at the best one.  Ratios are to the baseline of the same seed: last to last, and
    last to the baseline's best, which is what early stopping would have reached.
    """
    rows = []
    for name, measured in runs.items():
        curves = [_curve(one, "held_out") for one in measured]
        row: dict[str, Any] = {
            "arm": name,
            "seeds": len(measured),
            "training": seed_interval([_curve(m, "training")[-1] for m in measured]),
            "held_out": seed_interval([curve[-1] for curve in curves]),
            "best_held_out": seed_interval([curve.min() for curve in curves]),
            "best_step": [
                int(one["steps"][int(curve.argmin())])
                for one, curve in zip(measured, curves, strict=True)
            ],
        }
        if baseline in runs and len(runs[baseline]) == len(measured):
            plain = [_curve(one, "held_out") for one in runs[baseline]]
            pairs = list(zip(curves, plain, strict=True))
            row["ratio_to_last"] = seed_interval(
                [a[-1] / b[-1] for a, b in pairs], logarithmic=True
            )
            row["ratio_to_best"] = seed_interval(
                [a[-1] / b.min() for a, b in pairs], logarithmic=True
            )
        last = [one["samples"][-1] for one in measured]
        row["memorised"] = seed_interval([s["memorised"][0] for s in last])
        row["copy_rate"] = seed_interval([s["copy_rate"][0] for s in last])
        for transform in last[0]["leaks"]:
            for key, name in (("clear", "clear leak"), ("share", "leak")):
                shares = [s["leaks"][transform][key][0] for s in last]
                row[f"{name} {transform}"] = seed_interval(shares)
        if "background" in last[0]:
            row["clear leak background"] = seed_interval(
                [s["background"][0] for s in last]
            )
        rows.append(row)
    return rows


def _curve(measured: Mapping[str, Any], name: str) -> np.ndarray:
    """Return the (S,) loss averaged over noise levels."""
    return np.asarray(measured[name], np.float64).mean(axis=1)


def plot_study(runs: Runs, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw held-out loss over training and per noise level, copies and leaks.

    Args:
        runs: Measures by arm.
        rows: Result of `study_rows`.

    Returns:
        Four panels.
    """
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(2, 2, number) for number in (1, 2, 3, 4)]
    colours = {
        name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(runs)
    }
    _draw_curves(panels[0], runs, colours)
    _draw_levels(panels[1], runs, colours)
    _draw_shares(panels[2], rows, ("memorised", "copy_rate"), colours, "Copies")
    panels[2].set_xticks((0, 1), ("memorised", "nearer to a training image"))
    panels[2].axhline(50, color="0.5", lw=0.8, ls="--")
    panels[2].text(-0.4, 51, "expected if nothing is copied", color="0.4", fontsize=8)
    leaks = tuple(key for key in rows[0] if key.startswith("clear leak"))
    _draw_shares(
        panels[3], rows, leaks, colours, "Samples that clearly look transformed"
    )
    return figure


def _draw_curves(axes: Axes, runs: Runs, colours: Mapping[str, str]) -> None:
    for name, measured in runs.items():
        steps = np.asarray(measured[0]["steps"])
        for kind, style in (("held_out", "-"), ("training", ":")):
            curves = np.stack([_curve(one, kind) for one in measured])
            found = [seed_interval(column) for column in curves.T]
            label = name if kind == "held_out" else None
            mean = [item.mean for item in found]
            axes.plot(steps, mean, style, color=colours[name], label=label, lw=1.5)
            if kind == "held_out" and len(measured) > 1:
                low, high = (
                    [getattr(i, end) for i in found] for end in ("low", "high")
                )
                axes.fill_between(steps, low, high, color=colours[name], alpha=0.12)
    axes.set(xlabel="optimizer step", ylabel="weighted loss", yscale="log")
    axes.set_title("Held-out loss over training (dotted: training images)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_levels(axes: Axes, runs: Runs, colours: Mapping[str, str]) -> None:
    for name, measured in runs.items():
        losses = np.stack([np.asarray(one["held_out"])[-1] for one in measured])
        axes.plot(
            measured[0]["sigmas"],
            losses.mean(axis=0),
            "o-",
            ms=3,
            color=colours[name],
            label=name,
        )
    axes.set(xscale="log", yscale="log", ylabel="weighted loss")
    axes.set_xlabel("noise level sigma (data units)")
    axes.set_title("Held-out loss per noise level, last checkpoint")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_shares(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    colours: Mapping[str, str],
    title: str,
) -> None:
    width = 0.8 / max(len(rows), 1)
    for number, row in enumerate(rows):
        places = np.arange(len(keys)) + (number - (len(rows) - 1) / 2) * width
        found = [row[key] for key in keys]
        mean = np.array([item.mean for item in found]) * 100
        low, high = (
            np.nan_to_num(np.array([getattr(i, end) for i in found]) * 100, nan=0)
            for end in ("low", "high")
        )
        error = np.stack([mean - np.maximum(low, 0), np.minimum(high, 100) - mean])
        single = not np.isfinite([item.low for item in found]).all()
        axes.bar(
            places,
            mean,
            width * 0.9,
            color=colours[row["arm"]],
            yerr=None if single else np.maximum(error, 0),
            capsize=2,
            label=row["arm"],
        )
    labels = [key.removeprefix("clear leak ").split(":")[0] for key in keys]
    axes.set_xticks(range(len(keys)), labels)
    axes.set(ylabel="share of samples in %", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)


def write_study(runs: Runs, folder: str | Path, title: str, summary: str) -> None:
    """Write ``study.json``, ``study.csv``, ``study.png`` and ``study.html``.

    Args:
        runs: Measures by arm, one for each seed.
        folder: Where to.
        title: Heading of the page.
        summary: What was run, a sentence or two.

    Raises:
        OSError: If something cannot be written.
    """
    folder = Path(folder)
    rows = study_rows(runs)
    plain = [
        {
            key: list(value) if isinstance(value, Interval) else value
            for key, value in row.items()
        }
        for row in rows
    ]
    values = {
        "summary": summary,
        "arms": plain,
        "runs": dict(runs),
    }
    _write(folder / "study.json", json.dumps(_finite(values), indent=1) + "\n")
    header, cells = _table(rows)
    text = io.StringIO()
    csv.writer(text).writerows([header, *cells])
    _write(folder / "study.csv", text.getvalue())
    png = save_figure(plot_study(runs, rows), folder / "study.png")
    report = Report(title)
    report.paragraph(summary)
    report.figure(
        png,
        "Bands and bars: 95 % intervals over seeds. Clear leaks: samples that are "
        "nearer to a transformed held-out image than to any untransformed one, by a "
        "tenth of the distance or more; blurred samples often are, so compare with an "
        "arm that was not trained with the transform.",
    )
    report.table(header, cells)
    report.paragraph(
        "Losses are EDM-weighted, averaged over the noise levels, on images without "
        "augmentation. Ratios compare an arm's last checkpoint with the baseline's of "
        "the same seed. In brackets: 95 % interval over seeds."
    )
    report.write(folder / "study.html")


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, [[_cell(key, row.get(key)) for key in header] for row in rows]


def _cell(key: str, value: Any) -> str:
    if isinstance(value, Interval):
        percent = key.startswith(("clear", "leak", "memorised", "copy"))
        numbers = [n * 100 if percent else n for n in value]
        shown = [f"{n:.1f} %" if percent else f"{n:.3f}" for n in numbers]
        return (
            shown[0]
            if math.isnan(value.low)
            else f"{shown[0]} [{shown[1]}, {shown[2]}]"
        )
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _finite(value: Any) -> Any:
    """Return a tree of plain values with None for what is not a number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
