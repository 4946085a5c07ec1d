"""Sliced Wasserstein distance: transport along random lines.

    SW_p(P, Q)^p = E over directions theta of W_p(theta . x, theta . y)^p,

where in one dimension W_p^p = integral_0^1 |F^-1(u) - G^-1(u)|^p du is known from the
sorted values (Bonneel et al. 2015).  A shift by delta in d dimensions is
|delta| / sqrt(d) away at p = 2.

Images are compared as in Karras et al., arXiv 1710.10196: at every level of a Laplacian
pyramid, patches drawn at random, each colour channel normalised.  The finest level sees
texture, the coarsest layout.  Theirs is ``order=1``, ``normalisation="each"``, and
printed times 1,000.

Two samples of one distribution are not at distance 0: what two independent draws are
apart is the floor below which nothing can be told.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.pyramid import (
    PatchRows,
    check_images,
    count_levels,
    fit_scaling,
)
from configs.errors import InputError, require, require_choice

__all__ = [
    "Slicing",
    "sliced_wasserstein",
    "sliced_wasserstein_levels",
    "sliced_wasserstein_resamples",
]

_PROJECTIONS_AT_ONCE = 2**25  # numbers of both sets together: 128 MiB of float32
# Numbers for each merged step of two sets of unequal size: both values, their gap and
# its power.
_NUMBERS_OF_STEP = 4
_ROWS_AT_ONCE = 4096
_NORMALISATIONS = ("reference", "each")


@dataclass(frozen=True)
class Slicing:
    """What a sliced Wasserstein distance looks at; the last four are of images.

    Args:
        seed: Of directions and positions, >= 0.
        num_directions: Directions averaged over; one number needs only one.
        order: p, 1 or 2.
        patches_per_image: Patches drawn from each image at each level.
        patch_size: Their side in pixels, cut to that of the level.
        smallest_level: Images are halved while both sides are even and stay at least
            this, in pixels.
        normalisation: Each channel of the patches of a level is shifted and scaled by
            mean and deviation in the reference ("reference"), which leaves a change of
            brightness or contrast visible, or in each set ("each", as published).

    Raises:
        InputError: If a number is out of range.
    """

    seed: int = 0
    num_directions: int = 512
    order: int = 2
    patches_per_image: int = 128
    patch_size: int = 7
    smallest_level: int = 16
    normalisation: str = "reference"

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.order in (1, 2), "order", self.order, "1 or 2")
        require(self.num_directions >= 1, "num_directions", self.num_directions, ">= 1")
        require(self.seed >= 0, "seed", self.seed, ">= 0")
        require(self.smallest_level >= 1, "smallest_level", self.smallest_level, ">= 1")
        require_choice("normalisation", self.normalisation, _NORMALISATIONS)


def sliced_wasserstein(
    samples: ArrayLike,
    reference: ArrayLike,
    *,
    seed: int = 0,
    num_directions: int = 512,
    order: int = 2,
    patches_per_image: int = 128,
    patch_size: int = 7,
    smallest_level: int = 16,
    normalisation: str = "reference",
) -> float:
    """Return the sliced Wasserstein distance of two sets of images or vectors.

    It is the mean of `sliced_wasserstein_levels`.

    Args:
        samples: (n, H, W, C) images, uint8 pixels or floats in data units; or (n, D)
            vectors.
        reference: (m, H, W, C) or (m, D).
        seed: See `Slicing`, as all that follow.
        num_directions: Directions averaged over.
        order: 1 or 2.
        patches_per_image: Of images only.
        patch_size: Pixels.
        smallest_level: Pixels.
        normalisation: "reference" or "each".

    Returns:
        The distance: of vectors in their units, of images in standard deviations of a
        channel.

    Raises:
        InputError: If shapes, dtypes or numbers do not fit, or a value is not finite.
    """
    levels = sliced_wasserstein_levels(
        samples,
        reference,
        slicing=Slicing(
            seed,
            num_directions,
            order,
            patches_per_image,
            patch_size,
            smallest_level,
            normalisation,
        ),
    )
    return float(levels.mean())


def sliced_wasserstein_levels(
    samples: ArrayLike, reference: ArrayLike, *, slicing: Slicing = Slicing()
) -> NDArray[np.float64]:
    """Return the sliced Wasserstein distance at every level of the pyramid.

    Directions and patch positions are a function of the seed; image i of both sets
    shows the same patches, so a set is 0 from itself.  The sets may differ in size.
    Memory beyond the sets is bounded by half a gigabyte, or by one direction at a time.

    Args:
        samples: (n, H, W, C) images, uint8 pixels or floats in data units; or (n, D)
            vectors.
        reference: (m, H, W, C) or (m, D).
        slicing: Directions, patches and levels.

    Returns:
        (S,), the finest level first; a single number for vectors.

    Raises:
        InputError: If shapes, dtypes or numbers do not fit, or a value is not finite.
    """
    pairs = _row_pairs(np.asanyarray(samples), np.asanyarray(reference), slicing)
    return np.array([_sliced(*pair, slicing) for pair in pairs])


def sliced_wasserstein_resamples(
    samples: ArrayLike,
    reference: ArrayLike,
    sample_counts: NDArray[np.int64],
    reference_counts: NDArray[np.int64] | None,
    *,
    slicing: Slicing = Slicing(),
) -> NDArray[np.float64]:
    """Return the distance of resamples of both sets, projected and sorted only once.

    A member that is drawn twice brings all of its patches twice.  With the reference in
    both places, and counts of two sizes, these are distances of two samples of one
    distribution: the floor.

    Args:
        samples: See `sliced_wasserstein_levels`.
        reference: Likewise.
        sample_counts: (B, n), how often each sample is taken; every row has one sum.
        reference_counts: (B, m), likewise; None leaves the reference as it is.
        slicing: Directions, patches and levels.

    Returns:
        (B,), each the mean over the levels.

    Raises:
        InputError: If shapes, dtypes or numbers do not fit, or a value is not finite.
    """
    first, second = np.asanyarray(samples), np.asanyarray(reference)
    pairs = _row_pairs(first, second, slicing)
    levels = []
    for pair in pairs:
        total = np.zeros(len(sample_counts))
        num_directions = 0
        for sides in _projections(*pair, slicing):
            order = [np.argsort(side, axis=1) for side in sides]
            a, b = (
                _Sorted(
                    np.take_along_axis(side, places, axis=1),
                    (places // (side.shape[1] // len(members))).astype(np.int32),
                )
                for side, places, members in zip(
                    sides, order, (first, second), strict=True
                )
            )
            num_directions += len(a.values)
            for i, counts in enumerate(sample_counts):
                other = b.values
                if reference_counts is not None:
                    other = b.resampled(reference_counts[i])
                total[i] += _transport(a.resampled(counts), other, slicing.order).sum()
        levels.append((total / num_directions) ** (1 / slicing.order))
    return np.mean(levels, axis=0)


@dataclass(frozen=True)
class _Sorted:
    """Projections in order, (T, N), and which member each belongs to."""

    values: NDArray[np.floating]
    owners: NDArray[np.integer]

    def resampled(self, counts: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the sorted projections of a resample, (T, N')."""
        return np.stack(
            [
                np.repeat(values, counts[owners])
                for values, owners in zip(self.values, self.owners, strict=True)
            ]
        )


