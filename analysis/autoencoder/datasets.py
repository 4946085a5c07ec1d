"""Toy data with known energies: a spiral, two bumps, a ninja star, a curve in 10-D.

Each is a curve or a mixture convolved with N(0, sigma^2), so that density and score are
known at every noise level: what an auto-encoder trained at that level should have
learned.  The spiral is

    c(t) = .04 t (sin t, cos t),   t = 3 + 12 u,   u uniform on (0, 1),

whose noised density is int_0^1 N(x; c(3 + 12 u), sigma^2 I) du, here by Gauss-Legendre
quadrature in panels: a mixture of points of unequal weights.  Constants of the spiral
and of the star: the experiments on arXiv 1211.4246; those of the curve in ten
dimensions and the width of the bumps are this project's own.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, is_positive, require
from diffusion.closed_form import MixtureDenoiser
from diffusion.denoiser import expand_sigma, score

__all__ = [
    "SPIRAL_SIGMA",
    "mixture_manifold",
    "ninja_star_energy",
    "ninja_star_score",
    "sample_spiral",
    "spiral_denoiser",
    "spiral_log_density",
    "spiral_point",
    "spiral_score",
    "two_bumps",
]

SPIRAL_SIGMA = 0.01
"""Noise level of the experiments on the spiral, data units."""

_SPIRAL_SCALE, _SPIRAL_FIRST, _SPIRAL_LENGTH = 0.04, 3.0, 12.0
_SPIRAL_SPEED = _SPIRAL_SCALE * math.hypot(1, _SPIRAL_FIRST + _SPIRAL_LENGTH)
_PANEL_NODES = 16
_NODES_PER_SIGMA = 2.0
_MIN_SIGMA = 1e-3
_BLOCK = 1024

_BUMP_DISTANCE = 5.0

_MANIFOLD_DIMENSION, _MANIFOLD_COMPONENTS = 10, 25
_MANIFOLD_RATIO = 0.1  # of the variances across and along the curve


def spiral_point(t: ArrayLike) -> Array:
    """Return points of the spiral, .04 t (sin t, cos t).

    Args:
        t: (...), in [3, 15] for the spiral of the experiments.

    Returns:
        (..., 2), data units.
    """
    t = jnp.asarray(t)
    return _SPIRAL_SCALE * t[..., None] * jnp.stack([jnp.sin(t), jnp.cos(t)], axis=-1)


def sample_spiral(key: Array, n: int, *, sigma: ArrayLike = 0.0) -> Array:
    """Draw points of the spiral with isotropic noise.

    Sample i depends on the key and on i alone, not on `n`.

    Args:
        key: A `jax.random.key`.
        n: Number of samples.
        sigma: Standard deviation of the noise, () or (n,), at least 0, data units.

    Returns:
        (n, 2) floats.

    Raises:
        InputError: If sigma is negative, not finite or of the wrong shape.
    """
    points, noise = _draw_spiral(key, jnp.arange(n))
    return points + expand_sigma(sigma, points, allow_zero=True) * noise


def spiral_denoiser(sigma_min: float = SPIRAL_SIGMA) -> MixtureDenoiser:
    """Return the spiral's law as a `Denoiser`, exact to rounding from `sigma_min` on.

    Args:
        sigma_min: Smallest noise level it will be asked for, at least .001; the nodes
            along the curve are closer than half of it.

    Raises:
        InputError: If `sigma_min` is below .001.
    """
    require(
        is_positive(sigma_min) and sigma_min >= _MIN_SIGMA,
        "sigma_min",
        sigma_min,
        f"at least {_MIN_SIGMA}",
    )
    # Nodes are furthest apart, by pi / 2, in the middle of a panel.
    wanted = _NODES_PER_SIGMA * math.pi / 2 * _SPIRAL_SPEED * _SPIRAL_LENGTH / sigma_min
    panels = max(math.ceil(wanted / _PANEL_NODES), 16)
    nodes, weights = np.polynomial.legendre.leggauss(_PANEL_NODES)
    u = (np.arange(panels)[:, None] + (nodes + 1) / 2) / panels
    t = _SPIRAL_FIRST + _SPIRAL_LENGTH * u.ravel()
    points = _SPIRAL_SCALE * t[:, None] * np.stack([np.sin(t), np.cos(t)], axis=1)
    return _points_mixture(points, np.tile(np.log(weights / 2 / panels), panels))


def spiral_score(x: ArrayLike, sigma: float = SPIRAL_SIGMA) -> NDArray[np.float64]:
    """Return the score of the spiral noised to sigma, in float64.

    Args:
        x: (B, 2), data units.
        sigma: Noise level, data units, at least .001.

    Returns:
        (B, 2) float64, 1 / data units.

    Raises:
        InputError: If a shape does not fit or sigma is too small.
    """
    with jax.enable_x64(True):
        return _in_blocks(_score, spiral_denoiser(sigma), x, sigma)


def spiral_log_density(
    x: ArrayLike, sigma: float = SPIRAL_SIGMA
) -> NDArray[np.float64]:
    """Return log p of the spiral noised to sigma, in float64.

    Args:
        x: (B, 2), data units.
        sigma: Noise level, data units, at least .001.

    Returns:
        (B,) float64 natural logarithms.

    Raises:
        InputError: If a shape does not fit or sigma is too small.
    """
    with jax.enable_x64(True):
        return _in_blocks(_log_density, spiral_denoiser(sigma), x, sigma)


def two_bumps() -> MixtureDenoiser:
    """Return two equal Gaussians of unit variance in the plane, at (-5, 0) and (5, 0).

    ``two_bumps().sample(key, n)`` draws from it.
    """
    means = np.array([[-_BUMP_DISTANCE, 0.0], [_BUMP_DISTANCE, 0.0]])
    return _points_mixture(means, np.zeros(2), variance=1.0)


def mixture_manifold() -> MixtureDenoiser:
    """Return 25 Gaussians along a curve in 10 dimensions, ten times longer than wide.

    The curve is c_j(t) = sin((1 + j mod 3) t + pi j / 10), j = 0 .. 9, 0 < t < pi, with
    means at 25 mid-points.  Along the curve a component has the standard deviation of
    half the way to its neighbour; in the nine directions across, a tenth of that
    variance.  ``mixture_manifold().sample(key, n)`` draws from it.
    """
    spacing = math.pi / _MANIFOLD_COMPONENTS
    t = spacing * (np.arange(_MANIFOLD_COMPONENTS)[:, None] + 0.5)
    j = np.arange(_MANIFOLD_DIMENSION)
    frequency = 1 + j % 3
    angle = frequency * t + math.pi * j / 10
    velocity = frequency * np.cos(angle)
    speed = np.linalg.norm(velocity, axis=1, keepdims=True)
    along = (speed * spacing / 2) ** 2
    return MixtureDenoiser(
        log_weights=jnp.zeros(_MANIFOLD_COMPONENTS),
        means=jnp.asarray(np.sin(angle)),
        bases=jnp.asarray((velocity / speed)[:, :, None]),
        variances=jnp.asarray(along),
        residual_variances=jnp.asarray(_MANIFOLD_RATIO * along[:, 0]),
    )


def ninja_star_energy(x: ArrayLike) -> Array:
    """Return E = (|x| - 2)^2 + (x_1^2 - x_2^2)^2 + log(|x|^2 + 1) / 2.

    Args:
        x: (B, 2), data units.

    Returns:
        (B,) nats, up to the unknown log of the normaliser.

    Raises:
        InputError: If `x` is not (B, 2).
    """
    x = _plane(x)
    squared = jnp.sum(x**2, axis=1)
    arms = (x[:, 0] ** 2 - x[:, 1] ** 2) ** 2
    return (jnp.sqrt(squared) - 2) ** 2 + arms + jnp.log1p(squared) / 2


def ninja_star_score(x: ArrayLike) -> Array:
    """Return the gradient of -E of `ninja_star_energy`; 0 at the cusp, the origin.

    Args:
        x: (B, 2), data units.

    Returns:
        (B, 2), 1 / data units.

    Raises:
        InputError: If `x` is not (B, 2).
    """
    x = _plane(x)
    squared = jnp.sum(x**2, axis=1, keepdims=True)
    # The cusp has no gradient; 2 x / |x| is left out there and only there.
    radius = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 1)
    ring = 2 * x - 4 * x / radius
    arms = 4 * (x[:, :1] ** 2 - x[:, 1:] ** 2) * x * jnp.array([1.0, -1.0], x.dtype)
    return -(ring + arms + x / (squared + 1))


@jax.jit
def _draw_spiral(key: Array, indices: Array) -> tuple[Array, Array]:
    """Return points of the curve and white noise, (n, 2) each."""

    def draw(index: Array) -> tuple[Array, Array]:
        where, white = jax.random.split(jax.random.fold_in(key, index))
        t = _SPIRAL_FIRST + _SPIRAL_LENGTH * jax.random.uniform(where)
        return spiral_point(t), jax.random.normal(white, (2,))

    return jax.vmap(draw)(indices)


def _points_mixture(
    means: NDArray[np.float64], log_weights: NDArray[np.float64], variance: float = 0.0
) -> MixtureDenoiser:
    """Return a mixture of isotropic components of one variance."""
    count, dimension = means.shape
    return MixtureDenoiser(
        log_weights=jnp.asarray(log_weights),
        means=jnp.asarray(means),
        bases=jnp.zeros((count, dimension, 0)),
        variances=jnp.zeros((count, 0)),
        residual_variances=jnp.full(count, variance),
    )


def _plane(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise InputError(f"x has shape {x.shape}; give points of the plane, (B, 2)")
    return x


def _in_blocks(
    ask: Callable[..., Array], model: MixtureDenoiser, x: ArrayLike, sigma: float
) -> NDArray[np.float64]:
    """Ask a model about points (B, 2), in blocks: a point needs a number per node."""
    points = _plane(jnp.asarray(x, jnp.float64))
    starts = range(0, max(len(points), 1), _BLOCK)
    answers = [ask(model, points[i : i + _BLOCK], sigma) for i in starts]
    return np.concatenate([np.asarray(answer) for answer in answers])


@jax.jit
def _score(model: MixtureDenoiser, x: Array, sigma: Array) -> Array:
    return score(model, x, sigma)


@jax.jit
def _log_density(model: MixtureDenoiser, x: Array, sigma: Array) -> Array:
    return model.log_density(x, sigma)
