"""Batches of clean images to be noised, of one size, whatever their number.

Draw i has an image and a key that depend on the key and on i alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from diffusion.data.batches import to_data_units

__all__ = ["ImageDraws", "draw_images"]


class ImageDraws(NamedTuple):
    """A batch; draws beyond the wanted number repeat the last image.

    Attributes:
        numbers: (B,) which images they are.
        clean: (B, *event), data units.
        keys: (B,) for their noise.
        counts: (B,) whether a draw counts.
    """

    numbers: NDArray[np.intp]
    clean: Array
    keys: Array
    counts: NDArray[np.bool_]


def draw_images(
    images: NDArray, key: Array, count: int, batch_size: int
) -> Iterator[ImageDraws]:
    """Draw images with replacement, batch by batch.

    Args:
        images: (M, *event), uint8 pixels or data units.
        key: A `jax.random.key`.
        count: Draws that are wanted.
        batch_size: B.

    Yields:
        Batches; the last one is filled up, so that one program serves all.
    """
    chosen = np.asarray(jax.random.randint(key, (count,), 0, len(images)), np.intp)
    for first in range(0, count, batch_size):
        index = np.arange(first, first + batch_size)
        numbers = chosen[np.minimum(index, count - 1)]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))
        yield ImageDraws(numbers, to_data_units(images[numbers]), keys, index < count)
