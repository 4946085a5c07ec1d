"""Starts, their inverses, and the integrator behind them, against dense NumPy flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
)
from samplers.euler import Euler
from samplers.heun import Heun
from samplers.inversion import Inverse, invert
from samplers.runge_kutta import (
    Moving,
    dormand_prince,
    probability_flow,
    require_arrival,
)
from samplers.sampling import sample
from samplers.schedules import karras, log_linear
from samplers.solver import integrate
from samplers.start import AnalyticPrefix, ClassTeleport, Prior, Teleport
from samplers.stochastic_heun import StochasticHeun
from samplers.unipc import UniPC

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_a_sample_that_does_not_arrive_is_nan_and_harms_no_other",
    "test_analytic_prefix_agrees_with_2000_steps_of_the_same_flow",
    "test_analytic_prefix_takes_any_denoiser_and_is_a_start_inside_jit",
    "test_invert_declares_the_calls_that_are_counted[Euler()]",
    "test_invert_declares_the_calls_that_are_counted[Heun()]",
    "test_invert_solves_the_last_move_to_first_order",
    "test_invert_then_sample_and_the_reverse_return_data_and_noise[heun]",
)

K, D, R = 3, 4, 2


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


WEIGHTS = rng(1).dirichlet(np.full(K, 3.0))
MEANS = rng(2).normal(size=(K, D))
BASES = np.linalg.qr(rng(3).normal(size=(K, D, D)))[0][:, :, :R]
VARIANCES = rng(4).uniform(0.1, 0.5, (K, R))
RESIDUALS = np.array([0.05, 0.06, 0.07])
INSIDE = np.einsum("kdr,ker->kde", BASES, BASES)
COVARIANCES = np.einsum("kdr,kr,ker->kde", BASES, VARIANCES, BASES) + RESIDUALS[
    :, None, None
] * (np.eye(D) - INSIDE)


def mixture(event: tuple[int, ...] = (D,)) -> MixtureDenoiser:
    parts = np.log(WEIGHTS), MEANS.reshape(K, *event), BASES, VARIANCES, RESIDUALS
    return MixtureDenoiser(*(jnp.asarray(p) for p in parts))


def gaussian() -> GaussianDenoiser:
    """The Gaussian of all classes together."""
    mean = WEIGHTS @ MEANS
    away = MEANS - mean
    covariance = np.einsum("k,kde->de", WEIGHTS, COVARIANCES)
    covariance += np.einsum("k,kd,ke->de", WEIGHTS, away, away)
    variances, basis = np.linalg.eigh(covariance)
    return GaussianDenoiser(*(jnp.asarray(a) for a in (mean, basis, variances)))


def dense_denoiser(x: np.ndarray, sigma: float) -> np.ndarray:
    """D of the mixture by Bayes' rule with dense covariances, float64."""
    logits, means = [], []
    for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        total = covariance + sigma**2 * np.eye(D)
        solved = np.linalg.solve(total, (x - mean).T).T
        distance = np.sum((x - mean) * solved, axis=1)
        logits.append(np.log(weight) - (distance + np.linalg.slogdet(total)[1]) / 2)
        means.append(mean + solved @ covariance)
    logits = np.array(logits)
    p = np.exp(logits - logits.max(axis=0))
    return np.einsum("kb,kbd->bd", p / p.sum(axis=0), np.array(means))


