"""Stopping rules against scans, noise drawn again and again, and a known posterior."""

import math
import warnings
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import pytest

from analysis.kernels.early_stopping import (
    RULES,
    Choice,
    choose_stop,
    critical_radius,
    data_free_stop,
    default_times,
    discrepancy,
    gcv,
    holdout,
    kernel_complexity,
    noise_level,
    oracle,
    rwy_stop,
    sure,
    target_norm,
)
from analysis.kernels.regression import decompose, fit, rkhs_norm
from configs.errors import InputError, InputWarning


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kernel(a, b):
    """First-layer ReLU tangent kernel, by its formula."""
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    theta = np.arccos(np.clip(a @ b.T / lengths, -1, 1))
    return a @ b.T * (np.pi - theta) / (2 * np.pi)


SPECTRA = [
    0.8 * np.arange(1, 200) ** -1.33,
    np.array([2.0, 2.0, 2.0, 1e-3]),
    np.exp(-np.arange(40.0)),
    np.array([0.5, 0.25, 0.0, 0.0]),
]


@pytest.mark.parametrize("mu", SPECTRA)
def test_complexity_rises_and_its_ratio_to_the_radius_falls(mu):
    eps2 = np.logspace(-12, 2, 300)
    found = kernel_complexity(mu, eps2)
    expected = np.sqrt(np.minimum(mu, eps2[:, None]).sum(1) / len(mu))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_array_equal(kernel_complexity(mu[::-1], eps2), found)
    assert (np.diff(found) >= -1e-15).all()
    assert (np.diff(found / np.sqrt(eps2)) <= 1e-13).all()


@pytest.mark.parametrize("mu", SPECTRA)
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 3.0])
def test_the_critical_radius_is_the_stop_of_continuous_training(mu, sigma):
    for c in (1.0, 2 * math.e):
        radius = critical_radius(mu, sigma, c, B=1.3)
        stop = rwy_stop(mu, sigma, 1.3, c=c)
        assert stop.s == pytest.approx(radius**-2, rel=1e-8)
        complexity = np.sqrt(np.minimum(mu, radius**2).mean())
        assert complexity == pytest.approx(radius**2 * 1.3 / (c * sigma), rel=1e-8)


@pytest.mark.parametrize("mu", SPECTRA)
def test_discrete_stop_equals_a_scan_over_all_steps(mu):
    eta, sigma, norm = 0.7, 0.3, 1.4
    times = eta * np.arange(1, 20_001)
    left = np.sqrt(np.minimum(mu, 1 / times[:, None]).sum(1) / len(mu))
    for c in (1.0, 2 * math.e):
        first = int(np.argmax(left > norm / (c * sigma * times)))
        stop = rwy_stop(mu, sigma, norm, eta, c)
        assert stop.tau == first  # the step before number first + 1
        assert stop.s == pytest.approx(eta * first)
        assert rwy_stop(mu, sigma, norm, times, c) == pytest.approx(stop)
    # Steps of differing size.
    grid = np.cumsum(np.random.default_rng(0).uniform(0.1, 1.5, size=5000))
    left = np.sqrt(np.minimum(mu, 1 / grid[:, None]).sum(1) / len(mu))
    first = int(np.argmax(left > norm / (sigma * grid)))
    assert rwy_stop(mu, sigma, norm, grid, 1.0).tau == first


def test_stop_does_not_know_the_unit_of_the_kernel():
    mu, k = SPECTRA[0], 7.3
    stop = rwy_stop(mu, 0.4, 1.2, 0.5)
    scaled = rwy_stop(mu / k, 0.4, math.sqrt(k) * 1.2, 0.5 * k)
    assert scaled.tau == stop.tau > 0
    assert scaled.s == pytest.approx(k * stop.s)


def test_stop_is_later_with_more_points_and_earlier_with_more_noise():
    stops = [rwy_stop(SPECTRA[0], 0.4, n=n, c=1.0).s for n in (199, 400, 1600)]
    assert stops[0] < stops[1] < stops[2]
    stops = [rwy_stop(SPECTRA[0], sigma).s for sigma in (0.0, 0.1, 0.4, 2.0)]
    assert stops[0] == math.inf and stops[1] > stops[2] > stops[3]
    assert critical_radius(SPECTRA[0], 0.0) == 0
    assert rwy_stop(SPECTRA[0], 0.0, eta_grid=0.5).tau == math.inf
    # More noise than signal: not one step.
    assert rwy_stop(SPECTRA[0], 1e6, eta_grid=0.5) == (0.0, 0)


def test_data_free_stop_has_the_exponent_of_the_rate():
    assert data_free_stop(10**7, 4) == pytest.approx(10**4)


def small_model(seed=0, n=25, noise=0.5):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3))
    K, f = kernel(z, z), np.sin(z[:, :2])
    return decompose(K), K, f, noise, rng


