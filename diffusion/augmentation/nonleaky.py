"""The augmentation of EDM: flips and affine maps, told to the network in nine numbers.

Each of six operations is drawn independently, with probability p except for the
mirroring sideways, which is a fair coin, and all are carried out at once: the image is
mirrored, extended by reflection, brought to twice its resolution with the sym6 low-pass
filter, sampled bilinearly, and brought back with the same filter reversed.  As sym6 is
orthonormal, nothing is lost on the way: a shift by whole pixels comes out exact.

    operation          law                                     condition
    mirror sideways    w in {0, 1}, fair coin                  w
    mirror upside down w in {0, 1}, fair coin, with prob. p    w
    scale              w ~ N(0, 1), by 2^(w/5)                 w
    rotation           angle a uniform in (-pi, pi)            cos a - 1, sin a
    stretch            w ~ N(0, 1), by 2^(w/5) along an axis   w cos r, w sin r
                       and 2^(-w/5) across; its angle r is 0
                       or uniform in (-pi, pi), a fair coin
    shift              w ~ N(0, 1) per axis, by w/8 sides      w right, w down

Source: Karras et al., arXiv 2206.00364, appendix F.2, after arXiv 2006.06676.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import require
from diffusion.augmentation.transforms import linear_adjoint, require_image
from diffusion.augmentation.warps import (
    rotation,
    sample_bilinear,
    sources,
    widened,
)

__all__ = ["EDMPipe"]

# Low-pass filter of the symlet of order 6 (Daubechies 1992, table 6.3): orthonormal to
# its shifts by two, of sum sqrt(2).
_SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057),
        *(-0.048311742585633, 0.4910559419267466, 0.787641141030194),
        *(0.3379294217276218, -0.07263752278646252, -0.021060292512300564),
        *(0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
)
_TAPS = len(_SYM6)
# The filter's centre of gravity, 5.098: where the fine grid lies between the pixels.
_CENTRE = float(np.arange(_TAPS) @ _SYM6 / _SYM6.sum())
_SCALE_STD = 0.2  # of log2 of scale and stretch
_SHIFT_STD = 0.125  # of the shift, in sides


class EDMPipeParams(NamedTuple):
    """What was drawn; 0 for operations that were not.

    Attributes:
        mirrored: (2,) bool, sideways and upside down.
        scale: () w of the scale.
        angle: () radians.
        stretch: () w of the stretch.
        axis: () r, radians.
        shift: (2,) w right and w down.
    """

    mirrored: Array
    scale: Array
    angle: Array
    stretch: Array
    axis: Array
    shift: Array


@dataclass(frozen=True)
class EDMPipe:
    """EDM's augmentation; see the module.  Condition (9).

    It draws the identity by itself: 56.4 % of images at p = .12 are at most mirrored
    sideways.

    Args:
        probability: p, in [0, 1]; .12 for CIFAR-10, .15 for FFHQ and AFHQ in EDM.
    """

    probability: float = 0.12

    linear = True
    orthogonal = False
    injective = False
    self_identifying = False
    draws_identity = True

    def __post_init__(self) -> None:
        """Check the probability."""
        value = self.probability
        require(0 <= value <= 1, "EDMPipe.probability", value, "in [0, 1]")

    def sample(self, key: Array, shape: tuple[int, ...]) -> EDMPipeParams:
        """Draw the operations."""
        require_image(shape, self)
        keys = jax.random.split(key, 5)
        drawn = jax.random.bernoulli(keys[0], jnp.float32(self.probability), (5,))
        coins = jax.random.bernoulli(keys[1], jnp.float32(0.5), (3,))
        normal = jax.random.normal(keys[2], (4,), jnp.float32)
        pi = math.pi
        angle = jax.random.uniform(keys[3], dtype=jnp.float32, minval=-pi, maxval=pi)
        axis = jax.random.uniform(keys[4], dtype=jnp.float32, minval=-pi, maxval=pi)
        return EDMPipeParams(
            mirrored=jnp.stack([coins[0], coins[1] & drawn[0]]),
            scale=jnp.where(drawn[1], normal[0], 0.0),
            angle=jnp.where(drawn[2], angle, 0.0),
            stretch=jnp.where(drawn[3], normal[1], 0.0),
            axis=jnp.where(drawn[3] & coins[2], axis, 0.0),
            shift=jnp.where(drawn[4], normal[2:], 0.0),
        )

    def apply(self, params: EDMPipeParams, x: Array) -> Array:
        """Return the mirrored and warped image."""
        x = jnp.where(params.mirrored[0], x[:, ::-1], x)
        x = jnp.where(params.mirrored[1], x[::-1], x)
        warped = _warp(x, *_inverse(widened(params, x.dtype), x.shape))
        return jnp.where(_is_warped(params), warped, x)

    def adjoint(self, params: EDMPipeParams, x: Array) -> Array:
        """Return the adjoint."""
        return linear_adjoint(self, params, x)

    def encode(self, params: EDMPipeParams) -> Array:
        """Return the nine numbers, in EDM's order."""
        angle, axis = params.angle, params.axis
        return jnp.concatenate(
            [
                params.mirrored.astype(jnp.float32),
                jnp.stack([params.scale, jnp.cos(angle) - 1, jnp.sin(angle)]),
                params.stretch * jnp.stack([jnp.cos(axis), jnp.sin(axis)]),
                params.shift,
            ]
        )


