"""Residual exponential integrator: the Gaussian part exactly, the rest extrapolated.

Split the denoiser into an affine part and a residual, D = mean + w (x - mean) + r, with
w = variance/(variance + sigma^2) in each principal direction, the denoiser of a
Gaussian.  With u = log(1/sigma) and z = x - mean the flow is z' = (w - 1) z + r, and

    z(t) = A(s, t) z(s) + integral_{u_s}^{u_t} A(u, t) r du,
    A(s, t) = exp(integral_{u_s}^{u_t} (w - 1) du) = psi(t)/psi(s),
    psi = sqrt(variance + sigma^2),

and a step takes for r the polynomial in u through its values at the last grid points;
its weights, one set per direction, are integrated on the host.  Where r = 0 every step
is exact: that is teleportation.  Where all variances are 0, w = 0, r = D - mean, and it
is DPM-Solver++: order 2 its 2M "taylor", order 3 the corrected 3M.

What is left to extrapolate is what the network knows beyond a Gaussian.  That is little
where the Gaussian's variances are those of the model; gains w measured on the model
(`samplers.gain_estimation`) keep it so where they are not.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser
from samplers.coordinates import Split
from samplers.exponential import multistep_orders, quadrature
from samplers.model_statistics import (
    LinearPart,
    ModelStatistics,
    check_statistics,
    gaussian_statistics,
)

__all__ = ["ResidualExponential"]

_ORDERS = (1, 2, 3)


class ResidualPlan(NamedTuple):
    """Per step, coordinate by coordinate; residuals are the newest first.

    Attributes:
        sigma_next: (S,) noise level arrived at.
        gain: (S, C) w at the level left.
        factors: (S, 1 + p, C) factors of z and of the residuals.
    """

    sigma_next: NDArray[np.float64]
    gain: NDArray[np.float64]
    factors: NDArray[np.float64]


class ResidualState(NamedTuple):
    """x, D there, and, split along the basis, x from the mean and earlier residuals."""

    x: Array
    denoised: Array
    here: Split
    history: tuple[Split, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResidualExponential:
    """The residual exponential integrator of order 1 to 3, one call per grid point.

    A step costs two products with the basis, 2 D R multiply-adds per sample, beside the
    denoiser's call.

    Args:
        gaussian: Of the training images; or statistics with their coordinates, such as
            gains measured on the model, of which the linear part is used.
        order: Residuals that are taken into account: 1, 2 or 3.  Order 3 needs 8 calls
            or more to pay.
        rank: Principal directions of a Gaussian that are treated one by one; the others
            share their mean variance.  None takes all.
        lower_order_final: Let the order fall to 1 towards the end.

    Raises:
        InputError: If order or rank is out of range, or `gaussian` is neither.
    """

    gaussian: GaussianDenoiser | ModelStatistics
    order: int = field(default=2, metadata={"static": True})
    rank: int | None = field(default=128, metadata={"static": True})
    lower_order_final: bool = field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        """Check the settings."""
        check_statistics(self.gaussian)
        if self.order not in _ORDERS:
            raise InputError(
                f"order is {self.order}; the residual integrator has orders 1, 2, 3"
            )
        if self.rank is not None and self.rank < 0:
            raise InputError(f"rank is {self.rank}; it must be >= 0, or None for all")

    def plan(self, sigmas: NDArray[np.float64]) -> ResidualPlan:
        """Return the factors of every step.

        Raises:
            InputError: If the grid leaves the noise levels of the statistics.
        """
        statistics = self._statistics()
        part, size = statistics.linear_part(), statistics.coordinates.size
        u = -np.log(sigmas)
        factors = np.zeros((len(u) - 1, 1 + self.order, size))
        orders = multistep_orders(
            len(u) - 1, self.order, lower_order_final=self.lower_order_final
        )
        for i, order in enumerate(orders):
            past = u[i::-1][:order]
            factors[i, : 1 + order] = _factors(part, past, u[i + 1])
        return ResidualPlan(sigmas[1:], 1 - part.gains(u[:-1]), factors)

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> ResidualState:
        """Return the state at the first grid point."""
        here = self._statistics().coordinates.split(x)
        nothing = jax.tree.map(jnp.zeros_like, here)
        history = (nothing,) * (self.order - 1)
        return ResidualState(x, denoiser(x, sigma), here, history)

    def step(
        self, denoiser: Denoiser, state: ResidualState, coefficients: ResidualPlan
    ) -> ResidualState:
        """Return the state at the next grid point."""
        frame, c = self._statistics().coordinates, coefficients
        gain = jnp.asarray(c.gain)
        denoised = frame.split(state.denoised)
        minus = jnp.stack([jnp.ones_like(gain), -gain])
        residual = frame.combine(minus, [denoised, state.here])
        moved = frame.combine(
            jnp.asarray(c.factors), [state.here, residual, *state.history]
        )
        x = frame.join(moved).astype(state.x.dtype)
        here = moved._replace(whole=frame.flat(x), shadow=moved.inside)
        kept = [here, residual, *state.history][: 1 + len(state.history)]
        here, *history = jax.tree.map(
            lambda new, old: new.astype(old.dtype), kept, [state.here, *state.history]
        )
        return ResidualState(x, denoiser(x, c.sigma_next), here, tuple(history))

    def nfe(self, num_points: int) -> int:
        """Return n: one call at every grid point."""
        return num_points

    def _statistics(self) -> ModelStatistics:
        """Return the affine part; a Gaussian's is cut to the rank."""
        if not isinstance(self.gaussian, GaussianDenoiser):
            return self.gaussian
        given = jnp.shape(self.gaussian.basis)[1]
        rank = given if self.rank is None else min(self.rank, given)
        return gaussian_statistics(self.gaussian.truncated(rank))


def _factors(
    part: LinearPart, points: NDArray[np.float64], end: float
) -> NDArray[np.float64]:
    """Return the factors of z and of residuals at `points` in the step to `end`.

    Args:
        part: Its gains l are 1 - w.
        points: (K,) values of u, the step's start first.
        end: u at the step's end.

    Returns:
        (1 + K, C): A(s, t), then integral A(u, t) l_j(u) du, with l_j the polynomial
        that is 1 at point j and 0 at the others.
    """
    u, masses = quadrature(part.breakpoints(), points[0], end)
    here = part.integrals(np.append(u, points[0])).linear
    decay = np.exp(here - part.integrals(np.array([end])).linear)
    lagrange = np.ones((len(points), len(u)))
    for j, node in enumerate(points):
        for other in np.delete(points, j):
            lagrange[j] *= (u - other) / (node - other)
    return np.concatenate([decay[-1:], (lagrange * masses) @ decay[:-1]])
