"""The parts that the U-Nets are made of.

All images are NHWC.  Weights are float32; `dtype` is the type of the arithmetic, with
None for that of the input (so that proofs can run in float64).  Norms and softmax are
computed in at least float32.  Architecture: Song et al., arXiv 2011.13456, as set in
Karras et al., arXiv 2206.00364, appendix F.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

__all__ = [
    "Attention",
    "GroupNorm",
    "ResidualBlock",
    "conv",
    "downsample",
    "dropout",
    "linear",
    "positional_embedding",
    "upsample",
]

ZERO_GAIN = 1e-5  # "almost zero": the branch starts off, yet its gradient is not zero


def xavier_uniform(gain: float = 1.0) -> nnx.Initializer:
    """Return gain * sqrt(6 / (fan_in + fan_out)) * U(-1, 1); with kernels."""
    return nnx.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def linear(
    features_in: int,
    features_out: int,
    *,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
    gain: float = 1.0,
    bias: bool = True,
) -> nnx.Linear:
    """Return a dense layer with Xavier-uniform weights and zero bias."""
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=bias,
        dtype=dtype,
        kernel_init=xavier_uniform(gain),
        rngs=rngs,
    )


def conv(
    channels_in: int,
    channels_out: int,
    kernel: int,
    *,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
    gain: float = 1.0,
) -> nnx.Conv:
    """Return a same-size convolution with Xavier-uniform weights and zero bias."""
    return nnx.Conv(
        channels_in,
        channels_out,
        (kernel, kernel),
        dtype=dtype,
        kernel_init=xavier_uniform(gain),
        rngs=rngs,
    )


def positional_embedding(values: Array, channels: int) -> Array:
    """Return sines and cosines of (B,) values at geometric frequencies.

    The frequencies are 10000**(-i / (n - 1)) for i < n = channels / 2; the result is
    (B, channels), sines first, in at least float32.
    """
    half = channels // 2
    exponent = jnp.arange(half) / max(half - 1, 1)
    angles = values[:, None] * (10_000.0**-exponent).astype(values.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each element with probability `rate` and rescale; nothing without a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def downsample(x: Array) -> Array:
    """Halve height and width by averaging 2x2 pixels (the filter [1, 1])."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: Array) -> Array:
    """Double height and width by repeating pixels (the filter [1, 1])."""
    b, h, w, c = x.shape
    spread = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return spread.reshape(b, 2 * h, 2 * w, c)


class GroupNorm(nnx.Module):
    """Group normalisation with min(32, C/4) groups, computed in at least float32.

    Moments are taken per channel first and then over each group's channels, which on
    CPUs is faster than reducing over both at once (nnx.GroupNorm).
    """

    def __init__(self, channels: int, *, epsilon: float, rngs: nnx.Rngs) -> None:
        """Make scale and bias for `channels` channels."""
        self.num_groups = min(32, channels // 4)
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


class Attention(nnx.Module):
    """Self-attention over all pixels, added to its input."""

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        epsilon: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the norm and the two 1x1 convolutions."""
        self.num_heads = num_heads
        self.norm = GroupNorm(channels, epsilon=epsilon, rngs=rngs)
        self.qkv = conv(
            channels, 3 * channels, 1, dtype=dtype, rngs=rngs, gain=math.sqrt(0.2)
        )
        self.proj = conv(channels, channels, 1, dtype=dtype, rngs=rngs, gain=ZERO_GAIN)

    def __call__(self, x: Array) -> Array:
        """Return x + proj(softmax(q k^T / sqrt(channels per head)) v)."""
        b, h, w, c = x.shape
        # Channels are ordered (head, channel, {q, k, v}), as in published checkpoints.
        qkv = self.qkv(self.norm(x)).reshape(b, h * w, self.num_heads, -1, 3)
        q, k, v = qkv[..., 0], qkv[..., 1], qkv[..., 2]
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k / math.sqrt(c // self.num_heads))
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        weights = jax.nn.softmax(logits.astype(wide), axis=-1).astype(logits.dtype)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(b, h, w, c)
        return x + self.proj(mixed)


class ResidualBlock(nnx.Module):
    """Two convolutions with the noise embedding between them, and a skip.

    The embedding is added before the second norm or, with `adaptive_scale`, scales and
    shifts what comes out of it.  With `resample` "down" or "up", both branches change
    the resolution first.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding_channels: int,
        *,
        resample: str | None = None,
        attention: bool = False,
        num_heads: int = 1,
        adaptive_scale: bool = False,
        dropout_rate: float = 0.0,
        skip_scale: float = math.sqrt(0.5),
        epsilon: float = 1e-6,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layers; the second convolution starts almost at zero."""
        self.resample = resample
        self.dropout_rate = dropout_rate
        self.skip_scale = skip_scale
        self.norm0 = GroupNorm(channels_in, epsilon=epsilon, rngs=rngs)
        self.conv0 = conv(channels_in, channels_out, 3, dtype=dtype, rngs=rngs)
        self.adaptive_scale = adaptive_scale
        width = channels_out * (2 if adaptive_scale else 1)
        self.affine = linear(embedding_channels, width, dtype=dtype, rngs=rngs)
        self.norm1 = GroupNorm(channels_out, epsilon=epsilon, rngs=rngs)
        self.conv1 = conv(
            channels_out, channels_out, 3, dtype=dtype, rngs=rngs, gain=ZERO_GAIN
        )
        self.skip = (
            conv(channels_in, channels_out, 1, dtype=dtype, rngs=rngs)
            if channels_in != channels_out or resample
            else None
        )
        self.attention = (
            Attention(
                channels_out,
                num_heads=num_heads,
                epsilon=epsilon,
                dtype=dtype,
                rngs=rngs,
            )
            if attention
            else None
        )

    def __call__(
        self, x: Array, embedding: Array, dropout_key: Array | None = None
    ) -> Array:
        """Map (B, H, W, C_in) and the embedding (B, E) to (B, H', W', C_out)."""
        change = {"down": downsample, "up": upsample, None: lambda y: y}[self.resample]
        y = self.conv0(change(jax.nn.silu(self.norm0(x))))
        shift = self.affine(embedding)[:, None, None, :]
        if self.adaptive_scale:
            scale, shift = jnp.split(shift, 2, axis=-1)
            y = self.norm1(y) * (scale + 1) + shift
        else:
            y = self.norm1(y + shift)
        y = jax.nn.silu(y)
        y = self.conv1(dropout(y, self.dropout_rate, dropout_key))
        skip = x if self.skip is None else self.skip(change(x))
        y = (y + skip) * self.skip_scale
        return y if self.attention is None else self.attention(y) * self.skip_scale
