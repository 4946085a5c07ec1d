"""Tables of numbers in files: rows to learn from, and rows held out.

Columns are standardised: mean 0 and variance 1 over the training rows.
"""

import hashlib
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.kernels.checks import check_data, check_finite
from configs.errors import InputError

__all__ = ["HELD_OUT", "Table", "load_table"]

HELD_OUT = 0.2
"""Share of the rows that are held out."""


class Table(NamedTuple):
    """A table, divided.

    Attributes:
        about: What was done to it, for a page.
        digest: sha256 of the training rows.
        event: Shape of one row as the file has it.
        training: (N, D) float64 rows to learn from, standardised.
        held_out: (M, D) float64 rows for tests, brought to the same scale.
        training_labels: (N, k) float64, or None.
        held_out_labels: (M, k) float64, or None.
    """

    about: str
    digest: str
    event: tuple[int, ...]
    training: NDArray[np.float64]
    held_out: NDArray[np.float64]
    training_labels: NDArray[np.float64] | None
    held_out_labels: NDArray[np.float64] | None


def load_table(path: str, *, needs_labels: bool = False) -> Table:
    """Load an ``.npz`` with x (n, d) and maybe y, or a ``.csv``, whose columns are x.

    Args:
        path: The file.
        needs_labels: Whether a file without y is refused.

    Raises:
        InputError: If the file is missing or damaged, or x or y is not as described.
    """
    x, y = _read_npz(path) if path.endswith(".npz") else (_read_csv(path), None)
    if x.ndim < 2 or len(x) < 20 or not math.prod(x.shape[1:]):
        raise InputError(f"x of {path!r} has shape {x.shape}; give (n, d), n >= 20")
    event, rows = x.shape[1:], x.reshape(len(x), -1)
    if y is None and needs_labels:
        raise InputError(f"{path!r} has no y to regress; leave out --target labels")
    labels = None if y is None else _checked_labels(path, rows, y)
    check_finite("x", rows)
    order = np.random.default_rng(0).permutation(len(rows))
    held_out, training = np.split(order, [round(HELD_OUT * len(rows))])
    mean, deviation = rows[training].mean(axis=0), rows[training].std(axis=0)
    rows = (rows - mean) / np.where(deviation > 0, deviation, 1)
    return Table(
        f"{len(training)} rows to learn from and {len(held_out)} held out, "
        f"{rows.shape[1]} columns brought to mean 0 and variance 1",
        hashlib.sha256(np.ascontiguousarray(rows[training]).data).hexdigest(),
        event,
        rows[training],
        rows[held_out],
        None if labels is None else labels[training],
        None if labels is None else labels[held_out],
    )


def _checked_labels(path: str, rows: NDArray, y: NDArray) -> NDArray[np.float64]:
    if y.ndim not in (1, 2) or len(y) != len(rows):
        raise InputError(
            f"y of {path!r} has shape {y.shape}; give ({len(rows)},) or "
            f"({len(rows)}, k), a row for each of x"
        )
    labels = y.reshape(len(y), -1)
    check_data(rows, labels)
    return labels


def _read_npz(path: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    try:
        with np.load(_existing(path), allow_pickle=False) as file:
            if "x" not in file.files:
                found = ", ".join(file.files) or "nothing"
                raise InputError(
                    f"{path!r} has no array 'x' but {found:.200}; write it with "
                    "np.savez(path, x=...), y=... if there are labels"
                )
            x, y = file["x"], file["y"] if "y" in file.files else None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path!r} is no npz file of numbers: {error}") from error
    return _numbers(path, "x", x), None if y is None else _numbers(path, "y", y)


def _read_csv(path: str) -> NDArray[np.float64]:
    text = _existing(path).read_text(errors="replace").splitlines()
    try:
        has_header = bool(text) and not _is_number(text[0].split(",")[0])
        return np.loadtxt(text[has_header:], delimiter=",", ndmin=2, dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"{path!r} is no table of numbers with commas between them: {error}"
        ) from error


def _numbers(path: str, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind not in "iufb":
        raise InputError(f"{name} of {path!r} is {values.dtype}; give numbers")
    return values.astype(np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path!r}")
    return Path(path)
