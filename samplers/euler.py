"""Euler's method, which in this frame is DDIM (arXiv 2010.02502).

x(t) = x(s) + (t - s) (x(s) - D(x(s), s)) / s = (t/s) x(s) + (1 - t/s) D(x(s), s).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from diffusion.denoiser import Denoiser
from samplers.solver import OneStepState

__all__ = ["Euler"]


class EulerPlan(NamedTuple):
    """Per step: the noise level arrived at and the ratio t/s."""

    sigma_next: NDArray[np.float64]
    ratio: NDArray[np.float64]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Euler:
    """Order 1, one denoiser call per step."""

    def plan(self, sigmas: NDArray[np.float64]) -> EulerPlan:
        """Return t and t/s of every step."""
        return EulerPlan(sigmas[1:], sigmas[1:] / sigmas[:-1])

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> OneStepState:
        """Return the state at the first grid point."""
        return OneStepState(x, denoiser(x, sigma))

    def step(
        self, denoiser: Denoiser, state: OneStepState, coefficients: EulerPlan
    ) -> OneStepState:
        """Return the state at the next grid point."""
        ratio = coefficients.ratio
        moved = ratio * state.x + (1 - ratio) * state.denoised
        x = jnp.asarray(moved, state.x.dtype)
        return OneStepState(x, denoiser(x, coefficients.sigma_next))

    def nfe(self, num_points: int) -> int:
        """Return n: one call at every grid point."""
        return num_points
