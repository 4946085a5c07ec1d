"""A two-layer ReLU network, and its tangent features without autodiff.

    f(z) = m^(-1/2) sum_r a_r relu(w_r . z),   w_r ~ N(0, I), a_r in {-1, +1}^d,

of which only W is trained (arXiv 2401.15604).  With P = Z W^T and A = 1{P > 0},

    f = (A P) a / sqrt(m),   J^T u = ((u a^T) A)^T Z / sqrt(m)     (A by element).

Both take A from any weights: from W itself, they are the network and its gradient; from
the start W(0), its linearisation there, as (A P) a is linear in W.  Neurons come in
pairs of equal w and opposite a, so that f is 0 at the start.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from configs.errors import InputError, require

__all__ = [
    "Movement",
    "Params",
    "activations",
    "apply",
    "flipped_fraction",
    "init",
    "largest_step",
    "masked_outputs",
    "masked_pullback",
    "movement",
]

_HIGHEST = jax.lax.Precision.HIGHEST
_POWER_ITERATIONS = 30
_ACTIVATIONS = 2**27  # n m beyond which neurons are visited in chunks: 0.5 GiB float32


class Params(NamedTuple):
    """A network of m neurons with p inputs and d outputs.

    Attributes:
        W: (m, p) weights of the hidden layer, trained.
        a: (m, d) weights of the output, -1 or +1, fixed.
    """

    W: Array
    a: Array


class Movement(NamedTuple):
    """What training did to each neuron.

    Attributes:
        distance: (m,) |w_r - w_r(0)|.
        flipped: (m,) fraction of the inputs at which the neuron switched on or off.
    """

    distance: Array
    flipped: Array


def init(
    key: Array,
    m: int,
    p: int,
    d: int,
    antisym: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Draw a network.

    Args:
        key: A `jax.random.key`.
        m: Neurons, at least d; even for an antisymmetric start.
        p: Inputs, the lifted dimension.
        d: Outputs.
        antisym: Whether neurons come in pairs of equal w and opposite a: f is then 0,
            and half as many features are independent.
        dtype: Of the parameters.

    Returns:
        w_r ~ N(0, I) and a_r uniform on {-1, +1}^d.

    Raises:
        InputError: If a number is out of range.
    """
    require(p >= 1, "p", p, "at least 1 input")
    require(d >= 1, "d", d, "at least 1 output")
    if m < d:
        raise InputError(
            f"width m is {m} for {d} outputs; give at least {d} neurons, and some "
            "thousands for the kernel to describe the network"
        )
    if antisym and m % 2:
        raise InputError(
            f"width m is {m}; neurons come in pairs, so give an even number or "
            "antisym=False"
        )
    count = m // 2 if antisym else m
    w_key, a_key = jax.random.split(key)
    weights = jax.random.normal(w_key, (count, p), dtype)
    signs = jax.random.rademacher(a_key, (count, d), dtype)
    if antisym:
        weights = jnp.concatenate([weights, weights])
        signs = jnp.concatenate([signs, -signs])
    return Params(weights, signs)


def apply(params: Params, z: ArrayLike) -> Array:
    """Return the outputs, m^(-1/2) relu(z W^T) a.

    Args:
        params: A network of p inputs.
        z: (n, p) lifted inputs.

    Returns:
        (n, d), in the dtype of the parameters.
    """
    weights, signs = params
    signs = jax.lax.stop_gradient(signs)  # fixed: no kernel has a part of theirs
    z = jnp.asarray(z, weights.dtype)
    hidden = jax.nn.relu(jnp.matmul(z, weights.T, precision=_HIGHEST))
    return jnp.matmul(hidden, signs, precision=_HIGHEST) / math.sqrt(len(weights))


def movement(start: Params, end: Params, z: ArrayLike) -> Movement:
    """Return how far each neuron went, and at how many inputs it switched.

    Args:
        start: The network before training.
        end: The network after it.
        z: (n, p) inputs to look at.

    Returns:
        One distance and one fraction for each of the m neurons.
    """
    z = jnp.asarray(z, start.W.dtype)
    changed = activations(start.W, z) != activations(end.W, z)
    return Movement(jnp.linalg.norm(end.W - start.W, axis=1), jnp.mean(changed, axis=0))


