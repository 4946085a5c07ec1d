"""Choices among transforms, and one after another.

Where all parts are gathers of pixels (see `pixel_map`), so is the combination: one
gather, whatever the number of parts.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from configs.errors import InputError, require
from diffusion.augmentation.pixel_map import (
    PixelMap,
    apply_pixel_map,
    compose,
    identity_map,
    is_identity,
    select,
)
from diffusion.augmentation.transforms import Identity, Transform, linear_adjoint

__all__ = ["Chain", "Maybe", "OneOf", "leaves_of", "pixel_map_of"]


def pixel_map_of(
    transform: Transform, params: Any, shape: tuple[int, ...]
) -> PixelMap | None:
    """Return T as a pixel map for images of shape (H, W, C); None if it is not one."""
    make = getattr(transform, "pixel_map", None)
    return None if make is None else make(params, shape)


def _of_all(flag: str) -> Any:
    """Return the flag of a combination: whether all its transforms have it."""
    return property(lambda self: all(getattr(t, flag) for t in self.transforms))


class OneOfParams(NamedTuple):
    """Which transform was drawn, () int32, and parameters for each of them."""

    index: Array
    members: tuple[Any, ...]


@dataclass(frozen=True)
class OneOf:
    """T is one of several transforms, drawn anew for each image.

    The condition is that of all transforms side by side, with zeros for those that were
    not drawn.

    Args:
        transforms: Two or more, or one.
        weights: Relative frequency of each; None for equal ones.
    """

    transforms: tuple[Transform, ...]
    weights: tuple[float, ...] | None = None

    linear = _of_all("linear")
    orthogonal = _of_all("orthogonal")
    injective = _of_all("injective")
    self_identifying = _of_all("self_identifying")

    def __post_init__(self) -> None:
        """Check the weights."""
        object.__setattr__(self, "transforms", _transforms(self, self.transforms))
        if self.weights is None:
            return
        weights = tuple(float(weight) for weight in self.weights)
        object.__setattr__(self, "weights", weights)
        count = len(self.transforms)
        require(
            len(weights) == count,
            "OneOf.weights",
            weights,
            f"{count} numbers, one for each transform",
        )
        good = all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0
        require(good, "OneOf.weights", weights, "finite, >= 0 and not all 0")

    def sample(self, key: Array, shape: tuple[int, ...]) -> OneOfParams:
        """Draw a transform, and parameters for all of them."""
        keys = jax.random.split(key, len(self.transforms) + 1)
        weights = self.weights or (1.0,) * len(self.transforms)
        share = jnp.asarray(weights, jnp.float32) / sum(weights)
        index = jax.random.choice(keys[0], len(weights), p=share).astype(jnp.int32)
        pairs = zip(self.transforms, keys[1:], strict=True)
        return OneOfParams(index, tuple(t.sample(k, shape) for t, k in pairs))

    def apply(self, params: OneOfParams, x: Array) -> Array:
        """Return the drawn transform of x."""
        maps = [
            pixel_map_of(item, member, x.shape)
            for item, member in zip(self.transforms, params.members, strict=True)
        ]
        plain = identity_map(x.shape)
        fused = tuple(plain if found is None else found for found in maps)
        y = apply_pixel_map(select(params.index, fused, x.shape[-1]), x)
        for number, found in enumerate(maps):
            if found is None:
                other = self.transforms[number].apply(params.members[number], x)
                y = jnp.where(params.index == number, other, y)
        return y

    def adjoint(self, params: OneOfParams, x: Array) -> Array:
        """Return the drawn transform's adjoint of x."""
        return linear_adjoint(self, params, x)

    def encode(self, params: OneOfParams) -> Array:
        """Return the conditions side by side, zeros for those not drawn."""
        parts = [
            jnp.where(params.index == number, item.encode(member), 0.0)
            for number, (item, member) in enumerate(
                zip(self.transforms, params.members, strict=True)
            )
        ]
        return jnp.concatenate(parts)

    def pixel_map(self, params: OneOfParams, shape: tuple[int, ...]) -> PixelMap | None:
        """Return the drawn map; None if one of the transforms is not a pixel map."""
        maps = [
            pixel_map_of(item, member, shape)
            for item, member in zip(self.transforms, params.members, strict=True)
        ]
        found = tuple(item for item in maps if item is not None)
        if len(found) < len(maps):
            return None
        return select(params.index, found, shape[-1])


class ChainParams(NamedTuple):
    """Whether the whole chain changes anything, () bool, and each part's parameters."""

    active: Array
    members: tuple[Any, ...]


