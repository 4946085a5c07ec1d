"""The benchmark's second part: the residual integrator, and tuning without the truth.

The residual integrator is given the truth's own Gaussian, or that of the other half of
the images (whole, with half of its directions, or with all variances but the leading
ones 30 times too large), each with its variances and with gains measured on the truth.
Gains ask nothing of the variances, so the wrong ones have no row with gains.

Tuned rows are chosen on the coarse mixture of the other half alone, where exact
solutions are known as well, and only then judged on the truth; so are the published
solvers, for comparison.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.error_vs_nfe_distribution import Judge, judge_rows
from benchmarks.error_vs_nfe_report import KINDS, best_of, describe, write_compactly
from benchmarks.error_vs_nfe_table import (
    SIGMA_MAX,
    Choice,
    Grids,
    Table,
    build_solvers,
    list_starts,
    measure_table,
)
from benchmarks.error_vs_nfe_truth import Problem
from diffusion.closed_form import GaussianDenoiser
from samplers.frame import SharedResidualMixture, cast
from samplers.residual_exponential import ResidualExponential
from samplers.schedules import log_linear
from samplers.search import solve_exactly
from samplers.solver import Solver
from samplers.surrogate import measure_gains_in_frame

ORDERS = (1, 2, 3)
GAIN_LEVELS = 20
GAIN_IMAGES = 512
_SAMPLES = 4096  # of the truth, that gains are measured on
_WRONG = 30.0
_MOST_CALLS = 15
_TRIED = 10
_TRIED_PER_SOLVER = 3


def list_gaussians(problem: Problem) -> dict[str, GaussianDenoiser]:
    """Return the affine parts that the residual integrator is given, by name."""
    fitted, outside = problem.gaussian, problem.frame.outside
    rank = fitted.basis.shape[1]
    wrong = np.where(np.arange(rank) < rank // 4, 1.0, _WRONG)
    return {
        "own": own_gaussian(problem.truth),
        f"fitted {rank}": fitted,
        f"fitted {rank // 2}": _cut(fitted, rank // 2, outside),
        "wrong": GaussianDenoiser(
            fitted.mean,
            fitted.basis,
            np.asarray(fitted.variances) * wrong,  # pyright: ignore[reportArgumentType]
            np.asarray(fitted.residual_variance) * _WRONG,  # pyright: ignore[reportArgumentType]
        ),
    }


def own_gaussian(truth: SharedResidualMixture) -> GaussianDenoiser:
    """Return the Gaussian with a mixture's mean and covariance, of all directions."""
    weights = np.asarray(jax.nn.softmax(truth.log_weights), np.float64)
    variances, vectors = np.linalg.eigh(truth.covariance()[:-1, :-1])
    return GaussianDenoiser(
        weights @ np.asarray(truth.means),  # pyright: ignore[reportArgumentType]
        np.pad(vectors[:, ::-1], ((0, 1), (0, 0))),  # pyright: ignore[reportArgumentType]
        variances[::-1].copy(),  # pyright: ignore[reportArgumentType]
        truth.residual_variance,
    )


def _cut(gaussian: GaussianDenoiser, rank: int, outside: int) -> GaussianDenoiser:
    """Cut a Gaussian as its `truncated` does, but counting all D directions."""
    variances = np.asarray(gaussian.variances)
    dimension = len(gaussian.basis) - 1 + outside
    left = (dimension - len(variances)) * float(np.asarray(gaussian.residual_variance))
    residual = (variances[rank:].sum() + left) / (dimension - rank)
    return GaussianDenoiser(
        gaussian.mean, gaussian.basis[:, :rank], gaussian.variances[:rank], residual
    )


def build_residual_solvers(problem: Problem) -> dict[str, Solver]:
    """Return the residual integrator of every order with every affine part."""
    truth = cast(problem.truth, jnp.float32)
    clean = problem.truth.sample(np.random.default_rng([7, 0]), _SAMPLES)
    found: dict[str, Solver] = {}
    for name, wide in list_gaussians(problem).items():
        gaussian = cast(wide, jnp.float32)
        parts: dict[str, Any] = {name: gaussian}
        if name != "wrong":
            parts[f"{name}, gains"] = measure_gains_in_frame(
                truth,
                gaussian,
                clean.astype(np.float32),
                log_linear(GAIN_LEVELS, 0.002, SIGMA_MAX),
                jax.random.key(7),
                rank=gaussian.basis.shape[1],
                outside=problem.frame.outside,
                num_images=GAIN_IMAGES,
            )
        for part, affine in parts.items():
            for order in ORDERS:
                solver = ResidualExponential(affine, order=order, rank=None)
                found[f"residual {order}, {part}"] = solver
    return found


