"""What each solver promises beyond the contract: options, limits, references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers import (
    DPMSolverPP,
    StochasticHeun,
    UniPC,
    adaptive_dpm_solver,
    annealed_langevin,
    integrate,
    karras,
    log_linear,
    sample,
    vp_uniform,
)
from samplers.exponential import lagrange_weights, multistep_orders, phi

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_the_adaptive_solver_meets_its_tolerance_with_the_calls_it_counts[2]",
)

GAUSSIAN = GaussianDenoiser(
    jnp.asarray([0.5, -0.2]), jnp.eye(2), jnp.asarray([1.0, 0.04])
)


@pytest.mark.parametrize("k", [0, 1, 2, 5])
@pytest.mark.parametrize("z", [-30.0, -1.0, -0.999, -1e-6, 0.3, 2.0])
def test_phi_is_its_integral(k, z):
    """phi_k(z) = int_0^1 e^((1-t) z) t^(k-1) / (k-1)! dt."""
    if k == 0:
        assert phi(0, z) == pytest.approx(np.exp(z))
        return
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = (nodes + 1) / 2
    factorial = np.prod(np.arange(1.0, k))
    integral = np.sum(weights / 2 * np.exp((1 - t) * z) * t ** (k - 1)) / factorial
    assert phi(k, z) == pytest.approx(integral, rel=1e-9)


@pytest.mark.parametrize("h", [1.7, 0.01, -0.4])
def test_lagrange_weights_integrate_polynomials_exactly(h):
    nodes = np.array([0.0, -0.5, -0.8]) * h
    weights = lagrange_weights(nodes, h)
    points, masses = np.polynomial.legendre.leggauss(30)
    tau = h * (points + 1) / 2
    for power in range(3):
        wanted = np.sum(h * masses / 2 * np.exp(tau - h) * tau**power)
        assert weights @ nodes**power == pytest.approx(wanted, rel=1e-9)


def test_orders_rise_with_the_history_and_fall_at_the_end():
    assert multistep_orders(6, 3, lower_order_final=True) == [1, 2, 3, 3, 2, 1]
    assert multistep_orders(4, 3, lower_order_final=False) == [1, 2, 3, 3]
    assert multistep_orders(1, 3, lower_order_final=True) == [1]


def test_unipc_without_its_corrector_is_dpm_solver_pp():
    """bh2 of order 2 is the midpoint form; order 3 the polynomial one after it."""
    x = 80.0 * jax.random.normal(jax.random.key(0), (8, 2))
    grid = log_linear(12)
    mine = integrate(UniPC(2, "bh2", corrector=False), GAUSSIAN, x, grid).x
    other = integrate(DPMSolverPP(2, "midpoint"), GAUSSIAN, x, grid).x
    np.testing.assert_allclose(mine, other, atol=2e-6)


def test_stochastic_heun_repeats_edms_algorithm_two():
    """Against the loop of the paper in NumPy, float64, with the same noise."""
    churn, low, high, scale = 4.0, 0.05, 20.0, 1.007
    grid = karras(9)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 4)
        x = jnp.asarray(80.0 * np.random.default_rng(1).normal(size=(4, 2)))
        solver = StochasticHeun(churn, low, high, scale)
        found = integrate(solver, GAUSSIAN, x, grid, keys=keys)
        noise = [
            np.asarray(
                jax.vmap(
                    lambda k, i=i: jax.random.normal(jax.random.fold_in(k, i), (2,))
                )(keys)
            )
            for i in range(len(grid))
        ]
    mean, variances = np.array([0.5, -0.2]), np.array([1.0, 0.04])
    mean, variances = (np.asarray(np.float32(v), float) for v in (mean, variances))
    d = lambda x, s: (  # noqa: E731
        (x - mean - variances / (variances + s * s) * (x - mean)) / s
    )
    state = np.asarray(x)
    for i, t in enumerate(grid):
        gamma = min(churn / len(grid), np.sqrt(2) - 1) if low <= t <= high else 0.0
        raised = t * (1 + gamma)
        state = state + np.sqrt(raised**2 - t**2) * scale * noise[i]
        slope = d(state, raised)
        if i + 1 == len(grid):
            state = state - raised * slope
            break
        step = grid[i + 1] - raised
        moved = state + step * slope
        state = state + step * (slope + d(moved, grid[i + 1])) / 2
    np.testing.assert_allclose(found.x, state, atol=1e-9)


def test_noise_of_a_stochastic_solver_is_an_images_own():
    solver, key, grid = StochasticHeun(10.0), jax.random.key(0), karras(6)
    few = sample(GAUSSIAN, key, (2, 2), grid, solver=solver).x
    many = sample(GAUSSIAN, key, (7, 2), grid, solver=solver).x
    np.testing.assert_allclose(few, many[:2], rtol=1e-5, atol=1e-6)
    plain = sample(GAUSSIAN, key, (2, 2), grid, solver=StochasticHeun()).x
    assert np.abs(few - plain).max() > 0.05


def test_stochastic_samples_have_the_datas_moments():
    x = sample(
        GAUSSIAN, jax.random.key(5), (20_000, 2), karras(80), solver=StochasticHeun(8)
    ).x
    np.testing.assert_allclose(np.cov(np.asarray(x).T), np.diag([1, 0.04]), atol=0.06)


@pytest.mark.parametrize("order", [2, 3])
def test_the_adaptive_solver_meets_its_tolerance_with_the_calls_it_counts(order):
    calls = []

    def counting(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return GAUSSIAN(x, sigma)

    with jax.enable_x64(True):
        x = 80.0 * jax.random.normal(jax.random.key(0), (16, 2), jnp.float64)
        errors, spent = [], []
        for tolerance in (1e-2, 1e-4, 1e-6):
            options = dict(order=order, rtol=tolerance, atol=tolerance / 8)
            calls.clear()
            found = adaptive_dpm_solver(counting, x, 80.0, 0.002, **options)
            jax.effects_barrier()
            assert len(calls) == found.nfe
            exact = GAUSSIAN.denoiser_trajectory(x, 80.0, 0.002)
            errors.append(float(jnp.abs(found.x - exact).max()))
            spent.append(found.nfe)
        alone = adaptive_dpm_solver(GAUSSIAN, x[:1], 80.0, 0.002, **options).x
    assert errors[2] < 1e-4 < errors[0]
    assert spent[0] < spent[1] < spent[2]
    np.testing.assert_allclose(alone[0], found.x[0], atol=1e-12)


def test_the_adaptive_solver_can_be_traced():
    """A sample that does not arrive is NaN there, and the others are as ever."""

    def poisoned(x, sigma):
        return jnp.where(x[:, :1] > 1e3, jnp.nan, GAUSSIAN(x, sigma))

    @jax.jit
    def traced(x, low):
        return adaptive_dpm_solver(poisoned, x, 80.0, low, rtol=0.5, atol=0.1)

    x = jnp.asarray([[30.0, 40.0], [2e3, 1.0]])
    found = traced(x, 0.1)
    alone = adaptive_dpm_solver(GAUSSIAN, x[:1], 80.0, 0.1, rtol=0.5, atol=0.1)
    np.testing.assert_allclose(found.x[0], alone.x[0], atol=1e-5)
    assert np.isnan(found.x[1]).all()
    assert int(found.nfe) == alone.nfe
    assert np.isnan(traced(x, 90.0).x).all()  # no level to go down to


@pytest.mark.slow
def test_langevin_has_the_datas_moments_when_it_is_slow_enough():
    """It freezes where steps * step_size no longer reach the data's variance."""
    keys = jax.random.split(jax.random.key(1), 4_000)
    x = 10.0 * jax.random.normal(jax.random.key(0), (4_000, 2))
    options = dict(steps=200, step_size=0.05)
    grid = log_linear(30, 0.02, 10.0)
    found = annealed_langevin(GAUSSIAN, x, grid, keys=keys, **options)
    assert found.nfe == 6_001
    np.testing.assert_allclose(np.mean(found.x, 0), [0.5, -0.2], atol=0.08)
    np.testing.assert_allclose(
        np.var(np.asarray(found.x), axis=0), [1.0, 0.04], rtol=0.1
    )
    part = annealed_langevin(GAUSSIAN, x[:3], grid, keys=keys[:3], **options)
    np.testing.assert_allclose(part.x, found.x[:3], atol=1e-3)


