"""Batches as a pure function of (seed, step).

The samples of step k are the positions k B, ..., k B + B - 1 of an endless stream: one
random permutation of the data set after another, so every sample occurs exactly once in
each epoch and no remainder is dropped.  Resuming needs the step and nothing else, and
the order does not depend on the number of devices, hosts or workers.
"""

import collections

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError

__all__ = ["Batches", "to_data_units"]


def to_data_units(images: ArrayLike) -> Array:
    """Return uint8 pixels as x / 127.5 - 1 in float32; floats stay as they are."""
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images


class Batches:
    """Indices of the training samples of each step.

    Args:
        num_samples: Size of the data set, N.
        batch_size: Samples per step, B; may exceed N.
        seed: Seed of the permutations.

    Raises:
        InputError: If N or B is not positive.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        """See the class."""
        if num_samples < 1 or batch_size < 1:
            raise InputError(
                f"num_samples is {num_samples} and batch_size {batch_size}; "
                "both must be at least 1"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self._permutations: collections.OrderedDict[int, np.ndarray] = (
            collections.OrderedDict()
        )

    def indices(self, step: int) -> np.ndarray:
        """Return the indices of one step's samples, (B,) int32."""
        start = step * self.batch_size
        stop = start + self.batch_size
        first, last = start // self.num_samples, (stop - 1) // self.num_samples
        stream = np.concatenate([self._epoch(e) for e in range(first, last + 1)])
        offset = start - first * self.num_samples
        return stream[offset : offset + self.batch_size]

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return one epoch's permutation; the last two are kept."""
        if epoch not in self._permutations:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            order = generator.permutation(self.num_samples).astype(np.int32)
            self._permutations[epoch] = order
            while len(self._permutations) > 2:
                self._permutations.popitem(last=False)
        return self._permutations[epoch]
