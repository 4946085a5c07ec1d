"""A bounded set of points from afar: the bound, and what the third cumulant says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.far_field import (
    CloudExtent,
    cloud_extent,
    compare_far_field,
    far_field_bound,
    far_field_gap,
    far_field_rows,
)
from analysis.study_plots import plot_far_field
from configs import InputError
from diffusion.closed_form import EmpiricalDenoiser, GaussianDenoiser, fit_gaussian

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_what_the_third_cumulant_leaves_is_a_median_of_its_own",)


def random_trials(rng, count=1000, num_points=12, dimension=3):
    """Clouds of every shape and skewness, with x and sigma over decades."""
    clouds = rng.normal(size=(count, num_points, dimension))
    skewed = np.arange(count) % 2 == 0
    clouds[skewed] = np.exp(1.5 * clouds[skewed])
    clouds *= np.exp(rng.normal(size=(count, 1, dimension)))
    clouds += rng.normal(size=(count, 1, dimension))
    mean = clouds.mean(axis=1, keepdims=True)
    radius = np.linalg.norm(clouds - mean, axis=2).max(axis=1)
    sigma = radius * np.exp(rng.uniform(np.log(0.3), np.log(30), count))
    direction = rng.normal(size=(count, dimension))
    distance = sigma * np.exp(rng.uniform(np.log(0.01), np.log(10), count))
    direction *= (distance / np.linalg.norm(direction, axis=1))[:, None]
    return clouds, mean[:, 0] + direction, sigma, radius, distance


def test_the_bound_is_never_violated_in_1000_random_trials():
    clouds, x, sigma, radius, distance = random_trials(np.random.default_rng(0))
    centred = clouds - clouds.mean(axis=1, keepdims=True)
    covariance = np.einsum("tni,tnj->tij", centred, centred) / clouds.shape[1]
    values, vectors = np.linalg.eigh(covariance)
    with jax.enable_x64(True):
        gap = jax.vmap(far_field_gap)(
            EmpiricalDenoiser(jnp.asarray(clouds)),
            GaussianDenoiser(
                jnp.asarray(clouds.mean(axis=1)),
                jnp.asarray(vectors),
                jnp.asarray(np.maximum(values, 0)),
                jnp.zeros(len(clouds)),
            ),
            jnp.asarray(x)[:, None],
            jnp.asarray(sigma),
        )
    bounds = [
        far_field_bound(CloudExtent(float(r), float(variance)), d, s)
        for r, variance, d, s in zip(
            radius, values[:, -1], distance, sigma, strict=True
        )
    ]
    ratio = np.linalg.norm(gap[:, 0], axis=1) / bounds
    assert np.isfinite(ratio).all()
    assert ratio.max() <= 1
    assert ratio.max() > 0.05  # and not for being vacuous


def skewed_cloud(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(40, 3)) ** 2 @ rng.normal(size=(3, 3)) + rng.normal(size=3)


def test_the_third_cumulant_predicts_the_gap_within_5_percent_at_ten_radii():
    found = []
    with jax.enable_x64(True):
        for seed in range(6):
            cloud = skewed_cloud(seed)
            gaussian = fit_gaussian(cloud)
            radius = cloud_extent(cloud, gaussian).radius
            np.testing.assert_allclose(
                radius, np.linalg.norm(cloud - cloud.mean(0), axis=1).max()
            )
            comparison = compare_far_field(
                cloud,
                gaussian.with_third_cumulant(cloud, rank=3),
                radius * np.array([1.0, 10.0, 20.0, 40.0]),
                jax.random.key(seed),
                num_probes=200,
            )
            found.append(comparison.unpredicted)
            assert (comparison.largest_ratio < 1).all()
            assert (comparison.bound > comparison.gap).all()
            assert (comparison.left < comparison.gap).all()
    unpredicted = np.median(found, axis=0)
    assert (unpredicted[1:] < 0.05).all(), unpredicted
    assert (np.diff(unpredicted) < 0).all()  # better and better with distance
    assert unpredicted[0] > 0.1  # at one radius it is not the far field yet


def test_what_the_third_cumulant_leaves_is_a_median_of_its_own():
    """Not the median gap times the median share: some probes are far, others not."""
    cloud = skewed_cloud(2)
    with jax.enable_x64(True):
        edgeworth = fit_gaussian(cloud).with_third_cumulant(cloud, rank=3)
        sigma = 3 * float(jnp.sqrt(edgeworth.gaussian.variances[0]))
        key = jax.random.key(5)
        found = compare_far_field(cloud, edgeworth, [sigma], key, num_probes=101)
        empirical = EmpiricalDenoiser(jnp.asarray(cloud))
        x = empirical.sample(jax.random.fold_in(key, 0), 101, sigma)
        wanted = np.asarray(empirical(x, sigma) - edgeworth(x, sigma))
    left = np.median(np.linalg.norm(wanted, axis=1))
    np.testing.assert_allclose(found.left, [left], rtol=1e-9)
    assert abs(found.gap[0] * found.unpredicted[0] / left - 1) > 0.02
    drawn = plot_far_field(found).axes[0].lines[2].get_ydata()
    np.testing.assert_allclose(drawn, [left], rtol=1e-9)


def test_the_gap_is_that_of_sums_over_the_points():
    cloud, sigma = skewed_cloud(1), 3.0
    x = np.random.default_rng(2).normal(size=(5, 3)) * sigma
    logits = -((x[:, None] - cloud) ** 2).sum(-1) / (2 * sigma**2)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    denoised = weights @ cloud / weights.sum(1, keepdims=True)
    mean, covariance = cloud.mean(0), np.cov(cloud.T, bias=True)
    gain = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(3))
    expected = denoised - mean - (x - mean) @ gain
    with jax.enable_x64(True):
        gap = far_field_gap(
            EmpiricalDenoiser(jnp.asarray(cloud)),
            fit_gaussian(cloud),
            jnp.asarray(x),
            sigma,
        )
    np.testing.assert_allclose(gap, expected, rtol=1e-9, atol=1e-12)


def test_the_ladder_of_approximations_ends_at_the_gaussian():
    """Section 1.5(4): weights of points that give the Gaussian's series and itself."""
    cloud = skewed_cloud(3)
    y = cloud - cloud.mean(0)
    covariance = y.T @ y / len(y)
    sigma = 4 * np.sqrt(np.linalg.eigvalsh(covariance)[-1])
    z = np.random.default_rng(4).normal(size=(6, 3)) * sigma
    with jax.enable_x64(True):
        denoised = fit_gaussian(cloud)(jnp.asarray(z + cloud.mean(0)), sigma)
        exact = np.asarray(denoised - cloud.mean(0))
    # Weights z.(Sigma + sigma^2)^-1 y / N are the Gaussian.
    precision = np.linalg.inv(covariance + sigma**2 * np.eye(3))
    np.testing.assert_allclose(z @ precision @ y.T @ y / len(y), exact, rtol=1e-9)
    # Linear weights (1 + z.y/sigma^2)/N are its series' first term; the second is next.
    linear = (1 + z @ y.T / sigma**2) @ y / len(y)
    second = z @ covariance @ covariance / sigma**4
    np.testing.assert_allclose(linear, z @ covariance / sigma**2, rtol=1e-9)
    errors = [np.linalg.norm(a - exact) for a in (0 * z, linear, linear - second)]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_rows_figure_and_mistakes():
    cloud = skewed_cloud(5).astype(np.float32)
    edgeworth = fit_gaussian(cloud).with_third_cumulant(cloud)
    key = jax.random.key(0)
    found = compare_far_field(cloud, edgeworth, [1.0, 50.0], key, num_probes=8)
    rows = far_field_rows(found)
    assert [row["sigma"] for row in rows] == [1, 50]
    assert plot_far_field(found).axes[0].get_xlabel()
    with pytest.raises(InputError, match="above 0"):
        compare_far_field(cloud, edgeworth, [0.0], key)
    with pytest.raises(InputError, match="same points"):
        cloud_extent(cloud[:, :2], edgeworth.gaussian)
