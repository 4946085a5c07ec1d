"""Angles between the rows of two matrices, to full precision and with a safe slope.

Between unit vectors u and v at angle theta, with c = u.v,

    theta = 2 atan2(|u - v|, |u + v|) = 2 atan2(sqrt(1 - c), sqrt(1 + c)).

The left form (Kahan 2006) is accurate everywhere but needs the difference of each pair;
the right one needs a matrix product only, and near c = 1 it turns a rounding eps of c
into an error sqrt(eps).  So the product gives all angles, and only pairs with |c| of at
least .99 are computed again by differences.  An arccos would be no better than the
product, and its slope at u = v is not a number.  Up to a right angle both are computed
as 2 arcsin(|u - v| / 2), beyond it as pi - 2 arcsin(|u + v| / 2), by a polynomial that
takes a tenth of the time of an arctangent or less.

theta has a kink where u = v or u = -v; the derivative is taken to be 0 there.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError, require_choice

__all__ = [
    "AngleMethod",
    "Pairs",
    "angle",
    "check_rows",
    "compare_rows",
    "sine",
    "twice_arcsine_of_root",
]

AngleMethod = Literal["atan2", "kahan"]

_HIGHEST = jax.lax.Precision.HIGHEST
_CLOSE = 0.99
_FEW_INPUTS = 32  # up to here differences of all pairs cost less than finding the close
_SEGMENT = 64
_PAIR_ELEMENTS = 2**21
_COINCIDENT = 32  # angles of that many roundings have no direction


class Pairs(NamedTuple):
    """What a kernel needs to know of each pair of rows.

    Attributes:
        theta: (n, q) angles, radians, in [0, pi]; pi/2 where a row is zero.
        cosine: (n, q) their cosines; 0 where a row is zero.
        scale: (n, q) products of the two norms.
    """

    theta: Array
    cosine: Array
    scale: Array


def angle(
    u: ArrayLike, v: ArrayLike | None = None, *, method: AngleMethod = "atan2"
) -> Array:
    """Return the angle of each pair of rows, 2 atan2(|u - v|, |u + v|).

    Args:
        u: (n, p) floats.
        v: (q, p) floats, or None for `u` itself: the diagonal is then exactly 0.
        method: ``"atan2"`` takes angles from one matrix product, and from differences
            for close pairs alone; ``"kahan"`` from differences of all pairs.

    Returns:
        (n, q) angles, radians, in [0, pi].  Their derivative is 0 where two rows are
        parallel, opposite or zero.

    Raises:
        InputError: If a shape or dtype does not fit or the method is unknown.
    """
    require_choice("angle method", method, get_args(AngleMethod))
    u, v = check_rows(u, v)
    return _angle(u, v, method)


@partial(jax.jit, static_argnames="method")
def _angle(u: Array, v: Array | None, method: AngleMethod) -> Array:
    return compare_rows(u, v, method).theta


def check_rows(u: ArrayLike, v: ArrayLike | None) -> tuple[Array, Array | None]:
    """Return both as arrays of one dtype; None for the second if it is the first.

    Args:
        u: (n, p) floats.
        v: (q, p) floats, or None.

    Raises:
        InputError: If they are not two matrices of floats with equally long rows.
    """
    first = jnp.asarray(u)
    second = None if v is None or v is u else jnp.asarray(v)
    for name, rows in (("first", first), ("second", second)):
        if rows is None:
            continue
        if rows.ndim != 2 or rows.shape[1] != first.shape[-1] or not rows.shape[1]:
            raise InputError(
                f"the {name} points have shape {rows.shape}; give (n, p), with one p "
                "for both sets (images: x.reshape(len(x), -1))"
            )
        if not jnp.issubdtype(rows.dtype, jnp.floating):
            raise InputError(
                f"the {name} points have dtype {rows.dtype}; give floats "
                "(uint8: x / 127.5 - 1)"
            )
    if second is not None:
        dtype = jnp.promote_types(first.dtype, second.dtype)
        first, second = first.astype(dtype), second.astype(dtype)
    return first, second


def compare_rows(u: Array, v: Array | None, method: AngleMethod) -> Pairs:
    """Return angle, cosine and norms of each pair of rows.

    Args:
        u: (n, p) floats.
        v: (q, p), or None for `u` itself: angles of 0 and squared norms are then exact
            on the diagonal.
        method: See `angle`.

    Returns:
        Three (n, q) arrays, in the dtype of the rows.
    """
    unit_u, norm_u = _unit_rows(u)
    unit_v, norm_v = (unit_u, norm_u) if v is None else _unit_rows(v)
    theta = _angles(unit_u, unit_v, method, v is None)
    cosine, scale = _cosines(unit_u, unit_v), jnp.outer(norm_u, norm_v)
    if v is None:
        same = jnp.eye(len(u), dtype=bool)
        cosine = jnp.where(same, norm_u > 0, cosine)
        scale = jnp.where(same, jnp.sum(u**2, axis=1), scale)
    directed = (norm_u > 0)[:, None] & (norm_v > 0)
    return Pairs(jnp.where(directed, theta, math.pi / 2), cosine, scale)


def _unit_rows(x: Array) -> tuple[Array, Array]:
    """Return rows of length 1, and their lengths (n,); 0 where they are zero."""
    squares = jnp.sum(x**2, axis=1)
    positive = squares > 0
    norm = jnp.sqrt(jnp.where(positive, squares, 1.0))
    unit = jnp.where(positive[:, None], x / norm[:, None], 0.0)
    return unit, jnp.where(positive, norm, 0.0)


def _cosines(u: Array, v: Array) -> Array:
    return jnp.clip(jnp.matmul(u, v.T, precision=_HIGHEST), -1.0, 1.0)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _angles(u: Array, v: Array, method: AngleMethod, same: bool) -> Array:
    """Return the angles between unit rows; `same`: v is u, its diagonal exactly 0."""
    if method == "kahan" or u.shape[1] <= _FEW_INPUTS:
        theta = _by_differences(u, v)
    else:
        theta = _by_product(u, v, same)
    return jnp.where(jnp.eye(len(u), dtype=bool), 0.0, theta) if same else theta


@_angles.defjvp
def _angles_jvp(
    method: AngleMethod,
    same: bool,
    primals: tuple[Array, Array],
    tangents: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Rows keep their length, so that d theta = -(du.v + u.dv) / sin theta."""
    (u, v), (du, dv) = primals, tangents
    theta = _angles(u, v, method, same)
    change = jnp.matmul(du, v.T, precision=_HIGHEST)
    change += jnp.matmul(u, dv.T, precision=_HIGHEST)
    slope = sine(theta)
    # Of parallel rows nothing but rounding is left to say in which direction they part.
    smooth = slope > _COINCIDENT * jnp.finfo(theta.dtype).eps
    return theta, jnp.where(smooth, -change / jnp.where(smooth, slope, 1.0), 0.0)


