"""Distances between what a combination draws and the truth's own samples.

An error of single samples says little where a solver lands on another sample of the
same distribution.  So the best rows of the table are judged a second time, by the
Frechet distance in the leading principal directions and by the sliced Wasserstein
distance of images over a Laplacian pyramid, against samples drawn from the truth.  All
rows begin at the same noise: differences between them are far finer than the floor,
the distance between two independent draws of the truth.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.metrics import frechet_in_basis, sliced_wasserstein
from benchmarks.error_vs_nfe_table import (
    SIGMA_MAX,
    Choice,
    begin,
    build_grid,
    build_solvers,
)
from benchmarks.error_vs_nfe_truth import Problem
from diffusion.progress import Progress
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.frame import cast
from samplers.search import num_points, solve
from samplers.solver import Solver, integrate
from samplers.stochastic_heun import StochasticHeun

CHURNS = (1.0, 5.0)
_FLOOR_DRAWS = 8
_EXACT_POINTS = 200
_PYRAMID: dict[str, Any] = {
    "patches_per_image": 8,
    "num_directions": 64,
    "smallest_level": 8,
}


class Distances(NamedTuple):
    """Both distances of a set of samples from the truth's."""

    frechet: float
    sliced_wasserstein: float


class Samples(NamedTuple):
    """Samples as the two distances want them.

    Attributes:
        inside: (n, d) coordinates in the span.
        images: (n, H, W, C), data units.
    """

    inside: NDArray[Any]
    images: NDArray[np.float32]


class Judge:
    """Draws the noise that every row begins at, and the truth's samples.

    Args:
        problem: The truth.
        count: Samples on either side.
        shape: (H, W, C).
        num_directions: Principal directions of the Frechet distance.
    """

    def __init__(
        self, problem: Problem, count: int, shape: tuple[int, ...], num_directions: int
    ) -> None:
        """See the class."""
        self.problem, self.shape = problem, shape
        noise = self._white(1, count)
        basis = problem.frame.basis
        inside = noise @ basis
        self._outside = noise - inside @ basis.T
        self.noise = np.append(inside, np.ones((count, 1), np.float32), axis=1)
        covariance = problem.truth.covariance()[:-1, :-1]
        self.directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :num_directions]
        self._reference = self._draw(2, count)

    def judge(self, solutions: NDArray[Any]) -> Distances:
        """Return the distances of solutions from `noise`, (n, d + 1)."""
        return self._distances(self._samples(solutions, self._outside))

    def floor(self) -> dict[str, dict[str, float]]:
        """Return mean and deviation of the distances of further draws of the truth."""
        count = len(self.noise)
        draws = [self._distances(self._draw(3 + i, count)) for i in range(_FLOOR_DRAWS)]
        return {
            name: {"mean": float(np.mean(values)), "deviation": float(np.std(values))}
            for name, values in zip(
                Distances._fields, zip(*draws, strict=True), strict=True
            )
        }

    def _distances(self, samples: Samples) -> Distances:
        reference = self._reference
        return Distances(
            frechet_in_basis(samples.inside, reference.inside, self.directions),
            sliced_wasserstein(samples.images, reference.images, **_PYRAMID),
        )

    def _draw(self, seed: int, count: int) -> Samples:
        x = self.problem.truth.sample(np.random.default_rng([seed, 0]), count)
        noise, basis = self._white(seed, count), self.problem.frame.basis
        x[:, -1] = float(self.problem.truth.residual_variance) ** 0.5
        return self._samples(x, noise - (noise @ basis) @ basis.T)

    def _samples(self, x: NDArray[Any], outside: NDArray[Any]) -> Samples:
        frame = self.problem.frame
        x = x.astype(np.float32)
        flat = frame.mean + x[:, :-1] @ frame.basis.T + x[:, -1:] * outside
        return Samples(x[:, :-1], flat.reshape(len(x), *self.shape))

    def _white(self, seed: int, count: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([seed, 1])
        return rng.standard_normal((count, len(self.problem.frame.mean)), np.float32)


def judge_rows(
    judge: Judge,
    choices: Sequence[tuple[Choice, float]],
    solvers: Mapping[str, Solver],
) -> list[dict[str, Any]]:
    """Judge some combinations; `solvers` has those of their names."""
    problem = judge.problem
    truth = cast(problem.truth, jnp.float32)
    rows: list[dict[str, Any]] = []
    progress = Progress(len(choices), label="distributions", unit="row")
    begun: dict[tuple[str, float], NDArray[np.float32]] = {}
    for choice, rms in choices:
        start = choice.family, choice.sigma_skip
        if start not in begun:
            begun[start] = begin(problem, judge.noise, *start)
        solver = solvers[choice.solver]
        grid = build_grid(
            choice.schedule,
            num_points(solver, choice.calls),
            choice.last_sigma,
            choice.sigma_skip,
        )
        x = solve(solver, truth, begun[start][None], [grid])[0]
        rows.append({**choice._asdict(), "rms": rms, **judge.judge(x)._asdict()})
        progress.advance(note=choice.solver)
    progress.close()
    return rows


def measure_distributions(
    judge: Judge, choices: list[tuple[Choice, float]], calls: tuple[int, ...]
) -> dict[str, Any]:
    """Judge some combinations, stochastic Heun, and solutions that are nearly exact."""
    rows = judge_rows(judge, choices, build_solvers(judge.problem))
    truth = cast(judge.problem.truth, jnp.float32)
    progress = Progress(len(CHURNS) * len(calls), label="stochastic Heun", unit="row")
    for churn in CHURNS:
        for budget in calls:
            found = judge.judge(_stochastic(judge, truth, churn, budget))
            rows.append({"churn": churn, "calls": budget, **found._asdict()})
            progress.advance(note="stochastic Heun")
    progress.close()
    return {
        "samples": len(judge.noise),
        "principal_directions": judge.directions.shape[1],
        "pyramid": _PYRAMID,
        "floor": judge.floor(),
        "exact_solutions": judge.judge(_nearly_exact(judge, truth))._asdict(),
        "stochastic_heun": "Karras 7, last sigma 0.002, no skip, S_min 0.05, S_max 50",
        "rows": rows,
    }


def _stochastic(judge: Judge, truth: Any, churn: float, calls: int) -> NDArray[Any]:
    solver = StochasticHeun(churn=churn, sigma_low=0.05, sigma_high=50.0)
    grid = build_grid("Karras 7", num_points(solver, calls), 0.002, SIGMA_MAX)
    keys = jax.random.split(jax.random.key(0), len(judge.noise))
    x = integrate(solver, truth, SIGMA_MAX * judge.noise, grid, keys=keys).x
    solutions = np.array(x)
    # Outside of the span the samples are white noise of one variance.  The coordinate
    # that stands for it holds noise added by the solver too; what counts is its square.
    solutions[:, -1] = np.sqrt(np.mean(solutions[:, -1] ** 2))
    return solutions


def _nearly_exact(judge: Judge, truth: Any) -> NDArray[Any]:
    solver = DPMSolverPP(order=3, variant="corrected", lower_order_final=False)
    grid = build_grid("log-uniform", _EXACT_POINTS, 0.002, SIGMA_MAX)
    return solve(solver, truth, SIGMA_MAX * judge.noise[None], [grid])[0]
