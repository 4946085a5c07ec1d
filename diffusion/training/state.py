"""Everything that training changes, as one pytree.

Random numbers are no part of it: each step derives its keys from the seed and the step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

__all__ = ["LossSums", "TrainState", "create_state"]


class LossSums(NamedTuple):
    """Training losses since the last row of the log.

    Attributes:
        loss: (bins,) sum of the per-image losses in each bin of sigma.
        count: (bins,) number of images in each bin.
        gradient_norm: () sum over steps of the gradient's global norm per image.
        steps: () number of steps.
    """

    loss: Array
    count: Array
    gradient_norm: Array
    steps: Array

    @classmethod
    def zeros(cls, num_bins: int) -> "LossSums":
        """Return empty sums, each in a buffer of its own (the step donates them)."""
        return cls(
            *(jnp.zeros(shape, jnp.float32) for shape in (num_bins, num_bins, (), ()))
        )


class TrainState(NamedTuple):
    """The state after `step` optimizer steps.

    Attributes:
        step: () int32.
        params: Nested dict of arrays.
        ema_params: Their moving average, the ones to sample with.
        opt_state: optax state.
        sums: Losses since the last logged row.
    """

    step: Array
    params: dict[str, Any]
    ema_params: dict[str, Any]
    opt_state: optax.OptState
    sums: LossSums


def create_state(
    params: dict[str, Any], optimizer: optax.GradientTransformation, num_bins: int
) -> TrainState:
    """Return the state before the first step; the average starts at `params`."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        sums=LossSums.zeros(num_bins),
    )
