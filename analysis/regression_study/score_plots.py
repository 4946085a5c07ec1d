"""Figures of scores and samples: fields, errors by time, distances, rays."""

import numpy as np
from matplotlib.figure import Figure

from analysis.plots import COLOURS, STYLES, open_panels
from analysis.regression_study.measurements import (
    FieldStudy,
    Homogeneity,
    SampleStudy,
    ScoreField,
)

__all__ = [
    "plot_error_by_time",
    "plot_field",
    "plot_ray",
    "plot_sample_distance",
    "plot_samples",
]

_SHOWN = 600


def plot_field(field: ScoreField, names: tuple[str, ...]) -> Figure:
    """Draw a score field beside the exact one.

    Args:
        field: The field.
        names: Of its stops.
    """
    figure, panels = open_panels(1 + len(names), 15, 3.4, share_y=True)
    longest = np.linalg.norm(field.exact, axis=1).max()
    fields = (("exact", field.exact), *zip(names, field.fitted, strict=True))
    for axes, (name, score) in zip(panels, fields, strict=True):
        length = np.linalg.norm(score, axis=1, keepdims=True)
        cut = score * np.minimum(1, longest / np.maximum(length, 1e-30))
        error = np.linalg.norm(score - field.exact, axis=1)
        axes.quiver(
            *field.points.T,
            *cut.T,
            error,
            cmap="viridis_r",
            clim=(0, longest / 2),
            angles="xy",
            scale_units="xy",
            scale=4 * longest,
            width=0.006,
        )
        axes.set(title=name, aspect="equal", xlabel="x_1")
    panels[0].set_ylabel("x_2")
    figure.suptitle(f"Score at t = {field.t:g} (dark: far from the exact one)")
    return figure


def plot_error_by_time(study: FieldStudy, known: bool) -> Figure:
    """Draw the error of f at each stop against diffusion time.

    Args:
        study: The errors.
        known: Whether they are distances from the truth, not from labels.
    """
    figure, (axes,) = open_panels(1, 7, 4.2)
    middle = (study.edges[1:] + study.edges[:-1]) / 2
    for i, (name, s) in enumerate(zip(study.names, study.stops, strict=True)):
        label = f"{name}: s = {s:.3g}"
        axes.plot(
            middle,
            study.by_time[i],
            STYLES[i % len(STYLES)],
            color=COLOURS[i],
            label=label,
        )
    axes.set(xlabel="diffusion time t", title="Error of f = E[X_0 | X_t]")
    source = "the truth" if known else "labels"
    axes.set_ylabel(f"root mean square distance from {source}")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def plot_sample_distance(study: SampleStudy) -> Figure:
    """Draw the energy distance of samples against the stop."""
    figure, (axes,) = open_panels(1, 7, 4.2)
    axes.plot(study.stops, study.distances, "o-", color=COLOURS[0], label="kernel")
    axes.axvline(study.stops[study.gcv], color=COLOURS[2], lw=1, label="GCV stop")
    axes.axhline(study.floor, color="0.4", lw=1, label="fresh data")
    for i, (name, value) in enumerate(study.others.items()):
        axes.axhline(value, color=COLOURS[(1, 3)[i % 2]], lw=1, ls="--", label=name)
    largest = max(*np.abs(study.distances), abs(study.floor), 1e-12)
    axes.set_xscale("log")
    # Around 0 the estimate may be negative.
    axes.set_yscale("symlog", linthresh=largest / 1000)
    axes.set(xlabel="training time s", ylabel="energy distance (data units)")
    axes.set_title("Samples against the stop")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def plot_samples(study: SampleStudy) -> Figure:
    """Draw samples in the plane at four stops beside the reference."""
    places = (0, study.gcv // 2, study.gcv, len(study.stops) - 1)
    figure, panels = open_panels(1 + len(places), 15, 3.4, share_y=True)
    sets = [("reference", study.reference)]
    for i in places:
        mark = " (GCV)" if i == study.gcv else ""
        sets.append((f"s = {study.stops[i]:.3g}{mark}", study.samples[i]))
    reach = 1.2 * np.abs(study.reference).max()
    for axes, (name, points) in zip(panels, sets, strict=True):
        axes.plot(*points[:_SHOWN].T, ".", ms=2, color=COLOURS[0])
        axes.set(title=name, aspect="equal", xlabel="x_1")
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    panels[0].set_ylabel("x_2")
    return figure


def plot_ray(study: Homogeneity) -> Figure:
    """Draw predictions along a ray, with and without a constant feature.

    Args:
        study: With a ray.
    """
    figure, (axes,) = open_panels(1, 7, 4.2)
    assert study.ray is not None and study.along is not None, "there is no ray"
    names = ("no constant feature", f"constant feature {study.bias[1]:g}", "truth")
    for i, (name, values) in enumerate(zip(names, study.along, strict=True)):
        style = ("--", "-", ":")[i]
        axes.plot(study.ray, values, style, color=("k", *COLOURS)[2 - i], label=name)
    axes.set(xlabel="multiple of the component's mean", ylabel="first output")
    axes.set_title("Along a ray")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
