"""Heun's method, the deterministic sampler of EDM (arXiv 2206.00364, algorithm 1).

With the slope d(x, s) = (x - D(x, s)) / s, a step from s to t is
x' = x + (t - s) d(x, s),  x(t) = x + (t - s) (d(x, s) + d(x', t)) / 2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from diffusion.denoiser import Denoiser
from samplers.solver import OneStepState

__all__ = ["Heun"]


class HeunPlan(NamedTuple):
    """Per step: the noise levels left and arrived at."""

    sigma: NDArray[np.float64]
    sigma_next: NDArray[np.float64]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Heun:
    """Order 2, two denoiser calls per step."""

    def plan(self, sigmas: NDArray[np.float64]) -> HeunPlan:
        """Return s and t of every step."""
        return HeunPlan(sigmas[:-1], sigmas[1:])

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> OneStepState:
        """Return the state at the first grid point."""
        return OneStepState(x, denoiser(x, sigma))

    def step(
        self, denoiser: Denoiser, state: OneStepState, coefficients: HeunPlan
    ) -> OneStepState:
        """Return the state at the next grid point."""
        s, t = coefficients.sigma, coefficients.sigma_next
        dtype = state.x.dtype
        slope = (state.x - state.denoised) / s
        predicted = (state.x + (t - s) * slope).astype(dtype)
        slope_next = (predicted - denoiser(predicted, t)) / t
        x = (state.x + (t - s) * (slope + slope_next) / 2).astype(dtype)
        return OneStepState(x, denoiser(x, t))

    def nfe(self, num_points: int) -> int:
        """Return 2 n - 1: two calls per step and the one at the start."""
        return 2 * num_points - 1
