"""The rows of the log: losses of training, and of held-out images on fixed noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import InputError
from configs.schema import ExperimentConfig
from diffusion.data import Dataset, Split
from diffusion.preconditioning import Preconditioning
from diffusion.training.feeding import examples_of
from diffusion.training.log import finite_or_none
from diffusion.training.mesh import Placement
from diffusion.training.state import TrainState
from diffusion.training.step import Problem, build_evaluation

__all__ = ["Evaluator"]


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
        """Pad the images that are evaluated to whole blocks."""
        self.edges = config.training.sigma_bin_edges
        self._evaluate = build_evaluation(config, problem)
        size, limit = config.training.batch_size, config.training.evaluation_images
        held_out = _first(split.held_out, limit)
        # As many training images, so that both losses see the same noise.
        training = _first(split.training, len(held_out.images) or limit)
        self._preconditioning, self._place = preconditioning, place
        self._limit = config.training.max_skipped_steps
        self._blocks = {
            "training": _padded_blocks(training, size),
            "held_out": _padded_blocks(held_out, size),
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
        ``ema_loss`` holds training and held-out loss of the averaged parameters.

        Raises:
            InputError: See `check_finite`.
        """
        self.check_finite(state)
        sums = jax.tree.map(np.asarray, state.sums)
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
        }
        for name, blocks in self._blocks.items():
            total = np.zeros(len(self.edges) + 1)
            count = np.zeros(len(self.edges) + 1)
            for index, (data, valid) in enumerate(blocks):
                batch = examples_of(data, self._preconditioning, self._place)
                valid = self._place.put(valid, self._place.replicated)
                a, b = self._evaluate(state.ema_params, batch, valid, jnp.int32(index))
                total, count = total + np.asarray(a), count + np.asarray(b)
            overall = float(total.sum() / count.sum()) if blocks else float("nan")
            row[f"ema_loss_{name}"] = finite_or_none(overall)
            row[f"ema_loss_{name}_per_bin"] = _per_bin(total, count)
        return row


def _first(data: Dataset, limit: int) -> Dataset:
    return Dataset(data.images[:limit], data.labels[:limit])


def _padded_blocks(data: Dataset, size: int) -> list[tuple[Dataset, np.ndarray]]:
    """Cut samples into blocks of one size, the last one padded, with masks."""
    blocks = []
    for start in range(0, len(data.images), size):
        images = data.images[start : start + size]
        missing = size - len(images)
        images = np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))
        labels = np.pad(data.labels[start : start + size], (0, missing))
        valid = np.arange(size) < size - missing
        blocks.append((Dataset(images, labels), valid))
    return blocks


def _per_bin(total: np.ndarray, count: np.ndarray) -> list[float | None]:
    return [
        finite_or_none(t / c) if c else None
        for t, c in zip(total.tolist(), count.tolist(), strict=True)
    ]
