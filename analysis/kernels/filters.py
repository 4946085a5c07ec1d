"""What an iterative or a penalised fit makes of each eigenvalue of a kernel.

With mu the eigenvalues of K / n and r the part of the labels along an eigenvector, all
fits of kernel regression leave rho(mu) r unexplained and fit g(mu) r, g = 1 - rho:

    gradient descent, tau steps of eta    rho = (1 - eta mu)^tau
    gradient flow for a time s            rho = exp(-s mu)           (eta tau = s)
    ridge with penalty lam                rho = lam / (mu + lam)     (lam = 1 / s)
    iterated ridge, `times` times         rho = (lam / (mu + lam))^times

(loss |f - y|^2 / (2 n); score estimation as kernel regression: arXiv 2401.15604).
Powers are taken in log space, so a billion steps are no more than one, and of g no
digit is lost where it is small: g / mu is exact down to mu = 0.

A `Filter` is any function (mu, time) -> g; `flow` and `ridge` are filters as they are,
`Descent` and `IteratedRidge` carry the number that is left.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError, InputWarning, is_positive, require

__all__ = [
    "Descent",
    "Filter",
    "IteratedRidge",
    "flow",
    "gd",
    "iterated_ridge",
    "ridge",
]

Filter = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Descent:
    """Gradient descent as a filter: (mu, tau) -> gd(mu, eta, tau).

    Attributes:
        eta: Step size, below 2 / mu_1.
    """

    eta: float

    def __post_init__(self) -> None:
        require(is_positive(self.eta), "eta", self.eta, "a finite number > 0")

    def __call__(self, mu: ArrayLike, tau: ArrayLike) -> Array:
        """Return what is fitted after `tau` steps; see `gd`."""
        return gd(mu, self.eta, tau)


@dataclass(frozen=True)
class IteratedRidge:
    """Iterated ridge as a filter: (mu, lam) -> iterated_ridge(mu, lam, times).

    Attributes:
        times: How often the residual is fitted again, at least 1.
    """

    times: int = 2

    def __post_init__(self) -> None:
        require(self.times >= 1, "times", self.times, "a whole number >= 1")

    def __call__(self, mu: ArrayLike, lam: ArrayLike) -> Array:
        """Return what is fitted with penalty `lam`; see `iterated_ridge`."""
        return iterated_ridge(mu, lam, self.times)


def gd(mu: ArrayLike, eta: float, tau: ArrayLike) -> Array:
    """Return 1 - (1 - eta mu)^tau, the part fitted by gradient descent.

    Beyond eta mu = 1 the power alternates in sign; it is taken as
    (-1)^tau exp(tau log(eta mu - 1)).

    Args:
        mu: Eigenvalues of K / n, >= 0, any shape.
        eta: Step size.
        tau: Numbers of steps, whole and >= 0, broadcast against `mu`.  Integers up to
            2^31 keep their parity; float32 beyond 2^24 does not.

    Returns:
        The fitted part, in [0, 1] where eta mu <= 1, else in [0, 2].

    Raises:
        InputError: If eta is not below 2 / mu_1, where descent diverges, or is not
            positive, or a number of steps is not whole or negative (outside of jit).
    """
    _check_step(mu, eta)
    _check_steps(tau)
    return _descend(jnp.asarray(mu), eta, jnp.asarray(tau))


@jax.jit
def _descend(mu: Array, eta: ArrayLike, steps: Array) -> Array:
    rate = eta * mu
    sign = jnp.where(steps % 2 == 0, 1, -1).astype(rate.dtype)
    power = steps.astype(rate.dtype)
    below = -jnp.expm1(power * jnp.log1p(-jnp.minimum(rate, 1)))
    above = 1 - sign * jnp.exp(power * jnp.log(jnp.maximum(rate - 1, 0)))
    # After no step 0 log 0 would be no number where eta mu = 1.
    return jnp.where(steps == 0, 0, jnp.where(rate <= 1, below, above))


@jax.jit
def flow(mu: ArrayLike, s: ArrayLike) -> Array:
    """Return 1 - exp(-s mu), the part fitted by gradient flow.

    Args:
        mu: Eigenvalues of K / n, >= 0, any shape.
        s: Times, >= 0, broadcast against `mu`; inf interpolates.

    Returns:
        The fitted part, in [0, 1].

    >>> float(flow(0.5, 2.0))
    0.6321205496788025
    """
    return -jnp.expm1(-jnp.asarray(s) * jnp.asarray(mu))


def ridge(mu: ArrayLike, lam: ArrayLike) -> Array:
    """Return mu / (mu + lam), the part fitted by ridge regression.

    Args:
        mu: Eigenvalues of K / n, >= 0, any shape.
        lam: Penalties in units of mu, > 0: K + n lam I is what is inverted.

    Returns:
        The fitted part, in [0, 1).

    Raises:
        InputError: If a penalty is not positive (outside of jit).
    """
    return iterated_ridge(mu, lam, 1)


def iterated_ridge(mu: ArrayLike, lam: ArrayLike, times: ArrayLike) -> Array:
    """Return 1 - (lam / (mu + lam))^times: ridge, its residual fitted again and again.

    Args:
        mu: Eigenvalues of K / n, >= 0, any shape.
        lam: Penalties in units of mu, > 0, broadcast against `mu`.
        times: Number of fits, >= 1.

    Returns:
        The fitted part, in [0, 1).

    Raises:
        InputError: If a penalty is not positive (outside of jit).
    """
    if not isinstance(lam, Tracer):
        lowest = float(np.min(np.asarray(lam)))
        require(is_positive(lowest), "lam", lowest, "a finite number > 0")
    return _penalise(mu, lam, times)


@jax.jit
def _penalise(mu: ArrayLike, lam: ArrayLike, times: ArrayLike) -> Array:
    ratio = jnp.asarray(mu) / jnp.asarray(lam)
    return -jnp.expm1(-jnp.asarray(times) * jnp.log1p(ratio))


def _check_step(mu: ArrayLike, eta: float) -> None:
    if isinstance(mu, Tracer) or isinstance(eta, Tracer):
        return
    require(is_positive(float(eta)), "eta", float(eta), "a finite number > 0")
    largest = float(np.max(np.asarray(mu)))
    if eta * largest >= 2:
        raise InputError(
            f"eta is {float(eta):.6g}, but gradient descent on this kernel diverges "
            f"from 2 / mu_1 = {2 / largest:.6g} on; take at most {1 / largest:.6g}, "
            "1 / mu_1"
        )
    if eta * largest > 1:
        warnings.warn(
            f"eta = {float(eta):.6g} is above 1 / mu_1 = {1 / largest:.6g}: the fit "
            "oscillates before it converges",
            InputWarning,
            stacklevel=3,
        )


def _check_steps(tau: ArrayLike) -> None:
    if isinstance(tau, Tracer):
        return
    steps = np.asarray(tau)
    bad = steps[(steps < 0) | (steps != np.floor(steps)) | ~np.isfinite(steps)]
    if bad.size:
        raise InputError(
            f"tau contains {bad.flat[0]}; numbers of steps must be whole and >= 0"
        )
