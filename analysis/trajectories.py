"""Sampling trajectories of a model and of closed forms, from the same noise.

From x_T = sigma_T n every model follows its own probability flow.  Compared at each
grid point are the sample x and what the model makes of it, D(x, sigma), by the mean
squared error per element.  A Gaussian's trajectory is exact (`GaussianDenoiser.flow`);
other candidates move as the reference does, with its solver on its grid, so that what
differs is the model and not the grid, or on request with an adaptive method.  Source:
Wang & Vastola, arXiv 2412.09726.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser, as_pytree
from samplers import Heun, Solver, Trace, sample
from samplers.runge_kutta import (
    Arrival,
    dormand_prince,
    probability_flow,
    require_arrival,
)
from samplers.schedules import check_grid

__all__ = [
    "DenoiserOf",
    "Quartiles",
    "TrajectoryComparison",
    "compare_trajectories",
    "quartile_cells",
    "quartiles_of",
    "trace_blocks",
    "trajectory_rows",
]

_MAX_STEPS = 10_000  # between two grid points, of a closed form

DenoiserOf = Callable[[NDArray[np.intp]], Denoiser]  # of trajectories of some numbers


class Quartiles(NamedTuple):
    """A quantity's distribution over samples, the axis of samples taken away.

    Attributes:
        mean: Average.
        lower: 25 % quantile.
        median: 50 % quantile.
        upper: 75 % quantile.
    """

    mean: NDArray[np.float64]
    lower: NDArray[np.float64]
    median: NDArray[np.float64]
    upper: NDArray[np.float64]


class TrajectoryComparison(NamedTuple):
    """Candidates' trajectories against the reference's, from the same noise.

    Attributes:
        names: The M candidates.
        sigmas: (L,) noise grid, data units.
        num_samples: Trajectories behind every number.
        tolerance: What `close_x` and `close_denoised` count against.
        x: Mean squared error per element of the sample, (M, L) each, squared data
            units.
        denoised: The same of the denoised sample.
        final: (M, n) the same of the finished samples, which are the denoised ones at
            the last grid point.
        close_x: (M,) grid points from the first on whose mean error of x is below the
            tolerance.
        close_denoised: (M,) the same of the denoised sample.
    """

    names: tuple[str, ...]
    sigmas: NDArray[np.float64]
    num_samples: int
    tolerance: float
    x: Quartiles
    denoised: Quartiles
    final: NDArray[np.float64]
    close_x: NDArray[np.int64]
    close_denoised: NDArray[np.int64]


def trace_blocks(
    denoiser: Denoiser,
    key: Array,
    shape: tuple[int, ...],
    sigmas: ArrayLike,
    *,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    block_size: int = 64,
    denoiser_of: DenoiserOf | None = None,
) -> Iterator[Trace]:
    """Follow trajectories from sigma_T n in blocks of one size.

    Args:
        denoiser: Any `Denoiser`.
        key: A `jax.random.key`; trajectory i uses ``fold_in(key, i)``.
        shape: (n, *event), all the trajectories wanted.
        sigmas: (L,) noise grid.
        solver: How to move along the grid.
        block_size: Trajectories at once; memory is that of 2 L block_size samples.
        denoiser_of: What denoises trajectories of some numbers, (B,), in place of the
            denoiser: a network that is told classes.

    Yields:
        Traces of at most block_size trajectories, n in all.

    Raises:
        InputError: If the grid or a shape is not as described.
    """
    count = shape[0] if shape else 0
    if len(shape) < 2 or count < 1 or block_size < 1:
        raise InputError(
            f"shape is {shape} and block_size {block_size}; give (n, *event) with "
            "n >= 1 and blocks of at least 1"
        )
    size = min(block_size, count)
    for first in range(0, count, size):
        numbers = np.minimum(np.arange(first, first + size), count - 1)
        solution = sample(
            denoiser if denoiser_of is None else denoiser_of(numbers),
            key,
            (size, *shape[1:]),
            sigmas,
            solver=solver,
            first_index=first,
            trace=True,
        )
        assert solution.trace is not None, "it was asked for"
        left = count - first
        yield Trace(*(part[:, :left] for part in solution.trace))


def compare_trajectories(
    reference: Denoiser,
    candidates: Mapping[str, Denoiser],
    key: Array,
    *,
    shape: tuple[int, ...],
    sigmas: ArrayLike,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    rtol: float | None = None,
    tolerance: float = 0.01,
    block_size: int = 64,
    reference_of: DenoiserOf | None = None,
    candidates_of: Mapping[str, DenoiserOf] | None = None,
) -> TrajectoryComparison:
    """Compare candidates' trajectories with a reference's from the same noise.

    Args:
        reference: The model, usually a network.
        candidates: Denoisers by name.
        key: A `jax.random.key`; trajectory i uses ``fold_in(key, i)``.
        shape: (n, *event).
        sigmas: (L,) noise grid.
        solver: How the reference moves along the grid; a deterministic one.
        rtol: None moves the candidates that are not Gaussian with the same solver; a
            number follows their flow to this error relative to the noise level, with
            many more calls (`samplers.runge_kutta`).
        tolerance: Mean squared error per element that counts as close.
        block_size: Trajectories at once.
        reference_of: What denoises trajectories of some numbers, (B,), in place of the
            reference: a network that is told classes.
        candidates_of: The same for further candidates, by name; they follow the others
            and move with the reference's solver.

    Returns:
        Errors at every grid point with their quartiles.  A candidate that is the
        Gaussian itself shows the solver's own error.

    Raises:
        InputError: If there is no candidate, or the grid or a shape is not as
            described.
    """
    grid = check_grid(sigmas)
    further = candidates_of or {}
    if not candidates and not further:
        raise InputError("there is no candidate to compare with; give at least one")
    follow = functools.partial(
        trace_blocks,
        key=key,
        shape=shape,
        sigmas=grid,
        solver=solver,
        block_size=block_size,
    )
    paths = [_paths_of(one, follow, grid, rtol) for one in candidates.values()]
    paths += [_same_noise(follow(reference, denoiser_of=of)) for of in further.values()]
    blocks = []
    for trace in follow(reference, denoiser_of=reference_of):
        errors = [_squared_errors(trace, path(trace.x[0])) for path in paths]
        blocks.append(np.stack([np.asarray(part, np.float64) for part in errors]))
    # (M candidates, x and denoised, L, n)
    found = np.concatenate(blocks, axis=-1)
    means = found.mean(axis=-1)
    close = np.cumprod(means < tolerance, axis=-1).sum(axis=-1)
    return TrajectoryComparison(
        names=(*candidates, *further),
        sigmas=grid,
        num_samples=found.shape[-1],
        tolerance=tolerance,
        x=quartiles_of(found[:, 0]),
        denoised=quartiles_of(found[:, 1]),
        final=found[:, 1, -1],
        close_x=close[:, 0],
        close_denoised=close[:, 1],
    )


def _paths_of(
    candidate: Denoiser,
    follow: Callable[..., Iterator[Trace]],
    sigmas: NDArray[np.float64],
    rtol: float | None,
) -> Callable[[Array], Trace]:
    """Return what leads x_T of one block after the other to a candidate's trace."""
    if isinstance(candidate, GaussianDenoiser):
        return lambda x: _gaussian_path(candidate, x, sigmas)
    if rtol is not None:
        return lambda x: _flow_path(candidate, x, sigmas, rtol)
    return _same_noise(follow(candidate))


