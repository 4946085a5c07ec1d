"""The law that scores are compared with: exact in float64, fast in float32.

Where the law of the data is known it is that law; elsewhere it is the kernel density
estimate of the training points, with bandwidth sigma, which the best auto-encoder *of
these points* would have learned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from diffusion.closed_form import EmpiricalDenoiser, MixtureDenoiser
from diffusion.denoiser import score

__all__ = ["DensityDenoiser", "Reference"]

DensityDenoiser = MixtureDenoiser | EmpiricalDenoiser
_BLOCK = 1024


@dataclass(frozen=True)
class Reference:
    """A law with its density and its score at every noise level.

    Args:
        name: What it is called on the page.
        build: Makes the model, in the precision of the moment.
    """

    name: str
    build: Callable[[], DensityDenoiser]

    @cached_property
    def denoiser(self) -> DensityDenoiser:
        """The model in float32, for compiled walks."""
        with jax.enable_x64(False):
            return self.build()

    @cached_property
    def _exact(self) -> DensityDenoiser:
        with jax.enable_x64(True):
            return self.build()

    def score(self, x: ArrayLike, sigma: float) -> NDArray[np.float64]:
        """Return the score of the noised law.

        Args:
            x: (B, *event), data units.
            sigma: Noise level, data units, above 0.

        Returns:
            (B, *event) float64, one over data units.
        """
        return self._in_blocks(_score, x, sigma)

    def log_density(self, x: ArrayLike, sigma: float) -> NDArray[np.float64]:
        """Return log p of the noised law, (B,) float64; see `score`."""
        return self._in_blocks(_log_density, x, sigma)

    def energy_difference(self, sigma: float) -> Callable[[Array, Array], Array]:
        """Return (x, x') -> E(x') - E(x) from the density, a pytree, in float32."""
        return jax.tree_util.Partial(_difference, self.denoiser, np.float32(sigma))

    def log_density_at(self, sigma: float) -> Callable[[Array], Array]:
        """Return x -> log p(x; sigma), a pytree, in float32."""
        return jax.tree_util.Partial(_log_density, self.denoiser, sigma=sigma)

    def _in_blocks(
        self, ask: Callable[..., Array], x: ArrayLike, sigma: float
    ) -> NDArray[np.float64]:
        """Ask in blocks: a point needs a number for each component."""
        points = np.asarray(x, np.float64)
        with jax.enable_x64(True):
            starts = range(0, max(len(points), 1), _BLOCK)
            asked = partial(ask, self._exact, sigma=sigma)
            return np.concatenate(
                [np.asarray(asked(jnp.asarray(points[i : i + _BLOCK]))) for i in starts]
            )


@jax.jit
def _score(model: DensityDenoiser, x: Array, sigma: Any) -> Array:
    return score(model, x, sigma)


@jax.jit
def _log_density(model: DensityDenoiser, x: Array, sigma: Any) -> Array:
    return model.log_density(x, sigma)


def _difference(model: DensityDenoiser, sigma: Any, x: Array, x_new: Array) -> Array:
    both = model.log_density(jnp.concatenate([x, x_new]), sigma)
    return both[: len(x)] - both[len(x) :]
