"""Checkpoints that restore exactly, or say why not.

Orbax writes one folder per step under ``workdir/checkpoints``.  Beside the arrays each
step carries their sha256 digests, because a flipped byte in a data file would otherwise
restore without complaint; a damaged step is set aside and the newest intact one is
used.  A state is restored onto any number of devices and hosts, for its digests are
those of whole arrays.
"""

import hashlib
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs.errors import InputError
from diffusion.training.mesh import barrier, host_value, is_main_host
from diffusion.training.state import TrainState

__all__ = ["Checkpoints"]

_LEAF = "value"
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)

# Orbax reports every missing sharding file as a warning, and an error that it also
# raises with the traceback of each of its threads.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
        workdir: The run's folder.
        keep_period: Checkpoints at multiples of this step are kept for good.  None
            opens the folder for reading only.
        keep_newest: How many of the newest are kept besides.

    Raises:
        OSError: If the folder cannot be made.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep_period: int | None = None,
        keep_newest: int = 1,
    ) -> None:
        """See the class."""
        self.folder = Path(workdir).absolute() / "checkpoints"
        if keep_period is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._read_only = keep_period is None
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "meta": ocp.JsonCheckpointHandler(),
                **{
                    name: ocp.StandardCheckpointHandler() for name in TrainState._fields
                },
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if keep_period is None else keep_newest,
                keep_period=keep_period,
                create=keep_period is not None,
                read_only=keep_period is None,
                cleanup_tmp_directories=keep_period is not None,
                enable_async_checkpointing=True,
            ),
        )

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Start to write the state; returns once its buffers may be donated.

        Args:
            state: The training state.
            meta: Anything JSON holds, such as the seconds trained so far.

        Raises:
            OSError: If the disk is full or read-only, at the latest at the next call.
        """
        items = {name: item for name, item in state._asdict().items() if _leaves(item)}
        self._require_space(sum(leaf.nbytes for leaf in jax.tree.leaves(items)))
        meta = {**meta, "digests": {name: _digests(items[name]) for name in items}}
        arguments = {name: ocp.args.StandardSave(_boxed(items[name])) for name in items}
        try:
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arguments),
            )
        except _WRITE_ERRORS as error:
            raise self._write_error(error) from error

    def _require_space(self, num_bytes: int) -> None:
        """Refuse to begin what the disk cannot hold."""
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes + 2**20:
            raise self._write_error(
                OSError(f"{free:,} bytes are free and {num_bytes + 2**20:,} needed")
            )

    def reached_preemption(self, step: int) -> bool:
        """Return whether all processes are to stop after this step, as they agreed."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Return once everything is on the disk.

        Raises:
            OSError: If something could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except _WRITE_ERRORS as error:
            raise self._write_error(error) from error

    def close(self) -> None:
        """Release the threads behind the writer."""
        self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps on the disk, in increasing order."""
        return sorted(self._manager.all_steps())

    def restore(
        self, items: dict[str, Any], step: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return parts of the newest intact state, or of the one asked for.

        Args:
            items: Fields of `TrainState` to read, each with a pytree of arrays or
                shapes of the structure expected.
            step: The step to restore; None takes the newest that is intact, setting
                damaged ones aside with a line on standard error.

        Returns:
            The same fields with their arrays, and the `meta` saved with them; or None
            when there is no checkpoint at all.

        Raises:
            InputError: If `step` is not there or damaged, if every checkpoint is
                damaged, or if one was made for another network.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise InputError(
                f"no checkpoint of step {step} in {self.folder}; there are "
                f"{', '.join(map(str, steps)) or 'none'}"
            )
        empty = {name: item for name, item in items.items() if not _leaves(item)}
        shapes = {
            name: _boxed(jax.tree.map(_shape_of, item))
            for name, item in items.items()
            if name not in empty
        }
        damaged: dict[int, _DamagedError] = {}
        for candidate in reversed(steps) if step is None else [step]:
            try:
                found = self._restore_step(shapes, candidate)
            except _DamagedError as error:
                damaged[candidate] = error
                continue
            # Nothing is touched unless there is an intact one to go on with.
            for bad, error in damaged.items():
                self._set_aside(bad, error)
            return found[0] | empty, found[1]
        if damaged:
            raise InputError(
                f"no intact checkpoint to load: {next(iter(damaged.values()))}; choose "
                "another step, or delete the workdir to start afresh"
            )
        return None

    def _restore_step(
        self, shapes: dict[str, Any], step: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        place = self.folder / str(step)
        self._check_structure(shapes, step)
        arguments = {name: ocp.args.StandardRestore(s) for name, s in shapes.items()}
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **arguments),
            )
            meta = dict(restored["meta"])
            digests = meta.pop("digests")
        # Orbax and TensorStore raise bare Exception, KeyError, ValueError, ... here.
        except Exception as error:
            raise _DamagedError(f"checkpoint {place}: {_first_line(error)}") from error
        items = {name: _unboxed(restored[name]) for name in shapes}
        for name, item in items.items():
            found, wanted = _digests(item), digests[name]
            wrong = sorted(key for key in found if wanted.get(key) != found[key])
            if wrong:
                raise _DamagedError(
                    f"checkpoint {place}: {name}/{wrong[0]} does not match its digest"
                )
        return items, meta

    def _check_structure(self, shapes: dict[str, Any], step: int) -> None:
        """Refuse a checkpoint of another network before any array is read."""
        place = self.folder / str(step)
        for item, wanted_tree in shapes.items():
            try:
                saved = self._manager.item_metadata(step)[item]
                found = {k: tuple(v.shape) for k, v in _leaves(saved.tree).items()}
            except Exception as error:
                raise _DamagedError(
                    f"checkpoint {place}: {_first_line(error)}"
                ) from error
            wanted = {k: tuple(v.shape) for k, v in _leaves(wanted_tree).items()}
            for key in sorted(found.keys() | wanted.keys()):
                if found.get(key) != wanted.get(key):
                    raise InputError(
                        f"checkpoint {place} is of another network: {item}/{key} has "
                        f"shape {found.get(key)} there and {wanted.get(key)} here"
                    )

    def _set_aside(self, step: int, error: Exception) -> None:
        if is_main_host():
            print(f"warning: damaged, using an older one: {error}", file=sys.stderr)
        if self._read_only:
            return
        if is_main_host():
            place = self.folder / str(step)
            others = len(list(self.folder.glob(f"damaged-{step}*")))
            suffix = f"-{others}" if others else ""
            place.rename(place.with_name(f"damaged-{step}{suffix}"))
        barrier(f"damaged {step}")
        self._manager.reload()

    def _write_error(self, error: Exception) -> OSError:
        return OSError(
            f"cannot write a checkpoint to {self.folder}: {_first_line(error)}; free "
            "some space or choose another --workdir, then run the same command again"
        )


class _DamagedError(Exception):
    """A checkpoint that cannot be read or does not match its digests."""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return what to restore: onto the devices that the leaf says, or the first."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, the same for tuples, lists, dicts and NamedTuples."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _boxed(tree: Any) -> Any:
    """Wrap a bare array: Orbax saves trees only."""
    is_leaf = jax.tree_util.all_leaves([tree])
    return {_LEAF: tree} if is_leaf else tree


def _unboxed(tree: Any) -> Any:
    return tree[_LEAF] if isinstance(tree, dict) and set(tree) == {_LEAF} else tree


def _digests(tree: Any) -> dict[str, str]:
    """Return the sha256 of every leaf's bytes, type and shape, by path."""
    digests = {}
    for path, leaf in _leaves(tree).items():
        array = np.ascontiguousarray(host_value(leaf))
        text = f"{array.dtype} {array.shape} ".encode()
        digests[path] = hashlib.sha256(text + array.tobytes()).hexdigest()
    return digests
