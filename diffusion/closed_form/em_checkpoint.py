"""The state of EM between two passes, on disk: one ``.npz`` without pickles."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from configs.errors import InputError
from diffusion.atomic import write_atomically
from diffusion.closed_form.image_rows import ImageRows
from diffusion.closed_form.mixture import MixtureDenoiser

__all__ = ["EMState", "checkpoint_identity", "load_checkpoint", "save_checkpoint"]


class EMState(NamedTuple):
    """Everything that the next pass depends on.

    Attributes:
        mixture: The mixture.
        history: Mean log-likelihood before each past pass, nats.
        reseeded: The last pass that moved a dead component; None if none did.
    """

    mixture: MixtureDenoiser
    history: tuple[float, ...]
    reseeded: int | None


def checkpoint_identity(
    rows: ImageRows, key: Array, settings: dict[str, object]
) -> str:
    """Return what a checkpoint must agree with, as text: data, key and settings."""
    digest = hashlib.sha256()
    for block in rows.blocks():
        digest.update(np.asarray(block.rows[: block.count]).tobytes())
    values = {
        "data": digest.hexdigest(),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        **settings,
    }
    return json.dumps(values, sort_keys=True)


def save_checkpoint(path: str | Path | None, identity: str, state: EMState) -> None:
    """Write a state atomically; nothing where there is no path."""
    if path is None:
        return
    mixture: dict[str, Any] = {
        name: np.asarray(getattr(state.mixture, name))
        for name in MixtureDenoiser.__dataclass_fields__
    }
    reseeded = -1 if state.reseeded is None else state.reseeded
    write_atomically(
        path,
        lambda file: np.savez(
            file,
            identity=np.asarray(identity),
            history=np.asarray(state.history, np.float64),
            reseeded=np.asarray(reseeded),
            **mixture,
        ),
    )


def load_checkpoint(path: str | Path | None, identity: str) -> EMState | None:
    """Return the state of a checkpoint, or None where there is none.

    Raises:
        InputError: If the file is damaged or of another fit.
    """
    if path is None or not Path(path).exists():
        return None
    fields = MixtureDenoiser.__dataclass_fields__
    try:
        with np.load(path, allow_pickle=False) as file:
            found = str(file["identity"])
            history = tuple(file["history"].tolist())
            reseeded = int(file["reseeded"])
            mixture = MixtureDenoiser(**{n: jnp.asarray(file[n]) for n in fields})
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not a checkpoint of EM or is damaged ({error}); delete it to "
            "start afresh"
        ) from error
    if found != identity:
        given, kept = json.loads(identity), json.loads(found)
        names = [n for n in sorted({*given, *kept}) if given.get(n) != kept.get(n)]
        raise InputError(
            f"{path} is of another fit (it differs in {', '.join(names)}); delete it "
            "to start afresh or name another file"
        )
    return EMState(mixture, history, None if reseeded < 0 else reseeded)
