"""How the samples of each step reach the compiled step.

The step takes arrays of samples and, for each of its optimizer steps, which of them to
use: ``step(state, examples, indices)``.  A set that fits lies on the devices once and
for all, and only indices travel; of a larger one the samples of a step come themselves,
and no indices.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax import Array

from configs.errors import InputError
from configs.schema import ExperimentConfig
from diffusion.data.batches import Batches
from diffusion.data.builtin import Dataset
from diffusion.data.streaming import stream_batches
from diffusion.preconditioning import Preconditioning
from diffusion.training.mesh import Placement

__all__ = ["Examples", "Feed", "choose_placement", "examples_of"]


class Examples(NamedTuple):
    """What the compiled functions get as arrays, never as constants.

    Attributes:
        images: (N, *event), uint8 pixels or floats in data units.
        labels: (N,) classes.
        preconditioning: A pytree; one with a Gaussian holds its basis.
    """

    images: Array
    labels: Array
    preconditioning: Preconditioning


def examples_of(
    data: Dataset, preconditioning: Preconditioning, place: Placement
) -> Examples:
    """Put samples on every device."""
    labels = np.asarray(data.labels, np.int32)
    return Examples(
        place.put(data.images, place.replicated),
        place.put(labels, place.replicated),
        preconditioning,
    )


def choose_placement(config: ExperimentConfig, num_bytes: int, num_devices: int) -> str:
    """Return replicated, sharded or streamed: the first that fits the budget.

    Args:
        config: The experiment; its ``data.placement`` wins unless it is auto.
        num_bytes: Size of the training images.
        num_devices: Devices of all hosts.
    """
    if config.data.placement != "auto":
        return config.data.placement
    budget = config.data.device_budget_gib * 2**30
    if num_bytes <= budget:
        return "replicated"
    return "sharded" if num_bytes <= budget * num_devices else "streamed"


class Feed:
    """The samples of all steps of a run.

    Args:
        config: The experiment.
        data: The training set.
        preconditioning: Travels with the samples.
        place: Where arrays live.
        first_step: Steps taken so far.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        data: Dataset,
        preconditioning: Preconditioning,
        place: Placement,
        first_step: int,
    ) -> None:
        """Put the set on the devices, or start to stream it."""
        training = config.training
        self._unit, self._size = training.steps_per_dispatch, training.batch_size
        self._batches = Batches(len(data.images), self._size, config.seed)
        self._place, self._preconditioning = place, preconditioning
        devices = place.mesh.size
        self.placement = choose_placement(config, data.images.nbytes, devices)
        self._stream: Iterator[Dataset] | None = None
        if self.placement == "streamed":
            if self._unit > 1:
                raise InputError(
                    f"training.steps_per_dispatch is {self._unit}, but the images are "
                    "streamed, which goes one step at a time; set it to 1"
                )
            rows = place.local_rows(self._size)
            self._stream = stream_batches(
                data, self._batches, first_step, training.num_steps, rows
            )
            return
        if self.placement == "sharded":
            self._examples = _sharded(data, preconditioning, place)
        else:
            self._examples = examples_of(data, preconditioning, place)

    def close(self) -> None:
        """End the threads that read ahead."""
        self._stream = None

    def at(self, step: int) -> tuple[Examples, Array | None]:
        """Return samples and (n, B) indices of the n steps that follow `step`."""
        if self._stream is not None:
            part = next(self._stream)
            images = self._place.put_local(part.images, self._size)
            labels = np.asarray(part.labels, np.int32)
            labels = self._place.put_local(labels, self._size)
            return Examples(images, labels, self._preconditioning), None
        indices = np.stack([self._batches.indices(step + i) for i in range(self._unit)])
        return self._examples, self._place.put(indices, self._place.steps)


def _sharded(
    data: Dataset, preconditioning: Preconditioning, place: Placement
) -> Examples:
    """Divide samples over the devices; rows that fill up the last are never used."""
    count, devices = len(data.images), place.mesh.size
    shape = (-(-count // devices) * devices, *data.images.shape[1:])

    def rows(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        part = np.zeros((stop - start, *shape[1:]), data.images.dtype)
        found = data.images[start : min(stop, count)]
        part[: len(found)] = found
        return part

    images = place.from_callback(shape, place.batch, rows)
    labels = place.put(np.asarray(data.labels, np.int32), place.replicated)
    return Examples(images, labels, preconditioning)
