"""One gather, one mask, one gain: what most linear transforms of images are.

    x'[i, j, :] = weight[i, j] M x[source[i, j], :]

Rotations by 90 degrees, flips, shifts, cutouts, gains and colour matrices all have this
form, and so have their compositions and choices between them.  A choice among K such
transforms is made on the maps, not on the images, so that it costs one gather whatever
K (`jax.lax.switch` would run all K under vmap).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "PixelMap",
    "apply_pixel_map",
    "compose",
    "gain_of",
    "identity_map",
    "is_identity",
    "select",
    "visible_share",
]


class PixelMap(NamedTuple):
    """A linear map of images (H, W, C) that moves, weights and mixes pixels.

    Attributes:
        source: (H, W) int32, index i W + j of the pixel that is taken; always valid.
        weight: (H, W) float32, 0 where nothing is taken.
        mix: (C, C) float32 applied to each pixel's channels, or None for none.
    """

    source: Array
    weight: Array
    mix: Array | None = None


def identity_map(shape: tuple[int, ...]) -> PixelMap:
    """Return the map that changes nothing, for images of shape (H, W, C)."""
    height, width = shape[:2]
    source = jnp.arange(height * width, dtype=jnp.int32).reshape(height, width)
    return PixelMap(source, jnp.ones((height, width), jnp.float32))


def apply_pixel_map(pixel_map: PixelMap, x: Array) -> Array:
    """Return the transformed image, (H, W, C) -> (H, W, C), in the dtype of `x`."""
    channels = x.shape[-1]
    moved = x.reshape(-1, channels)[pixel_map.source]
    if pixel_map.mix is not None:
        mix = pixel_map.mix.astype(x.dtype)
        moved = jnp.einsum("hwc,dc->hwd", moved, mix, precision="highest")
    return moved * pixel_map.weight[..., None].astype(x.dtype)


def compose(first: PixelMap, second: PixelMap) -> PixelMap:
    """Return the map that applies `first`, then `second`."""
    source = first.source.reshape(-1)[second.source]
    weight = first.weight.reshape(-1)[second.source] * second.weight
    if first.mix is None or second.mix is None:
        mix = second.mix if first.mix is None else first.mix
    else:
        mix = jnp.matmul(second.mix, first.mix, precision="highest")
    return PixelMap(source, weight, mix)


def select(index: Array, maps: tuple[PixelMap, ...], channels: int) -> PixelMap:
    """Return the map number `index`, () int32."""
    mix = None
    if any(item.mix is not None for item in maps):
        plain = jnp.eye(channels, dtype=jnp.float32)
        mixes = [plain if item.mix is None else item.mix for item in maps]
        mix = jax.lax.select_n(index, *mixes)
    return PixelMap(
        jax.lax.select_n(index, *[item.source for item in maps]),
        jax.lax.select_n(index, *[item.weight for item in maps]),
        mix,
    )


def is_identity(pixel_map: PixelMap, shape: tuple[int, ...]) -> Array:
    """Return whether the map changes no image of shape (H, W, C), () bool."""
    plain = identity_map(shape)
    same = jnp.all(pixel_map.source == plain.source) & jnp.all(pixel_map.weight == 1)
    if pixel_map.mix is None:
        return same
    return same & jnp.all(pixel_map.mix == jnp.eye(shape[-1], dtype=jnp.float32))


def gain_of(pixel_map: PixelMap) -> Array:
    """Return the factor on visible pixels, () float32; 1 where none is visible."""
    largest = jnp.max(jnp.abs(pixel_map.weight))
    return jnp.where(largest > 0, largest, 1.0)


def visible_share(pixel_map: PixelMap) -> Array:
    """Return the share of output pixels that show a pixel of the input, () float32."""
    return jnp.mean((pixel_map.weight != 0).astype(jnp.float32))
