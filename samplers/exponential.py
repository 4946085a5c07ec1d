"""The exponential integrals that the fast solvers share.

In u = log(1/sigma), the half-log-SNR, the probability flow is x' = D - x, and over a
step of length h = u(t) - u(s)

    x(t) = e^(-h) x(s) + integral_0^h e^(tau - h) D(u(s) + tau) dtau.

A solver replaces D by a polynomial through earlier outputs; what is left are

    phi_k(z) = sum_i z^i / (i + k)!,
    integral_0^h e^(tau - h) tau^k / k! dtau = h^(k+1) phi_(k+1)(-h).

Everything here is float64 on the host and holds for steps in both directions.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["lagrange_weights", "log_steps", "multistep_orders", "phi", "quadrature"]

_SERIES_BELOW = 1.0
_TERMS = 20  # 1 / 20! is below the rounding of float64
_CELL = 0.1  # longest piece of u for one rule of a quadrature
_GAUSS = np.polynomial.legendre.leggauss(4)


def phi(k: int, z: float) -> float:
    """Return phi_k(z) = sum_i z^i / (i + k)!, which is e^z for k = 0.

    Args:
        k: At least 0.
        z: Any real number.

    >>> round(phi(1, 0.5), 12) == round((math.exp(0.5) - 1) / 0.5, 12)
    True
    """
    if abs(z) < _SERIES_BELOW:
        return sum(z**i / math.factorial(i + k) for i in range(_TERMS))
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def lagrange_weights(nodes: NDArray[np.float64], h: float) -> NDArray[np.float64]:
    """Return the weights of outputs in a step, exact for polynomials through them.

    w_j = integral_0^h e^(tau - h) l_j(tau) dtau, where l_j is 1 at node j and 0 at the
    others.

    Args:
        nodes: (K,) distinct values of u - u(s) at which outputs are known.
        h: Length of the step in u.

    Returns:
        (K,) weights; their sum is 1 - e^(-h).
    """
    # Scaled by h the Vandermonde matrix stays well conditioned.
    powers = np.arange(len(nodes))
    integrals = np.array(
        [math.factorial(int(k)) * h * phi(int(k) + 1, -h) for k in powers]
    )
    matrix = (nodes[None, :] / h) ** powers[:, None]
    return np.linalg.solve(matrix, integrals).astype(np.float64)


def log_steps(sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return h = log(s / t) of every step, (L - 1,)."""
    return np.log(sigmas[:-1] / sigmas[1:])


def multistep_orders(
    num_steps: int, order: int, *, lower_order_final: bool
) -> list[int]:
    """Return the order of every step: what history allows, and less at the end.

    Args:
        num_steps: Intervals of the grid.
        order: Highest order.
        lower_order_final: Whether the order falls to 1 towards the last step, which
            keeps few-step samples stable.

    >>> multistep_orders(5, 3, lower_order_final=True)
    [1, 2, 3, 2, 1]
    """
    orders = [min(order, i + 1) for i in range(num_steps)]
    if lower_order_final:
        orders = [min(q, num_steps - i) for i, q in enumerate(orders)]
    return orders


def quadrature(
    breakpoints: NDArray[np.float64], start: float, end: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points and masses of an integral over u, accurate to rounding.

    Rules of Gauss and Legendre with 4 points on pieces of at most .1, none of which
    goes across a breakpoint.

    Args:
        breakpoints: Ascending values of u where the integrand may have a kink.
        start: Where the integral begins.
        end: Where it ends; below `start` the masses are negative.

    Returns:
        (P,) values of u, and (P,) masses; sum(masses * f(points)) is the integral.
    """
    low, high = min(start, end), max(start, end)
    inside = breakpoints[(breakpoints > low) & (breakpoints < high)]
    ends = [low, *inside.tolist(), high]
    edges = [low]
    for a, b in itertools.pairwise(ends):
        pieces = max(1, math.ceil((b - a) / _CELL))
        edges += np.linspace(a, b, pieces + 1)[1:].tolist()
    left, width = np.array(edges[:-1])[:, None], np.diff(edges)[:, None]
    nodes, weights = _GAUSS
    points = left + width * (nodes + 1) / 2
    masses = math.copysign(1.0, end - start) * width * weights / 2
    return points.ravel(), masses.ravel()
