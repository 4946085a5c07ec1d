"""Figures of fields in the plane: arrows, maps of angles, angles by distance."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.plots import COLOURS, STYLES, open_panels
from analysis.reconstruction_study.measures import Probes

if TYPE_CHECKING:
    from analysis.reconstruction_study.fields import WindowFields

__all__ = ["plot_angle_by_distance", "plot_angle_maps", "plot_fields"]

_LONGEST = 0.08  # of the window's side


def plot_fields(
    windows: Sequence["WindowFields"], clean: NDArray[np.float32], reference: str
) -> Figure:
    """Draw arrows: a row for the reference and one for each score, a column a window.

    Args:
        windows: Fields by window.
        clean: (N, 2) points to lay over them, data units.
        reference: What the first row is called.
    """
    names = list(windows[0].fields)
    rows, columns = 1 + len(names), len(windows)
    figure = Figure(figsize=(4 * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for column, one in enumerate(windows):
        fields = {f"score of the {reference}": one.exact, **one.fields}
        for axes, (name, field) in zip(panels[:, column], fields.items(), strict=True):
            limit = 2 * _LONGEST * one.window.reach
            length = np.linalg.norm(field, axis=1, keepdims=True)
            # The shortest arrows of a window are drawn as they are, or longer.
            scale = min(1.0, max(np.quantile(length, 0.5) / limit, 1e-9))
            shown = field / scale
            shown *= np.minimum(1, limit / np.maximum(length / scale, 1e-30))
            axes.plot(*clean.T, ".", ms=1.5, color=COLOURS[1], alpha=0.6)
            axes.quiver(
                *one.points.T,
                *shown.T,
                color=COLOURS[0],
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.003,
            )
            centre, reach = one.window
            axes.set(
                xlim=(centre[0] - reach, centre[0] + reach),
                ylim=(centre[1] - reach, centre[1] + reach),
                aspect="equal",
                title=name,
            )
    return figure


def plot_angle_maps(
    probes: Probes, maps: Mapping[str, NDArray[np.float64]], clean: NDArray[np.float32]
) -> Figure:
    """Draw the angle to the reference over the plane, a panel for each score.

    Args:
        probes: On a grid of the plane.
        maps: By name (n,) degrees.
        clean: (N, 2) points to lay over them.
    """
    figure, panels = open_panels(len(maps), 3.8 * len(maps), 4, share_y=True)
    reach = probes.reach
    for axes, (name, angle) in zip(panels, maps.items(), strict=True):
        image = axes.imshow(
            angle.reshape(probes.side, probes.side),
            origin="lower",
            extent=(-reach, reach, -reach, reach),
            vmin=0,
            vmax=90,
            cmap="viridis_r",
        )
        axes.plot(*clean[:300].T, ".", ms=1, color="w", alpha=0.6)
        axes.set(title=name, xlabel="x_1")
    panels[0].set_ylabel("x_2")
    figure.colorbar(image, ax=panels, label="angle to the reference (degrees)")
    return figure


def plot_angle_by_distance(
    probes: Probes, maps: Mapping[str, NDArray[np.float64]]
) -> Figure:
    """Draw the median angle against the distance from the data.

    Args:
        probes: Points and distances.
        maps: By name (n,) degrees.
    """
    figure, (axes,) = open_panels(1, 8, 4.4)
    positive = probes.distance[probes.distance > 0]
    low = np.quantile(positive, 0.02)
    edges = np.geomspace(low, probes.distance.max(), 14)
    place = np.digitize(probes.distance, edges)
    middle = np.sqrt(edges[1:] * edges[:-1])
    for i, (name, angle) in enumerate(maps.items()):
        medians = [
            np.median(angle[place == b]) if (place == b).any() else np.nan
            for b in range(1, len(edges))
        ]
        axes.plot(
            middle,
            medians,
            STYLES[i // len(COLOURS) % len(STYLES)],
            ms=4,
            color=COLOURS[i % len(COLOURS)],
            label=name,
        )
    axes.set(
        xscale="log",
        ylim=(0, None),
        xlabel="distance from the data (sigma)",
        ylabel="median angle (degrees)",
        title="Angle to the reference by distance",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
