"""Where sampling begins: a start turns white noise into x at the first grid point.

`Prior` takes sigma * noise.  `Teleport` takes sigma_max * noise and moves it to the
first grid point with the exact probability flow of a Gaussian: no network call is spent
above that point (Wang & Vastola, arXiv 2412.09726).  `MomentMatched` draws from the
noised Gaussian itself: the limit of infinite sigma_max, with the mean added (Raya &
Ambrogioni, arXiv 2305.19693).
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser

__all__ = ["MomentMatched", "Prior", "Start", "Teleport"]


class Start(Protocol):
    """Anything that turns white noise into samples at a noise level."""

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return x at `sigma`, (B, *event), from white noise of that shape."""
        ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class Prior:
    """x = sigma * noise: the data's own spread is neglected against sigma."""

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return sigma * noise, (B, *event)."""
        noise = jnp.asarray(noise)
        return (jnp.asarray(sigma) * noise).astype(noise.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teleport:
    """x = flow(sigma_max * noise, sigma_max -> sigma) of a Gaussian.

    Args:
        gaussian: The Gaussian of the training images.
        sigma_max: Noise level from which the flow starts, data units; the mean is not
            added there, just as in `Prior`.
    """

    gaussian: GaussianDenoiser
    sigma_max: ArrayLike = 80.0

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return samples at `sigma`, (B, *event).

        Raises:
            InputError: If `sigma` is above sigma_max or the shapes do not fit.
        """
        traced = any(isinstance(v, Tracer) for v in (sigma, self.sigma_max))
        if not traced and np.any(np.asarray(sigma) > np.asarray(self.sigma_max)):
            raise InputError(
                f"sigma_skip is {sigma}, above sigma_max = {self.sigma_max}; teleport "
                "to a lower noise level or raise sigma_max"
            )
        noise = jnp.asarray(noise)
        x = (jnp.asarray(self.sigma_max) * noise).astype(noise.dtype)
        return self.gaussian.flow(x, self.sigma_max, sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentMatched:
    """x = mean + (covariance + sigma^2 I)^(1/2) noise of a Gaussian.

    Unlike `Teleport` it has no error from a finite sigma_max.

    Args:
        gaussian: The Gaussian of the training images.
    """

    gaussian: GaussianDenoiser

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return samples at `sigma`, (B, *event).

        Raises:
            InputError: If the shapes do not fit.
        """
        return self.gaussian.from_white(noise, sigma)
