"""The perceptron's condition and its adaptive scale; both change nothing when off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from configs.network_schema import MLPConfig
from diffusion.networks import build_network

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_a_zero_condition_is_no_condition[bfloat16-False]",
    "test_a_zero_condition_is_no_condition[bfloat16-True]",
    "test_a_zero_condition_is_no_condition[float32-False]",
    "test_an_adaptive_perceptron_trains_and_sees_the_noise_level",
)

EVENT = (3, 2)
X = jax.random.normal(jax.random.key(1), (5, *EVENT))
C_NOISE = jnp.linspace(-1.5, 1.0, 5)


def ready(**options):
    """Return a small network, its parameters moved off their near-zero start."""
    network = build_network(MLPConfig(width=16, num_layers=2, **options), EVENT)
    return network, jax.tree.map(lambda p: p + 0.05, network.init(jax.random.key(0)))


def largest(difference):
    return float(jnp.abs(difference).max())


@pytest.mark.parametrize("adaptive_scale", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_zero_condition_is_no_condition(adaptive_scale, dtype):
    network, params = ready(adaptive_scale=adaptive_scale, augment_dim=4, dtype=dtype)
    for apply in (network.apply, jax.jit(network.apply)):
        plain = apply(params, X, C_NOISE)
        neutral = apply(params, X, C_NOISE, condition=jnp.zeros((5, 4)))
        np.testing.assert_array_equal(plain, neutral)


@pytest.mark.parametrize("adaptive_scale", [False, True])
def test_every_entry_of_a_condition_matters(adaptive_scale):
    network, params = ready(adaptive_scale=adaptive_scale, augment_dim=4)
    plain = network.apply(params, X, C_NOISE)
    for row in jnp.eye(4):
        condition = jnp.zeros((5, 4)).at[2].set(row)
        other = network.apply(params, X, C_NOISE, condition=condition)
        assert largest(other[2] - plain[2]) > 1e-4
        kept = jnp.array([0, 1, 3, 4])
        np.testing.assert_array_equal(other[kept], plain[kept])


@pytest.mark.parametrize(
    ("augment_dim", "given", "says"),
    [(0, 3, "built for 0 of them"), (4, 3, "built for 4 of them")],
)
def test_a_condition_that_does_not_fit_is_refused(augment_dim, given, says):
    network, params = ready(augment_dim=augment_dim)
    with pytest.raises(InputError, match=says) as caught:
        network.apply(params, X, C_NOISE, condition=jnp.zeros((5, given)))
    assert "network.augment_dim" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match=r"network\.augment_dim"):
        MLPConfig(augment_dim=-1)


def test_options_that_are_off_leave_the_parameters_as_they_were():
    plain, conditioned, adaptive = (
        build_network(config, EVENT).init(jax.random.key(0))
        for config in (
            MLPConfig(width=16, num_layers=2),
            MLPConfig(width=16, num_layers=2, augment_dim=4),
            MLPConfig(width=16, num_layers=2, adaptive_scale=True),
        )
    )
    assert set(plain) == {"embed", "layer_in", "layer_out", "layers"}
    assert set(plain["layers"]["layer0"]) == {"inner", "affine", "outer"}
    assert plain["layers"]["layer0"]["affine"]["kernel"].shape == (16, 16)
    assert adaptive["layers"]["layer0"]["affine"]["kernel"].shape == (16, 32)
    added = conditioned.pop("map_augment")
    assert jax.tree.map(jnp.shape, added) == {"kernel": (4, 16)}
    # A network with a condition starts from the same weights as one without.
    jax.tree.map(np.testing.assert_array_equal, conditioned, plain)


def test_the_adaptive_layer_equals_numpy():
    network, params = ready(adaptive_scale=True)

    def dense(layer, y):
        return y @ layer["kernel"] + layer["bias"]

    def silu(y):
        return y / (1 + np.exp(-y))

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    frequencies = 10_000.0 ** -(np.arange(8) / 7)
    angles = np.asarray(C_NOISE, np.float64)[:, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    embedding = silu(dense(p["embed"], waves))
    y = dense(p["layer_in"], np.asarray(X, np.float64).reshape(5, -1))
    for layer in p["layers"].values():
        normed = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
        modulation = dense(layer["affine"], embedding)
        hidden = dense(layer["inner"], normed)
        hidden = hidden * (1 + modulation[:, :16]) + modulation[:, 16:]
        y = (y + dense(layer["outer"], silu(hidden))) * np.sqrt(0.5)
    expected = dense(p["layer_out"], silu(y)).reshape(X.shape)
    np.testing.assert_allclose(network.apply(params, X, C_NOISE), expected, atol=2e-5)


def test_an_adaptive_perceptron_trains_and_sees_the_noise_level():
    network, params = ready(adaptive_scale=True, augment_dim=4)
    plain = network.apply(params, X, C_NOISE)
    assert largest(network.apply(params, X, C_NOISE + 0.5) - plain) > 1e-4

    def loss(params):
        condition = jnp.ones((5, 4))
        return jnp.mean(
            (network.apply(params, X, C_NOISE, condition=condition) - X) ** 2
        )

    gradient = jax.grad(loss)(params)
    assert all(largest(leaf) > 0 for leaf in jax.tree.leaves(gradient))
    step = jax.jit(
        lambda p: jax.tree.map(lambda a, g: a - 0.05 * g, p, jax.grad(loss)(p))
    )
    start = float(loss(params))
    for _ in range(100):
        params = step(params)
    assert float(loss(params)) < 0.5 * start
