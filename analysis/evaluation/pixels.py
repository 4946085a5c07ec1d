"""Images in the leading principal directions of the reference.

    c = V^T (x - mean),

with V the R leading eigenvectors of the reference's covariance: what of an image can be
compared by moments and distances where no network's features are at hand.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffusion.closed_form import fit_gaussian_streaming
from diffusion.closed_form.moments import accumulate_moments, principal_components
from diffusion.data import to_data_units

__all__ = ["principal_coefficients"]

_BATCH = 1024
_DENSE = 1024  # numbers in an image up to which all eigenvectors are computed


def principal_coefficients(
    samples: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    num_directions: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sets' coefficients in the reference's leading directions.

    Args:
        samples: (n, H, W, C).
        reference: (m, H, W, C).
        num_directions: R; fewer where the reference has no more.
        seed: Of the randomised eigenvectors of large images.

    Returns:
        (n, R) and (m, R) in data units.
    """
    dimension = reference[0].size
    rank = min(num_directions, dimension, max(1, len(reference) - 1))
    if dimension <= _DENSE:
        gaussian = principal_components(accumulate_moments(_batches(reference)), rank)
    else:
        gaussian = fit_gaussian_streaming(lambda: _batches(reference), rank, seed=seed)
    mean = np.asarray(gaussian.mean, np.float64).reshape(-1)
    basis = np.asarray(gaussian.basis, np.float64)

    def coefficients(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        parts = [
            (
                np.asarray(to_data_units(batch), np.float64).reshape(len(batch), -1)
                - mean
            )
            @ basis
            for batch in _batches(images)
        ]
        return np.concatenate(parts)

    return coefficients(samples), coefficients(reference)


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), _BATCH):
        yield np.asarray(images[start : start + _BATCH])
