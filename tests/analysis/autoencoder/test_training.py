"""Trained auto-encoders: against the Wiener filter, and on a spiral."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.autoencoder.local_geometry import (
    angle_error,
    curl_norm,
    tangent_normal_singular_values,
)
from analysis.autoencoder.reconstruction import dae_loss
from analysis.autoencoder.training import (
    AutoencoderSettings,
    sigma_schedule,
    train_autoencoder,
)
from configs.errors import InputError

KEY = jax.random.key(7)
TINY = AutoencoderSettings((0.5,), hidden=(8,), num_steps=30, batch_size=16)
VARIANCES = np.array([1.0, 0.25])


def gaussian_data(n=4000):
    """(n, 2) points with exactly the moments of N(0, diag(VARIANCES))."""
    x = np.random.default_rng(0).normal(size=(n, 2))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T
    return jnp.asarray(x * np.sqrt(VARIANCES), jnp.float32)


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def wiener_error(settings, sigma):
    """Relative rms error against the Wiener filter, on fresh noisy samples."""
    trained = train_autoencoder(settings, gaussian_data(), KEY)
    rng = np.random.default_rng(1)
    noisy = rng.normal(size=(2000, 2)) * np.sqrt(VARIANCES + sigma**2)
    exact = noisy * VARIANCES / (VARIANCES + sigma**2)
    found = trained.denoiser(jnp.asarray(noisy, jnp.float32), sigma)
    return np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))


def test_trained_on_a_gaussian_it_is_the_wiener_filter():
    settings = AutoencoderSettings(
        (0.5,), hidden=(16,), num_steps=1200, batch_size=1024, learning_rate=1e-2
    )
    assert wiener_error(settings, 0.5) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("probes", [None, 1])
def test_contraction_of_a_gaussian_is_the_wiener_filter_too(probes):
    settings = AutoencoderSettings(
        (0.5,),
        hidden=(16,),
        objective="contraction",
        probes=probes,
        num_steps=3000,
        batch_size=512,
        learning_rate=1e-2,
    )
    assert wiener_error(settings, 0.5) < 0.03


def test_training_depends_on_the_key_and_not_on_the_chunks():
    data, told = gaussian_data(100), []
    whole = train_autoencoder(TINY, data, KEY)
    parts = train_autoencoder(
        TINY, data, KEY, chunk=7, progress=lambda step, loss: told.append((step, loss))
    )
    assert equal(whole.denoiser, parts.denoiser)
    assert [step for step, _ in told] == [7, 14, 21, 28, 30] == list(parts.steps)
    np.testing.assert_array_equal([loss for _, loss in told], parts.losses)
    other = train_autoencoder(TINY, data, jax.random.key(8))
    assert not equal(whole.denoiser, other.denoiser)


def test_a_schedule_trains_at_each_level_and_ends_at_its_own():
    settings = dataclasses.replace(TINY, sigmas=sigma_schedule(0.05))
    assert settings.sigmas == pytest.approx((0.5, 0.25, 0.1, 0.05))
    trained = train_autoencoder(settings, gaussian_data(100), KEY)
    assert list(trained.steps) == [7, 14, 21, 30]
    assert float(trained.denoiser.sigma) == pytest.approx(0.05)
    # The first seven steps are those of a training at the first level alone.
    first = train_autoencoder(TINY, gaussian_data(100), KEY, chunk=7)
    assert trained.losses[0] == first.losses[0]
    assert trained.losses[1] != first.losses[1]


@functools.cache
def spiral(length=12):
    """Clean points, noisy points at sigma .01, and E[x0 | noisy] - noisy in float64."""
    rng = np.random.default_rng(0)

    def curve(u):
        t = 3 + length * u
        return 0.04 * t[:, None] * np.stack([np.sin(t), np.cos(t)], axis=1)

    clean = jnp.asarray(curve(rng.uniform(size=1000)), jnp.float32)
    noisy = curve(rng.uniform(size=300)) + 0.01 * rng.normal(size=(300, 2))
    dense = curve((np.arange(8000) + 0.5) / 8000)
    logits = -np.sum((noisy[:, None] - dense) ** 2, axis=2) / (2 * 0.01**2)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    truth = p @ dense / p.sum(axis=1, keepdims=True) - noisy
    return clean, jnp.asarray(noisy, jnp.float32), jnp.asarray(truth, jnp.float32)


def measured(length=12, **options):
    """Loss over sigma^2, median angle to the truth, and the denoiser."""
    clean, noisy, truth = spiral(length)
    settings = AutoencoderSettings((0.01,), **options)
    denoiser = train_autoencoder(settings, clean, KEY, chunk=4000).denoiser
    loss = float(dae_loss(denoiser, jnp.tile(clean, (20, 1)), KEY, 0.01))
    angles = angle_error(denoiser(noisy) - noisy, truth)
    return loss, float(np.median(angles)), denoiser


def test_the_residual_form_learns_an_arc_where_the_direct_form_does_not():
    small = {"hidden": (32, 32), "num_steps": 400, "batch_size": 128, "scale": 0.05}
    small["learning_rate"] = 1e-2
    residual, direct = (
        measured(4, **small, form=form)[:2] for form in ("residual", "direct")
    )
    assert residual[0] < 1.15 < 1.6 < direct[0], (residual, direct)
    assert residual[1] < 12 < 25 < direct[1], (residual, direct)


@pytest.mark.slow
def test_a_spiral_is_learned_to_a_few_degrees():
    loss, angle, denoiser = measured(num_steps=4000)
    assert loss < 1.1
    assert angle < 10
    on_curve = spiral()[0][:200]
    values = tangent_normal_singular_values(denoiser, on_curve)
    assert abs(np.median(values.tangent) - 1) < 0.02
    assert np.median(values.normal) < 0.1
    assert np.median(curl_norm(denoiser, on_curve)) < 0.05


@pytest.mark.slow
def test_one_layer_of_tanh_needs_the_residual_form():
    old = {"hidden": (500,), "activation": "tanh", "optimizer": "lbfgs"}
    residual = measured(**old, num_steps=400, scale=0.1)
    direct = measured(**old, num_steps=400, form="direct", squash=2.0, scale=1.0)
    assert residual[0] < 1.5 < direct[0], (residual[:2], direct[:2])
    assert residual[1] < 30 < 45 < direct[1], (residual[:2], direct[:2])


BAD = {
    "noise": (lambda: AutoencoderSettings((0.0,)), "sigmas is"),
    "no noise": (lambda: AutoencoderSettings(()), "sigmas is"),
    "rising noise": (lambda: AutoencoderSettings((0.1, 0.2)), "decreasing"),
    "infinite noise": (lambda: AutoencoderSettings((np.inf, 0.2)), "finite"),
    "objective": (lambda: AutoencoderSettings(objective="denoise"), "'denoising'"),
    "optimizer": (lambda: AutoencoderSettings(optimizer="bfgs"), "'lbfgs'"),
    "steps": (lambda: AutoencoderSettings(num_steps=0), "num_steps is 0"),
    "rate": (lambda: AutoencoderSettings(learning_rate=0.0), "learning_rate is"),
    "batch": (lambda: AutoencoderSettings(batch_size=0), "batch_size is"),
    "replicas": (lambda: AutoencoderSettings(replicas=0), "replicas is"),
    "factors": (lambda: sigma_schedule(0.1, factors=(1.0, 2.0)), "decreasing to 1"),
    "schedule": (lambda: sigma_schedule(0.0), "sigma is 0.0"),
    "data": (lambda: train_autoencoder(TINY, jnp.ones((3, 2)) / 0, KEY), "not finite"),
    "integers": (lambda: train_autoencoder(TINY, jnp.ones((3, 2), int), KEY), "floats"),
    "no batch": (lambda: train_autoencoder(TINY, jnp.ones(3), KEY), "give floats"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case):
    call, says = BAD[case]
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_loss_that_explodes_is_refused():
    wild = dataclasses.replace(TINY, learning_rate=1e30)
    with pytest.raises(InputError, match="lower learning_rate") as caught:
        train_autoencoder(wild, gaussian_data(100), KEY)
    assert "\n" not in str(caught.value)
