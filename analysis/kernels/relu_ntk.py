"""The kernels of infinitely wide ReLU networks, in closed form.

A network f = m^(-1/2) a . relu(W_L ... m^(-1/2) relu(W_1 z)) of weights N(0, 1) without
biases, and 1/m before every layer but the first, has in the limit of many neurons m
the neural tangent kernel (arXiv 1806.07572).  With the angle theta of a pair,

    k_0 = (pi - theta) / (2 pi)                                E step(w.u) step(w.v),
    k_1 = |u| |v| (sin theta + (pi - theta) cos theta) / (2 pi)  E relu(w.u) relu(w.v)

(arc-cosine kernels, Cho & Saul 2009, here half of theirs).  One hidden layer of which
W_1 alone is trained: u.v k_0; with both layers trained: u.v k_0 + k_1.  At any depth,

    Theta_l = Theta_(l-1) k_0(theta_(l-1)) + Sigma_l,   Theta_0 = Sigma_0 = u.v,
    Sigma_l = 2^(-l) |u| |v| cos theta_l,
    pi cos theta_(l+1) = sin theta_l + (pi - theta_l) cos theta_l,   theta_0 = theta,

Sigma_l left out where the first layer alone is trained.  An output of d coordinates has
this kernel times the identity of size d.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.typing import ArrayLike

from analysis.kernels.angles import (
    AngleMethod,
    Pairs,
    angle,
    check_rows,
    compare_rows,
    sine,
    twice_arcsine_of_root,
)
from analysis.kernels.gram import mean_with_mirror
from configs.errors import require, require_choice

__all__ = ["Layers", "angle", "arc_cosine", "relu_ntk", "sphere_eigenvalues"]

Layers = Literal["first", "both"]


def relu_ntk(
    a: ArrayLike,
    b: ArrayLike | None = None,
    *,
    depth: int = 1,
    layers: Layers = "first",
    angle: AngleMethod = "atan2",
) -> Array:
    """Return the tangent kernel of a ReLU network between two sets of points.

    It is 1-homogeneous in either point, and not differentiable where they are parallel:
    the derivative there is that without the kink.

    Args:
        a: (n, p) points, floats.
        b: (q, p) points, or None for `a` itself: the matrix is then exactly symmetric,
            with the exact diagonal |a|^2 / 2^depth, times depth + 1 for all layers.
            Given the same array twice, it has that diagonal and is symmetric up to
            rounding.
        depth: Hidden layers, at least 1.
        layers: ``"first"``: the first alone is trained; ``"both"``: every one is.
        angle: How angles are computed; see `analysis.kernels.angles.angle`.

    Returns:
        (n, q), in the dtype of the points.

    Raises:
        InputError: If a shape or dtype does not fit, the depth is not a whole number of
            at least 1, or a choice is unknown.

    >>> float(relu_ntk(jnp.array([[3.0, 4.0]]), depth=2, layers="both")[0, 0])
    18.75
    """
    require_choice("layers", layers, get_args(Layers))
    require_choice("angle method", angle, get_args(AngleMethod))
    require(_is_whole(depth) and depth >= 1, "depth", depth, "a whole number, >= 1")
    symmetric = b is None
    a, b = check_rows(a, b)
    kernel = _relu_ntk(a, b, depth, layers, angle)
    return mean_with_mirror(kernel) if symmetric else kernel


def arc_cosine(
    u: ArrayLike,
    v: ArrayLike | None = None,
    order: int = 1,
    *,
    method: AngleMethod = "atan2",
) -> Array:
    """Return E step(w.u) step(w.v), or E relu(w.u) relu(w.v), over w of N(0, I).

    Args:
        u: (n, p) points, floats.
        v: (q, p) points, or None for `u` itself.
        order: 0 for steps, (pi - theta) / (2 pi); 1 for ReLUs,
            |u| |v| (sin theta + (pi - theta) cos theta) / (2 pi).
        method: How angles are computed; see `analysis.kernels.angles.angle`.

    Returns:
        (n, q), in the dtype of the points.

    Raises:
        InputError: If a shape or dtype does not fit or a choice is unknown.
    """
    require(order in (0, 1), "order", order, "0 (steps) or 1 (ReLUs)")
    require_choice("angle method", method, get_args(AngleMethod))
    symmetric = v is None
    u, v = check_rows(u, v)
    kernel = _arc_cosine(u, v, order, method)
    return mean_with_mirror(kernel) if symmetric else kernel


def sphere_eigenvalues(
    kernel: Callable[[Array, Array], Array], p: int, degrees: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return the eigenvalues of a kernel on the unit sphere of R^p, one per degree.

    With P_k the Gegenbauer polynomial of the sphere, P_k(1) = 1, and the uniform law,
    the spherical harmonics of degree k all have the eigenvalue (Funk-Hecke)

        mu_k = integral of kernel(cos t) P_k(cos t) sin(t)^(p-2) dt / that of sin^(p-2)

    over t in [0, pi].  ReLU kernels are smooth in the angle t, though not in its
    cosine, so Gauss-Legendre nodes in t converge faster than any power.

    Args:
        kernel: Takes (n, p) and (q, p) points and returns (n, q); it may depend on the
            angle alone.  It is called in float64.
        p: Dimension of the space around the sphere, at least 2.
        degrees: (k,) whole numbers, at least 0.

    Returns:
        (k,) eigenvalues, float64.

    Raises:
        InputError: If `p` or a degree is out of range.
    """
    require(_is_whole(p) and p >= 2, "p", p, "a whole number, >= 2")
    wanted = np.asarray(degrees)
    allowed = np.issubdtype(wanted.dtype, np.integer) and wanted.ndim == 1
    allowed = allowed and wanted.size > 0 and wanted.min() >= 0
    require(bool(allowed), "degrees", degrees, "a list of whole numbers, each >= 0")
    highest = int(wanted.max())
    nodes, weights = np.polynomial.legendre.leggauss(2 * highest + p + 128)
    theta = (nodes + 1) * math.pi / 2
    weights = weights * np.sin(theta) ** (p - 2)
    pole, circle = np.zeros((1, p)), np.zeros((len(theta), p))
    pole[0, 0] = 1
    circle[:, 0], circle[:, 1] = np.cos(theta), np.sin(theta)
    with jax.enable_x64(True):
        values = np.asarray(kernel(jnp.asarray(pole), jnp.asarray(circle)))[0]
    polynomials = _gegenbauer(np.cos(theta), p, highest)
    return (polynomials[wanted] @ (weights * values)) / weights.sum()