def affine_part(solver: str) -> str:
    """Return such as "fitted 128, gains" from "residual 2, fitted 128, gains"."""
    return solver.partition(", ")[2]


def measure_ours(
    problem: Problem,
    grids: Grids,
    noise: NDArray[np.float64],
    exact: NDArray[np.float64],
    published: Table,
    judge: Judge,
) -> dict[str, Any]:
    """Run the second part.

    Args:
        problem: The truth.
        grids: What is searched over, up to 15 calls of it.
        noise: (B, d + 1).
        exact: (B, d + 1).
        published: The first part's table, of the same truth and noise.
        judge: Of distances between distributions.
    """
    grids = grids._replace(calls=tuple(c for c in grids.calls if c <= _MOST_CALLS))
    solvers = build_residual_solvers(problem)
    starts = [start for start in list_starts(grids) if start[0] != "prefix"]
    table = measure_table(problem, grids, noise, exact, solvers=solvers, starts=starts)
    least = {c.calls: rms for c, rms in best_of(published, KINDS["published"])}
    best = {
        part: best_of(table, lambda c, p=part: affine_part(c.solver) == p)
        for part in dict.fromkeys(map(affine_part, solvers))
    }
    known = dict([*published.choices(), *table.choices()])
    tuned = tune_on_coarse(problem, grids, noise, known)
    to_judge = [row for rows in best.values() for row in rows]
    to_judge += [
        (Choice(*(row[name] for name in Choice._fields)), row["rms"])
        for rows in tuned.values()
        for row in rows
    ]
    every = {**build_solvers(problem), **solvers}
    return {
        "calls": list(grids.calls),
        "best": {part: list(map(describe, rows)) for part, rows in best.items()},
        "ratio_to_best_published": {
            part: [rms / least[choice.calls] for choice, rms in rows]
            for part, rows in best.items()
        },
        "tuned": tuned,
        "distributions": judge_rows(judge, list(dict.fromkeys(to_judge)), every),
        "table": write_compactly(table),
    }


def tune_on_coarse(
    problem: Problem,
    grids: Grids,
    noise: NDArray[np.float64],
    known: dict[Choice, float],
) -> dict[str, list[dict[str, Any]]]:
    """Choose on the coarse mixture; return the choices with their errors on the truth.

    Args:
        problem: Of which only the coarse mixture and the Gaussian are used.
        grids: What is searched over.
        noise: (B, d + 1).
        known: Errors on the truth.

    Returns:
        By what was searched ("published", "all"), one row per number of calls:
        `predicted` on the coarse mixture, `rms` on the truth, and the least rms of the
        ten best there, at most three of one solver.
    """
    coarse = problem._replace(truth=problem.coarse)
    exact = solve_exactly(coarse.truth, noise, SIGMA_MAX)
    rank = problem.gaussian.basis.shape[1]
    ours = {
        name: solver
        for name, solver in build_residual_solvers(coarse).items()
        if affine_part(name) == f"fitted {rank}, gains"
    }
    starts = [start for start in list_starts(grids) if start[0] != "prefix"]
    solvers = {**build_solvers(coarse), **ours}
    table = measure_table(coarse, grids, noise, exact, solvers=solvers, starts=starts)
    kinds: dict[str, Callable[[Choice], bool]] = {
        "published": lambda c: c.solver not in ours and KINDS["published"](c),
        "all": lambda c: True,
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for name, kind in kinds.items():
        for calls in grids.calls:
            rows = [
                row for row in table.choices() if row[0].calls == calls and kind(row[0])
            ]
            tried = _first(sorted(rows, key=lambda row: row[1]))
            choice, predicted = tried[0]
            found[name].append(
                {
                    **choice._asdict(),
                    "predicted": predicted,
                    "rms": known[choice],
                    "least_rms_of_ten": min(known[choice] for choice, _ in tried),
                }
            )
    return found


def _first(rows: Iterable[tuple[Choice, float]]) -> list[tuple[Choice, float]]:
    kept: list[tuple[Choice, float]] = []
    for row in rows:
        same = sum(other.solver == row[0].solver for other, _ in kept)
        if same < _TRIED_PER_SOLVER and len(kept) < _TRIED:
            kept.append(row)
    return kept
