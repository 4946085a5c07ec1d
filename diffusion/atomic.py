"""Files that are either whole or absent.

A file is written beside its destination and moved there in one step, so that a killed
process or a full disk leaves the old version, never half of a new one.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["read_json", "write_atomically", "write_json"]


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a temporary file and move it to `path`.

    Args:
        path: Destination; its folder is made if it is missing.
        write: Receives the open binary file.

    Raises:
        OSError: If the disk is full or read-only; `path` is then as it was before.
    """
    try:
        _write(Path(path), write)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write {path}: {reason}; free some space or choose another folder"
        ) from error


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON, atomically.

    Args:
        path: Destination; its folder is made if it is missing.
        values: Plain values; a number that is not finite is an error.

    Raises:
        OSError: If the disk is full or read-only; `path` is then as it was before.
        ValueError: If a number is not finite.
    """
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty one if it is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