def _row_pairs(
    first: NDArray[np.generic], second: NDArray[np.generic], slicing: Slicing
) -> list[tuple["_Rows", "_Rows"]]:
    """Return the two sets as rows, once for every level."""
    if first.ndim != second.ndim or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"samples have shape {first.shape} and the reference {second.shape}; all "
            "but the number must be equal"
        )
    if first.ndim == 2:
        return [(_vectors(first, "samples"), _vectors(second, "the reference"))]
    patches = slicing.patches_per_image, slicing.patch_size
    for images, name in ((first, "samples"), (second, "the reference")):
        check_images(images, name, *patches)
    levels = count_levels(first.shape[1], first.shape[2], slicing.smallest_level)
    return [
        _normalised(
            *(
                PatchRows(images, level, levels, *patches, slicing.seed)
                for images in (first, second)
            ),
            each=slicing.normalisation == "each",
        )
        for level in range(levels)
    ]


@dataclass(frozen=True)
class _VectorRows:
    """Vectors as rows, block by block."""

    values: NDArray[np.float64]

    @property
    def count(self) -> int:
        return self.values.shape[0]

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def blocks(self) -> Iterator[NDArray[np.float64]]:
        for start in range(0, self.count, _ROWS_AT_ONCE):
            yield self.values[start : start + _ROWS_AT_ONCE]


