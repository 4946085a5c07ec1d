"""The automatic skip: exact forced flow, predictions, refusals."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    fit_gaussian,
    fit_mixture,
)
from diffusion.data.batches import to_data_units
from diffusion.data.builtin import load_builtin
from samplers import DPMSolverPP, Heun, Prior, Teleport, UniPC, integrate, log_linear
from samplers.skip import (
    SKIP_SIGMAS,
    ForcedDenoiser,
    ForcedFlow,
    SkipCandidate,
    choose_skip,
)
from samplers.skip_calibration import (
    SkipCalibration,
    calibrate_skip,
    load_skip_calibration,
    require_matched,
    save_skip_calibration,
)

LEVELS = log_linear(9, 0.01, 40.0)


def _gaussian(rank=3, size=5, seed=0) -> GaussianDenoiser:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0][:, :rank]
    return GaussianDenoiser(
        rng.normal(size=size) / 3,  # pyright: ignore[reportArgumentType]
        basis,  # pyright: ignore[reportArgumentType]
        np.array([1.0, 0.2, 0.01, 0.0004, 0.5])[:rank],  # pyright: ignore[reportArgumentType]
        0.0 if rank == size else 0.03,
    )


def _calibration(size=5, seed=1) -> SkipCalibration:
    rng = np.random.default_rng(seed)
    residuals = rng.normal(size=(LEVELS.size, 2, size)) / 5
    noise = rng.normal(size=(2, size))
    return SkipCalibration(LEVELS, residuals, noise, np.full(LEVELS.size, 10.0))


def _candidates(solver, points, skips=(None, *SKIP_SIGMAS)):
    return [
        SkipCandidate(skip, solver, log_linear(points, 0.002, skip or 80.0))
        for skip in skips
    ]


def _forced(gaussian, calibration, x, u):
    """D_s in NumPy, from a dense covariance."""
    basis, variances = np.asarray(gaussian.basis), np.asarray(gaussian.variances)
    rest = float(gaussian.residual_variance) * (np.eye(len(basis)) - basis @ basis.T)
    covariance = basis * variances @ basis.T + rest
    sigma = np.exp(-u)
    gains = np.linalg.solve(covariance + sigma**2 * np.eye(len(basis)), covariance)
    flat = calibration.residuals.reshape(LEVELS.size, -1)
    r = [np.interp(u, -np.log(LEVELS), column) for column in flat.T]
    return gaussian.mean + (x - gaussian.mean) @ gains + np.reshape(r, x.shape)


def _brute_force(gaussian, calibration, x, start, end):
    """Runge-Kutta of order 4 between the levels, dx/du = D_s - x."""
    inside = LEVELS[(LEVELS < start) & (LEVELS > end)]
    edges = -np.log(np.concatenate([[start], inside, [end]]))
    for a, b in itertools.pairwise(edges):
        h = (b - a) / 200
        for u in a + h * np.arange(200):
            k1 = _forced(gaussian, calibration, x, u) - x
            k2 = _forced(gaussian, calibration, x + h / 2 * k1, u + h / 2)
            k2 -= x + h / 2 * k1
            k3 = _forced(gaussian, calibration, x + h / 2 * k2, u + h / 2)
            k3 -= x + h / 2 * k2
            k4 = _forced(gaussian, calibration, x + h * k3, u + h) - x - h * k3
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.mark.parametrize("rank", [3, 5])
def test_the_closed_form_is_the_integral_of_the_forced_flow(rank):
    gaussian, calibration = _gaussian(rank), _calibration()
    exact = ForcedFlow(gaussian, calibration, 30.0)
    x = 30.0 * calibration.noise
    np.testing.assert_allclose(exact.x(30.0), x, rtol=1e-12)
    found = _brute_force(gaussian, calibration, x, 30.0, 0.7)
    np.testing.assert_allclose(exact.x(0.7), found, atol=1e-8)
    there = _forced(gaussian, calibration, found, -np.log(0.7))
    np.testing.assert_allclose(exact.denoised(0.7), there, atol=1e-8)


def test_what_a_teleport_misses_is_the_difference_carried_to_zero_by_the_gaussian():
    gaussian, calibration = _gaussian(), _calibration()
    exact = ForcedFlow(gaussian, calibration, 40.0)
    with jax.enable_x64(True):
        x = Teleport(gaussian, 40.0)(jnp.asarray(calibration.noise), 3.0)
        ends = [
            gaussian.flow(jnp.asarray(start), 3.0, 1e-9) for start in (x, exact.x(3.0))
        ]
    np.testing.assert_allclose(exact.missed(3.0), ends[1] - ends[0], atol=1e-8)


def test_forced_denoiser_adds_the_residual_of_each_sample_linear_in_log_sigma():
    gaussian, calibration = _gaussian(), _calibration()
    with jax.enable_x64(True):
        forced = ForcedDenoiser(gaussian, LEVELS, calibration.residuals)
        x, sigma = jnp.asarray(calibration.noise), jnp.asarray([0.3, 5.0])
        found = forced(x, sigma)
        ends = forced(x, jnp.asarray([0.001, 90.0])) - gaussian(
            x, jnp.asarray([0.001, 90.0])
        )
    for i in range(2):
        one = _forced(
            gaussian, calibration, calibration.noise, -np.log(float(sigma[i]))
        )
        np.testing.assert_allclose(found[i], one[i], atol=1e-12)
    np.testing.assert_allclose(ends[0], calibration.residuals[-1, 0], atol=1e-12)
    np.testing.assert_allclose(ends[1], calibration.residuals[0, 1], atol=1e-12)
    with pytest.raises(InputError, match="batch of shape"):
        forced(jnp.zeros((3, 5)), 1.0)


@pytest.mark.slow
def test_predicted_solver_error_vanishes_on_a_fine_grid():
    """Whatever carries the errors: the forced paths are the exact solution of both."""
    gaussian, calibration = _gaussian(), _calibration()
    calibration = calibration._replace(residuals=calibration.residuals / 10)
    other = MixtureDenoiser(
        jnp.zeros(2),
        jnp.eye(5)[:2],
        jnp.zeros((2, 5, 0)),
        jnp.zeros((2, 0)),
        jnp.full(2, 0.1),
    )
    for surrogate, most in ((None, 1e-3), (other, 1e-2)):
        fine = [SkipCandidate(None, Heun(), log_linear(300, 0.01, 40.0))]
        found = choose_skip(calibration, gaussian, fine, 40.0, surrogate=surrogate)
        assert found.predicted_error < most
        assert found.predicted_error == pytest.approx(found.solver_error, abs=1e-5)


def test_where_the_model_is_the_gaussian_teleports_miss_nothing_and_the_lowest_wins():
    gaussian = jax.tree.map(jnp.asarray, _gaussian())
    calibration = calibrate_skip(
        gaussian, gaussian, log_linear(8), jax.random.key(0), num_samples=4
    )
    assert calibration.rms.max() == 0
    found = choose_skip(
        calibration, gaussian, _candidates(DPMSolverPP(2), 6, (None, 20.0, 5.0)), 80.0
    )
    assert found.teleport_error == 0
    assert found.sigma_skip == 5.0
    errors = [row.predicted_error for row in found.table]
    assert errors == sorted(errors, reverse=True)


def test_near_ties_go_to_no_skip():
    gaussian = jax.tree.map(jnp.asarray, _gaussian())
    calibration = _calibration()
    fine = [
        SkipCandidate(skip, UniPC(3), log_linear(6, 0.01, 40.0))
        for skip in (40.0, None)
    ]
    assert choose_skip(calibration, gaussian, fine, 40.0).sigma_skip is None


@pytest.mark.slow
def test_batches_do_not_matter_and_every_sample_is_told_its_own_number():
    gaussian = jax.tree.map(jnp.asarray, _gaussian())

    def shifted_by_number(numbers):
        shift = jnp.asarray(numbers, jnp.float32)[:, None] * jnp.ones(5)
        return Shifted(shift, gaussian)

    ticks = []
    found = [
        calibrate_skip(
            gaussian,
            gaussian,
            log_linear(6),
            jax.random.key(3),
            num_samples=5,
            batch_size=size,
            denoiser_of=shifted_by_number,
            after_level=lambda: ticks.append(1),
        )
        for size in (2, 5)
    ]
    assert len(ticks) == 6 * (3 + 1)
    for one in found:
        assert one.residuals.shape == (6, 5, 5)
        wanted = np.broadcast_to(np.arange(5.0)[:, None], (6, 5, 5))
        np.testing.assert_allclose(one.residuals, wanted, atol=1e-4)
    np.testing.assert_allclose(found[0].noise, found[1].noise)


def test_weights_count_entries_as_that_many():
    gaussian = jax.tree.map(jnp.asarray, _gaussian())
    weights = np.array([1.0, 1.0, 1.0, 1.0, 4.0])
    found = calibrate_skip(
        Shifted(jnp.asarray([0.0, 0.0, 0.0, 0.0, 2.0]), gaussian),
        gaussian,
        log_linear(5),
        jax.random.key(0),
        num_samples=2,
        weights=weights,
    )
    np.testing.assert_allclose(found.rms, np.sqrt(4 * 2.0**2 / 8), rtol=1e-3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shifted:
    """A denoiser plus a constant."""

    shift: jax.Array
    inner: GaussianDenoiser

    def __call__(self, x, sigma):
        return self.inner(x, sigma) + self.shift


def test_a_calibration_survives_its_file_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "skip.npz"
    calibration = _calibration()._replace(weights=np.arange(1.0, 6.0))
    save_skip_calibration(path, calibration, about={"model_sha256": "abc"})
    found = load_skip_calibration(path)
    assert found.about == {"model_sha256": "abc"}
    for mine, other in zip(found.calibration, calibration, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=1e-6)
    broken = calibration._replace(noise=calibration.noise[:1])
    save_skip_calibration(path, broken, about={})
    with pytest.raises(InputError, match="damaged"):
        load_skip_calibration(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no skip calibration"):
        load_skip_calibration(path)
    with pytest.raises(InputError, match="no skip calibration at"):
        load_skip_calibration(tmp_path / "absent.npz")


def test_bad_arguments_are_refused_in_one_line():
    gaussian, calibration = jax.tree.map(jnp.asarray, _gaussian()), _calibration()
    with pytest.raises(InputError, match="no candidate"):
        choose_skip(calibration, gaussian, [], 40.0)
    with pytest.raises(InputError, match="sigma_max is 80, above 40"):
        choose_skip(calibration, gaussian, _candidates(Heun(), 3), 80.0)
    with pytest.raises(InputError, match="a grid begins at 80"):
        choose_skip(calibration, gaussian, _candidates(Heun(), 3), 40.0)
    with pytest.raises(InputError, match="the Gaussian of"):
        other = jax.tree.map(jnp.asarray, _gaussian(3, 6))
        choose_skip(calibration, other, _candidates(Heun(), 3, (40.0,)), 40.0)
    with pytest.raises(InputError, match="num_samples is 1"):
        calibrate_skip(gaussian, gaussian, LEVELS, jax.random.key(0), num_samples=1)


def _digits(low, high):
    data = load_builtin("digits")
    return data.images[(data.labels >= low) & (data.labels <= high)]


def _measure(truth, gaussian):
    return calibrate_skip(
        truth, gaussian, log_linear(16), jax.random.key(1), num_samples=16
    )


def test_statistics_of_shuffled_pixels_are_refused():
    images = _digits(0, 9)
    shuffled = np.random.default_rng(0).permutation(images.reshape(len(images), -1).T)
    other = fit_gaussian(shuffled.T.reshape(images.shape))
    truth = EmpiricalDenoiser(jnp.asarray(to_data_units(images)))
    require_matched(_measure(truth, fit_gaussian(images)))
    with pytest.raises(InputError, match="of another data set"):
        choose_skip(_measure(truth, other), other, _candidates(Heun(), 3), 80.0)


@pytest.mark.slow
def test_a_gaussian_of_other_digits_predicts_a_larger_error():
    truth = EmpiricalDenoiser(jnp.asarray(to_data_units(_digits(5, 9))))
    errors = []
    for images in (_digits(5, 9), _digits(0, 4)):
        gaussian = fit_gaussian(images)
        found = choose_skip(
            _measure(truth, gaussian),
            gaussian,
            _candidates(DPMSolverPP(2), 6, (None, 10.0, 3.5)),
            80.0,
        )
        errors.append([row.teleport_error for row in found.table])
    matched, other = np.array(errors)
    assert matched[0] == other[0] == 0
    assert (other[1:] > 3 * matched[1:]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, points",
    [(DPMSolverPP(2), 6), (DPMSolverPP(2), 8), (UniPC(3), 8), (Heun(), 5)],
)
def test_the_choice_is_within_a_tenth_of_the_best_on_a_mixture_of_digits(
    solver, points
):
    """The actual errors are measured by running every candidate on the mixture."""
    images, key = _digits(0, 9), jax.random.key(0)
    truth = fit_mixture(images, 10, rank=16, method="kmeans", key=key)
    coarse = fit_mixture(images[::2], 5, rank=8, method="kmeans", key=key)
    gaussian = fit_gaussian(images)
    candidates = _candidates(solver, points)
    calibration = calibrate_skip(
        truth, gaussian, log_linear(32), jax.random.key(1), num_samples=64
    )
    found = choose_skip(calibration, gaussian, candidates, 80.0, surrogate=coarse)
    noise = jax.random.normal(jax.random.key(9), (256, *images.shape[1:]))
    end = integrate(Heun(), truth, 80 * noise, log_linear(200)).x
    actual = {}
    for candidate in candidates:
        skip = candidate.sigma_skip
        start = Prior() if skip is None else Teleport(gaussian, 80.0)
        x = start(noise, candidate.sigmas[0])
        ours = integrate(solver, truth, x, candidate.sigmas).x
        actual[skip] = float(jnp.sqrt(jnp.mean((ours - end) ** 2)))
    assert actual[found.sigma_skip] <= 1.1 * min(actual.values())
    assert 0.7 < found.predicted_error / actual[found.sigma_skip] < 1.4
