"""The linear part of a denoiser that DPM-Solver-v3 solves exactly (arXiv 2310.13268).

With u = log(1/sigma) and y = x - D(x, sigma), that solver splits y = l(u) x + f, and
lets f follow f' = s(u) f + b(u) + a remainder, coordinate by coordinate.  l, s and b
are the model statistics.  They come from

* a Gaussian, in closed form: in its principal directions y = l (x - mean) with
  l = sigma^2 / (variance + sigma^2), and nothing remains (`GaussianStatistics`);
* a table over noise levels (`TabulatedStatistics`), estimated on a model by
  `samplers.statistics_estimation` or filled by hand.

A table keeps its own noise levels whatever grid a solver runs on: between them l, s and
b are linear in u.  Host side, float64.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers.coordinates import Coordinates
from samplers.measured_files import read_measured, write_measured
from samplers.schedules import check_grid

__all__ = [
    "GaussianStatistics",
    "Integrals",
    "LinearPart",
    "ModelStatistics",
    "TabulatedStatistics",
    "check_statistics",
    "gaussian_statistics",
    "load_model_statistics",
    "pixel_statistics",
    "read_statistics_about",
    "save_model_statistics",
]

_KIND = "model statistics"
_NAMES = ("sigmas", "l", "s", "b", "event_shape")
_REMEDY = "estimate them with python -m samplers.estimate_statistics WORKDIR"
_GAUSS = np.polynomial.legendre.leggauss(3)
_ROUNDING = 1e-9  # a grid's ends may differ from the table's by this share


class Integrals(NamedTuple):
    """Antiderivatives at some noise levels, each (n, C) with one common constant.

    Attributes:
        linear: integral of l.
        scaling: S, integral of s.
        bias: integral of e^(-S) b.
    """

    linear: NDArray[np.float64]
    scaling: NDArray[np.float64]
    bias: NDArray[np.float64]


class LinearPart(Protocol):
    """l, s and b as functions of u, on the host."""

    def gains(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return l at (n,) values of u, (n, C)."""
        ...

    def integrals(self, u: NDArray[np.float64]) -> Integrals:
        """Return the antiderivatives at (n,) values of u."""
        ...

    def breakpoints(self) -> NDArray[np.float64]:
        """Return the values of u where l, s or b may have a kink, ascending."""
        ...