def _is_warped(params: EDMPipeParams) -> Array:
    rest = jnp.stack([params.scale, params.angle, params.stretch])
    return jnp.any(rest != 0) | jnp.any(params.shift != 0)


def _inverse(params: EDMPipeParams, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return A^-1 on (down, right) and the shift (down, right) in pixels.

    The image is scaled, turned counter-clockwise, stretched and shifted, in this order.
    """
    # On (down, right): the axis lies along "right" once it is turned back.
    logs = jnp.stack([params.stretch, -params.stretch])
    factors = jnp.diag(jnp.exp2(_SCALE_STD * logs))
    unstretch = _product(
        _product(rotation(params.axis), factors), rotation(-params.axis)
    )
    scale = jnp.exp2(-_SCALE_STD * params.scale)
    inverse = scale * _product(rotation(-params.angle), unstretch)
    sides = jnp.asarray(shape[:2], params.shift.dtype)
    return inverse, params.shift[::-1] * _SHIFT_STD * sides


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _warp(x: Array, inverse: Array, shift: Array) -> Array:
    """Return x(A^-1 (p - shift)), sampled at twice the resolution."""
    height, width = x.shape[:2]
    rows, columns = _upsampling(height), _upsampling(width)
    fine = jnp.einsum(
        "ai,ijc,bj->abc",
        jnp.asarray(rows, x.dtype),
        x,
        jnp.asarray(columns, x.dtype),
        precision="highest",
    )
    down, right = _fine_positions(height), _fine_positions(width)
    found = sources(inverse, shift, down, right)
    # From pixels about the centre to indices of the upsampled, extended image.
    margin = 1.5 * (np.asarray([height, width]) - 1)
    indices = 2 * (found + margin.astype(found.dtype)) + _CENTRE
    sampled = sample_bilinear(fine, indices)
    return jnp.einsum(
        "ia,abc,jb->ijc",
        jnp.asarray(_downsampling(height), x.dtype),
        sampled,
        jnp.asarray(_downsampling(width), x.dtype),
        precision="highest",
    )


def _fine_positions(side: int) -> NDArray[np.float64]:
    """Return the fine grid's positions in pixels from the centre of an image."""
    return (np.arange(2 * side + _TAPS - 2) - _CENTRE) / 2 - (side - 1) / 2


@functools.cache
def _upsampling(side: int) -> NDArray[np.float64]:
    """Return the matrix that extends `side` pixels by reflection and doubles them.

    One reflection on either side (side - 1 pixels), as far as EDM extends at most.
    """
    extended = np.arange(-(side - 1), 2 * side - 1)
    period = max(2 * (side - 1), 1)
    reflected = np.abs((extended + side - 1) % period - (side - 1))
    matrix = np.zeros((2 * len(extended) + _TAPS - 2, side))
    for position, source in enumerate(reflected):
        matrix[2 * position : 2 * position + _TAPS, source] += math.sqrt(2) * _SYM6
    return matrix


@functools.cache
def _downsampling(side: int) -> NDArray[np.float64]:
    """Return the matrix that halves the fine grid of `side` pixels."""
    matrix = np.zeros((side, 2 * side + _TAPS - 2))
    for position in range(side):
        matrix[position, 2 * position : 2 * position + _TAPS] = _SYM6 / math.sqrt(2)
    return matrix
