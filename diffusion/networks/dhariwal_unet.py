"""ADM, the U-Net of Dhariwal & Nichol, parameter for parameter as published.

With the defaults of `DhariwalUNetConfig`, 64x64x3 images and 1,000 classes it is the
ImageNet-64 network of EDM (295.9 M parameters).  Against DDPM++: attention at three
resolutions with heads of 64 channels, the embedding scales and shifts the features,
skips are not rescaled, and branches start at exactly zero.  Sources: arXiv 2105.05233;
Karras et al., arXiv 2206.00364, appendix F.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion.networks.layers import (
    ADM_INITIALISATION,
    drop_labels,
    linear,
    positional_embedding,
    refuse_unknown,
)
from diffusion.networks.residual_block import BlockSettings
from diffusion.networks.unet import UNet, UNetShape

__all__ = ["DhariwalUNet"]


class DhariwalUNetFields(Protocol):
    """What the network reads; see `configs.network_schema.DhariwalUNetConfig`."""

    model_channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    attention_resolutions: tuple[int, ...]
    channels_per_head: int
    dropout: float
    label_dim: int
    label_dropout: float
    augment_dim: int
    checkpoint_blocks: bool
    dtype: str


class DhariwalUNet(nnx.Module):
    """ADM for (B, H, W, C) images; H and W divisible by 2**(levels - 1)."""

    def __init__(
        self,
        config: DhariwalUNetFields,
        event_shape: tuple[int, ...],
        output_channels: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make every layer; arguments and errors as for `SongUNet`."""
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        self.noise_channels = config.model_channels
        self.label_dim, self.augment_dim = config.label_dim, config.augment_dim
        self.label_dropout = config.label_dropout
        width, noise = 4 * config.model_channels, config.model_channels
        made = {"dtype": dtype, "rngs": rngs, "init": ADM_INITIALISATION}
        self.map_augment = (
            linear(
                config.augment_dim,
                noise,
                **made,
                kernel_init=nnx.initializers.zeros_init(),
                bias=False,
            )
            if config.augment_dim
            else None
        )
        self.map_layer0 = linear(noise, width, **made)
        self.map_layer1 = linear(width, width, **made)
        self.map_label = (
            linear(
                config.label_dim,
                width,
                **made,
                kernel_init=nnx.initializers.normal(1.0),
                bias=False,
            )
            if config.label_dim
            else None
        )
        settings = BlockSettings(
            embedding_channels=width,
            dtype=dtype,
            dropout=config.dropout,
            adaptive_scale=True,
            skip_scale=1.0,
            epsilon=1e-5,
            channels_per_head=config.channels_per_head,
            project_resampled=False,
            init=ADM_INITIALISATION,
        )
        shape = UNetShape(
            config.model_channels,
            tuple(config.channel_mult),
            config.num_blocks,
            tuple(config.attention_resolutions),
            attend_in_decoder="all",
            checkpoint_blocks=config.checkpoint_blocks,
        )
        self.unet = UNet(shape, settings, event_shape, output_channels, rngs=rngs)

    def embed(
        self, c_noise: Array, labels: Array | None, condition: Array | None
    ) -> Array:
        """Return the embedding (B, 4 * model_channels) of noise level and labels."""
        half = self.noise_channels // 2
        sines = positional_embedding(c_noise, self.noise_channels, endpoint=False)
        # Cosines come first here, as in published checkpoints.
        embedding = jnp.roll(sines, half, axis=1)
        if self.map_augment is not None and condition is not None:
            embedding = embedding + self.map_augment(condition)
        embedding = self.map_layer1(jax.nn.silu(self.map_layer0(embedding)))
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels)
        return jax.nn.silu(embedding)

    def __call__(
        self,
        x: Array,
        c_noise: Array,
        labels: Array | None = None,
        condition: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Return F(x; c_noise); arguments and result as for `SongUNet`."""
        refuse_unknown("labels", labels, self.label_dim, "label_dim")
        refuse_unknown("conditions", condition, self.augment_dim, "augment_dim")
        labels, dropout_key = drop_labels(labels, self.label_dropout, dropout_key)
        embedding = self.embed(c_noise, labels, condition)
        return self.unet(x, embedding, dropout_key)
