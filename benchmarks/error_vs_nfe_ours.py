"""The benchmark's second part: what this project adds, on the same truth.

Published solvers are searched as in the first part, and with their order kept to the
end too (``lower_order_final=False``).  Against them stand the residual integrator and
DPM-Solver-v3, given

* the truth's own Gaussian,
* that of the other half of the images, whole or with half of its directions,
* that with all variances but the leading ones 30 times too large ("wrong"),

each with its variances and with gains measured on the truth (which ask nothing of the
variances, so the wrong ones with gains are the fitted ones with gains); from every
start, a teleport by the other half's Gaussian and a prefix by its coarse mixture among
them.

Tuned rows are chosen on the coarse mixture of the other half alone, and only then
judged on the truth; so are the published solvers, for comparison.  Automatic rows take
the skip that `samplers.skip` predicts.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.error_vs_nfe_auto import measure_auto
from benchmarks.error_vs_nfe_distribution import Judge, judge_rows
from benchmarks.error_vs_nfe_report import best_of, describe, plain, write_compactly
from benchmarks.error_vs_nfe_table import (
    SIGMA_MAX,
    Choice,
    Grids,
    Table,
    list_starts,
    measure_table,
)
from benchmarks.error_vs_nfe_truth import Problem
from diffusion.closed_form import GaussianDenoiser
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.dpm_solver_v3 import DPMSolverV3
from samplers.frame import SharedResidualMixture, cast, variance_beyond
from samplers.residual_exponential import ResidualExponential
from samplers.schedules import log_linear
from samplers.search import solve_exactly
from samplers.solver import Solver
from samplers.surrogate import measure_gains_in_frame
from samplers.unipc import UniPC

CALLS = (5, 6, 8, 10, 15)
ORDERS = (1, 2, 3)
GAIN_LEVELS = 20
GAIN_IMAGES = 512
_SAMPLES = 4096  # of the truth, that gains are measured on
_WRONG = 30.0
KEPT = ", order kept"
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
    dimension = len(gaussian.basis) - 1 + outside
    residual = variance_beyond(gaussian, rank, dimension)
    return GaussianDenoiser(
        gaussian.mean, gaussian.basis[:, :rank], gaussian.variances[:rank], residual
    )


def build_published_solvers() -> dict[str, Solver]:
    """Return the published multistep solvers, by their names in the first part.

    Each a second time with its order kept to the end.
    """
    found: dict[str, Solver] = {}
    for name, falls in (("", True), (KEPT, False)):
        for variant in ("midpoint", "taylor"):
            found[f"DPM++ 2M {variant}{name}"] = DPMSolverPP(2, variant, False, falls)
        found[f"DPM++ 3M published{name}"] = DPMSolverPP(3, None, False, falls)
        for order, variant in itertools.product((2, 3), ("bh1", "bh2")):
            solver = UniPC(order, variant, True, falls)
            found[f"UniPC-{order} {variant}{name}"] = solver
    return found


def build_our_solvers(problem: Problem) -> dict[str, Solver]:
    """Return the residual integrator of every order with every affine part.

    Orders 2 and 3 are kept to the end, which is better everywhere here.  With gains of
    the other half's directions, DPM-Solver-v3 joins.
    """
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
                rank=min(gaussian.basis.shape[1], problem.gaussian.basis.shape[1]),
                outside=problem.frame.outside,
                num_images=GAIN_IMAGES,
            )
        for part, affine in parts.items():
            for order in ORDERS:
                found[f"residual {order}, {part}"] = ResidualExponential(
                    affine, order=order, rank=None, lower_order_final=False
                )
        if name == fitted_name(problem):
            part = f"{name}, gains"
            for order in (2, 3):
                found[f"v3-{order}, {part}"] = DPMSolverV3(
                    parts[part], order=order, lower_order_final=False
                )
    return found


def fitted_name(problem: Problem) -> str:
    """Return the name of the other half's whole Gaussian."""
    return f"fitted {problem.gaussian.basis.shape[1]}"


def affine_part(solver: str) -> str:
    """Return such as "fitted 128, gains" from "residual 2, fitted 128, gains"."""
    return solver.partition(", ")[2]


