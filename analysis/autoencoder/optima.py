"""The best auto-encoders of a known density, with no network in between.

With g = grad log p, the denoising optimum is the posterior mean, and the minimiser of
the contractive loss solves, component by component and with p dr/dn = 0 at the border,

    r - x = sigma^2 (g . grad r + Laplacian r) = (sigma^2 / p) div(p grad r).

As sigma falls both are the score, and part at the next order:

    denoising:    r = x + sigma^2 g + sigma^4 grad(Laplacian log p + |g|^2) / 2
    contraction:  r = x + sigma^2 g + sigma^4 grad(Laplacian log p + |g|^2 / 2)

up to O(sigma^6); the gap is sigma^4 grad Laplacian log p / 2, nothing for a Gaussian.
Setting: arXiv 1211.4246; the terms of order sigma^4 are derived here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.autoencoder.local_geometry import LogDensity
from analysis.autoencoder.reconstruction import check_sigma
from configs.errors import InputError

__all__ = [
    "Expansion",
    "dae_expansion",
    "dae_optimum_1d",
    "optimum_expansion",
    "rcae_expansion",
    "rcae_optimum_1d",
    "rcae_optimum_2d",
]

_REACH = 9.0
_NODES = 181


class Expansion(NamedTuple):
    """Terms of the optima in powers of sigma^2, at each point.

    Attributes:
        score: (B, d) of sigma^2, in both: grad log p.
        denoising: (B, d) of sigma^4, grad(Laplacian log p + |g|^2) / 2.
        contraction: (B, d) of sigma^4, grad(Laplacian log p + |g|^2 / 2).
    """

    score: Array
    denoising: Array
    contraction: Array


def rcae_optimum_1d(
    grid: ArrayLike, logp: LogDensity, sigma: float
) -> NDArray[np.float64]:
    """Solve for the contractive optimum in one dimension, to second order in dx.

    Finite volumes with p between the nodes and no flux through the ends: row i is
    w_i p_i (r_i - x_i) = sigma^2 (flux_{i+1/2} - flux_{i-1/2}), divided by p_i.

    Args:
        grid: (M,) increasing points that hold all of p's mass, M >= 3, data units.
        logp: Log density up to a constant, of points (n, 1).
        sigma: Above 0, data units.

    Returns:
        (M,) r at the grid.

    Raises:
        InputError: If the grid does not increase, log p is not finite on it, or sigma
            is not a finite number above 0.
    """
    from scipy.linalg import solve_banded  # scikit-learn brings it

    x = _check_grid(grid)
    check_sigma(sigma)
    between = _log_density(logp, (x[1:] + x[:-1]) / 2)
    right, left = _couplings(x, _log_density(logp, x), between, sigma)
    diagonal = 1 + np.append(right, 0) + np.insert(left, 0, 0)
    bands = np.stack([np.insert(-right, 0, 0), diagonal, np.append(-left, 0)])
    return solve_banded((1, 1), bands, x)


def rcae_optimum_2d(
    first: ArrayLike, second: ArrayLike, logp: LogDensity, sigma: float
) -> NDArray[np.float64]:
    """Solve for the contractive optimum in the plane, to second order in the steps.

    The five-point stencil of `rcae_optimum_1d`; both components of r solve the same
    sparse system, which is factored once: about M N log(M N) numbers, seconds for
    300 x 300 points.

    Args:
        first: (M,) increasing first coordinates, M >= 3, data units.
        second: (N,) increasing second coordinates, N >= 3; together they hold all of
            p's mass.
        logp: Log density up to a constant, of points (n, 2), finite on the grid.
        sigma: Above 0, data units.

    Returns:
        (M, N, 2) r at the grid.

    Raises:
        InputError: As `rcae_optimum_1d` does.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import splu

    axes = _check_grid(first), _check_grid(second)
    check_sigma(sigma)

    def at(*coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        points = np.stack(np.meshgrid(*coordinates, indexing="ij"), axis=-1)
        return _log_density(logp, points.reshape(-1, 2)).reshape(points.shape[:2])

    nodes = at(*axes)
    middles = tuple((x[1:] + x[:-1]) / 2 for x in axes)
    down = _couplings(axes[0], nodes, at(middles[0], axes[1]), sigma)
    # From the end of a row nothing flows to the next row's start: zeros are padded.
    across = [
        np.pad(one.T, ((0, 0), (0, 1)))
        for one in _couplings(axes[1], nodes.T, at(axes[0], middles[1]).T, sigma)
    ]
    diagonal = 1 + across[0] + np.roll(across[1], 1, axis=1)
    diagonal[:-1] += down[0]
    diagonal[1:] += down[1]
    size, stride = nodes.size, nodes.shape[1]
    of_neighbours = [one.ravel() for one in down]
    of_neighbours += [one.ravel()[: size - 1] for one in across]
    offsets: Any = [0, stride, -stride, 1, -1]
    bands = [diagonal.ravel(), *(-one for one in of_neighbours)]
    matrix = diags_array(bands, offsets=offsets, format="csc")
    identity = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return splu(matrix).solve(identity.reshape(-1, 2)).reshape(identity.shape)


def _couplings(
    x: NDArray[np.float64],
    at: NDArray[np.float64],
    between: NDArray[np.float64],
    sigma: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what flows between neighbours along the first axis, (M - 1, ...) each.

    Args:
        x: (M,) nodes.
        at: (M, ...) log p there.
        between: (M - 1, ...) log p between the nodes.
        sigma: Data units.

    Returns:
        Coefficients of r_{i+1} in row i, and of r_i in row i + 1.
    """
    width = np.diff(x)
    cell = np.concatenate([width[:1], width[1:] + width[:-1], width[-1:]]) / 2
    width, cell = (one.reshape(-1, *[1] * (at.ndim - 1)) for one in (width, cell))
    with np.errstate(over="ignore"):
        to_next = sigma**2 * np.exp(between - at[:-1]) / (width * cell[:-1])
        to_last = sigma**2 * np.exp(between - at[1:]) / (width * cell[1:])
    if not (np.isfinite(to_next).all() and np.isfinite(to_last).all()):
        raise InputError(
            "log p changes by more than 700 within one step of the grid; give a finer "
            "or a shorter grid"
        )
    return to_next, to_last


def dae_optimum_1d(
    grid: ArrayLike, logp: LogDensity, sigma: float
) -> NDArray[np.float64]:
    """Return the denoising optimum, the mean of x - sigma z under p(x - sigma z) N(z).

    By the trapezoid rule in z on [-9, 9], which converges faster than any power where
    p is smooth on the scale of sigma / 10.

    Args:
        grid: (M,) points, data units.
        logp: Log density up to a constant, of points (n, 1); -inf is no mass.
        sigma: Above 0, data units.

    Returns:
        (M,) r at the grid.

    Raises:
        InputError: If sigma is not a finite number above 0, or no mass is within 9
            sigma of a point.
    """
    x = _check_grid(grid)
    check_sigma(sigma)
    z = np.linspace(-_REACH, _REACH, _NODES)
    values = _log_density(logp, (x[:, None] - sigma * z).ravel(), allow_empty=True)
    logits = values.reshape(len(x), -1) - z**2 / 2
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        where = x[~np.isfinite(top[:, 0])][0]
        raise InputError(
            f"p is 0 within 9 sigma of x = {where:g}; give a grid nearer to the data"
        )
    weights = np.exp(logits - top)
    return x - sigma * (weights @ z) / weights.sum(axis=1)


def optimum_expansion(logp: LogDensity, x: ArrayLike) -> Expansion:
    """Return the terms of both optima, by differentiating log p three times.

    Args:
        logp: Log density up to a constant, of points (n, d), smooth at `x`.
        x: (B, d), data units.

    Returns:
        The terms, in the dtype of `x`; third derivatives in float32 lose digits.

    Raises:
        InputError: If `x` is not (B, d).
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise InputError(f"x has shape {x.shape}; give points (B, d)")

    def log_density(point: Array) -> Array:
        return logp(point[None])[0]

    gradient = jax.grad(log_density)

    def laplacian(point: Array) -> Array:
        return jnp.trace(jax.jacfwd(gradient)(point))

    def square(point: Array) -> Array:
        return jnp.sum(gradient(point) ** 2)

    def terms(point: Array) -> Expansion:
        of_laplacian, of_square = jax.grad(laplacian)(point), jax.grad(square)(point)
        return Expansion(
            gradient(point),
            (of_laplacian + of_square) / 2,
            of_laplacian + of_square / 2,
        )

    return jax.vmap(terms)(x)


def dae_expansion(logp: LogDensity, x: ArrayLike, sigma: ArrayLike) -> Array:
    """Return the denoising optimum up to sigma^4, (B, d); see `optimum_expansion`.

    Args:
        logp: Log density up to a constant, of points (n, d).
        x: (B, d), data units.
        sigma: () data units.
    """
    terms, variance = optimum_expansion(logp, x), jnp.asarray(sigma) ** 2
    return jnp.asarray(x) + variance * terms.score + variance**2 * terms.denoising


def rcae_expansion(logp: LogDensity, x: ArrayLike, sigma: ArrayLike) -> Array:
    """Return the contractive optimum up to sigma^4, (B, d); see `optimum_expansion`.

    Args:
        logp: Log density up to a constant, of points (n, d).
        x: (B, d), data units.
        sigma: () data units.
    """
    terms, variance = optimum_expansion(logp, x), jnp.asarray(sigma) ** 2
    return jnp.asarray(x) + variance * terms.score + variance**2 * terms.contraction


def _check_grid(grid: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(grid, np.float64)
    if x.ndim != 1 or len(x) < 3 or not np.isfinite(x).all() or np.any(np.diff(x) <= 0):
        raise InputError(
            f"the grid has shape {x.shape}; give at least 3 finite, increasing numbers"
        )
    return x


def _log_density(
    logp: LogDensity, x: NDArray[np.float64], *, allow_empty: bool = False
) -> NDArray[np.float64]:
    """Return log p at (n,) or (n, d) points in float64, checked."""
    points = x.reshape(len(x), -1)
    with jax.enable_x64(True):
        values = np.asarray(logp(jnp.asarray(points)), np.float64)
    if values.shape != points.shape[:1]:
        raise InputError(
            f"logp of points {points.shape} has shape {values.shape}; it must return "
            f"one value per point, {points.shape[:1]}"
        )
    wrong = np.isnan(values) | (np.isinf(values) & ~(allow_empty & (values < 0)))
    if wrong.any():
        where = ", ".join(f"{one:g}" for one in points[wrong][0])
        raise InputError(
            f"log p is {values[wrong][0]} at x = {where}; it must be finite on the grid"
        )
    return values
