"""Annealed Langevin dynamics: random walks towards the score, level by level.

At each noise level of a decreasing grid, `steps` times,

    x <- x + step score(x, sigma) + sqrt(2 step) n,     step = step_size sigma^2,

whose stationary law is p(x; sigma) up to a bias of order `step_size` (Song & Ermon,
arXiv 1907.05600, where step_size is epsilon / (2 sigma_min^2)).  The last move to noise
0 is the denoiser, as everywhere in this house (arXiv 2009.05475).

At one noise level a reconstruction r(x) = x + sigma^2 score(x) walks by itself: walk
back, x <- r(x + sqrt(2) sigma n), is a Langevin step of sigma^2 taken after its noise
(arXiv 1305.6663, 1211.4246).  `samplers.metropolis_hastings` has the walks that are
corrected.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.denoiser import Denoiser, as_pytree, expand_sigma
from samplers.chains import (
    Chain,
    Position,
    chain_keys,
    move_numbers,
    run_chains,
)
from samplers.metropolis_hastings import mala_sample, mh_sample
from samplers.schedules import check_grid
from samplers.solver import Solution, check_keys

__all__ = [
    "Chain",
    "annealed_langevin",
    "langevin_recon",
    "mala_sample",
    "mh_sample",
]


def annealed_langevin(
    denoiser: Denoiser,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    keys: Array,
    steps: int = 5,
    step_size: float = 0.1,
) -> Solution:
    """Walk through all noise levels and denoise at the end.

    Args:
        denoiser: Any `Denoiser`.
        x: Samples at noise level ``sigmas[0]``, (B, *event).
        sigmas: (L,) decreasing positive noise levels.
        keys: (B,) keys; a sample depends on its own key alone.
        steps: Moves at each level, at least 1.
        step_size: Step over sigma^2, in (0, 1]; small is exact and slow.

    Returns:
        Samples, L steps + 1 calls, no trace.

    Raises:
        InputError: If an argument is out of range or there is not one key per sample.
    """
    grid = check_grid(sigmas)
    x = jnp.asarray(x)
    expand_sigma(grid[0], x)
    if steps != int(steps) or steps < 1:
        raise InputError(f"steps is {steps}; it must be an integer >= 1")
    if not 0 < step_size <= 1:
        raise InputError(f"step_size is {step_size}; it must be in (0, 1]")
    check_keys(keys, len(x))
    denoiser = as_pytree(denoiser)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    levels = jnp.asarray(grid, wide).repeat(int(steps))
    walked = _walk(denoiser, x, levels, keys, jnp.asarray(step_size, wide))
    return Solution(walked, len(grid) * int(steps) + 1, None)


@functools.partial(jax.jit)
def _walk(
    denoiser: Denoiser, x: Array, levels: Array, keys: Array, step_size: Array
) -> Array:
    def move(x: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        index, sigma = step
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], levels.dtype))(
            here
        )
        drift = step_size * (denoiser(x, sigma) - x)
        moved = x + drift + jnp.sqrt(2 * step_size) * sigma * noise
        return moved.astype(x.dtype), None

    x, _ = jax.lax.scan(move, x, (jnp.arange(len(levels)), levels))
    return denoiser(x, levels[-1])


def langevin_recon(
    key: Array,
    reconstruction: Callable[[Array], Array],
    x0: ArrayLike,
    sigma: ArrayLike,
    n: int,
    *,
    noise: ArrayLike | None = None,
    thinning: int = 1,
) -> Chain:
    """Walk back: add noise and reconstruct, again and again, x <- r(x + noise n).

    Nothing is refused, so the stationary law is p only up to order sigma^2: with the
    optimal r of N(0, v) and the usual noise its variance is v / (1 + sigma^2 / (2 v)).
    Far starts are led to the data, which a random walk does not do.

    Args:
        key: A `jax.random.key`; chain i depends on it, on i and on its start alone.
        reconstruction: r, (B, *event) -> (B, *event).
        x0: Starts, (B, *event), data units.
        sigma: Noise level of r, () or (B,), data units, above 0.
        n: States to keep, at least 1.
        noise: Standard deviation of the noise, () or (B,), above 0; None is
            sqrt(2) sigma, which makes it a Langevin step of sigma^2.
        thinning: Moves from one state kept to the next, at least 1.

    Returns:
        The chains; every move counts as accepted.

    Raises:
        InputError: If an argument is out of range, or r changes the shape.
    """
    x = jnp.asarray(x0)
    level = math.sqrt(2) * expand_sigma(sigma, x)
    if noise is not None:
        level = expand_sigma(noise, x, name="noise")
    wrapped: Any = as_pytree(reconstruction)
    shape = jax.eval_shape(wrapped, x).shape
    if shape != x.shape:
        raise InputError(
            f"the reconstruction of x0 {x.shape} has shape {shape}; give the same"
        )
    indices = move_numbers(n, thinning)
    return _walk_back(wrapped, x, chain_keys(key, len(x)), indices, level)


@jax.jit
def _walk_back(
    reconstruction: Callable[[Array], Array],
    x: Array,
    keys: Array,
    indices: Array,
    level: Array,
) -> Chain:
    def move(state: Position, keys: Array) -> tuple[Position, Array]:
        white = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], level.dtype))(keys)
        noised = (state.x + level * white).astype(x.dtype)
        moved = reconstruction(noised).astype(x.dtype)
        return Position(moved), jnp.ones(len(keys), bool)

    return run_chains(move, Position(x), keys, indices)
