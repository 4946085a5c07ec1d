"""Images as flat float32 rows on the device, block by block.

Blocks have one shape, so that what is compiled for one serves all; the last is padded
and the padding has weight 0.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form.checks import check_finite, images_of

__all__ = ["Block", "ImageRows"]

_BLOCK_ROWS = 1024


class Block(NamedTuple):
    """Some rows of a data set.

    Attributes:
        rows: (n, D) data units; rows beyond `count` are padding.
        count: Number of rows that are images.
    """

    rows: Array
    count: int


class ImageRows:
    """A data set in memory as rows.

    Args:
        images: (N, *event), uint8 pixels or floats in data units.

    Raises:
        InputError: If there is no image, the dtype is neither uint8 nor float, or a
            pixel is not finite.
    """

    def __init__(self, images: ArrayLike) -> None:
        """See the class."""
        array = images_of(images)
        self.event = array.shape[1:]
        self.dimension = math.prod(self.event)
        self._rows = array.reshape(len(array), -1)
        if array.dtype != np.uint8:
            for start in range(0, len(array), _BLOCK_ROWS):
                check_finite(self._rows[start : start + _BLOCK_ROWS], start)

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self._rows)

    def blocks(self, indices: NDArray[np.integer] | None = None) -> Iterator[Block]:
        """Yield rows in blocks of one shape.

        Args:
            indices: Which rows, (n,); None for all in order.
        """
        count = len(self) if indices is None else len(indices)
        # Fewer shapes than sizes: powers of two up to the largest block.
        size = min(_BLOCK_ROWS, 1 << max(0, count - 1).bit_length())
        for start in range(0, count, size):
            stop = min(start + size, count)
            chosen = slice(start, stop) if indices is None else indices[start:stop]
            part = self._rows[chosen]
            padding = ((0, size - len(part)), (0, 0))
            yield Block(_data_units(jnp.asarray(np.pad(part, padding))), len(part))

    def row(self, index: int) -> Array:
        """Return one image as a row, (D,), data units."""
        return _data_units(jnp.asarray(self._rows[index]))

    def shuffled(self, order: NDArray[np.integer]) -> "ImageRows":
        """Return the data set of some of its images, in another order."""
        if not len(order):
            raise InputError("no images were chosen; choose at least one")
        return ImageRows(self._rows[order].reshape(-1, *self.event))


@jax.jit
def _data_units(rows: Array) -> Array:
    if rows.dtype == jnp.uint8:
        return rows.astype(jnp.float32) / 127.5 - 1
    return rows
