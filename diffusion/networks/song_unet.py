"""DDPM++ and NCSN++, parameter for parameter as published.

With the defaults of `SongUNetConfig`, 32x32x3 images and nine augmentation labels it is
the CIFAR-10 network of EDM (DDPM++, 55.7 M parameters); `encoder="residual"`,
`embedding="fourier"`, `noise_channel_mult=2` and `resample_filter=(1, 3, 3, 1)` make it
NCSN++; small settings serve for 8x8 digits.  Sources: Song et al., arXiv 2011.13456;
Karras et al., arXiv 2206.00364, appendix F.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion.networks.layers import (
    drop_labels,
    fourier_embedding,
    linear,
    positional_embedding,
    refuse_unknown,
)
from diffusion.networks.residual_block import BlockSettings
from diffusion.networks.unet import UNet, UNetShape

__all__ = ["SongUNet"]

_FOURIER_SCALE = 16.0


class SongUNetFields(Protocol):
    """What the network reads; see `configs.network_schema.SongUNetConfig`."""

    model_channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    attention_resolutions: tuple[int, ...]
    encoder: str
    embedding: str
    noise_channel_mult: int
    noise_embedding_scale: float
    resample_filter: tuple[int, ...]
    adaptive_scale: bool
    dropout: float
    label_dim: int
    label_dropout: float
    augment_dim: int
    checkpoint_blocks: bool
    dtype: str


class Frequencies(nnx.Variable):
    """Fixed frequencies of a Fourier embedding."""


class SongUNet(nnx.Module):
    """DDPM++ or NCSN++ for (B, H, W, C); H and W divisible by 2**(levels - 1)."""

    def __init__(
        self,
        config: SongUNetFields,
        event_shape: tuple[int, ...],
        output_channels: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make every layer.

        Args:
            config: Widths, depths and options.
            event_shape: (H, W, C) of one image.
            output_channels: Channels of F, C as a rule.
            rngs: Where the initial weights come from.

        Raises:
            InputError: If an image of this shape cannot be halved often enough.
        """
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        self.noise_channels = config.model_channels * config.noise_channel_mult
        self.noise_scale = config.noise_embedding_scale
        self.label_dim, self.augment_dim = config.label_dim, config.augment_dim
        self.label_dropout = config.label_dropout
        width, noise = 4 * config.model_channels, self.noise_channels
        # Drawn once and never trained, hence no nnx.Param.
        self.frequencies = (
            Frequencies(
                _FOURIER_SCALE * jax.random.normal(rngs.params(), (noise // 2,))
            )
            if config.embedding == "fourier"
            else None
        )
        made = {"dtype": dtype, "rngs": rngs}
        self.map_label = (
            linear(config.label_dim, noise, **made) if config.label_dim else None
        )
        self.map_augment = (
            linear(config.augment_dim, noise, **made, bias=False)
            if config.augment_dim
            else None
        )
        self.map_layer0 = linear(noise, width, **made)
        self.map_layer1 = linear(width, width, **made)
        settings = BlockSettings(
            embedding_channels=width,
            dtype=dtype,
            dropout=config.dropout,
            adaptive_scale=config.adaptive_scale,
            taps=tuple(config.resample_filter),
        )
        shape = UNetShape(
            config.model_channels,
            tuple(config.channel_mult),
            config.num_blocks,
            tuple(config.attention_resolutions),
            input_pyramid=config.encoder == "residual",
            checkpoint_blocks=config.checkpoint_blocks,
        )
        self.unet = UNet(shape, settings, event_shape, output_channels, rngs=rngs)

    def embed(
        self, c_noise: Array, labels: Array | None, condition: Array | None
    ) -> Array:
        """Return the embedding (B, 4 * model_channels) of noise level and labels."""
        c_noise = self.noise_scale * c_noise
        if self.frequencies is None:
            embedding = positional_embedding(c_noise, self.noise_channels)
        else:
            frequencies = jax.lax.stop_gradient(self.frequencies[...])
            embedding = fourier_embedding(c_noise, frequencies)
        if self.map_label is not None:
            if labels is None:
                labels = jnp.zeros((1, self.label_dim), c_noise.dtype)
            embedding = embedding + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and condition is not None:
            embedding = embedding + self.map_augment(condition)
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
            condition: (B, augment_dim), or None for zeros: no augmentation.
            dropout_key: Key of the dropout masks, or None for none.

        Returns:
            The network's output, (B, H, W, output_channels).
        """
        refuse_unknown("labels", labels, self.label_dim, "label_dim")
        refuse_unknown("conditions", condition, self.augment_dim, "augment_dim")
        labels, dropout_key = drop_labels(labels, self.label_dropout, dropout_key)
        embedding = self.embed(c_noise, labels, condition)
        return self.unet(x, embedding, dropout_key)
