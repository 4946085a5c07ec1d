"""Figures of a trained network's tangent kernel."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.plots import COLOURS, SIGMA_LABEL, open_panels
from analysis.regression_study.network_kernel import NetworkKernel

__all__ = ["plot_kernels", "plot_predictions"]


def plot_kernels(found: Sequence[NetworkKernel]) -> Figure:
    """Draw the eigenvalues, and where in them the labels lie.

    Args:
        found: What was measured at each noise level, of one network.
    """
    figure, (left, right) = open_panels(2, 10, 4.2)
    for index, one in enumerate(found):
        colour = COLOURS[index % len(COLOURS)]
        number = np.arange(1, len(one.evals) + 1)
        label = f"sigma {one.sigma:g}, effective rank {one.effective_rank:.1f}"
        positive = one.evals > 0
        left.plot(
            number[positive], one.evals[positive], "o-", ms=3, color=colour, label=label
        )
        right.plot(number, one.share, color=colour, label=f"sigma {one.sigma:g}")
    left.set(xscale="log", yscale="log", ylabel="eigenvalue of K / n")
    left.set_title("Spectrum")
    right.set(xscale="log", ylim=(0, 1.03), ylabel="share of the labels")
    right.set_title("Labels in the first eigenvectors")
    for axes in (left, right):
        axes.set_xlabel("number of the eigenvector")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def plot_predictions(found: Sequence[NetworkKernel]) -> Figure:
    """Draw how well regression with the kernel stands for the network.

    Args:
        found: See `plot_kernels`.
    """
    figure, (left, right) = open_panels(2, 10, 4.2)
    sigmas = [one.sigma for one in found]
    explained = (
        ("explained", "fitted to the network's outputs"),
        ("explained_by_clean", "fitted to clean images"),
    )
    losses = (("network_loss", "network"), ("clean_loss", "regression of clean images"))
    for axes, lines in ((left, explained), (right, (*losses, ("skip_loss", "skip")))):
        for index, (name, label) in enumerate(lines):
            values = [getattr(one, name) for one in found]
            axes.plot(sigmas, values, "o-", ms=4, color=COLOURS[index], label=label)
        axes.set(xscale="log", xlabel=SIGMA_LABEL)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    lowest = min(min(one.explained, one.explained_by_clean) for one in found)
    left.set(ylim=(max(-1.0, min(0.0, lowest) - 0.05), 1.05))
    left.set(ylabel="explained variance", title="The network's part, predicted")
    right.set(yscale="log", ylabel="rms distance from clean (data units)")
    right.set_title("Denoising at other images")
    return figure
