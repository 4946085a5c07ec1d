"""Transforms of colours, and two curves that are not linear.

Data are centred on mid-grey (0).  Colour matrices act on each pixel and keep the grey
axis (1, 1, 1): rotations about it are orthogonal, saturation is not.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from configs.errors import InputError, require
from diffusion.augmentation.pixel_map import PixelMap, apply_pixel_map, identity_map
from diffusion.augmentation.transforms import active_or_zero, require_image

__all__ = ["ChannelPermutation", "Gamma", "HueRotation", "Saturation", "Solarise"]


class MixParams(NamedTuple):
    """What is drawn, and the channel matrix (C, C) that it makes."""

    drawn: Array
    mix: Array


@dataclass(frozen=True)
class ChannelPermutation:
    """T permutes the channels; all C! orders, the given one too, are as likely.

    Condition (C^2): the permutation matrix less the identity.
    """

    linear = True
    orthogonal = True
    injective = True
    self_identifying = False

    def sample(self, key: Array, shape: tuple[int, ...]) -> MixParams:
        """Draw an order of the channels."""
        require_image(shape, self)
        if shape[-1] < 2:
            raise InputError(
                f"ChannelPermutation needs two channels or more; the images have "
                f"{shape[-1]}"
            )
        order = jax.random.permutation(key, shape[-1]).astype(jnp.int32)
        return MixParams(order, jax.nn.one_hot(order, shape[-1], dtype=jnp.float32))

    def pixel_map(self, params: MixParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the permutation as a channel matrix."""
        return identity_map(shape)._replace(mix=params.mix)

    def apply(self, params: MixParams, x: Array) -> Array:
        """Return the image with channel c taken from channel order[c]."""
        return x[..., params.drawn]

    def adjoint(self, params: MixParams, x: Array) -> Array:
        """Return the image with its channels put back."""
        return x[..., jnp.argsort(params.drawn)]

    def encode(self, params: MixParams) -> Array:
        """Return the matrix less the identity, flattened."""
        return (params.mix - jnp.eye(params.mix.shape[0], dtype=jnp.float32)).reshape(
            -1
        )


