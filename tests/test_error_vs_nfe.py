"""The benchmark's shortcuts: what is computed in a few coordinates is true in all."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.error_vs_nfe import main
from benchmarks.error_vs_nfe_ours import (
    best_of_ours,
    build_our_solvers,
    own_gaussian,
)
from benchmarks.error_vs_nfe_report import (
    best_of,
    rows_to_judge,
    summarise,
    write_compactly,
)
from benchmarks.error_vs_nfe_table import (
    Grids,
    Table,
    build_grid,
    build_solvers,
    list_starts,
)
from benchmarks.error_vs_nfe_truth import Problem
from diffusion.closed_form import GaussianDenoiser, MixtureDenoiser
from samplers import Heun, Teleport, integrate
from samplers.frame import (
    Frame,
    SharedResidualMixture,
    cast,
    shared_residual_mixture,
)
from samplers.search import num_points, rms_error, solve, solve_exactly

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_exact_solutions_of_one_gaussian_are_its_flow",
    "test_grids_solved_together_are_solved_one_by_one[DPM++ 2M taylor]",
    "test_grids_solved_together_are_solved_one_by_one[DPM++ 2S]",
    "test_grids_solved_together_are_solved_one_by_one[DPM++ 3S]",
    "test_grids_solved_together_are_solved_one_by_one[Euler]",
    "test_grids_solved_together_are_solved_one_by_one[Heun]",
    "test_grids_solved_together_are_solved_one_by_one[UniPC-2 bh1]",
    "test_grids_solved_together_are_solved_one_by_one[UniPC-2 bh2]",
    "test_grids_solved_together_are_solved_one_by_one[UniPC-3 bh1]",
    "test_grids_solved_together_are_solved_one_by_one[UniPC-3 bh2]",
    "test_grids_solved_together_are_solved_one_by_one[v3-2 Gaussian]",
    "test_grids_solved_together_are_solved_one_by_one[v3-3 Gaussian]",
    "test_one_coordinate_stands_for_all_outside_of_the_span",
    "test_one_product_for_all_bases_is_the_mixture_denoiser",
)

D, INSIDE, RANK, K = 11, 5, 2, 3


def parts(seed=0, num_components=K):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(num_components, INSIDE))
    bases = np.linalg.qr(rng.normal(size=(num_components, INSIDE, RANK)))[0]
    variances = rng.uniform(0.2, 2.0, size=(num_components, RANK))
    log_weights = np.log(rng.dirichlet(np.ones(num_components)))
    return log_weights, means, bases, variances, 0.1


def problem(num_components=K) -> Problem:
    rng = np.random.default_rng(1)
    mixture = shared_residual_mixture(*parts(0, num_components))
    basis = np.linalg.qr(rng.normal(size=(D, INSIDE)))[0]
    gaussian = GaussianDenoiser(
        jnp.zeros(INSIDE + 1), jnp.eye(INSIDE + 1)[:, :3], jnp.array([3.0, 2, 1]), 0.05
    )
    frame = Frame(np.zeros(D, np.float32), basis.astype(np.float32))
    return Problem(mixture, gaussian, mixture, frame, {})


def in_all_coordinates(basis) -> MixtureDenoiser:
    log_weights, means, bases, variances, residual = parts()
    return MixtureDenoiser(
        jnp.asarray(log_weights),
        jnp.asarray(means @ basis.T),
        jnp.asarray(np.einsum("Dd,kdr->kDr", basis, bases)),
        jnp.asarray(variances),
        jnp.full(K, residual),
    )


def test_one_product_for_all_bases_is_the_mixture_denoiser():
    with jax.enable_x64(True):
        log_weights, means, bases, variances, residual = parts()
        ours = cast(shared_residual_mixture(*parts()), jnp.float64)
        pad = ((0, 0), (0, 1))
        theirs = MixtureDenoiser(
            jnp.asarray(log_weights),
            jnp.asarray(np.pad(means, pad)),
            jnp.asarray(np.pad(bases, (*pad, (0, 0)))),
            jnp.asarray(variances),
            jnp.full(K, residual),
        )
        x = jnp.asarray(np.random.default_rng(2).normal(size=(6, INSIDE + 1)))
        for sigma in (0.01, 1.0, 40.0, jnp.geomspace(0.01, 80, 6)):
            np.testing.assert_allclose(
                ours(x, sigma), theirs(x, sigma), rtol=1e-9, atol=1e-12
            )


def test_one_coordinate_stands_for_all_outside_of_the_span():
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(D, INSIDE)))[0]
    noise = rng.normal(size=(7, D))
    inside = noise @ basis
    few = np.append(inside, np.ones((7, 1)), axis=1)
    grid = build_grid("Karras 7", 4, 0.05, 10.0)
    with jax.enable_x64(True):
        gaussian = cast(problem().gaussian, jnp.float64)
        wide = GaussianDenoiser(
            jnp.zeros(D),
            jnp.asarray(basis) @ gaussian.basis[:-1],
            gaussian.variances,
            gaussian.residual_variance,
        )
        whole = integrate(
            Heun(),
            in_all_coordinates(basis),
            Teleport(wide)(jnp.asarray(noise), 10.0),
            grid,
        ).x
        truth = cast(problem().truth, jnp.float64)
        begun = np.asarray(Teleport(gaussian)(jnp.asarray(few), 10.0))
        solution = solve(Heun(), truth, begun[None], [grid])[0]
    outside = noise - inside @ basis.T
    rebuilt = solution[:, :-1] @ basis.T + solution[:, -1:] * outside
    np.testing.assert_allclose(whole, rebuilt, rtol=1e-9)


def test_error_counts_every_direction_outside_of_the_span():
    exact, x = np.zeros((2, 3)), np.array([[1.0, 0, 2], [0, 3, 0]])
    # Two directions inside, five outside.
    expected = np.sqrt((1 + 5 * 4 + 9) / 2 / 7)
    assert rms_error(x, exact, np.array([1.0, 1, 5])) == pytest.approx(
        expected, rel=1e-14
    )


def test_exact_solutions_of_one_gaussian_are_its_flow():
    one = problem(num_components=1)
    _, mean, bases, variances, residual = parts(0, 1)
    noise = np.random.default_rng(4).normal(size=(3, INSIDE + 1))
    with jax.enable_x64(True):
        gaussian = GaussianDenoiser(
            jnp.asarray(np.append(mean[0], 0.0)),
            jnp.asarray(np.pad(bases[0], ((0, 1), (0, 0)))),
            jnp.asarray(variances[0]),
            residual,
        )
        expected = gaussian.flow(jnp.asarray(80 * noise), 80.0, 1e-9)
    np.testing.assert_allclose(
        solve_exactly(one.truth, noise, 80.0), expected, atol=1e-6
    )


@pytest.mark.parametrize("name", build_solvers(problem()))
def test_grids_solved_together_are_solved_one_by_one(name, monkeypatch):
    monkeypatch.setattr("samplers.search._ROWS_AT_ONCE", 8)
    solver = build_solvers(problem())[name]
    truth: SharedResidualMixture = cast(problem().truth, jnp.float32)
    rng = np.random.default_rng(5)
    grids = [
        build_grid(schedule, 4, last, 10.0)
        for schedule in ("log-uniform", "Karras 3")
        for last in (0.01, 0.1)
    ]
    # Two grids at a time, and the last of three groups is filled up.
    grids.append(grids[0])
    x = (10 * rng.normal(size=(5, 4, INSIDE + 1))).astype(np.float32)
    together = solve(solver, truth, x, grids)
    for i, grid in enumerate(grids):
        alone = integrate(solver, truth, x[i], grid).x
        np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1e-4)


def test_no_solver_spends_more_calls_than_it_was_given():
    for solver in build_solvers(problem()).values():
        for calls in Grids().calls:
            points = num_points(solver, calls)
            assert solver.nfe(points) <= calls < solver.nfe(points + 1)
            assert points >= 2


def test_samples_of_the_truth_have_its_covariance():
    truth = problem().truth
    x = truth.sample(np.random.default_rng(6), 200_000)
    assert np.abs(np.cov(x.T) - truth.covariance()).max() < 0.03


def test_own_gaussian_has_the_moments_of_the_truth():
    truth = problem().truth
    gaussian = own_gaussian(truth)
    basis = np.asarray(gaussian.basis)
    covariance = basis * np.asarray(gaussian.variances) @ basis.T
    covariance[-1, -1] += float(np.asarray(gaussian.residual_variance))
    np.testing.assert_allclose(covariance, truth.covariance(), atol=1e-12)
    x = truth.sample(np.random.default_rng(8), 100_000)
    np.testing.assert_allclose(x.mean(axis=0), gaussian.mean, atol=0.02)


@pytest.mark.slow
def test_residual_integrator_with_the_own_gaussian_of_one_gaussian_is_exact():
    one = problem(num_components=1)
    solvers = build_our_solvers(one)
    assert len(solvers) == 3 * 7 + 2
    noise = np.random.default_rng(9).normal(size=(4, INSIDE + 1))
    grid = build_grid("log-uniform", 3, 0.002, 80.0)
    exact = solve_exactly(one.truth, noise, 80.0)
    truth = cast(one.truth, jnp.float32)
    x = (80 * noise).astype(np.float32)
    for name, bound in (("residual 2, own", 1e-4), ("residual 2, own, gains", 0.03)):
        found = solve(solvers[name], truth, x[None], [grid])[0]
        assert np.abs(found - exact).max() < bound, name


def small_table() -> Table:
    grids = Grids((20.0,), ("log-uniform", "Karras 7"), (0.002,), (5, 8))
    starts = list_starts(grids)
    rms = np.arange(1.0, 25.0).reshape(2, 3, 2, 1, 2)
    return Table(rms, ["Heun", "v3-3 Gaussian"], starts, grids)


def test_best_rows_are_the_least_of_their_kind():
    table = small_table()
    table.rms[1, 1, 0, 0, 0] = 0.5
    table.rms[0, 1, 1, 0, 1] = 0.25
    all_of_them = best_of(table, lambda c: True)
    assert [rms for _, rms in all_of_them] == [0.5, 0.25]
    assert all_of_them[0][0][:4] == ("v3-3 Gaussian", "teleport", 20.0, "log-uniform")
    published = summarise(table)["best"]["published"]
    assert published[0]["rms"] == 1.0 and published[1]["schedule"] == "Karras 7"


def test_rows_judged_twice_are_the_best_of_every_start_and_no_row_comes_twice():
    table = small_table()
    chosen = rows_to_judge(table)
    assert len(set(chosen)) == len(chosen)
    for start in table.starts:
        of_start = [c for c, _ in chosen if (c.family, c.sigma_skip) == start]
        assert {choice.calls for choice in of_start} == {5, 8}


def test_written_table_holds_every_error_to_its_unit():
    table = small_table()
    table.rms[:] *= 0.0123456
    written = write_compactly(table)
    texts = written["rms"]["v3-3 Gaussian"]["teleport 20"]
    values = np.array([text.split() for text in texts], float) * written["unit"]
    np.testing.assert_allclose(values, table.rms[1, 1, :, 0], atol=0.51e-5)


@pytest.mark.slow
def test_quick_run_measures_everything_and_writes_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("a quick run must write nothing")

    monkeypatch.setattr("benchmarks.error_vs_nfe.write_result", refuse)
    figures = main(["--quick", "--part", "1"])["error_vs_nfe"]
    json.dumps(figures, allow_nan=False)
    best = figures["summary"]["best"]["all"]
    assert [row["calls"] for row in best] == [5, 8]
    assert best[1]["rms"] < best[0]["rms"] < figures["reference"]["rms"]
    assert figures["float32"]["rms_in_float64"] == pytest.approx(
        figures["float32"]["rms"], rel=1e-2
    )
    rows = figures["distributions"]["rows"]
    assert {(row["family"], row["calls"]) for row in rows if "family" in row} == {
        (family, calls) for family in ("none", "teleport", "prefix") for calls in (5, 8)
    }
    assert sum("churn" in row for row in rows) == 2 * 2


@pytest.mark.slow
def test_quick_second_part_compares_ours_with_published_solvers():
    ours = main(["--quick", "--part", "2"])["error_vs_nfe_ours"]
    json.dumps(ours, allow_nan=False)
    parts = ("own", "own, gains", "fitted 8", "fitted 8, gains", "fitted 4")
    parts += ("fitted 4, gains", "wrong", "v3, fitted 8, gains")
    published = ("published", "published, no skip", "published, order falls")
    assert ours["best"].keys() == {
        *published,
        *parts,
        *(f"{part}, prefix" for part in parts),
    }
    for name, rows in ours["best"].items():
        kind = "v3" if name.startswith("v3") else "residual"
        kinds = ("DPM++", "UniPC") if name.startswith("published") else (kind,)
        assert [row["calls"] for row in rows] == [5, 8]
        assert all(row["solver"].startswith(kinds) for row in rows), name
    assert ours["best"]["own"][1]["rms"] < ours["best"]["wrong"][1]["rms"]
    least = [row["rms"] for row in ours["best"]["published"]]
    found = [row["rms"] for row in ours["best"]["own, gains"]]
    np.testing.assert_allclose(
        ours["ratio_to_best_published"]["own, gains"], np.divide(found, least)
    )
    for name, rows in ours["tuned"].items():
        assert [row["calls"] for row in rows] == [5, 8]
        kinds = ("DPM++", "UniPC")
        assert name == "all" or all(row["solver"].startswith(kinds) for row in rows)
    names = {row["solver"] for row in ours["auto"]["rows"]}
    assert {"DPM++ 2M midpoint", "UniPC-3 bh2", "residual 2, fitted 8, gains"} <= names
    skips = {row["sigma_skip"] for row in ours["auto"]["rows"]}
    assert skips <= {None, 20.0}


def test_best_rows_of_ours_are_by_solver_and_affine_part():
    names = ["residual 1, own", "residual 2, own", "v3-2, own"]
    table = small_table()
    rms = np.stack([np.full(table.rms.shape[1:], r) for r in (3.0, 2.0, 1.0)])
    rms[1, -1] = 0.5  # a prefix
    found = best_of_ours(table._replace(rms=rms, solvers=names))
    assert {name: rows[0][1] for name, rows in found.items()} == {
        "own": 2.0,
        "own, prefix": 0.5,
        "v3, own": 1.0,
        "v3, own, prefix": 1.0,
    }