def measure_ours(
    problem: Problem,
    grids: Grids,
    noise: NDArray[np.float64],
    exact: NDArray[np.float64],
    judge: Judge,
) -> dict[str, Any]:
    """Run the second part.

    Args:
        problem: The truth.
        grids: What is searched over.
        noise: (B, d + 1).
        exact: (B, d + 1).
        judge: Of distances between distributions.
    """
    published, ours = build_published_solvers(), build_our_solvers(problem)
    starts = list_starts(grids)
    theirs = _measure(problem, grids, noise, exact, published)
    table = measure_table(problem, grids, noise, exact, solvers=ours, starts=starts)
    best = {
        "published, order falls": best_of(theirs, lambda c: KEPT not in c.solver),
        "published": best_of(theirs, lambda c: True),
        "published, no skip": best_of(theirs, lambda c: c.family == "none"),
    }
    best |= best_of_ours(table)
    known = dict([*theirs.choices(), *table.choices()])
    tuned = tune_on_coarse(problem, grids, noise, known)
    to_judge = [row for rows in best.values() for row in rows]
    to_judge += [
        (Choice(*(row[name] for name in Choice._fields)), row["rms"])
        for rows in tuned.values()
        for row in rows
    ]
    every = {**published, **ours}
    return {
        "calls": list(grids.calls),
        "plain_rms": plain(theirs),
        "best": {name: list(map(describe, rows)) for name, rows in best.items()},
        "ratio_to_best_published": _ratios(best, "published"),
        "ratio_to_best_published_whose_order_falls": _ratios(
            best, "published, order falls"
        ),
        "tuned": tuned,
        "auto": measure_auto(problem, grids, every, known),
        "distributions": {
            "floor": judge.floor(),
            "rows": judge_rows(judge, list(dict.fromkeys(to_judge)), every),
        },
        "table": {"published": write_compactly(theirs), "ours": write_compactly(table)},
    }


def best_of_ours(table: Table) -> dict[str, list[tuple[Choice, float]]]:
    """Return the best rows of the residual integrator by affine part, and of v3.

    Each twice: from no skip and teleports, and from prefixes too.
    """
    found: dict[str, list[tuple[Choice, float]]] = {}
    kinds = dict.fromkeys((kind_of(s), affine_part(s)) for s in table.solvers)
    for (kind, part), prefix in itertools.product(kinds, (False, True)):
        name = part if kind == "residual" else f"{kind}, {part}"
        found[f"{name}, prefix" if prefix else name] = best_of(
            table,
            lambda c, k=(kind, part), q=prefix: (
                (kind_of(c.solver), affine_part(c.solver)) == k
                and (q or c.family != "prefix")
            ),
        )
    return found


def kind_of(solver: str) -> str:
    """Return "residual" from "residual 2, own", "v3" from "v3-2, own"."""
    return re.split(r"[ -]", solver)[0]


def _measure(
    problem: Problem,
    grids: Grids,
    noise: NDArray[np.float64],
    exact: NDArray[np.float64],
    solvers: dict[str, Solver],
) -> Table:
    """Run solvers from no skip and from teleports."""
    starts = [start for start in list_starts(grids) if start[0] != "prefix"]
    return measure_table(problem, grids, noise, exact, solvers=solvers, starts=starts)


def _ratios(
    best: dict[str, list[tuple[Choice, float]]], reference: str
) -> dict[str, list[float]]:
    least = {choice.calls: rms for choice, rms in best[reference]}
    return {
        name: [rms / least[choice.calls] for choice, rms in rows]
        for name, rows in best.items()
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
    published = build_published_solvers()
    ours = {
        name: solver
        for name, solver in build_our_solvers(coarse).items()
        if affine_part(name) == f"{fitted_name(problem)}, gains"
    }
    table = _measure(coarse, grids, noise, exact, {**published, **ours})
    kinds: dict[str, Callable[[Choice], bool]] = {
        "published": lambda c: c.solver in published,
        "all": lambda c: True,
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for (name, kind), calls in itertools.product(kinds.items(), grids.calls):
        rows = [row for row in table.choices() if row[0].calls == calls]
        rows = sorted((row for row in rows if kind(row[0])), key=lambda row: row[1])
        tried = _first(rows)
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
