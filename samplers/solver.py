"""A solver moves x along the probability-flow ODE, grid point by grid point.

    dx/dsigma = (x - D(x, sigma)) / sigma            (arXiv 2206.00364, equation 1)

A solver is a small frozen value.  ``plan`` turns the grid into coefficients on the host
in float64, one row per step; ``init`` and ``step`` are pure.  Every state holds x at
the current grid point together with the denoiser's output there, so the last move, from
the last grid point to 0, needs no further call: it is that output.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.denoiser import Denoiser, as_pytree, expand_sigma
from samplers.schedules import check_grid

__all__ = [
    "MultistepState",
    "OneStepState",
    "Plan",
    "Solution",
    "Solver",
    "SolverState",
    "Trace",
    "check_keys",
    "integrate",
    "weighted_sum",
]

Plan = Any
"""A pytree of float64 NumPy arrays, each with one row per step of the grid."""


class SolverState(Protocol):
    """What a step hands to the next: at least these two, as a pytree."""

    @property
    def x(self) -> Array:
        """Samples at the current grid point, (B, *event)."""
        ...

    @property
    def denoised(self) -> Array:
        """The denoiser's output there, (B, *event)."""
        ...

    def _replace(self, **changes: Array) -> Self: ...


class OneStepState(NamedTuple):
    """The state of a solver without memory."""

    x: Array
    denoised: Array


class MultistepState(NamedTuple):
    """The state of a solver that remembers earlier outputs.

    Attributes:
        x: Samples at the current grid point, (B, *event).
        denoised: The denoiser's output there.
        history: Its outputs at earlier points, newest first.
    """

    x: Array
    denoised: Array
    history: tuple[Array, ...]


class Solver(Protocol):
    """A method for the probability-flow ODE; a frozen value registered as a pytree."""

    def plan(self, sigmas: NDArray[np.float64]) -> Plan:
        """Return the coefficients of the L - 1 steps of a grid of L points."""
        ...

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> Any:
        """Return the state at the first grid point; calls the denoiser once."""
        ...

    def step(self, denoiser: Denoiser, state: Any, coefficients: Plan) -> Any:
        """Return the state at the next grid point."""
        ...

    def nfe(self, num_points: int) -> int:
        """Return the denoiser calls on `num_points` points, the final one included."""
        ...


class Trace(NamedTuple):
    """A whole trajectory.

    Attributes:
        x: Samples at every grid point, (L, B, *event).
        denoised: The denoiser's outputs there, (L, B, *event).
    """

    x: Array
    denoised: Array


class Solution(NamedTuple):
    """What a solver returns.

    Attributes:
        x: Samples at noise level 0, (B, *event).
        nfe: Denoiser calls spent; an array where a traced run chose its own number.
        trace: The trajectory, or None where it was not asked for.
    """

    x: Array
    nfe: int | Array
    trace: Trace | None


def integrate(
    solver: Solver,
    denoiser: Denoiser,
    x: ArrayLike | Array,
    sigmas: ArrayLike,
    *,
    keys: Array | None = None,
    trace: bool = False,
) -> Solution:
    """Move samples from the first point of a noise grid to 0, in one compiled scan.

    Args:
        solver: Such as `Heun()`.
        denoiser: Any `Denoiser`; a plain function is wrapped in `jax.tree_util.Partial`
            (arrays that it closes over are then compiled in).
        x: Samples at noise level ``sigmas[0]``, (B, *event).
        sigmas: (L,) decreasing positive noise levels.
        keys: (B,) keys, for stochastic solvers.
        trace: Whether to return the whole trajectory.

    Returns:
        Samples, number of denoiser calls, trajectory.

    Raises:
        InputError: If the grid, the keys or the shape of `x` are not as described.
    """
    grid = check_grid(sigmas)
    x = jnp.asarray(x)
    expand_sigma(grid[0], x)
    if keys is not None:
        check_keys(keys, len(x))
    denoiser = as_pytree(denoiser)
    if jax.tree_util.all_leaves([solver]):
        raise InputError(
            f"solver {type(solver).__name__} is not a pytree; decorate the class with "
            "jax.tree_util.register_static (or register_dataclass if it holds arrays)"
        )
    wide = jnp.promote_types(x.dtype, jnp.float32)
    plan = jax.tree.map(lambda a: jnp.asarray(a, wide), solver.plan(grid))
    final, states = _scan(
        solver, denoiser, x, jnp.asarray(grid[0], wide), plan, keys, trace=trace
    )
    return Solution(final, solver.nfe(grid.size), states)


def check_keys(keys: object, count: int) -> None:
    """Refuse anything but one key per sample.

    Args:
        keys: What was given.
        count: B, the number of samples.

    Raises:
        InputError: If it is not an array of `jax.random.key` of shape (B,).
    """
    if not isinstance(keys, Array):
        given = f"type {type(keys).__name__}"
    elif not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        given = f"dtype {keys.dtype}"
    else:
        given = f"shape {keys.shape}"
    if given != f"shape {(count,)}":
        raise InputError(
            f"keys have {given}; give ({count},), one per sample: "
            f"jax.random.split(jax.random.key(0), {count})"
        )


def weighted_sum(
    ratio: ArrayLike | Array,
    x: Array,
    weights: ArrayLike | Array,
    outputs: Sequence[Array],
) -> Array:
    """Return ratio x + sum_j weights[j] outputs[j], in the dtype of `x`.

    Args:
        ratio: ().
        x: (B, *event).
        weights: (J,).
        outputs: J arrays of the shape of `x`.
    """
    total = jnp.asarray(ratio) * x
    for j, output in enumerate(outputs):
        total += jnp.asarray(weights)[j] * output
    return jnp.asarray(total, x.dtype)


@functools.partial(jax.jit, static_argnames="trace")
def _scan(
    solver: Solver,
    denoiser: Denoiser,
    x: Array,
    sigma: Array,
    plan: Plan,
    keys: Array | None,
    *,
    trace: bool,
) -> tuple[Array, Trace | None]:
    first = solver.init(denoiser, x, sigma, keys)

    def body(state: Any, coefficients: Plan) -> tuple[Any, Trace | None]:
        state = solver.step(denoiser, state, coefficients)
        return state, Trace(state.x, state.denoised) if trace else None

    last, rest = jax.lax.scan(body, first, plan)
    if rest is None:
        return last.denoised, None
    joined = Trace(
        jnp.concatenate([first.x[None], rest.x]),
        jnp.concatenate([first.denoised[None], rest.denoised]),
    )
    return last.denoised, joined