_Rows = PatchRows | _VectorRows


def _vectors(values: NDArray[np.generic], name: str) -> _VectorRows:
    if not values.size or not np.issubdtype(values.dtype, np.floating):
        raise InputError(
            f"{name} have shape {values.shape} and dtype {values.dtype}; give at least "
            "one vector of floats"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{name} hold a number that is not finite")
    return _VectorRows(values.astype(np.float64))


def _normalised(
    samples: PatchRows, reference: PatchRows, *, each: bool
) -> tuple[PatchRows, PatchRows]:
    """Scale the patches of both sets."""
    scaling = fit_scaling(reference)
    own = fit_scaling(samples) if each else scaling
    return replace(samples, scaling=own), replace(reference, scaling=scaling)


def _sliced(samples: "_Rows", reference: "_Rows", slicing: Slicing) -> float:
    """Return the distance between two sets of rows."""
    powers = []
    for sides in _projections(samples, reference, slicing):
        for side in sides:
            side.sort(axis=1)
        powers.append(_transport(*sides, slicing.order))
    return float(np.mean(np.concatenate(powers)) ** (1 / slicing.order))


def _projections(
    samples: "_Rows", reference: "_Rows", slicing: Slicing
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    """Yield theta . x of both sets, (T, n) and (T, m), some directions at a time."""
    rng = np.random.default_rng(slicing.seed)
    num_directions = 1 if samples.width == 1 else slicing.num_directions
    directions = rng.normal(size=(num_directions, samples.width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    count = samples.count + reference.count
    if samples.count != reference.count:
        count *= 1 + _NUMBERS_OF_STEP
    at_once = max(1, _PROJECTIONS_AT_ONCE // count)
    for start in range(0, num_directions, at_once):
        some = directions[start : start + at_once]
        yield _project(samples, some), _project(reference, some)


def _project(rows: "_Rows", directions: NDArray[np.float64]) -> NDArray[np.floating]:
    parts = [directions.astype(block.dtype) @ block.T for block in rows.blocks()]
    return np.concatenate(parts, axis=1)


def _transport(
    a: NDArray[np.floating], b: NDArray[np.floating], order: int
) -> NDArray[np.float64]:
    """Return W_p^p in one dimension of sorted values (T, n) and (T, m), (T,).

    Quantile functions are steps: over the merged steps, of lengths in units of
    1/lcm(n, m), both are constant.
    """
    n, m = a.shape[1], b.shape[1]
    if n == m:
        return np.asarray(np.mean(np.abs(a - b) ** order, axis=1, dtype=np.float64))
    in_a, in_b, lengths = _merged_steps(n, m)
    gaps = np.abs(a[:, in_a] - b[:, in_b])
    return (gaps**order).astype(np.float64) @ lengths


@functools.lru_cache(maxsize=1)
def _merged_steps(
    n: int, m: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return for every step its place in both sets, and its length."""
    common = math.lcm(n, m)
    ends = np.union1d(
        np.arange(1, n + 1, dtype=np.int64) * (common // n),
        np.arange(1, m + 1, dtype=np.int64) * (common // m),
    )
    starts = np.concatenate([[0], ends[:-1]])
    lengths = (ends - starts) / common
    return starts // (common // n), starts // (common // m), lengths
