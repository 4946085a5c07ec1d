"""Solvers against diffusers: same denoiser, levels and noise, step by step."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import DPMSolverPP, UniPC, integrate, karras, log_linear

pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

MEANS = np.array([[-1.0, 0.4, 0.2], [0.8, -0.3, -0.6]])
STD = 0.3


def denoise(x, sigma):
    """The posterior mean of two Gaussians."""
    total = STD**2 + sigma**2
    difference = x[:, None] - MEANS
    logits = -0.5 * (difference**2).sum(-1) / total
    weights = jax.nn.softmax(logits, axis=1)[..., None]
    return (weights * (MEANS + STD**2 / total * difference)).sum(1)


def states(scheduler, grid, x):
    """Run a scheduler's loop on a grid; return x at each of its points."""
    import torch

    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = torch.tensor(grid)
    scheduler.timesteps = torch.arange(len(grid) - 1)
    scheduler.set_begin_index(0)
    alphas = 1 / np.sqrt(1 + grid**2)
    found = [np.asarray(x)]
    for i, timestep in enumerate(scheduler.timesteps):
        with jax.enable_x64(True):
            denoised = np.array(denoise(jnp.asarray(found[-1]), grid[i]))
        moved = scheduler.step(
            torch.tensor(denoised), timestep, torch.tensor(alphas[i] * found[-1])
        ).prev_sample
        found.append(np.asarray(moved, np.float64) / alphas[i + 1])
    return np.array(found)


@pytest.mark.parametrize(
    "grid",
    [karras(11), log_linear(9, 0.02, 40.0)],
    ids=["karras", "log_linear"],
)
@pytest.mark.parametrize(
    ("solver", "theirs"),
    [
        (DPMSolverPP(2, "midpoint"), ("dpm", dict(solver_order=2))),
        (DPMSolverPP(3), ("dpm", dict(solver_order=3))),
        (UniPC(2, "bh1"), ("unipc", dict(solver_order=2, solver_type="bh1"))),
        (UniPC(2, "bh2"), ("unipc", dict(solver_order=2, solver_type="bh2"))),
        (UniPC(3, "bh1"), ("unipc", dict(solver_order=3, solver_type="bh1"))),
        (UniPC(3, "bh2"), ("unipc", dict(solver_order=3, solver_type="bh2"))),
    ],
    ids=["2M", "3M", "UniPC-2 bh1", "UniPC-2 bh2", "UniPC-3 bh1", "UniPC-3 bh2"],
)
def test_states_are_those_of_diffusers(solver, theirs, grid):
    kind, options = theirs
    classes = {
        "dpm": diffusers.DPMSolverMultistepScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
    }
    scheduler = classes[kind](
        prediction_type="sample", lower_order_final=True, **options
    )
    x = grid[0] * np.random.default_rng(0).normal(size=(32, 3))
    wanted = states(scheduler, grid, x)
    with jax.enable_x64(True):
        found = integrate(solver, denoise, jnp.asarray(x), grid, trace=True).trace.x
    scale = np.sqrt(np.mean(wanted**2, axis=(1, 2)))
    error = np.sqrt(np.mean((found - wanted) ** 2, axis=(1, 2))) / scale
    assert error.max() < 1e-4, error
    # What the tolerance tells apart: another order differs by a hundred times as much.
    with jax.enable_x64(True):
        other = integrate(DPMSolverPP(1), denoise, jnp.asarray(x), grid, trace=True)
    away = np.sqrt(np.mean((other.trace.x - wanted) ** 2, axis=(1, 2))) / scale
    assert away.max() > 1e-2


def test_a_teleport_goes_in_front_of_a_diffusers_loop_in_under_thirty_lines():
    root = Path(__file__).resolve().parents[2]
    path = root / "examples" / "teleport_diffusers.py"
    (body,) = re.findall(r"(def generate.*?)\n\n\ndef ", path.read_text(), re.DOTALL)
    assert len(body.splitlines()) < 30
    result = subprocess.run(
        [sys.executable, str(path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    rms = [float(value) for value in re.findall(r"loop (\S+)", result.stdout)]
    assert 0 < rms[0] < rms[1] < 0.01
