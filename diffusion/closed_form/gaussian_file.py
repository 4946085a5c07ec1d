"""A Gaussian on disk: one ``.npz`` without pickles.

Keys: ``format``, ``mean`` (*event), ``basis`` (D, R), ``variances`` (R,),
``residual_variance`` (), ``num_images`` () and ``data_digest`` (sha256 of the images it
was fitted to, or empty).
"""

import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from configs.errors import InputError
from diffusion.atomic import write_atomically
from diffusion.closed_form.gaussian import GaussianDenoiser

__all__ = ["load_gaussian", "save_gaussian"]

_FORMAT = "scorelab gaussian 1"
_KEYS = ("mean", "basis", "variances", "residual_variance")


def save_gaussian(
    path: str | Path,
    gaussian: GaussianDenoiser,
    *,
    num_images: int = 0,
    data_digest: str = "",
) -> None:
    """Write a Gaussian to one ``.npz``, atomically.

    Args:
        path: Destination, written exactly so (no suffix is added).
        gaussian: The Gaussian.
        num_images: Number of images it was fitted to; 0 when unknown.
        data_digest: sha256 of those images; empty when unknown.

    Raises:
        OSError: If the file cannot be written.
    """
    arrays: dict[str, Any] = {key: np.asarray(getattr(gaussian, key)) for key in _KEYS}
    write_atomically(
        path,
        lambda file: np.savez(
            file,
            format=np.asarray(_FORMAT),
            num_images=np.asarray(num_images),
            data_digest=np.asarray(data_digest),
            **arrays,
        ),
    )


def load_gaussian(path: str | Path) -> GaussianDenoiser:
    """Read a Gaussian written by `save_gaussian`.

    Args:
        path: The ``.npz`` file.

    Returns:
        The Gaussian, float32 (float64 under `jax.enable_x64`).

    Raises:
        InputError: If the file is missing, not such a file, or holds shapes or values
            that make no Gaussian.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no Gaussian at {path}; diffusion.train writes gaussian.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["format"]) != _FORMAT:
                raise KeyError("format")
            arrays = {key: file[key] for key in _KEYS}
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not a Gaussian of this project or is damaged ({error}); "
            "write it again with diffusion.closed_form.save_gaussian"
        ) from error
    dimension, rank = arrays["mean"].size, arrays["variances"].size
    shapes_fit = (
        arrays["basis"].shape == (dimension, rank)
        and arrays["variances"].ndim == 1
        and arrays["residual_variance"].shape == ()
    )
    values_fit = all(np.isfinite(value).all() for value in arrays.values()) and (
        arrays["variances"].min(initial=0) >= 0 and arrays["residual_variance"] >= 0
    )
    if not (shapes_fit and values_fit):
        raise InputError(
            f"{path} holds arrays that make no Gaussian: shapes "
            f"{ {key: value.shape for key, value in arrays.items()} }"
        )
    return GaussianDenoiser(**{key: jnp.asarray(a) for key, a in arrays.items()})
