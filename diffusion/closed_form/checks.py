"""What closed-form models and their fits refuse, in one line each."""

from typing import Any

import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError

__all__ = [
    "check_event",
    "check_finite",
    "check_rank",
    "check_variances",
    "images_of",
]


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


def images_of(batch: Any) -> NDArray[Any]:
    """Return the images of a batch, (n, *event), after checking shape and dtype.

    Args:
        batch: An array, or a `Dataset` of images and labels.

    Raises:
        InputError: If there is no batch axis or the dtype is neither uint8 nor float.
    """
    images = np.asarray(getattr(batch, "images", batch))
    if images.ndim < 2 or 0 in images.shape[1:] or not len(images):
        raise InputError(
            f"images have shape {images.shape}; give at least one, as (N, *event)"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"images have dtype {images.dtype}; give uint8 pixels or floats"
        )
    return images


def check_finite(rows: NDArray[Any], first: int) -> None:
    """Refuse rows (n, D) with NaN or infinite pixels; `first` is their first's index.

    Raises:
        InputError: Naming the first such image.
    """
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = first + int(np.argmin(finite))
        raise InputError(
            f"image {row} holds NaN or infinite pixels; remove or repair it"
        )


def check_rank(rank: int | None, dimension: int) -> int:
    """Return the rank, D for None.

    Raises:
        InputError: If it is not in [1, D].
    """
    rank = dimension if rank is None else rank
    if not 1 <= rank <= dimension:
        raise InputError(f"rank is {rank}; it must be in [1, {dimension}]")
    return rank
