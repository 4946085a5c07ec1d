"""Images of one shape as a stream of batches, wherever they lie.

A source knows its size beforehand and holds no pixels: every pass opens the files anew
and closes them when the iterator ends, is closed or is dropped.
"""

import contextlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np

from configs.errors import InputError
from diffusion.data.builtin import Dataset

__all__ = ["ImageSource"]

_READ_BYTES = 2**25


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Labelled images that can be read any number of times, in a fixed order.

    Attributes:
        name: What messages call it: a path or the name of a preset.
        num_images: N.
        event_shape: Shape of one image, (H, W, C) for image files.
        dtype: uint8 for pixels, a float type for samples in data units.
        labels: (N,) int64 classes, or None.
        blocks: Begins a pass; given a number B, yields (B, *event) images in order, the
            last block maybe shorter.
        version: Changes with the content, as far as can be told without reading it.
    """

    name: str
    num_images: int
    event_shape: tuple[int, ...]
    dtype: np.dtype
    labels: np.ndarray | None = field(repr=False)
    blocks: Callable[[int], Generator[np.ndarray, None, None]] = field(repr=False)
    version: str = field(default="", repr=False)

    @property
    def has_labels(self) -> bool:
        """Whether the images have classes."""
        return self.labels is not None

    def batches(self, batch_size: int = 1024) -> Generator[Dataset, None, None]:
        """Begin a pass over all images.

        No more than the batch in the making is held in memory.  A source too damaged
        to finish a pass is refused when the pass comes to the damage.

        Args:
            batch_size: Images per batch, B; the last may hold fewer.

        Returns:
            Iterator of images (B, *event) with labels (B,) int64, -1 without classes.

        Raises:
            InputError: If batch_size is not positive; while iterating, if the source
                cannot be read.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        return self._labelled(batch_size)

    def read(self, max_images: int | None = None) -> Dataset:
        """Return the images in memory.

        Args:
            max_images: Read the first so many only; None for all.

        Returns:
            Images (N, *event) and labels (N,) int64, -1 without classes.

        Raises:
            InputError: If max_images is not positive or the source cannot be read.
        """
        if max_images is not None and max_images < 1:
            raise InputError(f"max_images is {max_images}; it must be at least 1")
        count = min(self.num_images, max_images or self.num_images)
        images = np.empty((count, *self.event_shape), self.dtype)
        labels = np.empty(count, np.int64)
        image_bytes = self.dtype.itemsize * math.prod(self.event_shape)
        batch_size = min(count, max(1, _READ_BYTES // image_bytes))
        start = 0
        with contextlib.closing(self.batches(batch_size)) as batches:
            for batch in batches:
                part = slice(start, start + len(batch.images))
                start, available = part.stop, count - start
                images[part] = batch.images[:available]
                labels[part] = batch.labels[:available]
                if start >= count:
                    break
        return Dataset(images, labels)

    def _labelled(self, batch_size: int) -> Generator[Dataset, None, None]:
        start = 0
        with contextlib.closing(self.blocks(batch_size)) as blocks:
            for images in blocks:
                stop = start + len(images)
                if self.labels is None:
                    labels = np.full(len(images), -1, np.int64)
                else:
                    labels = self.labels[start:stop].copy()
                yield Dataset(images, labels)
                start = stop
