"""Masks: parts of the image are set to zero, which is mid-grey."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from configs.errors import InputError, require
from diffusion.augmentation.pixel_map import PixelMap, identity_map
from diffusion.augmentation.transforms import (
    active_or_zero,
    require_fraction,
    require_image,
)

__all__ = ["Cutout", "PatchMask"]


class CutoutParams(NamedTuple):
    """Corner (top, left) and size (h, w) in pixels, and the size as shares."""

    corner: Array
    size: Array
    share: Array


@dataclass(frozen=True)
class Cutout:
    """T sets a rectangle of h x w pixels to zero.

    h is uniform over the integers from round(min_fraction H), at least 1, to
    round(max_fraction H), w alike, and the rectangle lies anywhere inside the image.
    Condition (3): whether anything is cut, h/H, w/W.  Where is not told, as in the
    paper.

    Args:
        min_fraction: Smallest side as a share of the image's, in (0, max_fraction].
        max_fraction: Largest side, in (0, 1).
    """

    min_fraction: float = 0.1
    max_fraction: float = 0.5

    linear = True
    orthogonal = False
    injective = False
    self_identifying = True

    def __post_init__(self) -> None:
        """Check the range."""
        require_fraction("Cutout.max_fraction", self.max_fraction)
        require(
            0 < self.min_fraction <= self.max_fraction,
            "Cutout.min_fraction",
            self.min_fraction,
            f"in (0, max_fraction = {self.max_fraction}]",
        )

    def sample(self, key: Array, shape: tuple[int, ...]) -> CutoutParams:
        """Draw size and place."""
        require_image(shape, self)
        size_key, corner_key = jax.random.split(key)
        sides = shape[:2]
        smallest = [max(1, round(self.min_fraction * side)) for side in sides]
        largest = [round(self.max_fraction * side) for side in sides]
        if any(a > b for a, b in zip(smallest, largest, strict=True)):
            raise InputError(
                f"Cutout({self.min_fraction:g}, {self.max_fraction:g}) cuts less than "
                f"one pixel of images of {sides[0]}x{sides[1]}; raise max_fraction"
            )
        if any(a >= b for a, b in zip(largest, sides, strict=True)):
            raise InputError(
                f"Cutout({self.min_fraction:g}, {self.max_fraction:g}) hides a whole "
                f"side of images of {sides[0]}x{sides[1]} pixels; lower max_fraction"
            )
        bounds = jnp.asarray(smallest, jnp.int32), jnp.asarray(largest, jnp.int32) + 1
        size = jax.random.randint(size_key, (2,), *bounds, jnp.int32)
        room = jnp.asarray(sides, jnp.int32) - size + 1
        corner = jax.random.randint(corner_key, (2,), 0, room, jnp.int32)
        return CutoutParams(corner, size, size / jnp.asarray(sides, jnp.float32))

    def pixel_map(self, params: CutoutParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the mask."""
        plain = identity_map(shape)
        end = params.corner + params.size
        rows, columns = jnp.arange(shape[0]), jnp.arange(shape[1])
        in_rows = (rows >= params.corner[0]) & (rows < end[0])
        in_columns = (columns >= params.corner[1]) & (columns < end[1])
        hidden = in_rows[:, None] & in_columns[None, :]
        return plain._replace(weight=jnp.where(hidden, 0.0, plain.weight))

    def apply(self, params: CutoutParams, x: Array) -> Array:
        """Return the image without the rectangle."""
        weight = self.pixel_map(params, x.shape).weight
        return x * weight[..., None].astype(x.dtype)

    def adjoint(self, params: CutoutParams, x: Array) -> Array:
        """Return the image without the rectangle; a mask is symmetric."""
        return self.apply(params, x)

    def encode(self, params: CutoutParams) -> Array:
        """Return (cut, h/H, w/W)."""
        return active_or_zero(jnp.all(params.size > 0), params.share)


class PatchMaskParams(NamedTuple):
    """Which patches are hidden, (H/p, W/p) bool."""

    hidden: Array


@dataclass(frozen=True)
class PatchMask:
    """T sets patches of p x p pixels to zero, each with the same probability.

    The probability is uniform up to max_fraction, drawn once an image.  Condition (2):
    whether anything is hidden, the share of hidden patches.

    Args:
        patch_size: Side p of a patch; a divisor of the image's sides.
        max_fraction: Largest share of patches hidden on average, in (0, 1).
    """

    patch_size: int = 4
    max_fraction: float = 0.5

    linear = True
    orthogonal = False
    injective = False
    self_identifying = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        size = self.patch_size
        whole = math.isfinite(size) and size == int(size) > 0
        require(whole, "PatchMask.patch_size", size, "an integer > 0")
        object.__setattr__(self, "patch_size", int(size))
        require_fraction("PatchMask.max_fraction", self.max_fraction)

    def sample(self, key: Array, shape: tuple[int, ...]) -> PatchMaskParams:
        """Draw the hidden patches."""
        require_image(shape, self)
        if any(side % self.patch_size for side in shape[:2]):
            raise InputError(
                f"PatchMask needs sides divisible by patch_size = {self.patch_size}; "
                f"the images have {shape[0]}x{shape[1]} pixels"
            )
        level_key, patch_key = jax.random.split(key)
        share = jax.random.uniform(
            level_key, dtype=jnp.float32, maxval=self.max_fraction
        )
        grid = (shape[0] // self.patch_size, shape[1] // self.patch_size)
        return PatchMaskParams(jax.random.uniform(patch_key, grid, jnp.float32) < share)

    def pixel_map(self, params: PatchMaskParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the mask."""
        rows = jnp.repeat(params.hidden, self.patch_size, axis=0)
        hidden = jnp.repeat(rows, self.patch_size, axis=1)
        plain = identity_map(shape)
        return plain._replace(weight=jnp.where(hidden, 0.0, plain.weight))

    def apply(self, params: PatchMaskParams, x: Array) -> Array:
        """Return the image without the hidden patches."""
        weight = self.pixel_map(params, x.shape).weight
        return x * weight[..., None].astype(x.dtype)

    def adjoint(self, params: PatchMaskParams, x: Array) -> Array:
        """Return the image without the hidden patches; a mask is symmetric."""
        return self.apply(params, x)

    def encode(self, params: PatchMaskParams) -> Array:
        """Return (anything hidden, share hidden)."""
        share = jnp.mean(params.hidden.astype(jnp.float32))
        return active_or_zero(share > 0, share[None])
