"""The rows of the log: losses of training, and of held-out images on fixed noise."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from configs.errors import InputError
from configs.schema import ExperimentConfig
from diffusion.data import Dataset, Split
from diffusion.preconditioning import Preconditioning
from diffusion.training.feeding import Examples
from diffusion.training.log import finite_or_none
from diffusion.training.mesh import Placement
from diffusion.training.noisy_batch import Problem
from diffusion.training.state import TrainState
from diffusion.training.step import Fixed, build_evaluation

__all__ = ["Evaluator"]

# The order of noise levels has a stream of the seed, as an epoch's order has one.
_STREAM = 2**32 - 1


class Evaluator:
    """Losses on fixed noise, of training and held-out images alike."""

    def __init__(
        self,
        config: ExperimentConfig,
        problem: Problem,
        preconditioning: Preconditioning,
        split: Split,
        place: Placement,
    ) -> None:
        """Put the images that are evaluated on the devices, in blocks.

        A block is as large as the part of a batch that training computes at once, and
        divided over the devices alike.
        """
        training = config.training
        self.edges = training.sigma_bin_edges
        self._evaluate = build_evaluation(config, problem, place)
        limit = training.evaluation_images
        held_out = _first(split.held_out, limit)
        # As many training images, so that both losses see the same noise.
        alike = _first(split.training, len(held_out.images) or limit)
        self._limit = training.max_skipped_steps
        augmentation = problem.augmentation
        self._families = () if augmentation is None else augmentation.families
        total = max(len(held_out.images), len(alike.images))
        levels = ((_order(config.seed, total) + 0.5) / total).astype(training.dtype)
        size = training.batch_size // training.accumulation
        self._blocks = {
            name: list(_blocks(data, levels, size, preconditioning, place))
            for name, data in (("training", alike), ("held_out", held_out))
        }

    def check_finite(self, state: TrainState) -> None:
        """Refuse to go on when too many steps in a row had to be skipped.

        Raises:
            InputError: If so; the parameters are still those of the last good step.
        """
        in_row = int(state.skipped.in_row)
        if in_row > self._limit:
            raise InputError(
                f"the gradient was not finite in {in_row} steps in a row, up to step "
                f"{int(state.step)}; the last checkpoint is from before them: train "
                "again in another --workdir with a lower --optim.learning-rate or with "
                "--optim.clip-norm"
            )

    def row(self, state: TrainState) -> dict[str, Any]:
        """Return the log's row for a state.

        ``loss`` is the mean since the last row, with the parameters of each moment;
        ``ema_loss`` holds training and held-out loss of the averaged parameters, on
        images without augmentation.

        Raises:
            InputError: See `check_finite`.
        """
        self.check_finite(state)
        sums = jax.tree.map(np.asarray, state.sums)
        per_family = {}
        if self._families:
            found = _per_bin(sums.loss.sum(axis=1), sums.count.sum(axis=1))
            per_family = {
                "loss_per_transform": dict(zip(self._families, found, strict=True))
            }
            whole = (sums.loss.sum(axis=0), sums.count.sum(axis=0))
            sums = sums._replace(loss=whole[0], count=whole[1])
        count = max(float(sums.count.sum()), 1.0)
        row: dict[str, Any] = {
            "step": int(state.step),
            "loss": finite_or_none(float(sums.loss.sum()) / count),
            "loss_per_bin": _per_bin(sums.loss, sums.count),
            "gradient_norm": finite_or_none(
                float(sums.gradient_norm) / max(float(sums.steps), 1.0)
            ),
            "skipped_steps": int(state.skipped.total),
            "sigma_bin_edges": list(self.edges),
            **per_family,
        }
        for name, blocks in self._blocks.items():
            parts = [self._evaluate(state.ema_params, *block) for block in blocks]
            total = np.zeros(len(self.edges) + 1)
            count = np.zeros(len(self.edges) + 1)
            for part_total, part_count in parts:
                total += np.asarray(part_total)
                count += np.asarray(part_count)
            overall = float(total.sum() / count.sum()) if blocks else float("nan")
            row[f"ema_loss_{name}"] = finite_or_none(overall)
            row[f"ema_loss_{name}_per_bin"] = _per_bin(total, count)
        return row


def _first(data: Dataset, limit: int) -> Dataset:
    return Dataset(data.images[:limit], data.labels[:limit])


def _order(seed: int, count: int) -> np.ndarray:
    """Return the ranks of the images' noise levels, a fixed permutation."""
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM])).permutation(count)


def _blocks(
    data: Dataset,
    levels: np.ndarray,
    size: int,
    preconditioning: Preconditioning,
    place: Placement,
) -> Iterator[tuple[Examples, Fixed]]:
    """Cut samples into blocks of one size, the last one padded, on the devices."""

    def padded(values: np.ndarray, start: int) -> np.ndarray:
        part = values[start : start + size]
        return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))

    count = len(data.images)
    levels, classes = levels[:count], np.asarray(data.labels, np.int32)
    fixed = (np.arange(count, dtype=np.int32), levels, np.ones_like(levels))
    for start in range(0, count, size):
        number, probability, valid = (padded(values, start) for values in fixed)
        # A level in the middle for padding: its loss is finite, and counted for nought.
        probability = np.where(valid == 1, probability, probability.dtype.type(0.5))
        images, labels = padded(data.images, start), padded(classes, start)
        arrays = (images, labels, number, probability, valid)
        images, labels, *rest = (place.put(values, place.batch) for values in arrays)
        yield Examples(images, labels, preconditioning), Fixed(*rest)


def _per_bin(total: np.ndarray, count: np.ndarray) -> list[float | None]:
    return [
        finite_or_none(t / c) if c else None
        for t, c in zip(total.tolist(), count.tolist(), strict=True)
    ]
