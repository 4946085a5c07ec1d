"""What a network learns first: its Gaussian, over the checkpoints of a run.

    unexplained(step, sigma) = mean |s_step - s|^2 / |s_step|^2,   s a candidate's,

for the score (or the centred denoised image) of every checkpoint.  At low and middle
noise levels the fraction that the Gaussian leaves unexplained falls, passes a minimum
and rises again: the network first becomes the Gaussian, then departs from it towards
finer structure.  At high levels it falls throughout.  Source: Wang & Vastola,
arXiv 2412.09726; on the order of learning, Wang & Pehlevan, arXiv 2503.03206.

The noise on image i at level l depends on the key, l and i alone, so checkpoints
differ by the network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.checkpoints import measure_checkpoints
from analysis.score_comparison import (
    NO_DIRECTIONS,
    Comparison,
    Summary,
    compare_denoisers,
)
from configs.errors import InputError
from diffusion.denoiser import Denoiser
from diffusion.training.loading import checkpoint_steps, load_denoiser
from diffusion.training.record import read_record

__all__ = [
    "Departure",
    "TrainingComparison",
    "compare_over_training",
    "departures",
    "stack_comparisons",
    "without_details",
]

_CLEAR = 2.0  # standard errors of the difference to the minimum


class TrainingComparison(NamedTuple):
    """Candidates against the network of every checkpoint of a run.

    Attributes:
        steps: (S,) training steps, ascending.
        num_images: (S,) training images seen by then, repetitions counted.
        names: The M candidates.
        sigmas: (L,) noise levels, data units.
        num_probes: Noisy samples behind every number.
        score: Explained variance of the network's score, (S, M, L) each.
        denoised: The same of its centred denoised image.
        unexplained: (S, M, L, N) unexplained fraction of the score of each probe; the
            probes of all checkpoints are the same.
        skipped: Steps on the disk that could not be loaded.
    """

    steps: NDArray[np.int64]
    num_images: NDArray[np.int64]
    names: tuple[str, ...]
    sigmas: NDArray[np.float64]
    num_probes: int
    score: Summary
    denoised: Summary
    unexplained: NDArray[np.float64]
    skipped: tuple[int, ...]


class Departure(NamedTuple):
    """Where one candidate explains most of the score at one noise level.

    A minimum lies too low by chance: it is chosen on every other probe, and other
    checkpoints are told from it on the rest.  One is above the minimum if its fraction
    is greater by more than two standard errors of the difference, probe by probe.

    Attributes:
        sigma: Noise level, data units.
        step: The minimum: the checkpoint with the least unexplained fraction of every
            other probe.
        num_images: Training images seen by then.
        least: The unexplained fraction there, over all probes.
        first: That of the first checkpoint.
        last: That of the last checkpoint.
        departs: Whether the first checkpoint is above the minimum, and so are the last
            and perhaps others before it.
        departs_at: Training images seen at the first checkpoint after the minimum that
            is above it with all that follow; None if the network does not depart.
    """

    sigma: float
    step: int
    num_images: int
    least: float
    first: float
    last: float
    departs: bool
    departs_at: int | None


def compare_over_training(
    workdir: str | Path,
    candidates: Mapping[str, Denoiser],
    images: ArrayLike,
    sigmas: ArrayLike,
    key: Array,
    *,
    mean: ArrayLike,
    steps: Sequence[int] | None = None,
    ema: bool = True,
    batch_size: int = 256,
) -> TrainingComparison:
    """Compare candidates with the network of every intact checkpoint.

    Args:
        workdir: A run of `diffusion.training.train`.
        candidates: Denoisers by name, usually the Gaussian and the training images.
        images: Clean samples to put noise on, (N, *event), uint8 or data units.
        sigmas: (L,) noise levels, data units.
        key: See `analysis.score_comparison.compare_denoisers`.
        mean: Mean of the data, (*event), which centres denoised samples.
        steps: Checkpoints to take; None for all.
        ema: Whether to take the averaged parameters.
        batch_size: Images handled at once.

    Returns:
        Explained variances of each checkpoint with their standard errors.

    Raises:
        InputError: If the workdir holds no run or no intact checkpoint, or there is no
            candidate, level or image.
    """
    wanted = checkpoint_steps(workdir) if steps is None else sorted(steps)

    def measure(_: int, network: Denoiser) -> Comparison:
        found = compare_denoisers(
            network, candidates, images, sigmas, key, mean=mean, batch_size=batch_size
        )
        return without_details(found)

    found, skipped = measure_checkpoints(
        wanted, lambda step: load_denoiser(workdir, step=step, ema=ema), measure
    )
    return stack_comparisons(workdir, found, skipped=skipped)


def without_details(comparison: Comparison) -> Comparison:
    """Leave out what is not stacked, and would grow with the number of checkpoints."""
    return comparison._replace(pixel_error=np.zeros((0, 0)), directions=NO_DIRECTIONS)


def stack_comparisons(
    workdir: str | Path,
    comparisons: Mapping[int, Comparison],
    *,
    skipped: tuple[int, ...] = (),
) -> TrainingComparison:
    """Put the comparisons of a run's checkpoints side by side.

    Args:
        workdir: The run, which says how many images a step takes.
        comparisons: By step; of the same candidates, levels and probes.
        skipped: Steps that could not be loaded.

    Returns:
        The comparison over training.

    Raises:
        InputError: If there is no comparison, or they differ in what they compare.
    """
    if not comparisons:
        raise InputError(
            f"{workdir} holds no checkpoint; train with python -m diffusion.train"
        )
    steps = sorted(comparisons)
    rows = [comparisons[step] for step in steps]
    first = rows[0]
    for step, row in zip(steps, rows, strict=True):
        if row.names != first.names or not np.array_equal(row.sigmas, first.sigmas):
            raise InputError(
                f"step {step} compares {row.names} at {row.sigmas}, step {steps[0]} "
                f"{first.names} at {first.sigmas}; all must be the same"
            )
    record = read_record(workdir)
    batch_size = 0 if record is None else record.config.training.batch_size
    return TrainingComparison(
        steps=np.array(steps, np.int64),
        num_images=np.array(steps, np.int64) * batch_size,
        names=first.names,
        sigmas=first.sigmas,
        num_probes=first.num_probes,
        score=_stack([row.score for row in rows]),
        denoised=_stack([row.denoised for row in rows]),
        unexplained=np.stack([row.score_unexplained for row in rows]),
        skipped=skipped,
    )


def departures(comparison: TrainingComparison, name: str) -> tuple[Departure, ...]:
    """Return, for each noise level, where the network is nearest to a candidate.

    Args:
        comparison: Result of `compare_over_training`.
        name: One of its candidates.

    Returns:
        One entry per noise level, of the score's unexplained fraction.

    Raises:
        InputError: If there is no such candidate.
    """
    if name not in comparison.names:
        raise InputError(f"there is no candidate {name}; compared: {comparison.names}")
    fractions = comparison.unexplained[:, comparison.names.index(name)]
    return tuple(
        _departure(comparison, sigma, fractions[:, level])
        for level, sigma in enumerate(comparison.sigmas)
    )


def _departure(
    comparison: TrainingComparison, sigma: float, fractions: NDArray[np.float64]
) -> Departure:
    """Return the nearest checkpoint at one level, from fractions (S, N)."""
    averages = fractions.mean(axis=1)
    lowest = int(np.argmin(fractions[:, ::2].mean(axis=1)))
    is_above = _above(fractions[:, 1::2], lowest)
    # Above at this and all later checkpoints; the minimum itself never is.
    stays = np.logical_and.accumulate(is_above[::-1])[::-1]
    departs = bool(is_above[0] and stays[-1])
    return Departure(
        sigma=float(sigma),
        step=int(comparison.steps[lowest]),
        num_images=int(comparison.num_images[lowest]),
        least=float(averages[lowest]),
        first=float(averages[0]),
        last=float(averages[-1]),
        departs=departs,
        departs_at=int(comparison.num_images[np.argmax(stays)]) if departs else None,
    )


def _above(fractions: NDArray[np.float64], lowest: int) -> NDArray[np.bool_]:
    """Tell which of fractions (S, N) are clearly above those of one checkpoint, (S,).

    None is with fewer than two probes, which have no standard error.
    """
    count = fractions.shape[1]
    if count < 2:
        return np.zeros(len(fractions), bool)
    gap = fractions - fractions[lowest]
    error = gap.std(axis=1, ddof=1) / np.sqrt(count)
    return gap.mean(axis=1) > _CLEAR * error


def _stack(summaries: Sequence[Summary]) -> Summary:
    return Summary(
        np.stack([summary.mean for summary in summaries]),
        np.stack([summary.standard_error for summary in summaries]),
    )
