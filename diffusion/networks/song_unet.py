"""The DDPM++ U-Net, parameter for parameter as published.

Encoder: a 3x3 convolution, then per resolution a down-sampling block and `num_blocks`
residual blocks.  Decoder: the mirror image with one block more per resolution, each of
which takes one of the encoder's outputs as a skip.  With the defaults of
`SongUNetConfig` and 32x32x3 images it is the CIFAR-10 network of EDM (55.7 M
parameters); small settings serve for 8x8 digits.  Sources: Song et al., arXiv
2011.13456; Karras et al., arXiv 2206.00364, appendix F.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from configs.errors import InputError
from diffusion.networks.layers import (
    ZERO_GAIN,
    GroupNorm,
    ResidualBlock,
    conv,
    linear,
    positional_embedding,
)

__all__ = ["SongUNet"]


class SongUNetFields(Protocol):
    """The fields that the network reads; see `configs.schema.SongUNetConfig`."""

    model_channels: int
    noise_embedding_scale: float
    adaptive_scale: bool
    channel_mult: tuple[int, ...]
    num_blocks: int
    attention_resolutions: tuple[int, ...]
    dropout: float
    label_dim: int
    condition_dim: int
    dtype: str


class SongUNet(nnx.Module):
    """DDPM++ for (B, H, W, C) images; H and W divisible by 2**(levels - 1)."""

    def __init__(
        self, config: SongUNetFields, event_shape: tuple[int, ...], *, rngs: nnx.Rngs
    ) -> None:
        """Make every layer.

        Args:
            config: Widths, depths and options.
            event_shape: (H, W, C) of one image.
            rngs: Where the initial weights come from.

        Raises:
            InputError: If an image of this shape cannot be halved often enough.
        """
        factor = 2 ** (len(config.channel_mult) - 1)
        if len(event_shape) != 3 or any(side % factor for side in event_shape[:2]):
            raise InputError(
                f"images of shape {event_shape} do not fit network.channel_mult "
                f"{config.channel_mult}: give (H, W, C) with H and W divisible by "
                f"{factor}, or fewer multipliers"
            )
        self.noise_channels = config.model_channels
        self.noise_scale = config.noise_embedding_scale
        self.label_dim = config.label_dim
        self.condition_dim = config.condition_dim
        self.dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        self._embedding_layers(config, rngs)
        skips = self._encoder(config, event_shape, rngs)
        self._decoder(config, event_shape, skips, rngs)

    def _embedding_layers(self, config: SongUNetFields, rngs: nnx.Rngs) -> None:
        width = 4 * config.model_channels
        noise, dtype = self.noise_channels, self.dtype
        self.map_label = (
            linear(config.label_dim, noise, dtype=dtype, rngs=rngs)
            if config.label_dim
            else None
        )
        self.map_condition = (
            linear(config.condition_dim, noise, dtype=dtype, rngs=rngs, bias=False)
            if config.condition_dim
            else None
        )
        self.map_layer0 = linear(noise, width, dtype=dtype, rngs=rngs)
        self.map_layer1 = linear(width, width, dtype=dtype, rngs=rngs)

    def _block(
        self,
        config: SongUNetFields,
        channels_in: int,
        channels_out: int,
        rngs: nnx.Rngs,
        *,
        resample: str | None = None,
        attention: bool = False,
    ) -> ResidualBlock:
        return ResidualBlock(
            channels_in,
            channels_out,
            4 * config.model_channels,
            resample=resample,
            attention=attention,
            adaptive_scale=config.adaptive_scale,
            dropout_rate=config.dropout,
            dtype=self.dtype,
            rngs=rngs,
        )

    def _encoder(
        self, config: SongUNetFields, event_shape: tuple[int, ...], rngs: nnx.Rngs
    ) -> list[int]:
        """Make the encoder; return the channels of its outputs in order."""
        height, _, image_channels = event_shape
        channels = config.model_channels
        self.conv_in = conv(image_channels, channels, 3, dtype=self.dtype, rngs=rngs)
        blocks, skips = {}, [channels]
        for level, mult in enumerate(config.channel_mult):
            attend = (height >> level) in config.attention_resolutions
            if level:
                blocks[f"level{level}_down"] = self._block(
                    config, channels, channels, rngs, resample="down"
                )
                skips.append(channels)
            for index in range(config.num_blocks):
                out = mult * config.model_channels
                blocks[f"level{level}_block{index}"] = self._block(
                    config, channels, out, rngs, attention=attend
                )
                channels = out
                skips.append(channels)
        # Names in order of use: a dict that passes through a pytree comes back sorted.
        self.encoder_order = tuple(blocks)
        self.encoder = nnx.Dict(blocks)
        return skips

    def _decoder(
        self,
        config: SongUNetFields,
        event_shape: tuple[int, ...],
        skips: list[int],
        rngs: nnx.Rngs,
    ) -> None:
        height, _, image_channels = event_shape
        channels = skips[-1]
        remaining = list(skips)
        blocks = {}
        for level in reversed(range(len(config.channel_mult))):
            out = config.channel_mult[level] * config.model_channels
            if level == len(config.channel_mult) - 1:
                blocks[f"level{level}_in0"] = self._block(
                    config, channels, channels, rngs, attention=True
                )
                blocks[f"level{level}_in1"] = self._block(
                    config, channels, channels, rngs
                )
            else:
                blocks[f"level{level}_up"] = self._block(
                    config, channels, channels, rngs, resample="up"
                )
            attend = (height >> level) in config.attention_resolutions
            for index in range(config.num_blocks + 1):
                last = index == config.num_blocks
                blocks[f"level{level}_block{index}"] = self._block(
                    config,
                    channels + remaining.pop(),
                    out,
                    rngs,
                    attention=attend and last,
                )
                channels = out
        self.decoder_order = tuple(blocks)
        self.decoder = nnx.Dict(blocks)
        self.norm_out = GroupNorm(channels, epsilon=1e-6, rngs=rngs)
        self.conv_out = conv(
            channels, image_channels, 3, dtype=self.dtype, rngs=rngs, gain=ZERO_GAIN
        )

    def embed(
        self, c_noise: Array, labels: Array | None, condition: Array | None
    ) -> Array:
        """Return the embedding (B, 4 * model_channels) of noise level and labels."""
        embedding = positional_embedding(
            self.noise_scale * c_noise, self.noise_channels
        )
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels * math.sqrt(self.label_dim))
        elif self.map_label is not None:
            embedding = embedding + self.map_label(jnp.zeros((1, self.label_dim)))
        if self.map_condition is not None and condition is not None:
            embedding = embedding + self.map_condition(condition)
        return jax.nn.silu(self.map_layer1(jax.nn.silu(self.map_layer0(embedding))))

    def __call__(
        self,
        x: Array,
        c_noise: Array,
        labels: Array | None = None,
        condition: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Return F(x; c_noise).

        Args:
            x: Scaled noisy images, (B, H, W, C).
            c_noise: Scaled log noise level, (B,).
            labels: (B, label_dim), or None for zeros.
            condition: (B, condition_dim), or None for zeros: no augmentation.
            dropout_key: Key of the dropout masks, or None for none.

        Returns:
            The network's output, (B, H, W, C).
        """
        _refuse_unknown("labels", labels, self.label_dim)
        _refuse_unknown("condition", condition, self.condition_dim)
        embedding = self.embed(c_noise, labels, condition)
        num_blocks = len(self.encoder_order) + len(self.decoder_order)
        keys = iter([None] * num_blocks)
        if dropout_key is not None:
            keys = iter(jax.random.split(dropout_key, num_blocks))
        y = self.conv_in(x)
        skips = [y]
        for name in self.encoder_order:
            y = self.encoder[name](y, embedding, next(keys))
            skips.append(y)
        for name in self.decoder_order:
            if "_block" in name:
                y = jnp.concatenate([y, skips.pop()], axis=-1)
            y = self.decoder[name](y, embedding, next(keys))
        return self.conv_out(jax.nn.silu(self.norm_out(y)))


def _refuse_unknown(name: str, given: Array | None, dimension: int) -> None:
    """Refuse labels or conditions that the network has no input for."""
    if given is not None and (dimension == 0 or given.shape[-1] != dimension):
        raise InputError(
            f"{name} have shape {given.shape}, but the network was built for "
            f"{dimension} of them; set network.{name.removesuffix('s')}_dim"
        )
