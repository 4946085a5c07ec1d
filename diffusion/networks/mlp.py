"""A residual perceptron for points and other small vectors.

The noise level enters every layer through a sinusoidal embedding, as in the U-Nets.
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
    linear,
    positional_embedding,
    refuse_unknown,
    xavier_uniform,
)

__all__ = ["MLP"]


class MLPFields(Protocol):
    """The fields that the network reads; see `configs.schema.MLPConfig`."""

    width: int
    num_layers: int
    adaptive_scale: bool
    augment_dim: int
    dtype: str


class MLP(nnx.Module):
    """y <- y + W1 silu(W0 silu(y) + A e) per layer; e embeds the noise level.

    With `adaptive_scale` it is y <- y + W1 silu((1 + A e) W0 norm(y) + B e), where norm
    takes off the mean of the features and divides by their standard deviation.  A
    linear map without bias adds the condition to what e is made from, so that zeros
    change nothing.
    """

    def __init__(
        self,
        config: MLPFields,
        event_shape: tuple[int, ...],
        output_channels: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make every layer for events of any shape (flattened inside)."""
        size, width = math.prod(event_shape), config.width
        last = xavier_uniform(ZERO_GAIN)
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        self.width, self.num_layers = width, config.num_layers
        self.adaptive_scale = config.adaptive_scale
        self.augment_dim = config.augment_dim
        modulation = width * (2 if config.adaptive_scale else 1)
        self.embed = linear(width, width, dtype=dtype, rngs=rngs)
        self.layer_in = linear(size, width, dtype=dtype, rngs=rngs)
        layers = {}
        for index in range(config.num_layers):
            layers[f"layer{index}"] = nnx.Dict(
                inner=linear(width, width, dtype=dtype, rngs=rngs),
                affine=linear(width, modulation, dtype=dtype, rngs=rngs),
                outer=linear(width, width, dtype=dtype, rngs=rngs, kernel_init=last),
            )
        self.layers = nnx.Dict(layers)
        self.output_shape = (*event_shape[:-1], output_channels)
        self.layer_out = linear(
            width,
            math.prod(self.output_shape),
            dtype=dtype,
            rngs=rngs,
            kernel_init=last,
        )
        # Drawn last: the other weights are the same with and without a condition.
        self.map_augment = (
            linear(config.augment_dim, width, dtype=dtype, rngs=rngs, bias=False)
            if config.augment_dim
            else None
        )

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
            x: Scaled noisy samples, (B, *event).
            c_noise: Scaled log noise level, (B,).
            labels: None; there are none.
            condition: (B, augment_dim), or None for zeros: no augmentation.
            dropout_key: Not used.

        Returns:
            The network's output, (B, *event) with output_channels at the end.
        """
        if labels is not None:
            raise InputError("the perceptron takes no labels")
        refuse_unknown("conditions", condition, self.augment_dim, "augment_dim")
        embedding = positional_embedding(c_noise, self.width)
        if self.map_augment is not None and condition is not None:
            embedding = embedding + self.map_augment(condition)
        embedding = jax.nn.silu(self.embed(embedding))
        y = self.layer_in(x.reshape(x.shape[0], -1))
        for index in range(self.num_layers):
            layer = self.layers[f"layer{index}"]
            modulation = layer["affine"](embedding)
            if self.adaptive_scale:
                scale, shift = jnp.split(modulation, 2, axis=-1)
                hidden = layer["inner"](_normalised(y)) * (1 + scale) + shift
            else:
                hidden = layer["inner"](jax.nn.silu(y)) + modulation
            y = (y + layer["outer"](jax.nn.silu(hidden))) * math.sqrt(0.5)
        return self.layer_out(jax.nn.silu(y)).reshape(-1, *self.output_shape)


def _normalised(y: Array, epsilon: float = 1e-6) -> Array:
    """Return (B, C) features with mean 0 and variance 1; at least float32 inside."""
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred / jnp.sqrt(variance + epsilon)).astype(y.dtype)
