"""Sampling as a rotation: trajectories that nearly stay in a plane.

From x = x_0 + sigma n it follows that x_sigma = D + sigma (predicted noise); where D is
already x_0 and the predicted noise still that of the start,

    x_sigma ~ x_0 + (sigma / sigma_T) (x_T - x_0),

a path in span(x_0, x_T), which in the variance-preserving frame is a rotation (Wang &
Vastola, arXiv 2303.02490).  Under the Gaussian model a mode of variance lambda follows
sqrt(lambda + sigma^2) where the plane has sqrt(lambda) + sigma, up to terms of order
1/sigma_T: exact for variances 0 and infinity, worst near sigma^2 = lambda.
"""

from typing import Any, NamedTuple

import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from analysis.trajectories import (
    DenoiserOf,
    Quartiles,
    quartile_cells,
    quartiles_of,
    trace_blocks,
)
from configs.errors import InputError
from diffusion.denoiser import Denoiser
from samplers import Heun, Solver
from samplers.schedules import check_grid

__all__ = ["RotationPlane", "measure_rotation", "rotation_rows"]


class RotationPlane(NamedTuple):
    """How nearly a model's trajectories stay in a plane.

    Attributes:
        sigmas: (L,) noise grid, data units.
        num_samples: Trajectories behind every number.
        outside_plane: Share of |x_0|^2 outside of span(x_T, x_sigma), (L,) each.
        outside_span: Share outside of the span of all x from x_T to x_sigma.
        off_ansatz: |x_sigma - x_0 - (sigma/sigma_T)(x_T - x_0)|^2 / |x_sigma|^2.
        position_variance: (n,) variance that the first two principal components of a
            trajectory explain, in the frame x / sqrt(1 + sigma^2), in which it turns
            and does not only shrink.
        step_variance: (n,) the same of its steps.
    """

    sigmas: NDArray[np.float64]
    num_samples: int
    outside_plane: Quartiles
    outside_span: Quartiles
    off_ansatz: Quartiles
    position_variance: NDArray[np.float64]
    step_variance: NDArray[np.float64]


def measure_rotation(
    denoiser: Denoiser,
    key: Array,
    *,
    shape: tuple[int, ...],
    sigmas: ArrayLike,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    block_size: int = 64,
    denoiser_of: DenoiserOf | None = None,
) -> RotationPlane:
    """Measure how nearly a model's trajectories stay in the plane of noise and sample.

    Args:
        denoiser: Any `Denoiser`.
        key: A `jax.random.key`; trajectory i uses ``fold_in(key, i)``.
        shape: (n, *event).
        sigmas: (L,) noise grid, at least two points.
        solver: How to move along the grid.
        block_size: Trajectories at once.
        denoiser_of: See `analysis.trajectories.trace_blocks`.

    Returns:
        See `RotationPlane`.

    Raises:
        InputError: If the grid or a shape is not as described.
    """
    grid = check_grid(sigmas)
    if grid.size < 2:
        raise InputError("the grid has one point; a trajectory needs at least two")
    curves, variances = [], []
    blocks = trace_blocks(
        denoiser,
        key,
        shape,
        grid,
        solver=solver,
        block_size=block_size,
        denoiser_of=denoiser_of,
    )
    for trace in blocks:
        x = np.asarray(trace.x).reshape(grid.size, trace.x.shape[1], -1)
        final = np.asarray(trace.denoised[-1]).reshape(x.shape[1], -1)
        rounding = 30 * float(np.finfo(x.dtype).eps)
        for path, x0 in zip(x.swapaxes(0, 1), final, strict=True):
            path, x0 = path.astype(np.float64), x0.astype(np.float64)
            curves.append(_plane_curves(path, x0, grid, rounding))
            positions = path / np.sqrt(1 + grid**2)[:, None]
            steps = np.diff(positions, axis=0)
            variances.append((_share_of_two(positions), _share_of_two(steps)))
    plane, span, ansatz = np.stack(curves, axis=-1)
    found = np.array(variances)
    return RotationPlane(
        sigmas=grid,
        num_samples=len(found),
        outside_plane=quartiles_of(plane),
        outside_span=quartiles_of(span),
        off_ansatz=quartiles_of(ansatz),
        position_variance=found[:, 0],
        step_variance=found[:, 1],
    )


def _plane_curves(
    path: NDArray[np.float64],
    x0: NDArray[np.float64],
    sigmas: NDArray[np.float64],
    rounding: float,
) -> NDArray[np.float64]:
    """Return the curves of one trajectory (L, D) that ends in x0 (D,), (3, L)."""
    start, power = path[0], x0 @ x0
    first = start / np.linalg.norm(start)
    off = path - np.outer(path @ first, first)
    lengths = np.linalg.norm(off, axis=1)
    # The second direction is rounding where x_sigma is still along x_T.
    known = lengths > rounding * np.linalg.norm(path, axis=1)
    second = (off @ x0) / np.where(known, lengths, 1)
    in_plane = (first @ x0) ** 2 + np.where(known, second, 0) ** 2
    columns = np.linalg.qr(path.T)[0]
    in_span = np.cumsum((x0 @ columns) ** 2)
    # With fewer dimensions than points, later columns add nothing.
    in_span = np.pad(in_span, (0, len(path) - len(in_span)), mode="edge")
    line = x0 + (sigmas / sigmas[0])[:, None] * (start - x0)
    gap = np.sum((path - line) ** 2, axis=1) / np.sum(path**2, axis=1)
    return np.stack([1 - in_plane / power, 1 - in_span / power, gap])


def _share_of_two(rows: NDArray[np.float64]) -> float:
    """Return the variance of rows (n, D) that two principal components explain."""
    squared = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    return float(squared[:2].sum() / squared.sum())


def rotation_rows(rotation: RotationPlane) -> list[dict[str, Any]]:
    """Return a row of plain numbers per grid point, for a table."""
    return [
        {
            "sigma": float(sigma),
            **quartile_cells("outside_plane", rotation.outside_plane, (level,)),
            **quartile_cells("outside_span", rotation.outside_span, (level,)),
            **quartile_cells("off_ansatz", rotation.off_ansatz, (level,)),
        }
        for level, sigma in enumerate(rotation.sigmas)
    ]
