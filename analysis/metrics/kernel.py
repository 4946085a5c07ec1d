"""Kernel distance: the squared maximum mean discrepancy under a cubic kernel.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),        k(x, y) = (x.y / d + 1)^3,

with x, x' independent samples and y, y' independent references.  Means over pairs of
different members estimate it without bias, so that two samples of one distribution are
0 on average, some below (Binkowski et al., arXiv 1801.01401; on features of the 2015
Inception network this is the KID).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.bootstrap import random_subset
from analysis.metrics.feature_statistics import check_features
from configs.errors import require

__all__ = [
    "kernel_distance",
    "kernel_distance_blocks",
    "kernel_distance_deviations",
    "kernel_distance_resamples",
]

_ROWS = 4096


def kernel_distance(
    samples: ArrayLike,
    reference: ArrayLike,
    *,
    block_size: int = 1000,
    num_blocks: int = 100,
    seed: int = 0,
) -> float:
    """Return the unbiased squared MMD of two sets of features, in float64.

    Args:
        samples: (n, d), n >= 2.
        reference: (m, d), m >= 2.
        block_size: Up to so many members on both sides all of them are taken at once;
            above, random blocks of this size.
        num_blocks: Blocks averaged over.
        seed: Of the blocks, >= 0.

    Returns:
        The distance; below 0 by chance.  Published tables often show 1,000 times this.

    Raises:
        InputError: If shapes or numbers do not fit, or a feature is not finite.
    """
    blocks = kernel_distance_blocks(
        samples, reference, block_size=block_size, num_blocks=num_blocks, seed=seed
    )
    return float(blocks.mean())


def kernel_distance_blocks(
    samples: ArrayLike,
    reference: ArrayLike,
    *,
    block_size: int = 1000,
    num_blocks: int = 100,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the distance of each block.

    A block is drawn without replacement; a side with fewer than `block_size` members is
    in every block whole.  All blocks come from one set, so their mean varies far less
    than another set would make it: see `kernel_distance_deviations`.

    Args:
        samples: (n, d), n >= 2; memory maps too.
        reference: (m, d), m >= 2.
        block_size: At least 2.
        num_blocks: At least 1.
        seed: Of the blocks, >= 0.

    Returns:
        (num_blocks,), or (1,) where both sides are taken whole.

    Raises:
        InputError: If shapes or numbers do not fit, or a feature is not finite.
    """
    require(block_size >= 2, "block_size", block_size, ">= 2")
    require(num_blocks >= 1, "num_blocks", num_blocks, ">= 1")
    require(seed >= 0, "seed", seed, ">= 0")
    first, second = check_features(2, samples=samples, reference=reference)
    if max(len(first), len(second)) <= block_size:
        return np.array([_distance(first, second)])
    rng = np.random.default_rng(seed)
    return np.array(
        [
            _distance(
                random_subset(first, block_size, rng),
                random_subset(second, block_size, rng),
            )
            for _ in range(num_blocks)
        ]
    )


