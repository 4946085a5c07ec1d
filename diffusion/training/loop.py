"""Training, from top to bottom.

Configuration -> data -> network -> state -> restore if there is anything -> step ->
log -> checkpoint.  The same call again resumes; on a finished workdir it says so.  The
same code runs on one device, on several, and on several hosts.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.errors import InputError
from configs.schema import ExperimentConfig
from diffusion.closed_form import load_gaussian, save_gaussian
from diffusion.data import Split, check_labels, split_of
from diffusion.preconditioning import EDMPreconditioning, Preconditioning
from diffusion.progress import Progress
from diffusion.training.building import (
    build_problem,
    fit_preconditioning,
    fit_training_gaussian,
    load_preconditioning,
    num_classes,
)
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.evaluation import Evaluator
from diffusion.training.feeding import Feed
from diffusion.training.locking import lock_workdir
from diffusion.training.log import MetricsLog
from diffusion.training.mesh import (
    Placement,
    agree,
    is_main_host,
    make_placement,
    together,
)
from diffusion.training.preemption import watch_for_preemption
from diffusion.training.record import Record, as_json, claim_workdir
from diffusion.training.snapshots import save_snapshots
from diffusion.training.state import LossSums, TrainState, create_state, init_params
from diffusion.training.step import build_optimizer, build_step

__all__ = ["train"]


def train(config: ExperimentConfig, workdir: str | Path) -> None:
    """Train a denoising score network; the same call again resumes.

    Writes ``config.json``, ``gaussian.npz`` (the Gaussian of the training images),
    ``preconditioning.npz`` (the Gaussian that the network builds on, if it does),
    ``metrics.jsonl``, ``checkpoints/`` and, for power-function averages,
    ``ema_snapshots/`` into the workdir.  Training n steps, stopping and training m more
    is bitwise the same as training n + m steps.  SIGTERM and SIGINT save and return.

    Args:
        config: The experiment.
        workdir: The run's folder; made if it is missing.

    Raises:
        InputError: If the configuration cannot run here, contradicts the run that the
            workdir holds, another process is at work there, or the loss stops being
            finite.
        OSError: If something cannot be written.
    """
    workdir = Path(workdir)
    with (
        watch_for_preemption() as asked,
        contextlib.ExitStack() as held,
        _memory_errors(config),
    ):

        def hold_workdir() -> None:
            if is_main_host():
                held.enter_context(lock_workdir(workdir))

        run = together(lambda: Run(config, workdir))
        together(hold_workdir)
        run.execute(asked)


@contextlib.contextmanager
def _memory_errors(config: ExperimentConfig) -> Iterator[None]:
    """Say what helps when a device runs out of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        training = config.training
        raise InputError(
            f"out of memory with batches of {training.batch_size} in "
            f"{training.accumulation} parts; raise --training.accumulation (same "
            "result), set --network.checkpoint-blocks True, lower "
            "--training.batch-size, or divide the parameters with --mesh.fsdp"
        ) from error


