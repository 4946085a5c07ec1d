"""Explained variance against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.candidates import gaussian_candidates
from analysis.score_comparison import compare_denoisers, explained_variance
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
    denoised = 1 - (1 - (guess / (guess + s2)) / (variance / (variance + s2))) ** 2
    score = 1 - (1 - (variance + s2) / (guess + s2)) ** 2
    assert found.num_probes == 50
    np.testing.assert_allclose(found.denoised.mean, [[denoised]], rtol=1e-4)
    np.testing.assert_allclose(found.score.mean, [[score]], rtol=1e-4)
    assert found.denoised.standard_error[0, 0] < 1e-4
    # E|D - D'|^2/D over x of variance v + s^2, to within its standard error.
    gap = variance / (variance + s2) - guess / (guess + s2)
    expected = gap**2 * (variance + s2)
    error = found.squared_error.standard_error[0, 0]
    assert abs(found.squared_error.mean[0, 0] - expected) < 5 * error


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


def test_bad_calls_get_one_line():
    gaussian = isotropic_gaussian(MEAN, 1.0)
    images = np.zeros((2, 3), np.float32)
    for call, says in [
        (lambda: explained_variance(np.ones((2, 3)), np.ones((3, 3))), "shape"),
        (lambda: explained_variance(np.ones(3), np.ones(3)), "shape"),
        (lambda: explained_variance(np.ones((0, 3)), np.ones((0, 3))), "n >= 1"),
        (
            lambda: compare_denoisers(
                gaussian, {}, images, [1.0], jax.random.key(0), mean=MEAN
            ),
            "at least one",
        ),
        (
            lambda: compare_denoisers(
                gaussian,
                {"a": gaussian},
                images,
                [0.0],
                jax.random.key(0),
                mean=MEAN,
            ),
            "> 0",
        ),
    ]:
        with pytest.raises(InputError, match=says):
            call()