@dataclass(frozen=True)
class Chain:
    """T applies several transforms, the first one first.

    The condition is that of all side by side; where they cancel, such as a turn by 90
    and one by 270 degrees, it is zero.  Whether they do is seen for gathers of pixels
    and channel matrices; of orthogonal transforms, which can cancel, there may be one
    at most beside a transform of another kind.

    Args:
        transforms: One or more.
    """

    transforms: tuple[Transform, ...]

    linear = _of_all("linear")
    orthogonal = _of_all("orthogonal")
    injective = _of_all("injective")
    self_identifying = _of_all("self_identifying")

    def __post_init__(self) -> None:
        """Check that there is one, and that cancelling is seen."""
        object.__setattr__(self, "transforms", _transforms(self, self.transforms))
        others = [t for t in self.transforms if not hasattr(t, "pixel_map")]
        turning = [t for t in self.transforms if _can_turn(t)]
        if others and len(turning) > 1:
            names = " and ".join(type(item).__name__ for item in turning)
            raise InputError(
                f"Chain: {names} could cancel unseen beside "
                f"{type(others[0]).__name__}; keep one of them"
            )

    def sample(self, key: Array, shape: tuple[int, ...]) -> ChainParams:
        """Draw parameters for each."""
        keys = jax.random.split(key, len(self.transforms))
        pairs = zip(self.transforms, keys, strict=True)
        members = tuple(item.sample(one, shape) for item, one in pairs)
        whole = self._pixel_map(members, shape)
        active = jnp.ones((), bool) if whole is None else ~is_identity(whole, shape)
        return ChainParams(active, members)

    def apply(self, params: ChainParams, x: Array) -> Array:
        """Return T_n ... T_1 x."""
        whole = self._pixel_map(params.members, x.shape)
        if whole is not None:
            return apply_pixel_map(whole, x)
        for item, member in zip(self.transforms, params.members, strict=True):
            x = item.apply(member, x)
        return x

    def adjoint(self, params: ChainParams, x: Array) -> Array:
        """Return T_1^T ... T_n^T x."""
        pairs = list(zip(self.transforms, params.members, strict=True))
        for item, member in reversed(pairs):
            x = item.adjoint(member, x)
        return x

    def encode(self, params: ChainParams) -> Array:
        """Return the conditions side by side."""
        parts = [
            item.encode(member)
            for item, member in zip(self.transforms, params.members, strict=True)
        ]
        return jnp.where(params.active, jnp.concatenate(parts), 0.0)

    def pixel_map(self, params: ChainParams, shape: tuple[int, ...]) -> PixelMap | None:
        """Return the composed map; None if one of the transforms is not a pixel map."""
        return self._pixel_map(params.members, shape)

    def _pixel_map(
        self, members: tuple[Any, ...], shape: tuple[int, ...]
    ) -> PixelMap | None:
        maps = [
            pixel_map_of(item, member, shape)
            for item, member in zip(self.transforms, members, strict=True)
        ]
        found = [item for item in maps if item is not None]
        return functools.reduce(compose, found) if len(found) == len(maps) else None


class MaybeParams(NamedTuple):
    """Whether the transform was drawn, () bool, and its parameters."""

    active: Array
    member: Any


@dataclass(frozen=True)
class Maybe:
    """T is a transform with some probability, and the identity otherwise.

    Args:
        transform: What is applied.
        probability: How often, in [0, 1].
    """

    transform: Transform
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the probability."""
        value = self.probability
        require(0 <= value <= 1, "Maybe.probability", value, "in [0, 1]")

    @property
    def linear(self) -> bool:
        """Whether the transform is."""
        return self.transform.linear

    @property
    def orthogonal(self) -> bool:
        """Whether the transform is."""
        return self.transform.orthogonal

    @property
    def injective(self) -> bool:
        """Whether the transform is."""
        return self.transform.injective

    @property
    def self_identifying(self) -> bool:
        """Whether the transform is."""
        return self.transform.self_identifying

    @property
    def draws_identity(self) -> bool:
        """Whether the identity comes up by itself."""
        return self.probability < 1

    def sample(self, key: Array, shape: tuple[int, ...]) -> MaybeParams:
        """Draw whether, and the parameters."""
        active_key, member_key = jax.random.split(key)
        active = jax.random.bernoulli(active_key, jnp.float32(self.probability))
        return MaybeParams(active, self.transform.sample(member_key, shape))

    def apply(self, params: MaybeParams, x: Array) -> Array:
        """Return the transform of x, or x."""
        return jnp.where(params.active, self.transform.apply(params.member, x), x)

    def adjoint(self, params: MaybeParams, x: Array) -> Array:
        """Return the adjoint of x, or x."""
        return jnp.where(params.active, self.transform.adjoint(params.member, x), x)

    def encode(self, params: MaybeParams) -> Array:
        """Return the transform's condition, or zeros."""
        return jnp.where(params.active, self.transform.encode(params.member), 0.0)

    def pixel_map(self, params: MaybeParams, shape: tuple[int, ...]) -> PixelMap | None:
        """Return the transform's map or the identity; None if it is not a pixel map."""
        found = pixel_map_of(self.transform, params.member, shape)
        if found is None:
            return None
        maps = (identity_map(shape), found)
        return select(params.active.astype(jnp.int32), maps, shape[-1])


def leaves_of(transform: Transform) -> tuple[Transform, ...]:
    """Return the transforms that a combination is made of, at any depth."""
    if isinstance(transform, Maybe):
        return leaves_of(transform.transform)
    if isinstance(transform, OneOf | Chain):
        return tuple(leaf for part in transform.transforms for leaf in leaves_of(part))
    return (transform,)


def _can_turn(transform: Transform) -> bool:
    """Return whether some map other than the identity is an orthogonal one."""
    return any(
        # EDM's pipe, which draws the identity by itself, turns and mirrors too.
        getattr(leaf, "draws_identity", False)
        or (leaf.orthogonal and not isinstance(leaf, Identity))
        for leaf in leaves_of(transform)
    )


def _transforms(owner: Any, given: Any) -> tuple[Transform, ...]:
    transforms = tuple(given)
    if not transforms:
        raise InputError(f"{type(owner).__name__} has no transforms; give at least one")
    return transforms
