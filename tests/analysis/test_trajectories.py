"""Trajectories from the same noise against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.rotation_plane import measure_rotation, rotation_rows
from analysis.study_plots import plot_rotation, plot_trajectories
from analysis.trajectories import compare_trajectories, trace_blocks, trajectory_rows
from configs import InputError
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    isotropic_gaussian,
)
from samplers import karras, log_linear

KEY = jax.random.key(7)
FINE = log_linear(200, 0.01, 80.0)
MEAN = np.array([0.3, -0.2, 0.1])
VARIANCES, OTHERS = np.array([4.0, 0.5, 0.01]), np.array([2.0, 0.5, 0.3])


def gaussian(variances, mean=MEAN, turn=None):
    basis = np.eye(3) if turn is None else turn
    return GaussianDenoiser(
        jnp.asarray(mean), jnp.asarray(basis), jnp.asarray(variances)
    )


def hidden(denoiser):
    """The same denoiser, but of a kind that has no exact flow."""
    return jax.tree_util.Partial(lambda model, x, sigma: model(x, sigma), denoiser)


def test_a_gaussian_against_itself_shows_the_solvers_error_alone():
    with jax.enable_x64(True):
        model = gaussian(VARIANCES)
        found = compare_trajectories(
            model,
            {"exact": model, "same solver": hidden(model)},
            KEY,
            shape=(6, 3),
            sigmas=FINE,
            block_size=4,
        )
    assert found.num_samples == 6
    assert (found.x.mean[1] == 0).all() and (found.final[1] == 0).all()
    scale = 1 + FINE**2
    assert (found.x.mean[0] < 1e-6 * scale).all()
    assert (found.denoised.mean[0] < 1e-6).all()
    assert found.close_x.tolist() == [200, 200]


def test_two_gaussians_differ_by_their_formulas():
    with jax.enable_x64(True):
        found = compare_trajectories(
            gaussian(VARIANCES),
            {"other": gaussian(OTHERS, mean=-MEAN)},
            KEY,
            shape=(5, 3),
            sigmas=FINE,
            block_size=2,
        )
        start = np.concatenate(
            [
                np.asarray(trace.x[0])
                for trace in trace_blocks(gaussian(VARIANCES), KEY, (5, 3), FINE[:1])
            ]
        )

    def path(mean, variances):
        total = variances + FINE[:, None, None] ** 2
        z = (start - mean) * np.sqrt(total / total[0])
        return mean + z, mean + z * variances / total

    pairs = zip(path(MEAN, VARIANCES), path(-MEAN, OTHERS), strict=True)
    x, denoised = (((a - b) ** 2).mean(axis=-1) for a, b in pairs)
    for values, expected in ((found.x, x), (found.denoised, denoised)):
        np.testing.assert_allclose(values.mean, [expected.mean(1)], atol=3e-4)
        upper = np.quantile(expected, 0.75, axis=1)
        np.testing.assert_allclose(values.upper, [upper], atol=1e-3)
    np.testing.assert_allclose(found.final, [denoised[-1]], atol=1e-3)
    below = int(np.argmax(x.mean(1) >= 0.01))
    assert found.close_x.tolist() == [below] and 0 < below < 200
    assert found.close_denoised[0] == np.argmax(denoised.mean(1) >= 0.01)


def test_an_accurate_flow_is_the_exact_one():
    grid = karras(5, 0.05, 20.0)
    with jax.enable_x64(True):
        model = gaussian(OTHERS)
        found = compare_trajectories(
            gaussian(VARIANCES),
            {"exact": model, "followed": hidden(model)},
            KEY,
            shape=(3, 3),
            sigmas=grid,
            rtol=1e-9,
        )
    np.testing.assert_allclose(found.x.mean[0], found.x.mean[1], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.final[0], found.final[1], rtol=1e-6, atol=1e-9)


def test_the_training_set_leaves_the_gaussian_at_low_noise():
    """The paper's picture: close while sigma is large, then it snaps to a point."""
    points = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    model = gaussian(values.astype(np.float32), mean, vectors.astype(np.float32))
    found = compare_trajectories(
        model,
        {"training set": EmpiricalDenoiser(jnp.asarray(points))},
        KEY,
        shape=(40, 3),
        sigmas=karras(30),
    )
    early = found.sigmas > 10
    assert found.denoised.mean[0, early].max() < 0.01
    assert found.denoised.mean[0, -1] > 0.03
    assert 0 < found.close_denoised[0] < 30


