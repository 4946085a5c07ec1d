"""Which closed form comes closest to the training set's own score, and where.

Fits a Gaussian, a mixture and the empirical model to digits and prints how much of the
empirical denoised image each of the first two explains on held-out images with noise.
Runs in seconds:

    python examples/closed_form_scores.py
"""

import jax
import jax.numpy as jnp

from analysis.score_comparison import compare_denoisers
from configs.schema import DataConfig
from diffusion.closed_form import EmpiricalDenoiser, fit_gaussian, fit_mixture
from diffusion.data import split_of

SIGMAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def main() -> None:
    """Fit three models and compare two of them with the third."""
    split = split_of(DataConfig("digits", held_out_fraction=0.2))
    images = split.training.images
    gaussian = fit_gaussian(images)
    mixture = fit_mixture(images, 10, rank=16, key=jax.random.key(0))
    comparison = compare_denoisers(
        EmpiricalDenoiser(jnp.asarray(images)),
        {"Gaussian": gaussian, "mixture": mixture},
        split.held_out.images,
        SIGMAS,
        jax.random.key(1),
        mean=gaussian.mean,
    )
    print("share of the empirical denoised image that is explained")
    print("sigma     " + "".join(f"{sigma:8g}" for sigma in SIGMAS))
    for name, row in zip(comparison.names, comparison.denoised.mean, strict=True):
        print(f"{name:10s}" + "".join(f"{value:8.3f}" for value in row))


if __name__ == "__main__":
    main()
