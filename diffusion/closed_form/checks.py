"""What every closed-form model refuses, in one line each."""

import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError

__all__ = ["check_event", "check_variances"]


def check_event(x: Array, event: tuple[int, ...], model: str) -> None:
    """Refuse a batch whose samples have another shape than the model's.

    Raises:
        InputError: If ``x.shape[1:]`` is not `event`.
    """
    if x.shape[1:] != event:
        raise InputError(
            f"x has shape {x.shape}, but this {model} is over events of shape "
            f"{event}: give ({'B, ' + ', '.join(map(str, event))})"
        )


def check_variances(*variances: ArrayLike) -> None:
    """Refuse variances that are negative or not finite; traced ones pass unseen.

    Raises:
        InputError: Naming the first such value.
    """
    for values in variances:
        if isinstance(values, Tracer):
            continue
        values = np.asarray(values, np.float64)
        wrong = ~(np.isfinite(values) & (values >= 0))
        if wrong.any():
            raise InputError(
                f"a variance is {values[wrong].flat[0]:g}; every variance must be a "
                "finite number >= 0"
            )