def fixed_steps(x: np.ndarray, sigma_from: float, sigma_to: float, steps: int):
    """The flow by the classical Runge-Kutta method in log sigma, float64."""

    def slope(x, u):
        return x - dense_denoiser(x, np.exp(u))

    grid, h = np.linspace(np.log(sigma_from), np.log(sigma_to), steps + 1, retstep=True)
    for u in grid[:-1]:
        k1 = slope(x, u)
        k2 = slope(x + h / 2 * k1, u + h / 2)
        k3 = slope(x + h / 2 * k2, u + h / 2)
        k4 = slope(x + h * k3, u + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def counting(denoiser, calls):
    def counted(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return denoiser(x, sigma)

    return counted


def test_integrator_follows_the_exact_flow_of_a_gaussian_both_ways():
    with jax.enable_x64(True):
        model, low = gaussian(), jnp.asarray(rng().normal(size=(5, D)))
        up = dormand_prince(probability_flow(model), low, 0.01, 80.0)
        exact = model.flow(low, 0.01, 80.0)
        assert float(jnp.abs(up.x - exact).max()) < 1e-6 * 80
        down = dormand_prince(probability_flow(model), up.x, 80.0, 0.01)
        np.testing.assert_allclose(down.x, low, atol=1e-6)
        assert bool(up.arrived.all() & down.arrived.all())


def test_integrator_has_order_five():
    """A tolerance 10^5 times smaller takes about ten times the steps."""
    with jax.enable_x64(True):
        x = jnp.asarray(rng().normal(size=(1, D)))
        flow = probability_flow(gaussian())
        exact = gaussian().flow(x, 0.01, 80.0)
        steps, errors = [], []
        for rtol in (1e-6, 1e-11):
            found = dormand_prince(flow, x, 0.01, 80.0, rtol=rtol)
            steps.append(int(found.num_steps[0]))
            errors.append(float(jnp.abs(found.x - exact).max()))
    assert 6 < steps[1] / steps[0] < 13, steps
    assert errors[1] < 1e-4 * errors[0], errors


@pytest.mark.slow
def test_integrator_takes_a_sigma_for_each_sample_and_no_notice_of_the_others():
    with jax.enable_x64(True):
        flow, x = probability_flow(mixture()), jnp.asarray(rng().normal(size=(6, D)))
        start, end = (
            jnp.asarray([0.1, 3, 5, 1, 80, 2]),
            jnp.asarray([9, 0.1, 5, 2, 1, 3]),
        )
        together = dormand_prince(flow, x, start, end)
        for i in (0, 4):
            one = slice(i, i + 1)
            alone = dormand_prince(flow, x[one], start[one], end[one])
            np.testing.assert_allclose(alone.x[0], together.x[i], rtol=1e-11)
            assert alone.num_steps[0] == together.num_steps[i]
        np.testing.assert_array_equal(together.x[2], x[2])
        assert int(together.num_steps[2]) == 0
        assert int(together.nfe) == 1 + 6 * int(together.num_steps.max())


def test_integrator_carries_integrals():
    """The integral of sigma over u from log a to log b is b - a."""
    with jax.enable_x64(True):

        def field(x, sigma):
            rate = x - gaussian()(x, sigma)
            return Moving(rate, jnp.stack([sigma, jnp.ones_like(sigma)], axis=1))

        found = dormand_prince(field, jnp.zeros((2, D)), 0.5, jnp.asarray([7.0, 2.0]))
        exact = [[6.5, np.log(14.0)], [1.5, np.log(4.0)]]
        np.testing.assert_allclose(found.integrals, exact, rtol=1e-7)


def test_integrator_counts_its_calls_inside_jit():
    calls = []
    denoiser = counting(mixture(), calls)

    @jax.jit
    def move(x):
        return dormand_prince(probability_flow(denoiser), x, 5.0, 1.0)

    found = jax.block_until_ready(move(5 * jnp.ones((2, D))))
    jax.effects_barrier()
    assert len(calls) == int(found.nfe) > 7


def test_a_sample_that_does_not_arrive_is_nan_and_harms_no_other():
    def breaks(x, sigma):
        broken = (sigma < 1)[:, None] & (x[:, :1] > 0)
        return jnp.where(broken, jnp.nan, 0.5 * x)

    x = jnp.asarray([[-1.0, 1.0], [1.0, 1.0]])
    found = dormand_prince(probability_flow(breaks), x, 2.0, 0.5)
    np.testing.assert_array_equal(found.arrived, [True, False])
    assert bool(jnp.isfinite(found.x[0]).all() & jnp.isnan(found.x[1]).all())
    assert float(found.sigma[1]) == pytest.approx(1.0, rel=1e-4)
    with pytest.raises(InputError, match=r"sample 1 stopped at sigma = 1.*NaN"):
        require_arrival(found, 0.5, 1000)
    few = dormand_prince(
        probability_flow(mixture()), jnp.ones((1, D)), 9.0, 0.1, max_steps=3
    )
    with pytest.raises(InputError, match="after 3 steps"):
        require_arrival(few, 0.1, 3)


@pytest.mark.parametrize(
    "sigma",
    [1.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (10.0, 0.05))],
)
def test_analytic_prefix_agrees_with_2000_steps_of_the_same_flow(sigma):
    noise = rng(5).normal(size=(20, D))
    expected = fixed_steps(80 * noise, 80.0, sigma, 2000)
    with jax.enable_x64(True):
        start = AnalyticPrefix(mixture())
        found = start(jnp.asarray(noise), sigma)
        single = start(jnp.asarray(noise, jnp.float32), sigma)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(single, expected, atol=2e-3)


def test_analytic_prefix_of_a_gaussian_is_its_teleport():
    noise = jnp.asarray(rng(5).normal(size=(7, D)), jnp.float32)
    found = AnalyticPrefix(gaussian(), 50.0)(noise, 2.0)
    np.testing.assert_allclose(found, Teleport(gaussian(), 50.0)(noise, 2.0), atol=2e-4)


def test_analytic_prefix_takes_any_denoiser_and_is_a_start_inside_jit():
    points = jnp.asarray(rng().normal(size=(9, 2, 2)), jnp.float32)
    noise = jnp.asarray(rng(5).normal(size=(3, 2, 2)), jnp.float32)
    start = AnalyticPrefix(EmpiricalDenoiser(points))
    plain = AnalyticPrefix(lambda x, sigma: EmpiricalDenoiser(points)(x, sigma))
    np.testing.assert_allclose(start(noise, 3.0), plain(noise, 3.0), rtol=1e-5)
    jitted = jax.jit(lambda start, noise: start(noise, 3.0))(start, noise)
    np.testing.assert_allclose(start(noise, 3.0), jitted, rtol=1e-5)
    np.testing.assert_array_equal(start(noise, 80.0), 80 * noise)
    drawn = sample(
        start.denoiser, jax.random.key(0), (2, 2, 2), [3.0, 1.0], start=start
    )
    assert bool(jnp.isfinite(drawn.x).all())


def test_analytic_prefix_of_2048_images_needs_half_a_gigabyte():
    event, dtype = (32, 32, 3), jnp.float32
    shapes = (10,), (10, *event), (10, 3072, 32), (10, 32), (10,)
    model = MixtureDenoiser(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes))
    noise = jax.ShapeDtypeStruct((2048, *event), dtype)
    start = jax.jit(lambda model, noise: AnalyticPrefix(model)(noise, 5.0))
    analysis = start.lower(model, noise).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 24 * 2048 * 3072 * 4


