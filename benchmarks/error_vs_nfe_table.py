"""Every solver on every start and grid, against the exact solution."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.error_vs_nfe_truth import Problem
from diffusion.progress import Progress
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.dpm_solver_v3 import DPMSolverV3
from samplers.euler import Euler
from samplers.frame import cast
from samplers.heun import Heun
from samplers.model_statistics import gaussian_statistics
from samplers.schedules import karras, log_linear
from samplers.search import num_points, rms_error, solve, solve_exactly
from samplers.solver import Solver
from samplers.start import AnalyticPrefix, Prior, Start, Teleport
from samplers.unipc import UniPC

SIGMA_MAX = 80.0
_REFERENCE_TOLERANCE = 1e-9


class Grids(NamedTuple):
    """What is searched over; names as they stand in the table."""

    sigma_skips: tuple[float, ...] = (40.0, 20.0, 10.0, 5.0, 2.5)
    schedules: tuple[str, ...] = (
        "log-uniform",
        "Karras 2",
        "Karras 3",
        "Karras 5",
        "Karras 7",
        "Karras 10",
    )
    last_sigmas: tuple[float, ...] = (0.002, 0.02, 0.05)
    calls: tuple[int, ...] = (5, 6, 8, 10, 12, 15, 20, 25)


class Choice(NamedTuple):
    """One combination: where it starts, how it steps, and on which grid."""

    solver: str
    family: str
    sigma_skip: float
    schedule: str
    last_sigma: float
    calls: int

    @property
    def start(self) -> str:
        """Name of family and noise level."""
        return start_name(self.family, self.sigma_skip)


class Table(NamedTuple):
    """Errors, (solver, start, schedule, last sigma, calls), and the axes' names."""

    rms: NDArray[np.float64]
    solvers: list[str]
    starts: list[tuple[str, float]]
    grids: Grids

    def choices(self) -> Iterator[tuple[Choice, float]]:
        """Yield every combination with its error."""
        axes = (
            self.solvers,
            self.starts,
            self.grids.schedules,
            self.grids.last_sigmas,
            self.grids.calls,
        )
        for names, rms in zip(
            itertools.product(*axes), self.rms.ravel().tolist(), strict=True
        ):
            solver, (family, skip), schedule, last, calls = names
            yield Choice(solver, family, skip, schedule, last, calls), rms


def start_name(family: str, sigma_skip: float) -> str:
    """Return such as "teleport 20"."""
    return "none" if family == "none" else f"{family} {sigma_skip:g}"


def build_solvers(problem: Problem) -> dict[str, Solver]:
    """Return every deterministic solver by its name in the table."""
    statistics = gaussian_statistics(cast(problem.gaussian, jnp.float32))
    return {
        "Euler": Euler(),
        "Heun": Heun(),
        "DPM++ 2M midpoint": DPMSolverPP(order=2, variant="midpoint"),
        "DPM++ 2M taylor": DPMSolverPP(order=2, variant="taylor"),
        "DPM++ 3M published": DPMSolverPP(order=3, variant="published"),
        "DPM++ 3M corrected": DPMSolverPP(order=3, variant="corrected"),
        "DPM++ 2S": DPMSolverPP(order=2, singlestep=True),
        "DPM++ 3S": DPMSolverPP(order=3, singlestep=True),
        "UniPC-2 bh1": UniPC(order=2, variant="bh1"),
        "UniPC-2 bh2": UniPC(order=2, variant="bh2"),
        "UniPC-3 bh1": UniPC(order=3, variant="bh1"),
        "UniPC-3 bh2": UniPC(order=3, variant="bh2"),
        "v3-2 Gaussian": DPMSolverV3(statistics, order=2),
        "v3-3 Gaussian": DPMSolverV3(statistics, order=3),
    }


OURS = ("DPM++ 3M corrected", "v3-2 Gaussian", "v3-3 Gaussian")
"""Solvers that are not what their authors published: of the rest, on no start or a
teleport, the best is called the best published."""


