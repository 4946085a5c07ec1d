"""Reader of the published ``*_PCA`` tables of image data sets, ``.npz`` or ``.pt``.

Layout (arXiv 2412.09726, data set binxu/image_datasets_PCAs): ``eigval`` (D,) in
increasing order, ``eigvec`` (D, D) with eigenvectors as columns, ``imgmean`` (D,), of
pixels in [0, 1], flattened channel first.  Pixels in [-1, 1] are 2 p - 1: means become
2 m - 1 and variances 4 v.
"""

import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from configs.errors import InputError
from diffusion.closed_form.checks import check_rank
from diffusion.closed_form.gaussian import GaussianDenoiser

__all__ = ["load_published_pca"]

_KEYS = ("eigval", "eigvec", "imgmean")


def load_published_pca(
    path: str | Path, event_shape: tuple[int, int, int], *, rank: int | None = None
) -> GaussianDenoiser:
    """Read a published table as a Gaussian of the house frame.

    Args:
        path: An ``.npz`` or ``.pt`` with the keys of the table; nothing in it is
            executed.
        event_shape: (H, W, C) of the images.
        rank: Directions to keep; None keeps all D.  The residual variance is the mean
            of the dropped eigenvalues.

    Returns:
        A `GaussianDenoiser` over (H, W, C), variances in decreasing order; rounding's
        negative eigenvalues are 0.

    Raises:
        InputError: If the file is missing, of another layout or damaged, or does not
            fit the shape or the rank.
    """
    path = Path(path)
    values, vectors, mean = _read(path)
    height, width, channels = event_shape
    dimension = height * width * channels
    shapes = (values.shape, vectors.shape, mean.shape)
    if shapes != ((dimension,), (dimension, dimension), (dimension,)):
        raise InputError(
            f"{path} holds shapes {shapes}, but images of {event_shape} need "
            f"({dimension},), ({dimension}, {dimension}) and ({dimension},)"
        )
    if not all(np.isfinite(array).all() for array in (values, vectors, mean)):
        raise InputError(f"{path} holds NaN or infinite values")
    if values.min() < -1e-4 * values.max():
        raise InputError(
            f"{path} holds a negative variance, {values.min():g}: no covariance has it"
        )
    if mean.min() < -0.01 or mean.max() > 1.01:
        raise InputError(
            f"{path} has means in [{mean.min():g}, {mean.max():g}]; published tables "
            "are of pixels in [0, 1]"
        )
    # Row (c, h, w) of the table is row (h, w, c) here.
    order = np.arange(dimension).reshape(channels, height, width).transpose(1, 2, 0)
    rows = order.ravel()
    largest = np.argsort(values, kind="stable")[::-1]
    variances = 4 * np.maximum(values[largest], 0)
    rank = check_rank(rank, dimension)
    dropped = variances[rank:]
    return GaussianDenoiser(
        mean=jnp.asarray((2 * mean[rows] - 1).reshape(event_shape)),
        basis=jnp.asarray(vectors[rows][:, largest[:rank]]),
        variances=jnp.asarray(variances[:rank]),
        residual_variance=jnp.asarray(dropped.mean() if dropped.size else 0.0),
    )


def _read(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise InputError(
                    f"{path} has the keys {', '.join(file.files)}; a published table "
                    f"has {', '.join(_KEYS)}"
                )
            return [np.asarray(file[key], np.float64) for key in _KEYS]
    except InputError:
        raise
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({reason}); fetch it again") from error


def _read_torch(path: Path) -> list[np.ndarray]:
    # Imported here: only torch's files need the reader.
    from diffusion.interop.restricted_unpickler import read_untrusted

    table = read_untrusted(path)
    tensors = [table.get(key) for key in _KEYS] if isinstance(table, dict) else []
    if not tensors or not all(isinstance(t, np.ndarray) for t in tensors):
        raise InputError(f"{path} does not hold the tensors {', '.join(_KEYS)}")
    return [np.asarray(tensor, np.float64) for tensor in tensors]
