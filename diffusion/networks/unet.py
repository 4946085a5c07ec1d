"""The encoder and decoder that DDPM++, NCSN++ and ADM have in common.

Encoder: a 3x3 convolution, then per resolution a down-sampling block and `num_blocks`
residual blocks.  Decoder: the mirror image with one block more per resolution, each of
which takes one of the encoder's outputs as a skip.  With a residual input pyramid
(NCSN++) the image itself is also brought down, by a strided 3x3 convolution per
resolution, and averaged into the features.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from configs.errors import InputError
from diffusion.networks.convolution import downsample
from diffusion.networks.layers import Conv, GroupNorm, split_key
from diffusion.networks.residual_block import BlockSettings, ResidualBlock

__all__ = ["UNet", "UNetShape"]


class UNetShape(NamedTuple):
    """Widths and depths.

    Attributes:
        model_channels: Channels of the first convolution.
        channel_mult: Multiplier of each resolution, finest first.
        num_blocks: Residual blocks per resolution in the encoder.
        attention_resolutions: Image heights at which blocks carry self-attention.
        attend_in_decoder: "last": of the decoder's blocks at such a height only the
            last one does; "all": each one does.
        input_pyramid: Whether the image is brought down beside the features.
        checkpoint_blocks: Whether the gradient recomputes each block, which saves
            memory and costs a second forward pass.
    """

    model_channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    attention_resolutions: tuple[int, ...]
    attend_in_decoder: str = "last"
    input_pyramid: bool = False
    checkpoint_blocks: bool = False


class UNet(nnx.Module):
    """Images and their noise embedding to images; sides divisible by 2**(levels-1)."""

    def __init__(
        self,
        shape: UNetShape,
        settings: BlockSettings,
        event_shape: tuple[int, ...],
        output_channels: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make every layer.

        Raises:
            InputError: If an image of this shape cannot be halved often enough.
        """
        factor = 2 ** (len(shape.channel_mult) - 1)
        if len(event_shape) != 3 or any(side % factor for side in event_shape[:2]):
            raise InputError(
                f"images of shape {event_shape} do not fit network.channel_mult "
                f"{shape.channel_mult}: give (H, W, C) with H and W divisible by "
                f"{factor}, or fewer multipliers"
            )
        self.taps = settings.taps
        self.checkpoint_blocks = shape.checkpoint_blocks
        height, _, image_channels = event_shape
        made = {"dtype": settings.dtype, "init": settings.init, "rngs": rngs}
        channels = shape.model_channels
        self.conv_in = Conv(image_channels, channels, 3, **made)
        blocks, pyramid, skips = {}, {}, [channels]
        pyramid_channels = image_channels
        for level, mult in enumerate(shape.channel_mult):
            attend = (height >> level) in shape.attention_resolutions
            if level:
                blocks[f"level{level}_down"] = ResidualBlock(
                    channels, channels, settings, resample="down", rngs=rngs
                )
                skips.append(channels)
                if shape.input_pyramid:
                    pyramid[f"level{level}"] = Conv(
                        pyramid_channels, channels, 3, **made
                    )
                    pyramid_channels = channels
            for index in range(shape.num_blocks):
                out = mult * shape.model_channels
                blocks[f"level{level}_block{index}"] = ResidualBlock(
                    channels, out, settings, attention=attend, rngs=rngs
                )
                channels = out
                skips.append(channels)
        # Names in order of use: a dict that passes through a pytree comes back sorted.
        self.encoder_order = tuple(blocks)
        self.encoder = nnx.Dict(blocks)
        self.pyramid = nnx.Dict(pyramid) if pyramid else None
        channels = self._decoder(shape, settings, height, skips, rngs)
        self.norm_out = GroupNorm(
            channels,
            epsilon=settings.epsilon,
            num_groups=settings.num_groups,
            rngs=rngs,
        )
        self.conv_out = Conv(
            channels, output_channels, 3, **made, kernel_init=settings.init.last
        )

    def _decoder(
        self,
        shape: UNetShape,
        settings: BlockSettings,
        height: int,
        skips: list[int],
        rngs: nnx.Rngs,
    ) -> int:
        """Make the decoder; return the number of channels that leave it."""
        channels, remaining, blocks = skips[-1], list(skips), {}
        for level in reversed(range(len(shape.channel_mult))):
            out = shape.channel_mult[level] * shape.model_channels
            if level == len(shape.channel_mult) - 1:
                blocks[f"level{level}_in0"] = ResidualBlock(
                    channels, channels, settings, attention=True, rngs=rngs
                )
                blocks[f"level{level}_in1"] = ResidualBlock(
                    channels, channels, settings, rngs=rngs
                )
            else:
                blocks[f"level{level}_up"] = ResidualBlock(
                    channels, channels, settings, resample="up", rngs=rngs
                )
            attend = (height >> level) in shape.attention_resolutions
            for index in range(shape.num_blocks + 1):
                chosen = shape.attend_in_decoder == "all" or index == shape.num_blocks
                blocks[f"level{level}_block{index}"] = ResidualBlock(
                    channels + remaining.pop(),
                    out,
                    settings,
                    attention=attend and chosen,
                    rngs=rngs,
                )
                channels = out
        self.decoder_order = tuple(blocks)
        self.decoder = nnx.Dict(blocks)
        return channels

    def __call__(
        self, x: Array, embedding: Array, dropout_key: Array | None = None
    ) -> Array:
        """Map (B, H, W, C) and the embedding (B, E) to (B, H, W, output_channels)."""
        num_blocks = len(self.encoder_order) + len(self.decoder_order)
        keys = iter([None] * num_blocks)
        if dropout_key is not None:
            keys = iter(split_key(dropout_key, num_blocks))
        y, image = self.conv_in(x), x
        skips = [y]
        for name in self.encoder_order:
            y = self._call(self.encoder[name], y, embedding, next(keys))
            if self.pyramid is not None and name.endswith("_down"):
                # The image's own path: a full-size convolution that also covers the
                # filter's margin, then every second pixel of the filtered result.
                conv = self.pyramid[name.removesuffix("_down")]
                wide = conv(image, padding=len(self.taps) // 2)
                image = downsample(wide, self.taps, padded=False)
                y = image = (y + image) * math.sqrt(0.5)
            skips.append(y)
        for name in self.decoder_order:
            if "_block" in name:
                y = jnp.concatenate([y, skips.pop()], axis=-1)
            y = self._call(self.decoder[name], y, embedding, next(keys))
        return self.conv_out(jax.nn.silu(self.norm_out(y)))

    def _call(
        self, block: ResidualBlock, y: Array, embedding: Array, key: Array | None
    ) -> Array:
        if not self.checkpoint_blocks:
            return block(y, embedding, key)
        return jax.checkpoint(lambda *inputs: block(*inputs))(y, embedding, key)