def build_starts(problem: Problem, family: str) -> Start:
    """Return the start of a family."""
    if family == "none":
        return Prior()
    if family == "teleport":
        return Teleport(cast(problem.gaussian, jnp.float32), SIGMA_MAX)
    return AnalyticPrefix(cast(problem.coarse, jnp.float32), SIGMA_MAX)


def list_starts(grids: Grids) -> list[tuple[str, float]]:
    """Return every start as family and noise level."""
    return [("none", SIGMA_MAX)] + [
        (family, skip)
        for family in ("teleport", "prefix")
        for skip in grids.sigma_skips
    ]


def build_grid(
    schedule: str, points: int, last_sigma: float, first_sigma: float
) -> NDArray[np.float64]:
    """Return a grid spread anew over [first sigma, last sigma]."""
    if schedule == "log-uniform":
        return log_linear(points, last_sigma, first_sigma)
    return karras(points, last_sigma, first_sigma, rho=float(schedule.split()[1]))


def draw_noise(seed: int, count: int, dimension: int) -> NDArray[np.float64]:
    """Return white noise in the span, and 1 for the coordinate outside of it."""
    noise = np.random.default_rng(seed).normal(size=(count, dimension))
    return np.concatenate([noise, np.ones((count, 1))], axis=1)


def measure_reference(
    problem: Problem, noise: NDArray[np.float64]
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Return the exact solutions, and how far they change with a looser tolerance."""
    tolerances = _REFERENCE_TOLERANCE, 100 * _REFERENCE_TOLERANCE
    exact, looser = (
        solve_exactly(problem.truth, noise, SIGMA_MAX, tolerance)
        for tolerance in tolerances
    )
    weights = problem.frame.weights
    scale = rms_error(np.zeros_like(exact), exact, weights)
    change = float(rms_error(looser, exact, weights) / scale)
    assert change < 1e-6, f"the reference has not converged: {change:.1e}"
    return exact, {
        "tolerance": _REFERENCE_TOLERANCE,
        "relative_change_from_100_times_the_tolerance": change,
        "rms": float(scale),
    }


def measure_table(
    problem: Problem,
    grids: Grids,
    noise: NDArray[np.float64],
    exact: NDArray[np.float64],
    *,
    solvers: dict[str, Solver] | None = None,
    starts: list[tuple[str, float]] | None = None,
) -> Table:
    """Run every solver from every start on every grid.

    Args:
        problem: The truth.
        grids: What is searched over.
        noise: (B, d + 1).
        exact: (B, d + 1), the truth's solutions from it.
        solvers: By name; None for those of `build_solvers`.
        starts: Family and noise level; None for all of them.
    """
    solvers = build_solvers(problem) if solvers is None else solvers
    starts = list_starts(grids) if starts is None else starts
    truth = cast(problem.truth, jnp.float32)
    begun = {
        start: begin(problem, noise.astype(np.float32), *start) for start in starts
    }
    shape = (
        len(solvers),
        len(starts),
        len(grids.schedules),
        len(grids.last_sigmas),
        len(grids.calls),
    )
    rms = np.zeros(shape)
    progress = Progress(len(solvers) * len(grids.calls), label="table", unit="row")
    for i, (name, solver) in enumerate(solvers.items()):
        for j, calls in enumerate(grids.calls):
            points = num_points(solver, calls)
            axes = list(itertools.product(starts, grids.schedules, grids.last_sigmas))
            some = [build_grid(s, points, last, skip) for (_, skip), s, last in axes]
            x = np.stack([begun[start] for start, _, _ in axes])
            errors = rms_error(
                solve(solver, truth, x, some), exact, problem.frame.weights
            )
            rms[i, ..., j] = errors.reshape(shape[1:4])
            progress.advance(note=f"{name}, {calls} calls")
    progress.close()
    return Table(rms, list(solvers), starts, grids)


def begin(
    problem: Problem, noise: NDArray[Any], family: str, sigma_skip: float
) -> NDArray[Any]:
    """Return x at the noise level where the solver begins, (B, d + 1)."""
    start = build_starts(problem, family)
    return np.asarray(start(jnp.asarray(noise), sigma_skip))
