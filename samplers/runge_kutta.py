"""The probability flow, as accurately as asked for: Dormand and Prince's method.

In u = log sigma the flow has no small scale of its own,

    dx/du = x - D(x, e^u),

and a Runge-Kutta method of order 5 with an embedded one of order 4 (Dormand & Prince,
J. Comput. Appl. Math. 6, 1980) chooses its steps by their difference.  Every sample has
a noise level and a step of its own, so what becomes of one does not depend on the rest
of the batch.

What an error in x means depends on the noise level: an error of size sigma is as large
as the noise.  Errors are therefore measured against sigma, in both directions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError, is_positive
from diffusion.denoiser import Denoiser, expand_per_sample, expand_sigma

__all__ = ["Arrival", "Moving", "dormand_prince", "probability_flow", "require_arrival"]

# Row i holds what stage i takes of the slopes before it; the last row is the step.
_STAGES = np.zeros((7, 7))
_STAGES[1, :1] = 1 / 5
_STAGES[2, :2] = 3 / 40, 9 / 40
_STAGES[3, :3] = 44 / 45, -56 / 15, 32 / 9
_STAGES[4, :4] = 19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729
_STAGES[5, :5] = 9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656
_STAGES[6, :6] = 35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84
_NODES = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
_ERROR = _STAGES[6] - np.array(
    [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]
)


class Moving(NamedTuple):
    """What moves along log sigma: samples, and integrals along their paths.

    Attributes:
        x: Samples, (B, *event); as a rate, dx/d log sigma.
        integrals: (B, Q), quantities that x does not depend on; as a rate, their
            integrands.
    """

    x: Array
    integrals: Array


class Arrival(NamedTuple):
    """Where the samples have come to.

    Attributes:
        x: (B, *event); NaN for samples that have not arrived.
        integrals: (B, Q); NaN likewise.
        sigma: (B,) noise level that each has come to.
        arrived: (B,) whether that is where it was to go.
        num_steps: (B,) steps tried, those that were too long included.
        nfe: () times that the field was evaluated on the batch.
    """

    x: Array
    integrals: Array
    sigma: Array
    arrived: Array
    num_steps: Array
    nfe: Array


Field = Callable[[Array, Array], Moving]
"""x (B, *event) and sigma (B,) to the rates of x and of the integrals."""


class _Progress(NamedTuple):
    """Between two steps: u and h (B,), the slope at u, and who still moves."""

    at: Moving
    slope: Moving
    u: Array
    h: Array
    moves: Array
    num_steps: Array
    nfe: Array


def probability_flow(denoiser: Denoiser) -> Field:
    """Return the field x - D(x, sigma), without integrals."""

    def field(x: Array, sigma: Array) -> Moving:
        denoised = denoiser(x, sigma)
        return Moving(x - denoised, jnp.zeros((len(x), 0), x.dtype))

    return field


def dormand_prince(
    field: Field,
    x: Array,
    sigma_from: ArrayLike,
    sigma_to: ArrayLike,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int = 1000,
) -> Arrival:
    """Move samples from one noise level to another, up or down.

    Pure, so it works inside `jax.jit`.  A step is accepted where the root mean square
    of its error over a sample is at most atol + rtol sigma in x, and atol + rtol
    max(1, |q|) in the integrals q, which start at 0.  Every attempt costs six calls of
    the field, and one more is made at the start; the batch goes on until its last
    sample has arrived.  Memory is that of about fifteen batches, beside what the field
    needs.

    Args:
        field: Such as `probability_flow(denoiser)`.
        x: Samples at `sigma_from`, (B, *event).
        sigma_from: () or (B,), above 0, data units.
        sigma_to: () or (B,), above 0.
        rtol: Error of a step relative to the noise level; None is 1e-5, or 1e-8 for
            float64.  A network in bfloat16 is not smooth enough for less than 1e-3.
        atol: Error of a step allowed at any noise level, data units.
        max_steps: Steps that a sample may try before it is given up.

    Returns:
        See `Arrival`; x in the dtype given.

    Raises:
        InputError: If a sigma has the wrong shape or value, or a tolerance is not
            above 0.
    """
    start, end = expand_sigma(sigma_from, x), expand_sigma(sigma_to, x, name="sigma_to")
    wide = start.dtype
    if rtol is None:
        rtol = 1e-8 if wide == jnp.float64 else 1e-5
    if not (is_positive(rtol) and atol >= 0 and max_steps >= 1):
        raise InputError(
            f"rtol is {rtol}, atol {atol} and max_steps {max_steps}; they must be "
            "above 0, at least 0 and at least 1"
        )
    start, end = (jnp.broadcast_to(s.reshape(-1), (len(x),)) for s in (start, end))
    target = jnp.log(end)

    def level(u: Array) -> Array:
        """Return e^u, which rounding must not carry outside of what was asked for."""
        return jnp.clip(jnp.exp(u), jnp.minimum(start, end), jnp.maximum(start, end))

    def cast_field(x: Array, u: Array) -> Moving:
        return jax.tree.map(lambda a: a.astype(wide), field(x, level(u)))

    def step(now: _Progress) -> _Progress:
        return _attempt(cast_field, now, target, rtol, atol, max_steps)

    x_wide, u = x.astype(wide), jnp.log(start)
    slope = cast_field(x_wide, u)
    first = _Progress(
        Moving(x_wide, jnp.zeros_like(slope.integrals)),
        slope,
        u,
        jnp.full_like(u, rtol**0.2),
        u != target,
        jnp.zeros(len(x), jnp.int32),
        jnp.ones((), jnp.int32),
    )
    last = jax.lax.while_loop(lambda now: jnp.any(now.moves), step, first)
    arrived = last.u == target
    reached, integrals = (
        jnp.where(expand_per_sample(arrived, a), a, jnp.nan).astype(x.dtype)
        for a in last.at
    )
    return Arrival(reached, integrals, level(last.u), arrived, last.num_steps, last.nfe)


def require_arrival(arrival: Arrival, sigma_to: ArrayLike, max_steps: int) -> None:
    """Refuse a batch of which a sample has not arrived; traced ones pass unseen.

    Args:
        arrival: What `dormand_prince` has returned.
        sigma_to: What it was given.
        max_steps: Likewise.

    Raises:
        InputError: Naming the first such sample and how far it has come.
    """
    if isinstance(arrival.arrived, Tracer) or np.all(arrival.arrived):
        return
    i = int(np.argmin(arrival.arrived))
    target = float(np.broadcast_to(sigma_to, arrival.arrived.shape)[i])
    where = (
        f"sample {i} stopped at sigma = {float(arrival.sigma[i]):.4g} on its way to "
        f"{target:.4g}"
    )
    if int(arrival.num_steps[i]) >= max_steps:
        raise InputError(f"{where} after {max_steps} steps; raise max_steps or rtol")
    raise InputError(
        f"{where}: the denoiser is NaN, infinite or discontinuous there; call it there "
        "to see"
    )


def _attempt(
    field: Callable[[Array, Array], Moving],
    now: _Progress,
    target: Array,
    rtol: float,
    atol: float,
    max_steps: int,
) -> _Progress:
    """Try a step of every sample that still moves; the others stay where they are."""
    left = target - now.u
    is_last = now.h >= jnp.abs(left)
    h = jnp.where(is_last, left, jnp.sign(left) * now.h)
    h = jnp.where(now.moves, h, 0)
    there, slopes = _stages(field, now, h)
    u = jnp.where(is_last, target, now.u + h)
    rms = _error(now, there, slopes, h, u, rtol, atol)
    accepted = now.moves & (rms <= 1)
    # The error of a step is of order h^5.
    growth = jnp.clip(0.9 * jnp.maximum(rms, 1e-10) ** -0.2, 0.2, 5.0)
    growth = jnp.where(jnp.isfinite(rms), growth, 0.2)
    next_h = jnp.where(now.moves, growth * jnp.abs(h), now.h)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(expand_per_sample(accepted, new), new, old)

    u = choose(u, now.u)
    num_steps = now.num_steps + now.moves
    tiny = next_h < 10 * jnp.finfo(u.dtype).eps * jnp.maximum(1, jnp.abs(u))
    gives_up = (tiny & ~accepted) | (num_steps >= max_steps)
    return _Progress(
        jax.tree.map(choose, there, now.at),
        jax.tree.map(lambda k, old: choose(k[-1], old), slopes, now.slope),
        u,
        next_h,
        now.moves & (u != target) & ~gives_up,
        num_steps,
        now.nfe + 6,
    )


def _stages(
    field: Callable[[Array, Array], Moving], now: _Progress, h: Array
) -> tuple[Moving, Moving]:
    """Return where a step of h (B,) leads, and its seven slopes, (7, B, ...).

    One loop, so that the field is compiled once and not six times.
    """
    nodes = jnp.asarray(_NODES, h.dtype)
    rows = jnp.asarray(_STAGES, h.dtype)

    def stage(i: Array, carry: tuple[Moving, Moving]) -> tuple[Moving, Moving]:
        _, slopes = carry
        there = jax.tree.map(lambda a, k: a + _combine(rows[i], k, h), now.at, slopes)
        found = field(there.x, now.u + nodes[i] * h)
        return there, jax.tree.map(lambda k, new: k.at[i].set(new), slopes, found)

    slopes = jax.tree.map(
        lambda a: jnp.zeros((7, *a.shape), a.dtype).at[0].set(a), now.slope
    )
    return jax.lax.fori_loop(1, 7, stage, (now.at, slopes))


def _combine(weights: Array, slopes: Array, h: Array) -> Array:
    """Return h (B,) times the weighted sum of slopes (7, B, ...)."""
    total = jnp.sum(expand_per_sample(weights, slopes) * slopes, axis=0)
    return expand_per_sample(h, total) * total


def _error(
    now: _Progress,
    there: Moving,
    slopes: Moving,
    h: Array,
    u: Array,
    rtol: float,
    atol: float,
) -> Array:
    """Return the error of a step relative to what is allowed, (B,)."""
    weights = jnp.asarray(_ERROR, h.dtype)
    level = jnp.exp(jnp.minimum(now.u, u))
    relative = _rms(_combine(weights, slopes.x, h)) / (atol + rtol * level)
    if not there.integrals.size:
        return relative
    size = jnp.maximum(1, _rms(there.integrals))
    of_integrals = _rms(_combine(weights, slopes.integrals, h))
    return jnp.maximum(relative, of_integrals / (atol + rtol * size))


def _rms(a: Array) -> Array:
    """Return the root mean square over all axes but the first."""
    return jnp.sqrt(jnp.mean(a.reshape(len(a), -1) ** 2, axis=1))
