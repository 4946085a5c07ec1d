"""Where a model's score is its Gaussian's, and which directions are off elsewhere.

A mixture of ten Gaussians, one per class of the built-in digits, stands in for a
network.  Prints how much of its score three closed forms leave unexplained on noised
images, where each is the best, and in which principal directions the Gaussian errs.
Runs in seconds; ``python -m analysis.compare WORKDIR`` does this for a trained network.

    python examples/compare_scores.py
"""

import jax
import jax.numpy as jnp

from analysis.comparison.ranges import best_ranges, unexplained_ranges
from analysis.score_comparison import compare_denoisers
from configs.schema import DataConfig
from diffusion.closed_form import EmpiricalDenoiser, fit_class_mixture, fit_gaussian
from diffusion.data import split_of

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
DIRECTIONS = (0, 1, 3, 7, 15, 31)


def main() -> None:
    """Compare three closed forms with the stand-in on held-out images."""
    split = split_of(DataConfig("digits", held_out_fraction=0.2))
    images, labels = split.training
    gaussian = fit_gaussian(images)
    found = compare_denoisers(
        fit_class_mixture(images, labels, rank=16),
        {
            "isotropic": gaussian.isotropic(),
            "Gaussian": gaussian,
            "training set": EmpiricalDenoiser(jnp.asarray(images)),
        },
        split.held_out.images[:128],
        SIGMAS,
        jax.random.key(0),
        mean=gaussian.mean,
        directions=gaussian.basis[:, jnp.asarray(DIRECTIONS)],
    )
    print("unexplained fraction of the score, held-out images")
    print("sigma         " + "".join(f"{sigma:10g}" for sigma in SIGMAS))
    for name, row in zip(found.names, found.score.mean, strict=True):
        print(f"{name:14s}" + "".join(f"{1 - value:10.2g}" for value in row))
    for one in best_ranges(found):
        print(f"best from sigma {one.lowest:g} to {one.highest:g}: {one.name}")
    for one in unexplained_ranges(found, "Gaussian", 0.01):
        print(f"Gaussian below 1 % from sigma {one.lowest:g} to {one.highest:g}")
    error = found.directions.error.mean[found.names.index("Gaussian")]
    print("the Gaussian's squared error / the model's spread, by principal direction")
    for sigma, row in zip(SIGMAS, error / found.directions.power, strict=True):
        cells = (f"{k + 1}: {v:.2g}" for k, v in zip(DIRECTIONS, row, strict=True))
        print(f"sigma {sigma:5g}   " + "   ".join(cells))


if __name__ == "__main__":
    main()
