"""Coefficients against their formulas in float64, and what they are for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from configs.network_schema import MLPConfig
from configs.schema import DataConfig, PreconditioningConfig
from diffusion import NeuralDenoiser
from diffusion.closed_form import GaussianDenoiser, fit_gaussian, load_gaussian
from diffusion.data import split_of
from diffusion.gaussian_preconditioning import GaussianPreconditioning
from diffusion.networks import build_network
from diffusion.noise import LogUniform, VPUniform
from diffusion.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from diffusion.training import load_denoiser, train
from diffusion.uncertainty import init_uncertainty, log_uncertainty

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_a_network_of_iddpm_is_asked_at_known_levels_only",
    "test_gaussian_preconditioning_without_a_network_is_the_closed_form",
    "test_input_and_target_have_unit_variance_on_gaussian_data[0.05-edm]",
    "test_input_and_target_have_unit_variance_on_gaussian_data[0.05-gaussian]",
    "test_input_and_target_have_unit_variance_on_gaussian_data[0.7-gaussian]",
    "test_input_and_target_have_unit_variance_on_gaussian_data[30.0-gaussian]",
    "test_training_on_a_gaussian_keeps_it_in_the_workdir",
    "test_with_flips_the_gaussian_is_that_of_the_mirror_images_too",
)

SIGMA = np.array([0.01, 0.5, 20.0])


def test_edm_preconditioning_is_table_1():
    sigma, sd = np.array([0.01, 0.5, 20.0]), 0.85
    with jax.enable_x64(True):
        c = EDMPreconditioning(sd)(jnp.asarray(sigma))
        weight = EDMPreconditioning(sd).loss_weight(jnp.asarray(sigma))
    np.testing.assert_allclose(c.c_skip, sd**2 / (sigma**2 + sd**2), rtol=1e-12)
    np.testing.assert_allclose(c.c_out, sigma * sd / np.hypot(sigma, sd), rtol=1e-12)
    np.testing.assert_allclose(c.c_in, 1 / np.hypot(sigma, sd), rtol=1e-12)
    np.testing.assert_allclose(c.c_noise, np.log(sigma) / 4, rtol=1e-12)
    np.testing.assert_allclose(
        weight, (sigma**2 + sd**2) / (sigma * sd) ** 2, rtol=1e-12
    )
    with pytest.raises(InputError, match="sigma_data"):
        EDMPreconditioning(0.0)


def coefficients(rule, sigma=SIGMA):
    with jax.enable_x64(True):
        return [np.asarray(c) for c in rule(jnp.asarray(sigma))]


def test_vp_coefficients():
    rule = VPPreconditioning()
    assert rule.sigma_min == pytest.approx(1.0005e-3, rel=1e-4)
    assert rule.sigma_max == pytest.approx(152.17, rel=1e-4)
    c_skip, c_out, c_in, c_noise = coefficients(rule)
    np.testing.assert_array_equal(c_skip, 1)
    np.testing.assert_allclose(c_out, -SIGMA, rtol=1e-12)
    np.testing.assert_allclose(c_in, 1 / np.hypot(SIGMA, 1), rtol=1e-12)
    t = c_noise / 999
    back = np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)
    np.testing.assert_allclose(back, SIGMA, rtol=1e-10)
    np.testing.assert_allclose(rule.loss_weight(SIGMA), SIGMA**-2)


def test_ve_coefficients():
    rule = VEPreconditioning()
    assert (rule.sigma_min, rule.sigma_max) == (0.02, 100)
    c_skip, c_out, c_in, c_noise = coefficients(rule)
    np.testing.assert_array_equal(c_skip, 1)
    np.testing.assert_array_equal(c_out, SIGMA)
    np.testing.assert_array_equal(c_in, 1)
    np.testing.assert_allclose(c_noise, np.log(SIGMA / 2), rtol=1e-12)


def test_iddpm_coefficients_and_levels():
    rule = IDDPMPreconditioning()
    abar = [np.sin(np.pi / 2 * j / 1000 / 1.008) ** 2 for j in range(1001)]
    u = [0.0]
    for j in range(1000, 0, -1):
        u.insert(0, np.sqrt((u[0] ** 2 + 1) / max(abar[j - 1] / abar[j], 0.001) - 1))
    np.testing.assert_allclose(rule.levels, u[:-1], rtol=1e-12)
    assert rule.sigma_min == pytest.approx(0.006425, rel=1e-3)
    assert rule.sigma_max == pytest.approx(20291, rel=1e-3)
    sigma = np.exp(np.random.default_rng(0).uniform(-6, 11, 200))
    index = np.abs(np.array(u[:-1])[None] - sigma[:, None]).argmin(axis=1)
    with jax.enable_x64(True):
        rounded = rule.round_sigma(jnp.asarray(sigma))
        c_skip, c_out, c_in, c_noise = rule(jnp.asarray(sigma))
    np.testing.assert_allclose(rounded, np.array(u)[index], rtol=1e-12)
    np.testing.assert_array_equal(c_noise, 999 - index)
    np.testing.assert_array_equal(c_skip, 1)
    np.testing.assert_allclose(c_out, -sigma, rtol=1e-12)
    np.testing.assert_allclose(c_in, 1 / np.hypot(sigma, 1), rtol=1e-12)


def test_a_network_of_iddpm_is_asked_at_known_levels_only():
    network = build_network(MLPConfig(8, 1), (3,), output_factor=2)
    params = jax.tree.map(lambda p: p + 0.1, network.init(jax.random.key(0)))
    rule = IDDPMPreconditioning()
    denoiser = NeuralDenoiser(params, network, rule)
    x = jnp.ones((1, 3))
    near = float(rule.levels[500])
    np.testing.assert_array_equal(denoiser(x, near), denoiser(x, near * 1.0001))
    raw = network.apply(
        params, x / np.sqrt(1 + near**2), jnp.asarray([499.0], jnp.float32)
    )
    assert raw.shape == (1, 6)
    np.testing.assert_allclose(denoiser(x, near), x - near * raw[:, :3], rtol=1e-4)


def test_laws_of_sigma_are_those_of_their_processes():
    p = np.array([0.0, 0.25, 0.5, 1.0])
    t = 1e-5 + p * (1 - 1e-5)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            VPUniform().quantile(jnp.asarray(p)),
            np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1),
            rtol=1e-7,
        )
        np.testing.assert_allclose(
            LogUniform().quantile(jnp.asarray(p)), 0.02 * 5000**p, rtol=1e-12
        )
    for law in (VPUniform(), LogUniform()):
        draws = np.sort(law.sample(jax.random.key(0), (4000,)))
        expected = law.quantile(jnp.asarray([0.1, 0.5, 0.9]))
        np.testing.assert_allclose(draws[[400, 2000, 3600]], expected, rtol=0.15)


def low_rank(v=0.05):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 4)))[0]
    return GaussianDenoiser(
        jnp.asarray(0.3 * rng.normal(size=(2, 2, 3))),
        jnp.asarray(basis),
        jnp.asarray([3.0, 1.0, 0.3, 0.1]),
        jnp.asarray(v),
    )


def samples_of(gaussian, count):
    rng = np.random.default_rng(1)
    basis, lam = np.asarray(gaussian.basis), np.asarray(gaussian.variances)
    white = rng.normal(size=(count, 12))
    modes = white @ basis
    scaled = (modes * (np.sqrt(lam) - np.sqrt(0.05))) @ basis.T + np.sqrt(0.05) * white
    return np.asarray(gaussian.mean) + scaled.reshape(-1, 2, 2, 3)


@pytest.mark.parametrize("kind", ["edm", "gaussian"])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 30.0])
def test_input_and_target_have_unit_variance_on_gaussian_data(kind, sigma):
    with jax.enable_x64(True):
        if kind == "gaussian":
            gaussian = low_rank()
            clean = samples_of(gaussian, 40_000)
            rule = GaussianPreconditioning(gaussian)
        else:
            clean = 0.8 * np.random.default_rng(1).normal(size=(40_000, 2, 2, 3))
            rule = EDMPreconditioning(0.8)
        noise = np.random.default_rng(2).normal(size=clean.shape)
        x = jnp.asarray(clean + sigma * noise)
        level = jnp.full((len(x), 1, 1, 1), sigma)
        c = rule(level)
        target = (clean - rule.skip(x, level)) / c.c_out
        assert float(jnp.mean((c.c_in * x) ** 2)) == pytest.approx(1, abs=0.02)
        assert float(jnp.mean(target**2)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 80.0])
def test_the_scale_of_a_gaussian_preconditioning_is_its_posterior_variance(sigma):
    lam, v, d = np.array([3.0, 1.0, 0.3, 0.1]), 0.05, 12
    s2 = sigma**2
    expected = np.sum(lam * s2 / (lam + s2)) + (d - 4) * v * s2 / (v + s2)
    with jax.enable_x64(True):
        gaussian = low_rank()
        rule = GaussianPreconditioning(gaussian)
        c = rule(jnp.asarray([[sigma]]))
        weight = rule.loss_weight(jnp.asarray(sigma))
        c = jax.tree.map(np.asarray, c)
        mean_square = np.mean(np.asarray(gaussian.mean) ** 2)
    np.testing.assert_allclose(c.c_out**2, expected / d, rtol=1e-12)
    np.testing.assert_allclose(weight, d / expected, rtol=1e-12)
    gain = (np.sum(lam / (lam + s2)) + (d - 4) * v / (v + s2)) / d
    np.testing.assert_allclose(c.c_skip, gain, rtol=1e-10)
    total = (lam.sum() + (d - 4) * v) / d + mean_square
    np.testing.assert_allclose(c.c_in, 1 / np.sqrt(total + s2), rtol=1e-12)
    np.testing.assert_allclose(c.c_noise, np.log(sigma) / 4, rtol=1e-12, atol=1e-15)


def test_gaussian_preconditioning_without_a_network_is_the_closed_form():
    network = build_network(MLPConfig(8, 1), (2, 2, 3))
    with jax.enable_x64(True):
        gaussian = low_rank()
        zeros = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0)))
        denoiser = NeuralDenoiser(zeros, network, GaussianPreconditioning(gaussian))
        x = jax.random.normal(jax.random.key(1), (3, 2, 2, 3), jnp.float64)
        sigma = jnp.asarray([0.1, 1.0, 20.0])
        np.testing.assert_allclose(denoiser(x, sigma), gaussian(x, sigma), rtol=1e-12)
        np.testing.assert_allclose(denoiser(x, 2.0), gaussian(x, 2.0), rtol=1e-12)


def with_gaussian(config, **data):
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        preconditioning=PreconditioningConfig(name="gaussian", rank=10),
    )


def test_training_on_a_gaussian_keeps_it_in_the_workdir(tiny_config, tmp_path):
    train(with_gaussian(tiny_config), tmp_path)
    denoiser = load_denoiser(tmp_path)
    fitted = fit_gaussian(split_of(DataConfig()).training.images, 10)
    assert isinstance(denoiser.preconditioning, GaussianPreconditioning)
    np.testing.assert_array_equal(
        denoiser.preconditioning.gaussian.variances, fitted.variances
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    # F starts near zero: the loss of the closed form, relative to its own error.
    assert rows[0]["ema_loss_held_out"] == pytest.approx(1, abs=0.25)
    (tmp_path / "preconditioning.npz").unlink()
    with pytest.raises(InputError, match=r"preconditioning\.npz"):
        load_denoiser(tmp_path)


def test_with_flips_the_gaussian_is_that_of_the_mirror_images_too(
    tiny_config, tmp_path
):
    config = with_gaussian(tiny_config, horizontal_flip=True)
    training = dataclasses.replace(config.training, num_steps=1)
    train(dataclasses.replace(config, training=training), tmp_path)
    images = split_of(DataConfig()).training.images
    both = np.concatenate([images, images[:, :, ::-1]])
    found = load_gaussian(tmp_path / "preconditioning.npz")
    np.testing.assert_allclose(
        found.variances, fit_gaussian(both, 10).variances, rtol=1e-5
    )
    np.testing.assert_allclose(found.mean, np.asarray(found.mean)[:, ::-1], atol=1e-6)


def test_the_learned_weight_is_least_at_the_expected_loss():
    params = init_uncertainty(jax.random.key(0))
    c_noise = jnp.linspace(-1, 1, 50)
    loss = jnp.exp(jnp.cos(2 * c_noise))
    np.testing.assert_array_equal(log_uncertainty(params, c_noise), 0)

    def objective(weight):
        log = log_uncertainty({**params, "weight": weight}, c_noise)
        return jnp.mean(loss / jnp.exp(log) + log)

    @jax.jit
    def descend(weight):
        step = lambda _, w: w - 0.5 * jax.grad(objective)(w)  # noqa: E731
        return jax.lax.fori_loop(0, 2000, step, weight)

    weight = descend(params["weight"])
    found = log_uncertainty({**params, "weight": weight}, c_noise)
    np.testing.assert_allclose(found, jnp.log(loss), atol=0.05)


@pytest.mark.slow
def test_uncertainty_weighting_trains_and_is_no_part_of_the_denoiser(
    tiny_config, tmp_path
):
    training = dataclasses.replace(tiny_config.training, uncertainty_weighting=True)
    train(dataclasses.replace(tiny_config, training=training), tmp_path)
    denoiser = load_denoiser(tmp_path)
    assert "loss_uncertainty" not in denoiser.params
    assert denoiser(jnp.zeros((1, 8, 8, 1)), 1.0).shape == (1, 8, 8, 1)
