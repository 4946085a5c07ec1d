"""The nearest images of a set, by exact Euclidean distance.

    d(q, r) = |q - r|,   both flattened, in data units.

Candidates come from |q|^2 + |r|^2 - 2 q.r, one matrix product per block, which loses
the digits of small distances; differences then put the candidates in order.
`EmpiricalDenoiser.nearest` does the same on a device, in the dtype of its points, with
all of them in its memory.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.data import to_data_units

__all__ = ["Neighbours", "as_rows", "check_images", "nearest_neighbours"]

# Candidates beyond those asked for, which differences then put in order.
_SPARE = 16
_ROWS = 1024


class Neighbours(NamedTuple):
    """The nearest references of each query, nearest first.

    Attributes:
        distances: (n, count) float64 Euclidean distances, data units, ascending.
        indices: (n, count) int64 indices of the references; the lower one first where
            two are equally near, and any of them where over 16 are.
    """

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


def nearest_neighbours(
    queries: ArrayLike,
    references: ArrayLike,
    *,
    count: int = 2,
    block_size: int = _ROWS,
) -> Neighbours:
    """Return the nearest references of each query, with exact distances.

    |q|^2 + |r|^2 - 2 q.r finds candidates, in float64, and sums of squared differences
    put them in order: references that differ in their last bits are told apart.  Beside
    its arguments it holds a few arrays of (block_size, D) and (block_size, block_size).

    Args:
        queries: (n, *event), uint8 or data units.
        references: (N, *event), uint8 or data units; memory maps too.
        count: How many, in [1, N].
        block_size: Queries, and references, handled at once.

    Returns:
        Their distances and indices, (n, count) each, nearest first.

    Raises:
        InputError: If a shape does not fit, `count` is not in [1, N], or a value is not
            finite.
    """
    queries, references = np.asarray(queries), np.asarray(references)
    check_images(queries=queries, references=references)
    if not 1 <= count <= len(references) or block_size < 1:
        raise InputError(
            f"count is {count} and block_size {block_size}; count must be in [1, "
            f"{len(references)}], the number of references, and block_size at least 1"
        )
    parts = [
        _nearest(
            as_rows(queries[start : start + block_size]),
            references,
            count,
            block_size,
        )
        for start in range(0, len(queries), block_size)
    ]
    distances, indices = zip(*parts, strict=True)
    return Neighbours(np.concatenate(distances), np.concatenate(indices))


def as_rows(images: NDArray) -> NDArray[np.float64]:
    """Return images in data units as flat rows.

    Args:
        images: (n, *event), uint8 or data units.

    Returns:
        (n, D) float64.
    """
    # Bytes by way of float32, so that an image and its float32 form are equal.
    values = to_data_units(images) if images.dtype == np.uint8 else images
    return np.asarray(values, np.float64).reshape(len(images), -1)


def check_images(**sets: NDArray) -> None:
    """Refuse sets of images that are empty, not finite or not alike.

    Args:
        **sets: (n, *event) each, by the name that an error calls them.

    Raises:
        InputError: If one is empty, neither uint8 nor of floats, or not finite, or two
            differ in the shape of an image.
    """
    shapes = {name: images.shape for name, images in sets.items()}
    events = {shape[1:] for shape in shapes.values()}
    if len(events) > 1 or any(len(s) < 2 or 0 in s for s in shapes.values()):
        raise InputError(
            f"{', '.join(f'{name} has shape {s}' for name, s in shapes.items())}; give "
            "(n, *event), with one event shape and n >= 1"
        )
    for name, images in sets.items():
        size = math.prod(images.shape[1:])
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"{name} has dtype {images.dtype}; give uint8 or floats in data units"
            )
        bad = sum(
            np.sum(~np.isfinite(images[start : start + _ROWS]).reshape(-1, size).all(1))
            for start in range(0, len(images), _ROWS)
        )
        if bad:
            raise InputError(
                f"{bad} of {len(images)} {name} are not finite; leave them out and "
                "report how many they were"
            )


def _nearest(
    rows: NDArray[np.float64], references: NDArray, count: int, block_size: int
) -> Neighbours:
    """Return the neighbours of some queries, (B, D)."""
    kept = min(len(references), count + _SPARE)
    # |q - r|^2 / 2 - |q|^2 / 2 of the best so far, in no order.
    best = np.empty((len(rows), 0))
    indices = np.empty((len(rows), 0), np.int64)
    for start in range(0, len(references), block_size):
        block = as_rows(references[start : start + block_size])
        values = np.square(block).sum(axis=1) / 2 - rows @ block.T
        places = np.broadcast_to(start + np.arange(len(block)), values.shape)
        best = np.concatenate([best, values], axis=1)
        indices = np.concatenate([indices, places], axis=1)
        if best.shape[1] > kept:
            chosen = np.argpartition(best, kept - 1, axis=1)[:, :kept]
            best = np.take_along_axis(best, chosen, axis=1)
            indices = np.take_along_axis(indices, chosen, axis=1)
    squared = np.stack(
        [
            np.square(rows - as_rows(references[column])).sum(axis=1)
            for column in indices.T
        ],
        axis=1,
    )
    order = np.lexsort((indices, squared), axis=1)[:, :count]
    return Neighbours(
        np.sqrt(np.take_along_axis(squared, order, axis=1)),
        np.take_along_axis(indices, order, axis=1),
    )
