"""Guidance: two denoisers make one.

    D(x, sigma) = U(x, sigma) + weight (C(x, sigma) - U(x, sigma))

inside an interval of noise levels, C outside of it.  With an unconditional network for
U this is classifier-free guidance (Ho & Salimans, arXiv 2207.12598), with a smaller or
less trained network it is auto-guidance (Karras et al., arXiv 2406.02507); the interval
is that of Kynkaanniemi et al., arXiv 2404.07724.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.denoiser import Denoiser, expand_sigma

__all__ = ["Guided"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guided:
    """Guidance of one denoiser away from another, a `Denoiser` itself.

    Args:
        conditional: C, the denoiser to strengthen.
        unconditional: U, the denoiser to move away from: without labels, or weaker.
        weight: () or (B,); 1 is C alone, 0 is U alone, above 1 extrapolates.
        interval: (lowest, highest) sigma, data units: guidance acts at
            lowest < sigma <= highest; static under jit.

    Raises:
        InputError: When called, if the interval is not increasing.
    """

    conditional: Denoiser
    unconditional: Denoiser
    weight: ArrayLike = 1.0
    interval: tuple[float, float] = dataclasses.field(
        default=(0.0, math.inf), metadata={"static": True}
    )

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        lowest, highest = self.interval
        if not 0 <= lowest < highest:
            raise InputError(
                f"the guidance interval is {self.interval}; give (lowest, highest) "
                "with 0 <= lowest < highest"
            )
        x = jnp.asarray(x)
        level = expand_sigma(sigma, x)
        weight = expand_sigma(self.weight, x, allow_zero=True, name="weight")
        inside = (level > lowest) & (level <= highest)
        strong, weak = self.conditional(x, sigma), self.unconditional(x, sigma)
        guided = weak + weight.astype(level.dtype) * (strong - weak)
        # Outside, and at weight 1, C exactly: no rounding of U remains.
        return jnp.where(inside & (weight != 1), guided, strong).astype(x.dtype)
