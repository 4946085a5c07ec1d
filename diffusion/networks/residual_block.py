"""Residual blocks and self-attention, shared by every U-Net of the project."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from diffusion.networks.convolution import downsample, upsample
from diffusion.networks.layers import (
    SONG_INITIALISATION,
    Conv,
    GroupNorm,
    Initialisation,
    dropout,
    linear,
)

__all__ = ["Attention", "BlockSettings", "ResidualBlock"]


class BlockSettings(NamedTuple):
    """What all residual blocks of a network have in common.

    Attributes:
        embedding_channels: Length of the noise embedding.
        dtype: Type of the arithmetic; None for that of the input.
        dropout: Probability that a feature is dropped.
        adaptive_scale: Whether the embedding scales and shifts what comes out of the
            second norm; otherwise it is added before it.
        skip_scale: Factor after each sum of a branch and its skip.
        epsilon: Of the group norms.
        num_groups: Of the group norms; None for min(32, C/4).
        channels_per_head: Of the attention; None for one head.
        taps: The filter of changes of resolution, before normalisation.
        project_resampled: Whether the skip of a change of resolution has a 1x1
            convolution when the number of channels stays.
        init: Initial weights.
    """

    embedding_channels: int
    dtype: DTypeLike | None = None
    dropout: float = 0.0
    adaptive_scale: bool = False
    skip_scale: float = math.sqrt(0.5)
    epsilon: float = 1e-6
    num_groups: int | None = None
    channels_per_head: int | None = None
    taps: tuple[int, ...] = (1, 1)
    project_resampled: bool = True
    init: Initialisation = SONG_INITIALISATION


class Attention(nnx.Module):
    """Self-attention over all pixels, added to its input."""

    def __init__(
        self, channels: int, settings: BlockSettings, *, rngs: nnx.Rngs
    ) -> None:
        """Make the norm and the two 1x1 convolutions."""
        s, init = settings, settings.init
        self.num_heads = max(channels // (s.channels_per_head or channels), 1)
        self.norm = GroupNorm(
            channels, epsilon=s.epsilon, num_groups=s.num_groups, rngs=rngs
        )
        attention = None if init.attention is init.kernel else init.attention
        self.qkv = Conv(
            channels,
            3 * channels,
            1,
            dtype=s.dtype,
            rngs=rngs,
            init=init,
            kernel_init=attention,
        )
        self.proj = Conv(
            channels, channels, 1, dtype=s.dtype, rngs=rngs, kernel_init=init.last
        )

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

    With `resample` "down" or "up", both branches change the resolution first.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        settings: BlockSettings,
        *,
        resample: str | None = None,
        attention: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layers; the second convolution starts at or near zero."""
        s = settings
        self.resample, self.taps = resample, s.taps
        self.dropout_rate, self.skip_scale = s.dropout, s.skip_scale
        self.adaptive_scale = s.adaptive_scale
        norm = {"epsilon": s.epsilon, "num_groups": s.num_groups, "rngs": rngs}
        made = {"dtype": s.dtype, "init": s.init, "rngs": rngs}
        width = channels_out * (2 if s.adaptive_scale else 1)
        self.norm0 = GroupNorm(channels_in, **norm)
        self.conv0 = Conv(channels_in, channels_out, 3, **made)
        self.affine = linear(s.embedding_channels, width, **made)
        self.norm1 = GroupNorm(channels_out, **norm)
        self.conv1 = Conv(
            channels_out, channels_out, 3, **made, kernel_init=s.init.last
        )
        projected = channels_in != channels_out or (resample and s.project_resampled)
        self.skip = Conv(channels_in, channels_out, 1, **made) if projected else None
        self.attention = Attention(channels_out, s, rngs=rngs) if attention else None

    def __call__(
        self, x: Array, embedding: Array, dropout_key: Array | None = None
    ) -> Array:
        """Map (B, H, W, C_in) and the embedding (B, E) to (B, H', W', C_out)."""
        y = self.conv0(self._resampled(jax.nn.silu(self.norm0(x))))
        shift = self.affine(embedding)[:, None, None, :].astype(y.dtype)
        if self.adaptive_scale:
            scale, shift = jnp.split(shift, 2, axis=-1)
            y = self.norm1(y) * (scale + 1) + shift
        else:
            y = self.norm1(y + shift)
        y = jax.nn.silu(y)
        y = self.conv1(dropout(y, self.dropout_rate, dropout_key))
        skip = self._resampled(x)
        if self.skip is not None:
            skip = self.skip(skip)
        y = (y + skip) * self.skip_scale
        return y if self.attention is None else self.attention(y) * self.skip_scale

    def _resampled(self, x: Array) -> Array:
        if self.resample == "down":
            return downsample(x, self.taps)
        return upsample(x, self.taps) if self.resample == "up" else x
