"""Figures of chains and of where reconstructions lead."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.autoencoder.modes import Modes
from analysis.plots import COLOURS, open_panels

if TYPE_CHECKING:
    from analysis.reconstruction_study.chains import ChainRun

__all__ = ["plot_chains", "plot_distances", "plot_maxima"]

_SHOWN, _LINES = 1500, 60
_MARKS = {"mode": "o", "saddle": "x", "minimum": "v", "flat": "."}


def plot_distances(runs: Sequence["ChainRun"], target: NDArray[np.float64]) -> Figure:
    """Draw histograms of distances from the data, longest step, begun at samples.

    Args:
        runs: All chains.
        target: (n,) distances of fresh samples, in sigma.
    """
    figure, (axes,) = open_panels(1, 8, 4.4)
    chosen = _longest(runs, "data")
    most = np.quantile(
        np.concatenate([target, *(run.from_data for run in chosen)]), 0.99
    )
    edges = np.linspace(0, max(most, 1e-9), 41).tolist()
    sets = [("fresh samples", target), *((r.energy, r.from_data) for r in chosen)]
    for i, (name, values) in enumerate(sets):
        axes.hist(
            values,
            edges,
            density=True,
            histtype="step",
            lw=2.5 if i == 0 else 1.2,
            color=("k", *COLOURS)[i % (1 + len(COLOURS))],
            label=name,
        )
    axes.set(xlabel="distance from the data (sigma)", ylabel="density")
    axes.set_title("Distance from the data")
    axes.legend(fontsize=8)
    return figure


def plot_chains(runs: Sequence["ChainRun"], target: NDArray[np.float32]) -> Figure:
    """Draw states in the plane, begun at samples and far away, beside fresh samples.

    Args:
        runs: All chains.
        target: (n, 2) fresh samples, data units.
    """
    chosen = [*_longest(runs, "data"), *_longest(runs, "far")]
    figure, panels = open_panels(1 + len(chosen), 3.4 * (1 + len(chosen)), 3.6)
    sets = [
        ("fresh samples", target),
        *((f"{r.energy}\nfrom {r.start}", r.states) for r in chosen),
    ]
    reach = 1.3 * np.abs(target).max()
    for axes, (name, points) in zip(panels, sets, strict=True):
        axes.plot(*points[:_SHOWN].T, ".", ms=1.5, color=COLOURS[0])
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.set_title(name, fontsize=9)
    return figure


def _longest(runs: Sequence["ChainRun"], start: str) -> list["ChainRun"]:
    step = max(run.step for run in runs)
    return [run for run in runs if run.start == start and run.step == step]


def plot_maxima(
    found: Mapping[str, Modes],
    paths: Mapping[str, NDArray[np.float64]],
    clean: NDArray[np.float32],
    reach: float,
) -> Figure:
    """Draw paths of reconstructions in the plane and the fixed points they lead to.

    Args:
        found: Fixed points by score.
        paths: By score (steps, starts, 2) points, data units.
        clean: (N, 2) clean points.
        reach: Half of the square's side, data units.
    """
    figure, panels = open_panels(len(found), 5.2 * len(found), 5.8, share_y=True)
    for axes, (name, modes) in zip(panels, found.items(), strict=True):
        axes.plot(*clean.T, ".", ms=1.5, color="0.7")
        for i in range(min(_LINES, paths[name].shape[1])):
            axes.plot(*paths[name][:, i].T, lw=0.5, color=COLOURS[0], alpha=0.5)
        for kind, mark in _MARKS.items():
            for spurious, colour in ((False, COLOURS[2]), (True, COLOURS[1])):
                here = (np.array(modes.kind) == kind) & (modes.spurious == spurious)
                if not here.any():
                    continue
                label = f"{kind}, spurious" if spurious else kind
                points = modes.x.reshape(-1, 2)[here]
                axes.plot(*points.T, mark, ms=4, color=colour, label=label)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=name)
        if len(modes.kind):
            axes.legend(fontsize=7)
    return figure