class Run:
    """One call of `train`: everything that is fixed before the first step."""

    def __init__(self, config: ExperimentConfig, workdir: Path) -> None:
        """Load the data and build the network; nothing is written."""
        self.config, self.workdir = config, workdir
        training = config.training
        if training.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise InputError("training.dtype float64 needs JAX_ENABLE_X64=1 to be set")
        self.place = make_placement(
            config.mesh.fsdp, training.batch_size, training.accumulation
        )
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
        self.optimizer = build_optimizer(config.optim, training.batch_size)

    def execute(self, asked: Callable[[], bool]) -> None:
        """Restore, train and save; see `train`.

        Args:
            asked: Whether this process has been asked to stop.
        """
        together(self._prepare_workdir)
        training = self.config.training
        checkpoints = Checkpoints(
            self.workdir, training.checkpoint_every_steps, training.keep_checkpoints
        )
        try:
            state, seconds = self._restore_or_start(checkpoints)
            if int(state.step) >= training.num_steps:
                _say(
                    f"{self.workdir} is trained: {int(state.step)} steps. To train "
                    "further raise --training.num-steps; to start afresh delete "
                    f"{self.workdir}."
                )
                return
            Loop(self, state, seconds, checkpoints, asked).execute()
        finally:
            checkpoints.close()

    def _prepare_workdir(self) -> None:
        """Write what precedes the first step, on one host."""
        if not is_main_host():
            return
        claim_workdir(self.workdir, self.record)
        self._write_gaussian()
        fit_preconditioning(self.config, self.split, self.workdir)

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
            fit_training_gaussian(images),
            num_images=len(images),
            data_digest=self.split.digest,
        )

    def initial_state(self) -> TrainState:
        """Return the state before the first step, from the seed alone."""
        config, augmentation = self.config, self.problem.augmentation
        key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
        return create_state(
            init_params(config, self.problem.network, key),
            self.optimizer,
            len(config.training.sigma_bin_edges) + 1,
            num_transforms=0 if augmentation is None else len(augmentation.families),
            power_widths=config.ema.power_widths,
            dtype=config.training.dtype,
        )

    def _restore_or_start(self, checkpoints: Checkpoints) -> tuple[TrainState, float]:
        """Return the newest state and the seconds spent on it, or a fresh one."""
        shapes = jax.eval_shape(self.initial_state)
        self.shardings = self.place.state_shardings(shapes)
        found = checkpoints.restore(
            jax.tree.map(
                lambda shape, sharding: jax.ShapeDtypeStruct(
                    shape.shape, shape.dtype, sharding=sharding
                ),
                shapes,
                self.shardings,
            )._asdict()
        )
        if found is None:
            state = self._start()
            checkpoints.save(state, self.metadata(0.0))
            return state, 0.0
        items, meta = found
        if "origin" in meta:
            raise InputError(
                f"{self.workdir} holds {meta['origin']}, which can be sampled from but "
                "not trained further; choose another --workdir"
            )
        _refuse_other_data(meta, self.record, self.workdir)
        _say(f"resuming {self.workdir} at step {int(items['step'])}")
        return TrainState(**items), float(meta["seconds"])

    def _start(self) -> TrainState:
        # One random draw per layer: long to optimise, and run only once.
        on_cpu = jax.default_backend() == "cpu"
        options = {"xla_backend_optimization_level": 0} if on_cpu else None
        start = jax.jit(
            self.initial_state, out_shardings=self.shardings, compiler_options=options
        )
        return start()

    def metadata(self, seconds: float) -> dict[str, Any]:
        """Return what a checkpoint carries beside the arrays."""
        return {"seconds": seconds, **as_json(self.record)}


