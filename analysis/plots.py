"""Figures, drawn without a screen and without pyplot's global state."""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.score_comparison import Comparison
from diffusion.atomic import write_atomically

__all__ = [
    "COLOURS",
    "SIGMA_LABEL",
    "STYLES",
    "open_panels",
    "plot_explained_variance",
    "plot_loss_per_bin",
    "plot_losses",
    "plot_sample_grid",
    "save_figure",
    "save_figure_pair",
]

COLOURS = ("#0b6e99", "#c8553d", "#5a7d2a", "#7a4f9a", "#8a6d00", "#444444")
STYLES = ("o-", "s--", "^:", "d-.")
SIGMA_LABEL = "noise level sigma (data units)"


def open_panels(
    count: int, width: float, height: float, *, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side.

    Args:
        count: Number of panels.
        width: Of the figure, inches.
        height: Likewise.
        share_y: Whether all panels have the vertical axis of the first.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False, sharey=share_y)[0]
    return figure, list(panels)


def save_figure(figure: Figure, path: str | Path) -> bytes:
    """Write a figure as PNG, atomically, and return the file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return buffer.getvalue()


def save_figure_pair(figure: Figure, stem: str | Path) -> bytes:
    """Write a figure as PNG and SVG, atomically, and return the PNG's bytes.

    The same figure gives the same bytes.

    Args:
        figure: The figure.
        stem: Path without ``.png`` and ``.svg``.

    Raises:
        OSError: If a file cannot be written.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    figure.set_layout_engine("none")  # what was laid out for the one serves the other
    with rc_context({"svg.hashsalt": "scorelab", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    for suffix, buffer in ((".png", png), (".svg", svg)):
        data = buffer.getvalue()
        write_atomically(f"{stem}{suffix}", lambda file, data=data: file.write(data))
    return png.getvalue()


def plot_sample_grid(images: NDArray[Any], *, columns: int = 12) -> Figure:
    """Draw images side by side.

    Args:
        images: (n, H, W, 1 or 3) in data units; clipped to [-1, 1].
        columns: Images per row.

    Returns:
        A figure without axes.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1, channels))
    for index, image in enumerate(np.clip(images, -1, 1) / 2 + 0.5):
        top, left = divmod(index, columns)
        y, x = top * (height + 1) + 1, left * (width + 1) + 1
        canvas[y : y + height, x : x + width] = image
    figure, (axes,) = open_panels(1, columns * 0.55, rows * 0.55)
    axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    return figure


def plot_explained_variance(
    comparison: Comparison, *, reference: str = "network"
) -> Figure:
    """Draw explained variance against sigma, for scores and for denoised images.

    Args:
        comparison: Result of `compare_denoisers`.
        reference: What the candidates are compared with, for the titles.

    Returns:
        Two panels: the score's, and that of the centred denoised image, each with the
        mean over probes and a band of two standard errors.
    """
    figure, panels = open_panels(2, 10, 4.2)
    parts = (
        (f"score of the {reference}", comparison.score),
        (f"denoised image of the {reference}", comparison.denoised),
    )
    for position, (axes, (title, summary)) in enumerate(
        zip(panels, parts, strict=True), start=1
    ):
        for index, name in enumerate(comparison.names):
            mean, error = summary.mean[index], 2 * summary.standard_error[index]
            colour = COLOURS[index % len(COLOURS)]
            style = STYLES[index // len(COLOURS) % len(STYLES)]
            axes.plot(comparison.sigmas, mean, style, ms=3, color=colour, label=name)
            axes.fill_between(
                comparison.sigmas, mean - error, mean + error, color=colour, alpha=0.2
            )
        axes.set(xscale="log", ylim=(-0.1, 1.05), title=f"Explained: {title}")
        axes.set_xlabel(SIGMA_LABEL)
        axes.set_ylabel("explained variance (1 is perfect)")
        axes.axhline(0, color="0.6", lw=0.8)
        axes.grid(alpha=0.3)
        if len(comparison.names) <= len(COLOURS):
            axes.legend(loc="center left" if position == 2 else "lower right")
    if len(comparison.names) > len(COLOURS):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def plot_losses(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw training and held-out loss over time.

    Args:
        rows: Rows of ``metrics.jsonl``.

    Returns:
        A figure over optimizer steps.
    """
    figure, (axes,) = open_panels(1, 7, 4)
    steps = [row["step"] for row in rows]
    series = (
        ("training batches (current parameters)", "loss", "0.7"),
        ("training images (averaged parameters)", "ema_loss_training", COLOURS[0]),
        ("held-out images (averaged parameters)", "ema_loss_held_out", COLOURS[1]),
    )
    for label, key, colour in series:
        axes.plot(steps, _numbers(rows, key), color=colour, label=label)
    axes.set(xlabel="optimizer step", ylabel="weighted loss (1 at the start)")
    axes.set_title("Denoising loss over training")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_loss_per_bin(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the averaged parameters' loss in each bin of sigma over time.

    Args:
        rows: Rows of ``metrics.jsonl``.

    Returns:
        A figure: solid lines for training images, dashed ones for held-out images.
    """
    figure, (axes,) = open_panels(1, 7, 4)
    steps = [row["step"] for row in rows]
    names = _bin_names(rows[-1]["sigma_bin_edges"])
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        for key, style in (("training", "-"), ("held_out", "--")):
            values = [row[f"ema_loss_{key}_per_bin"][index] for row in rows]
            numbers = [np.nan if v is None else v for v in values]
            label = name if style == "-" else None
            axes.plot(steps, numbers, style, color=colour, label=label)
    axes.set(xlabel="optimizer step", ylabel="weighted loss")
    axes.set_title("Loss per noise level (dashed: held-out)")
    axes.grid(alpha=0.3)
    axes.legend(title="sigma", fontsize=8, ncols=2)
    return figure


def _numbers(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [np.nan if row[key] is None else row[key] for row in rows]


def _bin_names(edges: Sequence[float]) -> list[str]:
    inner = [f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges)]
    return [f"below {edges[0]:g}", *inner, f"above {edges[-1]:g}"]