def kernel_distance_resamples(
    samples: ArrayLike,
    reference: ArrayLike,
    sample_counts: NDArray[np.int64],
    reference_counts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the distance of resamples of both sets, from one kernel matrix.

    Pairs of a member with itself are left out, also where it was drawn twice.

    Args:
        samples: (n, d), few enough for an (n, n) matrix.
        reference: (m, d), likewise.
        sample_counts: (B, n), how often each sample is taken.
        reference_counts: (B, m), likewise.

    Returns:
        (B,) distances.

    Raises:
        InputError: If shapes do not fit or a feature is not finite.
    """
    first, second = (
        a.astype(np.float64)
        for a in check_features(2, samples=samples, reference=reference)
    )
    across = _kernel(first, second)
    total = np.sum(sample_counts @ across * reference_counts, axis=1)
    pairs = sample_counts.sum(axis=1) * reference_counts.sum(axis=1)
    return (
        _weighted_within(_kernel(first, first), sample_counts)
        + _weighted_within(_kernel(second, second), reference_counts)
        - 2 * total / pairs
    )


def kernel_distance_deviations(
    samples: ArrayLike,
    reference: ArrayLike,
    sample_counts: NDArray[np.int64],
    reference_counts: NDArray[np.int64],
    *,
    block_size: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return by how much resamples of large sets differ in their distance.

    To first order in the counts w and v,

        2 sum_i (w_i - 1) a_i / n + 2 sum_j (v_j - 1) b_j / m,
        a_i = mean_x k(x_i, x) - mean_y k(x_i, y),   b_j likewise,

    the means over random members of each set.  Of a and b only what two disjoint halves
    of those members agree on is kept.  The second order, which alone is left where the
    distance is 0, is that of resamples of one block, scaled from its size to n and m.

    Args:
        samples: (n, d), n >= 2; memory maps too.
        reference: (m, d), m >= 2.
        sample_counts: (B, n), how often each sample is taken.
        reference_counts: (B, m), likewise.
        block_size: Members in each half, and in the block, at least 2.
        seed: Of the members, and of the block's resamples, >= 0.

    Returns:
        (B,) deviations from the distance; their spread is about half too large
        where the distance is 0.

    Raises:
        InputError: If shapes or numbers do not fit, or a feature is not finite.
    """
    require(block_size >= 2, "block_size", block_size, ">= 2")
    first, second = check_features(2, samples=samples, reference=reference)
    rng = np.random.default_rng(seed)
    x, y = (rng.permutation(len(a))[: 2 * block_size] for a in (first, second))
    a, b = _projection(first, x, second, y), _projection(second, y, first, x)
    linear = 2 * (
        (sample_counts - 1) @ a / len(first) + (reference_counts - 1) @ b / len(second)
    )
    block = first[x[:block_size]], second[y[:block_size]]
    sizes = len(first), len(second)
    return linear + _second_order(block, sizes, len(sample_counts), rng)


def _projection(
    rows: NDArray[Any],
    own: NDArray[np.int64],
    others: NDArray[Any],
    chosen: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return a_i, centred, (n,), as large as two halves of the members agree on.

    A mean over few members has an error of its own, which varies with i as a_i does.
    """
    one, other = (
        _mean_kernel(rows, rows[own[i::2]], own[i::2])
        - _mean_kernel(rows, others[chosen[i::2]])
        for i in range(2)
    )
    one, other = one - one.mean(), other - other.mean()
    mean = (one + other) / 2
    shared, variance = max(float(one @ other), 0.0), float(mean @ mean)
    return mean * np.sqrt(shared / variance) if variance > 0 else mean


def _mean_kernel(
    rows: NDArray[Any], block: NDArray[Any], places: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the mean of k(x_i, .) over a block, (n,).

    Where `places` says which rows the block is, none is paired with itself.
    """
    members = block.astype(np.float64)
    parts = [
        _kernel(rows[i : i + _ROWS].astype(np.float64), members).sum(axis=1)
        for i in range(0, len(rows), _ROWS)
    ]
    sums, counts = np.concatenate(parts), np.full(len(rows), len(members))
    if places is not None:
        sums[places] -= (np.square(members).mean(axis=1) + 1) ** 3
        counts[places] -= 1
    return sums / np.maximum(counts, 1)


def _second_order(
    block: tuple[NDArray[Any], NDArray[Any]],
    sizes: tuple[int, int],
    num_resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the quadratic part of resamples of a block, at the sizes of its sets."""
    x, y = (side.astype(np.float64) for side in block)
    u, v = (
        rng.multinomial(len(s), np.full(len(s), 1 / len(s)), num_resamples) - 1.0
        for s in (x, y)
    )
    within_x, within_y, between = (
        _centred(_kernel(*pair)) for pair in ((x, x), (y, y), (x, y))
    )
    np.fill_diagonal(within_x, 0.0)
    np.fill_diagonal(within_y, 0.0)
    n, m = np.sqrt(len(x) * sizes[0]), np.sqrt(len(y) * sizes[1])
    return (
        np.sum(u @ within_x * u, axis=1) / n**2
        + np.sum(v @ within_y * v, axis=1) / m**2
        - 2 * np.sum(u @ between * v, axis=1) / (n * m)
    )


def _centred(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    means = kernel.mean(axis=0) + kernel.mean(axis=1, keepdims=True)
    return kernel - means + kernel.mean()


def _distance(samples: NDArray[Any], reference: NDArray[Any]) -> float:
    x, y = samples.astype(np.float64), reference.astype(np.float64)
    return _within(x) + _within(y) - 2 * float(_kernel(x, y).mean())


def _within(x: NDArray[np.float64]) -> float:
    """Return the mean over pairs of different members."""
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def _weighted_within(
    kernel: NDArray[np.float64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean over pairs of different members of each resample, (B,)."""
    np.fill_diagonal(kernel, 0.0)
    pairs = counts.sum(axis=1) ** 2 - np.square(counts).sum(axis=1)
    return np.sum(counts @ kernel * counts, axis=1) / np.maximum(pairs, 1)


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x @ y.T / x.shape[1] + 1) ** 3
