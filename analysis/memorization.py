"""Whether samples are copies: of training images, or of transformed images.

A sample s is called memorised when its nearest training image is much nearer than its
second nearest,

    d1(s) < ratio d2(s),   ratio = 1/3,

and the copy rate is the share of samples that are nearer to their nearest training
image than to their nearest held-out image, of as many.  A model that knows no training
image by heart has a copy rate of 1/2, whatever its quality; the first criterion has its
control in held-out images in the place of samples.  Distances are Euclidean, in data
units.  Sources: Yoon et al. 2023 and arXiv 2310.02664 for the ratio, arXiv 2505.17638
for its course over training.

A transform leaks when samples look like transformed images: when the nearest of
transformed held-out images is nearer than the nearest of the same images untransformed.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.metrics.bootstrap import random_subset
from analysis.neighbours import Neighbours, as_rows, check_images, nearest_neighbours
from configs.errors import InputError, require

__all__ = [
    "Leak",
    "Memorization",
    "Range",
    "Share",
    "background_leak_rate",
    "leak_rate",
    "memorization",
    "nearest_ratio",
    "share_interval",
]


class Share(NamedTuple):
    """A share of independent trials with its Wilson interval.

    Attributes:
        value: successes / trials.
        low: Lower end of the interval.
        high: Upper end of the interval.
        successes: How many; a tie may count as a half.
        trials: Of how many.
    """

    value: float
    low: float
    high: float
    successes: float
    trials: int


class Range(NamedTuple):
    """What a rate is expected to be, and the range that it stays in by chance.

    Attributes:
        value: Expected rate.
        low: Lower end of the range.
        high: Upper end of the range.
    """

    value: float
    low: float
    high: float


class Memorization(NamedTuple):
    """How much of a training set samples repeat; from `memorization`.

    Attributes:
        ratio: Below this d1/d2 a sample is called memorised.
        nearest_ratio: (n,) d1/d2 of each sample; 0 where both are 0.
        memorised: Share of samples with d1/d2 < `ratio`.
        memorised_held_out: The same share of held-out images in the place of samples:
            what the criterion says of images that nobody has memorised.
        copy_rate: Share of samples nearer to their nearest training image than to their
            nearest held-out image; a tie is a half.
        copy_rate_expected: 1/2, and the range of the rate when training and held-out
            images are exchangeable.  It is wider than the interval of `copy_rate`,
            which holds the references fixed: one of them may be nearest to many.
        num_references: Training images, and held-out images, behind the copy rate.
    """

    ratio: float
    nearest_ratio: NDArray[np.float64]
    memorised: Share
    memorised_held_out: Share
    copy_rate: Share
    copy_rate_expected: Range
    num_references: int


class Leak(NamedTuple):
    """How many samples look like transformed images; from `leak_rate`.

    Attributes:
        share: Share of samples nearer to a transformed image.
        control: The same share of real, untransformed images: the detector's rate of
            false positives.  None where no such images were given.
        margin: (n,) (d - d_T) / max(d, d_T), in [-1, 1], with the distances d to the
            nearest untransformed and d_T to the nearest transformed image; a sample
            leaks where it is above 0.
    """

    share: Share
    control: Share | None
    margin: NDArray[np.float64]


def share_interval(successes: float, trials: int, *, confidence: float = 0.95) -> Share:
    """Return a share with its Wilson score interval.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), with p = successes/n.

    Args:
        successes: In [0, trials]; halves are allowed.
        trials: n, at least 1.
        confidence: Two-sided, in (0, 1).

    Returns:
        The share and the ends of its interval, within [0, 1].

    Raises:
        InputError: If a number is out of range.

    Source: Wilson 1927, doi 10.2307/2276774.
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise InputError(
            f"{successes} successes in {trials} trials were given; there must be at "
            "least one trial, and successes in [0, trials]"
        )
    p, z2 = successes / trials, _quantile(confidence) ** 2 / trials
    centre = p + z2 / 2
    half = math.sqrt(z2 * (p * (1 - p) + z2 / 4))
    low, high = ((centre + sign * half) / (1 + z2) for sign in (-1, 1))
    # p itself is inside but for rounding, which shows at p = 0 and 1.
    return Share(
        p, max(0.0, min(low, p)), min(1.0, max(high, p)), successes, int(trials)
    )