class Loop:
    """The steps of one call of `train`, with what is timed and written on the way."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        seconds: float,
        checkpoints: Checkpoints,
        asked: Callable[[], bool],
    ) -> None:
        """Put the data on the devices and build the compiled functions."""
        config = run.config
        self.run, self.state, self.checkpoints = run, state, checkpoints
        self.training, self.place = config.training, run.place
        self.seconds_before, self.asked = seconds, asked
        preconditioning = _placed(
            load_preconditioning(run.record, run.workdir), run.place
        )
        first = int(state.step)
        self.feed = Feed(config, run.split.training, preconditioning, run.place, first)
        self.step_fn = build_step(
            config, run.problem, run.optimizer, run.place, run.shardings
        )
        self.evaluator = Evaluator(
            config, run.problem, preconditioning, run.split, run.place
        )
        self.snapshot_every = (
            config.ema.snapshot_every_steps or self.training.checkpoint_every_steps
        )

    def execute(self) -> None:
        """Take all steps; save and return early when asked to stop."""
        training, unit = self.training, self.training.steps_per_dispatch
        first = int(self.state.step)
        self.log = None
        if is_main_host():
            self.log = MetricsLog(
                self.run.workdir, first, tensorboard=training.tensorboard
            )
        self.started = self.saved = time.monotonic()
        self.clock, self.logged = self.started, first
        steps = range(first + unit, training.num_steps + 1, unit)
        if self._must_stop(first):  # asked while the data were read
            self._say_stopped(first)
            return
        with _progress(training.num_steps, first) as progress:
            for step in steps:
                self.state = self.step_fn(self.state, *self.feed.at(step - unit))
                regular = step % training.log_every_steps == 0
                note = ""
                if regular or step == training.num_steps:
                    note = self._log(step, regular)
                if progress is not None:
                    progress.advance(unit, note)
                if self.state.power_emas and step % self.snapshot_every == 0:
                    save_snapshots(self.run.workdir, self.state)
                stop = self._must_stop(step) and step < training.num_steps
                if self._is_due(step, regular) or stop:
                    self._save(step)
                if stop:
                    self._say_stopped(step)
                    return
        self.checkpoints.wait()

    def _must_stop(self, step: int) -> bool:
        """Return whether to end here, as all processes agree.

        jax.distributed counts the calls: they must pass consecutive numbers.
        """
        if jax.process_count() == 1:
            return self.asked()
        dispatches = step // self.training.steps_per_dispatch
        return self.checkpoints.reached_preemption(dispatches)

    def _say_stopped(self, step: int) -> None:
        self.checkpoints.wait()
        _say(f"stopped at step {step} and saved; run the same command to continue")

    def _log(self, step: int, regular: bool) -> str:
        """Write a row of the log; return what the progress shows of it."""
        jax.block_until_ready(self.state.step)
        now = time.monotonic()
        images = (step - self.logged) * self.training.batch_size
        rate = images / max(now - self.clock, 1e-9)
        row = self.evaluator.row(self.state)
        row |= {
            "images": step * self.training.batch_size,
            "seconds": self.seconds_before + now - self.started,
            "images_per_second": rate,
            "device_memory_bytes": _device_memory(),
        }
        if self.log is not None:
            self.log.write(row, kept=regular)
        if regular:
            zeros = LossSums.zeros(self.state.sums.loss.shape, self.training.dtype)
            self.state = self.state._replace(
                sums=jax.tree.map(
                    lambda leaf: self.place.put(leaf, self.place.replicated), zeros
                )
            )
        self.clock, self.logged = time.monotonic(), step
        return _note(row, rate)

    def _is_due(self, step: int, regular: bool) -> bool:
        """Return whether to save now; clocks of hosts differ, so the first's counts."""
        training = self.training
        if step % training.checkpoint_every_steps == 0 or step == training.num_steps:
            return True
        late = time.monotonic() - self.saved >= training.checkpoint_every_seconds
        return agree(late) if regular or jax.process_count() == 1 else False

    def _save(self, step: int) -> None:
        self.evaluator.check_finite(self.state)
        now = time.monotonic()
        seconds = self.seconds_before + now - self.started
        self.checkpoints.save(self.state, self.run.metadata(seconds))
        self.saved = time.monotonic()
        self.clock += self.saved - now  # images per second are those of the steps


@contextlib.contextmanager
def _progress(num_steps: int, done: int) -> Iterator[Progress | None]:
    if not is_main_host():
        yield None
        return
    progress = Progress(num_steps, done=done, label="training")
    try:
        yield progress
    finally:
        progress.close()


def _say(text: str) -> None:
    if is_main_host():
        print(text, flush=True)


def _placed(preconditioning: Preconditioning, place: Placement) -> Preconditioning:
    """Put the arrays of a preconditioning on every device."""
    return jax.tree.map(
        lambda leaf: place.put(np.asarray(leaf), place.replicated), preconditioning
    )


def _device_memory() -> int | None:
    """Return the most memory that the first device has used; None where unknown."""
    found = jax.local_devices()[0].memory_stats() or {}
    return found.get("peak_bytes_in_use")


def _note(row: dict[str, Any], rate: float) -> str:
    held_out = row["ema_loss_held_out"]
    loss = row["loss"]
    parts = [
        "loss none" if loss is None else f"loss {loss:.4f}",
        "held-out none" if held_out is None else f"held-out {held_out:.4f}",
        f"{row['images']:,} images",
        f"{rate:,.0f} images/s",
    ]
    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} steps skipped")
    return "  ".join(parts)


def _refuse_other_data(meta: dict[str, Any], record: Record, workdir: Path) -> None:
    found = meta.get("data", {}).get("digest", record.data_digest)
    if found != record.data_digest:
        raise InputError(
            f"the checkpoint in {workdir} was trained on images with digest "
            f"{found[:16]}, these have {record.data_digest[:16]}; use those images, or "
            "choose another --workdir"
        )


def _record(config: ExperimentConfig, split: Split, sigma_data: float) -> Record:
    return Record(
        config=config,
        event_shape=split.training.images.shape[1:],
        sigma_data=sigma_data,
        data_digest=split.digest,
        num_training=len(split.training.images),
        num_held_out=len(split.held_out.images),
    )
