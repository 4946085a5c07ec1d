"""Moving averages of the parameters.

Exponential: after a step on B images the average moves by 1 - beta with
beta = 0.5**(B / H).  The half-life H, in images, is at most a fixed share of the images
seen so far, so that the average forgets the initial values (arXiv 2206.00364, reference
implementation).

Power-function (arXiv 2312.02696, section 3): beta_t = (1 - 1/t)**(gamma + 1) after step
t, which weighs the parameters of step s by s**gamma.  Its width relative to the length
of the run so far, sigma_rel, stays the same throughout, and averages of other widths
can be reconstructed from snapshots of a few (`diffusion.training.power_ema`).
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["ema_decay", "power_decay", "update_ema"]

Params = TypeVar("Params")


def ema_decay(
    images_seen: Array,
    batch_size: int,
    half_life_images: float,
    ramp_fraction: float | None,
) -> Array:
    """Return beta for the step that brings the count to `images_seen`, () float32."""
    half_life = jnp.asarray(half_life_images, jnp.float32)
    if ramp_fraction is not None:
        half_life = jnp.minimum(half_life, ramp_fraction * images_seen)
    return 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))


def power_decay(step: Array, gamma: float) -> Array:
    """Return beta_t for the step that brings the count to `step` >= 1, () float32."""
    return (1 - 1 / jnp.asarray(step, jnp.float32)) ** (gamma + 1)


def update_ema(average: Params, params: Params, decay: Array) -> Params:
    """Return params + decay * (average - params), leaf by leaf."""
    return jax.tree.map(lambda a, p: p + decay * (a - p), average, params)
