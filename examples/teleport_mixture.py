"""Teleportation without a network: sample three Gaussians with fewer solver calls.

The exact score of a mixture stands in for a trained network, and the single Gaussian
with the same mean and covariance does the first part of the way.  Runs in seconds:

    python examples/teleport_mixture.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.closed_form import fit_gaussian
from diffusion.data import load_builtin
from samplers import Heun, Prior, Teleport, karras, sample, skip_above

ANGLES = 2 * np.pi * np.arange(3) / 3
MEANS = jnp.asarray(1.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1))
VARIANCE = 0.25**2


def mixture(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """The posterior mean E[x0 | x] of the three Gaussians, by Bayes' rule."""
    total = VARIANCE + jnp.reshape(sigma, (-1, 1)) ** 2
    difference = x[:, None] - MEANS
    weights = jax.nn.softmax(-jnp.sum(difference**2, axis=2) / (2 * total), axis=1)
    means = MEANS + (VARIANCE / total)[..., None] * difference
    return jnp.sum(weights[..., None] * means, axis=1)


def main() -> None:
    """Compare the whole grid with grids that start after a teleport."""
    gaussian = fit_gaussian(load_builtin("mixture2d").images)
    key, shape, grid = jax.random.key(0), (2000, 2), karras(18)
    plain = sample(mixture, key, shape, grid, solver=Heun(), start=Prior())
    print(f"whole grid: {plain.nfe} calls")
    for points in (4, 6, 8, 10):
        tail = skip_above(grid, grid[points])
        short = sample(mixture, key, shape, tail, start=Teleport(gaussian))
        control = sample(mixture, key, shape, tail, start=Prior())
        print(
            f"from sigma {tail[0]:6.3f}: {short.nfe} calls, rms from the whole grid "
            f"{rms(short.x, plain.x):.4f} (at sigma * noise: "
            f"{rms(control.x, plain.x):.4f})"
        )


def rms(a: jax.Array, b: jax.Array) -> float:
    """Return the root mean square difference."""
    return float(jnp.sqrt(jnp.mean((a - b) ** 2)))


if __name__ == "__main__":
    main()
