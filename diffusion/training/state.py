"""Everything that training changes, as one pytree.

Random numbers are no part of it: each step derives its keys from the seed and the step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from configs.schema import ExperimentConfig
from diffusion.neural import Network
from diffusion.uncertainty import init_uncertainty

__all__ = [
    "UNCERTAINTY",
    "LossSums",
    "Skipped",
    "TrainState",
    "create_state",
    "init_params",
    "network_params",
]

UNCERTAINTY = "loss_uncertainty"  # beside the network's own entries


class LossSums(NamedTuple):
    """Training losses since the last row of the log.

    Attributes:
        loss: (bins,) sum of the per-image losses in each bin of sigma; with
            augmentation (transforms, bins), nothing drawn first.
        count: Number of images in each, of the same shape.
        gradient_norm: () sum over steps of the gradient's global norm per image.
        steps: () number of steps.
    """

    loss: Array
    count: Array
    gradient_norm: Array
    steps: Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str = "float32") -> "LossSums":
        """Return empty sums, each in a buffer of its own (the step donates them)."""
        return cls(*(jnp.zeros(size, dtype) for size in (shape, shape, (), ())))


class Skipped(NamedTuple):
    """Steps that changed nothing because their gradient was not finite.

    Attributes:
        total: () int32, since the start of the run.
        in_row: () int32, up to the present step.
    """

    total: Array
    in_row: Array


class TrainState(NamedTuple):
    """The state after `step` optimizer steps.

    Attributes:
        step: () int32.
        params: Nested dict of arrays.
        ema_params: Their moving average, the ones to sample with.
        power_emas: Further averages by their relative width, see `power_ema`.
        opt_state: optax state.
        sums: Losses since the last logged row.
        skipped: Steps that changed nothing.
    """

    step: Array
    params: dict[str, Any]
    ema_params: dict[str, Any]
    power_emas: dict[str, dict[str, Any]]
    opt_state: optax.OptState
    sums: LossSums
    skipped: Skipped


def create_state(
    params: dict[str, Any],
    optimizer: optax.GradientTransformation,
    num_bins: int,
    *,
    num_transforms: int = 0,
    power_widths: tuple[float, ...] = (),
    dtype: str = "float32",
) -> TrainState:
    """Return the state before the first step; the averages start at `params`."""
    shape = (num_transforms, num_bins) if num_transforms else (num_bins,)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        power_emas={
            f"{width:g}": jax.tree.map(jnp.copy, params) for width in power_widths
        },
        opt_state=optimizer.init(params),
        sums=LossSums.zeros(shape, dtype),
        skipped=Skipped(jnp.int32(0), jnp.int32(0)),
    )


def init_params(
    config: ExperimentConfig, network: Network, key: Array
) -> dict[str, Any]:
    """Return everything that is trained: the network and what its loss learns."""
    params = network.init(key)
    if config.training.uncertainty_weighting:
        params[UNCERTAINTY] = init_uncertainty(jax.random.fold_in(key, 1))
    return params


def network_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return the network's own part of `init_params`' result."""
    return {name: value for name, value in params.items() if name != UNCERTAINTY}
