"""The parts that the networks are made of.

All images are NHWC.  Weights are float32; `dtype` is the type of the arithmetic, with
None for that of the input (so that proofs can run in float64).  Norms and softmax are
computed in at least float32.  Architecture: Song et al., arXiv 2011.13456, and Dhariwal
& Nichol, arXiv 2105.05233, as set in Karras et al., arXiv 2206.00364, appendix F.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from configs.errors import InputError
from diffusion.networks.convolution import convolve

__all__ = [
    "ADM_INITIALISATION",
    "SONG_INITIALISATION",
    "ZERO_GAIN",
    "Conv",
    "GroupNorm",
    "Initialisation",
    "drop_labels",
    "dropout",
    "fourier_embedding",
    "linear",
    "positional_embedding",
    "refuse_unknown",
    "split_key",
    "xavier_uniform",
]

ZERO_GAIN = 1e-5  # "almost zero": the branch starts off, yet its gradient is not zero


def xavier_uniform(gain: float = 1.0) -> nnx.Initializer:
    """Return gain * sqrt(6 / (fan_in + fan_out)) * U(-1, 1); with kernels."""
    return nnx.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def _zero_bias(fan_in: int) -> nnx.Initializer:
    return nnx.initializers.zeros_init()


def _uniform_bias(fan_in: int) -> nnx.Initializer:
    """Return U(-1, 1) / sqrt(fan_in)."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        limit = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Initialisation(NamedTuple):
    """The initial weights of an architecture.

    Attributes:
        kernel: Of most layers.
        bias: The bias of those, from the layer's fan-in.
        last: The kernel of layers that close a residual branch; their bias is zero.
        attention: The kernel of queries, keys and values.
    """

    kernel: nnx.Initializer
    bias: Callable[[int], nnx.Initializer]
    last: nnx.Initializer
    attention: nnx.Initializer


SONG_INITIALISATION = Initialisation(
    kernel=xavier_uniform(),
    bias=_zero_bias,
    last=xavier_uniform(ZERO_GAIN),
    attention=xavier_uniform(math.sqrt(0.2)),
)

_KAIMING = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

ADM_INITIALISATION = Initialisation(
    kernel=_KAIMING,
    bias=_uniform_bias,
    last=nnx.initializers.zeros_init(),
    attention=_KAIMING,
)


def linear(
    features_in: int,
    features_out: int,
    *,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
    init: Initialisation = SONG_INITIALISATION,
    kernel_init: nnx.Initializer | None = None,
    bias: bool = True,
) -> nnx.Linear:
    """Return a dense layer; `kernel_init` replaces the kernel's initial values."""
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or init.kernel,
        bias_init=init.bias(features_in),
        rngs=rngs,
    )


class Conv(nnx.Module):
    """A convolution with a square kernel and a bias, zero-padded."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        *,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
        init: Initialisation = SONG_INITIALISATION,
        kernel_init: nnx.Initializer | None = None,
    ) -> None:
        """Make kernel (size, size, in, out) and bias (out,).

        With `kernel_init`, that makes the kernel and the bias starts at zero.
        """
        self.size, self.dtype = size, dtype
        bias_init = _zero_bias if kernel_init else init.bias
        shape = (size, size, channels_in, channels_out)
        kernel = (kernel_init or init.kernel)(rngs.params(), shape, jnp.float32)
        bias = bias_init(size**2 * channels_in)(
            rngs.params(), (channels_out,), jnp.float32
        )
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)

    def __call__(self, x: Array, *, padding: int | None = None) -> Array:
        """Map (B, H, W, in) to (B, H', W', out); `padding` None keeps the size."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel[...].dtype)
        padding = self.size // 2 if padding is None else padding
        y = convolve(x.astype(dtype), self.kernel[...].astype(dtype), padding)
        return y + self.bias[...].astype(dtype)


def positional_embedding(
    values: Array, channels: int, *, endpoint: bool = True
) -> Array:
    """Return sines and cosines of (B,) values at geometric frequencies.

    The frequencies are 10000**(-i / (n - e)) for i < n = channels / 2, with e = 1 when
    the endpoint 1/10000 is among them and 0 otherwise; the result is (B, channels),
    sines first, in at least float32.
    """
    half = channels // 2
    exponent = jnp.arange(half) / max(half - int(endpoint), 1)
    angles = values[:, None] * (10_000.0**-exponent).astype(values.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def fourier_embedding(values: Array, frequencies: Array) -> Array:
    """Return sines, then cosines of 2 pi values frequencies, (B,), (n,) -> (B, 2n)."""
    angles = 2 * math.pi * values[:, None] * frequencies.astype(values.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each element with probability `rate` and rescale; nothing without a key.

    With (B,) keys, one for each example, what an example gets does not depend on the
    others in its batch.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(_bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def split_key(key: Array, count: int) -> Array:
    """Return `count` keys, (count,) from one key or (count, B) from (B,) keys."""
    if key.ndim == 0:
        return jax.random.split(key, count)
    return jax.vmap(lambda k: jax.random.split(k, count), out_axes=1)(key)


def _bernoulli(key: Array, probability: float, shape: tuple[int, ...]) -> Array:
    if key.ndim == 0:
        return jax.random.bernoulli(key, probability, shape)
    return jax.vmap(lambda k: jax.random.bernoulli(k, probability, shape[1:]))(key)


class GroupNorm(nnx.Module):
    """Group normalisation, computed in at least float32.

    Moments are taken per channel first and then over each group's channels, which on
    CPUs is faster than reducing over both at once (nnx.GroupNorm).
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float,
        rngs: nnx.Rngs,
        num_groups: int | None = None,
    ) -> None:
        """Make scale and bias; the number of groups is min(32, C/4) if not given."""
        self.num_groups = num_groups or max(min(32, channels // 4), 1)
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        """Normalise (B, H, W, C); the result has the dtype of `x`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - self._group_mean(wide)
        deviation = jnp.sqrt(self._group_mean(jnp.square(centred)) + self.epsilon)
        result = centred * (self.scale[...] / deviation) + self.bias[...]
        return result.astype(x.dtype)

    def _group_mean(self, x: Array) -> Array:
        """Return each group's mean, (B, 1, 1, C), repeated over its channels."""
        b, _, _, c = x.shape
        grouped = x.mean(axis=(1, 2)).reshape(b, self.num_groups, -1)
        mean = jnp.broadcast_to(grouped.mean(axis=2, keepdims=True), grouped.shape)
        return mean.reshape(b, 1, 1, c)


def refuse_unknown(name: str, given: Array | None, dimension: int, field: str) -> None:
    """Refuse labels or conditions that a network has no input for."""
    if given is not None and (dimension == 0 or given.shape[-1] != dimension):
        raise InputError(
            f"{name} have shape {given.shape}, but the network was built for "
            f"{dimension} of them; set network.{field}"
        )


def drop_labels(
    labels: Array | None, rate: float, key: Array | None
) -> tuple[Array | None, Array | None]:
    """Zero each example's label with probability `rate`; return the key that is left.

    A network trained so is conditional and unconditional in one, as classifier-free
    guidance needs it (arXiv 2207.12598).
    """
    if labels is None or key is None or rate == 0:
        return labels, key
    key, label_key = split_key(key, 2)
    keep = _bernoulli(label_key, 1 - rate, (labels.shape[0], 1))
    return jnp.where(keep, labels, 0), key
