"""A network that learns what a Gaussian does not know.

    D(x, sigma) = D_gaussian(x, sigma) + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

Networks learn the Gaussian part of a score first (Wang & Vastola, arXiv 2412.09726), so
it is given to them: the Wiener filter of the training images takes the place of EDM's
c_skip x, which is the Wiener filter of an isotropic Gaussian.  On Gaussian data it is
exact, and its error has, per pixel, the posterior variance

    c_out^2 = (sum_k lambda_k s^2/(lambda_k + s^2) + (D - R) v s^2/(v + s^2)) / D

with s = sigma, so that F's target keeps unit variance; c_in = 1/sqrt(m + s^2) with the
mean square m of the data does that for its input, and c_noise = log(sigma)/4.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from diffusion.closed_form.gaussian import GaussianDenoiser
from diffusion.preconditioning import Coefficients

__all__ = ["GaussianPreconditioning"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianPreconditioning:
    """The closed form of the training images as the skip of a network.

    The Gaussian must be that of what the network is trained on: with augmentation, of
    the transformed images.

    Args:
        gaussian: The Gaussian, as a rule of rank 128 with a residual variance.
    """

    gaussian: GaussianDenoiser

    @property
    def sigma_min(self) -> float:
        """Every level is allowed."""
        return 0.0

    @property
    def sigma_max(self) -> float:
        """Every level is allowed."""
        return math.inf

    def _mean_over_directions(self, of_modes: Array, of_rest: Array) -> Array:
        """Average a function of the variances over all D directions."""
        size = math.prod(self.gaussian.mean.shape)
        rest = size - self.gaussian.variances.shape[0]
        return (of_modes.sum(axis=-1) + rest * of_rest) / size

    def _posterior_variance(self, sigma: Array) -> Array:
        s2 = jnp.asarray(sigma) ** 2
        variances = self.gaussian.variances
        v = jnp.asarray(self.gaussian.residual_variance)
        modes = variances * s2[..., None] / (variances + s2[..., None])
        return self._mean_over_directions(modes, v * s2 / (v + s2))

    def __call__(self, sigma: Array) -> Coefficients:
        """Return the coefficients at `sigma`, any shape."""
        g = self.gaussian
        v = jnp.asarray(g.residual_variance)
        variance = self._mean_over_directions(g.variances, v)
        square = variance + jnp.mean(jnp.square(g.mean))
        c_out2 = self._posterior_variance(sigma)
        return Coefficients(
            c_skip=c_out2 / sigma**2,
            c_out=jnp.sqrt(c_out2),
            c_in=1 / jnp.sqrt(square + sigma**2),
            c_noise=jnp.log(sigma) / 4,
        )

    def skip(self, x: Array, sigma: Array) -> Array:
        """Return D_gaussian(x, sigma)."""
        return self.gaussian(x, sigma.reshape(-1))

    def loss_weight(self, sigma: Array) -> Array:
        """Return 1 / c_out**2: the error of F itself counts the same everywhere."""
        return 1 / self._posterior_variance(sigma)

    def round_sigma(self, sigma: Array) -> Array:
        """Return `sigma`: every level is known."""
        return sigma
