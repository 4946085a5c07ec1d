"""Noise grids: float64 on the host, strictly decreasing, strictly positive.

The last point is not 0: the final move there is one call of the denoiser.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.preconditioning import VPPreconditioning

__all__ = ["check_grid", "karras", "log_linear", "skip_above", "vp_uniform"]


def karras(
    num_points: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> NDArray[np.float64]:
    """Return the grid of EDM, uniform in sigma**(1/rho).

    sigma_i = (sigma_max^(1/rho) + i/(L-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.
    Its tail from any point on is the same kind of grid from there.  Source: Karras et
    al., arXiv 2206.00364, equation 5.

    Args:
        num_points: L, at least 1; a single point is sigma_max.
        sigma_min: Last point, data units.
        sigma_max: First point, data units.
        rho: Exponent, above 0.

    Returns:
        (L,) decreasing noise levels; the end points are exact.

    Raises:
        InputError: If an argument is out of range.

    >>> karras(5).round(3)
    array([8.0000e+01, 1.7528e+01, 2.5150e+00, 1.7000e-01, 2.0000e-03])
    """
    _check_range(num_points, sigma_min, sigma_max)
    if not (math.isfinite(rho) and rho > 0):
        raise InputError(f"rho is {rho}; it must be a finite number above 0")
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _exact_ends(np.linspace(*ends, num_points) ** rho, sigma_min, sigma_max)


def log_linear(
    num_points: int, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> NDArray[np.float64]:
    """Return the grid uniform in log sigma, hence in half-log-SNR -log sigma.

    Args:
        num_points: L, at least 1; a single point is sigma_max.
        sigma_min: Last point, data units.
        sigma_max: First point, data units.

    Returns:
        (L,) decreasing noise levels; the end points are exact.

    Raises:
        InputError: If an argument is out of range.

    >>> log_linear(3, 0.01, 1.0)
    array([1.  , 0.1 , 0.01])
    """
    _check_range(num_points, sigma_min, sigma_max)
    grid = np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_points))
    return _exact_ends(grid, sigma_min, sigma_max)


def vp_uniform(
    num_points: int, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> NDArray[np.float64]:
    """Return the grid uniform in the time of the VP process with a linear beta.

    See `diffusion.preconditioning.VPPreconditioning` (Song et al., arXiv 2011.13456;
    arXiv 2206.00364, table 1).

    Args:
        num_points: L, at least 1; a single point is sigma_max.
        sigma_min: Last point, data units.
        sigma_max: First point, data units.

    Returns:
        (L,) decreasing noise levels; the end points are exact.

    Raises:
        InputError: If an argument is out of range.

    >>> vp_uniform(3, 0.01, 80.0).round(3)
    array([8.000e+01, 2.863e+00, 1.000e-02])
    """
    _check_range(num_points, sigma_min, sigma_max)
    process = VPPreconditioning()
    first, last = process.time_of_sigma(np.array([sigma_max, sigma_min]))
    grid = process.sigma_of_time(np.linspace(first, last, num_points))
    return _exact_ends(grid, sigma_min, sigma_max)


def skip_above(sigmas: ArrayLike, sigma_skip: float) -> NDArray[np.float64]:
    """Return what is left of a grid after a skip, sigmas[sigmas <= sigma_skip].

    Args:
        sigmas: A decreasing grid, (L,).
        sigma_skip: Where to start; at most the grid's first point.

    Returns:
        The tail of the grid, with at least one point.

    Raises:
        InputError: If sigma_skip is above the grid's first point or below its last.

    >>> skip_above([80.0, 8.0, 0.8], 10.0)
    array([8. , 0.8])
    """
    grid = check_grid(sigmas)
    if not grid[-1] <= sigma_skip <= grid[0]:
        raise InputError(
            f"sigma_skip is {sigma_skip}; it must lie within the grid, in "
            f"[{grid[-1]:g}, {grid[0]:g}]"
        )
    return grid[grid <= sigma_skip]


def check_grid(sigmas: ArrayLike) -> NDArray[np.float64]:
    """Return a noise grid as float64, or say what is wrong with it.

    Args:
        sigmas: (L,) noise levels, data units.

    Returns:
        The same levels.

    Raises:
        InputError: Unless there is at least one level and they are finite, positive and
            strictly decreasing.
    """
    grid = np.asarray(sigmas, np.float64)
    if grid.ndim != 1 or grid.size == 0:
        raise InputError(f"the grid has shape {grid.shape}; give (L,) with L >= 1")
    if not (np.isfinite(grid).all() and (grid > 0).all()):
        raise InputError(
            f"the grid holds {grid[~(np.isfinite(grid) & (grid > 0))][0]}; every point "
            "must be a finite number above 0 (the move to 0 is made by the denoiser)"
        )
    rising = np.flatnonzero(np.diff(grid) >= 0)
    if rising.size:
        i = int(rising[0])
        raise InputError(
            f"the grid must decrease, but point {i} is {grid[i]:g} and point {i + 1} "
            f"is {grid[i + 1]:g}"
        )
    return grid


def _check_range(num_points: int, sigma_min: float, sigma_max: float) -> None:
    if num_points != int(num_points) or num_points < 1:
        raise InputError(f"num_points is {num_points}; it must be an integer >= 1")
    if not (math.isfinite(sigma_max) and 0 < sigma_min < sigma_max):
        raise InputError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}; "
            "they must satisfy 0 < sigma_min < sigma_max"
        )


def _exact_ends(
    grid: NDArray[np.float64], sigma_min: float, sigma_max: float
) -> NDArray[np.float64]:
    """Undo the rounding of the two ends."""
    grid[-1] = sigma_min
    grid[0] = sigma_max
    return grid
