"""The contractive loss: its penalty, Hutchinson's estimate, and denoising beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.autoencoder.contraction import contraction_penalty, rcae_loss
from configs.errors import InputError

KEY = jax.random.key(3)
WEIGHTS = np.random.default_rng(0).normal(size=(6, 6))


def reconstruction(x):
    """tanh(x W), on any event shape."""
    return jnp.tanh(x.reshape(len(x), -1) @ WEIGHTS.astype(x.dtype)).reshape(x.shape)


def samples(n):
    return np.random.default_rng(1).normal(size=(n, 2, 3))


def penalty_of(x):
    """|dr/dx|_F^2, float64: rows of W^T times 1 - tanh^2."""
    slope = 1 - np.tanh(x.reshape(len(x), -1) @ WEIGHTS) ** 2
    return slope**2 @ np.sum(WEIGHTS**2, axis=0)


def test_the_exact_loss_is_its_definition():
    x, sigma = samples(5), np.geomspace(0.1, 1, 5)
    moved = np.tanh(x.reshape(5, -1) @ WEIGHTS) - x.reshape(5, -1)
    error = np.sum(moved**2, axis=1)
    with jax.enable_x64(True):
        found, plain = jax.jit(
            lambda x, sigma: [
                rcae_loss(reconstruction, x, sigma, weight=w) for w in (None, 1.0)
            ]
        )(jnp.asarray(x), sigma)
    expected = error + sigma**2 * penalty_of(x)
    np.testing.assert_allclose(plain, expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(found, (expected / sigma**2).mean(), rtol=1e-12)


def test_hutchinson_is_unbiased():
    x, n = samples(1), 10_000
    many = jnp.asarray(np.repeat(x, n, axis=0), jnp.float32)
    for probes in (1, 3):
        found = contraction_penalty(reconstruction, many, key=KEY, probes=probes)
        error = np.std(found) / np.sqrt(n)
        assert abs(np.mean(found) - penalty_of(x)[0]) < 3 * error
        assert 1e-3 < error / penalty_of(x)[0] < 2e-2


def test_as_many_probes_as_dimensions_are_exact():
    x = samples(4)
    found = contraction_penalty(
        reconstruction, jnp.asarray(x, jnp.float32), key=KEY, probes=6
    )
    np.testing.assert_allclose(found, penalty_of(x), rtol=1e-5)


def losses(move, sigma):
    """The denoising loss by quadrature in float64, and the contractive one."""
    x = np.linspace(-2, 2, 41)[:, None]
    z, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def r(x, numpy):
        return x + move(sigma) * (numpy.sin(2 * x) - x)

    denoising = (((r(x + sigma * z, np) - x) ** 2) @ weights).mean()
    with jax.enable_x64(True):
        contraction = rcae_loss(lambda x: r(x, jnp), jnp.asarray(x), sigma, weight=1.0)
    return denoising, float(contraction)


def test_denoising_and_contraction_differ_by_less_than_sigma_squared_near_the_score():
    gaps = [np.subtract(*losses(lambda s: s**2, s)) for s in (0.2, 0.1, 0.05)]
    orders = np.log2(np.abs(np.divide(gaps[:-1], gaps[1:])))
    assert (orders > 5).all(), orders


def test_of_an_r_held_fixed_they_differ_by_sigma_squared():
    x, sigma = np.linspace(-2, 2, 41), 0.02
    gap = np.subtract(*losses(lambda _: 0.5, sigma)) / sigma**2
    # E[(r - x) r'']
    expected = np.mean(0.5 * (np.sin(2 * x) - x) * -2 * np.sin(2 * x))
    np.testing.assert_allclose(gap, expected, rtol=0.01)


X = jnp.ones((2, 3))
BAD = {
    "no key": (lambda: rcae_loss(lambda y: y, X, 0.1, probes=1), "key is missing"),
    "too many": (
        lambda: rcae_loss(lambda y: y, X, 0.1, key=KEY, probes=4),
        r"\[1, 3\]",
    ),
    "large": (lambda: rcae_loss(lambda y: y, jnp.ones((2, 65)), 0.1), "give probes"),
    "shape": (lambda: rcae_loss(lambda y: y[:, :2], X, 0.1), "must return"),
    "sigma": (lambda: rcae_loss(lambda y: y, X, 0.0), "sigma contains 0"),
    "data": (lambda: rcae_loss(lambda y: y, X * jnp.nan, 0.1), "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case):
    call, says = BAD[case]
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
