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
    xavier_uniform,
)

__all__ = ["MLP"]


class MLPFields(Protocol):
    """The fields that the network reads; see `configs.schema.MLPConfig`."""

    width: int
    num_layers: int
    dtype: str


class MLP(nnx.Module):
    """y <- y + W1 silu(W0 silu(y) + A e) per layer; e embeds the noise level."""

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
        self.embed = linear(width, width, dtype=dtype, rngs=rngs)
        self.layer_in = linear(size, width, dtype=dtype, rngs=rngs)
        layers = {}
        for index in range(config.num_layers):
            layers[f"layer{index}"] = nnx.Dict(
                inner=linear(width, width, dtype=dtype, rngs=rngs),
                affine=linear(width, width, dtype=dtype, rngs=rngs),
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

    def __call__(
        self,
        x: Array,
        c_noise: Array,
        labels: Array | None = None,
        condition: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Return F(x; c_noise) for x of (B, *event) and c_noise of (B,)."""
        if labels is not None or condition is not None:
            raise InputError("the perceptron takes no labels and no condition")
        embedding = jax.nn.silu(self.embed(positional_embedding(c_noise, self.width)))
        y = self.layer_in(x.reshape(x.shape[0], -1))
        for index in range(self.num_layers):
            layer = self.layers[f"layer{index}"]
            hidden = layer["inner"](jax.nn.silu(y)) + layer["affine"](embedding)
            y = (y + layer["outer"](jax.nn.silu(hidden))) * math.sqrt(0.5)
        return self.layer_out(jax.nn.silu(y)).reshape(-1, *self.output_shape)
