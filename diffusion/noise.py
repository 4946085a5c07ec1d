"""Laws of sigma in training.

EDM draws log sigma from a normal distribution (arXiv 2206.00364, section 5): most of
the effort goes to the noise levels at which the images' structure is decided.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

__all__ = ["LogNormal", "NoiseLaw"]


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
