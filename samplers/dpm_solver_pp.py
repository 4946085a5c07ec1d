"""DPM-Solver++: exponential integrators in the denoiser's output (arXiv 2211.01095).

With u = log(1/sigma) and h = log(s/t), a step from s to t is

    x(t) = (t/s) x(s) + sum_j w_j D_j,

D_j the outputs that are known: at earlier grid points (multistep), or at points inside
the step (singlestep).  In the published forms, with p1 = e^(-h) - 1, p2 = p1/h + 1 and
p3 = p2/h - 1/2,

    order 1    x(t) = (t/s) x - p1 D_0                                (DDIM),
    midpoint   ... - p1/2 D',      taylor   ... + p2 D',
    order 3    ... + p2 D' - p3 D'',

where h D' and h^2 D'' come from differences.  The published third order takes half of
D'', which leaves it at order 2.1; ``variant="corrected"`` takes all of it and has order
3.  "taylor" and "corrected" are the polynomials in u through the last outputs.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError, choice_error
from diffusion.denoiser import Denoiser
from samplers.exponential import lagrange_weights, log_steps, multistep_orders, phi
from samplers.solver import MultistepState, OneStepState, weighted_sum

__all__ = ["DPMSolverPP"]

_VARIANTS = {1: (), 2: ("midpoint", "taylor"), 3: ("published", "corrected")}
_INNER = {1: (), 2: (0.5,), 3: (1 / 3, 2 / 3)}  # points inside a singlestep, of h


class MultistepPlan(NamedTuple):
    """Per step: arrival, t/s, and the weights of the last outputs, newest first."""

    sigma_next: NDArray[np.float64]
    ratio: NDArray[np.float64]
    weights: NDArray[np.float64]


class SinglestepPlan(NamedTuple):
    """Per step: noise levels of all its points after the first, and how to get there.

    ``weights[i, j]`` is the weight of output j on the way to point i; the last point is
    the step's end.
    """

    sigmas: NDArray[np.float64]
    ratios: NDArray[np.float64]
    weights: NDArray[np.float64]


@jax.tree_util.register_static
@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++ of order 1 to 3, multistep or singlestep.

    The multistep form spends one call per grid point; its first steps have the order
    that their history allows.  The singlestep form has its full order from the first
    step on and spends `order` calls per step.

    Args:
        order: 1, 2 or 3.
        variant: Order 2: "midpoint" (default) or "taylor"; order 3: "published"
            (default) or, multistep only, "corrected".
        singlestep: Take points inside each step instead of history.
        lower_order_final: Multistep: let the order fall to 1 towards the end.

    Raises:
        InputError: If the order or the variant is not one of these.
    """

    order: int = 2
    variant: str | None = None
    singlestep: bool = False
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        """Check order and variant."""
        if self.order not in _VARIANTS:
            raise InputError(f"order is {self.order}; DPM-Solver++ has orders 1, 2, 3")
        allowed = _VARIANTS[self.order]
        if self.singlestep and self.order == 3:
            allowed = allowed[:1]
        if self.variant is not None and self.variant not in allowed:
            if not allowed:
                raise InputError(
                    f"variant is {self.variant!r}; order 1 has none, leave it out"
                )
            form = "singlestep" if self.singlestep else "multistep"
            raise choice_error(
                f"variant of {form} order {self.order}", self.variant, allowed
            )

    def plan(self, sigmas: NDArray[np.float64]) -> MultistepPlan | SinglestepPlan:
        """Return the weights of every step."""
        return self._singlestep(sigmas) if self.singlestep else self._multistep(sigmas)

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> MultistepState | OneStepState:
        """Return the state at the first grid point."""
        denoised = denoiser(x, sigma)
        if self.singlestep:
            return OneStepState(x, denoised)
        return MultistepState(x, denoised, (jnp.zeros_like(x),) * (self.order - 1))

    def step(
        self,
        denoiser: Denoiser,
        state: MultistepState | OneStepState,
        coefficients: MultistepPlan | SinglestepPlan,
    ) -> MultistepState | OneStepState:
        """Return the state at the next grid point."""
        if isinstance(coefficients, SinglestepPlan):
            x, outputs = state.x, [state.denoised]
            for i in range(self.order):
                x = weighted_sum(
                    coefficients.ratios[i],
                    state.x,
                    coefficients.weights[i, : len(outputs)],
                    outputs,
                )
                outputs.append(denoiser(x, coefficients.sigmas[i]))
            return OneStepState(x, outputs[-1])
        assert isinstance(state, MultistepState)
        outputs = (state.denoised, *state.history)
        x = weighted_sum(coefficients.ratio, state.x, coefficients.weights, outputs)
        return MultistepState(x, denoiser(x, coefficients.sigma_next), outputs[:-1])

    def nfe(self, num_points: int) -> int:
        """Return n, or order (n - 1) + 1 of the singlestep form."""
        return self.order * (num_points - 1) + 1 if self.singlestep else num_points

    def _multistep(self, sigmas: NDArray[np.float64]) -> MultistepPlan:
        h = log_steps(sigmas)
        weights = np.zeros((len(h), self.order))
        orders = multistep_orders(
            len(h), self.order, lower_order_final=self.lower_order_final
        )
        for i, order in enumerate(orders):
            # u - u(s) of the outputs, newest first.
            nodes = -np.concatenate([[0.0], np.cumsum(h[:i][::-1])])[:order]
            weights[i, :order] = self._weights(nodes, float(h[i]))
        return MultistepPlan(sigmas[1:], sigmas[1:] / sigmas[:-1], weights)

    def _weights(self, nodes: NDArray[np.float64], h: float) -> NDArray[np.float64]:
        order = len(nodes)
        # Start-up steps of a third-order solver are midpoint steps, as published; those
        # of the corrected one are polynomials too.
        if order == 2 and self.variant in (None, "midpoint", "published"):
            return _midpoint(float(nodes[1]), h)
        if order == 3 and self.variant != "corrected":
            return _published_third(nodes, h)
        return lagrange_weights(nodes, h)

    def _singlestep(self, sigmas: NDArray[np.float64]) -> SinglestepPlan:
        h = log_steps(sigmas)
        inner = _INNER[self.order]
        ends = np.array([*inner, 1.0])
        weights = np.zeros((len(h), self.order, self.order))
        for i, length in enumerate(h):
            weights[i] = self._inner_weights(float(length))
        ratios = np.exp(-h[:, None] * ends)
        return SinglestepPlan(sigmas[:-1, None] * ratios, ratios, weights)

    def _inner_weights(self, h: float) -> NDArray[np.float64]:
        """Return the weights of the points inside a step and of its end."""
        weights = np.zeros((self.order, self.order))
        if self.order == 1:
            weights[0, 0] = -math.expm1(-h)
        elif self.order == 2:
            (r,) = _INNER[2]
            weights[0, 0] = -math.expm1(-r * h)
            midpoint = self.variant in (None, "midpoint")
            nodes = np.array([0.0, r * h])
            weights[1] = _midpoint(r * h, h) if midpoint else lagrange_weights(nodes, h)
        else:
            # Inner points of orders 1 and 2, then the slope between the first and the
            # last of them; that one needs no second derivative (order 3 by arXiv
            # 2206.00927, theorem 3.2 with r1 = 1/3, r2 = 2/3).
            r1, r2 = _INNER[3]
            weights[0, 0] = -math.expm1(-r1 * h)
            weights[1, :2] = lagrange_weights(np.array([0.0, r1 * h]), r2 * h)
            weights[2, [0, 2]] = lagrange_weights(np.array([0.0, r2 * h]), h)
        return weights


def _midpoint(node: float, h: float) -> NDArray[np.float64]:
    """Return weights of D at 0 and at `node`: -p1 (D_0 + h D'/2)."""
    total = -math.expm1(-h)
    slope = h / (2 * node) * total
    return np.array([total - slope, slope])


def _published_third(nodes: NDArray[np.float64], h: float) -> NDArray[np.float64]:
    """Return weights with D'' halved, as in the authors' code (p2 D' - p3 D'')."""
    r0, r1 = -nodes[1] / h, (nodes[1] - nodes[2]) / h
    first = np.array([1.0, -1.0, 0.0]) / r0
    second = np.array([0.0, 1.0, -1.0]) / r1
    slope = first + r0 / (r0 + r1) * (first - second)
    curvature = (first - second) / (r0 + r1)
    weights = h * (phi(2, -h) * slope + phi(3, -h) * curvature)
    weights[0] -= math.expm1(-h)
    return weights
