"""The residual integrator: exactness, limits, cost; gains: measured, kept, used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import GaussianDenoiser, MixtureDenoiser, fit_gaussian
from samplers import (
    DPMSolverPP,
    EffectiveVariances,
    ResidualExponential,
    Teleport,
    estimate_gains,
    gaussian_statistics,
    integrate,
    load_effective_variances,
    log_linear,
    sample,
    save_effective_variances,
)
from samplers.coordinates import Coordinates
from samplers.effective_variances import read_about

RNG = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
MEAN = np.linspace(-0.4, 0.5, 5)
NODES = np.geomspace(80, 0.002, 20)


def gaussian(dtype=np.float64, rank=3):
    return GaussianDenoiser(
        jnp.asarray(MEAN, dtype),
        jnp.asarray(ROTATION[:, :rank], dtype),
        jnp.asarray([1.0, 0.3, 0.01, 0.4, 0.2][:rank], dtype),
        jnp.asarray(0.05, dtype),
    )


def another():
    """A Gaussian with other directions: its covariance is not diagonal there."""
    root = np.random.default_rng(1).normal(size=(5, 5))  # the same in any order
    covariance = root @ root.T / 5
    variances, basis = np.linalg.eigh(covariance)
    arrays = (jnp.asarray(a) for a in (MEAN, basis, variances))
    return GaussianDenoiser(*arrays), covariance


def constant(variances, nodes=NODES):
    """Gains that are those of a Gaussian."""
    frame = Coordinates(jnp.asarray(MEAN), jnp.asarray(ROTATION[:, :3]))
    table = np.broadcast_to(np.log(variances), (len(nodes), 4))
    return EffectiveVariances(frame, nodes, table)


# A grid of one step has order 1, whatever was asked for.
@pytest.mark.parametrize("rank", [0, 3, 5])
@pytest.mark.parametrize(
    ("order", "points"),
    [
        (1, [80.0, 0.1]),
        (2, [80.0, 7.0, 3.0, 0.5, 0.002]),
        (3, [80.0, 7.0, 3.0, 0.5, 0.002]),
    ],
)
def test_any_step_is_exact_on_gaussian_data(order, points, rank):
    with jax.enable_x64(True):
        model = gaussian(rank=rank)
        x = jnp.asarray(80 * RNG.normal(size=(7, 5)))
        solver = ResidualExponential(model, order)
        end = integrate(solver, model, x, points, trace=True).trace.x[-1]
        np.testing.assert_allclose(end, model.flow(x, 80.0, points[-1]), atol=1e-10)


@pytest.mark.parametrize("rank", [3, 5])  # with a complement, and without
def test_one_step_is_exact_to_the_rounding_of_float32(rank):
    model = gaussian(np.float32, rank)
    x = jnp.asarray(80 * RNG.normal(size=(7, 5)), jnp.float32)
    solver = ResidualExponential(model)
    end = integrate(solver, model, x, [80.0, 0.1], trace=True).trace.x[-1]
    np.testing.assert_allclose(end, model.flow(x, 80.0, 0.1), atol=1e-5)


@pytest.mark.parametrize(
    ("order", "variant", "lower_order_final"),
    [(1, None, True), (2, "taylor", False), (3, "corrected", True)],
)
def test_without_variances_it_is_dpm_solver_pp(order, variant, lower_order_final):
    with jax.enable_x64(True):
        empty = GaussianDenoiser(
            jnp.asarray(MEAN), jnp.asarray(ROTATION[:, :2]), jnp.zeros(2), 0.0
        )
        x = jnp.asarray(80 * RNG.normal(size=(7, 5)))
        how = dict(lower_order_final=lower_order_final)
        ours, theirs = (
            integrate(solver, gaussian(), x, log_linear(9, 0.01), trace=True).trace.x
            for solver in (
                ResidualExponential(empty, order, **how),
                DPMSolverPP(order, variant, **how),
            )
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-11)


def test_without_residual_it_is_teleportation():
    model = gaussian(np.float32)
    key, shape = jax.random.key(0), (4, 5)
    there = sample(model, key, shape, [0.5], start=Teleport(model)).x
    solver = ResidualExponential(model)
    ours = sample(model, key, shape, [80.0, 0.5], solver=solver).x
    np.testing.assert_allclose(ours, there, atol=1e-5)


def test_a_step_agrees_with_quadrature_of_the_residual():
    """Order 2, one mode: r through two points, integrated by NumPy."""
    variance, s0, s1, t = 0.3, 20.0, 4.0, 0.7
    with jax.enable_x64(True):
        one = GaussianDenoiser(
            jnp.zeros(1), jnp.eye(1), jnp.asarray([variance]), jnp.asarray(0.0)
        )

        def model(x, sigma):
            return jnp.tanh(x) * 0.5

        solver = ResidualExponential(one, 2, lower_order_final=False)
        trace = integrate(solver, model, jnp.ones((1, 1)), [s0, s1, t], trace=True)
    x, denoised = (np.asarray(a)[:, 0, 0] for a in trace.trace)
    r = [
        denoised[i] - variance / (variance + s**2) * x[i] for i, s in ((0, s0), (1, s1))
    ]
    u = np.linspace(-np.log(s1), -np.log(t), 200_001)
    line = r[1] + (r[1] - r[0]) / np.log(s0 / s1) * (u + np.log(s1))
    psi = np.sqrt(variance + np.exp(-2 * u))
    moved = psi[-1] / psi[0] * x[1] + psi[-1] * np.trapezoid(line / psi, u)
    np.testing.assert_allclose(x[2], moved, rtol=1e-9)


def test_a_gaussian_is_cut_to_the_rank_with_its_variance_kept():
    """Rank 1 of 5: the others share their mean variance, in float64 NumPy here."""
    with jax.enable_x64(True):
        solver = ResidualExponential(gaussian(rank=5), rank=1)
        gains = solver.plan(np.array([1.0, 0.1])).gain[0]
        rest = np.mean([0.3, 0.01, 0.4, 0.2])
        np.testing.assert_allclose(gains, [0.5, rest / (rest + 1)], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((4,), "orders 1, 2, 3"), ((0,), "orders 1, 2, 3"), ((2, -1), "rank is -1")],
)
def test_bad_settings_get_one_line(arguments, says):
    with pytest.raises(InputError, match=says) as caught:
        ResidualExponential(gaussian(np.float32), *arguments)
    assert "\n" not in str(caught.value)


# Gains


def test_constant_variances_are_a_gaussian():
    variances = np.array([1.0, 0.3, 0.01, 0.05])
    u = -np.log(np.geomspace(300.0, 1e-4, 77))  # beyond both ends, too
    with jax.enable_x64(True):
        table = constant(variances).linear_part()
        exact = gaussian_statistics(gaussian()).linear_part()
        np.testing.assert_allclose(table.gains(u), exact.gains(u), rtol=1e-12)
        ours, true = (
            np.diff(part.integrals(u).linear, axis=0) for part in (table, exact)
        )
        np.testing.assert_allclose(ours, true, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("slope", [-2.0, -1.9999, 0.7])
def test_the_integral_of_the_gains_is_that_of_the_gains(slope):
    """Variances that change by sigma^-slope; at slope -2 the gains are constant."""
    nodes = np.geomspace(10.0, 0.1, 6)
    table = np.log([[1.0, 0.3, 0.01, 0.05]]) + slope * -np.log(nodes)[:, None]
    frame = Coordinates(jnp.asarray(MEAN), jnp.asarray(ROTATION[:, :3]))
    part = EffectiveVariances(frame, nodes, table).linear_part()
    u = np.linspace(-np.log(7.0), -np.log(0.2), 20_001)
    by_hand = np.trapezoid(part.gains(u), u, axis=0)
    whole = np.diff(part.integrals(u[[0, -1]]).linear, axis=0)[0]
    np.testing.assert_allclose(whole, by_hand, rtol=1e-7)
    np.testing.assert_allclose(
        part.gains(u[:1])[0],
        1 / (1 + np.array([1.0, 0.3, 0.01, 0.05]) * np.exp((slope + 2) * u[0])),
        rtol=1e-6,
    )


def test_measured_gains_of_a_gaussian_are_its_variances():
    """l_k = s^2/(u_k^T S u_k + s^2) within standard errors; diagonal where known."""
    with jax.enable_x64(True):
        truth, covariance = another()
        images = np.asarray(truth.sample(jax.random.key(1), 40_000))
        found = estimate_gains(truth, gaussian(), images, NODES, jax.random.key(0))
        basis = ROTATION[:, :3]
        inside = np.diag(basis.T @ covariance @ basis)
        rest = (np.trace(covariance) - inside.sum()) / 2
        variances = np.append(inside, rest)
        measured = np.exp(found.statistics.log_variances)
        s2 = NODES[:, None] ** 2
        error = measured / (measured + s2) - variances / (variances + s2)
        deviations = np.abs(error / found.standard_error)
        assert np.mean(deviations < 2) > 0.9
        assert deviations.max() < 4
        assert 0.5 < np.sqrt(np.mean(deviations**2)) < 1.5
        own = estimate_gains(truth, truth, images, NODES, jax.random.key(0))
        table = np.exp(own.statistics.log_variances[:, :-1])
        np.testing.assert_allclose(
            table, np.broadcast_to(truth.variances, table.shape), rtol=1e-8
        )


def test_with_measured_gains_a_step_is_exact_on_gaussian_data():
    with jax.enable_x64(True):
        truth, _ = another()
        images = np.asarray(truth.sample(jax.random.key(1), 400))
        own = estimate_gains(
            truth, truth, images, NODES, jax.random.key(0), num_images=64
        )
        x = jnp.asarray(80 * RNG.normal(size=(7, 5)))
        solver = ResidualExponential(own.statistics)
        end = integrate(solver, truth, x, [80.0, 0.1], trace=True).trace.x[-1]
        np.testing.assert_allclose(end, truth.flow(x, 80.0, 0.1), atol=1e-7)


@pytest.mark.slow
def test_measured_gains_leave_less_to_extrapolate_where_variances_are_wrong():
    """The mismatch of the trial: the Gaussian's small variances are not the model's."""
    rng = np.random.default_rng(3)
    means = rng.normal(size=(4, 12)) * np.geomspace(0.8, 0.02, 12)
    model = MixtureDenoiser(
        jnp.zeros(4),
        jnp.asarray(means, jnp.float32),
        jnp.asarray(np.broadcast_to(np.eye(12)[:, :2], (4, 12, 2)), jnp.float32),
        jnp.full((4, 2), 0.3),
        jnp.full(4, 0.01),
    )
    images = np.asarray(model.sample(jax.random.key(0), 2000))
    right = fit_gaussian(images)
    wrong = GaussianDenoiser(
        right.mean, right.basis, right.variances.at[4:].multiply(1e-3)
    )
    gains = estimate_gains(model, wrong, images, NODES, jax.random.key(1)).statistics
    x = 80 * jax.random.normal(jax.random.key(2), (32, 12))
    exact = integrate(DPMSolverPP(3, "corrected"), model, x, log_linear(600)).x

    def error(affine):
        found = integrate(ResidualExponential(affine), model, x, log_linear(9)).x
        return float(jnp.sqrt(jnp.mean((found - exact) ** 2)))

    assert error(gains) < 0.6 * error(wrong)


def test_each_image_may_have_its_own_denoiser():
    """Two classes with means of their own: told them, the gains are those within."""
    centres = np.array([[2.0, 0.0], [-2.0, 0.0]])
    classes = np.arange(2000) % 2
    rng = np.random.default_rng(0)
    images = (centres[classes] + 0.5 * rng.normal(size=(2000, 2))).astype(np.float32)
    whole = fit_gaussian(images)

    def told(numbers):
        mean = jnp.asarray(centres[classes[numbers]], jnp.float32)
        return jax.tree_util.Partial(_towards, mean)

    found = estimate_gains(
        lambda x, sigma: x,
        whole,
        images,
        [1.0, 0.5],
        jax.random.key(0),
        num_images=2000,
        denoiser_of=told,
    )
    # Cov(D, x)/Var x = (4 + .25 w)/(4 + .25 + s^2) + ..., by hand along the first axis.
    s2 = np.array([1.0, 0.25])
    w = 0.25 / (0.25 + s2)
    by_hand = (4 * (1 - w) + w * (4.25 + s2)) / (4.25 + s2)
    measured = np.exp(found.statistics.log_variances)
    gains = (measured / (measured + s2[:, None]))[:, 0]
    np.testing.assert_allclose(gains, by_hand, atol=0.02)


def _towards(mean, x, sigma):
    return mean + 0.25 / (0.25 + sigma**2) * (x - mean)


def test_gains_come_back_from_their_file(tmp_path):
    path, statistics = tmp_path / "gains.npz", constant([1.0, 0.3, 0.01, 0.05])
    save_effective_variances(path, statistics, about={"step": 3})
    found = load_effective_variances(path)
    assert read_about(path)["step"] == 3
    np.testing.assert_array_equal(found.log_variances, statistics.log_variances)
    np.testing.assert_array_equal(found.sigmas, NODES)
    np.testing.assert_allclose(found.coordinates.basis, ROTATION[:, :3], rtol=1e-6)


@pytest.mark.parametrize("damage", ["missing", "cut", "another file"])
def test_a_file_without_gains_gets_one_line(tmp_path, damage):
    path = tmp_path / "gains.npz"
    if damage == "cut":
        save_effective_variances(path, constant([1, 1, 1, 1]), about={})
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "another file":
        np.savez(path, x=1)
    with pytest.raises(InputError, match="no measured gains") as caught:
        load_effective_variances(path)
    assert "\n" not in str(caught.value)


def test_gains_of_a_wrong_shape_or_not_finite_are_refused():
    frame = constant([1, 1, 1, 1]).coordinates
    for table, says in (
        (np.zeros((20, 3)), r"shape \(20, 4\)"),
        (np.full((20, 4), np.nan), "not finite"),
    ):
        with pytest.raises(InputError, match=says):
            EffectiveVariances(frame, NODES, table).linear_part()
    with pytest.raises(InputError, match="Gaussian's shape"):
        estimate_gains(
            lambda x, s: x,
            gaussian(np.float32),
            np.zeros((9, 4)),
            [1.0, 0.5],
            jax.random.key(0),
        )
    with pytest.raises(InputError, match="not finite at sigma = 1"):
        estimate_gains(
            lambda x, s: x * jnp.nan,
            gaussian(np.float32),
            np.zeros((9, 5)),
            [1.0, 0.5],
            jax.random.key(0),
        )
