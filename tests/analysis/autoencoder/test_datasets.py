"""Toy data against brute force in NumPy float64."""

import jax
import numpy as np
import pytest

from analysis.autoencoder.datasets import (
    mixture_manifold,
    ninja_star_energy,
    ninja_star_score,
    sample_spiral,
    spiral_denoiser,
    spiral_log_density,
    spiral_score,
    two_bumps,
)
from configs import InputError

KEY = jax.random.key(7)
SIGMA = 0.01


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def spiral_by_midpoints(x, sigma, count=200_001):
    """Log density and score of the noised curve by the midpoint rule, one point."""
    t = 3 + 12 * (np.arange(count) + 0.5) / count
    curve = 0.04 * t[:, None] * np.stack([np.sin(t), np.cos(t)], axis=1)
    logits = -((x - curve) ** 2).sum(axis=1) / (2 * sigma**2)
    weights = np.exp(logits - logits.max())
    log_density = logits.max() + np.log(weights.mean() / (2 * np.pi * sigma**2))
    return log_density, (weights @ curve / weights.sum() - x) / sigma**2


def test_spirals_density_and_score_are_those_of_the_convolved_curve():
    x = np.asarray(sample_spiral(KEY, 12, sigma=SIGMA))
    ends = 0.04 * np.array([[3 * np.sin(3), 3 * np.cos(3)], [15 * np.sin(15), -11.4]])
    x = np.concatenate([x, ends + 0.001, [[0.02, -0.12], [0.0, 0.0]]])
    found = spiral_log_density(x, SIGMA), spiral_score(x, SIGMA)
    for i, point in enumerate(x):
        log_density, expected = spiral_by_midpoints(point, SIGMA)
        assert found[0][i] == pytest.approx(log_density, abs=1e-6)
        np.testing.assert_allclose(found[1][i], expected, rtol=2e-6, atol=1e-5)


def test_samples_of_the_spiral_lie_where_they_should():
    x = np.asarray(sample_spiral(KEY, 2_000))
    t = np.linalg.norm(x, axis=1) / 0.04
    np.testing.assert_allclose(x, 0.04 * t[:, None] * np.c_[np.sin(t), np.cos(t)])
    # Uniform on (3, 15): mean 9 and variance 12.
    assert abs(t.mean() - 9) < 4 * np.sqrt(12 / 2_000)
    assert abs(t.var() - 12) < 1
    assert t.min() >= 3 and t.max() <= 15
    np.testing.assert_array_equal(sample_spiral(KEY, 5), x[:5])
    noise = np.asarray(sample_spiral(KEY, 2_000, sigma=0.1)) - x
    assert abs(noise.std() - 0.1) < 0.004 and np.all(abs(noise.mean(axis=0)) < 0.01)


def test_two_bumps_are_two_unit_gaussians():
    x = np.array([[-5.0, 0.0], [4.0, 0.5], [0.3, 0.0]])
    found = np.asarray(jax.jit(two_bumps().log_density)(x, 0.5))
    distances = [((x - m) ** 2).sum(1) / 2.5 for m in ([-5, 0], [5, 0])]
    expected = np.log(np.exp(-np.array(distances)).mean(0) / (2 * np.pi * 1.25))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_mixture_manifold_is_thin_across_its_curve():
    model = mixture_manifold()
    t = np.pi / 25 * (np.arange(25) + 0.5)
    j = np.arange(10)
    frequency = 1 + j % 3
    angle = np.outer(t, frequency) + np.pi * j / 10
    np.testing.assert_allclose(model.means, np.sin(angle), atol=1e-14)
    step = frequency * np.cos(angle) * np.pi / 25 / 2
    covariances = []
    for vector in step:
        along = vector @ vector
        outer = np.outer(vector, vector)
        covariances.append(outer + 0.1 * (along * np.eye(10) - outer))
    x = np.asarray(model.sample(KEY, 3))
    sigma = 0.3
    densities = []
    for mean, covariance in zip(np.sin(angle), covariances, strict=True):
        total = covariance + sigma**2 * np.eye(10)
        delta = x - mean
        power = np.sum(delta @ np.linalg.inv(total) * delta, axis=1)
        densities.append(np.exp(-power / 2) / np.sqrt(np.linalg.det(2 * np.pi * total)))
    np.testing.assert_allclose(
        jax.jit(model.log_density)(x, sigma), np.log(np.mean(densities, 0))
    )


def test_stars_score_is_the_slope_of_its_energy():
    x = np.random.default_rng(0).normal(size=(30, 2))
    first = (np.linalg.norm(x[:1], axis=1) - 2) ** 2 + (
        x[0, 0] ** 2 - x[0, 1] ** 2
    ) ** 2
    expected = first + np.log(x[:1] @ x[0] + 1) / 2
    np.testing.assert_allclose(ninja_star_energy(x)[:1], expected)
    steps, energy = 1e-6 * np.eye(2), jax.jit(ninja_star_energy)
    slope = [(energy(x + h) - energy(x - h)) / 2e-6 for h in steps]
    np.testing.assert_allclose(
        jax.jit(ninja_star_score)(x), -np.stack(slope, 1), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(jax.jit(ninja_star_score)(0 * x), 0)


def test_the_spirals_score_is_float64_without_the_global_switch():
    with jax.enable_x64(False):
        x = np.array([[0.02, -0.12]])
        found = spiral_score(x, SIGMA)
        assert found.dtype == np.float64
    np.testing.assert_allclose(found, spiral_by_midpoints(x[0], SIGMA)[1][None], 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: spiral_denoiser(1e-4),
            "sigma_min is 0.0001; it must be at least 0.001",
        ),
        (lambda: spiral_score(np.zeros(2)), r"x has shape \(2,\); give points"),
        (lambda: ninja_star_energy(np.zeros((1, 3))), r"x has shape \(1, 3\)"),
        (lambda: sample_spiral(KEY, 2, sigma=-1.0), "sigma contains -1.0"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
