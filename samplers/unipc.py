"""UniPC: a predictor and a corrector of any order, one call per step (2302.04867).

With h = log(s/t), z = -h, B = z (bh1) or e^z - 1 (bh2), nodes r_k = (u_k - u(s))/h and
differences Delta_k = (D_k - D_0)/r_k, both move

    x(t) = (t/s) x(s) - (e^z - 1) D_0 - B sum_k rho_k Delta_k,

the predictor with the outputs known at s, the corrector with the one at t too (r = 1),
where D has been called at the predicted point and is not called again.  rho solves
sum_k r_k^(j-1) rho_k = b_j, b_j = j! z phi_(j+1)(z) / B; a single node has rho = 1/2.

The state holds the predicted x, where the denoiser was called; a step first corrects it
and goes on from there.  So the last point of a grid is not corrected, and its call is
the sample.
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
from samplers.exponential import log_steps, multistep_orders, phi
from samplers.solver import weighted_sum

__all__ = ["UniPC"]

_ORDERS = (1, 2, 3, 4)
_VARIANTS = ("bh1", "bh2")


class UniPCPlan(NamedTuple):
    """Per step: the predictor, and the corrector of the point that it starts from.

    Attributes:
        sigma_next: (S,) noise level arrived at.
        ratio: (S,) t/s.
        weights: (S, p) of the outputs, newest first.
        kept: (S,) 1 where the point is not corrected, else 0.
        corrector_ratio: (S,) s divided by the level before it, 0 without a corrector.
        corrector_weights: (S, p + 1) of the outputs, the one at the point itself first.
    """

    sigma_next: NDArray[np.float64]
    ratio: NDArray[np.float64]
    weights: NDArray[np.float64]
    kept: NDArray[np.float64]
    corrector_ratio: NDArray[np.float64]
    corrector_weights: NDArray[np.float64]


class UniPCState(NamedTuple):
    """Predicted x, D there, corrected x one point before, and D at earlier points."""

    x: Array
    denoised: Array
    x_before: Array
    history: tuple[Array, ...]


@jax.tree_util.register_static
@dataclass(frozen=True)
class UniPC:
    """UniPC of order 1 to 4; with its corrector about one order more than that.

    Args:
        order: 1 to 4.
        variant: "bh1", often the better one below 10 unguided calls, or "bh2".
        corrector: Whether to correct; without it this is UniP.
        lower_order_final: Let the order fall to 1 towards the end.

    Raises:
        InputError: If the order or the variant is not one of these.
    """

    order: int = 3
    variant: str = "bh2"
    corrector: bool = True
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        """Check order and variant."""
        if self.order not in _ORDERS:
            raise InputError(f"order is {self.order}; UniPC has orders 1, 2, 3, 4")
        if self.variant not in _VARIANTS:
            raise choice_error("variant of UniPC", self.variant, _VARIANTS)

    def plan(self, sigmas: NDArray[np.float64]) -> UniPCPlan:
        """Return the weights of every step."""
        h = log_steps(sigmas)
        ratio = sigmas[1:] / sigmas[:-1]
        weights = np.zeros((len(h), self.order))
        kept = np.ones(len(h))
        corrector_ratio = np.zeros(len(h))
        corrector_weights = np.zeros((len(h), self.order + 1))
        orders = multistep_orders(
            len(h), self.order, lower_order_final=self.lower_order_final
        )
        for i, order in enumerate(orders):
            past = -np.cumsum(h[:i][::-1])[: order - 1]
            weights[i, :order] = self._weights(past / h[i], float(h[i]))
            if self.corrector and i + 1 < len(h):
                with_end = np.append(past / h[i], 1.0)
                moved = self._weights(with_end, float(h[i]))
                kept[i + 1], corrector_ratio[i + 1] = 0.0, ratio[i]
                # (D_0, older ..., new) -> (new, D_0, older ...)
                corrector_weights[i + 1, : order + 1] = np.roll(moved, 1)
        return UniPCPlan(
            sigmas[1:], ratio, weights, kept, corrector_ratio, corrector_weights
        )

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> UniPCState:
        """Return the state at the first grid point."""
        zeros = jnp.zeros_like(x)
        return UniPCState(x, denoiser(x, sigma), zeros, (zeros,) * self.order)

    def step(
        self, denoiser: Denoiser, state: UniPCState, coefficients: UniPCPlan
    ) -> UniPCState:
        """Return the state at the next grid point."""
        outputs = (state.denoised, *state.history)
        here = state.x
        if self.corrector:
            corrected = weighted_sum(
                coefficients.corrector_ratio,
                state.x_before,
                coefficients.corrector_weights,
                outputs,
            )
            here = jnp.asarray(coefficients.kept * here + corrected, state.x.dtype)
        x = weighted_sum(coefficients.ratio, here, coefficients.weights, outputs[:-1])
        denoised = denoiser(x, coefficients.sigma_next)
        return UniPCState(x, denoised, here, outputs[:-1])

    def nfe(self, num_points: int) -> int:
        """Return n: one call at every grid point."""
        return num_points

    def _weights(self, nodes: NDArray[np.float64], h: float) -> NDArray[np.float64]:
        """Return the weights of D_0 and of the outputs at `nodes`, in units of h."""
        z, count = -h, len(nodes)
        b_h = z if self.variant == "bh1" else math.expm1(z)
        if count == 1:
            rho = np.array([0.5])
        else:
            powers = np.arange(count)
            b = [math.factorial(int(j) + 1) * z * phi(int(j) + 2, z) for j in powers]
            matrix = nodes[None, :] ** powers[:, None]
            rho = np.linalg.solve(matrix, np.array(b) / b_h)
        others = -b_h * rho / nodes
        return np.concatenate([[-math.expm1(z) - others.sum()], others])
