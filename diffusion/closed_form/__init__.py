"""Denoisers in closed form: no training, only moments of the data."""

from diffusion.closed_form.edgeworth import EdgeworthDenoiser
from diffusion.closed_form.em import (
    EMResult,
    fit_class_mixture,
    fit_mixture,
    run_em,
)
from diffusion.closed_form.empirical import EmpiricalDenoiser, Neighbours
from diffusion.closed_form.files import (
    ClosedForm,
    Provenance,
    load_closed_form,
    load_gaussian,
    save_closed_form,
    save_gaussian,
)
from diffusion.closed_form.gaussian import GaussianDenoiser, isotropic_gaussian
from diffusion.closed_form.mixture import MixtureDenoiser
from diffusion.closed_form.moments import (
    Moments,
    accumulate_moments,
    class_moments,
    covariance,
    fit_gaussian,
    merge,
    principal_components,
)
from diffusion.closed_form.published_pca import load_published_pca
from diffusion.closed_form.randomized_pca import fit_gaussian_streaming

__all__ = [
    "ClosedForm",
    "EMResult",
    "EdgeworthDenoiser",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "MixtureDenoiser",
    "Moments",
    "Neighbours",
    "Provenance",
    "accumulate_moments",
    "class_moments",
    "covariance",
    "fit_class_mixture",
    "fit_gaussian",
    "fit_gaussian_streaming",
    "fit_mixture",
    "isotropic_gaussian",
    "load_closed_form",
    "load_gaussian",
    "load_published_pca",
    "merge",
    "principal_components",
    "run_em",
    "save_closed_form",
    "save_gaussian",
]
