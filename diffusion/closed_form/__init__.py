"""Denoisers in closed form: no training, only moments of the data."""

from diffusion.closed_form.gaussian import (
    GaussianDenoiser,
    fit_gaussian,
    isotropic_gaussian,
)
from diffusion.closed_form.gaussian_file import load_gaussian, save_gaussian

__all__ = [
    "GaussianDenoiser",
    "fit_gaussian",
    "isotropic_gaussian",
    "load_gaussian",
    "save_gaussian",
]
