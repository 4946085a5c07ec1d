"""What every denoiser promises; add yours to `DENOISERS`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.autoencoder.network import AutoencoderDenoiser, AutoencoderNetwork
from analysis.kernels.diffusion_regression import dsm_triples
from analysis.kernels.kernel_denoiser import (
    KernelDenoiser,
    Lifting,
    fit_kernel_denoiser,
)
from configs import InputError
from configs.network_schema import MLPConfig, SongUNetConfig
from diffusion import Denoiser, NeuralDenoiser, predicted_noise, score
from diffusion.closed_form import fit_gaussian, isotropic_gaussian
from diffusion.networks import build_network
from diffusion.preconditioning import EDMPreconditioning

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_is_differentiable[song_unet]",
    "test_samples_do_not_see_each_other[song_unet]",
    "test_score_and_noise_are_the_same_statement[song_unet]",
)

EVENT = (4, 4, 1)


def _images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, *EVENT)).astype(np.float32)


def _neural(config) -> NeuralDenoiser:
    network = build_network(config, EVENT)
    params = network.init(jax.random.key(0))
    noisy = jax.tree.map(lambda p: p + 0.05, params)  # no branch is switched off
    return NeuralDenoiser(noisy, network, EDMPreconditioning(0.7))


def _kernel() -> KernelDenoiser:
    rows = jnp.asarray(_images().reshape(20, -1))
    triples = dsm_triples(jax.random.key(2), rows, 20, (0.05, 5.0))
    lifting = Lifting((0.05, 5.0))
    return fit_kernel_denoiser(triples, 10.0, lifting=lifting, event=EVENT, radius=8.0)


def _autoencoder() -> AutoencoderDenoiser:
    network = AutoencoderNetwork(EVENT, (8, 8))
    params = jax.tree.map(lambda p: p + 0.05, network.init(jax.random.key(0)))
    return AutoencoderDenoiser(params, jnp.float32(0.5), network)  # its own sigma


DENOISERS = {
    "autoencoder": _autoencoder,
    "gaussian": lambda: fit_gaussian(_images()),
    "gaussian_low_rank": lambda: fit_gaussian(_images(), rank=5),
    "isotropic": lambda: isotropic_gaussian(_images().mean(0), 0.4),
    "kernel": _kernel,
    "mean_only": lambda: isotropic_gaussian(_images().mean(0), 0.0),
    "perceptron": lambda: _neural(MLPConfig(width=8, num_layers=1)),
    "song_unet": lambda: _neural(
        SongUNetConfig(4, (1, 2), num_blocks=1, attention_resolutions=(2,))
    ),
}


@pytest.fixture(scope="module", params=sorted(DENOISERS))
def denoiser(request):
    return DENOISERS[request.param]()


@pytest.fixture(scope="module")
def call(denoiser):
    return jax.jit(lambda d, x, sigma: d(x, sigma))


def _noisy(n: int = 3, scale: float = 1.5) -> jnp.ndarray:
    return scale * jax.random.normal(jax.random.key(1), (n, *EVENT))


def test_is_a_denoiser_and_a_pytree_of_arrays(denoiser):
    assert isinstance(denoiser, Denoiser)
    leaves = jax.tree.leaves(denoiser)
    assert leaves
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keeps_shape_and_dtype(denoiser, call, dtype):
    x = _noisy().astype(dtype)
    result = call(denoiser, x, jnp.float32(0.5))
    assert result.shape == x.shape
    assert result.dtype == x.dtype


def test_one_sigma_equals_a_sigma_for_each(denoiser, call):
    x = _noisy()
    one = call(denoiser, x, jnp.float32(0.5))
    each = call(denoiser, x, jnp.full(3, 0.5))
    np.testing.assert_allclose(one, each, atol=1e-6)


def test_samples_do_not_see_each_other(denoiser, call):
    x, sigma = _noisy(), jnp.asarray([0.1, 1.0, 10.0])
    together = call(denoiser, x, sigma)
    for i in range(3):
        alone = call(denoiser, x[i : i + 1], sigma[i : i + 1])
        np.testing.assert_allclose(together[i : i + 1], alone, atol=2e-6)


def test_score_and_noise_are_the_same_statement(denoiser):
    x, sigma = _noisy(), jnp.float32(0.5)
    denoised = jax.jit(lambda: denoiser(x, sigma))()
    np.testing.assert_allclose(
        jax.jit(lambda: score(denoiser, x, sigma))(),
        (denoised - x) / 0.25,
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        jax.jit(lambda: predicted_noise(denoiser, x, sigma))(),
        (x - denoised) / 0.5,
        rtol=1e-5,
        atol=1e-5,
    )


def test_is_differentiable(denoiser):
    loss = jax.jit(jax.grad(lambda x: jnp.sum(denoiser(x, 0.5) ** 2)))
    gradient = loss(_noisy())
    assert np.isfinite(gradient).all()


def test_extreme_noise_levels_stay_finite(denoiser, call):
    for sigma in (1e-3, 200.0):
        assert np.isfinite(call(denoiser, _noisy(), jnp.float32(sigma))).all()


@pytest.mark.parametrize(
    ("x", "sigma", "says"),
    [
        (_noisy(), 0.0, "> 0"),
        (_noisy(), -1.0, "> 0"),
        (_noisy(), float("nan"), "finite"),
        (_noisy(), np.ones(2), r"\(3,\)"),
        (_noisy()[0, 0, 0], 1.0, "give"),
        (jnp.ones((2, *EVENT), jnp.int32), 1.0, "dtype"),
        (jnp.ones((2, 3, 4, 1)), 1.0, "shape"),
    ],
)
def test_bad_calls_get_one_line(denoiser, x, sigma, says):
    with pytest.raises(InputError, match=says) as caught:
        denoiser(x, sigma)
    assert "\n" not in str(caught.value)
