"""A score learned by kernel regression: when to stop, and what it is as a denoiser.

Draws noisy points of three Gaussians, regresses clean points on them by the kernel of
a wide two-layer ReLU network, lets generalized cross-validation choose the training
time, and samples with the result.  Runs in seconds; the whole story is told by
``python -m analysis.kernel_study mixture2d``.

    python examples/kernel_regression.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from analysis.kernels.diffusion_regression import dsm_triples
from analysis.kernels.early_stopping import choose_stop
from analysis.kernels.gram import gram
from analysis.kernels.kernel_denoiser import Lifting, kernel_denoiser
from analysis.kernels.posterior import posterior_mean
from analysis.kernels.regression import decompose, fit
from analysis.kernels.relu_ntk import relu_ntk
from diffusion.closed_form import EmpiricalDenoiser, fit_gaussian
from diffusion.data import load_builtin
from samplers import karras, sample
from samplers.start import MomentMatched

POINTS = 512


def main() -> None:
    """Regress, stop, sample."""
    clean = load_builtin("mixture2d").images
    lifting = Lifting(t_range=(0.05, 2.0))
    with jax.enable_x64(True):
        xt, t, y, _ = dsm_triples(jax.random.key(0), clean, POINTS, lifting.t_range)
        z, mean = np.asarray(lifting(xt, t)), np.asarray(y).mean(axis=0)
        model = fit(decompose(np.asarray(gram(relu_ntk, z))), np.asarray(y) - mean)
    found = choose_stop(model)
    print(f"{POINTS} points; stop at s = {found.s:.3g}: {found.tau} steps of size 1")
    print(f"degrees of freedom {found.df:.1f}, estimated noise {found.sigma:.3f}")

    # The clean points know what E[X_0 | X_t] is.
    known = EmpiricalDenoiser(jnp.asarray(clean[:2000]))
    test_x, test_t, _, _ = dsm_triples(
        jax.random.key(2), clean, POINTS, lifting.t_range
    )
    truth = posterior_mean(known, test_x, test_t)
    for name, s in (("early", found.s / 100), ("by GCV", found.s), ("late", 1e6)):
        denoiser = kernel_denoiser(model, z, s, lifting=lifting, event=(2,), mean=mean)
        gap = np.asarray(posterior_mean(denoiser, test_x, test_t) - truth)
        error = np.sqrt(np.mean(np.sum(gap**2, axis=1)))
        print(f"{name:7s} s = {s:8.3g}: error of E[X_0 | X_t] {error:.3f}")

    denoiser = kernel_denoiser(
        model, z, found.s, lifting=lifting, event=(2,), mean=mean
    )
    sigmas, start = (
        karras(20, *lifting.sigma_range()),
        MomentMatched(fit_gaussian(clean)),
    )
    x = sample(denoiser, jax.random.key(1), (500, 2), sigmas, start=start).x
    radius = np.linalg.norm(np.asarray(x), axis=1)
    print(
        f"samples: radius {radius.mean():.2f} +- {radius.std():.2f}, of the data "
        f"{np.linalg.norm(clean, axis=1).mean():.2f}"
    )


if __name__ == "__main__":
    main()
