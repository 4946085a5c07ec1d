"""Shifts by whole pixels: zeros come in, or what leaves comes in on the other side."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from configs.errors import InputError
from diffusion.augmentation.pixel_map import PixelMap, apply_pixel_map
from diffusion.augmentation.transforms import (
    active_or_zero,
    require_fraction,
    require_image,
)

__all__ = ["CircularShift", "Translate"]


class ShiftParams(NamedTuple):
    """A shift down and to the right in pixels, and as a share of the longest one."""

    pixels: Array
    share: Array


def _draw_shift(
    transform: "Translate | CircularShift", key: Array, shape: tuple[int, ...]
) -> ShiftParams:
    require_image(shape, transform)
    name, fraction = type(transform).__name__, transform.max_fraction
    longest = [round(fraction * side) for side in shape[:2]]
    if max(longest) < 1:
        raise InputError(
            f"{name}({fraction:g}) moves images of {shape[0]}x{shape[1]} pixels by "
            f"less than one; give at least {1 / max(shape[:2]):.2g}"
        )
    if any(a >= b for a, b in zip(longest, shape[:2], strict=True)):
        raise InputError(
            f"{name}({fraction:g}) moves images of {shape[0]}x{shape[1]} pixels out of "
            "themselves; lower it"
        )
    bound = jnp.asarray(longest, jnp.int32)
    pixels = jax.random.randint(key, (2,), -bound, bound + 1, jnp.int32)
    return ShiftParams(pixels, pixels.astype(jnp.float32) / jnp.maximum(bound, 1))


@dataclass(frozen=True)
class Translate:
    """T moves the image by whole pixels; zeros (mid-grey) come in.

    Both shifts are uniform over the integers up to round(max_fraction * side).
    Condition (3): whether it moved, shift down and right over the longest ones.

    Args:
        max_fraction: Longest shift as a share of the side, in (0, 1).
    """

    max_fraction: float = 0.125

    linear = True
    orthogonal = False
    injective = False
    self_identifying = True

    def __post_init__(self) -> None:
        """Check the range."""
        require_fraction("Translate.max_fraction", self.max_fraction)

    def sample(self, key: Array, shape: tuple[int, ...]) -> ShiftParams:
        """Draw a shift."""
        return _draw_shift(self, key, shape)

    def pixel_map(self, params: ShiftParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the shift; what lies outside has weight 0."""
        rows, columns = _moved_grid(params.pixels, shape)
        height, width = shape[:2]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
        return PixelMap(rows * width + columns, inside.astype(jnp.float32))

    def apply(self, params: ShiftParams, x: Array) -> Array:
        """Return the moved image."""
        return apply_pixel_map(self.pixel_map(params, x.shape), x)

    def adjoint(self, params: ShiftParams, x: Array) -> Array:
        """Return the image moved back; zeros come in on the other side."""
        return self.apply(params._replace(pixels=-params.pixels), x)

    def encode(self, params: ShiftParams) -> Array:
        """Return (moved, share down, share right)."""
        return active_or_zero(jnp.any(params.pixels != 0), params.share)


@dataclass(frozen=True)
class CircularShift:
    """T moves the image by whole pixels; what leaves comes in on the other side.

    Condition (3): as of `Translate`.

    Args:
        max_fraction: Longest shift as a share of the side, in (0, .5).
    """

    max_fraction: float = 0.125

    linear = True
    orthogonal = True
    injective = True
    self_identifying = False

    def __post_init__(self) -> None:
        """Check the range."""
        # At .5, shifts by +side/2 and -side/2 would be one map with two conditions.
        require_fraction("CircularShift.max_fraction", self.max_fraction, below=0.5)

    def sample(self, key: Array, shape: tuple[int, ...]) -> ShiftParams:
        """Draw a shift."""
        params = _draw_shift(self, key, shape)
        if any(2 * round(self.max_fraction * side) >= side for side in shape[:2]):
            raise InputError(
                f"CircularShift({self.max_fraction:g}) moves images of "
                f"{shape[0]}x{shape[1]} pixels by half a side or more; lower it"
            )
        return params

    def pixel_map(self, params: ShiftParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the shift."""
        rows, columns = _moved_grid(params.pixels, shape)
        height, width = shape[:2]
        source = (rows % height) * width + columns % width
        return PixelMap(source, jnp.ones((height, width), jnp.float32))

    def apply(self, params: ShiftParams, x: Array) -> Array:
        """Return the moved image."""
        return apply_pixel_map(self.pixel_map(params, x.shape), x)

    def adjoint(self, params: ShiftParams, x: Array) -> Array:
        """Return the image moved back."""
        return self.apply(params._replace(pixels=-params.pixels), x)

    def encode(self, params: ShiftParams) -> Array:
        """Return (moved, share down, share right)."""
        return active_or_zero(jnp.any(params.pixels != 0), params.share)


def _moved_grid(pixels: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the rows and columns that a shifted image is taken from, (H, W) each."""
    rows = jnp.arange(shape[0], dtype=jnp.int32) - pixels[0]
    columns = jnp.arange(shape[1], dtype=jnp.int32) - pixels[1]
    rows, columns = jnp.meshgrid(rows, columns, indexing="ij")
    return rows, columns
