"""Teleportation in front of a diffusers loop: the first steps without the network.

Needs the extra `parity` (torch and diffusers).  A mixture stands in for the network:

    python examples/teleport_diffusers.py
"""

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler

from diffusion.closed_form import fit_gaussian
from diffusion.data import load_builtin
from samplers import Teleport

ANGLES = 2 * np.pi * np.arange(3) / 3
MEANS = torch.tensor(1.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1))


def network(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Predict the clean sample of x = alpha (x0 + sigma n)."""
    total = 0.25**2 + sigma**2
    difference = x[:, None] / alpha - MEANS
    weights = torch.softmax(-(difference**2).sum(2) / (2 * total), dim=1)
    return (weights[..., None] * (MEANS + 0.25**2 / total * difference)).sum(1)


def generate(noise: np.ndarray, sigma_skip: float) -> torch.Tensor:
    """Sample by diffusers from the first timestep at or below sigma_skip on."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="sample")
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double()
    first = int((sigmas > sigma_skip).sum())
    # The two lines of teleportation: x0 + sigma n there, and alpha for their frame.
    start = Teleport(fit_gaussian(load_builtin("mixture2d").images), float(sigmas[0]))
    x = torch.tensor(np.array(start(jnp.asarray(noise), float(sigmas[first]))))
    x = x / (1 + sigmas[first] ** 2) ** 0.5
    scheduler.set_begin_index(first)
    for i, timestep in enumerate(scheduler.timesteps[first:], start=first):
        alpha = 1 / (1 + sigmas[i] ** 2) ** 0.5
        x = scheduler.step(network(x, alpha, sigmas[i]), timestep, x).prev_sample
    print(f"from sigma {float(sigmas[first]):6.2f}: {20 - first} network calls")
    return x


def main() -> None:
    """Compare the whole loop with its second part after a teleport."""
    noise = np.random.default_rng(0).normal(size=(2000, 2))
    whole = generate(noise, sigma_skip=1e9)
    for sigma_skip in (20.0, 8.0):
        short = generate(noise, sigma_skip)
        rms = float(((short - whole) ** 2).mean().sqrt())
        print(f"  rms from the whole loop {rms:.4f}")


if __name__ == "__main__":
    main()
