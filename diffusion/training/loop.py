"""Training, from top to bottom.

Configuration -> data -> network -> state -> restore if there is anything -> step ->
log -> checkpoint.  The same call again resumes; on a finished workdir it says so.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import InputError
from configs.schema import ExperimentConfig
from diffusion.closed_form import fit_gaussian, load_gaussian, save_gaussian
from diffusion.data import Batches, Dataset, Split, check_labels, split_of
from diffusion.preconditioning import EDMPreconditioning, Preconditioning
from diffusion.progress import Progress
from diffusion.training.building import (
    build_problem,
    fit_preconditioning,
    load_preconditioning,
    num_classes,
)
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.log import MetricsLog, finite_or_none
from diffusion.training.record import Record, claim_workdir
from diffusion.training.state import LossSums, TrainState, create_state, init_params
from diffusion.training.step import (
    Problem,
    build_evaluation,
    build_optimizer,
    build_step,
    examples_of,
)

__all__ = ["train"]


def train(config: ExperimentConfig, workdir: str | Path) -> None:
    """Train a denoising score network; the same call again resumes.

    Writes ``config.json``, ``gaussian.npz`` (the Gaussian of the training images),
    ``preconditioning.npz`` (the Gaussian that the network builds on, if it does),
    ``metrics.jsonl`` and ``checkpoints/`` into the workdir.  Training n steps, stopping
    and training m more is bitwise the same as training n + m steps.

    Args:
        config: The experiment.
        workdir: The run's folder; made if it is missing.

    Raises:
        InputError: If the configuration cannot run, contradicts the run that the
            workdir holds, or the loss stops being finite.
        OSError: If something cannot be written.
    """
    Run(config, Path(workdir)).execute()


class Run:
    """One call of `train`: everything that is fixed before the first step."""

    def __init__(self, config: ExperimentConfig, workdir: Path) -> None:
        """Load the data, build the network and claim the workdir."""
        self.config, self.workdir = config, workdir
        self.split = split_of(config.data)
        images = self.split.training.images
        if config.data.horizontal_flip and images.ndim != 4:
            raise InputError(
                f"data.horizontal_flip needs images (N, H, W, C); {config.data.name} "
                f"has samples of shape {images.shape[1:]}"
            )
        check_labels(self.split, num_classes(config))
        self.problem = build_problem(config, images.shape[1:])
        sigma_data = config.preconditioning.sigma_data or self.split.sigma_data
        self.record = _record(config, self.split, sigma_data)
        if config.preconditioning.name == "edm":
            EDMPreconditioning(sigma_data)  # refuses equal images before a file is made
        claim_workdir(workdir, self.record)
        self.optimizer = build_optimizer(config.optim, config.training.batch_size)

    def execute(self) -> None:
        """Restore, train and save; see `train`."""
        self._write_gaussian()
        fit_preconditioning(self.config, self.split, self.workdir)
        training = self.config.training
        checkpoints = Checkpoints(self.workdir, training.checkpoint_every_steps)
        try:
            state, seconds = self._restore_or_start(checkpoints)
            if int(state.step) >= training.num_steps:
                print(
                    f"{self.workdir} is trained: {int(state.step)} steps. To train "
                    "further raise --training.num-steps; to start afresh delete "
                    f"{self.workdir}.",
                    flush=True,
                )
                return
            self._train(state, seconds, checkpoints)
        finally:
            checkpoints.close()

    def _write_gaussian(self) -> None:
        path = self.workdir / "gaussian.npz"
        images = self.split.training.images
        if path.exists():
            load_gaussian(
                path, event_shape=images.shape[1:], data_digest=self.split.digest
            )
            return
        save_gaussian(
            path,
            fit_gaussian(images),
            num_images=len(images),
            data_digest=self.split.digest,
        )

    def _restore_or_start(self, checkpoints: Checkpoints) -> tuple[TrainState, float]:
        """Return the newest state and the seconds spent on it, or a fresh one."""
        num_bins = len(self.config.training.sigma_bin_edges) + 1

        def initial() -> TrainState:
            key = jax.random.fold_in(jax.random.key(self.config.seed), 2**32 - 1)
            params = init_params(self.config, self.problem.network, key)
            return create_state(params, self.optimizer, num_bins)

        found = checkpoints.restore(jax.eval_shape(initial)._asdict())
        if found is None:
            state = initial()
            checkpoints.save(state, {"seconds": 0.0})
            return state, 0.0
        items, meta = found
        print(f"resuming {self.workdir} at step {int(items['step'])}", flush=True)
        return TrainState(**items), float(meta["seconds"])

    def _train(
        self, state: TrainState, seconds: float, checkpoints: Checkpoints
    ) -> None:
        training = self.config.training
        preconditioning = load_preconditioning(self.record, self.workdir)
        data = self.split.training
        examples = examples_of(data, preconditioning)
        batches = Batches(len(data.images), training.batch_size, self.config.seed)
        step_fn = build_step(self.config, self.problem, self.optimizer)
        evaluator = Evaluator(self.config, self.problem, preconditioning, self.split)
        first = int(state.step)
        log = MetricsLog(self.workdir, first, training.log_every_steps)
        progress = Progress(training.num_steps, done=first, label="training")
        started = saved = time.monotonic()
        for step in range(first + 1, training.num_steps + 1):
            state = step_fn(state, examples, jnp.asarray(batches.indices(step - 1)))
            note = ""
            regular = step % training.log_every_steps == 0
            if regular or step == training.num_steps:
                row = evaluator.row(state)
                row["seconds"] = seconds + time.monotonic() - started
                log.write(row)
                note = _note(row)
            if regular:
                state = state._replace(sums=LossSums.zeros(len(state.sums.loss)))
            progress.advance(note=note)
            now = time.monotonic()
            if (
                step % training.checkpoint_every_steps == 0
                or step == training.num_steps
                or now - saved >= training.checkpoint_every_seconds
            ):
                checkpoints.save(state, {"seconds": seconds + now - started})
                saved = now
        checkpoints.wait()
        progress.close()


class Evaluator:
    """Losses on fixed noise, of training and held-out images alike."""

    def __init__(
        self,
        config: ExperimentConfig,
        problem: Problem,
        preconditioning: Preconditioning,
        split: Split,
    ) -> None:
        """Pad the images that are evaluated to whole blocks."""
        self.edges = config.training.sigma_bin_edges
        self._evaluate = build_evaluation(config, problem)
        size, limit = config.training.batch_size, config.training.evaluation_images
        held_out = _first(split.held_out, limit)
        # As many training images, so that both losses see the same noise.
        training = _first(split.training, len(held_out.images) or limit)
        self._preconditioning = preconditioning
        self._blocks = {
            "training": _padded_blocks(training, size),
            "held_out": _padded_blocks(held_out, size),
        }

    def row(self, state: TrainState) -> dict[str, Any]:
        """Return the log's row for a state.

        ``loss`` is the mean since the last row, with the parameters of each moment;
        ``ema_loss`` holds training and held-out loss of the averaged parameters.

        Raises:
            InputError: If the training loss is not finite.
        """
        sums = jax.device_get(state.sums)
        step = int(state.step)
        loss = float(sums.loss.sum() / sums.count.sum())
        if not np.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {step}; lower optim.learning_rate or set "
                "optim.clip_norm, and resume from the last checkpoint"
            )
        row: dict[str, Any] = {
            "step": step,
            "seconds": 0.0,
            "loss": loss,
            "loss_per_bin": _per_bin(sums.loss, sums.count),
            "gradient_norm": finite_or_none(float(sums.gradient_norm / sums.steps)),
            "sigma_bin_edges": list(self.edges),
        }
        for name, blocks in self._blocks.items():
            total = np.zeros(len(self.edges) + 1)
            count = np.zeros(len(self.edges) + 1)
            for index, (data, valid) in enumerate(blocks):
                batch = examples_of(data, self._preconditioning)
                a, b = self._evaluate(state.ema_params, batch, valid, jnp.int32(index))
                total, count = total + np.asarray(a), count + np.asarray(b)
            overall = float(total.sum() / count.sum()) if blocks else float("nan")
            row[f"ema_loss_{name}"] = finite_or_none(overall)
            row[f"ema_loss_{name}_per_bin"] = _per_bin(total, count)
        return row


def _first(data: Dataset, limit: int) -> Dataset:
    return Dataset(data.images[:limit], data.labels[:limit])


def _padded_blocks(data: Dataset, size: int) -> list[tuple[Dataset, jax.Array]]:
    """Cut samples into blocks of one size, the last one padded, with masks."""
    blocks = []
    for start in range(0, len(data.images), size):
        images = data.images[start : start + size]
        missing = size - len(images)
        images = np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))
        labels = np.pad(data.labels[start : start + size], (0, missing))
        valid = jnp.asarray(np.arange(size) < size - missing)
        blocks.append((Dataset(images, labels), valid))
    return blocks


def _per_bin(total: np.ndarray, count: np.ndarray) -> list[float | None]:
    return [
        finite_or_none(t / c) if c else None
        for t, c in zip(total.tolist(), count.tolist(), strict=True)
    ]


def _note(row: dict[str, Any]) -> str:
    held_out = row["ema_loss_held_out"]
    text = "none" if held_out is None else f"{held_out:.4f}"
    return f"loss {row['loss']:.4f}  held-out {text}"


def _record(config: ExperimentConfig, split: Split, sigma_data: float) -> Record:
    return Record(
        config=config,
        event_shape=split.training.images.shape[1:],
        sigma_data=sigma_data,
        data_digest=split.digest,
        num_training=len(split.training.images),
        num_held_out=len(split.held_out.images),
    )