def test_class_teleport_moves_each_sample_by_the_gaussian_of_its_class():
    noise, labels = rng(6).normal(size=(6, D)), np.array([2, 0, 2, 2, 0, 2])
    a, b = 80.0, 3.0
    expected = []
    for z, k in zip(noise, labels, strict=True):
        variances, basis = np.linalg.eigh(COVARIANCES[k])
        gains = np.sqrt((b**2 + variances) / (a**2 + variances))
        expected.append(MEANS[k] + basis @ (gains * (basis.T @ (a * z - MEANS[k]))))
    with jax.enable_x64(True):
        event = (2, 2)
        start = ClassTeleport(mixture(event), labels)
        batch = jnp.asarray(noise.reshape(-1, *event))
        found = start(batch, b)
        jitted = jax.jit(lambda start, x: start(x, b))(start, batch)
    np.testing.assert_allclose(found.reshape(-1, D), expected, rtol=1e-10)
    np.testing.assert_allclose(jitted, found, rtol=1e-12)


def test_inverse_undoes_teleport_and_teleport_undoes_inverse():
    noise = jnp.asarray(rng(6).normal(size=(6, D)), jnp.float32)
    x = Teleport(gaussian(), 50.0)(noise, 2.0)
    back = Inverse(gaussian(), 50.0)(x, 2.0)
    np.testing.assert_allclose(back, noise, atol=1e-5)
    np.testing.assert_allclose(Teleport(gaussian(), 50.0)(back, 2.0), x, atol=1e-5)


@pytest.mark.parametrize(
    "solver", [Heun(), UniPC(lower_order_final=False)], ids=["heun", "unipc"]
)
def test_invert_then_sample_and_the_reverse_return_data_and_noise(solver):
    grid = karras(200, sigma_max=5.0)
    with jax.enable_x64(True):
        model, single = mixture(), gaussian()
        start = Teleport(single)

        def run(noise):
            return integrate(solver, model, start(noise, grid[0]), grid).x

        x = model.sample(jax.random.key(0), 200)
        back = run(invert(model, x, grid, single, solver=solver).noise)
        np.testing.assert_allclose(back, x, atol=1e-4)
        noise = jnp.asarray(rng(7).normal(size=(200, D)))
        again = invert(model, run(noise), grid, single, solver=solver).noise
        np.testing.assert_allclose(again, noise, atol=1e-4)


