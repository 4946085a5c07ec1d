"""Batches of sets too large for the devices, read ahead by grain.

Which samples a step has is decided by `Batches` alone, as for sets that lie on the
devices: the order, and where a run goes on after a stop, are the same.
"""

from collections.abc import Iterator

import numpy as np

from configs.errors import InputError
from diffusion.data.batches import Batches
from diffusion.data.builtin import Dataset

__all__ = ["stream_batches"]

_THREADS = 2
_AHEAD = 4


def stream_batches(
    data: Dataset, batches: Batches, first_step: int, num_steps: int, rows: slice
) -> Iterator[Dataset]:
    """Yield the batches of the steps from `first_step` on, read in the background.

    Args:
        data: The training set; memory maps are read as they are needed.
        batches: Which samples each step has.
        first_step: Steps taken so far.
        num_steps: Steps in all.
        rows: The part of each batch that this host holds.

    Returns:
        An iterator over the images and labels of those rows.

    Raises:
        InputError: If grain is not installed.
    """
    try:
        import grain
    except ImportError:
        raise InputError(
            "streaming needs grain; install it with pip install 'scorelab[streaming]', "
            "or choose another data.placement"
        ) from None

    def load(step: int) -> Dataset:
        chosen = batches.indices(step)[rows]
        order = np.argsort(chosen)  # neighbours on the disk one after the other
        images = np.empty((len(chosen), *data.images.shape[1:]), data.images.dtype)
        images[order] = data.images[chosen[order]]
        return Dataset(images, data.labels[chosen])

    steps = grain.MapDataset.range(first_step, num_steps)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    return iter(steps.map(load).to_iter_dataset(options))