def test_sure_is_unbiased():
    spectrum, K, f, noise, rng = small_model()
    f, s = f[:, :1], np.array([0.5, 5.0, 50.0])
    mu, vectors = np.linalg.eigh(K / len(K))
    labels = f + noise * rng.normal(size=(2000, *f.shape))
    estimates = jax.vmap(lambda y: sure(fit(spectrum, y), s, noise**2))(labels)
    for i, time in enumerate(s):
        smoother = vectors @ np.diag(1 - np.exp(-time * mu)) @ vectors.T
        losses = np.mean((smoother @ labels - f) ** 2, axis=(1, 2))
        gaps = np.asarray(estimates)[:, i] - losses
        assert abs(gaps.mean()) < 3 * gaps.std() / 2000**0.5
        # Half the penalty, noise^2 df / n less, would be seen but for the first time.
        half = noise**2 * np.trace(smoother) / len(K)
        assert half > 3 * gaps.std() / 2000**0.5 or time < 1


def test_curves_are_their_formulas():
    spectrum, K, f, noise, rng = small_model(1)
    y, n = f + noise * rng.normal(size=f.shape), len(K)
    model, s = fit(spectrum, y), np.array([1.0, 30.0, 1e9])
    mu, vectors = np.linalg.eigh(K / n)
    for i, time in enumerate(s):
        gain = 1 - np.exp(-time * mu)
        left = y - vectors @ (gain[:, None] * (vectors.T @ y))
        error, df = (left**2).sum() / n, gain.sum()
        expected = error / (1 - df / n) ** 2 if df < 0.9 * n else np.inf
        assert float(gcv(model, s)[i]) == pytest.approx(expected)
        assert float(discrepancy(model, s, 0.3, 0.9)[i]) == pytest.approx(
            error / 2 - 0.27
        )
        if time < 1e9:
            assert float(noise_level(model, s)[i]) == pytest.approx(
                (left**2).sum() / (2 * (n - df))
            )
    # Without its guard GCV would point here.
    assert np.isinf(gcv(model, 1e9))
    assert float(target_norm(model, 3.0)) == pytest.approx(
        float(rkhs_norm(model, 3.0)) / 2**0.5
    )
    f0 = rng.normal(size=f.shape)
    gaps = f0 + K @ vectors @ np.diag((1 - np.exp(-mu)) / (n * mu)) @ vectors.T @ y - f
    expected = (gaps**2).sum() / n
    assert float(oracle(model, K, f, 1.0, f0=f0)) == pytest.approx(expected)
    assert float(holdout(model, K, f, s, f0=f0)[0]) == pytest.approx(expected)


class Mixture(NamedTuple):
    """Score matching on three Gaussians: labels X_0 of lifted inputs (x, t - t0, 1)."""

    z: np.ndarray
    y: np.ndarray
    truth: np.ndarray
    noise: np.ndarray  # posterior variance per output


def mixture(seed, n, t0=0.05):
    """Noised points with their posterior means, in closed form."""
    rng = np.random.default_rng(seed)
    angles = 2 * np.pi * np.arange(3) / 3
    centres = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    variance = 0.25**2

    def draw(count):
        y = centres[rng.integers(3, size=count)] + 0.25 * rng.normal(size=(count, 2))
        t = rng.uniform(t0, 2, size=(count, 1))
        alpha, h = np.exp(-t / 2), -np.expm1(-t)
        x = alpha * y + np.sqrt(h) * rng.normal(size=(count, 2))
        v = alpha**2 * variance + h
        gap = x[:, None] - alpha[:, None] * centres
        logits = -(gap**2).sum(-1) / (2 * v)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        means = centres + (alpha * variance / v)[:, None] * gap
        truth = (weights[..., None] * means).sum(1)
        spread = (weights * ((means - truth[:, None]) ** 2).sum(-1)).sum(1) / 2
        noise = (variance * h / v)[:, 0] + spread
        return Mixture(np.hstack([x, t - t0, np.ones_like(t)]), y, truth, noise)

    return draw(n), draw(1000)


class Study(NamedTuple):
    model: object
    rows: np.ndarray
    train: Mixture
    test: Mixture


@cache
def study(seed):
    with jax.enable_x64(True):
        train, test = mixture(seed, 256)
        model = fit(decompose(kernel(train.z, train.z)), train.y)
    return Study(model, kernel(test.z, train.z), train, test)


def errors_at(found, times):
    return np.sqrt(oracle(found.model, found.rows, found.test.truth, times))


