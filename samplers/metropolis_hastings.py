"""Metropolis-Hastings: random walks that an energy difference accepts or refuses.

With E = -log p, a move from x to x' that is proposed with density q(x'|x) is made when

    log u < -(E(x') - E(x)) / T + log q(x|x') - log q(x'|x),      u uniform on (0, 1),

which leaves p^(1/T) unchanged (Metropolis et al. 1953; Hastings 1970).  Only
differences of the energy are needed, and a score has them as integrals along the
segment from x to x' (arXiv 1211.4246): they come in as a callable, exact or integrated.
Detailed balance then holds as far as the difference changes its sign with its ends and
does not depend on the path.

A symmetric proposal has no q: x' = x + step n, now and then with a far larger step.
The Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996) drifts along the
score, q(x'|x) = N(x + step^2 score(x) / (2 T), step^2), and corrects for it exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, require
from diffusion.denoiser import as_pytree, expand_sigma

__all__ = [
    "Acceptance",
    "Chain",
    "EnergyDifference",
    "Position",
    "chain_keys",
    "mala_sample",
    "measure_acceptance",
    "mh_sample",
    "move_numbers",
    "run_chains",
]

EnergyDifference = Callable[[Array, Array], Array]
"""(x, x_new), each (B, *event) -> E(x_new) - E(x), (B,), with E = -log p."""


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


class _Slope(NamedTuple):
    """Where the chains are, with the score there, (B, *event) each."""

    x: Array
    score: Array


class _Walk(NamedTuple):
    """The numbers of a walk: steps and temperatures, (B or 1, 1, ...); the kicks."""

    step: Array
    temperature: Array
    kick_share: Array
    kick_scale: Array


def mh_sample(
    key: Array,
    energy_difference: EnergyDifference,
    x0: ArrayLike,
    step: ArrayLike,
    n: int,
    temperature: ArrayLike = 1.0,
    *,
    thinning: int = 1,
    kick_share: float = 0.0,
    kick_scale: float = 10.0,
    log_density: Callable[[Array], Array] | None = None,
) -> Chain:
    """Sample p^(1/T) by a random walk: x' = x + step n, accepted by its energy.

    With kicks, a share of the proposals is `kick_scale` times as long, which lets
    chains change between far modes; a mixture of symmetric proposals is symmetric.
    Chain i depends on the key, on i and on its start alone.

    Args:
        key: A `jax.random.key`.
        energy_difference: See `EnergyDifference`; a pytree, or a plain function, whose
            arrays are then compiled in.
        x0: Starts, (B, *event), data units; the states keep its dtype.
        step: Standard deviation of a move, () or (B,), data units, above 0.
        n: States to keep, at least 1.
        temperature: T, () or (B,), above 0; 1 samples p itself.
        thinning: Moves from one state kept to the next, at least 1.
        kick_share: Share of the moves that are kicks, in [0, 1].
        kick_scale: Their length over that of the others, above 0.
        log_density: (B, *event) -> (B,), if there is one: starts of density 0 are then
            found even where the energy difference does not show them.

    Returns:
        The chains; see `Chain`.

    Raises:
        InputError: If an argument is out of range, or if a chain starts where the
            density is 0 or the energy difference is not finite.

    Source: Alain & Bengio, arXiv 1211.4246, for scores of auto-encoders.
    """
    require(0 <= kick_share <= 1, "kick_share", kick_share, "in [0, 1]")
    x, indices, walk = _prepare(x0, step, n, temperature, thinning)
    walk = walk._replace(
        kick_share=jnp.asarray(kick_share), kick_scale=jnp.asarray(kick_scale)
    )
    require(kick_scale > 0, "kick_scale", kick_scale, "above 0")
    _check_start(energy_difference, x, log_density)
    keys = chain_keys(key, len(x))
    return _random_walk(as_pytree(energy_difference), x, keys, indices, walk)


def mala_sample(
    key: Array,
    energy_difference: EnergyDifference,
    x0: ArrayLike,
    step: ArrayLike,
    n: int,
    temperature: ArrayLike = 1.0,
    *,
    score: Callable[[Array], Array],
    thinning: int = 1,
    log_density: Callable[[Array], Array] | None = None,
) -> Chain:
    """Sample p^(1/T) by moves along the score, with their exact correction.

        x' = x + step^2 score(x) / (2 T) + step n

    The score is evaluated once a move, at its end; it need not belong to the energy,
    which alone decides what is sampled.  Chain i depends on the key, on i and on its
    start alone.

    Args:
        key: A `jax.random.key`.
        energy_difference: See `EnergyDifference`.
        x0: Starts, (B, *event), data units; the states keep its dtype.
        step: Standard deviation of the noise of a move, () or (B,), above 0.
        n: States to keep, at least 1.
        temperature: T, () or (B,), above 0; 1 samples p itself.
        score: (B, *event) -> (B, *event), the gradient of log p.
        thinning: Moves from one state kept to the next, at least 1.
        log_density: As in `mh_sample`.

    Returns:
        The chains; see `Chain`.

    Raises:
        InputError: As in `mh_sample`, or if the score has another shape than `x0`.

    Source: Roberts & Tweedie, Bernoulli 2 (1996) 341-363.
    """
    x, indices, walk = _prepare(x0, step, n, temperature, thinning)
    _check_start(energy_difference, x, log_density)
    shape = jax.eval_shape(as_pytree(score), x).shape
    if shape != x.shape:
        raise InputError(f"the score of x0 {x.shape} has shape {shape}; give the same")
    keys, energies = chain_keys(key, len(x)), as_pytree(energy_difference)
    return _langevin_walk(energies, as_pytree(score), x, keys, indices, walk)


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


@jax.jit
def _random_walk(
    energy_difference: EnergyDifference,
    x: Array,
    keys: Array,
    indices: Array,
    walk: _Walk,
) -> Chain:
    def move(state: Position, keys: Array) -> tuple[Position, Array]:
        white, uniform, kick = jax.vmap(lambda k: jax.random.split(k, 3))(keys).T
        kicked = jax.vmap(lambda k: jax.random.uniform(k))(kick) < walk.kick_share
        length = jnp.where(kicked, walk.kick_scale, 1.0)
        length = walk.step * length.astype(walk.step.dtype).reshape(_column(x))
        new = (state.x + length * _normal(white, x, length.dtype)).astype(x.dtype)
        log_ratio = -energy_difference(state.x, new) / walk.temperature.ravel()
        accepted = _accepts(uniform, log_ratio)
        kept = jnp.where(accepted.reshape(_column(x)), new, state.x)
        return Position(kept), accepted

    return run_chains(move, Position(x), keys, indices)


@jax.jit
def _langevin_walk(
    energy_difference: EnergyDifference,
    score: Callable[[Array], Array],
    x: Array,
    keys: Array,
    indices: Array,
    walk: _Walk,
) -> Chain:
    pull = walk.step**2 / (2 * walk.temperature)
    variance = walk.step.ravel() ** 2

    def move(state: _Slope, keys: Array) -> tuple[_Slope, Array]:
        white, uniform = jax.vmap(lambda k: jax.random.split(k, 2))(keys).T
        drifted = state.x + pull * state.score
        noise = walk.step * _normal(white, x, walk.step.dtype)
        new = (drifted + noise).astype(x.dtype)
        there = score(new)
        # What rounding made of the move is what is to be balanced, not the noise.
        forward, backward = new - drifted, state.x - (new + pull * there)
        log_q = (_squared(forward) - _squared(backward)) / (2 * variance)
        log_ratio = -energy_difference(state.x, new) / walk.temperature.ravel()
        accepted = _accepts(uniform, log_ratio + log_q)
        made = accepted.reshape(_column(x))
        kept = _Slope(
            jnp.where(made, new, state.x), jnp.where(made, there, state.score)
        )
        return kept, accepted

    return run_chains(move, _Slope(x, score(x)), keys, indices)


def _accepts(keys: Array, log_ratio: Array) -> Array:
    """Return whether log u < log ratio; a ratio that is NaN is refused."""
    # -log u of a uniform u is exponential, and exact where u would round to 0.
    draws = jax.vmap(lambda k: jax.random.exponential(k, (), log_ratio.dtype))(keys)
    return -draws < log_ratio


def _normal(keys: Array, x: Array, dtype: Any) -> Array:
    """Return white noise of the shape of `x`, a chain's from its own key."""
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], dtype))(keys)


