"""Mean, covariance and principal components of a data set, in one pass.

With a shift c near the mean, d_i = x_i - c, f = sum d_i and S = sum d_i d_i^T,

    mean = c + f / n,        scatter = sum (x_i - mean)(x_i - mean)^T = S - f f^T / n,

which does not cancel.  Bytes are shifted by 128: then every product is an integer, and
the float32 product of at most 1,024 rows holds sums of at most 2^24, exactly.  Added up
in float64 the sums are exact too, whatever the batches and their order.  Floats are
shifted by the mean of the first batch and handled in float64.

Two sets of moments merge by the formula of Chan, Golub & LeVeque (1979),

    scatter = scatter_a + scatter_b + n_a n_b / n (mean_b - mean_a)(mean_b - mean_a)^T.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form.checks import check_finite, check_rank, images_of
from diffusion.closed_form.gaussian import GaussianDenoiser

__all__ = [
    "Moments",
    "accumulate_moments",
    "class_moments",
    "covariance",
    "fit_gaussian",
    "merge",
    "principal_components",
]

_EXACT_ROWS = 1024  # 128^2 * 1024 = 2^24, the end of float32's consecutive integers
_FLOAT_BLOCK_ELEMENTS = 2**22


class Moments(NamedTuple):
    """First and second moments of a data set.

    Attributes:
        count: Number of images, n.
        mean: (*event) float64, data units.
        scatter: sum (x - mean)(x - mean)^T, (D, D) float64, squared data units: n times
            the biased covariance, n - 1 times the unbiased one.
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]


def accumulate_moments(batches: Iterable[Any]) -> Moments:
    """Return the moments of everything that an iterable yields, in one pass.

    Args:
        batches: Arrays (n, *event), or `Dataset`s of them, all uint8 (which become
            x / 127.5 - 1) or all floats in data units.  Batches may differ in size.

    Returns:
        The moments.  Memory: two D x D float64 matrices and a batch.

    Raises:
        InputError: If there is no image, batches disagree in shape or dtype, a dtype is
            neither uint8 nor float, or a pixel is not finite.
    """
    sums: _Sums | None = None
    for batch in batches:
        images = images_of(batch)
        if sums is None:
            sums = _Sums(images)
        sums.add(images)
    if sums is None or not sums.count:
        raise InputError("there are no images; give at least one, as (N, *event)")
    return sums.moments()


def class_moments(batches: Iterable[Any]) -> dict[int, Moments]:
    """Return the moments of each class, in one pass.

    Args:
        batches: `Dataset`s: pairs of images (n, *event) and labels (n,).

    Returns:
        Moments by class, in increasing order of the class.  Memory: a D x D float64
        matrix for each class.

    Raises:
        InputError: See `accumulate_moments`; also if an image has no label.
    """
    sums: dict[int, _Sums] = {}
    for images, labels in batches:
        labels = np.asarray(labels)
        if len(labels) != len(images) or (labels < 0).any():
            raise InputError(
                f"{len(images)} images came with {int((labels >= 0).sum())} labels; "
                "moments per class need a label >= 0 for each image"
            )
        for label in np.unique(labels).tolist():
            chosen = images_of(images)[labels == label]
            sums.setdefault(label, _Sums(chosen)).add(chosen)
    if not sums:
        raise InputError("there are no images; give at least one, as (N, *event)")
    return {label: sums[label].moments() for label in sorted(sums)}


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two data sets together, such as of two hosts.

    Args:
        a: Moments of one part.
        b: Moments of the other.

    Returns:
        The moments of both, as one pass over both would give.

    Raises:
        InputError: If the event shapes differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"moments of events of shape {a.mean.shape} and {b.mean.shape} cannot be "
            "merged; both must come from images of one shape"
        )
    count = a.count + b.count
    shift = b.mean - a.mean
    rank_one = np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(
        count, a.mean + shift * (b.count / count), a.scatter + b.scatter + rank_one
    )


def covariance(moments: Moments, *, unbiased: bool = False) -> NDArray[np.float64]:
    """Return the covariance matrix.

    Args:
        moments: Of n images.
        unbiased: Divide by n - 1 instead of n.  The biased one is that of the empirical
            distribution; its Gaussian has the best affine denoiser.

    Returns:
        (D, D) float64, squared data units.

    Raises:
        InputError: If an unbiased covariance of one image is asked for.
    """
    if moments.count - unbiased < 1:
        raise InputError("the unbiased covariance needs at least 2 images; 1 was given")
    return moments.scatter / (moments.count - unbiased)


