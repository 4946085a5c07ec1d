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
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError, require
from diffusion.denoiser import as_pytree, expand_sigma
from samplers.chains import Chain, chain_keys, move_numbers, run_chains

__all__ = [
    "EnergyDifference",
    "ScoreIntegral",
    "mala_sample",
    "mh_sample",
]

EnergyDifference = Callable[[Array, Array], Array]
"""(x, x_new), each (B, *event) -> E(x_new) - E(x), (B,), with E = -log p."""


@runtime_checkable
class ScoreIntegral(Protocol):
    """An energy difference that is the integral of a score along the segment.

    Where the quadrature has the ends of the segment among its nodes, the score at a
    state is evaluated once, however many moves begin there.
    """

    def __call__(self, x: Array, x_new: Array) -> Array:
        """Return E(x_new) - E(x), (B,); see `EnergyDifference`."""
        ...

    @property
    def uses_ends(self) -> bool:
        """Whether both ends are nodes."""
        ...

    @property
    def score(self) -> Callable[[Array], Array]:
        """What is integrated, (B, *event) -> (B, *event), the gradient of log p."""
        ...

    def between(self, x: Array, x_new: Array, score: Array, score_new: Array) -> Array:
        """Return E(x_new) - E(x), (B,), where both ends are nodes and known."""
        ...


class _Slope(NamedTuple):
    """Where the chains are, with the score there, (B, *event), or None if unused."""

    x: Array
    score: Any


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
            arrays are then compiled in.  Of a `ScoreIntegral` that uses the ends the
            score at a state is kept for the moves that begin there.
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
    score: Callable[[Array], Array] | None = None,
    thinning: int = 1,
    log_density: Callable[[Array], Array] | None = None,
) -> Chain:
    """Sample p^(1/T) by moves along the score, with their exact correction.

        x' = x + step^2 score(x) / (2 T) + step n

    The score is evaluated once a move, at its end; it need not belong to the energy,
    which alone decides what is sampled.  Where it does (None), a quadrature with both
    ends among its nodes, such as ``lobatto4``, takes it from there.  Chain i depends on
    the key, on i and on its start alone.

    Args:
        key: A `jax.random.key`.
        energy_difference: See `EnergyDifference`.
        x0: Starts, (B, *event), data units; the states keep its dtype.
        step: Standard deviation of the noise of a move, () or (B,), above 0.
        n: States to keep, at least 1.
        temperature: T, () or (B,), above 0; 1 samples p itself.
        score: (B, *event) -> (B, *event), the gradient of log p; None for that of the
            energy difference, which must then be a `ScoreIntegral`.
        thinning: Moves from one state kept to the next, at least 1.
        log_density: As in `mh_sample`.

    Returns:
        The chains; see `Chain`.

    Raises:
        InputError: As in `mh_sample`, or if the score is missing or has another shape
            than `x0`.

    Source: Roberts & Tweedie, Bernoulli 2 (1996) 341-363.
    """
    x, indices, walk = _prepare(x0, step, n, temperature, thinning)
    _check_start(energy_difference, x, log_density)
    energies = as_pytree(energy_difference)
    own = energies.score if isinstance(energies, ScoreIntegral) else None
    slope = own if score is None else as_pytree(score)
    if slope is None:
        raise InputError(
            "mala_sample got no score, and the energy difference is no integral of "
            "one; give score=, the gradient of log p"
        )
    shape = jax.eval_shape(slope, x).shape
    if shape != x.shape:
        raise InputError(f"the score of x0 {x.shape} has shape {shape}; give the same")
    shared = score is None and _reused_score(energies) is not None
    keys = chain_keys(key, len(x))
    return _langevin_walk(energies, slope, x, keys, indices, walk, shared)


@jax.jit
def _random_walk(
    energy_difference: EnergyDifference,
    x: Array,
    keys: Array,
    indices: Array,
    walk: _Walk,
) -> Chain:
    reused = _reused_score(energy_difference)

    def move(state: _Slope, keys: Array) -> tuple[_Slope, Array]:
        white, uniform, kick = jax.vmap(lambda k: jax.random.split(k, 3))(keys).T
        kicked = jax.vmap(lambda k: jax.random.uniform(k))(kick) < walk.kick_share
        length = jnp.where(kicked, walk.kick_scale, 1.0)
        length = walk.step * length.astype(walk.step.dtype).reshape(_column(x))
        moved = (state.x + length * _normal(white, x, length.dtype)).astype(x.dtype)
        new = _Slope(moved, None if reused is None else reused(moved))
        difference = _difference(energy_difference, state, new, reused is not None)
        accepted = _accepts(uniform, -difference / walk.temperature.ravel())
        return _chosen(accepted, new, state), accepted

    first = _Slope(x, None if reused is None else reused(x))
    return run_chains(move, first, keys, indices)


@partial(jax.jit, static_argnames="shared")
def _langevin_walk(
    energy_difference: EnergyDifference,
    score: Callable[[Array], Array],
    x: Array,
    keys: Array,
    indices: Array,
    walk: _Walk,
    shared: bool,
) -> Chain:
    """Walk; with `shared` the score is that of the energy difference, a node too."""
    pull = walk.step**2 / (2 * walk.temperature)
    variance = walk.step.ravel() ** 2

    def move(state: _Slope, keys: Array) -> tuple[_Slope, Array]:
        white, uniform = jax.vmap(lambda k: jax.random.split(k, 2))(keys).T
        drifted = state.x + pull * state.score
        noise = walk.step * _normal(white, x, walk.step.dtype)
        moved = (drifted + noise).astype(x.dtype)
        new = _Slope(moved, score(moved))
        # What rounding made of the move is what is to be balanced, not the noise.
        forward, backward = moved - drifted, state.x - (moved + pull * new.score)
        log_q = (_squared(forward) - _squared(backward)) / (2 * variance)
        difference = _difference(energy_difference, state, new, shared)
        log_ratio = log_q - difference / walk.temperature.ravel()
        accepted = _accepts(uniform, log_ratio)
        return _chosen(accepted, new, state), accepted

    return run_chains(move, _Slope(x, score(x)), keys, indices)


def _reused_score(
    energy_difference: EnergyDifference,
) -> Callable[[Array], Array] | None:
    """Return the score that is known at the ends of every move, if there is one."""
    if isinstance(energy_difference, ScoreIntegral) and energy_difference.uses_ends:
        return energy_difference.score
    return None


def _difference(
    energy_difference: Any, old: _Slope, new: _Slope, shared: bool
) -> Array:
    """Return E(new) - E(old), (B,); with `shared` from the scores there too."""
    if shared:
        return energy_difference.between(old.x, new.x, old.score, new.score)
    return energy_difference(old.x, new.x)


def _chosen(accepted: Array, new: _Slope, old: _Slope) -> _Slope:
    """Return the new states where they were accepted."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(accepted.reshape(_column(a)), a, b)

    return jax.tree.map(choose, new, old)


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