@dataclass(frozen=True)
class HueRotation:
    """T turns colours about the grey axis by an angle uniform in (-pi, pi).

    Condition (3): whether it turned, cos - 1, sin.
    """

    linear = True
    orthogonal = True
    injective = True
    self_identifying = False

    def sample(self, key: Array, shape: tuple[int, ...]) -> MixParams:
        """Draw an angle."""
        _require_colour(shape, self)
        angle = jax.random.uniform(
            key, dtype=jnp.float32, minval=-math.pi, maxval=math.pi
        )
        grey = jnp.full(3, 1 / math.sqrt(3), jnp.float32)
        cross = jnp.cross(grey, jnp.eye(3, dtype=jnp.float32)).T  # cross v = grey x v
        # Rodrigues' formula.
        mix = (
            jnp.cos(angle) * jnp.eye(3, dtype=jnp.float32)
            + jnp.sin(angle) * cross
            + (1 - jnp.cos(angle)) * jnp.outer(grey, grey)
        )
        return MixParams(angle, mix)

    def pixel_map(self, params: MixParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the rotation as a channel matrix."""
        return identity_map(shape)._replace(mix=params.mix)

    def apply(self, params: MixParams, x: Array) -> Array:
        """Return the image with turned colours."""
        return apply_pixel_map(self.pixel_map(params, x.shape), x)

    def adjoint(self, params: MixParams, x: Array) -> Array:
        """Return the image with its colours turned back."""
        return self.apply(params._replace(mix=params.mix.T), x)

    def encode(self, params: MixParams) -> Array:
        """Return (turned, cos - 1, sin)."""
        angle = params.drawn
        values = jnp.stack([jnp.cos(angle) - 1, jnp.sin(angle)])
        return active_or_zero(angle != 0, values)


@dataclass(frozen=True)
class Saturation:
    """T keeps the grey part of a pixel and multiplies the rest by s.

    log s is uniform between -log and log of max_factor.  Condition (2): whether s
    differs from 1, log s over the largest.

    Args:
        max_factor: Largest s, above 1.
    """

    max_factor: float = 2.0

    linear = True
    orthogonal = False
    injective = True
    self_identifying = True

    def __post_init__(self) -> None:
        """Check the range."""
        good = math.isfinite(self.max_factor) and self.max_factor > 1
        require(
            good, "Saturation.max_factor", self.max_factor, "a finite number above 1"
        )

    def sample(self, key: Array, shape: tuple[int, ...]) -> MixParams:
        """Draw a factor."""
        _require_colour(shape, self)
        exponent = jax.random.uniform(key, dtype=jnp.float32, minval=-1.0, maxval=1.0)
        factor = jnp.exp(exponent * math.log(self.max_factor))
        exponent = jnp.where(factor == 1, 0.0, exponent)
        grey = jnp.full((3, 3), 1 / 3, jnp.float32)
        return MixParams(
            exponent, grey + factor * (jnp.eye(3, dtype=jnp.float32) - grey)
        )

    def pixel_map(self, params: MixParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the channel matrix."""
        return identity_map(shape)._replace(mix=params.mix)

    def apply(self, params: MixParams, x: Array) -> Array:
        """Return the image with stronger or weaker colours."""
        return apply_pixel_map(self.pixel_map(params, x.shape), x)

    def adjoint(self, params: MixParams, x: Array) -> Array:
        """Return the same as `apply`; the matrix is symmetric."""
        return self.apply(params, x)

    def encode(self, params: MixParams) -> Array:
        """Return (s != 1, log s / log of the largest)."""
        return active_or_zero(params.drawn != 0, params.drawn[None])


class CurveParams(NamedTuple):
    """The number that a curve has, and its position in the range."""

    value: Array
    position: Array


@dataclass(frozen=True)
class Gamma:
    """Experimental, not linear: T bends the scale of grey levels.

    With u = (x + 1)/2, T x = 2 sign(u) |u|^g - 1 and log g uniform between -log and
    log of max_exponent.  The optimal prediction is E[T(x0) | x], which is not
    T(E[x0 | x]).  Condition (2): whether g differs from 1, log g over the largest.

    Args:
        max_exponent: Largest g, above 1.
    """

    max_exponent: float = 2.0

    linear = False
    orthogonal = False
    injective = True
    self_identifying = False

    def __post_init__(self) -> None:
        """Check the range."""
        value = self.max_exponent
        good = math.isfinite(value) and value > 1
        require(good, "Gamma.max_exponent", value, "a finite number above 1")

    def sample(self, key: Array, shape: tuple[int, ...]) -> CurveParams:
        """Draw an exponent."""
        require_image(shape, self)
        position = jax.random.uniform(key, dtype=jnp.float32, minval=-1.0, maxval=1.0)
        return CurveParams(jnp.exp(position * math.log(self.max_exponent)), position)

    def apply(self, params: CurveParams, x: Array) -> Array:
        """Return the bent image."""
        level = (x + 1) / 2
        bent = jnp.sign(level) * jnp.abs(level) ** params.value.astype(x.dtype)
        return 2 * bent - 1

    def adjoint(self, params: CurveParams, x: Array) -> Array:
        """Raise `InputError`: there is none."""
        raise InputError("Gamma is not linear, so it has no adjoint")

    def encode(self, params: CurveParams) -> Array:
        """Return (g != 1, log g / log of the largest)."""
        return active_or_zero(params.value != 1, params.position[None])


@dataclass(frozen=True)
class Solarise:
    """Experimental, not linear and not injective: T x = -x above a threshold.

    The threshold is uniform in [min_threshold, 1].  Condition (2): 1 and the
    threshold's distance from 1 over the largest.

    Args:
        min_threshold: Lowest threshold in data units, in (0, 1).
    """

    min_threshold: float = 0.25

    linear = False
    orthogonal = False
    injective = False
    self_identifying = False

    def __post_init__(self) -> None:
        """Check the range."""
        value = self.min_threshold
        require(0 < value < 1, "Solarise.min_threshold", value, "in (0, 1)")

    def sample(self, key: Array, shape: tuple[int, ...]) -> CurveParams:
        """Draw a threshold."""
        require_image(shape, self)
        position = jax.random.uniform(key, dtype=jnp.float32)
        return CurveParams(1 - position * (1 - self.min_threshold), position)

    def apply(self, params: CurveParams, x: Array) -> Array:
        """Return the image with its brightest parts inverted."""
        return jnp.where(x > params.value.astype(x.dtype), -x, x)

    def adjoint(self, params: CurveParams, x: Array) -> Array:
        """Raise `InputError`: there is none."""
        raise InputError("Solarise is not linear, so it has no adjoint")

    def encode(self, params: CurveParams) -> Array:
        """Return (1, distance of the threshold from 1 over the largest)."""
        return active_or_zero(jnp.ones((), bool), params.position[None])


def _require_colour(shape: tuple[int, ...], transform: Any) -> None:
    require_image(shape, transform)
    if shape[-1] != 3:
        raise InputError(
            f"{type(transform).__name__} needs three channels, red, green and blue; "
            f"the images have {shape[-1]}"
        )