def _same_noise(traces: Iterator[Trace]) -> Callable[[Array], Trace]:
    """Return traces one after another; the key has made the same x_T again."""
    return lambda x: next(traces)


def quartiles_of(values: NDArray[np.float64]) -> Quartiles:
    """Return mean and quartiles over the last axis."""
    return Quartiles(
        values.mean(axis=-1), *np.quantile(values, (0.25, 0.5, 0.75), axis=-1)
    )


@jax.jit
def _gaussian_path(gaussian: GaussianDenoiser, x: Array, sigmas: Array) -> Trace:
    """Return the exact trajectory through x (B, *event) at sigmas[0]."""

    def at(sigma: Array) -> Trace:
        moved = gaussian.flow(x, sigmas[0], sigma)
        return Trace(moved, gaussian.denoiser_trajectory(x, sigmas[0], sigma))

    return jax.lax.map(at, jnp.asarray(sigmas))


def _flow_path(
    denoiser: Denoiser, x: Array, sigmas: NDArray[np.float64], rtol: float
) -> Trace:
    """Return the trajectory through x (B, *event) at sigmas[0], to an error rtol."""
    denoiser = as_pytree(denoiser)
    positions, outputs = [x], [denoiser(x, sigmas[0])]
    for sigma_from, sigma_to in itertools.pairwise(sigmas):
        arrival, denoised = _follow(denoiser, x, sigma_from, sigma_to, rtol)
        require_arrival(arrival, sigma_to, _MAX_STEPS)
        x = arrival.x
        positions.append(x)
        outputs.append(denoised)
    return Trace(jnp.stack(positions), jnp.stack(outputs))


@functools.partial(jax.jit, static_argnames="rtol")
def _follow(
    denoiser: Denoiser, x: Array, sigma_from: Array, sigma_to: Array, rtol: float
) -> tuple[Arrival, Array]:
    arrival = dormand_prince(
        probability_flow(denoiser),
        x,
        sigma_from,
        sigma_to,
        rtol=rtol,
        max_steps=_MAX_STEPS,
    )
    return arrival, denoiser(arrival.x, sigma_to)


@jax.jit
def _squared_errors(a: Trace, b: Trace) -> Array:
    """Return the mean squared error per element of x and of D, (2, L, B)."""
    axes = tuple(range(2, a.x.ndim))
    return jnp.stack(
        [jnp.mean(jnp.square(p - q), axis=axes) for p, q in zip(a, b, strict=True)]
    )


def trajectory_rows(comparison: TrajectoryComparison) -> list[dict[str, Any]]:
    """Return a row of plain numbers per candidate and grid point, for a table."""
    return [
        {
            "candidate": name,
            "sigma": float(sigma),
            **quartile_cells("x", comparison.x, (index, level)),
            **quartile_cells("denoised", comparison.denoised, (index, level)),
        }
        for index, name in enumerate(comparison.names)
        for level, sigma in enumerate(comparison.sigmas)
    ]


def quartile_cells(
    name: str, values: Quartiles, place: tuple[int, ...]
) -> dict[str, float]:
    """Return one place of a quantity as cells ``name_mean`` to ``name_upper``."""
    return {
        f"{name}_{part}": float(numbers[place])
        for part, numbers in values._asdict().items()
    }
