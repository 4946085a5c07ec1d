"""Chains side by side: their states, how often they move, and the loop they run in.

Chain i depends on the key, on i and on its start alone: it has a key of its own, which
each move folds with its number, whatever the thinning.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import require

__all__ = [
    "Acceptance",
    "Chain",
    "Position",
    "chain_keys",
    "measure_acceptance",
    "move_numbers",
    "run_chains",
]


class Chain(NamedTuple):
    """B chains, side by side.

    Attributes:
        x: (n, B, *event) states kept, without the start.
        accept: (n, B) share of the moves since the state before that were accepted.
    """

    x: Array
    accept: Array


class Acceptance(NamedTuple):
    """How often chains moved.

    Attributes:
        mean: Accepted moves over proposed ones.
        standard_error: Of that, from the spread over chains; NaN for one chain.
        per_chain: (B,) the same for each chain.
        stuck: Share of chains that never moved.
    """

    mean: float
    standard_error: float
    per_chain: NDArray[np.float64]
    stuck: float


class Position(NamedTuple):
    """Where the chains are.

    Attributes:
        x: (B, *event) states.
    """

    x: Array


def measure_acceptance(chain: Chain, *, burn_in: int = 0) -> Acceptance:
    """Return how often chains moved.

    Args:
        chain: From `mh_sample` or `mala_sample`.
        burn_in: States at the beginning that are left out, in [0, n).

    Returns:
        See `Acceptance`.

    Raises:
        InputError: If `burn_in` leaves nothing.
    """
    accept = np.asarray(chain.accept, np.float64)
    require(0 <= burn_in < len(accept), "burn_in", burn_in, f"in [0, {len(accept)})")
    per_chain = accept[burn_in:].mean(axis=0)
    count = len(per_chain)
    error = per_chain.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    stuck = np.mean(per_chain == 0)
    return Acceptance(float(per_chain.mean()), float(error), per_chain, float(stuck))


def chain_keys(key: Array, count: int) -> Array:
    """Return a key for each chain, (count,): chain i has one, however many there are.

    Args:
        key: A `jax.random.key`.
        count: B, the number of chains.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def move_numbers(n: int, thinning: int) -> Array:
    """Return the numbers of the moves, (n, thinning), after checking both.

    Args:
        n: States to keep.
        thinning: Moves from one to the next.

    Raises:
        InputError: If one is not an integer of at least 1.
    """
    for name, value in (("n", n), ("thinning", thinning)):
        require(value == int(value) and value >= 1, name, value, "an integer >= 1")
    return jnp.arange(int(n) * int(thinning)).reshape(int(n), int(thinning))


def run_chains(
    move: Callable[[Any, Array], tuple[Any, Array]],
    state: Any,
    keys: Array,
    indices: Array,
) -> Chain:
    """Make moves and keep a state after each row of them, in one scan.

    Args:
        move: (state, keys (B,)) -> the state after one move, and (B,) whether it was
            accepted.
        state: A NamedTuple with the states `x`, (B, *event).
        keys: (B,) the keys of the chains.
        indices: (n, thinning) numbers of the moves; a move has the chain's key folded
            with its number.

    Returns:
        The chains.
    """

    def one(carry: tuple[Any, Array], index: Array) -> tuple[tuple[Any, Array], None]:
        state, count = carry
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        state, accepted = move(state, here)
        return (state, count + accepted), None

    def row(state: Any, numbers: Array) -> tuple[Any, tuple[Array, Array]]:
        none = jnp.zeros(len(keys), jnp.int32)
        (state, count), _ = jax.lax.scan(one, (state, none), numbers)
        return state, (state.x, count / len(numbers))

    return Chain(*jax.lax.scan(row, state, indices)[1])
