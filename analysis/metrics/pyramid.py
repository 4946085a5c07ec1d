"""Patches of the levels of a Laplacian pyramid (Burt & Adelson 1983).

With G a Gaussian blur by the binomial (1, 4, 6, 4, 1)/16 in each axis, edges mirrored,

    g_0 = image,  g_(s+1) = every second pixel of G g_s,
    level s = g_s - up(g_(s+1)),   last level = g_S,

where up puts zeros between the pixels and blurs with 4 G.  Level s holds what is finer
than 2^(s+1) pixels and coarser than 2^s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from configs.errors import InputError, require

__all__ = ["PatchRows", "Scaling", "count_levels", "fit_scaling", "laplacian_pyramid"]

_KERNEL = np.array([1, 4, 6, 4, 1], np.float32) / 16
_IMAGES_AT_ONCE = 64


class Scaling(NamedTuple):
    """Mean and standard deviation of each channel of the patches, (C,)."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def count_levels(height: int, width: int, smallest: int) -> int:
    """Return how often images are halved, plus one.

    They are while both sides are even and stay at least `smallest`.

    Args:
        height: Pixels.
        width: Pixels.
        smallest: Least side of the last level, pixels.

    >>> count_levels(64, 64, 16)
    3
    """
    levels = 1
    while height % 2 == width % 2 == 0 and min(height, width) >= 2 * smallest:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels


def laplacian_pyramid(
    images: NDArray[np.floating], num_levels: int
) -> list[NDArray[np.floating]]:
    """Return the levels of a pyramid, the finest first.

    Args:
        images: (n, H, W, C); H and W divisible by 2^(num_levels - 1).
        num_levels: At least 1.

    Returns:
        Level s has the shape (n, H / 2^s, W / 2^s, C).
    """
    levels = []
    for _ in range(num_levels - 1):
        smaller = _blur(images)[:, ::2, ::2]
        spread = np.zeros_like(images)
        spread[:, ::2, ::2] = smaller
        levels.append(images - 4 * _blur(spread))
        images = smaller
    return [*levels, images]


@dataclass(frozen=True)
class PatchRows:
    """Random patches of one pyramid level as rows, computed block by block.

    Positions are a function of the seed, the level and the image's index alone.

    Args:
        images: (n, H, W, C), uint8 pixels or floats in data units.
        level: Which level, from 0, the finest.
        num_levels: Of the pyramid.
        patches_per_image: P.
        patch_size: Side in pixels; cut to that of the level.
        seed: Of the positions.
        scaling: Subtracted and divided by; None leaves the patches as they are.
    """

    images: NDArray[np.generic]
    level: int
    num_levels: int
    patches_per_image: int
    patch_size: int
    seed: int
    scaling: Scaling | None = None

    @property
    def count(self) -> int:
        """Number of patches."""
        return len(self.images) * self.patches_per_image

    @property
    def side(self) -> int:
        """Side of a patch in pixels."""
        return min(self.patch_size, *(n >> self.level for n in self.images.shape[1:3]))

    @property
    def width(self) -> int:
        """Numbers in a patch, all of a channel side by side."""
        return self.images.shape[3] * self.side**2

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield the patches, (b, width) float32.

        Raises:
            InputError: If a pixel is not finite.
        """
        rng = np.random.default_rng([self.seed, self.level])
        for start in range(0, len(self.images), _IMAGES_AT_ONCE):
            part = _data_units(self.images[start : start + _IMAGES_AT_ONCE])
            if not np.isfinite(part).all():
                raise InputError(
                    f"a pixel of images {start} to {start + len(part) - 1} is not "
                    "finite"
                )
            levels = laplacian_pyramid(part, self.num_levels)
            patches = self._patches(levels[self.level], rng)
            if self.scaling is not None:
                mean, deviation = (v[:, None, None] for v in self.scaling)
                patches = (patches - mean) / deviation
            yield patches.reshape(-1, self.width).astype(np.float32)

    def _patches(
        self, images: NDArray[np.floating], rng: np.random.Generator
    ) -> NDArray[np.floating]:
        """Return (b, P, C, side, side)."""
        windows = sliding_window_view(images, (self.side, self.side), axis=(1, 2))
        shape = (_IMAGES_AT_ONCE, self.patches_per_image)
        rows, columns = (
            rng.integers(0, size, shape)[: len(images)] for size in windows.shape[1:3]
        )
        return windows[np.arange(len(images))[:, None], rows, columns]


def fit_scaling(rows: PatchRows) -> Scaling:
    """Return mean and deviation of each channel over all patches of a set.

    Args:
        rows: Patches that are not scaled yet.

    Returns:
        A channel that never changes has the deviation 1.
    """
    channels = rows.images.shape[3]
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for block in rows.blocks():
        values = block.reshape(len(block), channels, -1).astype(np.float64)
        count += values.shape[0] * values.shape[2]
        total += values.sum(axis=(0, 2))
        squares += (values**2).sum(axis=(0, 2))
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return Scaling(mean, np.where(deviation > 0, deviation, 1.0))


def check_images(
    images: NDArray[np.generic], name: str, patches_per_image: int, patch_size: int
) -> None:
    """Say what is wrong with a set of images.

    Raises:
        InputError: Unless they are (n, H, W, C), n >= 1, uint8 or floats, and a patch
            has at least one pixel.
    """
    require(patches_per_image >= 1, "patches_per_image", patches_per_image, ">= 1")
    require(patch_size >= 1, "patch_size", patch_size, ">= 1")
    is_number = images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)
    if images.ndim != 4 or not images.size or not is_number:
        raise InputError(
            f"{name} have shape {images.shape} and dtype {images.dtype}; give images "
            "(n, H, W, C), uint8 or floats, or vectors (n, D)"
        )


def _data_units(images: NDArray[np.generic]) -> NDArray[np.float32]:
    values = images.astype(np.float32)
    return values / 127.5 - 1 if images.dtype == np.uint8 else values


def _blur(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return images blurred by the binomial in both axes, edges mirrored."""
    for axis in (1, 2):
        size = images.shape[axis]
        padding = [(0, 0)] * images.ndim
        padding[axis] = (2, 2)
        padded = np.pad(images, padding, mode="reflect" if size > 2 else "symmetric")
        blurred = np.zeros_like(images)
        for i, weight in enumerate(_KERNEL):
            blurred += weight * np.take(padded, range(i, i + size), axis=axis)
        images = blurred
    return images