def _gegenbauer(
    t: npt.NDArray[np.float64], p: int, highest: int
) -> npt.NDArray[np.float64]:
    """Return P_0 .. P_highest of the sphere of R^p at t, (highest + 1, *t.shape)."""
    rows = [np.ones_like(t), t]
    for k in range(1, highest):
        rows.append(((2 * k + p - 2) * t * rows[k] - k * rows[k - 1]) / (k + p - 2))
    return np.stack(rows[: highest + 1])


@partial(jax.jit, static_argnames=("depth", "layers", "method"))
def _relu_ntk(
    a: Array, b: Array | None, depth: int, layers: Layers, method: AngleMethod
) -> Array:
    theta, cosine, scale = compare_rows(a, b, method)
    kernel = covariance = scale * cosine
    for layer in range(1, depth + 1):
        kernel = kernel * (math.pi - theta) / (2 * math.pi)
        if layers == "both":
            covariance = _relu_covariance(Pairs(theta, cosine, scale))
            kernel += covariance
        if layer < depth:
            cosine = _next_cosine(theta)
            theta, scale = _next_angle(theta), scale / 2
    return kernel


@partial(jax.jit, static_argnames=("order", "method"))
def _arc_cosine(u: Array, v: Array | None, order: int, method: AngleMethod) -> Array:
    pairs = compare_rows(u, v, method)
    if order == 0:
        return (math.pi - pairs.theta) / (2 * math.pi)
    return _relu_covariance(pairs)


def _relu_covariance(pairs: Pairs) -> Array:
    theta, cosine, scale = pairs
    part = sine(theta) + (math.pi - theta) * cosine
    return scale * part / (2 * math.pi)


def _next_cosine(theta: Array) -> Array:
    cosine = 1 - 2 * sine(theta / 2) ** 2
    return (sine(theta) + (math.pi - theta) * cosine) / math.pi


@jax.custom_jvp
def _next_angle(theta: Array) -> Array:
    """Return the angle of two points after a ReLU layer, in [0, pi/2].

    From pi (1 - cos theta') = theta - sin theta + (pi - theta) (1 - cos theta), in
    which nothing is lost at small angles.
    """
    gap = _minus_sine(theta) + (math.pi - theta) * 2 * sine(theta / 2) ** 2
    return twice_arcsine_of_root(gap / (2 * math.pi))


@_next_angle.defjvp
def _next_angle_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """The slope is (1 - theta / pi) sin theta / sin theta', and 1 at theta = 0."""
    (theta,), (change,) = primals, tangents
    after = _next_angle(theta)
    apart = after > 0
    ratio = jnp.where(apart, sine(theta), 1.0)
    ratio /= jnp.where(apart, sine(after), 1.0)
    return after, (1 - theta / math.pi) * ratio * change


def _minus_sine(theta: Array) -> Array:
    """Return theta - sin theta; by its series where the difference loses digits."""
    square = theta**2
    series = 1 - square / 72 * (1 - square / 110)
    series = 1 - square / 20 * (1 - square / 42 * series)
    return jnp.where(theta < 0.3, theta**3 / 6 * series, theta - sine(theta))


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
