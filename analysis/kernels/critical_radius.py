"""Where noise begins to be fitted: kernel complexity and the local-Rademacher rule.

With mu the eigenvalues of K / n, sigma the noise of a label and B the norm of the
target in the kernel's space,

    R_K(eps) = sqrt( (1/n) sum min(mu_i, eps^2) ),
    eps_n: the smallest eps > 0 with  R_K(eps) <= eps^2 B / (c sigma),
    stop at the first s with  R_K(1 / sqrt(s)) > B / (c sigma s):   s = 1 / eps_n^2.

in the spirit of Raskutti, Wainwright & Yu (JMLR 15:335, 2014), for whose rule c = 2 e
is often given; c = 1 is used for networks on a sphere (PMLR 267, ICML 2025) and stops
far later.  Only sigma / B enters, so that K / k with k eta and sqrt(k) B stops at the
same step.

Everything is float64 on the host: mu is a short list, and roots are wanted to the last
digit.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, is_positive, require

__all__ = [
    "CLASSICAL",
    "TrainingStop",
    "critical_radius",
    "data_free_stop",
    "kernel_complexity",
    "rwy_stop",
    "stop_ratio",
]

CLASSICAL = 2 * math.e
"""The constant c of the classical rule; 1 is the other one in use."""


class TrainingStop(NamedTuple):
    """When to stop.

    Attributes:
        s: Training time eta tau; inf where the rule never says stop: interpolate.
        tau: Number of steps, whole; inf as `s` is, or where no steps are given.
    """

    s: float
    tau: float


def kernel_complexity(
    mu: ArrayLike, eps2: ArrayLike, *, n: int | None = None
) -> NDArray[np.float64]:
    """Return R_K(eps) = sqrt( (1/n) sum min(mu_i, eps^2) ).

    Args:
        mu: (r,) eigenvalues of K / n, in any order.
        eps2: eps^2, any shape, >= 0.
        n: Number of points; None for the number of eigenvalues.

    Returns:
        In the shape of `eps2`, float64.

    Raises:
        InputError: If an eigenvalue is negative or not finite, or none is above 0.
    """
    values, n = _checked(mu, n)
    level = np.asarray(eps2, np.float64)
    # Sums over all eigenvalues below a level, from the smallest on.
    ascending = values[::-1]
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    below = np.searchsorted(ascending, level)
    return np.sqrt((sums[below] + (len(values) - below) * level) / n)


def critical_radius(
    mu: ArrayLike,
    sigma: float,
    c: float = CLASSICAL,
    *,
    B: float = 1.0,
    n: int | None = None,
) -> float:
    """Return the smallest eps > 0 with R_K(eps) <= eps^2 B / (c sigma), by bisection.

    Args:
        mu: (r,) eigenvalues of K / n.
        sigma: Noise of a label, standard deviation per output.
        c: Constant of the rule.
        B: Norm of the target in the kernel's space, per output.
        n: Number of points; None for the number of eigenvalues.

    Returns:
        eps_n, in the unit of sqrt(mu); 0 without noise.

    Raises:
        InputError: If an argument is out of range.
    """
    values, n = _checked(mu, n)
    bound = _bound(sigma, B, c)
    if math.isinf(bound):
        return 0.0

    def exceeds(log_eps2: float) -> bool:
        eps2 = math.exp(log_eps2)
        return float(kernel_complexity(values, eps2, n=n)) > eps2 * bound

    # R_K <= sqrt(sum mu / n) bounds the root above, R_K >= eps / sqrt(n) below it.
    upper = math.log(math.sqrt(values.sum() / n) / bound)
    lower = min(upper, math.log(values[0]), -math.log(n * bound**2)) - 1e-9
    while upper - lower > 1e-14 * max(1, abs(upper)):
        middle = (lower + upper) / 2
        if middle in (lower, upper):
            break
        lower, upper = (middle, upper) if exceeds(middle) else (lower, middle)
    return math.exp(upper / 2)


def rwy_stop(
    mu: ArrayLike,
    sigma: float,
    B: float = 1.0,
    eta_grid: ArrayLike | None = None,
    c: float = CLASSICAL,
    *,
    n: int | None = None,
) -> TrainingStop:
    """Return when the local-Rademacher rule stops.

    s R_K(1 / sqrt(s)) increases in s, and between two eigenvalues its square is
    (k s + s^2 sum_(i > k) mu_i) / n: the crossing is a root of that.

    Args:
        mu: (r,) eigenvalues of K / n.
        sigma: Noise of a label, standard deviation per output: of several outputs, or
            where it differs, the root of the mean variance.
        B: Norm of the target in the kernel's space, per output likewise.
        eta_grid: None for a continuous time; a number, the constant step size; or (T,)
            the times eta_1 + ... + eta_tau after each step, increasing.
        c: Constant of the rule, 2 e or 1.
        n: Number of points; None for the number of eigenvalues.

    Returns:
        The stop: that of continuous time, or with steps the last one before the bound
        is passed (0 if the first passes it).  inf where it is never passed: without
        noise, or not on the grid given.

    Raises:
        InputError: If an argument is out of range.
    """
    values, n = _checked(mu, n)
    bound = _bound(sigma, B, c)
    s = math.inf if math.isinf(bound) else _crossing(values, bound, n)
    if eta_grid is None:
        return TrainingStop(s, math.inf)
    grid = np.asarray(eta_grid, np.float64)
    if grid.ndim == 0:
        require(is_positive(float(grid)), "eta", float(grid), "a finite number > 0")
        # A crossing on a step to within rounding counts as that step.
        tau = math.floor(s / float(grid) * (1 + 1e-12)) if math.isfinite(s) else s
        return TrainingStop(s if math.isinf(s) else tau * float(grid), tau)
    if grid.ndim != 1 or not len(grid) or grid[0] <= 0 or (np.diff(grid) <= 0).any():
        raise InputError("eta_grid must be the times after each step, > 0, increasing")
    tau = int(np.searchsorted(grid, s * (1 + 1e-12), side="right"))
    if tau == len(grid):
        return TrainingStop(math.inf, math.inf)
    return TrainingStop(float(grid[tau - 1]) if tau else 0.0, tau)


def stop_ratio(
    mu: ArrayLike,
    s: ArrayLike,
    sigma: float,
    B: float = 1.0,
    c: float = CLASSICAL,
    *,
    n: int | None = None,
) -> NDArray[np.float64]:
    """Return s R_K(1 / sqrt(s)) c sigma / B: the rule stops where it passes 1.

    Args:
        mu: (r,) eigenvalues of K / n.
        s: Training times, > 0, any shape.
        sigma: See `rwy_stop`.
        B: See `rwy_stop`.
        c: See `rwy_stop`.
        n: See `rwy_stop`.

    Returns:
        In the shape of `s`, float64, increasing in `s`; 0 without noise.
    """
    times = np.asarray(s, np.float64)
    return times * kernel_complexity(mu, 1 / times, n=n) / _bound(sigma, B, c)


def data_free_stop(n: int, p: int) -> float:
    """Return s = n^(p / (2 p - 1)), up to a constant, without a look at the data.

    The rate for targets in the space of the two-layer ReLU kernel on a sphere in p
    dimensions (PMLR 267, ICML 2025); of a diffusion in d dimensions, p = d + 2.

    Args:
        n: Number of points, >= 1.
        p: Dimension of the lifted input, >= 2.

    Returns:
        The training time.

    Raises:
        InputError: If an argument is out of range.

    >>> round(data_free_stop(256, 4), 2)
    23.78
    """
    require(n >= 1, "n", n, "at least 1")
    require(p >= 2, "p", p, "at least 2: the dimension of the lifted input")
    return float(n) ** (p / (2 * p - 1))


def _crossing(mu: NDArray[np.float64], bound: float, n: int) -> float:
    """Return the s at which s^2 sum min(mu, 1 / s) = n bound^2, mu decreasing."""
    positive = mu[mu > 0]
    tails = np.cumsum(positive[::-1])[::-1]
    # At s = 1 / mu_k the first k count 1 / s and the others their mu.
    counts = np.arange(len(positive))
    squares = counts / positive + tails / positive**2
    # Eigenvalues passed before the crossing.
    k = int(np.searchsorted(squares, n * bound**2))
    tail = float(tails[k]) if k < len(positive) else 0.0
    # k s + tail s^2 = n bound^2, solved without a difference of like numbers.
    target = n * bound**2
    return 2 * target / (k + math.sqrt(k * k + 4 * tail * target))


def _bound(sigma: float, B: float, c: float) -> float:
    """Return B / (c sigma); inf without noise."""
    require(math.isfinite(sigma) and sigma >= 0, "sigma", sigma, "finite and >= 0")
    require(is_positive(B), "B", B, "a finite number > 0, the norm of the target")
    require(is_positive(c), "c", c, "a finite number > 0, such as 1 or 2 e")
    return math.inf if sigma == 0 else B / (c * sigma)


def _checked(mu: ArrayLike, n: int | None) -> tuple[NDArray[np.float64], int]:
    """Return the eigenvalues in decreasing order, and the number of points."""
    values = np.asarray(mu, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or not (values > 0).any():
        raise InputError(
            f"mu has shape {values.shape}; give the finite eigenvalues of K / n, (r,), "
            "at least one of them > 0"
        )
    lowest = float(values.min())
    require(lowest >= 0, "the lowest mu", lowest, ">= 0")
    count = len(values) if n is None else n
    require(count >= 1, "n", count, "the number of points, at least 1")
    return np.sort(values)[::-1], count