def memorization(
    samples: ArrayLike,
    training: ArrayLike,
    held_out: ArrayLike,
    *,
    ratio: float = 1 / 3,
    max_controls: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> Memorization:
    """Return how much of the training images samples repeat, with controls.

    The range of the copy rate of a model that knows no training image by heart comes
    from exchanging the names: with c_j the samples whose nearest of all 2 m references
    is j, the sum of c over a random half of the references has variance m S^2 / 2,
    where S^2 is the sample variance of c.

    Args:
        samples: (n, *event), uint8 or data units.
        training: (N, *event), N >= 2.  Images that occur twice cannot be recognised
            as memorised, for their copy is the second neighbour.
        held_out: (M, *event) of the same distribution, not trained on.
        ratio: d1/d2 below which a sample is called memorised, in (0, 1).
        max_controls: Held-out images in the place of samples at most, a random subset
            of them; None for all.  The copy rate looks at all.
        seed: Of the random subset of the larger of the two sets that makes references
            for the copy rate equally many, and of the controls.
        confidence: Of all intervals, two-sided.

    Returns:
        Shares with intervals and their controls; see `Memorization`.

    Raises:
        InputError: If a shape does not fit, there are too few images, a value is not
            finite, or a number is out of range.
    """
    samples, training, held_out = (np.asarray(a) for a in (samples, training, held_out))
    check_images(samples=samples, training=training, held_out=held_out)
    if not 0 < ratio < 1:
        raise InputError(f"ratio is {ratio}; it must be in (0, 1)")
    if len(training) < 2:
        raise InputError(
            "there is 1 training image; at least 2 are needed to compare distances"
        )
    require(
        max_controls is None or max_controls >= 1,
        "max_controls",
        max_controls,
        "at least 1",
    )
    controls = random_subset(
        held_out, max_controls or len(held_out), np.random.default_rng(seed)
    )
    ratios, held_out_ratios = (
        nearest_ratio(nearest_neighbours(images, training).distances)
        for images in (samples, controls)
    )
    count = min(len(training), len(held_out))
    rng = np.random.default_rng(seed)
    nearest = [
        nearest_neighbours(samples, random_subset(images, count, rng), count=1)
        for images in (training, held_out)
    ]
    copies, wins = _copies(nearest, count)
    deviation = math.sqrt(count * np.var(wins, ddof=1) / 2) / len(samples)
    half = _quantile(confidence) * deviation
    return Memorization(
        ratio=ratio,
        nearest_ratio=ratios,
        memorised=_share_of(ratios < ratio, confidence),
        memorised_held_out=_share_of(held_out_ratios < ratio, confidence),
        copy_rate=_share_of(copies, confidence),
        copy_rate_expected=Range(0.5, max(0.0, 0.5 - half), min(1.0, 0.5 + half)),
        num_references=count,
    )


def leak_rate(
    samples: ArrayLike,
    references: ArrayLike,
    transformed: ArrayLike,
    *,
    control: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Leak:
    """Return the share of samples that look like transformed images.

    A sample leaks when the nearest of all transformed copies is nearer than the nearest
    of the same images untransformed.  Many copies raise the rate of false positives, as
    blurred samples do: compare with `control` and with samples of a model that has seen
    no transform.

    Args:
        samples: (n, *event), uint8 or data units.
        references: (m, *event) untransformed images that were not trained on.
        transformed: (R, m, *event), copies of the same images, each under a draw of the
            transform that is not the identity.
        control: (k, *event) real untransformed images, disjoint from `references`.
        confidence: Of the intervals, two-sided.

    Returns:
        The share, its control and the margin of each sample; see `Leak`.

    Raises:
        InputError: If a shape does not fit or a value is not finite.
    """
    references, transformed = np.asarray(references), np.asarray(transformed)
    if transformed.ndim < 1 or transformed.shape[1:] != references.shape:
        raise InputError(
            f"transformed has shape {transformed.shape} and references "
            f"{references.shape}; give R copies of all references, (R, m, *event)"
        )
    copies = transformed.reshape(-1, *references.shape[1:])

    def margins(images: ArrayLike) -> NDArray[np.float64]:
        plain, moved = (
            nearest_neighbours(images, others, count=1).distances[:, 0]
            for others in (references, copies)
        )
        return _divide(plain - moved, np.maximum(plain, moved))

    margin = margins(samples)
    return Leak(
        share=_share_of(margin > 0, confidence),
        control=(
            None if control is None else _share_of(margins(control) > 0, confidence)
        ),
        margin=margin,
    )


def background_leak_rate(
    samples: ArrayLike,
    *,
    low: float = -1.2,
    high: float = -0.8,
    confidence: float = 0.95,
) -> Share:
    """Return the share of samples whose background is not where the data have it.

    For images most of whose pixels are background at -1, which a gain b moves to -b: a
    sample has leaked when its median value is outside [low, high].

    Args:
        samples: (n, *event), uint8 or data units.
        low: Lowest median of an image without gain, data units.
        high: Highest one.
        confidence: Of the interval, two-sided.

    Returns:
        The share and its interval; held-out images give its control.

    Raises:
        InputError: If a shape does not fit, a value is not finite, or low > high.
    """
    samples = np.asarray(samples)
    check_images(samples=samples)
    if not low <= high:
        raise InputError(f"low is {low} and high {high}; low must not be above high")
    median = np.median(as_rows(samples), axis=1)
    return _share_of((median < low) | (median > high), confidence)


def _copies(
    nearest: list[Neighbours], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return whether each sample is nearer to training, (n,), and wins, (2 count,).

    A reference wins the samples that it is the nearest to; a tie is a half.
    """
    training, held_out = (found.distances[:, 0] for found in nearest)
    copies = np.where(training == held_out, 0.5, training < held_out)
    wins = [
        np.bincount(found.indices[:, 0], weights, minlength=count)
        for found, weights in zip(nearest, (copies, 1 - copies), strict=True)
    ]
    return copies, np.concatenate(wins, dtype=np.float64)


def nearest_ratio(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return d1/d2 of each row.

    Args:
        distances: (n, 2) to the two nearest references, ascending.

    Returns:
        (n,) ratios in [0, 1]; 0 where both are 0: such a sample repeats both.
    """
    return _divide(distances[:, 0], distances[:, 1])


def _divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a / b, 0 where both are 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _share_of(values: NDArray, confidence: float) -> Share:
    return share_interval(float(values.sum()), len(values), confidence=confidence)


def _quantile(confidence: float) -> float:
    """Return z with P(|Z| < z) = confidence for a standard normal Z."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; it must be in (0, 1)")
    return NormalDist().inv_cdf((1 + confidence) / 2)
