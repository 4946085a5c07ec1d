"""EDM's stochastic sampler: Heun's method between injections of noise.

At a grid point t inside [sigma_low, sigma_high] noise is added, which raises it to
t^ = t (1 + gamma), gamma = min(churn / L, sqrt(2) - 1); the step goes on from there:

    x^ = x + sqrt(t^^2 - t^2) noise_scale n,   x' = x^ + (t' - t^) d(x^, t^),
    x(t') = x^ + (t' - t^) (d(x^, t^) + d(x', t')) / 2,   d(x, s) = (x - D(x, s)) / s.

Karras et al., arXiv 2206.00364, algorithm 2.  At the first point x is noise already,
and none is added there.  The noise of an image at point i comes from
``fold_in(its key, i)``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.denoiser import Denoiser

__all__ = ["StochasticHeun"]


class StochasticHeunPlan(NamedTuple):
    """Per step.

    Attributes:
        sigma: (S,) level left, the noise added there included.
        sigma_next: (S,) level of the grid arrived at.
        sigma_raised: (S,) the same with the noise added.
        added: (S,) standard deviation of that noise.
        index: (S,) number of the point arrived at.
    """

    sigma: NDArray[np.float64]
    sigma_next: NDArray[np.float64]
    sigma_raised: NDArray[np.float64]
    added: NDArray[np.float64]
    index: NDArray[np.float64]


class StochasticHeunState(NamedTuple):
    """x with the noise added, D there, and the images' keys."""

    x: Array
    denoised: Array
    keys: Array | None


@jax.tree_util.register_static
@dataclass(frozen=True)
class StochasticHeun:
    """Order 2 between injections of noise; with churn = 0 it is `Heun`.

    A trace holds x with the noise added and the output there.

    Args:
        churn: S_churn, >= 0; 40 for ImageNet-64, 0 adds no noise.
        sigma_low: S_min, >= 0, data units.
        sigma_high: S_max, above S_min, data units.
        noise_scale: S_noise, > 0; a little above 1 (1.003) makes up for detail that
            a network removes.

    Raises:
        InputError: If a number is out of range.
    """

    churn: float = 0.0
    sigma_low: float = 0.0
    sigma_high: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.churn) and self.churn >= 0):
            raise InputError(f"churn is {self.churn}; it must be finite and >= 0")
        if not 0 <= self.sigma_low < self.sigma_high:
            raise InputError(
                f"noise would be added between {self.sigma_low} and {self.sigma_high}; "
                "give 0 <= sigma_low < sigma_high"
            )
        if not (math.isfinite(self.noise_scale) and self.noise_scale > 0):
            raise InputError(
                f"noise_scale is {self.noise_scale}; it must be finite and above 0"
            )

    def plan(self, sigmas: NDArray[np.float64]) -> StochasticHeunPlan:
        """Return the levels of every step."""
        gamma = min(self.churn / len(sigmas), math.sqrt(2) - 1)
        inside = (sigmas >= self.sigma_low) & (sigmas <= self.sigma_high)
        inside[0] = False
        raised = np.where(inside, sigmas * (1 + gamma), sigmas)
        added = self.noise_scale * np.sqrt(raised**2 - sigmas**2)
        index = np.arange(1, len(sigmas), dtype=np.float64)
        return StochasticHeunPlan(raised[:-1], sigmas[1:], raised[1:], added[1:], index)

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> StochasticHeunState:
        """Return the state at the first grid point.

        Raises:
            InputError: If noise is to be added and there are no keys.
        """
        if keys is None and self.churn > 0:
            raise InputError(
                "a stochastic solver needs keys; pass keys=jax.random.split(key, B)"
            )
        return StochasticHeunState(x, denoiser(x, sigma), keys)

    def step(
        self,
        denoiser: Denoiser,
        state: StochasticHeunState,
        coefficients: StochasticHeunPlan,
    ) -> StochasticHeunState:
        """Return the state at the next grid point."""
        s, t = coefficients.sigma, coefficients.sigma_next
        dtype = state.x.dtype
        slope = (state.x - state.denoised) / s
        predicted = (state.x + (t - s) * slope).astype(dtype)
        slope_next = (predicted - denoiser(predicted, t)) / t
        x = state.x + (t - s) * (slope + slope_next) / 2
        if self.churn > 0:
            assert state.keys is not None, "init has seen to it"
            index = jnp.asarray(coefficients.index, jnp.uint32)
            x += coefficients.added * _noise(state.keys, index, x)
        x = x.astype(dtype)
        return StochasticHeunState(
            x, denoiser(x, coefficients.sigma_raised), state.keys
        )

    def nfe(self, num_points: int) -> int:
        """Return 2 n - 1: two calls per step and the one at the start."""
        return 2 * num_points - 1


def _noise(keys: Array, index: Array, like: Array) -> Array:
    """Return standard normal noise for each image, (B, *event)."""

    def draw(key: Array) -> Array:
        here = jax.random.fold_in(key, index)
        return jax.random.normal(here, like.shape[1:], like.dtype)

    return jax.vmap(draw)(keys)
