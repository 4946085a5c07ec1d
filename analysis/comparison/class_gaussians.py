"""One Gaussian for each class, told the class of every sample.

    D(x, sigma) = D_k(x, sigma),   k the label of x,

beside the class mixture, which must find the class out from x.  It is what a network
that is told classes is compared with.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffusion.closed_form import GaussianDenoiser, MixtureDenoiser
from diffusion.denoiser import expand_per_sample

__all__ = ["ClassGaussians"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassGaussians:
    """The Gaussian of each sample's class.

    Args:
        classes: Component k is a class's Gaussian; see `fit_class_mixture`.
        labels: (B,) integers in [0, K), the components of the samples.
    """

    classes: MixtureDenoiser
    labels: ArrayLike

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Return the denoised samples, (B, *event)."""
        classes, labels = self.classes, jnp.asarray(self.labels)

        def visit(found: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
            k, *parameters = part
            is_member = labels == k

            def denoise() -> Array:
                denoised = GaussianDenoiser(*parameters)(x, sigma)
                return jnp.where(expand_per_sample(is_member, x), denoised, found)

            return jax.lax.cond(jnp.any(is_member), denoise, lambda: found), None

        numbers = jnp.arange(len(classes.means))
        parts = (numbers, classes.means, classes.bases, classes.variances)
        parts = (*parts, classes.residual_variances)
        return jax.lax.scan(visit, jnp.full_like(x, jnp.nan), parts)[0]
