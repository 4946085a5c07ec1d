"""Affine maps of the image plane, sampled between pixels.

    (T x)(p) = x(A^-1 p),      p measured from the image's centre, in pixels

Linear in x, but not orthogonal: T n is correlated and weaker than white noise.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from numpy.typing import NDArray

from configs.errors import require
from diffusion.augmentation.transforms import (
    active_or_zero,
    linear_adjoint,
    require_image,
)

__all__ = ["Affine", "rotation", "sample_bilinear", "sources", "widened"]

T = TypeVar("T")


class AffineParams(NamedTuple):
    """Logarithm of the scale, angle in radians, and shift (down, right) in pixels.

    Each of them is kept as a share of its largest value too.
    """

    log_scale: Array
    angle: Array
    shift: Array
    share: Array


@dataclass(frozen=True)
class Affine:
    """T scales, turns and shifts an image a little, by bilinear interpolation.

    Logarithm of the scale, angle and both shifts are uniform.  What lies outside the
    image is zero.  Condition (5): whether anything changed, and the four numbers over
    their largest values.

    Args:
        max_scale: Largest scale, above 1.
        max_angle: Largest angle in degrees, in (0, 180).
        max_fraction: Longest shift as a share of the side, in (0, 1).
    """

    max_scale: float = 1.1
    max_angle: float = 10.0
    max_fraction: float = 0.05

    linear = True
    orthogonal = False
    injective = False
    self_identifying = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        scale, angle = self.max_scale, self.max_angle
        good = math.isfinite(scale) and scale > 1
        require(good, "Affine.max_scale", scale, "a finite number above 1")
        require(0 < angle < 180, "Affine.max_angle", angle, "in (0, 180) degrees")
        share = self.max_fraction
        require(0 < share < 1, "Affine.max_fraction", share, "in (0, 1)")

    def sample(self, key: Array, shape: tuple[int, ...]) -> AffineParams:
        """Draw scale, angle and shift."""
        require_image(shape, self)
        share = jax.random.uniform(key, (4,), jnp.float32, minval=-1.0, maxval=1.0)
        sides = jnp.asarray(shape[:2], jnp.float32)
        return AffineParams(
            share[0] * math.log(self.max_scale),
            share[1] * math.radians(self.max_angle),
            share[2:] * self.max_fraction * sides,
            share,
        )

    def apply(self, params: AffineParams, x: Array) -> Array:
        """Return the warped image."""
        params = widened(params, x.dtype)
        inverse = rotation(-params.angle) * jnp.exp(-params.log_scale)
        centre = (np.asarray(x.shape[:2]) - 1) / 2
        down, right = (np.arange(side) - (side - 1) / 2 for side in x.shape[:2])
        found = sources(inverse, params.shift, down, right)
        return sample_bilinear(x, found + centre.astype(found.dtype))

    def adjoint(self, params: AffineParams, x: Array) -> Array:
        """Return the adjoint, which spreads each value over four pixels."""
        return linear_adjoint(self, params, x)

    def encode(self, params: AffineParams) -> Array:
        """Return (changed, scale, angle, shift down, shift right)."""
        return active_or_zero(jnp.any(params.share != 0), params.share)


def rotation(angle: Array) -> Array:
    """Return the matrix on (down, right) that turns counter-clockwise, (2, 2)."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def sources(
    inverse: Array, shift: Array, down: NDArray[Any], right: NDArray[Any]
) -> Array:
    """Return A^-1 (p - shift) for the points p of a grid, where the shift follows A.

    Args:
        inverse: A^-1 on (down, right), (2, 2).
        shift: (2,) down and right.
        down: (n,) rows of the grid, from the image's centre.
        right: (m,) its columns.

    Returns:
        (n, m, 2), in the dtype of `inverse`.
    """
    grid = np.stack(np.meshgrid(down, right, indexing="ij"), axis=-1)
    points = jnp.asarray(grid, inverse.dtype) - shift
    return jnp.einsum("...j,ij->...i", points, inverse, precision="highest")


def widened(params: T, dtype: DTypeLike) -> T:
    """Return parameters with their real numbers in `dtype`, or float32 if wider."""
    wide = jnp.promote_types(dtype, jnp.float32)

    def one(leaf: Array) -> Array:
        return leaf.astype(wide) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, params)


def sample_bilinear(x: Array, positions: Array) -> Array:
    """Return an image's values between its pixels; zeros lie outside.

    Args:
        x: (H, W, C).
        positions: (..., 2), rows and columns, fractional; (0, 0) is the first pixel.

    Returns:
        (..., C) in the dtype of `x`.
    """
    height, width, channels = x.shape
    corner = jnp.floor(positions)
    fraction = (positions - corner).astype(x.dtype)
    corner = corner.astype(jnp.int32)
    flat, total = x.reshape(-1, channels), jnp.zeros((), x.dtype)
    for down in (0, 1):
        for right in (0, 1):
            row, column = corner[..., 0] + down, corner[..., 1] + right
            weight = jnp.abs(1 - down - fraction[..., 0]) * jnp.abs(
                1 - right - fraction[..., 1]
            )
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = jnp.where(inside, row * width + column, 0)
            value = flat[index] * (weight * inside)[..., None]
            total = total + value
    return total
