"""The closed-form models that a network's score is compared with."""

from collections.abc import Mapping

from diffusion.closed_form import GaussianDenoiser, isotropic_gaussian
from diffusion.denoiser import Denoiser

__all__ = ["gaussian_candidates"]


def gaussian_candidates(gaussian: GaussianDenoiser) -> Mapping[str, Denoiser]:
    """Return what less and less knowledge of the training images gives.

    Args:
        gaussian: The Gaussian of the training images.

    Returns:
        ``Gaussian`` (mean and covariance), ``isotropic`` (mean and mean variance) and
        ``mean-isotropic`` (the mean alone: variance 0).
    """
    return {
        "Gaussian": gaussian,
        "isotropic": isotropic_gaussian(gaussian.mean, gaussian.mean_variance()),
        "mean-isotropic": isotropic_gaussian(gaussian.mean, 0.0),
    }
