"""Automatic rows: the skip that is predicted, against the best of the fixed ones.

`samplers.skip` follows 64 samples of the truth once and then predicts, without another
call, what each skip costs with a solver on a grid; the coarse mixture of the other half
of the images says how errors grow.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.error_vs_nfe_table import (
    SIGMA_MAX,
    Choice,
    Grids,
    build_grid,
    num_points,
)
from benchmarks.error_vs_nfe_truth import Problem
from samplers.frame import cast
from samplers.schedules import log_linear
from samplers.skip import SkipCandidate, choose_skip
from samplers.skip_calibration import SkipCalibration, calibrate_skip
from samplers.solver import Solver

LEVELS = 32
SAMPLES = 64
_LAST = 0.002
_SOLVERS = ("DPM++ 2M midpoint", "UniPC-3 bh2", "residual 2, ", "v3-3, ")
_MOST_CALLS = 10


def measure_auto(
    problem: Problem,
    grids: Grids,
    solvers: Mapping[str, Solver],
    known: Mapping[Choice, float],
) -> dict[str, Any]:
    """Choose a skip for several solvers and grids; compare with the fixed skips.

    Args:
        problem: The truth.
        grids: Skips, schedules, last sigmas and calls.
        solvers: By name; some of them, those with gains of the other half, are taken.
        known: Errors on the truth.

    Returns:
        What was measured once, and a row for every solver, schedule, last sigma and
        number of calls: the skip chosen, its error on the truth, the least error of all
        skips, and the ratio of the two.
    """
    gaussian = cast(problem.gaussian, jnp.float32)
    calibration = calibrate_skip(
        cast(problem.truth, jnp.float32),
        gaussian,
        log_linear(LEVELS, _LAST, SIGMA_MAX),
        jax.random.key(3),
        num_samples=SAMPLES,
        batch_size=SAMPLES,
        weights=problem.frame.weights,
    )
    rank = problem.gaussian.basis.shape[1]
    taken = [
        name
        for name in solvers
        if name in _SOLVERS
        or (name.startswith(_SOLVERS) and name.endswith(f"fitted {rank}, gains"))
    ]
    schedules = [s for s in grids.schedules if s in ("log-uniform", "Karras 7")]
    lasts = [last for last in grids.last_sigmas if last in (0.002, 0.05)]
    calls = [n for n in grids.calls if n <= _MOST_CALLS]
    rows = [
        _row(problem, calibration, solvers, known, grids.sigma_skips, *what)
        for what in itertools.product(taken, schedules, lasts, calls)
    ]
    return {
        "levels": LEVELS,
        "samples": SAMPLES,
        "rms_of_residual": dict(
            zip(calibration.sigmas.tolist(), calibration.rms.tolist(), strict=True)
        ),
        "rows": rows,
    }


def _row(
    problem: Problem,
    calibration: SkipCalibration,
    solvers: Mapping[str, Solver],
    known: Mapping[Choice, float],
    skips: tuple[float, ...],
    name: str,
    schedule: str,
    last: float,
    calls: int,
) -> dict[str, Any]:
    solver = solvers[name]
    points = num_points(solver, calls)
    choices: dict[float | None, Choice] = {
        None: Choice(name, "none", SIGMA_MAX, schedule, last, calls)
    }
    for skip in skips:
        choices[skip] = Choice(name, "teleport", skip, schedule, last, calls)
    candidates = [
        SkipCandidate(skip, solver, build_grid(schedule, points, last, c.sigma_skip))
        for skip, c in choices.items()
    ]
    found = choose_skip(
        calibration,
        cast(problem.gaussian, jnp.float32),
        candidates,
        SIGMA_MAX,
        surrogate=cast(problem.coarse, jnp.float32),
    )
    errors = {skip: known[choice] for skip, choice in choices.items()}
    least = min(errors.values())
    return {
        "solver": name,
        "schedule": schedule,
        "last_sigma": last,
        "calls": calls,
        "sigma_skip": found.sigma_skip,
        "predicted": found.predicted_error,
        "rms": errors[found.sigma_skip],
        "least_rms": least,
        "best_sigma_skip": min(errors, key=lambda skip: errors[skip]),
        "ratio": errors[found.sigma_skip] / least,
    }
