"""How much of a score one model explains of another's.

    explained variance = 1 - |reference - candidate|^2 / |reference|^2,

averaged over probes x = x0 + sigma n.  For scores the reference is the network's score;
for denoised images both sides are first centred on the data's mean, so that a model
which knows the mean alone explains nothing.  With the candidate in the denominator the
normaliser is reversed; with the ratio of the two averages the fraction is pooled, so
that probes of small score do not count for as much.  As s = (D - x) / sigma^2, all of
it follows from |D - D_c|^2, |D - x|^2 and |D - mean|^2.  Source: Wang & Vastola,
arXiv 2412.09726.

The reference is called once for each block of probes, whatever the number of
candidates; these take turns, and no more than one block's answers are held.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.level_sums import LevelSums, measure_level
from configs.errors import InputError, require
from diffusion.denoiser import Denoiser

__all__ = [
    "NO_DIRECTIONS",
    "Comparison",
    "DirectionErrors",
    "Summary",
    "compare_denoisers",
    "explained_variance",
    "summarise",
    "unexplained_fractions",
]


class Summary(NamedTuple):
    """A quantity over candidates and noise levels.

    Attributes:
        mean: (M, L) average over probes.
        standard_error: (M, L) standard error of that average.
    """

    mean: NDArray[np.float64]
    standard_error: NDArray[np.float64]


_NOTHING = Summary(np.zeros((0, 0)), np.zeros((0, 0)))


class DirectionErrors(NamedTuple):
    """Where, among directions u_k of the space of samples, candidates are off.

    Attributes:
        error: (M, L, k) average of (u_k . (D - D_c))^2, squared data units, with its
            standard error.
        power: (L, k) average of (u_k . (D - mean))^2 of the reference.
    """

    error: Summary
    power: NDArray[np.float64]


NO_DIRECTIONS = DirectionErrors(_NOTHING, np.zeros((0, 0)))
"""Of a comparison that tells no errors by direction."""


class Comparison(NamedTuple):
    """Candidates against a reference denoiser.

    Attributes:
        names: The M candidates.
        sigmas: (L,) noise levels, data units.
        num_probes: Noisy samples behind every number.
        score: Explained variance of the reference's score.
        denoised: Explained variance of its denoised, centred sample.
        squared_error: |reference - candidate|^2 / D of the denoised sample, squared
            data units.
        score_reversed: As `score`, over the candidate's score.
        denoised_reversed: As `denoised`, over the candidate's centred sample.  -inf,
            with a standard error of nan, where that is 0 for some probe: at every
            level for a candidate that knows the mean alone, and for others at levels
            so high that in the numbers' precision D is the mean.
        score_pooled: 1 - mean |s - s_c|^2 / mean |s|^2.
        denoised_pooled: The same of denoised, centred samples.
        score_unexplained: (M, L, N) unexplained fraction of the score of each probe, of
            which `score` is one minus the average; two references under one key see
            the same probes and can be compared probe by probe.
        pixel_error: (M, L, *event) average |reference - candidate| of the denoised
            sample, data units.
        directions: Errors by direction; over no direction if none was asked for.
    """

    names: tuple[str, ...]
    sigmas: NDArray[np.float64]
    num_probes: int
    score: Summary
    denoised: Summary
    squared_error: Summary
    score_reversed: Summary = _NOTHING
    denoised_reversed: Summary = _NOTHING
    score_pooled: Summary = _NOTHING
    denoised_pooled: Summary = _NOTHING
    score_unexplained: NDArray[np.float64] = np.zeros((0, 0, 0))
    pixel_error: NDArray[np.float64] = np.zeros((0, 0))
    directions: DirectionErrors = NO_DIRECTIONS


def unexplained_fractions(reference: ArrayLike, candidate: ArrayLike) -> Array:
    """Return |reference - candidate|^2 / |reference|^2 of each sample.

    Args:
        reference: (n, *event).
        candidate: (n, *event).

    Returns:
        (n,) fractions, >= 0; 0 where both are zero.

    Raises:
        InputError: If the shapes differ or there is no sample.
    """
    reference, candidate = jnp.asarray(reference), jnp.asarray(candidate)
    if reference.shape != candidate.shape or reference.ndim < 2 or not reference.size:
        raise InputError(
            f"reference has shape {reference.shape} and candidate {candidate.shape}; "
            "give both as (n, *event) with n >= 1"
        )
    axes = tuple(range(1, reference.ndim))
    error = jnp.sum(jnp.square(reference - candidate), axis=axes)
    power = jnp.sum(jnp.square(reference), axis=axes)
    return jnp.where(error == 0, 0.0, error / power)


def explained_variance(reference: ArrayLike, candidate: ArrayLike) -> Array:
    """Return the share of the reference that the candidate explains.

    1 - mean over samples of |reference - candidate|^2 / |reference|^2: 1 for equal
    arrays, 0 for a candidate of zeros, negative for one that is worse than zeros.

    Args:
        reference: Scores or centred denoised samples, (n, *event).
        candidate: The same of another model, (n, *event).

    Returns:
        The average, ().

    Raises:
        InputError: If the shapes differ or there is no sample.
    """
    return 1 - jnp.mean(unexplained_fractions(reference, candidate))


def compare_denoisers(
    reference: Denoiser,
    candidates: Mapping[str, Denoiser],
    images: ArrayLike,
    sigmas: ArrayLike | Sequence[float],
    key: Array,
    *,
    mean: ArrayLike,
    batch_size: int = 256,
    directions: ArrayLike | None = None,
    after_call: Callable[[str], object] | None = None,
) -> Comparison:
    """Compare candidates with a reference on noised images.

    Args:
        reference: The denoiser to explain, usually a network; called once for each
            block of images and level.
        candidates: Denoisers by name.
        images: Clean samples to put noise on, (N, *event), uint8 or data units; zeros
            make probes of pure noise, x = sigma n.
        sigmas: (L,) noise levels, data units.
        key: A `jax.random.key`; image i, level l: ``fold_in(fold_in(key, l), i)``.
        mean: Mean of the data, (*event), which centres denoised samples.
        batch_size: Images handled at once.
        directions: Orthonormal columns to tell errors by, (D, k); None for none.
        after_call: Told after every call which candidate was called, "" for the
            reference.

    Returns:
        Averages over the N probes with their standard errors.

    Raises:
        InputError: If there is no candidate, no level or no image.
    """
    sigmas, images = np.asarray(sigmas, np.float64), np.asarray(images)
    if not (np.isfinite(sigmas) & (sigmas > 0)).all():
        raise InputError(f"sigmas are {sigmas}; each must be finite and > 0")
    if not candidates or sigmas.ndim != 1 or not sigmas.size or not len(images):
        raise InputError(
            f"{len(candidates)} candidates, sigmas of shape {sigmas.shape} and "
            f"{len(images)} images were given; at least one of each is needed"
        )
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    size = math.prod(images.shape[1:])
    if np.shape(mean) != images.shape[1:]:
        raise InputError(
            f"mean has shape {np.shape(mean)}; one sample has {images.shape[1:]}"
        )
    if directions is not None and (
        np.ndim(directions) != 2 or np.shape(directions)[0] != size
    ):
        raise InputError(
            f"directions have shape {np.shape(directions)}; give ({size}, k), a column "
            "each"
        )
    levels = [
        measure_level(
            reference,
            candidates,
            images,
            float(sigma),
            jax.random.fold_in(key, index),
            mean=mean,
            batch_size=batch_size,
            directions=directions,
            after_call=after_call,
        )
        for index, sigma in enumerate(sigmas)
    ]
    return summarise(tuple(candidates), sigmas, levels)


def summarise(
    names: Sequence[str],
    sigmas: ArrayLike | Sequence[float],
    levels: Sequence[LevelSums],
) -> Comparison:
    """Average what was measured at each level.

    Args:
        names: The M candidates, in the order of the sums.
        sigmas: (L,) noise levels, data units.
        levels: One for each, on the same number of probes.

    Returns:
        Averages over probes with their standard errors.
    """
    size = levels[0].pixel_error[0].size
    explained = [
        _summary(1 - _ratio(level.error, power(level)) for level in levels)
        for power in (
            lambda s: s.score_power,
            lambda s: s.power,
            lambda s: s.candidate_score_power,
            lambda s: s.candidate_power,
        )
    ]
    return Comparison(
        names=tuple(names),
        sigmas=np.asarray(sigmas, np.float64),
        num_probes=levels[0].error.shape[1],
        score=explained[0],
        denoised=explained[1],
        squared_error=_summary(level.error / size for level in levels),
        score_reversed=explained[2],
        denoised_reversed=explained[3],
        score_pooled=_pooled((s.error, s.score_power) for s in levels),
        denoised_pooled=_pooled((s.error, s.power) for s in levels),
        score_unexplained=np.stack(
            [_ratio(s.error, s.score_power) for s in levels], axis=1
        ),
        pixel_error=np.stack([s.pixel_error for s in levels], axis=1),
        directions=_directions(levels),
    )


def _ratio(
    error: NDArray[np.float64], power: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return error / power, 0 where there is no error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / power)


def _summary(values: Iterable[NDArray[np.float64]]) -> Summary:
    """Average (M, N) arrays, one per level, over probes."""
    stacked = np.stack(list(values), axis=1)
    with np.errstate(invalid="ignore"):
        return Summary(stacked.mean(axis=-1), _standard_error(stacked))


def _pooled(
    pairs: Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> Summary:
    """Return 1 - mean error / mean power; its error to first order in both."""
    means, errors = [], []
    for error, power in pairs:
        ratio = error.mean(axis=-1) / power.mean()
        means.append(1 - ratio)
        errors.append(_standard_error(error - ratio[:, None] * power) / power.mean())
    return Summary(np.stack(means, axis=1), np.stack(errors, axis=1))


def _directions(levels: Sequence[LevelSums]) -> DirectionErrors:
    count = levels[0].error.shape[1]
    mean = np.stack([s.direction_error for s in levels], axis=1)
    square = np.stack([s.direction_error_square for s in levels], axis=1)
    variance = np.maximum(square - mean**2, 0) / max(count - 1, 1)
    error = np.sqrt(variance) if count > 1 else np.full(mean.shape, np.nan)
    power = np.stack([s.direction_power for s in levels])
    return DirectionErrors(Summary(mean, error), power)


def _standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(count)
