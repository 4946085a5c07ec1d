"""Few calls, small error: solvers and starts where the exact answer is known.

A mixture of ten Gaussians, one per cluster of the built-in digits, stands in for a
network; its own flow, integrated to a tolerance, is the truth.  Runs in seconds:

    python examples/fast_sampling.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.closed_form import fit_gaussian, fit_mixture
from diffusion.data import load_builtin
from samplers import (
    AnalyticPrefix,
    DPMSolverPP,
    DPMSolverV3,
    Heun,
    Prior,
    Teleport,
    UniPC,
    gaussian_statistics,
    integrate,
    log_linear,
)

CALLS = 8


def main() -> None:
    """Print the error of six ways to spend eight calls."""
    images = load_builtin("digits").images
    network = fit_mixture(images, 10, rank=8, method="kmeans")
    gaussian = fit_gaussian(images)
    noise = jax.random.normal(jax.random.key(1), (64, *images.shape[1:]))
    lowest = 0.02
    exact = network(AnalyticPrefix(network)(noise, lowest), lowest)
    v3 = DPMSolverV3(gaussian_statistics(gaussian), order=2)
    rows = {
        "Heun": (Heun(), Prior(), 80.0),
        "DPM-Solver++ 2M": (DPMSolverPP(2), Prior(), 80.0),
        "UniPC-3": (UniPC(3), Prior(), 80.0),
        "UniPC-3, teleport": (UniPC(3), Teleport(gaussian), 20.0),
        "DPM-Solver-v3, Gaussian": (v3, Prior(), 80.0),
        "DPM-Solver-v3, teleport": (v3, Teleport(gaussian), 20.0),
    }
    for name, (solver, start, sigma) in rows.items():
        points = max(n for n in range(1, CALLS + 1) if solver.nfe(n) <= CALLS)
        grid = log_linear(points, lowest, sigma)
        found = integrate(solver, network, start(noise, sigma), grid)
        rms = float(jnp.sqrt(jnp.mean((found.x - exact) ** 2)))
        print(f"{name:24} {found.nfe} calls from sigma {sigma:4.0f}: rms {rms:.4f}")
    print(f"spread of the samples: {float(np.std(exact)):.3f}")


if __name__ == "__main__":
    main()
