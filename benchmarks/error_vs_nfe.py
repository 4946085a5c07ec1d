"""Which solver, start and grid is best for how many calls, where the truth is known.

Command: python -m benchmarks.error_vs_nfe --data PATH [--part 1] [--part 2] [--quick]

The network is a mixture of 100 components of rank 32 fitted to half of CIFAR-10
(`benchmarks.error_vs_nfe_truth`), so exact solutions are known: the flow from
sigma = 80 to 0 in float64.  A combination is a solver x a start (none; a teleport by
the Gaussian of the other half; a prefix by a coarse mixture of the other half, each at
sigma_skip 40, 20, 10, 5, 2.5) x a schedule x a last sigma, and spends at most a given
number of calls, the last one included.  After a skip the grid is spread anew.  Solvers
run in float32.

The second part (`benchmarks.error_vs_nfe_ours`) has the residual integrator on the same
truth, at up to 15 calls, with last sigmas .1 and .2 for all; combinations tuned on the
coarse mixture alone; and the automatic skip.

Every combination is judged by its rms error per pixel on 64 samples, the best by
distances between distributions on 2,048 too.  PATH is a folder with
cifar10-jpeg-train.zip.  Takes an hour on two cores; --quick takes a minute, on
generated images, and writes nothing.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.plots import save_figure
from benchmarks.error_vs_nfe_distribution import Judge, measure_distributions
from benchmarks.error_vs_nfe_figure import draw_figure
from benchmarks.error_vs_nfe_ours import CALLS, measure_ours
from benchmarks.error_vs_nfe_ours_figure import draw_ours
from benchmarks.error_vs_nfe_report import (
    best_of,
    describe,
    rows_to_judge,
    summarise,
    write_compactly,
)
from benchmarks.error_vs_nfe_table import (
    Choice,
    Grids,
    Table,
    begin,
    build_grid,
    build_solvers,
    draw_noise,
    measure_reference,
    measure_table,
)
from benchmarks.error_vs_nfe_truth import Problem, Setting, fit_problem
from benchmarks.images import generated_images, load_images
from benchmarks.results_file import RESULTS, write_result
from samplers.frame import cast
from samplers.search import num_points, rms_error, solve

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Sizes(NamedTuple):
    """How large a run is."""

    setting: Setting = Setting()
    grids: Grids = Grids()
    samples: int = 64
    distribution_samples: int = 2048
    principal_directions: int = 64


QUICK = Sizes(
    Setting(
        dimension=12, num_components=4, rank=3, gaussian_rank=8, coarse_components=2
    ),
    Grids((20.0,), ("log-uniform", "Karras 7"), (0.002,), (5, 8)),
    samples=4,
    distribution_samples=32,
    principal_directions=4,
)


def run(images: NDArray[np.uint8], sizes: Sizes) -> dict[str, Any]:
    """Fit, solve, compare; return everything that is written."""
    started = time.perf_counter()
    problem = fit_problem(images, sizes.setting)
    fitted = time.perf_counter()
    noise = draw_noise(0, sizes.samples, sizes.setting.dimension)
    exact, reference = measure_reference(problem, noise)
    table = measure_table(problem, sizes.grids, noise, exact)
    solved = time.perf_counter()
    judge = Judge(
        problem,
        sizes.distribution_samples,
        images.shape[1:],
        sizes.principal_directions,
    )
    distributions = measure_distributions(
        judge, rows_to_judge(table), sizes.grids.calls
    )
    ended = time.perf_counter()
    return {
        "problem": problem.description,
        "samples": sizes.samples,
        "reference": reference,
        "float32": compare_precisions(problem, table, noise, exact),
        "summary": summarise(table),
        "distributions": distributions,
        "seconds": {
            "fit": fitted - started,
            "table": solved - fitted,
            "distributions": ended - solved,
        },
        "table": write_compactly(table),
    }


def run_ours(images: NDArray[np.uint8], sizes: Sizes) -> dict[str, Any]:
    """Run the second part; return everything that is written."""
    started = time.perf_counter()
    problem = fit_problem(images, sizes.setting)
    noise = draw_noise(0, sizes.samples, sizes.setting.dimension)
    exact, reference = measure_reference(problem, noise)
    judge = Judge(
        problem,
        sizes.distribution_samples,
        images.shape[1:],
        sizes.principal_directions,
    )
    grids = sizes.grids._replace(
        calls=tuple(n for n in sizes.grids.calls if n in CALLS),
        last_sigmas=(*sizes.grids.last_sigmas, 0.1, 0.2),
    )
    ours = measure_ours(problem, grids, noise, exact, judge)
    return {
        "problem": problem.description,
        "samples": sizes.samples,
        "reference": reference,
        **ours,
        "seconds": time.perf_counter() - started,
    }


def compare_precisions(
    problem: Problem,
    table: Table,
    noise: NDArray[np.float64],
    exact: NDArray[np.float64],
) -> dict[str, Any]:
    """Solve the best row of the most calls again in float64: what float32 costs."""
    choice, rms = best_of(table, lambda c: True)[-1]
    with jax.enable_x64(True):
        again = _solve_in_float64(problem, choice, noise)
    wide = float(rms_error(again, exact, problem.frame.weights))
    return {**describe((choice, rms)), "rms_in_float64": wide}


def _solve_in_float64(
    problem: Problem, choice: Choice, noise: NDArray[np.float64]
) -> NDArray[Any]:
    solver = build_solvers(problem)[choice.solver]
    x: NDArray[Any] = begin(problem, noise, choice.family, choice.sigma_skip)
    points = num_points(solver, choice.calls)
    grid = build_grid(choice.schedule, points, choice.last_sigma, choice.sigma_skip)
    return solve(solver, cast(problem.truth, jnp.float64), x[None], [grid])[0]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and write figures, or with --quick only return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, metavar="PATH")
    parser.add_argument("--part", type=int, choices=tuple(PARTS), action="append")
    parser.add_argument("--quick", action="store_true", help="tiny, writes nothing")
    options = parser.parse_args(arguments)
    parts = {n: PARTS[n] for n in options.part or PARTS}
    if options.quick:
        images = generated_images(200, 16)
        found = {p.name: p.run(images, QUICK) for p in parts.values()}
        for part in parts.values():
            part.draw(found[part.name])
        return found
    images = load_images(options.data / "cifar10-jpeg-train.zip")
    found = {}
    for number, part in parts.items():
        found[part.name] = part.run(images, Sizes())
        command = f"python -m benchmarks.error_vs_nfe --data PATH --part {number}"
        write_result(part.name, command, found[part.name])
        figure = part.draw(found[part.name])
        save_figure(figure, RESULTS / "figures" / f"{part.name}.png")
    return found


class Part(NamedTuple):
    """A part of the benchmark: the name of its results, what runs, what draws."""

    name: str
    run: Callable[[NDArray[np.uint8], Sizes], dict[str, Any]]
    draw: Callable[[dict[str, Any]], Figure]


PARTS = {
    1: Part("error_vs_nfe", run, draw_figure),
    2: Part("error_vs_nfe_ours", run_ours, draw_ours),
}


if __name__ == "__main__":
    main()
