"""DDPM's U-Net in the layout of ``diffusers.UNet2DModel``, for imported checkpoints.

Against the U-Nets of EDM: per resolution the blocks come first and the strided
convolution after them, padded below and to the right only; a middle of block,
attention, block; nothing is rescaled.  With the defaults of `DDPMUNetConfig` and
32x32x3 images it is the CIFAR-10 network of Ho et al., arXiv 2006.11239 (35.7 M
parameters); its output is the noise.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from configs.errors import InputError
from diffusion.networks.convolution import upsample
from diffusion.networks.layers import (
    Conv,
    GroupNorm,
    linear,
    refuse_unknown,
    split_key,
)
from diffusion.networks.residual_block import BlockSettings, ResidualBlock

__all__ = ["DDPMUNet"]


class DDPMUNetFields(Protocol):
    """What the network reads; see `configs.network_schema.DDPMUNetConfig`."""

    block_channels: tuple[int, ...]
    num_blocks: int
    attention_down: tuple[bool, ...]
    attention_up: tuple[bool, ...]
    channels_per_head: int | None
    num_groups: int
    epsilon: float
    flip_sin_to_cos: bool
    frequency_shift: float
    downsample_padding: int
    dropout: float
    dtype: str


class DDPMUNet(nnx.Module):
    """DDPM's U-Net for (B, H, W, C) images; sides divisible by 2**(levels - 1)."""

    def __init__(
        self,
        config: DDPMUNetFields,
        event_shape: tuple[int, ...],
        output_channels: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make every layer.

        Raises:
            InputError: If an image of this shape cannot be halved often enough.
        """
        factor = 2 ** (len(config.block_channels) - 1)
        if len(event_shape) != 3 or any(side % factor for side in event_shape[:2]):
            raise InputError(
                f"images of shape {event_shape} do not fit network.block_channels "
                f"{config.block_channels}: give (H, W, C) with H and W divisible by "
                f"{factor}"
            )
        self.padding = config.downsample_padding
        self.flip, self.shift = config.flip_sin_to_cos, config.frequency_shift
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        first = config.block_channels[0]
        settings = BlockSettings(
            embedding_channels=4 * first,
            dtype=dtype,
            dropout=config.dropout,
            skip_scale=1.0,
            epsilon=config.epsilon,
            num_groups=config.num_groups,
            channels_per_head=config.channels_per_head,
        )
        self.first = first
        made = {"dtype": dtype, "rngs": rngs}
        self.map_layer0 = linear(first, 4 * first, **made)
        self.map_layer1 = linear(4 * first, 4 * first, **made)
        self.conv_in = Conv(event_shape[-1], first, 3, **made)
        down, up, skips, channels = {}, {}, [first], first
        last = len(config.block_channels) - 1
        for level, out in enumerate(config.block_channels):
            for index in range(config.num_blocks):
                attend = config.attention_down[level]
                down[f"level{level}_block{index}"] = ResidualBlock(
                    channels, out, settings, attention=attend, rngs=rngs
                )
                channels = out
                skips.append(channels)
            if level < last:
                down[f"level{level}_down"] = Conv(channels, channels, 3, **made)
                skips.append(channels)
        middle = {
            "block0": ResidualBlock(
                channels, channels, settings, attention=True, rngs=rngs
            ),
            "block1": ResidualBlock(channels, channels, settings, rngs=rngs),
        }
        for level, out in enumerate(reversed(config.block_channels)):
            for index in range(config.num_blocks + 1):
                attend = config.attention_up[level]
                width = channels + skips.pop()
                up[f"level{level}_block{index}"] = ResidualBlock(
                    width, out, settings, attention=attend, rngs=rngs
                )
                channels = out
            if level < last:
                up[f"level{level}_up"] = Conv(channels, channels, 3, **made)
        self.down_order, self.up_order = tuple(down), tuple(up)
        self.down, self.middle, self.up = nnx.Dict(down), nnx.Dict(middle), nnx.Dict(up)
        self.norm_out = GroupNorm(
            channels, epsilon=config.epsilon, num_groups=config.num_groups, rngs=rngs
        )
        self.conv_out = Conv(channels, output_channels, 3, **made)

    def embed(self, time: Array) -> Array:
        """Return the embedding (B, 4 * first) of times (B,)."""
        half = self.first // 2
        exponent = -math.log(10_000) * jnp.arange(half) / (half - self.shift)
        angles = time[:, None] * jnp.exp(exponent).astype(time.dtype)
        parts = [jnp.sin(angles), jnp.cos(angles)]
        embedding = jnp.concatenate(parts[::-1] if self.flip else parts, axis=1)
        return jax.nn.silu(self.map_layer1(jax.nn.silu(self.map_layer0(embedding))))

    def __call__(
        self,
        x: Array,
        c_noise: Array,
        labels: Array | None = None,
        condition: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Return the predicted noise at x_t (B, H, W, C) and times c_noise (B,)."""
        refuse_unknown("labels", labels, 0, "label_dim")
        refuse_unknown("conditions", condition, 0, "augment_dim")
        embedding = self.embed(c_noise)
        count = len(self.down_order) + len(self.up_order) + 2
        keys = iter([None] * count)
        if dropout_key is not None:
            keys = iter(split_key(dropout_key, count))
        y = self.conv_in(x)
        skips = [y]
        for name in self.down_order:
            key = next(keys)
            if name.endswith("_down"):
                y = self._downsample(self.down[name], y)
            else:
                y = self.down[name](y, embedding, key)
            skips.append(y)
        for name in ("block0", "block1"):
            y = self.middle[name](y, embedding, next(keys))
        for name in self.up_order:
            key = next(keys)
            if name.endswith("_up"):
                y = self.up[name](upsample(y))
            else:
                y = jnp.concatenate([y, skips.pop()], axis=-1)
                y = self.up[name](y, embedding, key)
        return self.conv_out(jax.nn.silu(self.norm_out(y)))

    def _downsample(self, conv: Conv, x: Array) -> Array:
        """Convolve with stride 2; padding 0 stands for one row and column after."""
        sides = [(self.padding, self.padding) if self.padding else (0, 1)] * 2
        dtype = conv.dtype or jnp.promote_types(x.dtype, conv.kernel[...].dtype)
        y = lax.conv_general_dilated(
            x.astype(dtype),
            conv.kernel[...].astype(dtype),
            (2, 2),
            sides,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + conv.bias[...].astype(dtype)
