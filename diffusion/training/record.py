"""What a workdir is: ``config.json``.

It holds the resolved configuration, what was measured on the data, and the versions of
the packages.  A run is resumed only with a configuration that does not contradict it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import InputError
from configs.schema import ExperimentConfig, differing_fields, from_dict, to_dict
from diffusion.atomic import write_atomically
from diffusion.versions import versions

__all__ = ["Record", "as_json", "claim_workdir", "read_record"]

# Fields that change how long a run goes on, what it keeps and how it fits into memory,
# but, up to rounding, not what it computes.
_FREE_FIELDS = (
    "training.num_steps",
    "training.checkpoint_every_steps",
    "training.checkpoint_every_seconds",
    "training.keep_checkpoints",
    "training.max_skipped_steps",
    "training.tensorboard",
    "training.log_every_steps",
    "training.accumulation",
    "network.checkpoint_blocks",
    "ema.snapshot_every_steps",
    "data.data_dir",
    "data.placement",
    "data.device_budget_gib",
    "mesh.fsdp",
)


class Record(NamedTuple):
    """A run's configuration and what was measured before its first step.

    Attributes:
        config: The resolved configuration.
        event_shape: Shape of one sample.
        sigma_data: Standard deviation used by the preconditioning, data units.
        data_digest: sha256 of the training images.
        num_training: Number of training samples.
        num_held_out: Number of held-out samples.
    """

    config: ExperimentConfig
    event_shape: tuple[int, ...]
    sigma_data: float
    data_digest: str
    num_training: int
    num_held_out: int


def read_record(workdir: str | Path) -> Record | None:
    """Return the record of a workdir, or None if there is none.

    Raises:
        InputError: If ``config.json`` is damaged or of an unknown form.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        data = values["data"]
        return Record(
            config=from_dict(ExperimentConfig, values["config"]),
            event_shape=tuple(data["event_shape"]),
            sigma_data=float(data["sigma_data"]),
            data_digest=str(data["digest"]),
            num_training=int(data["num_training"]),
            num_held_out=int(data["num_held_out"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); choose another --workdir or delete this one"
        ) from error


def claim_workdir(workdir: str | Path, record: Record) -> None:
    """Write ``config.json``, unless the workdir belongs to a contradicting run.

    Args:
        workdir: The run's folder.
        record: What is about to be trained.

    Raises:
        InputError: If an earlier run there differs; every differing field is named.
        OSError: If the file cannot be written.
    """
    existing = read_record(workdir)
    if existing is not None:
        _refuse_contradiction(workdir, existing, record)
    elif (Path(workdir) / "checkpoints").is_dir():
        raise InputError(
            f"{workdir} holds checkpoints but no config.json; choose another --workdir"
        )
    text = json.dumps(as_json(record), indent=2) + "\n"
    write_atomically(
        Path(workdir) / "config.json", lambda file: file.write(text.encode())
    )


def _refuse_contradiction(workdir: str | Path, old: Record, new: Record) -> None:
    fields = {
        name: pair
        for name, pair in differing_fields(old.config, new.config).items()
        if name not in _FREE_FIELDS
    }
    modes = {old.config.augmentation.mode, new.config.augmentation.mode}
    if modes == {"none"}:  # what is switched off does not matter
        fields = {k: v for k, v in fields.items() if not k.startswith("augmentation.")}
    for name in ("event_shape", "sigma_data", "data_digest"):
        pair = (getattr(old, name), getattr(new, name))
        if pair[0] != pair[1] and not fields:
            fields[f"measured {name}"] = pair
    if fields:
        listed = ", ".join(f"{name} {a!r} -> {b!r}" for name, (a, b) in fields.items())
        raise InputError(
            f"{workdir} holds a run with other settings ({listed}); use those, choose "
            "another --workdir, or delete this one"
        )


def as_json(record: Record) -> dict[str, Any]:
    """Return what ``config.json`` and the metadata of checkpoints hold."""
    return {
        "config": to_dict(record.config),
        "data": {
            "event_shape": list(record.event_shape),
            "sigma_data": record.sigma_data,
            "digest": record.data_digest,
            "num_training": record.num_training,
            "num_held_out": record.num_held_out,
        },
        "versions": versions(),
    }
