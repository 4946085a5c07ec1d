"""Three models of the built-in digits, judged by numbers that need no weights.

A Gaussian, a mixture of ten, and a cheat that repeats training images are compared with
the training images, in three ways.  Held-out images show what each number is at best:
below that floor nothing can be told.  Runs in seconds:

    python examples/evaluate_samples.py
"""

import jax
import numpy as np
from numpy.typing import NDArray

from analysis.memorization import memorization
from analysis.metrics import (
    density_coverage,
    frechet_of_features,
    precision_recall,
    sliced_wasserstein,
)
from configs.presets import load_preset
from diffusion.closed_form import fit_gaussian, fit_mixture
from diffusion.data import split_of, to_data_units
from diffusion.denoiser import Denoiser
from samplers import DPMSolverPP, log_linear, sample


def draw(denoiser: Denoiser, count: int) -> NDArray[np.float64]:
    """Return samples in [-1, 1], of 256 levels as images on disk have."""
    shape, grid = (count, 8, 8, 1), log_linear(20, 0.02, 20.0)
    drawn = sample(denoiser, jax.random.key(0), shape, grid, solver=DPMSolverPP(2))
    return np.round(np.clip(np.asarray(drawn.x), -1, 1) * 127.5 + 127.5) / 127.5 - 1


def main() -> None:
    """Print a line for each model."""
    split = split_of(load_preset("digits").data)
    training, held_out = (
        np.asarray(to_data_units(part.images), np.float64)
        for part in (split.training, split.held_out)
    )
    count = len(held_out)
    chosen = np.random.default_rng(0).choice(len(training), count, replace=False)
    gaussian = fit_gaussian(training)
    mixture = fit_mixture(training, 10, rank=8, method="kmeans")
    models = {
        "Gaussian": draw(gaussian, count),
        "mixture of 10": draw(mixture, count),
        "copies": training[chosen],
        "held-out images": held_out,
    }
    basis = np.asarray(gaussian.basis)[:, :20]
    reference = training.reshape(len(training), -1) @ basis
    print("                 Frechet  sliced W  precision  recall  coverage  memorised")
    for name, images in models.items():
        features = images.reshape(count, -1) @ basis
        near = precision_recall(features, reference)
        print(
            f"{name:16} {frechet_of_features(features, reference):7.3f}"
            f"{sliced_wasserstein(images, training, patches_per_image=4):10.3f}"
            f"{near.precision:11.2f}{near.recall:8.2f}"
            f"{density_coverage(features, reference).coverage:10.2f}"
            f"{memorization(images, training, held_out).memorised.value:11.2f}"
        )


if __name__ == "__main__":
    main()
