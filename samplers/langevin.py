"""Annealed Langevin dynamics: random walks towards the score, level by level.

At each noise level of a decreasing grid, `steps` times,

    x <- x + step score(x, sigma) + sqrt(2 step) n,     step = step_size sigma^2,

whose stationary law is p(x; sigma) up to a bias of order `step_size` (Song & Ermon,
arXiv 1907.05600, where step_size is epsilon / (2 sigma_min^2)).  The last move to noise
0 is the denoiser, as everywhere in this house (arXiv 2009.05475).
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.denoiser import Denoiser, as_pytree, expand_sigma
from samplers.schedules import check_grid
from samplers.solver import Solution, check_keys

__all__ = ["annealed_langevin"]


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
