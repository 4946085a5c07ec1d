"""Gains of a model along principal directions, kept as variances that depend on sigma.

Where D answers to direction k with a gain w_k(sigma), a Gaussian would have there the
variance v_k with w_k = v_k/(v_k + sigma^2).  A table holds log v_k, which changes far
less than w_k does, at N noise levels.  Between them it is linear in u = log(1/sigma);
beyond its ends it stays what it is there.  With a = log v_k + 2 u, linear on every
piece,

    l = 1 - w = 1/(1 + e^a),
    integral of l du = piece * (log(1 + e^-a_0) - log(1 + e^-a_1)) / (a_1 - a_0),

exactly.  Where v_k does not depend on sigma it is the Gaussian of that variance.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from samplers.coordinates import Coordinates
from samplers.measured_files import read_measured, write_measured
from samplers.model_statistics import Integrals
from samplers.schedules import check_grid

__all__ = [
    "EffectiveVariances",
    "load_effective_variances",
    "log_variances_of",
    "read_about",
    "save_effective_variances",
]

_KIND = "measured gains"
_NAMES = ("origin", "basis", "sigmas", "log_variances")
_REMEDY = "measure them with python -m samplers.estimate_statistics WORKDIR --gains"
_LEAST, _MOST = 1e-9, 1 - 1e-9  # of l
_NO_CHANGE = 1e-4  # of a over a piece, below which l is taken to second order


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EffectiveVariances:
    """The affine part of a model, direction by direction; `ModelStatistics`.

    Args:
        coordinates: Mean and principal directions; the complement has one gain.
        sigmas: (N,) decreasing noise levels, data units.
        log_variances: (N, C) natural logarithms, squared data units.
    """

    coordinates: Coordinates
    sigmas: ArrayLike | Array
    log_variances: ArrayLike | Array

    def linear_part(self) -> "_EffectivePart":
        """Return l and its integral; s = b = 0.

        Raises:
            InputError: If shapes do not fit, the levels do not decrease, or a number is
                not finite.
        """
        sigmas = check_grid(np.asarray(self.sigmas, np.float64))
        table = np.asarray(self.log_variances, np.float64)
        shape = sigmas.size, self.coordinates.size
        if table.shape != shape:
            raise InputError(
                f"gains at {sigmas.size} noise levels in {shape[1]} coordinates need a "
                f"table of shape {shape}; given {table.shape}"
            )
        if not np.isfinite(table).all():
            raise InputError("the gains hold a number that is not finite")
        return _EffectivePart(-np.log(sigmas), table)


def log_variances_of(
    rates: NDArray[np.float64], sigmas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log v of gains l = sigma^2/(v + sigma^2).

    Args:
        rates: l, (N, ...), kept within 1e-9 of 0 and 1 so that the logarithm is finite.
        sigmas: (N,).
    """
    rates = np.clip(rates, _LEAST, _MOST)
    levels = np.log(sigmas).reshape(-1, *(1,) * (rates.ndim - 1))
    return np.log1p(-rates) - np.log(rates) + 2 * levels


class _EffectivePart:
    """l of piecewise linear log variances; integrals over whole pieces are kept."""

    def __init__(self, u: NDArray[np.float64], table: NDArray[np.float64]) -> None:
        self._u, self._table = u, table
        whole = _integral(self._logits(u[:-1]), self._logits(u[1:]), np.diff(u))
        zero = np.zeros((1, table.shape[1]))
        self._sums = np.concatenate([zero, np.cumsum(whole, axis=0)])

    def breakpoints(self) -> NDArray[np.float64]:
        return self._u

    def gains(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(-np.logaddexp(0.0, self._logits(u)))

    def integrals(self, u: NDArray[np.float64]) -> Integrals:
        node = np.clip(np.searchsorted(self._u, u, "right") - 1, 0, self._u.size - 1)
        left = self._u[node]
        linear = self._sums[node] + _integral(
            self._logits(left), self._logits(u), u - left
        )
        nothing = np.zeros_like(linear)
        return Integrals(linear, nothing, nothing)

    def _logits(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a = log v + 2 u, (n, C)."""
        if self._u.size == 1:
            return self._table + 2 * u[:, None]
        inside = np.clip(u, self._u[0], self._u[-1])
        cell = np.searchsorted(self._u, inside, "right") - 1
        cell = np.clip(cell, 0, self._u.size - 2)
        share = (inside - self._u[cell]) / (self._u[cell + 1] - self._u[cell])
        step = self._table[cell + 1] - self._table[cell]
        return self._table[cell] + share[:, None] * step + 2 * u[:, None]


def _integral(
    first: NDArray[np.float64], last: NDArray[np.float64], length: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integrate 1/(1 + e^a) over pieces on which a is linear."""
    change = last - first
    flat = np.abs(change) < _NO_CHANGE
    drop = np.logaddexp(0.0, -first) - np.logaddexp(0.0, -last)
    middle = np.exp(-np.logaddexp(0.0, (first + last) / 2))
    mean = np.where(flat, middle, drop / np.where(flat, 1.0, change))
    return length[:, None] * mean


def save_effective_variances(
    path: str | Path, statistics: EffectiveVariances, *, about: dict[str, Any]
) -> None:
    """Write the table and its coordinates to a ``.npz``, atomically.

    Args:
        path: The file.
        statistics: With a basis.
        about: What was measured, plain values for JSON.

    Raises:
        InputError: If the coordinates are the entries of x.
        OSError: If the file cannot be written.
    """
    frame = statistics.coordinates
    if frame.basis is None:
        raise InputError("only gains in a principal basis are kept in a file")
    arrays = {
        "origin": np.asarray(frame.origin, np.float32),
        "basis": np.asarray(frame.basis, np.float32),
        "sigmas": np.asarray(statistics.sigmas, np.float64),
        "log_variances": np.asarray(statistics.log_variances, np.float64),
    }
    write_measured(path, _KIND, arrays, about)


def load_effective_variances(path: str | Path) -> EffectiveVariances:
    """Read what `save_effective_variances` wrote.

    Args:
        path: The ``.npz``.

    Raises:
        InputError: If the file is missing or is not one of these.
    """
    arrays = read_measured(path, _KIND, _NAMES, _REMEDY).arrays
    origin, basis = arrays["origin"], arrays["basis"]
    if basis.ndim != 2 or len(basis) != origin.size:
        raise InputError(
            f"{path} is damaged: a basis of shape {basis.shape} for samples of shape "
            f"{origin.shape}; measure the gains again"
        )
    found = EffectiveVariances(
        Coordinates(jnp.asarray(origin), jnp.asarray(basis)),
        arrays["sigmas"],
        arrays["log_variances"],
    )
    found.linear_part()  # checks shapes and numbers
    return found


def read_about(path: str | Path) -> dict[str, Any]:
    """Return what the file says was measured.

    Args:
        path: The ``.npz`` of `save_effective_variances`.

    Raises:
        InputError: If the file is missing or is not one of these.
    """
    return read_measured(path, _KIND, _NAMES, _REMEDY).about
