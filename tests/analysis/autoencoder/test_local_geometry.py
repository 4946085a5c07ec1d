"""Local moments, Jacobian spectra, angles and curls, against closed forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.autoencoder.local_geometry import (
    angle_error,
    curl_norm,
    local_moments,
    tangent_normal_singular_values,
)
from configs.errors import InputError

KEY = jax.random.key(1)
CENTRES = np.array([[1.0, 0.3, -0.5], [-0.6, -1.0, 0.4]])
VARIANCE = 0.8


def logp(points):
    """Two equal bumps in d dimensions, up to a constant."""
    centres = CENTRES[:, : points.shape[1]].astype(points.dtype)
    squares = jnp.sum((points[:, None] - centres) ** 2, axis=2)
    return jax.nn.logsumexp(-squares / (2 * VARIANCE), axis=1)


def score(x):
    centres = CENTRES[:, : x.shape[1]]
    logits = -np.sum((x[:, None] - centres) ** 2, axis=2) / (2 * VARIANCE)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (p @ centres - x) / VARIANCE


@functools.cache
def moments(d):
    """Points, and their local moments at three radii; float64, one program."""
    x = np.random.default_rng(d).normal(size=(3, d))
    with jax.enable_x64(True):
        call = jax.jit(local_moments, static_argnames=("logp", "draws"))
        found = [
            call(logp, jnp.asarray(x), jnp.float64(delta), KEY, draws=16_384)
            for delta in (0.4, 0.2, 0.1)
        ]
        return x, [type(m)(*(np.asarray(v) for v in m)) for m in found]


@pytest.mark.parametrize("d", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_local_moments_hold_the_score_and_the_ball(d):
    x, found = moments(d)
    smallest = found[-1]
    error = np.linalg.norm(smallest.score - score(x)) / np.linalg.norm(score(x))
    assert error < 0.02
    ball = 0.1**2 / (d + 2) * np.eye(d)
    np.testing.assert_allclose(
        smallest.covariance, np.broadcast_to(ball, (3, d, d)), atol=0.02 * ball[0, 0]
    )
    assert (smallest.effective > 30_000).all()


def test_the_error_of_local_moments_falls_as_delta_squared():
    found = moments(2)[1]
    # Paired draws: the same directions at every radius, so noise cancels.
    steps = [a.score - b.score for a, b in itertools.pairwise(found)]
    order = np.log2(np.linalg.norm(steps[0]) / np.linalg.norm(steps[1]))
    assert 1.7 < order < 2.3, order


ROTATED = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
STRETCH = ROTATED @ np.diag([1.0, 0.9, 0.1]) @ ROTATED.T


def linear(x):
    return x @ jnp.asarray(STRETCH.T, x.dtype)


def test_singular_values_along_and_across_a_plane():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    plane = ROTATED[:, :2] @ np.array([[2.0, 1.0], [0.0, 3.0]])
    given = tangent_normal_singular_values(linear, x, np.broadcast_to(plane, (4, 3, 2)))
    found = tangent_normal_singular_values(linear, x, dimension=2)
    for result in (given, found):
        np.testing.assert_allclose(result.tangent, [[1.0, 0.9]] * 4, atol=1e-5)
        np.testing.assert_allclose(result.normal, [[0.1]] * 4, atol=1e-5)
        projector = np.einsum("bik,bjk->bij", result.tangents, result.tangents)
        exact = ROTATED[:, :2] @ ROTATED[:, :2].T
        np.testing.assert_allclose(
            projector, np.broadcast_to(exact, (4, 3, 3)), atol=1e-5
        )


def test_curl_is_the_odd_part_of_the_jacobian():
    matrix = np.array([[1.0, 0.5], [-0.1, 2.0]])
    found = curl_norm(lambda x: x @ jnp.asarray(matrix.T, x.dtype), jnp.ones((2, 2)))
    odd, even = matrix - matrix.T, matrix + matrix.T
    expected = np.linalg.norm(odd) / np.linalg.norm(even)
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6)
    assert np.max(curl_norm(linear, jnp.ones((2, 3)))) < 1e-6


def test_angles_keep_their_digits_at_every_size():
    angles = np.array([0.0, 1e-3, 30.0, 90.0, 179.999, 180.0])
    turned = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)
    one = np.broadcast_to([1.0, 0.0], turned.shape).astype(np.float32)
    for size in (1.0, 1e-30, 1e30):
        found = angle_error((size * turned).astype(np.float32), one)
        np.testing.assert_allclose(found, angles, atol=2e-5)
    assert float(angle_error(jnp.zeros((1, 2)), one[:1])[0]) == pytest.approx(90)


X = jnp.ones((2, 3))
BAD = {
    "delta": (lambda: local_moments(logp, X, 0.0, KEY), "delta is 0.0"),
    "draws": (lambda: local_moments(logp, X, 0.1, KEY, draws=1), "draws is 1"),
    "centres": (lambda: local_moments(logp, X[0], 0.1, KEY), "centres"),
    "logp": (lambda: local_moments(lambda p: p, X, 0.1, KEY, draws=2), "one value"),
    "dimension": (
        lambda: tangent_normal_singular_values(linear, X, dimension=3),
        "dimension is 3",
    ),
    "tangents": (
        lambda: tangent_normal_singular_values(linear, X, jnp.ones((2, 2))),
        "tangents have shape",
    ),
    "angles": (lambda: angle_error(X, X[:1]), "one shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case):
    call, says = BAD[case]
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
