"""Files of what was measured on a model: arrays, and what they were measured on.

One ``.npz`` for each, written whole or not at all and read without pickles.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.atomic import write_atomically

__all__ = ["Measured", "read_measured", "write_measured"]


class Measured(NamedTuple):
    """What a file holds.

    Attributes:
        arrays: By name.
        about: What they were measured on, as it was given.
    """

    arrays: dict[str, NDArray[Any]]
    about: dict[str, Any]


def write_measured(
    path: str | Path,
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    about: Mapping[str, Any],
) -> None:
    """Write arrays and what they were measured on, atomically.

    Args:
        path: The ``.npz``, written exactly so.
        kind: What it is, such as "model statistics".
        arrays: By name.
        about: Plain values for JSON.

    Raises:
        OSError: If the file cannot be written.
    """
    text = json.dumps({**about, "format": _format(kind)}).encode()
    whole = {**arrays, "about": np.frombuffer(text, np.uint8)}
    write_atomically(path, lambda file: np.savez(file, **whole))


def read_measured(
    path: str | Path, kind: str, names: tuple[str, ...], remedy: str
) -> Measured:
    """Read what `write_measured` wrote.

    Args:
        path: The ``.npz``.
        kind: What it must be.
        names: Arrays that must be there; others are read too.
        remedy: How to make such a file, for the error.

    Raises:
        InputError: If the file is missing or is not one of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop("about", np.zeros(0)).tobytes() or b"null")
    except FileNotFoundError:
        raise InputError(f"no {kind} at {path}; {remedy}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(
            f"{path} is damaged, or no {kind}; name another file, or {remedy}"
        ) from None
    if not isinstance(about, dict) or about.pop("format", None) != _format(kind):
        raise InputError(
            f"{path} holds no {kind} but something else, or of another version; name "
            f"another file, or {remedy}"
        )
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} holds no {kind}: {missing[0]} is missing; {remedy}")
    return Measured(arrays, about)


def _format(kind: str) -> str:
    return f"scorelab {kind} 1"
