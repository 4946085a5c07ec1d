"""Reconstructions as scores: closed forms of Gaussians, mixtures and data sets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from analysis.autoencoder.network import AutoencoderDenoiser, AutoencoderNetwork
from analysis.autoencoder.reconstruction import (
    at_sigma,
    dae_loss,
    hessian_from_recon,
    kde_reconstruction,
    reconstruct,
    reconstruction_jacobian,
    score_from_recon,
)
from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers import Heun, integrate

KEY = jax.random.key(0)
SIGMA = 0.3


def points(n=40, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def posterior(data, x, sigma):
    """Mean (n, d) and covariance (n, d, d) of a data set's point given x, float64."""
    logits = -np.sum((x[:, None] - data) ** 2, axis=2) / (2 * sigma**2)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mean = p @ data
    centred = data - mean[:, None]
    return mean, np.einsum("nk,nki,nkj->nij", p, centred, centred)


@functools.cache
def kernel_average():
    """Queries, and r, its Jacobian, score and Hessian there, of 40 points."""
    with jax.enable_x64(True):
        x = jnp.asarray(points(5, seed=1))

        @jax.jit
        def everything(data, x):
            r = kde_reconstruction(data, SIGMA)
            return (
                r(x),
                reconstruction_jacobian(r, x),
                score_from_recon(r, x, SIGMA),
                hessian_from_recon(r, x, SIGMA),
            )

        found = everything(jnp.asarray(points()), x)
        return np.asarray(x), *(np.asarray(value) for value in found)


def log_density(x):
    logits = -np.sum((x[:, None] - points()) ** 2, axis=2) / (2 * SIGMA**2)
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def test_the_jacobian_of_the_optimum_is_the_posterior_covariance():
    x, r, jacobian, _, hessian = kernel_average()
    mean, covariance = posterior(points(), x, SIGMA)
    np.testing.assert_allclose(r, mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(jacobian, covariance / SIGMA**2, atol=1e-9)
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-10)
    assert np.linalg.eigvalsh(jacobian).min() > -1e-10
    exact = (covariance / SIGMA**2 - np.eye(3)) / SIGMA**2
    np.testing.assert_allclose(hessian, exact, atol=1e-7)


