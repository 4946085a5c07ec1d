"""Moving averages of the parameters.

After a step the average moves by a share w of its distance to the parameters.

Exponential: w = 1 - 0.5**(B / H) for a step on B images.  The half-life H, in images,
is at most a fixed share of the images seen so far, so that the average forgets the
initial values (arXiv 2206.00364, reference implementation).

Power-function (arXiv 2312.02696, section 3): w = 1 - (1 - 1/t)**(gamma + 1) after step
t, which weighs the parameters of step s by s**gamma.  Its width relative to the length
of the run so far, sigma_rel, stays the same throughout, and averages of other widths
can be reconstructed from snapshots of a few (`diffusion.training.power_ema`).

Both shares are tiny late in a run; as 1 - beta in float32 they would keep few digits.
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["ema_weight", "power_weight", "update_ema"]

Params = TypeVar("Params")


def ema_weight(
    images_seen: Array,
    batch_size: int,
    half_life_images: float,
    ramp_fraction: float | None,
) -> Array:
    """Return w for the step that brings the count to `images_seen`, () float32."""
    half_life = jnp.asarray(half_life_images, jnp.float32)
    if ramp_fraction is not None:
        half_life = jnp.minimum(half_life, ramp_fraction * images_seen)
    return -jnp.expm1(-math.log(2) * batch_size / jnp.maximum(half_life, 1e-8))


def power_weight(step: Array, gamma: float) -> Array:
    """Return w for the step that brings the count to `step` >= 1, () float32."""
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))


def update_ema(average: Params, params: Params, weight: Array) -> Params:
    """Return average + weight * (params - average), leaf by leaf."""
    return jax.tree.map(lambda a, p: a + weight * (p - a), average, params)
