"""k-means: the start of EM, and one half of the published recipe for mixtures.

Centres are drawn by k-means++ (Arthur & Vassilvitskii 2007: the next centre is an image
drawn with probability proportional to its squared distance from the nearest centre so
far) and moved by Lloyd's iteration.  Squared distances are |c|^2 - 2 x.c + |x|^2 of
rows from which the mean of the data was subtracted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form.image_rows import ImageRows

__all__ = ["Clusters", "fit_kmeans"]

_HIGHEST = jax.lax.Precision.HIGHEST


class Clusters(NamedTuple):
    """A partition of a data set.

    Attributes:
        centres: (K, D) float32, data units.
        labels: (N,) int32, the nearest centre of each image.
        inertia: Sum of squared distances to the nearest centre.
    """

    centres: Array
    labels: NDArray[np.int32]
    inertia: float


class _Nearest(NamedTuple):
    labels: NDArray[np.int32]
    squared: NDArray[np.float64]
    sums: NDArray[np.float64]


def fit_kmeans(
    rows: ImageRows, num_clusters: int, key: Array, *, num_passes: int = 30
) -> Clusters:
    """Partition images around K centres.

    Args:
        rows: The images.
        num_clusters: K.
        key: A `jax.random.key`, which decides everything that is random.
        num_passes: Most passes of Lloyd's iteration; it ends when no label changes.

    Returns:
        Centres, labels and inertia.

    Raises:
        InputError: If K is not in [1, N].
    """
    if not 1 <= num_clusters <= len(rows):
        raise InputError(
            f"{num_clusters} components were asked for, but there are {len(rows)} "
            "images; ask for at most one per image"
        )
    centres = _plus_plus(rows, num_clusters, key)
    found = _assign(rows, centres)
    for _ in range(num_passes):
        before = found.labels
        centres = _centres(rows, centres, found)
        found = _assign(rows, centres)
        if (before == found.labels).all():
            break
    return Clusters(centres, found.labels, float(found.squared.sum()))


def _plus_plus(rows: ImageRows, num_clusters: int, key: Array) -> Array:
    seed = np.asarray(jax.random.bits(key, (2,), "uint32")).tolist()
    generator = np.random.default_rng(seed)
    chosen = [int(generator.integers(len(rows)))]
    squared = np.full(len(rows), np.inf)
    while len(chosen) < num_clusters:
        newest = rows.row(chosen[-1])[None]
        squared = np.minimum(squared, _assign(rows, newest).squared)
        squared[chosen] = 0
        total = squared.sum()
        # Duplicates of chosen images: any other image is as good.
        weights = squared / total if total > 0 else None
        if weights is None:
            rest = np.setdiff1d(np.arange(len(rows)), chosen)
            chosen.append(int(generator.choice(rest)))
        else:
            chosen.append(int(generator.choice(len(rows), p=weights)))
    return jnp.stack([rows.row(index) for index in chosen])


def _assign(rows: ImageRows, centres: Array) -> _Nearest:
    """Return the nearest centre of each row, and the sums of rows per centre."""
    labels, squared = [], []
    sums = np.zeros(centres.shape)
    for block in rows.blocks():
        a, b, c = _assign_block(block.rows, centres, jnp.int32(block.count))
        labels.append(np.asarray(a)[: block.count])
        squared.append(np.asarray(b, np.float64)[: block.count])
        sums += np.asarray(c, np.float64)
    return _Nearest(np.concatenate(labels), np.concatenate(squared), sums)


@jax.jit
def _assign_block(
    rows: Array, centres: Array, count: Array
) -> tuple[Array, Array, Array]:
    middle = jnp.mean(centres, axis=0)
    u, v = rows - middle, centres - middle
    cross = jnp.matmul(u, v.T, precision=_HIGHEST)
    squared = jnp.sum(v**2, axis=1) - 2 * cross
    labels = jnp.argmin(squared, axis=1)
    nearest = jnp.min(squared, axis=1) + jnp.sum(u**2, axis=1)
    member = labels[:, None] == jnp.arange(len(centres))
    member &= (jnp.arange(len(rows)) < count)[:, None]
    sums = jnp.matmul(member.T.astype(rows.dtype), rows, precision=_HIGHEST)
    return labels.astype(jnp.int32), jnp.maximum(nearest, 0), sums


def _centres(rows: ImageRows, centres: Array, found: _Nearest) -> Array:
    """Return the means of the clusters; an empty one moves to the farthest image."""
    counts = np.bincount(found.labels, minlength=len(centres))
    means = found.sums / np.maximum(counts, 1)[:, None]
    farthest = np.argsort(-found.squared, kind="stable")
    for place, empty in enumerate(np.flatnonzero(counts == 0)):
        means[empty] = np.asarray(rows.row(int(farthest[place])))
    return jnp.asarray(means, centres.dtype)