def test_the_score_is_the_slope_of_the_log_density():
    x, _, _, score, _ = kernel_average()
    step = 1e-5
    for axis in range(3):
        moved = step * np.eye(3)[axis]
        slope = (log_density(x + moved) - log_density(x - moved)) / (2 * step)
        np.testing.assert_allclose(score[:, axis], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_kernel_average_of_gaussian_data_is_the_wiener_filter():
    # Quantiles of N(0, v): a data set whose kernel density is N(0, v + sigma^2).
    variance, sigma = 0.5, 0.4
    share = (np.arange(4000) + 0.5) / 4000
    data = np.sqrt(variance) * norm.ppf(share)[:, None]
    with jax.enable_x64(True):
        x = jnp.linspace(-1, 1, 21)[:, None]
        r = np.asarray(kde_reconstruction(jnp.asarray(data), sigma)(x))
    slope = np.polyfit(np.linspace(-1, 1, 21), r[:, 0], 1)[0]
    assert abs(slope - variance / (variance + sigma**2)) < 1e-3


def test_the_hessian_of_the_noisy_density_tends_to_that_of_the_clean_one():
    # log p of weights .5, .5 at -1 and 1, variance .3: Hessian in closed form.
    x, variance = np.linspace(-1.5, 1.5, 7), 0.3

    def second(v):
        p = 1 / (1 + np.exp(-2 * x / v))
        return -1 / v + 4 * p * (1 - p) / v**2

    def reconstruction(sigma, samples):
        total = variance + sigma**2
        side = jnp.tanh(samples / total)
        return side + variance / total * (samples - side)

    errors = []
    with jax.enable_x64(True):
        hessian = jax.jit(
            lambda sigma, x: hessian_from_recon(
                functools.partial(reconstruction, sigma), x, sigma
            )
        )
        for sigma in (0.1, 0.05):
            found = np.asarray(hessian(sigma, jnp.asarray(x[:, None])))[:, 0, 0]
            np.testing.assert_allclose(found, second(variance + sigma**2), rtol=1e-9)
            errors.append(np.abs(found - second(variance)).max())
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1, errors


def test_the_loss_has_its_gaussian_expectation():
    # r = a x on N(0, v I): (1 - a)^2 v + a^2 sigma^2 per element.
    a, v, d, n = 0.7, 1.5, 2, 40_000
    x = jnp.asarray(np.sqrt(v) * points(n, d), jnp.float32)
    found = [
        float(dae_loss(lambda y: a * y, x, KEY, SIGMA, weight=w)) for w in (None, 1.0)
    ]
    expected = d * ((1 - a) ** 2 * v + a**2 * SIGMA**2)
    spread = np.sqrt(2 * d) * expected / d / np.sqrt(n)
    assert abs(found[1] - expected) < 4 * spread
    np.testing.assert_allclose(found[0], found[1] / SIGMA**2, rtol=1e-5)


def test_the_identity_has_as_much_loss_as_dimensions():
    x = jnp.asarray(points(20_000, 4), jnp.float32)
    sigma = jnp.asarray(np.geomspace(0.01, 1, len(x)), jnp.float32)
    found = float(dae_loss(lambda y: y, x, KEY, sigma))
    assert abs(found - 4) < 4 * np.sqrt(8 / len(x))


def autoencoder(form="residual", **options):
    network = AutoencoderNetwork((2, 2), (5, 4), form=form, scale=0.5, **options)
    params = jax.tree.map(lambda p: p + 0.1, network.init(KEY))
    return AutoencoderDenoiser(params, jnp.float32(SIGMA), network)


@pytest.mark.parametrize(
    ("form", "activation"), [("residual", "silu"), ("direct", "tanh")]
)
def test_the_network_is_the_stated_perceptron(form, activation):
    denoiser = autoencoder(form, activation=activation, squash=2.0)
    x = points(3, 4).reshape(3, 2, 2)
    y = x.reshape(3, 4) / 0.5
    for layer in denoiser.params[:-1]:
        y = y @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias)
        y = np.tanh(y) if activation == "tanh" else y / (1 + np.exp(-y))
    last = denoiser.params[-1]
    y = 2 * np.tanh(y @ np.asarray(last.weight) + np.asarray(last.bias))
    y = y.reshape(x.shape)
    expected = x + SIGMA * y if form == "residual" else y
    found = jax.jit(lambda d, x: d(x))(denoiser, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_residual_form_starts_as_the_identity():
    network = AutoencoderNetwork((2,), (5,))
    x = jnp.asarray(points(3, 2), jnp.float32)
    np.testing.assert_array_equal(network.apply(network.init(KEY), x, 0.1), x)


def test_an_autoencoder_works_in_a_sampler_at_its_sigma():
    denoiser = autoencoder()
    x = jnp.asarray(points(3, 4).reshape(3, 2, 2), jnp.float32)
    found = integrate(Heun(), denoiser, x, np.array([SIGMA]))
    np.testing.assert_allclose(found.x, denoiser(x, SIGMA), rtol=1e-6)


def test_an_autoencoder_refuses_another_sigma():
    denoiser = autoencoder()
    x = jnp.zeros((2, 2, 2))
    denoiser(x, np.float32(SIGMA))
    for sigma in (0.31, np.array([SIGMA, 0.5]), 1e-3):
        with pytest.raises(InputError, match=r"trained at sigma 0\.3") as caught:
            denoiser(x, sigma)
        assert "\n" not in str(caught.value)


def test_any_denoiser_held_at_a_sigma_is_a_reconstruction():
    gaussian = GaussianDenoiser(
        jnp.zeros(2), jnp.eye(2), jnp.asarray([2.0, 0.5]), jnp.zeros(())
    )
    x = jnp.asarray(points(4, 2), jnp.float32)
    expected = np.asarray(x) * np.array([2.0, 0.5]) / (np.array([2.0, 0.5]) + 0.25)
    np.testing.assert_allclose(at_sigma(gaussian, 0.5)(x), expected, rtol=1e-5)


X = jnp.ones((2, 3))
BAD = {
    "another shape": (lambda: dae_loss(lambda y: y[:, :1], X, KEY, 0.1), "must return"),
    "shape of score": (lambda: score_from_recon(lambda y: y.T, X, 0.1), "must return"),
    "shape of hessian": (
        lambda: hessian_from_recon(lambda y: y[:, :1], X, 0.1),
        "must return",
    ),
    "no noise": (lambda: dae_loss(lambda y: y, X, KEY, 0.0), "sigma contains 0"),
    "infinite noise": (lambda: score_from_recon(lambda y: y, X, jnp.inf), "finite"),
    "negative noise": (lambda: kde_reconstruction(X, -1.0), "sigma is -1.0"),
    "data": (lambda: dae_loss(lambda y: y, X * jnp.nan, KEY, 0.1), "not finite"),
    "points": (lambda: kde_reconstruction(X * jnp.inf, 0.1), "not finite"),
    "activation": (lambda: AutoencoderNetwork((2,), activation="tan"), "'tanh'"),
    "form": (lambda: AutoencoderNetwork((2,), form="residul"), "'residual'"),
    "hidden": (lambda: AutoencoderNetwork((2,), ()), "hidden is"),
    "scale": (lambda: AutoencoderNetwork((2,), scale=0.0), "scale is"),
    "squash": (lambda: AutoencoderNetwork((2,), squash=-1.0), "squash is"),
    "event": (lambda: autoencoder()(X), "events of shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case):
    call, says = BAD[case]
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_reconstruct_returns_what_it_was_given():
    assert reconstruct(lambda y: 2 * y, X)[0, 0] == 2
