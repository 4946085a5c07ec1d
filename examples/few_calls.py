"""Six calls: the residual integrator, measured gains and the automatic skip.

A mixture of ten Gaussians, one per cluster of the built-in digits, stands in for a
network; its own flow, integrated to a tolerance, is the truth.  Runs in half a minute:

    python examples/few_calls.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.closed_form import fit_gaussian, fit_mixture
from diffusion.data import load_builtin
from samplers import (
    AnalyticPrefix,
    DPMSolverPP,
    Prior,
    ResidualExponential,
    SkipCandidate,
    Teleport,
    calibrate_skip,
    choose_skip,
    estimate_gains,
    integrate,
    log_linear,
)

CALLS, LOWEST = 6, 0.05


def main() -> None:
    """Print the error of four ways to spend six calls, and where auto teleports to."""
    images = load_builtin("digits").images
    network = fit_mixture(images, 10, rank=8, method="kmeans")
    gaussian = fit_gaussian(images)
    keys = jax.random.split(jax.random.key(1), 3)
    noise = jax.random.normal(keys[0], (64, *images.shape[1:]))
    exact = network(AnalyticPrefix(network)(noise, 0.002), 0.002)
    levels = np.geomspace(80.0, 0.002, 20)
    gains = estimate_gains(network, gaussian, images, levels, keys[1]).statistics
    ours = ResidualExponential(gains, order=2, lower_order_final=False)
    calibration = calibrate_skip(network, gaussian, log_linear(32), keys[2])
    skips = [(None, 80.0), *((s, s) for s in (40.0, 20.0, 10.0, 5.0, 2.5))]
    tried = [SkipCandidate(s, ours, log_linear(CALLS, LOWEST, top)) for s, top in skips]
    choice = choose_skip(calibration, gaussian, tried, 80.0, surrogate=network)
    print(f"auto teleports to {choice.sigma_skip}")
    teleport = Teleport(gaussian)
    for name, solver, start, sigma in (
        ("DPM-Solver++ 2M", DPMSolverPP(2), Prior(), 80.0),
        ("residual, Gaussian", ResidualExponential(gaussian), Prior(), 80.0),
        ("residual, measured gains", ours, Prior(), 80.0),
        ("the same, auto", ours, teleport, choice.sigma_skip or 80.0),
    ):
        grid = log_linear(CALLS, LOWEST, sigma)
        found = integrate(solver, network, start(noise, sigma), grid)
        rms = float(jnp.sqrt(jnp.mean((found.x - exact) ** 2)))
        print(f"{name:26} {found.nfe} calls from sigma {sigma:4.1f}: rms {rms:.4f}")


if __name__ == "__main__":
    main()
