"""Figures of theory against measurement: trajectories, emergence, steps, slices."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.far_field import FarFieldComparison
from analysis.plots import COLOURS, SIGMA_LABEL, open_panels
from analysis.rotation_plane import RotationPlane
from analysis.sample_variances import VarianceComparison
from analysis.score_slices import ScoreSlice
from analysis.spectrum import Emergence, PerturbationResponse
from analysis.trajectories import Quartiles, TrajectoryComparison

__all__ = [
    "plot_emergence",
    "plot_far_field",
    "plot_perturbation",
    "plot_rotation",
    "plot_score_slice",
    "plot_trajectories",
    "plot_variances",
]


def plot_trajectories(
    comparison: TrajectoryComparison, *, reference: str = "network"
) -> Figure:
    """Draw how far the candidates' trajectories are from the reference's.

    Args:
        comparison: Result of `compare_trajectories`.
        reference: What the candidates are compared with, for the titles.

    Returns:
        Two panels, of x and of the denoised sample, in the order of sampling: mean over
        samples and the band from the lower to the upper quartile.
    """
    figure, panels = open_panels(2, 10, 4.2)
    parts = (("sample x", comparison.x), ("denoised sample", comparison.denoised))
    for axes, (title, values) in zip(panels, parts, strict=True):
        for index, name in enumerate(comparison.names):
            one = Quartiles(*(part[index] for part in values))
            _draw_quartiles(axes, comparison.sigmas, one, index, name)
        axes.axhline(comparison.tolerance, color="0.5", lw=0.8, ls="--")
        axes.set(title=f"{title}, against the {reference}'s")
        axes.set_ylabel("mean squared error per element (squared data units)")
        axes.legend(fontsize=8)
    top = max(float(part.upper.max()) for part in (comparison.x, comparison.denoised))
    for axes in panels:
        # Errors of rounding, at the start, are of no interest.
        axes.set(yscale="log", ylim=(max(top, 1e-12) * 1e-7, max(top, 1e-12) * 3))
        _noise_axis(axes)
    return figure


def plot_rotation(rotation: RotationPlane) -> Figure:
    """Draw how nearly trajectories stay in the plane of noise and sample.

    Args:
        rotation: Result of `measure_rotation`.

    Returns:
        One panel in the order of sampling, with bands between the quartiles.
    """
    figure, (axes,) = open_panels(1, 7, 4.2)
    parts = (
        ("|x_0|^2 outside of span(x_T, x_sigma)", rotation.outside_plane),
        ("|x_0|^2 outside of span(x_T, ..., x_sigma)", rotation.outside_span),
        ("|x_sigma|^2 off x_0 + (sigma/sigma_T)(x_T - x_0)", rotation.off_ansatz),
    )
    for index, (label, values) in enumerate(parts):
        _draw_quartiles(axes, rotation.sigmas, values, index, label)
    explained = float(rotation.position_variance.mean())
    axes.set(ylim=(-0.03, 1.05), ylabel="share")
    axes.set_title(f"Two principal components hold {explained:.2%} of a trajectory")
    axes.legend(fontsize=8)
    _noise_axis(axes)
    return figure


def plot_emergence(emergence: Emergence, *, max_lines: int = 6) -> Figure:
    """Draw when coefficients of the denoised sample appear, and the half-way levels.

    Args:
        emergence: Result of `measure_emergence`.
        max_lines: Directions drawn at most, spread over those measured.

    Returns:
        Left, shares of the final coefficient in the order of sampling: dashed as
        predicted, points as measured with two standard errors.  Right, the level at
        which half has appeared, measured over predicted.
    """
    figure, (left, right) = open_panels(2, 10, 4.2)
    error = 2 * np.nan_to_num(emergence.standard_error)
    for colour, index in enumerate(_spread(len(emergence.directions), max_lines)):
        style = COLOURS[colour % len(COLOURS)]
        direction, variance = emergence.directions[index], emergence.variances[index]
        left.plot(
            emergence.sigmas, emergence.predicted[:, index], "--", color=style, lw=1
        )
        left.errorbar(
            emergence.sigmas,
            emergence.measured[:, index],
            error[:, index],
            fmt="o",
            ms=3,
            color=style,
            label=f"{direction} (variance {variance:.3g})",
        )
    left.axhline(0.5, color="0.7", lw=0.8)
    left.set(ylabel="share of the final coefficient", ylim=(-0.1, 1.2))
    left.set_title("Denoised sample (dashed: Gaussian)")
    left.legend(title="principal direction", fontsize=8)
    _noise_axis(left)
    right.plot(emergence.half_predicted, emergence.half_measured, "o", color=COLOURS[0])
    _draw_diagonal(right, emergence.half_predicted)
    right.set_xlabel("predicted: sqrt(3 variance) (data units)")
    right.set_ylabel("measured (data units)")
    right.set_title("Noise level at which half has appeared")
    return figure


def plot_perturbation(response: PerturbationResponse) -> Figure:
    """Draw what steps off the trajectories do to the finished samples.

    Args:
        response: Result of `perturbation_response`.

    Returns:
        Left, change along the direction, right, change off it, over the direction's
        standard deviation; a colour per level, lines as predicted.
    """
    figure, (left, right) = open_panels(2, 10, 4.2)
    spread = np.sqrt(response.variances)
    order = np.argsort(spread)
    error = 2 * np.nan_to_num(response.standard_error)
    for level, sigma in enumerate(response.levels):
        colour = COLOURS[level % len(COLOURS)]
        label = f"{sigma:.3g}"
        left.plot(
            spread[order], response.predicted[level, order], "--", color=colour, lw=1
        )
        left.errorbar(
            spread,
            response.measured[level],
            error[level],
            fmt="o",
            ms=4,
            color=colour,
            label=label,
        )
        right.plot(
            spread[order],
            response.off[level, order],
            "o-",
            ms=4,
            color=colour,
            label=label,
        )
    left.set(title="Along the direction (dashed: Gaussian)")
    right.set(title="Off the direction (Gaussian: 0)")
    for axes in (left, right):
        axes.set(xscale="log", ylabel="change of the finished sample per step length")
        axes.set_xlabel("standard deviation of the direction (data units)")
        axes.grid(alpha=0.3)
        axes.legend(title="step at sigma", fontsize=8)
    return figure


def plot_variances(comparison: VarianceComparison) -> Figure:
    """Draw the samples' variance along the data's principal directions.

    Args:
        comparison: Result of `compare_variances`.

    Returns:
        One panel, with two standard errors.
    """
    figure, (axes,) = open_panels(1, 7, 4.2)
    index = np.arange(1, len(comparison.variances) + 1)
    error = 2 * comparison.standard_error
    axes.plot(index, comparison.variances, color="0.2", label="data")
    axes.plot(index, comparison.measured, ".", ms=4, color=COLOURS[1], label="samples")
    low = np.maximum(comparison.measured - error, comparison.measured / 10)
    axes.fill_between(
        index, low, comparison.measured + error, color=COLOURS[1], alpha=0.2
    )
    top = float(comparison.variances.max()) * 3
    axes.set(xscale="log", yscale="log", ylim=(top * 1e-9, top))
    axes.set_xlabel("principal direction of the data")
    axes.set_ylabel("variance (squared data units)")
    axes.set_title(f"Variance of {comparison.num_samples} samples")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_far_field(comparison: FarFieldComparison) -> Figure:
    """Draw the gap between the training set and its Gaussian, and what is known of it.

    Args:
        comparison: Result of `compare_far_field`.

    Returns:
        One panel over the noise level relative to the radius: the gap, the bound and
        what the third cumulant leaves.
    """
    figure, (axes,) = open_panels(1, 7, 4.2)
    ratio = comparison.sigmas / comparison.extent.radius
    axes.plot(ratio, comparison.bound, "--", color="0.4", label="bound")
    axes.plot(ratio, comparison.gap, "o-", ms=3, color=COLOURS[0], label="gap")
    axes.plot(
        *(ratio, comparison.left, "s-"),
        ms=3,
        color=COLOURS[1],
        label="gap less third cumulant",
    )
    axes.set(xscale="log", yscale="log", ylabel="|D - D_Gaussian| (data units)")
    axes.set_xlabel("noise level / radius of the training set")
    axes.set_title("Training set against its Gaussian, median")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_score_slice(found: ScoreSlice, *, max_arrows: int = 21) -> Figure:
    """Draw a plane through the score field, a panel for each model.

    Args:
        found: Result of `score_slice`.
        max_arrows: Arrows a side at most.

    Returns:
        Arrows for the part in the plane, one scale for all panels; colours for the
        length of the whole score; crosses at the anchors.
    """
    count = len(found.names)
    figure, panels = open_panels(count, 3.6 * count + 1, 4.3)
    shown = found.magnitude[found.magnitude > 0]
    limits = (shown.min(), shown.max()) if shown.size else (0.5, 1.0)
    norm = LogNorm(limits[0], max(limits[1], limits[0] * 1.001))
    stride = -(-len(found.across) // max_arrows)
    step = found.across[stride] - found.across[0] if stride < len(found.across) else 1
    lengths = np.linalg.norm(found.vectors[:, ::stride, ::stride], axis=-1)
    scale = max(float(np.quantile(lengths, 0.95)), 1e-30) / (0.95 * step)
    mesh = None
    for index, (name, axes) in enumerate(zip(found.names, panels, strict=True)):
        mesh = axes.pcolormesh(
            found.across, found.up, found.magnitude[index], norm=norm, cmap="YlGnBu"
        )
        _draw_arrows(axes, found, index, stride, scale)
        axes.plot(*found.anchors.T, "x", color=COLOURS[1], ms=8, mew=2)
        share = float(np.median(found.out_of_plane[index]))
        axes.set(title=f"{name} ({share:.0%} off the plane)", aspect="equal")
        axes.set_xlabel("e_1 (data units)")
    panels[0].set_ylabel("e_2 (data units)")
    if mesh is not None:
        figure.colorbar(mesh, ax=panels, label="|score| (inverse data units)")
    figure.suptitle(f"Score at sigma = {found.sigma:g}")
    return figure


def _draw_arrows(
    axes: Axes, found: ScoreSlice, index: int, stride: int, scale: float
) -> None:
    vectors = found.vectors[index, ::stride, ::stride]
    axes.quiver(
        found.across[::stride],
        found.up[::stride],
        vectors[..., 0],
        vectors[..., 1],
        angles="xy",
        scale_units="xy",
        scale=scale,
        width=0.004,
        color="0.15",
    )


def _draw_quartiles(
    axes: Axes, sigmas: NDArray[np.float64], values: Quartiles, index: int, label: str
) -> None:
    colour = COLOURS[index % len(COLOURS)]
    style = "o-" if index < len(COLOURS) else "s--"
    axes.plot(sigmas, values.mean, style, ms=3, color=colour, label=label)
    axes.fill_between(sigmas, values.lower, values.upper, color=colour, alpha=0.2)


def _draw_diagonal(axes: Axes, values: NDArray[np.float64]) -> None:
    ends = [values.min() / 1.5, values.max() * 1.5]
    axes.plot(ends, ends, "--", color="0.5", lw=1)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)


def _noise_axis(axes: Axes) -> None:
    """Let sigma fall from left to right, as in sampling."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel(SIGMA_LABEL)
    axes.grid(alpha=0.3)


def _spread(count: int, most: int) -> Sequence[int]:
    """Return up to `most` indices of `count`, the first and the last among them."""
    chosen = np.linspace(0, count - 1, min(count, max(most, 1)))
    return [int(index) for index in np.unique(chosen.round())]