def _squared(x: Array) -> Array:
    """Return squared lengths, (B,)."""
    return jnp.sum(x**2, axis=tuple(range(1, x.ndim)))


def _column(x: Array) -> tuple[int, ...]:
    """Return the shape that makes (B,) broadcast against `x`."""
    return (-1,) + (1,) * (x.ndim - 1)


def _prepare(
    x0: ArrayLike, step: ArrayLike, n: int, temperature: ArrayLike, thinning: int
) -> tuple[Array, Array, _Walk]:
    """Check the numbers of a walk; return the starts and the numbers of the moves."""
    x = jnp.asarray(x0)
    length = expand_sigma(step, x, name="step")
    warmth = expand_sigma(temperature, x, name="temperature")
    none = jnp.zeros((), length.dtype)
    return x, move_numbers(n, thinning), _Walk(length, warmth, none, none)


def _check_start(
    energy_difference: EnergyDifference,
    x: Array,
    log_density: Callable[[Array], Array] | None,
) -> None:
    """Refuse starts of density 0: there E(x) - E(x) is not 0 but infinity - infinity.

    Raises:
        InputError: Naming the first such chain, or a difference of a wrong shape.
    """
    itself = energy_difference(x, x)
    if itself.shape != (len(x),):
        raise InputError(
            f"the energy difference has shape {itself.shape}; it must be ({len(x)},), "
            "one number per chain"
        )
    known = [itself] + ([] if log_density is None else [log_density(x)])
    for values in known:
        if isinstance(values, Tracer):
            continue
        wrong = ~np.isfinite(np.asarray(values, np.float64))
        if wrong.any():
            raise InputError(
                f"chain {np.argmax(wrong)} starts at a point of zero density or unknown"
                " energy; start it where the density is above 0, such as at a sample"
            )