class ModelStatistics(Protocol):
    """What DPM-Solver-v3 knows of a model; a pytree."""

    @property
    def coordinates(self) -> Coordinates:
        """Where the linear part is diagonal."""
        ...

    def linear_part(self) -> LinearPart:
        """Return l, s and b as functions of u."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianStatistics:
    """l = sigma^2 / (variance + sigma^2) about a Gaussian's mean; s = b = 0.

    On data with these moments one step of any length is exact: it is `Teleport`.

    Args:
        coordinates: Mean and principal directions.
        variances: (C,), squared data units, the complement's last.
    """

    coordinates: Coordinates
    variances: ArrayLike | Array

    def linear_part(self) -> LinearPart:
        """Return l and its integral, both exact."""
        return _GaussianPart(np.asarray(self.variances, np.float64))


class _GaussianPart(NamedTuple):
    variances: NDArray[np.float64]

    def gains(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        s2 = np.exp(-2 * u)[:, None]
        return s2 / (self.variances + s2)

    def integrals(self, u: NDArray[np.float64]) -> Integrals:
        linear = -0.5 * np.log(self.variances + np.exp(-2 * u)[:, None])
        nothing = np.zeros_like(linear)
        return Integrals(linear, nothing, nothing)

    def breakpoints(self) -> NDArray[np.float64]:
        return np.zeros(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TabulatedStatistics:
    """l, s, b at N noise levels, linear in u between them.

    Args:
        coordinates: Where they are diagonal.
        sigmas: (N,) decreasing noise levels, N >= 2, data units.
        gains: l, (N, C), the linear part of x - D.
        scalings: s, (N, C), the growth rate of the rest f.
        biases: b, (N, C), data units.
    """

    coordinates: Coordinates
    sigmas: ArrayLike | Array
    gains: ArrayLike | Array
    scalings: ArrayLike | Array
    biases: ArrayLike | Array

    def linear_part(self) -> LinearPart:
        """Return l, s, b and their integrals.

        Raises:
            InputError: If shapes do not fit, the levels do not decrease, or a number is
                not finite.
        """
        sigmas = check_grid(np.asarray(self.sigmas, np.float64))
        tables = [
            np.asarray(v, np.float64) for v in (self.gains, self.scalings, self.biases)
        ]
        shape = sigmas.size, self.coordinates.size
        if sigmas.size < 2 or any(v.shape != shape for v in tables):
            raise InputError(
                f"statistics at {sigmas.size} noise levels in {shape[1]} coordinates "
                f"need tables of shape {shape} and at least 2 levels; given "
                + ", ".join(str(v.shape) for v in tables)
            )
        if not all(np.isfinite(v).all() for v in tables):
            raise InputError("the statistics hold a number that is not finite")
        return _TabulatedPart(-np.log(sigmas), *tables)


class _TabulatedPart:
    """Piecewise linear l, s, b; integrals over whole cells are kept."""

    def __init__(
        self,
        u: NDArray[np.float64],
        gains: NDArray[np.float64],
        scalings: NDArray[np.float64],
        biases: NDArray[np.float64],
    ) -> None:
        self._u = u
        self._tables = gains, scalings, biases
        width = np.diff(u)[:, None]
        self._linear = _summed(width * (gains[1:] + gains[:-1]) / 2)
        self._scaling = _summed(width * (scalings[1:] + scalings[:-1]) / 2)
        cells = np.arange(u.size - 1)
        self._bias = _summed(self._bias_within(cells, u[1:]))

    def breakpoints(self) -> NDArray[np.float64]:
        return self._u

    def gains(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        cells = self._cells(u)
        return self._at(0, cells, u)

    def integrals(self, u: NDArray[np.float64]) -> Integrals:
        cells = self._cells(u)
        return Integrals(
            self._linear[cells] + self._within(0, cells, u),
            self._scaling[cells] + self._within(1, cells, u),
            self._bias[cells] + self._bias_within(cells, u),
        )

    def _cells(self, u: NDArray[np.float64]) -> NDArray[np.intp]:
        first, last = self._u[0], self._u[-1]
        if u.min() < first - _ROUNDING or u.max() > last + _ROUNDING:
            raise InputError(
                f"the model statistics cover noise levels {math.exp(-last):.4g} to "
                f"{math.exp(-first):.4g}, but the grid goes from "
                f"{math.exp(-u.min()):.4g} to {math.exp(-u.max()):.4g}; estimate them "
                "on a wider range or shorten the grid"
            )
        return np.clip(np.searchsorted(self._u, u, "right") - 1, 0, self._u.size - 2)

    def _at(
        self, which: int, cells: NDArray[np.intp], u: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        table = self._tables[which]
        share = (u - self._u[cells]) / (self._u[cells + 1] - self._u[cells])
        return table[cells] + share[:, None] * (table[cells + 1] - table[cells])

    def _within(
        self, which: int, cells: NDArray[np.intp], u: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the integral from the left end of its cell to each u; exact."""
        length = (u - self._u[cells])[:, None]
        return length * (self._tables[which][cells] + self._at(which, cells, u)) / 2

    def _bias_within(
        self, cells: NDArray[np.intp], u: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the same of e^(-S) b, by Gauss-Legendre quadrature."""
        left = self._u[cells]
        total = np.zeros((len(cells), self._tables[0].shape[1]))
        for node, weight in zip(*_GAUSS, strict=True):
            r = left + (u - left) * (node + 1) / 2
            scaling = self._scaling[cells] + self._within(1, cells, r)
            total += weight / 2 * np.exp(-scaling) * self._at(2, cells, r)
        return (u - left)[:, None] * total


def check_statistics(given: object) -> None:
    """Refuse what is neither a Gaussian nor statistics of a model.

    Only the type is looked at: JAX rebuilds a solver around tracers and placeholders.

    Args:
        given: What a solver is to take its linear part from.

    Raises:
        InputError: If it is of another type.
    """
    kind = type(given)
    if not (issubclass(kind, GaussianDenoiser) or hasattr(kind, "linear_part")):
        raise InputError(
            f"a linear part was asked of {kind.__name__}; give a GaussianDenoiser, "
            "such as fit_gaussian(images), or statistics such as EffectiveVariances"
        )


def gaussian_statistics(gaussian: GaussianDenoiser) -> GaussianStatistics:
    """Return the statistics of a Gaussian in its principal directions.

    They need the training images only, seconds instead of GPU hours, and contain
    teleportation: where the model is that Gaussian, every step is exact.

    Args:
        gaussian: Of any rank; the complement has its residual variance.
    """
    rest = jnp.reshape(jnp.asarray(gaussian.residual_variance), (1,))
    variances = jnp.concatenate([jnp.asarray(gaussian.variances), rest])
    return GaussianStatistics(Coordinates(gaussian.mean, gaussian.basis), variances)


def pixel_statistics(
    gaussian: GaussianDenoiser, sigmas: ArrayLike
) -> TabulatedStatistics:
    """Return the statistics of a Gaussian in the pixel basis, as published tables are.

    l = diag(sigma^2 (S + sigma^2 I)^(-1)); f then varies little but not at all as the
    rest does, so s = 0 and b = E f' = -l' mean.

    Args:
        gaussian: Of any rank.
        sigmas: (N,) decreasing noise levels.
    """
    levels = check_grid(sigmas)
    s2 = levels[:, None] ** 2
    basis = np.asarray(gaussian.basis, np.float64)
    variances = np.asarray(gaussian.variances, np.float64)
    rest = float(np.asarray(gaussian.residual_variance))
    mean = np.ravel(np.asarray(gaussian.mean, np.float64))
    squares = basis**2
    outside = 1 - squares.sum(1)
    gains = (s2 / (variances + s2)) @ squares.T + s2 / (rest + s2) * outside
    slopes = -2 * (variances * s2 / (variances + s2) ** 2) @ squares.T
    slopes -= 2 * rest * s2 / (rest + s2) ** 2 * outside
    origin = jnp.zeros_like(jnp.asarray(gaussian.mean))
    return TabulatedStatistics(
        Coordinates(origin), levels, gains, np.zeros_like(gains), -slopes * mean
    )


def save_model_statistics(
    path: str | Path, statistics: TabulatedStatistics, *, about: dict[str, Any]
) -> None:
    """Write a table in the pixel basis to a ``.npz``, atomically.

    Args:
        path: The file.
        statistics: With coordinates that are the entries of x.
        about: What it was estimated on, plain values for JSON.

    Raises:
        InputError: If the statistics have a basis.
        OSError: If the file cannot be written.
    """
    if statistics.coordinates.basis is not None:
        raise InputError("only statistics in the pixel basis are kept in a file")
    arrays = {
        "sigmas": np.asarray(statistics.sigmas, np.float64),
        "l": np.asarray(statistics.gains, np.float32),
        "s": np.asarray(statistics.scalings, np.float32),
        "b": np.asarray(statistics.biases, np.float32),
        "event_shape": np.array(jnp.shape(statistics.coordinates.origin), np.int64),
    }
    write_measured(path, _KIND, arrays, about)


def load_model_statistics(path: str | Path) -> TabulatedStatistics:
    """Read what `save_model_statistics` wrote.

    Args:
        path: The ``.npz``.

    Raises:
        InputError: If the file is missing or is not one of these.
    """
    arrays = read_measured(path, _KIND, _NAMES, _REMEDY).arrays
    event = tuple(int(n) for n in arrays["event_shape"])
    found = TabulatedStatistics(
        Coordinates(jnp.zeros(event, jnp.float32)),
        *(arrays[name] for name in _NAMES[:4]),
    )
    found.linear_part()  # checks shapes and numbers
    return found


def read_statistics_about(path: str | Path) -> dict[str, Any]:
    """Return what the file says it was estimated on.

    Args:
        path: The ``.npz`` of `save_model_statistics`.

    Raises:
        InputError: If the file is missing or is not one of these.
    """
    return read_measured(path, _KIND, _NAMES, _REMEDY).about


def _summed(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running sum with a 0 in front."""
    return np.concatenate([np.zeros((1, cells.shape[1])), np.cumsum(cells, axis=0)])
