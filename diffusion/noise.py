"""Laws of sigma in training.

EDM draws log sigma from a normal distribution (arXiv 2206.00364, section 5): most of
the effort goes to the noise levels at which the images' structure is decided.  The laws
of the VP and VE processes come from uniform times (table 1 there).
"""

from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from diffusion.preconditioning import VPPreconditioning

__all__ = ["LogNormal", "LogUniform", "NoiseLaw", "VPUniform"]


class NoiseLaw(Protocol):
    """A distribution over noise levels."""

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draw noise levels of the given shape, in data units."""
        ...

    def quantile(self, probability: Array) -> Array:
        """Return the level below which a share `probability` in (0, 1) lies."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """log sigma is normal with mean `p_mean` and standard deviation `p_std`."""

    p_mean: float = -1.2
    p_std: float = 1.2

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draw noise levels of the given shape, in data units."""
        return jnp.exp(self.p_mean + self.p_std * jax.random.normal(key, shape))

    def quantile(self, probability: Array) -> Array:
        """Return exp(p_mean + p_std Phi^-1(probability))."""
        return jnp.exp(self.p_mean + self.p_std * ndtri(probability))


@dataclass(frozen=True)
class VPUniform:
    """sigma(t) of the VP process for t uniform in [epsilon_t, 1]."""

    process: VPPreconditioning = field(default_factory=VPPreconditioning)

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draw noise levels of the given shape, in data units."""
        return self.quantile(jax.random.uniform(key, shape))

    def quantile(self, probability: Array) -> Array:
        """Return sigma(epsilon_t + probability (1 - epsilon_t))."""
        start = self.process.epsilon_t
        return jnp.asarray(
            self.process.sigma_of_time(start + probability * (1 - start))
        )


@dataclass(frozen=True)
class LogUniform:
    """log sigma is uniform between two levels; those of VE unless given."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draw noise levels of the given shape, in data units."""
        return self.quantile(jax.random.uniform(key, shape))

    def quantile(self, probability: Array) -> Array:
        """Return sigma_min (sigma_max / sigma_min)**probability."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** probability