@pytest.mark.parametrize("seeds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_over_training_hurts_and_gcv_stops_in_time_and_tells_the_noise(seeds):
    ratios, over = [], []
    for seed in range(seeds):
        found = study(seed)
        best = choose_stop(
            found.model, "oracle", rows=found.rows, values=found.test.truth
        )
        stop = choose_stop(found.model)
        errors = errors_at(found, np.array([best.s, stop.s, 1e6]))
        ratios.append(errors[1] / errors[0])
        over.append(errors[2] / errors[0])
        train = found.train
        assert stop.sigma == pytest.approx(np.sqrt(train.noise.mean()), rel=0.1)
        drawn = np.sqrt(np.mean((train.y - train.truth) ** 2))
        assert stop.sigma == pytest.approx(drawn, rel=0.06)
        assert 10 < best.s < 1000 and 10 < stop.s < 1000
    assert min(over) > 1.5
    assert max(ratios) < 1.15 and np.mean(ratios) < 1.05


def test_the_classical_constant_stops_far_too_early():
    for seed in (0, 1):
        found = study(seed)
        rules = {"classical": "rwy_2e", "known": "rwy_1_norm", "best": "oracle"}
        stops = {
            name: choose_stop(
                found.model, rule, rows=found.rows, values=found.test.truth
            ).s
            for name, rule in rules.items()
        }
        assert stops["classical"] < stops["best"] / 5
        errors = {name: errors_at(found, s) for name, s in stops.items()}
        assert errors["classical"] > 1.3 * errors["best"]
        assert errors["known"] < 1.15 * errors["best"]


def test_every_rule_gives_a_stop_and_its_curve():
    found = study(0)
    given = {"rows": found.rows, "values": found.test.truth, "input_dimension": 4}
    best = float(errors_at(found, choose_stop(found.model, "oracle", **given).s))
    for rule in RULES:
        stop = choose_stop(found.model, rule, eta=0.5, **given)
        assert stop.tau == math.floor(stop.s / 0.5)
        assert stop.curve.shape == stop.times.shape == (141,)
        assert 0 < stop.df < 256
        assert 0.5 < stop.B < 5
        assert float(errors_at(found, stop.s)) < 2.2 * best
        if rule.startswith(("rwy", "data")):
            # Increasing through 1 at the stop.
            assert np.interp(stop.s, stop.times, stop.curve) == pytest.approx(1, 0.02)
    times = np.array([1.0, 100.0, 1e4])
    given_noise = choose_stop(found.model, "sure", times=times, sigma2=0.5, B=2.0)
    assert (given_noise.s, given_noise.B) == (100, 2)
    assert given_noise.sigma == pytest.approx(0.5**0.5)
    # No residual of this grid is so small: interpolate.
    never = choose_stop(found.model, "discrepancy", times=times, sigma2=1e-9)
    assert never.s == never.tau == math.inf


def test_a_rule_may_be_any_function_of_the_problem():
    def at_twice_the_gcv_stop(problem):
        curve = np.asarray(gcv(problem.model, problem.times))
        return Choice(2 * float(problem.times[np.argmin(curve)]), curve)

    model = study(0).model
    twice = choose_stop(model, at_twice_the_gcv_stop)
    assert twice.s == pytest.approx(2 * choose_stop(model).s)


def test_times_cover_hardly_begun_to_interpolation():
    mu = np.array([2.0, 1e-3])
    times = default_times(mu)
    assert len(times) == 141
    assert times[0] * 2 == pytest.approx(0.1) and times[-1] * 2 == pytest.approx(1e6)


def test_a_best_time_at_the_end_of_the_grid_is_warned_of():
    model = study(0).model
    with pytest.warns(InputWarning, match=r"is 2, at the end of those .* 1 to 2"):
        choose_stop(model, times=[1.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_stop(model)


def test_bad_input_is_refused_in_one_line():
    model, mu = study(0).model, SPECTRA[0]
    for call, words in (
        (lambda: choose_stop(model, "gvc"), "rule 'gvc'; did you mean 'gcv'"),
        (lambda: choose_stop(model, "holdout"), "needs points: give rows"),
        (lambda: choose_stop(model, "data_free"), "needs input_dimension"),
        (lambda: choose_stop(model, times=[1.0, 0.5]), "increasing"),
        (lambda: choose_stop(model, times=[0.0, 0.5]), "each > 0"),
        (lambda: choose_stop(model, eta=0.0), "eta is 0.0"),
        (lambda: choose_stop(model, sigma2=-1.0), "sigma2 is -1.0"),
        (lambda: rwy_stop(mu, -1.0), "sigma is -1.0"),
        (lambda: rwy_stop(mu, 1.0, 0.0), "B is 0.0"),
        (lambda: rwy_stop(mu, 1.0, 1.0, -0.5), "eta is -0.5"),
        (lambda: rwy_stop(mu, 1.0, 1.0, [1.0, 1.0]), "increasing"),
        (lambda: rwy_stop(mu * np.nan, 1.0), "give the finite eigenvalues"),
        (lambda: kernel_complexity(-mu, 1.0), "at least one of them > 0"),
        (lambda: data_free_stop(100, 1), "p is 1"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
