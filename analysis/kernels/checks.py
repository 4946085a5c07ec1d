"""What kernel regression refuses or warns of before it spends time.

The exact path holds the Gram matrix, its eigenvectors and LAPACK's workspace of two
more, about 4 n^2 numbers, and takes n^3 steps; Nystrom with M landmarks holds n M
numbers, or 3 M^2 where the data are streamed.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, InputWarning

__all__ = [
    "LARGEST_EXACT",
    "as_labels",
    "check_data",
    "check_exact_size",
    "check_finite",
    "exact_bytes",
    "nystrom_bytes",
]

LARGEST_EXACT = 20_000
"""Points up to which the exact path is allowed; from 5,000 on Nystrom is quicker."""


def exact_bytes(n: int, itemsize: int = 8) -> int:
    """Return the memory of the exact path, 4 n^2 numbers, in bytes."""
    return 4 * n * n * itemsize


def nystrom_bytes(n: int, landmarks: int, itemsize: int = 8) -> int:
    """Return the memory of Nystrom with its features kept, in bytes."""
    return (n * landmarks + 3 * landmarks**2) * itemsize


def check_exact_size(
    n: int, *, landmarks: int = 2048, largest: int = LARGEST_EXACT
) -> None:
    """Refuse the exact path for too many points; call it before the Gram matrix.

    Args:
        n: Number of points.
        landmarks: Landmarks of the Nystrom fit that the error proposes.
        largest: Points that are allowed.

    Raises:
        InputError: If n is above `largest`; it says what Nystrom needs.
    """
    if n > largest:
        raise InputError(
            f"the exact path takes at most {largest} points and {n} were given (it "
            f"needs {_gib(exact_bytes(n))} and n^3 steps); use Nystrom, which needs "
            f"{_gib(nystrom_bytes(n, landmarks))} with {landmarks} landmarks, or "
            f"{_gib(nystrom_bytes(0, landmarks))} streamed (analysis.kernels.nystrom)"
        )


def check_data(inputs: ArrayLike, labels: ArrayLike) -> None:
    """Check a training set: shapes, finite values, and inputs that occur twice.

    Args:
        inputs: (n, *event) inputs.
        labels: (n, d) or (n,) labels.

    Raises:
        InputError: If the numbers of rows differ or a value is not finite.

    Warns:
        InputWarning: If equal inputs have different labels.
    """
    z, y = np.asarray(inputs), np.asarray(labels)
    if z.ndim < 1 or y.ndim < 1 or len(z) != len(y) or not len(z):
        raise InputError(
            f"inputs have shape {z.shape} and labels {y.shape}; give (n, *event) and "
            "(n, d) with one n >= 1"
        )
    rows, values = z.reshape(len(z), -1), y.reshape(len(y), -1)
    check_finite("inputs", rows)
    check_finite("labels", values)
    _warn_of_conflicts(rows, values)


def check_finite(name: str, rows: ArrayLike) -> None:
    """Refuse rows that hold a number that is not finite; traced ones pass.

    Args:
        name: What an error calls them.
        rows: (n, ...) values.

    Raises:
        InputError: If a value is infinite or no number.
    """
    if isinstance(rows, Tracer):
        return
    if isinstance(rows, jax.Array) and bool(jnp.isfinite(rows).all()):
        return
    values = np.asarray(rows)
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    raise InputError(
        f"{int(bad.sum())} of {len(values)} rows of {name} are not finite, row "
        f"{int(np.argmax(bad))} first; leave them out"
    )


def as_labels(labels: ArrayLike, n: int, name: str = "y") -> jax.Array | NDArray:
    """Return labels (n,) or (n, d) as (n, d), of whatever kind they are.

    Raises:
        InputError: If the shape does not fit or a value is not finite.
    """
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    shape = labels.shape
    if len(shape) not in (1, 2) or shape[0] != n:
        raise InputError(
            f"{name} has shape {shape}; give ({n}, d), or ({n},) for d = 1"
        )
    check_finite(name, labels)
    return labels if len(shape) == 2 else labels[:, None]


def _warn_of_conflicts(rows: NDArray, values: NDArray) -> None:
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return
    # Each row against the first one of its group.
    conflict = (values != values[first[group.ravel()]]).any(axis=1)
    if conflict.any():
        warnings.warn(
            f"{int(conflict.sum())} of {len(rows)} inputs repeat an earlier one with "
            "another label: no function fits both, a long training time fits their "
            "mean; keep them if they are repeated draws, else look for a mistake",
            InputWarning,
            stacklevel=3,
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
