"""Where a linear part of a denoiser is diagonal: pixels, or principal directions.

With a basis U of R orthonormal columns a linear map is U diag(g_1 ... g_R) U^T + g (I -
U U^T): one factor per direction and one for the whole complement.  A vector is split
once, c = U^T v; after that any number of such maps and sums costs no product with U,

    sum_j maps_j v_j = w + U (c - e),

where w = sum_j g_j v_j takes the complement's factors, e = U^T w, and c takes the
directions' own.  So a step of a solver costs one split and one joining, 2 D R
multiply-adds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from configs.errors import InputError

__all__ = ["Coordinates", "Split"]

_HIGHEST = jax.lax.Precision.HIGHEST


class Split(NamedTuple):
    """Vectors as `Coordinates` maps them; without a basis the last two are empty.

    Attributes:
        whole: (B, D), right in the complement.
        inside: (B, R), coordinates along the basis.
        shadow: (B, R), what `whole` has there.
    """

    whole: Array
    inside: Array
    shadow: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coordinates:
    """Where the linear part is diagonal: C numbers per noise level.

    Without a basis, the entries of x themselves, C = D.  With one, its R columns and,
    last, the complement as a whole, C = R + 1.

    Args:
        origin: (*event), the point that coordinates are measured from.
        basis: (D, R) with orthonormal columns, or None.
    """

    origin: Array
    basis: Array | None = None

    @property
    def size(self) -> int:
        """C, the number of coordinates."""
        if self.basis is None:
            return math.prod(jnp.shape(self.origin))
        return jnp.shape(self.basis)[1] + 1

    def flat(self, x: Array) -> Array:
        """Measure points (B, *event) from the origin, (B, D).

        Raises:
            InputError: If their event shape is not the origin's.
        """
        event = jnp.shape(self.origin)
        if jnp.shape(x)[1:] != event:
            raise InputError(
                f"samples of shape {jnp.shape(x)[1:]} were given to a solver whose "
                f"Gaussian or statistics are of samples of shape {event}; fit them to "
                "the same data"
            )
        return (x - self.origin).reshape(x.shape[0], -1)

    def split(self, x: Array) -> Split:
        """Measure points (B, *event) from the origin and split them.

        Raises:
            InputError: If their event shape is not the origin's.
        """
        whole = self.flat(x)
        if self.basis is None:
            nothing = whole[:, :0]
            return Split(whole, nothing, nothing)
        inside = jnp.matmul(whole, self.basis, precision=_HIGHEST)
        return Split(whole, inside, inside)

    def combine(self, gains: Array, vectors: Sequence[Split]) -> Split:
        """Return sum_j diag(gains[j]) vectors[j].

        Args:
            gains: (J, C).
            vectors: J of them.
        """
        if self.basis is None:
            along, rest = gains[:, :0], gains
        else:
            along, rest = gains[:, :-1], gains[:, -1:]
        whole, inside, shadow = (
            sum(jnp.asarray(g * v) for g, v in zip(factors, parts, strict=True))
            for factors, parts in zip(
                # Without a basis the shadow is empty, and any factor does.
                (rest, along, rest[:, :1]),
                zip(*vectors, strict=True),
                strict=True,
            )
        )
        return Split(jnp.asarray(whole), jnp.asarray(inside), jnp.asarray(shadow))

    def join(self, vectors: Split) -> Array:
        """Return the points themselves, (B, *event)."""
        whole = vectors.whole
        if self.basis is not None:
            change = vectors.inside - vectors.shadow
            whole += jnp.matmul(change, self.basis.T, precision=_HIGHEST)
        shape = jnp.shape(self.origin)
        return self.origin + whole.reshape(len(whole), *shape)

    def shift(self, vectors: Split, values: Array) -> Split:
        """Add the vector with these coordinates, 0 in the complement.

        Args:
            vectors: Any number of them.
            values: (C,); with a basis the last is not used.
        """
        if self.basis is None:
            return vectors._replace(whole=vectors.whole + values)
        return vectors._replace(inside=vectors.inside + values[:-1])
