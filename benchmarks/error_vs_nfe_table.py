"""Every solver on every start and grid, against the exact solution."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from benchmarks.error_vs_nfe_truth import Problem, SharedResidualMixture, cast
from diffusion.denoiser import Denoiser
from diffusion.progress import Progress
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.dpm_solver_v3 import DPMSolverV3
from samplers.euler import Euler
from samplers.heun import Heun
from samplers.model_statistics import gaussian_statistics
from samplers.runge_kutta import dormand_prince, probability_flow, require_arrival
from samplers.schedules import karras, log_linear
from samplers.solver import Solver
from samplers.start import AnalyticPrefix, Prior, Start, Teleport
from samplers.unipc import UniPC

SIGMA_MAX = 80.0
_REFERENCE_END = 1e-4
_REFERENCE_TOLERANCE = 1e-9
_REFERENCE_STEPS = 20_000
_ROWS_AT_ONCE = 1024


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


def num_points(solver: Solver, calls: int) -> int:
    """Return the length of the longest grid that costs at most `calls`."""
    points = 1
    while solver.nfe(points + 1) <= calls:
        points += 1
    return points


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


def solve_exactly(
    problem: Problem, noise: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """Return the solutions from sigma_max * noise at noise level 0, in float64.

    The flow is followed to 1e-4 and D is called there, which leaves a relative error of
    (1e-4)^2 / 2 v.
    """
    with jax.enable_x64(True):
        truth = cast(problem.truth, jnp.float64)
        x = jnp.asarray(SIGMA_MAX * noise)
        arrival = jax.jit(_follow, static_argnums=2)(truth, x, tolerance)
        require_arrival(arrival, _REFERENCE_END, _REFERENCE_STEPS)
        return np.asarray(truth(arrival.x, _REFERENCE_END))


def _follow(truth: SharedResidualMixture, x: Array, tolerance: float) -> Any:
    return dormand_prince(
        probability_flow(truth),
        x,
        SIGMA_MAX,
        _REFERENCE_END,
        rtol=tolerance,
        atol=tolerance,
        max_steps=_REFERENCE_STEPS,
    )


def measure_reference(
    problem: Problem, noise: NDArray[np.float64]
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Return the exact solutions, and how far they change with a looser tolerance."""
    exact = solve_exactly(problem, noise, _REFERENCE_TOLERANCE)
    looser = solve_exactly(problem, noise, 100 * _REFERENCE_TOLERANCE)
    scale = rms_error(np.zeros_like(exact), exact, problem.frame.outside)
    change = float(rms_error(looser, exact, problem.frame.outside) / scale)
    assert change < 1e-6, f"the reference has not converged: {change:.1e}"
    return exact, {
        "tolerance": _REFERENCE_TOLERANCE,
        "relative_change_from_100_times_the_tolerance": change,
        "rms": float(scale),
    }


def rms_error(
    x: NDArray[Any], exact: NDArray[np.float64], outside: int
) -> NDArray[np.float64]:
    """Return the root mean square over samples and D pixels.

    Args:
        x: (..., B, d + 1).
        exact: (B, d + 1).
        outside: Directions that the last coordinate stands for.
    """
    weights = np.append(np.ones(exact.shape[1] - 1), float(outside))
    squares = (np.asarray(x, np.float64) - exact) ** 2 @ weights
    return np.sqrt(squares.mean(axis=-1) / weights.sum())


def measure_table(
    problem: Problem,
    grids: Grids,
    noise: NDArray[np.float64],
    exact: NDArray[np.float64],
) -> Table:
    """Run every solver from every start on every grid."""
    solvers, starts = build_solvers(problem), list_starts(grids)
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
                solve(solver, truth, x, some), exact, problem.frame.outside
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


def solve(
    solver: Solver,
    denoiser: Denoiser,
    x: NDArray[Any],
    grids: Sequence[NDArray[np.float64]],
) -> NDArray[Any]:
    """Integrate along many grids of one length at once.

    One step serves all lengths, so a solver is compiled once.

    Args:
        solver: Any deterministic one.
        denoiser: The truth.
        x: (G, B, d + 1), at the first point of each grid.
        grids: G grids of L points.

    Returns:
        (G, B, d + 1), samples at noise level 0, in the dtype of `x`.
    """
    plans = _plans(solver, grids)
    at_once = max(1, _ROWS_AT_ONCE // x.shape[1])
    results = []
    for start in range(0, len(x), at_once):
        # The last group is filled up: one shape for all.
        index = np.minimum(np.arange(start, start + at_once), len(x) - 1)
        first = jnp.asarray([grids[i][0] for i in index], x.dtype)
        state = _init(solver, denoiser, jnp.asarray(x[index]), first)
        for i in range(len(grids[0]) - 1):
            row = jax.tree.map(functools.partial(_row, index, i, x.dtype), plans)
            state = _step(solver, denoiser, state, row)
        results.append(np.asarray(state.denoised))
    return np.concatenate(results)[: len(x)]


def _row(
    index: NDArray[np.intp], step: int, dtype: Any, plans: NDArray[np.float64]
) -> Array:
    return jnp.asarray(plans[index, step], dtype)


def _plans(solver: Solver, grids: Sequence[NDArray[np.float64]]) -> Any:
    """Return the plans of all grids, stacked; equal grids are planned once."""
    known: dict[bytes, Any] = {}
    for grid in grids:
        if grid.tobytes() not in known:
            known[grid.tobytes()] = solver.plan(grid)
    plans = [known[grid.tobytes()] for grid in grids]
    return jax.tree.map(lambda *rows: np.stack(rows), *plans)


@jax.jit
def _init(solver: Solver, denoiser: Denoiser, x: Array, sigmas: Array) -> Any:
    return jax.vmap(functools.partial(solver.init, denoiser))(x, sigmas)


@jax.jit
def _step(solver: Solver, denoiser: Denoiser, state: Any, row: Any) -> Any:
    return jax.vmap(functools.partial(solver.step, denoiser))(state, row)
