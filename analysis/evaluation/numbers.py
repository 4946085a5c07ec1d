"""The numbers of an evaluation: each with its interval, counts and settings.

Features are compared by Frechet and kernel distance, precision and recall, density and
coverage: those of the Inception network, those computed elsewhere, or the coefficients
of pixels in the reference's leading principal directions.  Pixels are compared by the
sliced Wasserstein distance over a Laplacian pyramid and by nearest neighbours.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.evaluation.choice import Limits
from analysis.memorization import Share, memorization, nearest_ratio, share_interval
from analysis.metrics.bootstrap import (
    Interval,
    interval_around,
    mean_interval,
    random_subset,
    resample_counts,
)
from analysis.metrics.feature_statistics import (
    Factored,
    FeatureStatistics,
    factored,
    frechet_of_features,
)
from analysis.metrics.frechet_resampling import frechet_floor, frechet_resamples
from analysis.metrics.inception_score import (
    inception_score,
    inception_score_resamples,
)
from analysis.metrics.kernel import (
    kernel_distance_blocks,
    kernel_distance_deviations,
    kernel_distance_resamples,
)
from analysis.metrics.manifold import (
    density_coverage_members,
    precision_recall_members,
)
from analysis.metrics.wasserstein import (
    Slicing,
    sliced_wasserstein_levels,
    sliced_wasserstein_resamples,
)
from analysis.neighbours import nearest_neighbours

__all__ = [
    "Row",
    "feature_density_coverage",
    "feature_frechet",
    "feature_kernel",
    "feature_precision_recall",
    "pixel_distance",
    "pixel_memorization",
    "recognition_score",
]

_RATIO = 1 / 3
_SPLITS = 10
_KERNEL_BLOCK = 1000


class Row(NamedTuple):
    """One number.

    Attributes:
        metric: Its name.
        value: The number.
        low: Lower end of its interval.
        high: Upper end.
        interval: What the interval is of, such as "bootstrap over samples".
        num_samples: Samples that it was computed from.
        num_reference: Members of the reference, None where there are none or the
            statistics do not say.
        settings: Whatever else it depends on.
        sets: Names of the sets that it depends on: "samples", "reference", "held_out".
    """

    metric: str
    value: float
    low: float
    high: float
    interval: str
    num_samples: int
    num_reference: int | None
    settings: Mapping[str, Any]
    sets: tuple[str, ...] = ("samples", "reference")


def feature_frechet(
    name: str,
    samples: NDArray[Any],
    reference: NDArray[Any] | FeatureStatistics | Factored,
    limits: Limits,
    seed: int,
    *,
    with_floor: bool = False,
) -> list[Row]:
    """Return the Frechet distance; `with_floor` adds that of two draws of the data."""
    counts, factors = _counts(len(samples), limits, seed), factored(reference, "data")
    value = frechet_of_features(samples, factors)
    resampled = frechet_resamples(samples, factors, counts)
    interval = interval_around(value, resampled, confidence=limits.confidence)
    settings: dict[str, Any] = {}
    if with_floor and isinstance(reference, np.ndarray):
        pair = (
            _counts(len(reference), limits, seed + i, len(s))
            for i, s in ((1, samples), (2, reference))
        )
        settings["floor"] = _range(frechet_floor(reference, *pair), limits)
    sizes = len(samples), factors.count
    return [_row(name, value, _above_zero(interval), "samples", sizes, settings)]


def feature_kernel(
    name: str,
    samples: NDArray[Any],
    reference: NDArray[Any],
    limits: Limits,
    seed: int,
) -> list[Row]:
    """Return the kernel distance."""
    blocks = kernel_distance_blocks(samples, reference, seed=seed)
    value = float(blocks.mean())
    of, sets = "samples and reference", (samples, reference)
    counts = [_counts(len(f), limits, seed + i) for i, f in enumerate(sets)]
    if len(blocks) == 1:
        resampled = kernel_distance_resamples(samples, reference, *counts)
    else:
        resampled = kernel_distance_deviations(samples, reference, *counts, seed=seed)
        # The blocks are drawn at random too.
        chosen = _counts(len(blocks), limits, seed + 2)
        resampled += chosen @ (blocks - value) / len(blocks)
    interval = interval_around(value, resampled, confidence=limits.confidence)
    settings = {
        "num_blocks": len(blocks),
        "block_size": [min(_KERNEL_BLOCK, len(f)) for f in (samples, reference)],
    }
    sizes = len(samples), len(reference)
    return [_row(name, value, interval, of, sizes, settings)]


def feature_precision_recall(
    prefix: str,
    samples: NDArray[Any],
    reference: NDArray[Any],
    limits: Limits,
    seed: int,
    *,
    k: int = 3,
) -> list[Row]:
    """Return precision and recall."""
    a, b = (_some(f, limits.manifold_images, seed) for f in (samples, reference))
    members = precision_recall_members(a, b, k=k)
    return _member_rows(
        (f"{prefix}precision", f"{prefix}recall"), members, limits, seed, k
    )


def feature_density_coverage(
    prefix: str,
    samples: NDArray[Any],
    reference: NDArray[Any],
    limits: Limits,
    seed: int,
    *,
    k: int = 5,
) -> list[Row]:
    """Return density and coverage."""
    a, b = (_some(f, limits.manifold_images, seed) for f in (samples, reference))
    members = density_coverage_members(a, b, k=k)
    return _member_rows(
        (f"{prefix}density", f"{prefix}coverage"), members, limits, seed, k
    )


def recognition_score(logits: NDArray[Any], limits: Limits, seed: int) -> list[Row]:
    """Return the Inception score, of samples in random order."""
    order = np.random.default_rng(seed).permutation(len(logits))
    score = inception_score(logits[order], num_splits=_SPLITS)
    resampled = inception_score_resamples(logits, _counts(len(logits), limits, seed))
    interval = interval_around(score.mean, resampled, confidence=limits.confidence)
    settings = {"num_splits": _SPLITS, "deviation_of_splits": score.deviation}
    sizes = len(logits), None
    row = _row("inception_score", score.mean, interval, "samples", sizes, settings)
    return [row._replace(sets=("samples",))]


def pixel_distance(
    samples: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    limits: Limits,
    seed: int,
) -> list[Row]:
    """Return the sliced Wasserstein distance over a Laplacian pyramid."""
    a, b = (_some(s, limits.sliced_images, seed) for s in (samples, reference))
    slicing = Slicing(
        seed=seed,
        num_directions=limits.sliced_directions,
        patches_per_image=limits.sliced_patches,
    )
    levels = sliced_wasserstein_levels(a, b, slicing=slicing)
    resampled = sliced_wasserstein_resamples(
        a, b, _counts(len(a), limits, seed), None, slicing=slicing
    )
    pair = (_counts(len(b), limits, seed + i, len(s)) for i, s in ((1, a), (2, b)))
    floor = sliced_wasserstein_resamples(b, b, *pair, slicing=slicing)
    value = float(levels.mean())
    interval = interval_around(value, resampled, confidence=limits.confidence)
    settings = {
        "levels": levels.tolist(),
        "floor": _range(floor, limits),
        "order": slicing.order,
        "num_directions": slicing.num_directions,
        "patches_per_image": slicing.patches_per_image,
        "patch_size": slicing.patch_size,
        "normalisation": slicing.normalisation,
    }
    interval, sizes = _above_zero(interval), (len(a), len(b))
    return [_row("sliced_wasserstein", value, interval, "samples", sizes, settings)]


def pixel_memorization(
    samples: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    held_out: NDArray[np.uint8] | None,
    limits: Limits,
    seed: int,
) -> list[Row]:
    """Return how many samples repeat the reference; with held-out images, controls."""
    some = _some(samples, limits.neighbour_images, seed)
    settings: dict[str, Any] = {"ratio": _RATIO}
    if held_out is None:
        distances = nearest_neighbours(some, reference).distances
        near = nearest_ratio(distances) < _RATIO
        share = share_interval(int(near.sum()), len(some), confidence=limits.confidence)
        return [_share_row("memorised", share, len(reference), settings)]
    found = memorization(
        some,
        reference,
        held_out,
        max_controls=limits.neighbour_images,
        seed=seed,
        confidence=limits.confidence,
    )
    expected = found.copy_rate_expected
    chance = {"expected": expected.value, "floor": [expected.low, expected.high]}
    memorised = _share_row("memorised", found.memorised, len(reference), settings)
    control = _share_row(
        "memorised_held_out", found.memorised_held_out, len(reference), settings
    )
    copies = _share_row("copy_rate", found.copy_rate, found.num_references, chance)
    return [
        memorised,
        control._replace(sets=("held_out", "reference")),
        copies._replace(sets=("samples", "reference", "held_out")),
    ]


def _counts(
    count: int, limits: Limits, seed: int, size: int | None = None
) -> NDArray[np.int64]:
    return resample_counts(
        count, num_resamples=limits.num_resamples, size=size, seed=seed
    )


def _some(members: NDArray[Any], limit: int, seed: int) -> NDArray[Any]:
    return random_subset(members, limit, np.random.default_rng(seed))


def _member_rows(
    names: tuple[str, str], members: Any, limits: Limits, seed: int, k: int
) -> list[Row]:
    rows = []
    sizes = len(members.samples), len(members.reference)
    for name, values, of in zip(names, members, ("samples", "reference"), strict=True):
        interval = mean_interval(
            values,
            num_resamples=limits.num_resamples,
            confidence=limits.confidence,
            seed=seed,
        )
        rows.append(_row(name, float(values.mean()), interval, of, sizes, {"k": k}))
    return rows


def _row(
    name: str,
    value: float,
    interval: Interval,
    resampled: str,
    sizes: tuple[int, int | None],
    settings: Mapping[str, Any],
) -> Row:
    return Row(
        metric=name,
        value=value,
        low=interval.low,
        high=interval.high,
        interval=f"bootstrap over {resampled}",
        num_samples=sizes[0],
        num_reference=sizes[1],
        settings=settings,
    )


def _share_row(
    name: str, share: Share, num_reference: int, settings: Mapping[str, Any]
) -> Row:
    return Row(
        metric=name,
        value=share.value,
        low=share.low,
        high=share.high,
        interval="Wilson",
        num_samples=share.trials,
        num_reference=num_reference,
        settings=settings,
    )


def _above_zero(interval: Interval) -> Interval:
    return interval._replace(low=max(0.0, interval.low))


def _range(values: NDArray[np.float64], limits: Limits) -> list[float]:
    """Return the ends of the middle of some values."""
    tail = 50 * (1 - limits.confidence)
    return np.percentile(values, (tail, 100 - tail)).tolist()
