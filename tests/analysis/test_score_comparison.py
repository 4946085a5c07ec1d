"""Explained variance against closed forms."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.comparison.candidates import gaussian_candidates
from analysis.comparison.ranges import best_ranges, ranges_where, unexplained_ranges
from analysis.score_comparison import (
    Comparison,
    Summary,
    compare_denoisers,
    explained_variance,
)
from configs import InputError
from diffusion.closed_form import GaussianDenoiser, isotropic_gaussian

MEAN = jnp.asarray([0.3, -0.2, 0.1])


def test_explained_variance_of_known_arrays():
    reference = jnp.asarray([[3.0, 4.0], [0.0, 2.0]])
    assert float(explained_variance(reference, reference)) == 1
    assert float(explained_variance(reference, 0 * reference)) == 0
    candidate = jnp.asarray([[3.0, 0.0], [1.0, 2.0]])
    # Unexplained: 16/25 and 1/4.
    assert float(explained_variance(reference, candidate)) == pytest.approx(
        1 - (16 / 25 + 1 / 4) / 2
    )
    assert float(explained_variance(reference, -reference)) == pytest.approx(-3)


def test_a_gaussian_against_an_isotropic_one_has_a_closed_form():
    """One axis alone varies, so every ratio is the same number for all probes."""
    sigma, variance, guess = 0.7, 1.5, 0.4
    data = GaussianDenoiser(MEAN, jnp.eye(3), jnp.full(3, variance))
    rng = np.random.default_rng(0)
    images = np.asarray(MEAN) + np.sqrt(variance) * rng.normal(size=(50, 3))
    found = compare_denoisers(
        data,
        {"guess": isotropic_gaussian(MEAN, guess)},
        images.astype(np.float32),
        [sigma],
        jax.random.key(0),
        mean=MEAN,
        batch_size=16,
    )
    # D - mean = v/(v + s^2) z and the score is -z/(v + s^2).
    s2 = sigma**2
    ratio = (guess / (guess + s2)) / (variance / (variance + s2))
    score_ratio = (variance + s2) / (guess + s2)
    assert found.num_probes == 50
    for summary, fraction in (
        (found.denoised, (1 - ratio) ** 2),
        (found.denoised_pooled, (1 - ratio) ** 2),
        (found.denoised_reversed, (1 - 1 / ratio) ** 2),
        (found.score, (1 - score_ratio) ** 2),
        (found.score_pooled, (1 - score_ratio) ** 2),
        (found.score_reversed, (1 - 1 / score_ratio) ** 2),
    ):
        np.testing.assert_allclose(summary.mean, [[1 - fraction]], rtol=1e-4)
        assert summary.standard_error[0, 0] < 1e-4
    # E|D - D'|^2/D over x of variance v + s^2, to within its standard error.
    gap = variance / (variance + s2) - guess / (guess + s2)
    expected = gap**2 * (variance + s2)
    error = found.squared_error.standard_error[0, 0]
    assert abs(found.squared_error.mean[0, 0] - expected) < 5 * error


def two_gaussians():
    """Two Gaussians of other variances, and samples of the first, in 3-D float64."""
    true, guessed = np.array([2.0, 0.5, 0.1]), np.array([1.0, 0.8, 0.02])
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    mean = jnp.asarray(MEAN, jnp.float64)
    a, b = (
        GaussianDenoiser(mean, jnp.asarray(basis), jnp.asarray(lam))
        for lam in (true, guessed)
    )
    white = np.random.default_rng(2).normal(size=(4000, 3)) * np.sqrt(true)
    return true, guessed, basis, a, b, np.asarray(MEAN) + white @ basis.T


def test_gaussians_of_other_variances_obey_the_closed_form_in_every_direction():
    sigmas = np.array([0.3, 2.0])
    with jax.enable_x64(True):
        true, guessed, basis, a, b, images = two_gaussians()
        found = compare_denoisers(
            a,
            {"guess": b},
            images,
            sigmas,
            jax.random.key(3),
            mean=MEAN,
            batch_size=1024,
            directions=basis,
        )
    s2 = sigmas[:, None] ** 2
    # Along u_k, x - mean has variance v + s^2, and D and the score are multiples of it.
    spread = true + s2
    error = (true / spread - guessed / (guessed + s2)) ** 2 * spread
    power = (true / spread) ** 2 * spread
    directions = found.directions.error
    gap = np.abs(directions.mean[0] - error) / directions.standard_error[0]
    assert gap.max() < 4
    np.testing.assert_allclose(directions.mean[0], error, rtol=0.1)
    np.testing.assert_allclose(found.directions.power, power, rtol=0.1)
    score_power = spread / spread**2
    score_error = error / s2**2
    for summary, expected in (
        (found.denoised_pooled, 1 - error.sum(1) / power.sum(1)),
        (found.score_pooled, 1 - score_error.sum(1) / score_power.sum(1)),
        (found.squared_error, error.mean(1)),
    ):
        gap = np.abs(summary.mean[0] - expected) / summary.standard_error[0]
        assert gap.max() < 4
        np.testing.assert_allclose(summary.mean[0], expected, rtol=0.1)


def test_every_quantity_is_that_of_the_arrays_in_float64():
    """The sums over padded blocks against NumPy on all probes at once."""
    sigma, key = 0.6, jax.random.key(4)
    with jax.enable_x64(True):
        true, guessed, basis, a, b, images = two_gaussians()
        images, mean = images[:10], np.asarray(a.mean)
        found = compare_denoisers(
            a, {"b": b}, images, [sigma], key, mean=mean, batch_size=4, directions=basis
        )
        level_key = jax.random.fold_in(key, 0)
        noise = [
            jax.random.normal(jax.random.fold_in(level_key, i), (3,), jnp.float64)
            for i in range(10)
        ]
    x = images + sigma * np.asarray(noise)

    def denoised(lam):
        return mean + (x - mean) @ basis * (lam / (lam + sigma**2)) @ basis.T

    ours, theirs = denoised(true), denoised(guessed)
    error = ((ours - theirs) ** 2).sum(1)
    for summary, power, pool in (
        (found.score, ((ours - x) ** 2).sum(1), found.score_pooled),
        (found.denoised, ((ours - mean) ** 2).sum(1), found.denoised_pooled),
        (found.score_reversed, ((theirs - x) ** 2).sum(1), None),
        (found.denoised_reversed, ((theirs - mean) ** 2).sum(1), None),
    ):
        values = 1 - error / power
        np.testing.assert_allclose(summary.mean[0, 0], values.mean(), rtol=1e-9)
        expected = values.std(ddof=1) / np.sqrt(10)
        np.testing.assert_allclose(summary.standard_error[0, 0], expected, rtol=1e-9)
        if pool is not None:
            expected = 1 - error.mean() / power.mean()
            np.testing.assert_allclose(pool.mean[0, 0], expected, rtol=1e-9)
    gap = ours - theirs
    np.testing.assert_allclose(found.pixel_error[0, 0], np.abs(gap).mean(0), rtol=1e-9)
    along = (gap @ basis) ** 2
    directions = found.directions.error
    np.testing.assert_allclose(directions.mean[0, 0], along.mean(0), rtol=1e-9)
    expected = along.std(0, ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(directions.standard_error[0, 0], expected, rtol=1e-6)


def test_the_reference_is_called_once_per_block_whatever_the_number_of_candidates():
    calls = Counter()

    def counted(x, sigma):
        jax.debug.callback(lambda: calls.update(["call"]))
        return x / (1 + sigma**2)

    told = Counter()
    compare_denoisers(
        counted,
        {f"guess {i}": isotropic_gaussian(MEAN, 0.1 * i) for i in range(5)},
        np.zeros((10, 3), np.float32),
        [0.5, 1.0, 2.0],
        jax.random.key(0),
        mean=MEAN,
        batch_size=4,
        after_call=lambda name: told.update([name]),
    )
    jax.effects_barrier()
    assert calls["call"] == 3 * 3
    assert told == {"": 9, **{f"guess {i}": 9 for i in range(5)}}


def test_zeros_as_images_make_probes_of_pure_noise():
    """A score -x/(1 + s^2) against -x/s^2: the fraction is (1/s^2)^2 everywhere."""
    sigma = 2.0
    found = compare_denoisers(
        isotropic_gaussian(0 * MEAN, 1.0),
        {"nothing": isotropic_gaussian(0 * MEAN, 0.0)},
        np.broadcast_to(np.zeros((), np.float32), (6, 3)),
        [sigma],
        jax.random.key(0),
        mean=0 * MEAN,
    )
    np.testing.assert_allclose(1 - found.score.mean, 1 / sigma**4, rtol=1e-5)


def test_knowing_the_mean_alone_explains_nothing_of_the_centred_image():
    gaussian = GaussianDenoiser(MEAN, jnp.eye(3)[:, :2], jnp.asarray([2.0, 0.5]), 0.1)
    found = compare_denoisers(
        gaussian,
        gaussian_candidates(gaussian),
        np.zeros((7, 3), np.float32),
        [0.5, 5.0],
        jax.random.key(0),
        mean=MEAN,
    )
    assert found.names == ("Gaussian", "isotropic", "mean-isotropic")
    np.testing.assert_allclose(found.denoised.mean[0], 1, atol=1e-6)
    np.testing.assert_allclose(found.denoised.mean[2], 0, atol=1e-6)
    assert 0 < found.denoised.mean[1, 0] < 1


def test_probes_do_not_depend_on_the_batch_size():
    gaussian = GaussianDenoiser(MEAN, jnp.eye(3), jnp.asarray([2.0, 0.5, 0.1]))
    images = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    a, b = (
        compare_denoisers(
            gaussian,
            gaussian_candidates(gaussian),
            images,
            [0.5],
            jax.random.key(0),
            mean=MEAN,
            batch_size=size,
        )
        for size in (3, 10)
    )
    np.testing.assert_allclose(a.score.mean, b.score.mean, atol=1e-5)
    np.testing.assert_allclose(a.pixel_error, b.pixel_error, atol=1e-5)


def planted(score, error):
    """A comparison of these explained variances of the score, (M, L)."""
    score = np.asarray(score)
    summary = Summary(score, np.full(score.shape, error))
    sigmas = np.geomspace(0.1, 10, score.shape[1])
    return Comparison(("a", "b"), sigmas, 9, summary, summary, summary)


def test_ranges_name_the_best_candidate_and_say_where_it_is_clear():
    found = planted([[0.9, 0.7, 0.5, 0.99], [0.4, 0.7001, 0.9, 0.2]], 0.01)
    first, second, third = best_ranges(found)
    assert (first.name, second.name, third.name) == ("a", "b", "a")
    assert (second.lowest, second.highest) == tuple(found.sigmas[1:3])
    assert (second.num_levels, second.num_clear) == (2, 1)
    assert sum(one.num_levels for one in best_ranges(found)) == 4
    below = unexplained_ranges(found, "a", 0.2)
    assert [(one.lowest, one.highest) for one in below] == [
        (found.sigmas[0], found.sigmas[0]),
        (found.sigmas[3], found.sigmas[3]),
    ]
    assert list(ranges_where(found.sigmas, np.zeros(4, bool), "a")) == []


def test_bad_calls_get_one_line():
    gaussian = isotropic_gaussian(MEAN, 1.0)
    images = np.zeros((2, 3), np.float32)

    def compare(candidates, sigmas, **more):
        key = jax.random.key(0)
        more = {"mean": MEAN, **more}
        return compare_denoisers(gaussian, candidates, images, sigmas, key, **more)

    for call, says in [
        (lambda: explained_variance(np.ones((2, 3)), np.ones((3, 3))), "shape"),
        (lambda: explained_variance(np.ones(3), np.ones(3)), "shape"),
        (lambda: explained_variance(np.ones((0, 3)), np.ones((0, 3))), "n >= 1"),
        (lambda: compare({}, [1.0]), "at least one"),
        (lambda: compare({"a": gaussian}, [0.0]), "> 0"),
        (lambda: compare({"a": gaussian}, [1.0], batch_size=0), "batch_size is 0"),
        (lambda: compare({"a": gaussian}, [1.0], mean=0.0), r"mean has shape \(\)"),
        (
            lambda: compare({"a": gaussian}, [1.0], directions=np.eye(2)),
            "directions have shape",
        ),
        (
            lambda: compare({"a": gaussian}, [1.0], directions=np.ones(3)),
            "directions have shape",
        ),
    ]:
        with pytest.raises(InputError, match=says):
            call()
