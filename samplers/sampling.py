"""From a key to samples: noise, start, solver.

The noise of image i comes from ``fold_in(key, i)``, so it does not depend on how many
images are drawn or in which blocks, and two samplers given the same key are paired.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser
from samplers.heun import Heun
from samplers.schedules import check_grid
from samplers.solver import Solution, Solver, integrate
from samplers.start import Prior, Start, Teleport

__all__ = ["sample", "sample_blocks", "teleport"]


def sample(
    denoiser: Denoiser,
    key: Array,
    shape: tuple[int, ...],
    sigmas: ArrayLike,
    *,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    start: Start = Prior(),  # noqa: B008, a frozen value
    first_index: int = 0,
    trace: bool = False,
) -> Solution:
    """Draw samples.

    Args:
        denoiser: Any `Denoiser`.
        key: A `jax.random.key`.
        shape: (B, *event).
        sigmas: Noise grid, (L,), decreasing and positive; the start goes to its first
            point.
        solver: How to move along the grid.
        start: How to turn noise into x at the first point.
        first_index: Index of the first image; image i uses ``fold_in(key, i)``.
        trace: Whether to return the whole trajectory.

    Returns:
        Samples (B, *event), number of denoiser calls, trajectory.

    Raises:
        InputError: If the grid or a shape is not as described.
    """
    grid = check_grid(sigmas)
    if len(shape) < 2 or shape[0] < 1:
        raise InputError(f"shape is {shape}; give (B, *event) with B >= 1")
    indices = jnp.arange(first_index, first_index + shape[0])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    streams = jax.vmap(lambda k: jax.random.split(k))(keys)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(streams[:, 0])
    x = start(noise, grid[0])
    return integrate(solver, denoiser, x, grid, keys=streams[:, 1], trace=trace)


def sample_blocks(
    denoiser: Denoiser,
    key: Array,
    shape: tuple[int, ...],
    sigmas: ArrayLike,
    *,
    block_size: int = 256,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    start: Start = Prior(),  # noqa: B008, a frozen value
) -> Iterator[np.ndarray]:
    """Draw many samples in blocks of one size; image i is the same whatever the number.

    Args:
        denoiser: Any `Denoiser`.
        key: A `jax.random.key`.
        shape: (N, *event), all the samples wanted.
        sigmas: Noise grid, (L,).
        block_size: Images per block; the last block is computed whole and cut.
        solver: How to move along the grid.
        start: How to turn noise into x at the first point.

    Yields:
        Arrays of at most (block_size, *event) on the host, N samples in all.

    Raises:
        InputError: If the grid or a shape is not as described.
    """
    count, event = shape[0], tuple(shape[1:])
    if count < 1 or block_size < 1:
        raise InputError(
            f"{count} samples in blocks of {block_size} were asked for; both must be "
            "at least 1"
        )
    for first in range(0, count, block_size):
        solution = sample(
            denoiser,
            key,
            (block_size, *event),
            sigmas,
            solver=solver,
            start=start,
            first_index=first,
        )
        yield np.asarray(solution.x)[: count - first]


def teleport(
    noise: ArrayLike | Array,
    gaussian: GaussianDenoiser,
    sigma_max: float,
    sigma_skip: float,
) -> Array:
    """Move sigma_max * noise to `sigma_skip` along a Gaussian's exact flow.

    Args:
        noise: Standard normal noise, (B, *event).
        gaussian: The Gaussian of the training images.
        sigma_max: Noise level that the sampler would have started at.
        sigma_skip: Noise level to arrive at, at most sigma_max.

    Returns:
        Samples at `sigma_skip`, (B, *event), for any solver to go on from.

    Raises:
        InputError: If sigma_skip is above sigma_max, not above 0, or shapes differ.
    """
    return Teleport(gaussian, sigma_max)(jnp.asarray(noise), sigma_skip)
