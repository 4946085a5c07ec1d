"""Figures of both optima on the line."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from analysis.plots import COLOURS, SIGMA_LABEL, STYLES, open_panels

if TYPE_CHECKING:
    from analysis.reconstruction_study.limit import LimitStudy

__all__ = ["plot_limit", "plot_limit_errors"]

_NAMES = ("denoising", "contraction")


def plot_limit(found: "LimitStudy", reach: float) -> Figure:
    """Draw r against x, and (r - x) / sigma^2 at the largest and a small sigma.

    Args:
        found: The optima.
        reach: Half of the horizontal axis, data units.
    """
    figure, panels = open_panels(3, 14, 4.2)
    here = np.abs(found.grid) <= reach
    x = found.grid[here]
    panels[0].plot(x, x, ":", color="0.5", label="r(x) = x")
    for name, colour in zip(_NAMES, COLOURS, strict=False):
        panels[0].plot(x, x + getattr(found, name)[0][here], color=colour, label=name)
    panels[0].set(title=f"sigma = {found.sigmas[0]:g}", xlabel="x", ylabel="r(x)")
    for axes, i in zip(panels[1:], (0, 2), strict=True):
        sigma = found.sigmas[i]
        axes.plot(x, found.score[here], color="0.3", lw=3, alpha=0.4, label="score")
        for name, colour in zip(_NAMES, COLOURS, strict=False):
            term = found.terms[name]
            optimum = getattr(found, name)[i] / sigma**2
            axes.plot(x, optimum[here], color=colour, label=name)
            series = found.score + sigma**2 * term
            axes.plot(x, series[here], "--", lw=1, color=colour, label="to sigma^4")
            if sigma == found.trained_sigma:
                trained = found.trained[name] / sigma**2
                axes.plot(x, trained[here], ":", color=colour, label="trained")
        axes.set(title=f"sigma = {sigma:g}", xlabel="x", ylabel="(r - x) / sigma^2")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def plot_limit_errors(found: "LimitStudy") -> Figure:
    """Draw what is left after the score and after the next term, against sigma."""
    figure, (left, right) = open_panels(2, 10, 4.2)
    for i, name in enumerate(_NAMES):
        term = found.terms[name]
        estimate = getattr(found, name) / found.sigmas[:, None] ** 2
        first = estimate - found.score
        second = first - found.sigmas[:, None] ** 2 * term
        for style, label, error in (
            (STYLES[0], "off the score", first),
            (STYLES[1], "off the expansion", second),
        ):
            values = found.rms(error)
            slope = np.polyfit(np.log(found.sigmas[1:]), np.log(values[1:]), 1)[0]
            left.plot(
                found.sigmas,
                values,
                style,
                ms=4,
                color=COLOURS[i],
                label=f"{name}, {label}: sigma^{slope:.1f}",
            )
    left.set(xscale="log", yscale="log", ylabel="root mean square under p")
    left.legend(fontsize=7)
    right.plot(found.sigmas, found.ratio, STYLES[0], ms=4, color=COLOURS[2])
    right.axhline(1, color="0.5", lw=1)
    right.set(xscale="log", ylim=(0, 1.1), ylabel="gap / predicted gap")
    for axes in (left, right):
        axes.set_xlabel(SIGMA_LABEL)
        axes.grid(alpha=0.3)
    return figure