def test_the_vp_grid_is_uniform_in_time():
    grid = vp_uniform(12, 0.01, 50.0)
    assert grid[0] == 50.0 and grid[-1] == 0.01
    # sigma(t)^2 = exp(int_0^t beta) - 1 with beta from .1 to 20.
    t = np.linspace(1e-6, 1, 400_001)
    sigma = np.sqrt(np.expm1(0.1 * t + 19.9 * t**2 / 2))
    np.testing.assert_allclose(np.diff(np.interp(grid, sigma, t), 2), 0, atol=2e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DPMSolverPP(4), "orders 1, 2, 3"),
        (lambda: DPMSolverPP(2, "published"), "midpoint"),
        (lambda: DPMSolverPP(3, "midpoint"), "published"),
        (lambda: DPMSolverPP(1, "midpoint"), "order 1 has none"),
        (lambda: DPMSolverPP(3, "corrected", singlestep=True), "singlestep order 3"),
        (lambda: UniPC(5), "orders 1, 2, 3, 4"),
        (lambda: UniPC(2, "bh3"), "did you mean .bh"),
        (lambda: StochasticHeun(-1.0), "churn is -1"),
        (lambda: StochasticHeun(1.0, 2.0, 1.0), "sigma_low < sigma_high"),
        (lambda: StochasticHeun(1.0, noise_scale=0.0), "noise_scale is 0"),
        (
            lambda: integrate(StochasticHeun(1.0), GAUSSIAN, jnp.ones((1, 2)), [1.0]),
            "needs keys",
        ),
        *(
            (
                lambda keys=keys: integrate(
                    StochasticHeun(1.0), GAUSSIAN, jnp.ones((2, 2)), [1.0], keys=keys
                ),
                says,
            )
            for keys, says in (
                (jax.random.key(0), r"shape \(\); give \(2,\), one per sample"),
                (jax.random.split(jax.random.key(0), 3), r"shape \(3,\)"),
                (jnp.arange(2), "dtype int32"),
                ([0, 1], "type list"),
            )
        ),
        (
            lambda: adaptive_dpm_solver(GAUSSIAN, jnp.ones((1, 2)), 1.0, 2.0),
            "sigma_min < sigma_max",
        ),
        (
            lambda: adaptive_dpm_solver(GAUSSIAN, jnp.ones((1, 2)), 2.0, 1.0, order=4),
            "orders 2 and 3",
        ),
        (
            lambda: adaptive_dpm_solver(
                lambda x, s: x * jnp.nan, jnp.ones((2, 2)), 2.0, 1.0
            ),
            "sample 0 did not reach",
        ),
        (
            lambda: annealed_langevin(
                GAUSSIAN,
                jnp.ones((2, 2)),
                [1.0],
                keys=jax.random.split(jax.random.key(0))[:1],
            ),
            "one per sample",
        ),
    ],
)
def test_bad_options_get_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
