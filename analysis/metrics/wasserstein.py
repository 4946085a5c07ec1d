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

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.pyramid import (
    PatchRows,
    check_images,
    count_levels,
    fit_scaling,
)
from configs.errors import InputError, require, require_choice

__all__ = ["SlicedWasserstein", "sliced_wasserstein"]

_PROJECTIONS_AT_ONCE = 2**25  # numbers of both sets together: 128 MiB of float32
_ROWS_AT_ONCE = 4096
_NORMALISATIONS = ("reference", "each")


class SlicedWasserstein(NamedTuple):
    """A sliced Wasserstein distance.

    Attributes:
        distance: Mean over the levels.
        levels: (S,) distance at every level of the pyramid, the finest first; a single
            one for vectors.
    """

    distance: float
    levels: NDArray[np.float64]


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
) -> SlicedWasserstein:
    """Return the sliced Wasserstein distance of two sets of images or vectors.

    Directions and patch positions are a function of the seed; image i of both sets
    shows the same patches, so a set is 0 from itself.  The sets may differ in size.
    Memory beyond the sets is bounded by half a gigabyte, or by one direction at a time.

    Args:
        samples: (n, H, W, C) images, uint8 pixels or floats in data units; or (n, D)
            vectors, to which the last four arguments do not apply.
        reference: (m, H, W, C) or (m, D).
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

    Returns:
        The distance: of vectors in their units, of images in standard deviations of a
        channel.

    Raises:
        InputError: If shapes, dtypes or numbers do not fit, or a value is not finite.
    """
    require(order in (1, 2), "order", order, "1 or 2")
    require(num_directions >= 1, "num_directions", num_directions, ">= 1")
    require(seed >= 0, "seed", seed, ">= 0")
    require(smallest_level >= 1, "smallest_level", smallest_level, ">= 1")
    first, second = np.asarray(samples), np.asarray(reference)
    if first.ndim != second.ndim or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"samples have shape {first.shape} and the reference {second.shape}; all "
            "but the number must be equal"
        )
    if first.ndim == 2:
        pairs = [(_vectors(first, "samples"), _vectors(second, "the reference"))]
    else:
        require_choice("normalisation", normalisation, _NORMALISATIONS)
        for images, name in ((first, "samples"), (second, "the reference")):
            check_images(images, name, patches_per_image, patch_size)
        num_levels = count_levels(first.shape[1], first.shape[2], smallest_level)
        pairs = [
            _normalised(
                *(
                    PatchRows(
                        images, level, num_levels, patches_per_image, patch_size, seed
                    )
                    for images in (first, second)
                ),
                each=normalisation == "each",
            )
            for level in range(num_levels)
        ]
    levels = [
        _sliced(*pair, np.random.default_rng(seed), num_directions, order)
        for pair in pairs
    ]
    return SlicedWasserstein(float(np.mean(levels)), np.array(levels))


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


def _sliced(
    samples: PatchRows | _VectorRows,
    reference: PatchRows | _VectorRows,
    rng: np.random.Generator,
    num_directions: int,
    order: int,
) -> float:
    """Return the distance between two sets of rows."""
    num_directions = 1 if samples.width == 1 else num_directions
    directions = rng.normal(size=(num_directions, samples.width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    at_once = max(1, _PROJECTIONS_AT_ONCE // (samples.count + reference.count))
    powers = []
    for start in range(0, num_directions, at_once):
        some = directions[start : start + at_once]
        a, b = _sorted_projections(samples, some), _sorted_projections(reference, some)
        powers.append(_transport(a, b, order))
    return float(np.mean(np.concatenate(powers)) ** (1 / order))


def _sorted_projections(
    rows: PatchRows | _VectorRows, directions: NDArray[np.float64]
) -> NDArray[np.floating]:
    """Return theta . x, sorted along each direction, (T, count)."""
    parts = [directions.astype(block.dtype) @ block.T for block in rows.blocks()]
    projections = np.concatenate(parts, axis=1)
    projections.sort(axis=1)
    return projections


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
    common = math.lcm(n, m)
    ends = np.union1d(
        np.arange(1, n + 1, dtype=np.int64) * (common // n),
        np.arange(1, m + 1, dtype=np.int64) * (common // m),
    )
    starts = np.concatenate([[0], ends[:-1]])
    lengths = (ends - starts) / common
    gaps = np.abs(a[:, starts // (common // n)] - b[:, starts // (common // m)])
    return (gaps**order).astype(np.float64) @ lengths
