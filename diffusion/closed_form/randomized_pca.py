"""Principal components where the D x D covariance does not fit in memory.

Randomised subspace iteration (Halko, Martinsson & Tropp, arXiv 0909.4061): each pass
over the data computes Y = C Q for the covariance C and some orthonormal columns Q,
block by block as sum z (z^T Q), and Q <- orth(Y).  The last pass ends with the Nystrom
approximation (Tropp et al., arXiv 1609.00048)

    C ~ Y (Q^T Y)^-1 Y^T,

whose eigenvalues are more accurate than those of Q^T C Q at no further cost.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form.checks import check_rank, images_of
from diffusion.closed_form.gaussian import GaussianDenoiser
from diffusion.closed_form.image_rows import ImageRows

__all__ = ["fit_gaussian_streaming"]


def fit_gaussian_streaming(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    rank: int,
    *,
    num_passes: int = 3,
    oversampling: int = 64,
    seed: int = 0,
) -> GaussianDenoiser:
    """Fit mean, leading principal directions and residual variance from a stream.

    Args:
        batches: Arrays (n, *event) or `Dataset`s of them, uint8 or data units: a
            function that returns a new pass over them, or something that can be
            iterated again and again, such as a list.
        rank: R, in [1, D].
        num_passes: Passes over the data; each brings Q closer.
        oversampling: Columns of Q beyond R.
        seed: Of the random start.

    Returns:
        A `GaussianDenoiser` with the biased covariance's leading eigenpairs; the
        residual variance is the mean of all other eigenvalues, from the exact trace.
        Memory: some D x (R + oversampling) matrices and a batch.

    Raises:
        InputError: If the stream is empty or can be read only once, the rank is out of
            range, or a pixel is not finite.
    """
    if num_passes < 1 or oversampling < 0:
        raise InputError(
            f"num_passes is {num_passes} and oversampling {oversampling}; give at "
            "least 1 and 0"
        )
    if isinstance(batches, Iterator):
        raise InputError(
            "the stream can be read only once; give a function that returns a new "
            "pass, such as `lambda: source.batches()`"
        )
    first = next(iter(_pass(batches)), None)
    if first is None:
        raise InputError("there are no images; give at least one, as (N, *event)")
    head = images_of(first)
    event = head.shape[1:]
    dimension = head[0].size
    rank = check_rank(rank, dimension)
    block = next(_blocks([head]))
    shift = np.asarray(block.rows[: block.count].mean(axis=0))
    generator = np.random.default_rng(seed)
    width = min(dimension, rank + oversampling)
    basis = np.linalg.qr(generator.normal(size=(dimension, width)))[0]
    for _ in range(num_passes - 1):
        sums = _multiply(_pass(batches), event, shift, basis)
        basis = np.linalg.qr(sums.product)[0]
    sums = _multiply(_pass(batches), event, shift, basis)
    variances, vectors = _nystrom(basis, sums.product, rank)
    rest = (sums.trace - variances.sum()) / max(1, dimension - rank)
    return GaussianDenoiser(
        mean=jnp.asarray((shift + sums.offset).reshape(event)),
        basis=jnp.asarray(vectors),
        variances=jnp.asarray(variances),
        residual_variance=jnp.asarray(max(0.0, float(rest))),
    )


class _Sums(NamedTuple):
    """C Q, the mean beyond the shift and the trace of C, after a pass."""

    product: NDArray[np.float64]
    offset: NDArray[np.float64]
    trace: float


def _pass(batches: Iterable[Any] | Callable[[], Iterable[Any]]) -> Iterable[Any]:
    return batches() if callable(batches) else batches


def _blocks(batches: Iterable[Any], event: tuple[int, ...] | None = None) -> Iterator:
    for batch in batches:
        rows = ImageRows(getattr(batch, "images", batch))
        if event is not None and rows.event != event:
            raise InputError(
                f"a batch of images of shape {rows.event} follows images of shape "
                f"{event}; all must be alike"
            )
        yield from rows.blocks()


def _multiply(
    batches: Iterable[Any],
    event: tuple[int, ...],
    shift: NDArray[np.float64],
    basis: NDArray[np.float64],
) -> _Sums:
    count, square = 0, 0.0
    total, product = np.zeros(len(shift)), np.zeros(basis.shape)
    device_shift, device_basis = jnp.asarray(shift), jnp.asarray(basis)
    for block in _blocks(batches, event):
        found = _block_sums(
            block.rows, jnp.int32(block.count), device_shift, device_basis
        )
        y, s, t = (np.asarray(part, np.float64) for part in found)
        product, total, square = product + y, total + s, square + float(t)
        count += block.count
    offset = total / count
    return _Sums(
        product=product / count - np.outer(offset, offset @ basis),
        offset=offset,
        trace=square / count - float(offset @ offset),
    )


@jax.jit
def _block_sums(
    rows: Array, count: Array, shift: Array, basis: Array
) -> tuple[Array, Array, Array]:
    valid = jnp.arange(len(rows)) < count
    z = (rows - shift) * valid[:, None]
    inside = jnp.matmul(z, basis, precision=jax.lax.Precision.HIGHEST)
    product = jnp.matmul(z.T, inside, precision=jax.lax.Precision.HIGHEST)
    return product, jnp.sum(z, axis=0), jnp.sum(z**2)


def _nystrom(
    basis: NDArray[np.float64], product: NDArray[np.float64], rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return leading eigenvalues (R,) and eigenvectors (D, R) of Y (Q^T Y)^-1 Y^T."""
    # Shifted so that the Cholesky factor exists in spite of rounding.
    nudge = 1e-7 * np.linalg.norm(product, 2)
    product = product + nudge * basis
    core = basis.T @ product
    factor = np.linalg.cholesky((core + core.T) / 2)
    half = np.linalg.solve(factor, product.T).T
    vectors, singular, _ = np.linalg.svd(half, full_matrices=False)
    return np.maximum(singular[:rank] ** 2 - nudge, 0), vectors[:, :rank]