def test_only_the_first_close_points_are_counted():
    """Both move to 0; in a band of sigma the candidate says something else."""

    def odd(x, sigma):
        return jnp.where((sigma > 1) & (sigma < 10), 1.0, 0.0) * jnp.ones_like(x)

    grid = np.array([80.0, 40.0, 5.0, 0.5, 0.1])
    found = compare_trajectories(
        isotropic_gaussian(jnp.zeros(3), 0.0),
        {"odd": odd},
        KEY,
        shape=(2, 3),
        sigmas=grid,
    )
    np.testing.assert_allclose(found.denoised.mean, [[0, 0, 1, 0, 0]], atol=1e-12)
    assert found.close_denoised.tolist() == [2]


def test_samples_do_not_depend_on_blocks():
    def run(block_size):
        return compare_trajectories(
            isotropic_gaussian(jnp.zeros(3), 1.0),
            {"other": hidden(isotropic_gaussian(jnp.ones(3), 0.1))},
            KEY,
            shape=(5, 3),
            sigmas=karras(4),
            block_size=block_size,
        )

    np.testing.assert_allclose(run(2).final, run(5).final, rtol=1e-6)


def test_a_single_point_is_reached_on_a_straight_line_in_the_plane():
    """x_sigma = m + sigma/sigma_T (x_T - m) exactly, for all solvers."""
    with jax.enable_x64(True):
        found = measure_rotation(
            isotropic_gaussian(jnp.asarray(MEAN), 0.0),
            KEY,
            shape=(4, 3),
            sigmas=karras(8),
        )
    np.testing.assert_allclose(found.off_ansatz.mean, 0, atol=1e-20)
    np.testing.assert_allclose(found.outside_plane.upper[1:], 0, atol=1e-9)
    np.testing.assert_allclose(found.outside_span.upper[1:], 0, atol=1e-9)
    assert found.outside_plane.mean[0] > 0.01  # before the plane there is a line
    np.testing.assert_allclose(found.position_variance, 1, atol=1e-9)


def test_rotation_measures_of_a_gaussian_are_its_formulas():
    mean = np.zeros(3)
    with jax.enable_x64(True):
        model = gaussian(VARIANCES, mean)
        found = measure_rotation(model, KEY, shape=(3, 3), sigmas=FINE)
        (trace,) = trace_blocks(model, KEY, (3, 3), FINE)
    start = np.asarray(trace.x[0])
    total = VARIANCES + FINE[:, None, None] ** 2
    x = start * np.sqrt(total / total[0])
    x0 = (x * VARIANCES / total)[-1]
    line = x0 + (FINE / FINE[0])[:, None, None] * (start - x0)
    gap = ((x - line) ** 2).sum(-1) / (x**2).sum(-1)
    np.testing.assert_allclose(found.off_ansatz.mean, gap.mean(1), atol=1e-3)
    # The plane of x_T and x_sigma in three dimensions has a normal.
    normal = np.cross(start, x[1:])
    height = (normal * x0).sum(-1) ** 2 / (normal**2).sum(-1)
    share = height / (x0**2).sum(-1)
    np.testing.assert_allclose(found.outside_plane.mean[1:], share.mean(1), atol=2e-3)
    np.testing.assert_allclose(found.outside_span.mean[3:], 0, atol=1e-6)
    assert 0.9 < found.position_variance.min() <= found.position_variance.max() <= 1


def test_rows_and_figures_have_every_candidate():
    model = isotropic_gaussian(jnp.zeros(3), 1.0)
    grid = karras(4)
    found = compare_trajectories(
        model,
        {"a": model, "b": isotropic_gaussian(jnp.ones(3), 0.1)},
        KEY,
        shape=(3, 3),
        sigmas=grid,
    )
    rows = trajectory_rows(found)
    assert [row["candidate"] for row in rows] == ["a"] * 4 + ["b"] * 4
    assert rows[-1]["denoised_mean"] == pytest.approx(found.final[1].mean())
    labels = plot_trajectories(found).axes[0].get_legend_handles_labels()[1]
    assert labels == ["a", "b"]
    rotation = measure_rotation(model, KEY, shape=(3, 3), sigmas=grid)
    assert len(rotation_rows(rotation)) == 4
    assert len(plot_rotation(rotation).axes[0].lines) == 3


def test_what_cannot_be_compared_is_one_line():
    model = isotropic_gaussian(jnp.zeros(3), 1.0)
    with pytest.raises(InputError, match="no candidate"):
        compare_trajectories(model, {}, KEY, shape=(2, 3), sigmas=karras(4))
    with pytest.raises(InputError, match="n >= 1"):
        next(trace_blocks(model, KEY, (0, 3), karras(4)))
    with pytest.raises(InputError, match="at least two"):
        measure_rotation(model, KEY, shape=(2, 3), sigmas=[1.0])