def principal_components(
    moments: Moments, rank: int | None = None, *, unbiased: bool = False
) -> GaussianDenoiser:
    """Return the Gaussian of some moments, by an exact eigendecomposition in float64.

    Args:
        moments: See `accumulate_moments`.
        rank: Number of principal directions to keep, R; None keeps all D.  The residual
            variance is the mean of the dropped eigenvalues.
        unbiased: See `covariance`.

    Returns:
        A `GaussianDenoiser` with variances in decreasing order, float32 (float64 under
        `jax.enable_x64`).

    Raises:
        InputError: If `rank` is not in [1, D].
    """
    dimension = moments.mean.size
    rank = check_rank(rank, dimension)
    matrix = covariance(moments, unbiased=unbiased)
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    eigenvalues = np.maximum(eigenvalues[::-1], 0)
    dropped = eigenvalues[rank:]
    return GaussianDenoiser(
        mean=jnp.asarray(moments.mean),
        basis=jnp.asarray(eigenvectors[:, ::-1][:, :rank]),
        variances=jnp.asarray(eigenvalues[:rank]),
        residual_variance=jnp.asarray(dropped.mean() if dropped.size else 0.0),
    )


def fit_gaussian(images: ArrayLike, rank: int | None = None) -> GaussianDenoiser:
    """Fit mean and covariance of a data set in closed form.

    The covariance is the biased one, sum (x - mean)(x - mean)^T / N: the Gaussian then
    has exactly the moments of the empirical distribution, and its denoiser is the best
    affine one for it.

    Args:
        images: (N, *event).  uint8 pixels become x / 127.5 - 1, floats stay as they
            are.
        rank: Number of principal directions to keep; None keeps all D.  The residual
            variance is the mean of the dropped eigenvalues.

    Returns:
        A `GaussianDenoiser` with variances in decreasing order, float32 (float64 under
        `jax.enable_x64`).

    Raises:
        InputError: If there are no images, a pixel is not finite, the dtype is neither
            uint8 nor float, or `rank` is not in [1, D].
    """
    images = images_of(images)
    check_rank(rank, math.prod(images.shape[1:]))
    return principal_components(accumulate_moments([images]), rank)


class _Sums:
    """Shifted sums of rows and of their outer products."""

    def __init__(self, first_batch: NDArray[Any]) -> None:
        self.event, self.dtype = first_batch.shape[1:], first_batch.dtype
        dimension = math.prod(self.event)
        self.is_bytes = self.dtype == np.uint8
        self.count = 0
        self.first = np.zeros(dimension)
        self.second = np.zeros((dimension, dimension))
        self.shift = np.full(dimension, 128.0)
        if not self.is_bytes:
            rows = first_batch.reshape(len(first_batch), -1)
            check_finite(rows, 0)
            self.shift = rows.mean(axis=0, dtype=np.float64)

    def add(self, images: NDArray[Any]) -> None:
        if images.shape[1:] != self.event or images.dtype != self.dtype:
            raise InputError(
                f"a batch of {images.dtype} images of shape {images.shape[1:]} follows "
                f"{self.dtype} images of shape {self.event}; all must be alike"
            )
        rows = images.reshape(len(images), -1)
        size = _EXACT_ROWS
        if not self.is_bytes:
            size = max(1, _FLOAT_BLOCK_ELEMENTS // rows.shape[1])
        for start in range(0, len(rows), size):
            self._add_block(rows[start : start + size])

    def _add_block(self, rows: NDArray[Any]) -> None:
        if self.is_bytes:
            shifted = rows.astype(np.float32)
            shifted -= 128
        else:
            check_finite(rows, self.count)
            shifted = rows - self.shift
        self.first += shifted.sum(axis=0, dtype=np.float64)
        self.second += _gram(shifted)
        self.count += len(rows)

    def moments(self) -> Moments:
        mean = self.first / self.count
        scatter = self.second - np.outer(self.first, mean)
        mean = self.shift + mean
        if self.is_bytes:
            mean, scatter = mean / 127.5 - 1, scatter / 127.5**2
        return Moments(self.count, mean.reshape(self.event), scatter)


def _gram(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows^T rows, on the accelerator if there is one and float32 is enough."""
    if rows.dtype == np.float32 and jax.default_backend() != "cpu":
        product = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
        return np.asarray(product)
    return rows.T @ rows
