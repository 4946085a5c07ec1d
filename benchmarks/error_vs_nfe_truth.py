"""A mixture whose exact solutions are cheap, and what a user of it would know.

The truth is a mixture of K components of rank R in D = 3,072 pixels,

    sum_k w_k N(m_k, U_k diag(lam_k) U_k^T + v (I - U_k U_k^T)),

fitted to half of the images: clusters of k-means, their means and covariances.  Two
choices make it cheap and cost nothing in exactness, since the truth is ours to choose:
all means (about that of the half) and all bases lie in the span of the half's leading
`dimension` principal directions, and all components share one residual variance v.
Outside of that span the truth then is the Gaussian N(0, v I), independent of what is
inside.  There every solver and every start multiplies noise by one number, so a single
coordinate stands for all D - dimension of them: solutions in dimension + 1 coordinates
are those in D.

A user knows the other half of the images: its Gaussian (128 directions and a residual
variance) and a coarser mixture (10 components).  Both are cut to the same span and see
the same outside; their residual variances are those that the images leave.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from diffusion.closed_form import GaussianDenoiser, fit_gaussian
from samplers.frame import (
    Frame,
    Rows,
    SharedResidualMixture,
    fit_in_frame,
    rows_in_frame,
)


class Setting(NamedTuple):
    """Sizes of the problem."""

    dimension: int = 256
    num_components: int = 100
    rank: int = 32
    gaussian_rank: int = 128
    coarse_components: int = 10


class Problem(NamedTuple):
    """The truth and what a user knows, in d + 1 coordinates, float64.

    Attributes:
        truth: What solvers call.
        gaussian: Of the other half of the images.
        coarse: A mixture fitted to the other half.
        frame: Where the coordinates are.
        description: Figures of the fit.
    """

    truth: SharedResidualMixture
    gaussian: GaussianDenoiser
    coarse: SharedResidualMixture
    frame: Frame
    description: dict[str, Any]


def fit_problem(images: NDArray[np.uint8], setting: Setting) -> Problem:
    """Fit the truth to the images of even index, the user's models to the others."""
    halves = images[::2], images[1::2]
    whole = fit_gaussian(halves[0])
    frame = Frame(
        np.ravel(np.asarray(whole.mean)),
        np.asarray(whole.basis)[:, : setting.dimension],
    )
    keys = jax.random.split(jax.random.key(0))
    ours, others = (rows_in_frame(half, frame) for half in halves)
    truth = fit_in_frame(ours, frame, setting.num_components, setting.rank, keys[0])
    coarse = fit_in_frame(
        others, frame, setting.coarse_components, setting.rank, keys[1]
    )
    gaussian = _fit_gaussian(others, frame, setting.gaussian_rank)
    variances = np.asarray(whole.variances, np.float64)
    description = {
        "images": [len(half) for half in halves],
        "D": len(frame.mean),
        "setting": setting._asdict(),
        "variance_inside_span": float(
            variances[: setting.dimension].sum() / variances.sum()
        ),
        "residual_variance": {
            "truth": float(truth.residual_variance),
            "gaussian": float(np.asarray(gaussian.residual_variance)),
            "coarse_mixture": float(coarse.residual_variance),
        },
        "rms_of_truth": float(
            np.sqrt(
                (
                    np.trace(truth.covariance()[:-1, :-1])
                    + frame.outside * float(truth.residual_variance)
                )
                / len(frame.mean)
            )
        ),
    }
    return Problem(truth, gaussian, coarse, frame, description)


def _fit_gaussian(rows: Rows, frame: Frame, rank: int) -> GaussianDenoiser:
    """Fit mean, leading directions, and what they leave over all D - rank others."""
    inside = rows.inside.astype(np.float64)
    mean = inside.mean(axis=0)
    centred = inside - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(inside))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    left = variances[rank:].sum() + rows.outside
    return GaussianDenoiser(
        np.append(mean, 0.0),  # pyright: ignore[reportArgumentType]
        np.pad(vectors[:, :rank], ((0, 1), (0, 0))),  # pyright: ignore[reportArgumentType]
        variances[:rank].copy(),  # pyright: ignore[reportArgumentType]
        left / (len(frame.mean) - rank),
    )