def largest_step(params: Params, z: ArrayLike) -> float:
    """Return 2 / mu_1, the step size from which gradient descent diverges.

    mu_1 is the largest eigenvalue of the network's own kernel at these parameters over
    n, from below by power iteration: a step above the result is certainly too large.

    Args:
        params: A network.
        z: (n, p) training inputs.
    """
    z = jnp.asarray(z, params.W.dtype)
    return 2 / max(float(_largest_eigenvalue(params, z)), 1e-30)


def masked_outputs(params: Params, z: Array, at: Array) -> Array:
    """Return (A P) a / sqrt(m), the mask A = 1{z at^T > 0} taken at other weights.

    Args:
        params: A network.
        z: (n, p) lifted inputs.
        at: (m, p) weights that say which neurons are on: `params.W` for the network
            itself, those of the start for its linearisation there.

    Returns:
        (n, d); neurons are visited in chunks where n m is large.
    """

    def some(part: tuple[Array, Array, Array]) -> Array:
        weights, signs, fixed = part
        hidden = jnp.matmul(z, weights.T, precision=_HIGHEST)
        hidden = jnp.where(activations(fixed, z), hidden, 0)
        return jnp.matmul(hidden, signs, precision=_HIGHEST)

    total = jnp.sum(jax.lax.map(some, _chunks(len(z), *params, at)), axis=0)
    return total / math.sqrt(len(at))


def masked_pullback(params: Params, z: Array, u: Array, at: Array) -> Array:
    """Return J^T u = ((u a^T) A)^T Z / sqrt(m), A taken at other weights.

    With u = f - y, over n, it is the gradient of |f - y|^2 / (2 n) in W.

    Args:
        params: A network; only its output weights matter.
        z: (n, p) lifted inputs.
        u: (n, d) a number for each output.
        at: (m, p) weights that say which neurons are on.

    Returns:
        (m, p).
    """

    def some(part: tuple[Array, Array]) -> Array:
        signs, fixed = part
        back = jnp.matmul(u, signs.T, precision=_HIGHEST)
        back = jnp.where(activations(fixed, z), back, 0)
        return jnp.matmul(back.T, z, precision=_HIGHEST)

    pulled = jax.lax.map(some, _chunks(len(z), params.a, at))
    return pulled.reshape(at.shape) / math.sqrt(len(at))


def flipped_fraction(start: Array, end: Array, z: Array) -> Array:
    """Return the fraction of the n m activations 1{w.z > 0} that differ, ()."""

    def some(part: tuple[Array, Array]) -> Array:
        return jnp.mean(activations(part[0], z) != activations(part[1], z))

    return jnp.mean(jax.lax.map(some, _chunks(len(z), start, end)))


def activations(weights: Array, z: Array) -> Array:
    """Return 1{w_r . z > 0}, (n, m), for weights (m, p) and inputs (n, p)."""
    return jnp.matmul(z, weights.T, precision=_HIGHEST) > 0


def _chunks(n: int, *values: Array) -> tuple[Array, ...]:
    """Return (m, ...) arrays as (chunks, m / chunks, ...), to bound the memory."""
    m = len(values[0])
    count = min(m, math.ceil(n * m / _ACTIVATIONS))
    while m % count:
        count += 1
    return tuple(v.reshape(count, -1, *v.shape[1:]) for v in values)


@jax.jit
def _largest_eigenvalue(params: Params, z: Array) -> Array:
    """Return a lower bound of the largest eigenvalue of J J^T / n, in all outputs."""
    weights, signs = params

    def iterate(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        u = state[0] / jnp.linalg.norm(state[0])
        pulled = masked_pullback(params, z, u, weights)
        image = masked_outputs(Params(pulled, signs), z, weights)
        return image, jnp.vdot(u, image)

    start = jax.random.normal(jax.random.key(0), (len(z), signs.shape[1]), z.dtype)
    state = start, jnp.zeros((), z.dtype)
    return jax.lax.fori_loop(0, _POWER_ITERATIONS, iterate, state)[1] / len(z)