def _by_product(u: Array, v: Array, same: bool) -> Array:
    """Return angles from cosines, those of nearly parallel rows from differences."""
    cosine = _cosines(u, v)
    theta = _from_squares(2 - 2 * cosine, 2 + 2 * cosine)
    close = jnp.abs(cosine) >= _CLOSE
    if same:
        close &= ~jnp.eye(len(u), dtype=bool)
    return _redo(theta, close, u, v)


def _redo(theta: Array, close: Array, u: Array, v: Array) -> Array:
    """Replace the marked angles by those of differences, some pairs at a time.

    The work goes with their number, which only the data know: their places are found
    by counting the marks in short segments of each row.
    """
    columns = close.shape[1]
    close = jnp.pad(close, ((0, 0), (0, -columns % _SEGMENT)))
    per_row = close.shape[1] // _SEGMENT
    segments = close.reshape(-1, _SEGMENT)
    counts = jnp.sum(segments, axis=1, dtype=jnp.int32)
    ends = jnp.cumsum(counts)
    size = max(64, min(4096, _PAIR_ELEMENTS // u.shape[1]))

    def some(state: tuple[Array, Array]) -> tuple[Array, Array]:
        first, theta = state
        number = first + jnp.arange(size, dtype=jnp.int32)
        segment = jnp.searchsorted(ends, number, side="right")
        segment = jnp.minimum(segment, len(ends) - 1)
        rank = number - (ends[segment] - counts[segment])
        reached = jnp.cumsum(segments[segment], axis=1, dtype=jnp.int32)
        column = jnp.argmax(reached == rank[:, None] + 1, axis=1)
        column += segment % per_row * _SEGMENT
        row = segment // per_row
        found = _nearly_parallel(u[row], v[column])
        row = jnp.where(number < ends[-1], row, len(u))  # none left: out of bounds
        return first + size, theta.at[row, column].set(found, mode="drop")

    def unfinished(state: tuple[Array, Array]) -> Array:
        return state[0] < ends[-1]

    return jax.lax.while_loop(unfinished, some, (jnp.int32(0), theta))[1]


def _nearly_parallel(u: Array, v: Array) -> Array:
    """Return the angles of paired unit rows, (k, p) each, at most pi/2 from a line."""
    opposite = jnp.sum(u * v, axis=1) < 0
    apart = jnp.where(opposite[:, None], u + v, u - v)
    theta = twice_arcsine_of_root(jnp.sum(apart**2, axis=1) / 4)
    return jnp.where(opposite, math.pi - theta, theta)


def _by_differences(u: Array, v: Array) -> Array:
    """Return the angles from sums over inputs of (u - v)^2 and (u + v)^2."""
    if u.shape[1] <= _FEW_INPUTS:
        apart, along = _squares(u, v)
    else:
        # Row by row, with the inputs first: the sums run over contiguous points.
        columns = v.T
        apart, along = jax.lax.map(lambda row: _squares_of_row(row, columns), u)
    return _from_squares(apart, along)


def _squares(u: Array, v: Array) -> tuple[Array, Array]:
    """Return |u - v|^2 and |u + v|^2, (n, q) each, of rows with few inputs."""
    apart = along = jnp.zeros((len(u), len(v)), u.dtype)
    for k in range(u.shape[1]):
        apart += (u[:, k, None] - v[None, :, k]) ** 2
        along += (u[:, k, None] + v[None, :, k]) ** 2
    return apart, along


def _squares_of_row(row: Array, columns: Array) -> tuple[Array, Array]:
    """Return |u - v|^2 and |u + v|^2, (q,) each, for u (p,) and v^T (p, q)."""
    apart = jnp.sum((row[:, None] - columns) ** 2, axis=0)
    return apart, jnp.sum((row[:, None] + columns) ** 2, axis=0)


def _from_squares(apart: Array, along: Array) -> Array:
    """Return the angles of unit vectors from |u - v|^2 and |u + v|^2."""
    theta = twice_arcsine_of_root(jnp.minimum(apart, along) / 4)
    return jnp.where(apart <= along, theta, math.pi - theta)


def twice_arcsine_of_root(z: Array) -> Array:
    """Return 2 arcsin(sqrt(z)) for z in [0, 1/2]: the angle with sin(theta/2)^2 = z.

    arcsin(s) / s is a power series in s^2 = z, for which a polynomial in 4 z - 1 of
    degree 9 keeps float32 and one of degree 18 float64; beyond 1/2 it is not accurate.
    """
    degree = 18 if z.dtype == jnp.float64 else 9
    t = 4 * z - 1
    return 2 * jnp.sqrt(z) * _polynomial(_arcsine_series(degree), t)


@cache
def _arcsine_series(degree: int) -> tuple[float, ...]:
    """Return arcsin(s) / s at s^2 = (t + 1) / 4 as a polynomial in t of [-1, 1]."""

    def ratio(t: Any) -> Any:
        s = np.sqrt((t + 1) / 4)
        return np.arcsin(s) / s

    chebyshev = np.polynomial.chebyshev.chebinterpolate(ratio, degree)
    return tuple(np.polynomial.chebyshev.cheb2poly(chebyshev).tolist())


def sine(theta: Array) -> Array:
    """Return the sine of angles in [0, pi], by the series about the nearer end.

    Of what the library's function does for any number, this leaves out most.
    """
    terms = 11 if theta.dtype == jnp.float64 else 7
    series = [(-1) ** k / math.factorial(2 * k + 1) for k in range(terms)]
    x = jnp.minimum(theta, math.pi - theta)
    return x * _polynomial(series, x**2)


def _polynomial(coefficients: Sequence[float], t: Array) -> Array:
    """Return the sum of coefficients times powers of t, the constant first."""
    value = jnp.full_like(t, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * t + coefficient
    return value
