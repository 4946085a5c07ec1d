"""Principal directions one by one: emergence, steps, variances, learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.sample_variances import compare_variances, variance_rows
from analysis.spectrum import (
    emergence_rows,
    measure_emergence,
    perturbation_response,
    perturbation_rows,
)
from analysis.study_plots import plot_emergence, plot_perturbation, plot_variances
from configs import InputError
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    isotropic_gaussian,
)
from samplers import karras, log_linear

# Most of a minute of compilation.
pytestmark = pytest.mark.slow


KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=4)
TURN = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
VARIANCES = np.array([9.0, 1.0, 0.05, 0.002])
FINE = log_linear(120, 0.002, 80.0)


def gaussian():
    return GaussianDenoiser(
        jnp.asarray(MEAN), jnp.asarray(TURN), jnp.asarray(VARIANCES)
    )


def two_points():
    """Points at -1 and 1 on the first axis, with the Gaussian of the same moments."""
    points = np.array([[1.0, 0.0], [-1.0, 0.0]])
    model = GaussianDenoiser(jnp.zeros(2), jnp.eye(2), jnp.asarray([1.0, 0.0]))
    return EmpiricalDenoiser(jnp.asarray(points)), model


def test_features_of_a_gaussian_emerge_as_predicted():
    with jax.enable_x64(True):
        model = gaussian()
        found = measure_emergence(
            model, model, KEY, sigmas=FINE, num_samples=7, block_size=4
        )
    assert found.directions.tolist() == [0, 1, 2, 3]
    expected = np.sqrt(VARIANCES / (VARIANCES + FINE[:, None] ** 2))
    np.testing.assert_allclose(found.predicted, expected, rtol=2e-3)
    np.testing.assert_allclose(found.measured, found.predicted, rtol=2e-3)
    np.testing.assert_allclose(found.half_measured, np.sqrt(3 * VARIANCES), rtol=3e-3)
    assert found.standard_error.max() < 1e-3


def test_two_points_emerge_slower_at_first_and_then_at_once():
    """High up D is the Gaussian's, and x_0 = sign(x_T): the slope is E|n| of it."""
    with jax.enable_x64(True):
        model, gauss = two_points()
        found = measure_emergence(
            model, gauss, KEY, sigmas=karras(40), num_samples=200, directions=[0]
        )
    early, error = found.sigmas > 10, found.standard_error[:, 0]
    gap = found.measured[:, 0] - found.predicted[:, 0]
    slope = np.sqrt(2 / np.pi) * found.predicted[:, 0]
    assert (np.abs(found.measured[:, 0] - slope)[early] < 3 * error[early]).all()
    assert (gap[early] < -4 * error[early]).all()
    late = (found.sigmas > 0.1) & (found.sigmas < 0.5)
    assert (gap[late] > 5 * error[late]).all()
    assert found.half_measured[0] < 0.9 * found.half_predicted[0]


def test_the_error_of_a_slope_is_its_spread_over_seeds():
    points = np.array([-4.0, -0.5, 1.0, 3.5])
    model = EmpiricalDenoiser(jnp.asarray(points)[:, None])
    variance = jnp.asarray([points.var()])
    gauss = GaussianDenoiser(jnp.zeros(1), jnp.eye(1), variance)
    runs = [
        measure_emergence(
            model,
            gauss,
            jax.random.key(seed),
            sigmas=[30.0, 6.0, 3.0, 1.5],
            num_samples=60,
        )
        for seed in range(40)
    ]
    slopes = np.array([run.measured[:3, 0] for run in runs])
    errors = np.array([run.standard_error[:3, 0] for run in runs])
    ratio = slopes.std(axis=0, ddof=1) / np.sqrt(np.mean(errors**2, axis=0))
    assert ((ratio > 0.7) & (ratio < 1.4)).all(), ratio


def test_a_step_off_a_gaussians_path_changes_the_sample_as_predicted():
    with jax.enable_x64(True):
        model = gaussian()
        found = perturbation_response(
            model,
            model,
            KEY,
            sigmas=FINE,
            levels=(30.0, 0.5),
            num_samples=3,
            directions=[0, 2],
            size=0.3,
            block_size=2,
        )
    variances = VARIANCES[[0, 2]]
    expected = np.sqrt(variances / (variances + found.levels[:, None] ** 2))
    np.testing.assert_allclose(found.predicted, expected, rtol=1e-4)
    np.testing.assert_allclose(found.measured, expected, rtol=2e-3)
    np.testing.assert_allclose(found.off, 0, atol=1e-9)
    assert found.standard_error.max() < 1e-9
    assert found.levels == pytest.approx([30, 0.5], rel=0.05)


def test_a_step_between_two_points_is_not_what_the_gaussian_says():
    """Where every sample has chosen its point, a step is undone."""
    with jax.enable_x64(True):
        model, gauss = two_points()
        found = perturbation_response(
            model,
            gauss,
            KEY,
            sigmas=karras(20),
            levels=(0.2,),
            num_samples=20,
            directions=[0],
        )
    assert found.predicted[0, 0] > 0.95
    assert abs(found.measured[0, 0]) < 0.2


def test_variances_of_samples_are_found_within_their_errors():
    with jax.enable_x64(True):
        samples = np.asarray(gaussian().sample(KEY, 4000))
        found = compare_variances(samples, gaussian())
    expected = np.diag(TURN.T @ np.cov(samples.T) @ TURN)
    np.testing.assert_allclose(found.measured, expected, rtol=1e-9)
    assert (np.abs(found.measured - VARIANCES) < 5 * found.standard_error).all()
    # Of a Gaussian the error is sqrt(2/n) of the variance.
    relative = found.standard_error / VARIANCES
    np.testing.assert_allclose(relative, np.sqrt(2 / 4000), rtol=0.2)


def test_rows_and_figures_have_every_direction():
    model = isotropic_gaussian(jnp.zeros(4), 1.0)
    gauss = GaussianDenoiser(jnp.zeros(4), jnp.eye(4), jnp.asarray([2.0, 1, 1, 1e-12]))
    grid = karras(4)
    emergence = measure_emergence(model, gauss, KEY, sigmas=grid, num_samples=2)
    assert emergence.directions.tolist() == [0, 1, 2]  # those that vary
    assert np.isnan(emergence.standard_error).all()
    assert len(emergence_rows(emergence)) == 12
    assert len(plot_emergence(emergence).axes) == 2
    response = perturbation_response(
        model, gauss, KEY, sigmas=grid, levels=(17.0,), num_samples=2, num_directions=2
    )
    assert len(perturbation_rows(response)) == 2
    assert len(plot_perturbation(response).axes) == 2
    comparison = compare_variances(RNG.normal(size=(9, 4)), gauss)
    assert variance_rows(comparison)[3]["variance"] == pytest.approx(1e-12)
    assert plot_variances(comparison).axes[0].get_ylabel()


def test_what_cannot_be_measured_is_one_line():
    model = GaussianDenoiser(jnp.zeros(4), jnp.eye(4), jnp.asarray([2.0, 1, 1, 0]))
    with pytest.raises(InputError, match=r"in \[0, 3\)"):
        measure_emergence(model, model, KEY, sigmas=[1.0], directions=[3])
    with pytest.raises(InputError, match="above 0"):
        perturbation_response(model, model, KEY, sigmas=[1.0], size=0.0)
    with pytest.raises(InputError, match="at least two"):
        compare_variances(np.zeros((1, 4)), model)
