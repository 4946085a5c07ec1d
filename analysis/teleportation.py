"""What a skip by analytical teleportation saves, and what it changes.

From the same noise: the whole grid, the grid's tail after a teleport, the same tail
started at sigma * noise (the control, which shows what the Gaussian contributes), and
the Gaussian alone.  Source: Wang & Vastola, arXiv 2412.09726.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser
from samplers import Heun, Prior, Solution, Solver, Start, Teleport, sample
from samplers.schedules import check_grid

__all__ = ["StartComparison", "TimedSamples", "compare_starts"]


class TimedSamples(NamedTuple):
    """Samples and what they cost.

    Attributes:
        x: (n, *event), data units.
        nfe: Denoiser calls.
        seconds: Wall time of all n samples, compilation excluded.
    """

    x: NDArray[np.float32]
    nfe: int
    seconds: float


class StartComparison(NamedTuple):
    """Four ways from the same noise.

    Attributes:
        sigma_skip: Where the short grids start, data units.
        plain: The denoiser on the whole grid.
        teleported: The denoiser on the tail, after a teleport.
        control: The denoiser on the tail, from sigma_skip * noise.
        gaussian: The Gaussian's own flow, exact.
        teleported_rms: Distance of `teleported` from `plain`, root mean square per
            element, data units.
        control_rms: The same of `control`.
    """

    sigma_skip: float
    plain: TimedSamples
    teleported: TimedSamples
    control: TimedSamples
    gaussian: TimedSamples
    teleported_rms: float
    control_rms: float


def compare_starts(
    denoiser: Denoiser,
    gaussian: GaussianDenoiser,
    key: Array,
    shape: tuple[int, ...],
    sigmas: ArrayLike,
    *,
    skip_points: int,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
) -> StartComparison:
    """Sample with and without teleportation from the same noise.

    Args:
        denoiser: The model, usually a network.
        gaussian: The Gaussian of its training images.
        key: A `jax.random.key`.
        shape: (n, *event).
        sigmas: The whole noise grid, (L,).
        skip_points: Number of grid points that the teleport leaves out, in [1, L).
        solver: How to move along the grids.

    Returns:
        Samples, costs and distances.

    Raises:
        InputError: If `skip_points` is out of range.
    """
    grid = check_grid(sigmas)
    if not 1 <= skip_points < grid.size:
        raise InputError(
            f"skip_points is {skip_points}; it must be in [1, {grid.size})"
        )
    tail = grid[skip_points:]
    teleport = Teleport(gaussian, grid[0])

    def run(model: Denoiser, points: NDArray[np.float64], start: Start) -> TimedSamples:
        return _timed(
            lambda: sample(model, key, shape, points, solver=solver, start=start)
        )

    plain = run(denoiser, grid, Prior())
    teleported = run(denoiser, tail, teleport)
    control = run(denoiser, tail, Prior())
    return StartComparison(
        sigma_skip=float(tail[0]),
        plain=plain,
        teleported=teleported,
        control=control,
        gaussian=run(gaussian, grid[-1:], teleport),
        teleported_rms=_rms(teleported.x, plain.x),
        control_rms=_rms(control.x, plain.x),
    )


def _timed(draw: Callable[[], Solution]) -> TimedSamples:
    """Draw twice; the first time compiles."""
    jax.block_until_ready(draw().x)
    started = time.perf_counter()
    solution = draw()
    x = np.asarray(jax.block_until_ready(solution.x))
    return TimedSamples(x, int(solution.nfe), time.perf_counter() - started)


def _rms(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64) - b))))
