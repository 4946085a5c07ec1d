"""What a transform of images is, and the two plainest ones.

A transform T is a frozen value.  ``sample`` draws its parameters omega for one image,
``apply`` is T_omega, ``adjoint`` its transpose, and ``encode`` the condition that a
network is told: **all zeros if and only if T_omega is the identity**, because sampling
uses zeros.  Everything acts on one image (H, W, C) and is meant for ``jax.vmap``.

Those of Score Augmentation (arXiv 2508.07926) are `Brightness`, `Translate` and
`Cutout` (in `shifts` and `masks`) and `Rot90` (in `symmetries`); their ranges are not
known from the paper and are options here.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from configs.errors import InputError, require
from diffusion.augmentation.pixel_map import PixelMap, identity_map

__all__ = [
    "Brightness",
    "Identity",
    "Transform",
    "active_or_zero",
    "linear_adjoint",
    "require_fraction",
    "require_image",
]


class Transform(Protocol):
    """A family of maps of images (H, W, C), one for each parameter omega.

    A gather of pixels has a method ``pixel_map(params, shape)`` too, which returns its
    `PixelMap`; a choice among such transforms is one gather.  A transform that draws
    the identity often enough by itself has ``draws_identity = True``.

    Attributes:
        linear: Whether every T_omega is linear.
        orthogonal: Whether T_omega^T T_omega = 1, so that T_omega n is again white
            noise and augmenting the noisy or the clean image is the same problem.
        injective: Whether every T_omega can be undone.
        self_identifying: Whether T_omega(x0 + n) shows which omega was used at every
            noise level, so that a network needs no condition.
    """

    @property
    def linear(self) -> bool:
        """See the class."""
        ...

    @property
    def orthogonal(self) -> bool:
        """See the class."""
        ...

    @property
    def injective(self) -> bool:
        """See the class."""
        ...

    @property
    def self_identifying(self) -> bool:
        """See the class."""
        ...

    def sample(self, key: Array, shape: tuple[int, ...]) -> Any:
        """Draw parameters for an image of shape (H, W, C), a pytree of small arrays.

        Raises:
            InputError: If the transform cannot act on such images.
        """
        ...

    def apply(self, params: Any, x: Array) -> Array:
        """Return T x, (H, W, C) -> (H, W, C), in the dtype of x."""
        ...

    def adjoint(self, params: Any, x: Array) -> Array:
        """Return T^T x, the transpose of a linear `apply`."""
        ...

    def encode(self, params: Any) -> Array:
        """Return the condition, (k,) float32; zeros for the identity alone."""
        ...


def linear_adjoint(transform: Transform, params: Any, x: Array) -> Array:
    """Return T^T x by transposing `apply`, for a linear transform.

    Raises:
        InputError: If the transform is not linear.
    """
    if not transform.linear:
        raise InputError(
            f"{type(transform).__name__} is not linear, so it has no adjoint"
        )
    (result,) = jax.linear_transpose(lambda y: transform.apply(params, y), x)(x)
    return result


@dataclass(frozen=True)
class Identity:
    """T = 1, with an empty condition."""

    linear = True
    orthogonal = True
    injective = True
    self_identifying = True

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Return no parameters: (0,), as `jax.vmap` asks for an array."""
        require_image(shape, self)
        return jnp.zeros(0, jnp.float32)

    def pixel_map(self, params: Array, shape: tuple[int, ...]) -> PixelMap:
        """Return the map that changes nothing."""
        return identity_map(shape)

    def apply(self, params: Array, x: Array) -> Array:
        """Return x."""
        return x

    def adjoint(self, params: Array, x: Array) -> Array:
        """Return x."""
        return x

    def encode(self, params: Array) -> Array:
        """Return the empty condition, (0,)."""
        return params


class BrightnessParams(NamedTuple):
    """The gain and the position of its logarithm in the range, [-1, 1]."""

    gain: Array
    exponent: Array


@dataclass(frozen=True)
class Brightness:
    """T x = b x with log b uniform between -log B and log B; nothing is clipped.

    Condition (2): whether b differs from 1, log b / log B.

    Args:
        max_gain: B > 1.
    """

    max_gain: float = 2.0

    linear = True
    orthogonal = False
    injective = True
    self_identifying = True

    def __post_init__(self) -> None:
        """Check the range."""
        good = math.isfinite(self.max_gain) and self.max_gain > 1
        require(good, "Brightness.max_gain", self.max_gain, "a finite number above 1")

    def sample(self, key: Array, shape: tuple[int, ...]) -> BrightnessParams:
        """Draw a gain."""
        require_image(shape, self)
        exponent = jax.random.uniform(key, dtype=jnp.float32, minval=-1.0, maxval=1.0)
        return BrightnessParams(jnp.exp(exponent * math.log(self.max_gain)), exponent)

    def pixel_map(self, params: BrightnessParams, shape: tuple[int, ...]) -> PixelMap:
        """Return the gain as a weight."""
        plain = identity_map(shape)
        return plain._replace(weight=plain.weight * params.gain)

    def apply(self, params: BrightnessParams, x: Array) -> Array:
        """Return b x."""
        return x * params.gain.astype(x.dtype)

    def adjoint(self, params: BrightnessParams, x: Array) -> Array:
        """Return b x."""
        return self.apply(params, x)

    def encode(self, params: BrightnessParams) -> Array:
        """Return (b != 1, log b / log B)."""
        return active_or_zero(params.gain != 1, params.exponent[None])


def active_or_zero(active: Array, values: Array) -> Array:
    """Return (1, values) for a map that does something, zeros for the identity.

    The 1 keeps maps that are nearly the identity, such as a gain of 1.0001, apart from
    it.
    """
    row = jnp.concatenate([jnp.ones(1, jnp.float32), values.astype(jnp.float32)])
    return jnp.where(active, row, 0.0)


def require_image(shape: tuple[int, ...], transform: Any) -> None:
    """Raise `InputError` unless the shape is (H, W, C)."""
    if len(shape) != 3:
        raise InputError(
            f"{type(transform).__name__} acts on images (H, W, C), not on samples of "
            f"shape {tuple(shape)}; train these without augmentation"
        )


def require_fraction(name: str, value: float, *, below: float = 1.0) -> None:
    """Raise `InputError` unless 0 < value < below."""
    require(0 < value < below, name, value, f"in (0, {below:g})")