def test_invert_solves_the_last_move_to_first_order():
    """Grid of one point: x0 = D(x, sigma_min) is all there is to undo."""
    with jax.enable_x64(True):
        x = mixture().sample(jax.random.key(0), 10)
        noise = invert(mixture(), x, [0.01], None).noise
        back = mixture()(0.01 * noise, 0.01)
        plain = mixture()(x, 0.01)
        assert float(jnp.abs(back - x).max()) < 2e-5
        assert float(jnp.abs(plain - x).max()) > 5e-4


def test_invert_without_gaussian_undoes_the_prior_start():
    grid = karras(200, sigma_max=10.0)
    with jax.enable_x64(True):
        noise = jnp.asarray(rng(7).normal(size=(5, D)))
        x = integrate(Heun(), mixture(), Prior()(noise, grid[0]), grid).x
        found = invert(mixture(), x, grid, None)
        np.testing.assert_allclose(found.noise, noise, atol=1e-4)


@pytest.mark.parametrize(
    "solver", [Euler(), Heun(), UniPC(), StochasticHeun()], ids=repr
)
def test_invert_declares_the_calls_that_are_counted(solver):
    for points in (1, 3):
        calls = []
        denoiser = counting(mixture(), calls)
        x, grid = jnp.ones((2, D)), log_linear(points, 1.0, 10.0)
        found = invert(denoiser, x, grid, gaussian(), solver=solver)
        jax.block_until_ready(found.noise)
        jax.effects_barrier()
        assert len(calls) == found.nfe == solver.nfe(points) + 1


def _breaks(x, sigma):
    return jnp.where((sigma > 4) & (x[:, :1] > 0), jnp.nan, 0 * x)


def _mixture_with(**changes) -> MixtureDenoiser:
    parts = dict(vars(mixture()), **changes)
    return MixtureDenoiser(**parts)


NOISE = np.ones((2, D), np.float32)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: AnalyticPrefix(mixture())(NOISE, 81.0), "above sigma_max"),
        (lambda: AnalyticPrefix(mixture())(NOISE, 0.0), "above|> 0"),
        (lambda: AnalyticPrefix(mixture())(NOISE[:, :2], 5.0), "shape"),
        (lambda: AnalyticPrefix(mixture(), rtol=-1.0)(NOISE, 5.0), "rtol is -1"),
        (
            lambda: AnalyticPrefix(lambda x, sigma: jnp.nan * x)(NOISE, 5.0),
            "sample 0 stopped at sigma = 80 .*NaN",
        ),
        (lambda: ClassTeleport(mixture(), [0, 1])(NOISE, 81.0), "above sigma_max"),
        (lambda: ClassTeleport(mixture(), [0, 1, 2])(NOISE, 5.0), r"\(2,\) integers"),
        (lambda: ClassTeleport(mixture(), [0.0, 1.0])(NOISE, 5.0), "integers"),
        (lambda: ClassTeleport(mixture(), [0, 3])(NOISE, 5.0), "label 3 is not"),
        (lambda: ClassTeleport(mixture(), [-1, 0])(NOISE, 5.0), "label -1 is not"),
        (lambda: ClassTeleport(gaussian(), [0, 1])(NOISE, 5.0), "MixtureDenoiser"),
        (lambda: ClassTeleport(mixture((2, 2)), [0, 1])(NOISE, 5.0), "shape"),
        (
            lambda: ClassTeleport(_mixture_with(variances=VARIANCES[:2]), [0, 1])(
                NOISE, 5.0
            ),
            "needs",
        ),
        (lambda: Inverse(gaussian())(NOISE, 81.0), "above sigma_max"),
        (lambda: Inverse(gaussian())(NOISE[:, :2], 5.0), "shape"),
        (lambda: invert(mixture(), NOISE, [1.0, 2.0], gaussian()), "must decrease"),
        (lambda: invert(mixture(), NOISE, [90.0, 2.0], gaussian()), "above sigma_max"),
        (lambda: invert(mixture(), NOISE[0], [2.0], gaussian()), "shape"),
        (
            lambda: invert(
                mixture(), NOISE, [2.0, 1.0], gaussian(), solver=StochasticHeun(churn=9)
            ),
            "cannot be inverted",
        ),
        (
            lambda: invert(_breaks, NOISE * [[-1], [1]], karras(9, 1, 9), gaussian()),
            "image 1 at sigma = 4.27",
        ),
    ],
)
def test_bad_input_gets_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
