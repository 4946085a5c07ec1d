"""The spread of samples along the data's principal directions.

    variance_k = mean (u_k.(x - mean of the samples))^2,   against lambda_k of the data.

A sampler of the data's Gaussian has lambda_k^2 / (lambda_k + sigma_e^2) for a grid that
ends at sigma_e; what a network lacks in small directions is detail, and what it lacks
in large ones is diversity.  Source: Wang & Pehlevan, arXiv 2503.03206, who follow these
variances over training.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser

__all__ = ["VarianceComparison", "compare_variances", "variance_rows"]


class VarianceComparison(NamedTuple):
    """Variance of samples along the data's principal directions.

    Attributes:
        num_samples: Samples behind every number.
        variances: (R,) the data's, squared data units.
        measured: (R,) the samples', about their own mean, unbiased.
        standard_error: (R,) of `measured`.
    """

    num_samples: int
    variances: NDArray[np.float64]
    measured: NDArray[np.float64]
    standard_error: NDArray[np.float64]


def compare_variances(
    samples: ArrayLike, gaussian: GaussianDenoiser
) -> VarianceComparison:
    """Return the variance of samples along the data's principal directions.

    Args:
        samples: (n, *event), data units, n >= 2.
        gaussian: The Gaussian of the training images.

    Returns:
        Variances with their standard errors.

    Raises:
        InputError: If there are fewer than two samples, or of another shape.
    """
    rows = np.asarray(samples, np.float64)
    if rows.shape[1:] != gaussian.mean.shape or len(rows) < 2:
        raise InputError(
            f"samples have shape {rows.shape}; give at least two, "
            f"(n, {', '.join(map(str, gaussian.mean.shape))})"
        )
    basis = np.asarray(gaussian.basis, np.float64)
    coefficients = rows.reshape(len(rows), -1) @ basis
    centred = coefficients - coefficients.mean(axis=0)
    variance = np.mean(centred**2, axis=0)
    fourth = np.mean(centred**4, axis=0)
    error = np.sqrt(np.maximum(fourth - variance**2, 0) / len(rows))
    return VarianceComparison(
        num_samples=len(rows),
        variances=np.asarray(gaussian.variances, np.float64),
        measured=variance * len(rows) / (len(rows) - 1),
        standard_error=error,
    )


def variance_rows(comparison: VarianceComparison) -> list[dict[str, Any]]:
    """Return a row of plain numbers per principal direction, for a table."""
    columns = (comparison.variances, comparison.measured, comparison.standard_error)
    return [
        {
            "direction": index,
            "variance": float(variance),
            "measured": float(measured),
            "standard_error": float(error),
        }
        for index, (variance, measured, error) in enumerate(zip(*columns, strict=True))
    ]
