"""Options of the networks: recomputed blocks, bfloat16, dropped labels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from scipy import stats

from configs.network_schema import DhariwalUNetConfig, SongUNetConfig
from diffusion.networks import build_network
from diffusion.networks.layers import GroupNorm, drop_labels

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_bfloat16_is_near_float32",
    "test_bfloat16_multiplies_narrow_and_normalises_wide",
)

EVENT = (8, 8, 3)
CONFIGS = {
    "song": SongUNetConfig(
        16, (1, 2), num_blocks=1, attention_resolutions=(4,), label_dim=3, dropout=0.2
    ),
    "dhariwal": DhariwalUNetConfig(
        16, (1, 2), num_blocks=1, attention_resolutions=(4,), label_dim=3, dropout=0.2
    ),
}
NAMES = ["song", pytest.param("dhariwal", marks=pytest.mark.slow)]
# Compiled in seconds; the few calls may be slow.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.cache
def network_of(name, **changes):
    return build_network(dataclasses.replace(CONFIGS[name], **changes), EVENT)


@functools.cache
def compiled(name, dtype="float32"):
    return quick_jit(
        network_of(name, dtype=dtype, label_dropout=0.3, dropout=0.0).apply
    )


@functools.cache
def params_of(name):
    """Parameters of order one: branches that start at zero are switched on."""
    params = network_of(name).init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        structure,
        [
            p + np.asarray(rng.normal(0, p.shape[-1] ** -0.5 / 2, p.shape), np.float32)
            for p in leaves
        ],
    )


def inputs_of(batch=100):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch, *EVENT)).astype(np.float32)
    c_noise = rng.uniform(-1, 1, batch).astype(np.float32)
    return x, c_noise, np.eye(3, dtype=np.float32)[rng.integers(0, 3, batch)]


def loss_of(network, key):
    x, c_noise, labels = inputs_of(4)

    def loss(params):
        y = network.apply(params, x, c_noise, labels=labels, dropout_key=key)
        return jnp.mean(jnp.square(y - 1))

    return loss


def saved_bytes(loss, params):
    """Return what the forward pass keeps for the gradient, besides the parameters."""
    kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)]
    return sum(sizes) - sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_recomputed_blocks_keep_less_for_the_gradient(name):
    kept = {
        checkpoint: saved_bytes(
            loss_of(network_of(name, checkpoint_blocks=checkpoint), jax.random.key(2)),
            params_of(name),
        )
        for checkpoint in (False, True)
    }
    assert 0 < kept[True] < kept[False] / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_recomputed_blocks_change_nothing(name):
    """Not even the dropout masks, which are drawn again; in float64."""
    found = {}
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params_of(name))
        for checkpoint in (False, True):
            network = network_of(name, checkpoint_blocks=checkpoint)
            loss = loss_of(network, jax.random.key(2))
            found[checkpoint] = quick_jit(jax.value_and_grad(loss))(params)
    value, gradient = found[True]
    wanted_value, wanted = found[False]
    np.testing.assert_allclose(value, wanted_value, rtol=1e-6)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 1e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
        gradient,
        wanted,
    )


def equations(jaxpr):
    """Yield the equations of a program and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                yield from equations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_bfloat16_multiplies_narrow_and_normalises_wide(name):
    network = network_of(name, dtype="bfloat16")
    program = jax.make_jaxpr(network.apply)(params_of(name), *inputs_of(2))
    dtypes = {}
    for equation in equations(program.jaxpr):
        operands = [variable.aval for variable in equation.invars]
        if any(operand.ndim == 0 for operand in operands):
            continue  # a factor such as 1/sqrt(channels per head)
        found = dtypes.setdefault(equation.primitive.name, set())
        found.update(str(operand.dtype) for operand in operands)
    # Convolutions; dense layers and attention.
    assert dtypes["conv_general_dilated"] == {"bfloat16"}
    assert dtypes["dot_general"] == {"bfloat16"}
    # Softmax: exp(x - max)/sum.  Norms: means, squares, root and quotient.
    for primitive in ("exp", "reduce_max", "reduce_sum", "sqrt", "square", "div"):
        assert dtypes[primitive] == {"float32"}, primitive
    assert {str(v.aval.dtype) for v in program.jaxpr.outvars} == {"bfloat16"}


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near_float32(name):
    outputs = {
        dtype: np.asarray(compiled(name, dtype)(params_of(name), *inputs_of()))
        for dtype in ("float32", "bfloat16")
    }
    error = outputs["bfloat16"].astype(np.float64) - outputs["float32"]
    relative = np.linalg.norm(error) / np.linalg.norm(outputs["float32"])
    # One rounding is up to 2^-9; here are some twenty layers.
    assert 2**-11 < relative < 0.02


def test_norms_of_bfloat16_features_are_those_of_float32():
    x = np.random.default_rng(0).normal(100, 3, size=(1, 64, 64, 8))
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    layer = GroupNorm(8, epsilon=1e-6, rngs=nnx.Rngs(0))
    found = np.asarray(layer(jnp.asarray(x, jnp.bfloat16)), np.float64)
    groups = x.reshape(1, 4096, 2, 4)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    wanted = centred / np.sqrt(groups.var(axis=(1, 3), keepdims=True) + 1e-6)
    # The result's own rounding, and nothing of the sums over 16,384 values near 100.
    np.testing.assert_allclose(found, wanted.reshape(x.shape), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("per_example", [False, True])
def test_labels_are_dropped_at_the_stated_rate(per_example):
    count, rate = 20_000, 0.15
    key = jax.random.key(3)
    keys = jax.random.split(key, count) if per_example else key
    labels, left = drop_labels(jnp.ones((count, 3)), rate, keys)
    dropped = ~np.asarray(labels).any(axis=1)
    assert np.all(np.asarray(labels)[~dropped] == 1)  # whole labels, never parts
    low, high = stats.binom.interval(1 - 1e-6, count, rate)
    assert low <= dropped.sum() <= high
    assert left.shape == keys.shape
    assert not jnp.any(jax.random.key_data(left) == jax.random.key_data(keys))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_networks_drop_labels_with_a_key_only(name):
    apply, params = compiled(name), params_of(name)
    x, c_noise, labels = inputs_of()
    without = apply(params, x, c_noise, np.zeros_like(labels))
    plain = apply(params, x, c_noise, labels)
    mixed = apply(params, x, c_noise, labels, dropout_key=jax.random.key(4))

    def equal(wanted):
        return np.abs(mixed - wanted).max(axis=(1, 2, 3)) < 1e-5

    assert np.abs(plain - without).max(axis=(1, 2, 3)).min() > 1e-3
    assert np.all(equal(without) ^ equal(plain))
    low, high = stats.binom.interval(1 - 1e-6, len(x), 0.3)
    assert low <= equal(without).sum() <= high
