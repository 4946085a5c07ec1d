"""The symmetries of the square: turns by 90 degrees and mirrorings.

They are orthogonal: turned white noise is white noise, so a network that is not told
omega cannot see at high noise levels that an image was turned, and draws turned ones.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from configs.errors import InputError
from diffusion.augmentation.pixel_map import PixelMap, apply_pixel_map
from diffusion.augmentation.transforms import require_image

__all__ = ["D4", "Flip", "Rot90"]


class DihedralParams(NamedTuple):
    """Quarter turns counter-clockwise, after a mirroring left to right or none."""

    turns: Array
    mirrored: Array


@dataclass(frozen=True)
class Rot90:
    """T turns a square image by 90, 180 or 270 degrees, each as likely.

    Condition (3): one-hot number of quarter turns.
    """

    linear = True
    orthogonal = True
    injective = True
    self_identifying = False

    def sample(self, key: Array, shape: tuple[int, ...]) -> DihedralParams:
        """Draw 1, 2 or 3 quarter turns."""
        _require_square(shape, self)
        return DihedralParams(
            jax.random.randint(key, (), 1, 4, jnp.int32), jnp.zeros((), bool)
        )

    def pixel_map(self, params: DihedralParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the turn."""
        return _dihedral_map(params, shape)

    def apply(self, params: DihedralParams, x: Array) -> Array:
        """Return the turned image, as ``numpy.rot90`` does."""
        return apply_pixel_map(self.pixel_map(params, x.shape), x)

    def adjoint(self, params: DihedralParams, x: Array) -> Array:
        """Return the image turned back."""
        return self.apply(params._replace(turns=-params.turns % 4), x)

    def encode(self, params: DihedralParams) -> Array:
        """Return which of 1, 2, 3 quarter turns it was, one-hot."""
        return jax.nn.one_hot(params.turns - 1, 3, dtype=jnp.float32)


@dataclass(frozen=True)
class Flip:
    """T mirrors the image left to right.  Condition (1): 1."""

    linear = True
    orthogonal = True
    injective = True
    self_identifying = False

    def sample(self, key: Array, shape: tuple[int, ...]) -> DihedralParams:
        """Return the mirroring; nothing is drawn."""
        require_image(shape, self)
        if shape[1] < 2:
            raise InputError("Flip changes nothing on images one pixel wide; leave out")
        return DihedralParams(jnp.zeros((), jnp.int32), jnp.ones((), bool))

    def pixel_map(self, params: DihedralParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the mirroring."""
        columns = jnp.where(params.mirrored, shape[1] - 1, 0)
        sign = jnp.where(params.mirrored, -1, 1)
        source = jnp.arange(shape[0])[:, None] * shape[1]
        source = source + (columns + sign * jnp.arange(shape[1]))[None]
        return PixelMap(source.astype(jnp.int32), jnp.ones(shape[:2], jnp.float32))

    def apply(self, params: DihedralParams, x: Array) -> Array:
        """Return the mirror image."""
        return jnp.where(params.mirrored, x[:, ::-1], x)

    def adjoint(self, params: DihedralParams, x: Array) -> Array:
        """Return the mirror image."""
        return self.apply(params, x)

    def encode(self, params: DihedralParams) -> Array:
        """Return (mirrored,)."""
        return params.mirrored.astype(jnp.float32)[None]


@dataclass(frozen=True)
class D4:
    """T is one of the eight symmetries of the square, each as likely.

    The mirroring, if any, comes before the turn.  Condition (7): one-hot among those
    that are not the identity.
    """

    linear = True
    orthogonal = True
    injective = True
    self_identifying = False

    def sample(self, key: Array, shape: tuple[int, ...]) -> DihedralParams:
        """Draw one of the eight."""
        _require_square(shape, self)
        element = jax.random.randint(key, (), 0, 8, jnp.int32)
        return DihedralParams(element % 4, element >= 4)

    def pixel_map(self, params: DihedralParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the symmetry."""
        return _dihedral_map(params, shape)

    def apply(self, params: DihedralParams, x: Array) -> Array:
        """Return the mirrored and turned image."""
        return apply_pixel_map(self.pixel_map(params, x.shape), x)

    def adjoint(self, params: DihedralParams, x: Array) -> Array:
        """Return the image turned and mirrored back; a mirroring undoes itself."""
        turns = jnp.where(params.mirrored, params.turns, -params.turns % 4)
        return self.apply(params._replace(turns=turns), x)

    def encode(self, params: DihedralParams) -> Array:
        """Return which of the seven that are not the identity it was, one-hot."""
        element = params.turns + 4 * params.mirrored.astype(jnp.int32)
        return jax.nn.one_hot(element - 1, 7, dtype=jnp.float32)


def _dihedral_map(params: DihedralParams, shape: tuple[int, ...]) -> PixelMap:
    """Return rot90(mirrored x, turns): out[i, j] = x[r, c], both affine in i and j."""
    side = shape[0]
    i, j = jnp.indices((side, side), jnp.int32)
    last = side - 1
    rows = jax.lax.select_n(params.turns, i, j, last - i, last - j)
    columns = jax.lax.select_n(params.turns, j, last - i, last - j, i)
    columns = jnp.where(params.mirrored, last - columns, columns)
    source = rows * side + columns
    return PixelMap(source, jnp.ones((side, side), jnp.float32))


def _require_square(shape: tuple[int, ...], transform: Any) -> None:
    require_image(shape, transform)
    if shape[0] != shape[1] or shape[0] < 2:
        raise InputError(
            f"{type(transform).__name__} needs square images of at least 2x2 pixels, "
            f"these have {shape[0]}x{shape[1]}; use Flip, or crop to squares"
        )
