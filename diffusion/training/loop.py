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
from configs.network_schema import SongUNetConfig
from configs.schema import ExperimentConfig
from diffusion.closed_form import fit_gaussian, load_gaussian, save_gaussian
from diffusion.data import Batches, Split, load_split
from diffusion.networks import build_network
from diffusion.noise import LogNormal
from diffusion.preconditioning import EDMPreconditioning
from diffusion.progress import Progress
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.log import MetricsLog, finite_or_none
from diffusion.training.record import Record, claim_workdir
from diffusion.training.state import LossSums, TrainState, create_state
from diffusion.training.step import (
    Problem,
    build_evaluation,
    build_optimizer,
    build_step,
)

__all__ = ["train"]


def train(config: ExperimentConfig, workdir: str | Path) -> None:
    """Train a denoising score network; the same call again resumes.

    Writes ``config.json``, ``gaussian.npz`` (the Gaussian of the training images),
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
        _refuse_unavailable(config)
        self.config, self.workdir = config, workdir
        self.split = load_split(
            config.data.name, config.data.held_out_fraction, config.data.split_seed
        )
        images = self.split.training.images
        if config.data.horizontal_flip and images.ndim != 4:
            raise InputError(
                f"data.horizontal_flip needs images (N, H, W, C); {config.data.name} "
                f"has samples of shape {images.shape[1:]}"
            )
        network = build_network(config.network, images.shape[1:])
        sigma_data = config.preconditioning.sigma_data or self.split.sigma_data
        self.problem = Problem(
            network,
            EDMPreconditioning(sigma_data),
            LogNormal(config.noise.p_mean, config.noise.p_std),
        )
        claim_workdir(workdir, _record(config, self.split, sigma_data))
        self.optimizer = build_optimizer(config.optim, config.training.batch_size)

    def execute(self) -> None:
        """Restore, train and save; see `train`."""
        self._write_gaussian()
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
            params = self.problem.network.init(key)
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
        images = jax.device_put(self.split.training.images)
        batches = Batches(len(images), training.batch_size, self.config.seed)
        step_fn = build_step(self.config, self.problem, self.optimizer)
        evaluator = Evaluator(self.config, self.problem, self.split)
        first = int(state.step)
        log = MetricsLog(self.workdir, first, training.log_every_steps)
        progress = Progress(training.num_steps, done=first, label="training")
        started = saved = time.monotonic()
        for step in range(first + 1, training.num_steps + 1):
            state = step_fn(state, images, jnp.asarray(batches.indices(step - 1)))
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
        self, config: ExperimentConfig, problem: Problem, split: Split
    ) -> None:
        """Pad the images that are evaluated to whole blocks."""
        self.edges = config.training.sigma_bin_edges
        self._evaluate = build_evaluation(config, problem)
        size, limit = config.training.batch_size, config.training.evaluation_images
        held_out = split.held_out.images[:limit]
        # As many training images, so that both losses see the same noise.
        training = split.training.images[: len(held_out) or limit]
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
            for index, (images, valid) in enumerate(blocks):
                a, b = self._evaluate(state.ema_params, images, valid, jnp.int32(index))
                total, count = total + np.asarray(a), count + np.asarray(b)
            overall = float(total.sum() / count.sum()) if blocks else float("nan")
            row[f"ema_loss_{name}"] = finite_or_none(overall)
            row[f"ema_loss_{name}_per_bin"] = _per_bin(total, count)
        return row


def _padded_blocks(images: np.ndarray, size: int) -> list[tuple[jax.Array, jax.Array]]:
    """Cut images into blocks of one size, the last one padded, with masks."""
    blocks = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padding = [(0, size - len(part))] + [(0, 0)] * (images.ndim - 1)
        valid = np.arange(size) < len(part)
        blocks.append((jnp.asarray(np.pad(part, padding)), jnp.asarray(valid)))
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


def _refuse_unavailable(config: ExperimentConfig) -> None:
    """Refuse network inputs that nothing in training would feed."""
    network = config.network
    if isinstance(network, SongUNetConfig) and (
        network.label_dim or network.augment_dim
    ):
        raise InputError(
            f"network.label_dim is {network.label_dim} and augment_dim "
            f"{network.augment_dim}; training feeds neither yet: set both to 0"
        )
