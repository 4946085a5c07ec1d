"""Many grids at once, against exact solutions.

A search over starts and grids runs one solver on many grids of one length.  All of them
take the same step with other coefficients, so a solver is compiled once: `solve` adds
an axis for the grid.  Exact solutions follow the probability flow with a method that
controls its error, in float64 (`samplers.runge_kutta`).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from diffusion.denoiser import Denoiser
from samplers.frame import cast
from samplers.runge_kutta import dormand_prince, probability_flow, require_arrival
from samplers.solver import Solver

__all__ = ["num_points", "rms_error", "solve", "solve_exactly"]

_EXACT_END = 1e-4
_EXACT_STEPS = 20_000
_ROWS_AT_ONCE = 1024


def num_points(solver: Solver, calls: int) -> int:
    """Return the length of the longest grid that costs at most `calls`."""
    points = 1
    while solver.nfe(points + 1) <= calls:
        points += 1
    return points


def solve(
    solver: Solver,
    denoiser: Denoiser,
    x: NDArray[Any],
    grids: Sequence[NDArray[np.float64]],
) -> NDArray[Any]:
    """Integrate along many grids of one length at once.

    One step serves all lengths, so a solver is compiled once.

    Args:
        solver: Any deterministic one.
        denoiser: Any pytree that denoises.
        x: (G, B, *event), at the first point of each grid.
        grids: G grids of L points.

    Returns:
        (G, B, *event), samples at noise level 0, in the dtype of `x`.
    """
    plans = _plans(solver, grids)
    at_once = max(1, _ROWS_AT_ONCE // x.shape[1])
    results = []
    for start in range(0, len(x), at_once):
        # The last group is filled up: one shape for all.
        index = np.minimum(np.arange(start, start + at_once), len(x) - 1)
        first = jnp.asarray([grids[i][0] for i in index], x.dtype)
        state = _init(solver, denoiser, jnp.asarray(x[index]), first)
        for i in range(len(grids[0]) - 1):
            row = jax.tree.map(functools.partial(_row, index, i, x.dtype), plans)
            state = _step(solver, denoiser, state, row)
        results.append(np.asarray(state.denoised))
    return np.concatenate(results)[: len(x)]


def solve_exactly(
    denoiser: Denoiser,
    noise: NDArray[np.float64],
    sigma_max: float,
    tolerance: float = 1e-9,
) -> NDArray[np.float64]:
    """Return the solutions from sigma_max * noise at noise level 0, in float64.

    The flow is followed to 1e-4 and D is called there, which leaves a relative error of
    (1e-4)^2 / 2 v where the variance is v.

    Args:
        denoiser: A pytree of arrays that denoises.
        noise: (B, *event).
        sigma_max: Noise level that solutions begin at.
        tolerance: Of a step, relative to the noise level and absolute.

    Raises:
        InputError: If the flow cannot be followed so closely.
    """
    with jax.enable_x64(True):
        wide = cast(denoiser, jnp.float64)
        follow = jax.jit(_follow, static_argnums=(2, 3))
        arrival = follow(wide, jnp.asarray(sigma_max * noise), sigma_max, tolerance)
        require_arrival(arrival, _EXACT_END, _EXACT_STEPS)
        return np.asarray(wide(arrival.x, _EXACT_END))


def rms_error(
    x: NDArray[Any], exact: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the root mean square over samples and directions.

    Args:
        x: (..., B, *event).
        exact: (B, *event).
        weights: (D,) how many directions each number of a sample stands for.
    """
    squares = (np.asarray(x, np.float64) - exact) ** 2
    squares = squares.reshape(*squares.shape[: squares.ndim - exact.ndim + 1], -1)
    return np.sqrt((squares @ weights).mean(axis=-1) / weights.sum())


def _follow(denoiser: Any, x: Array, sigma_max: float, tolerance: float) -> Any:
    return dormand_prince(
        probability_flow(denoiser),
        x,
        sigma_max,
        _EXACT_END,
        rtol=tolerance,
        atol=tolerance,
        max_steps=_EXACT_STEPS,
    )


def _row(
    index: NDArray[np.intp], step: int, dtype: Any, plans: NDArray[np.float64]
) -> Array:
    return jnp.asarray(plans[index, step], dtype)


def _plans(solver: Solver, grids: Sequence[NDArray[np.float64]]) -> Any:
    """Return the plans of all grids, stacked; equal grids are planned once."""
    known: dict[bytes, Any] = {}
    for grid in grids:
        if grid.tobytes() not in known:
            known[grid.tobytes()] = solver.plan(grid)
    plans = [known[grid.tobytes()] for grid in grids]
    return jax.tree.map(lambda *rows: np.stack(rows), *plans)


@jax.jit
def _init(solver: Solver, denoiser: Denoiser, x: Array, sigmas: Array) -> Any:
    return jax.vmap(functools.partial(solver.init, denoiser))(x, sigmas)


@jax.jit
def _step(solver: Solver, denoiser: Denoiser, state: Any, row: Any) -> Any:
    return jax.vmap(functools.partial(solver.step, denoiser))(state, row)
