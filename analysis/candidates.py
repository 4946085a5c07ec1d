"""The closed-form models that a network's score is compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser, load_closed_form
from diffusion.denoiser import Denoiser

__all__ = ["gaussian_candidates", "load_candidates"]


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
        "isotropic": gaussian.isotropic(),
        "mean-isotropic": gaussian.mean_only(),
    }


def load_candidates(
    paths: Sequence[str | Path], event_shape: tuple[int, ...]
) -> Mapping[str, Denoiser]:
    """Read closed forms to compare with, named by their files.

    Args:
        paths: Files of `diffusion.fit_closed_form`.
        event_shape: Shape of one sample.

    Returns:
        Models by the stem of their file.

    Raises:
        InputError: If a file does not match or two have the same stem.
    """
    found: dict[str, Denoiser] = {}
    for path in paths:
        name = Path(path).stem
        if name in found:
            raise InputError(f"two candidates are called {name}; rename one file")
        found[name] = load_closed_form(path, event_shape=event_shape).denoiser
    return found
