"""The adaptive DPM-Solver: singlestep DPM-Solver++ that chooses its own steps.

In u = log(1/sigma) a step of length h is tried with two orders that share their calls
(1 and 2, or 2 and 3), and accepted if

    E = rms((x_high - x_low) / max(atol, rtol max(|x_low|, |x_before|))) <= 1;

then or else h becomes .9 h E^(-1/order), and not past the end (arXiv 2206.00927,
appendix C; data prediction as in arXiv 2211.01095).  Every sample has steps of its own,
so it does not depend on the others of its batch.  Inside `jax.jit` a sample that does
not arrive cannot be refused: it is NaN.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.denoiser import (
    Denoiser,
    as_pytree,
    expand_per_sample,
    expand_sigma,
)
from samplers.solver import Solution

__all__ = ["adaptive_dpm_solver"]

_FIRST_STEP = 0.05
_SAFETY = 0.9
_MAX_ATTEMPTS = 10_000


class _Walk(NamedTuple):
    """x, D there, u, step, x before the last accepted step (low order), attempts."""

    x: Array
    denoised: Array
    u: Array
    h: Array
    before: Array
    attempts: Array


def adaptive_dpm_solver(
    denoiser: Denoiser,
    x: ArrayLike,
    sigma_max: float,
    sigma_min: float,
    *,
    order: int = 2,
    rtol: float = 0.05,
    atol: float = 0.0078,
) -> Solution:
    """Move samples from `sigma_max` to `sigma_min`, then to 0 by one call.

    Args:
        denoiser: Any `Denoiser`; it is called with sigma of shape (B,).
        x: Samples at `sigma_max`, (B, *event).
        sigma_max: First noise level, data units.
        sigma_min: Last noise level, above 0.
        order: 2 or 3, the higher of the two orders compared.
        rtol: Relative tolerance.
        atol: Absolute tolerance, data units; 1/128 is a grey level.

    Returns:
        Samples, the calls counted while it ran (those of the slowest sample; an array
        inside `jax.jit`), no trace.

    Raises:
        InputError: If an argument is out of range, or (outside of jit) a sample does
            not arrive: its steps have become too small, or the denoiser's output is
            not finite.
    """
    x = jnp.asarray(x)
    expand_sigma(sigma_max, x)
    if order not in (2, 3):
        raise InputError(f"order is {order}; the adaptive solver has orders 2 and 3")
    traced = [isinstance(v, Tracer) for v in (sigma_max, sigma_min, rtol, atol)]
    if not (any(traced[:2]) or 0 < sigma_min < sigma_max):
        raise InputError(
            f"sigma_max is {sigma_max} and sigma_min {sigma_min}; they must satisfy "
            "0 < sigma_min < sigma_max"
        )
    if not (any(traced[2:]) or (rtol > 0 and atol > 0)):
        raise InputError(f"rtol is {rtol} and atol {atol}; both must be above 0")
    denoiser = as_pytree(denoiser)
    levels = jnp.stack([sigma_max, sigma_min, rtol, atol]).astype(x.dtype)
    sample, nfe, arrived = _run(denoiser, x, levels, order=order)
    if isinstance(arrived, Tracer):
        return Solution(sample, nfe, None)
    if not bool(arrived.all()):
        lost = int(jnp.argmin(arrived))
        raise InputError(
            f"sample {lost} did not reach sigma = {sigma_min}: its steps became too "
            "small or its values are not finite; raise the tolerances or sigma_min"
        )
    return Solution(sample, int(nfe), None)


@functools.partial(jax.jit, static_argnames="order")
def _run(
    denoiser: Denoiser, x: Array, levels: Array, *, order: int
) -> tuple[Array, Array, Array]:
    sigma_max, sigma_min, rtol, atol = levels
    end = -jnp.log(sigma_min)
    batch = x.shape[0]
    first = _Walk(
        x,
        denoiser(x, jnp.full(batch, sigma_max)),
        jnp.full(batch, -jnp.log(sigma_max)),
        jnp.full(batch, _FIRST_STEP, levels.dtype),
        x,
        jnp.zeros((), jnp.int32),
    )

    def moving(walk: _Walk) -> Array:
        return (walk.u < end) & jnp.isfinite(walk.h) & (walk.u + walk.h > walk.u)

    def attempt(walk: _Walk) -> _Walk:
        active = moving(walk)
        h = jnp.minimum(walk.h, end - walk.u)
        low, high = _try_step(denoiser, walk, h, order)
        scale = jnp.maximum(atol, rtol * jnp.maximum(abs(low), abs(walk.before)))
        axes = tuple(range(1, x.ndim))
        error = jnp.sqrt(jnp.mean(((high - low) / scale) ** 2, axis=axes))
        accepted = active & (error <= 1)
        u = jnp.where(accepted, jnp.where(h < walk.h, end, walk.u + h), walk.u)
        take = lambda new, old: jnp.where(expand_per_sample(accepted, new), new, old)  # noqa: E731
        new_x = take(high, walk.x)
        # Called at every attempt: at rejected samples it gives back what is known.
        denoised = denoiser(new_x, jnp.exp(-u))
        factor = _SAFETY * jnp.maximum(error, 1e-6) ** (-1 / order)
        return _Walk(
            new_x,
            take(denoised, walk.denoised),
            u,
            jnp.where(active, factor * h, walk.h),
            take(low, walk.before),
            walk.attempts + 1,
        )

    def unfinished(walk: _Walk) -> Array:
        return jnp.any(moving(walk)) & (walk.attempts < _MAX_ATTEMPTS)

    last = jax.lax.while_loop(unfinished, attempt, first)
    arrived = (last.u >= end) & (sigma_min <= sigma_max)  # levels may be traced
    known = expand_per_sample(arrived, x)
    sample = jnp.where(known, last.denoised, jnp.nan).astype(x.dtype)
    return sample, 1 + order * last.attempts, arrived


def _try_step(
    denoiser: Denoiser, walk: _Walk, h: Array, order: int
) -> tuple[Array, Array]:
    """Return x after a step by the lower and the higher order."""
    sigma = jnp.exp(-walk.u)

    def move(share: float, slope: Array | float = 0.0, node: float = 1.0) -> Array:
        """Go `share` of the step; D grows by `slope` at `node` of it."""
        k = expand_per_sample(share * h, walk.x)
        grown = (k + jnp.expm1(-k)) / k  # k phi_2(-k)
        moved = jnp.exp(-k) * walk.x - jnp.expm1(-k) * walk.denoised
        return (moved + share / node * grown * slope).astype(walk.x.dtype)

    def output(at: Array, share: float) -> Array:
        return denoiser(at, sigma * jnp.exp(-share * h)) - walk.denoised

    if order == 2:
        slope = output(move(0.5), 0.5)
        return move(1.0), move(1.0, slope, 0.5)
    first = output(move(1 / 3), 1 / 3)
    second = output(move(2 / 3, first, 1 / 3), 2 / 3)
    return move(1.0, first, 1 / 3), move(1.0, second, 2 / 3)
