"""Measuring a run's network against closed forms, level by level, on three probes.

    training: x = y + sigma n of training images y;  held-out: the same of images that
    the network has never seen;  noise: x = sigma n, where sampling begins.

What was measured at a level is kept in ``comparison/partial`` with the digests of
network and candidates, so that the same call goes on from there, and another call takes
over what is still true.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.checkpoints import measure_checkpoints
from analysis.comparison.candidates import (
    EMPIRICAL,
    GAUSSIAN,
    fit_candidates,
    gaussian_candidates,
    load_candidates,
)
from analysis.comparison.settings import ComparisonSettings
from analysis.gaussian_first import (
    TrainingComparison,
    stack_comparisons,
    without_details,
)
from analysis.level_sums import LevelSums, measure_level
from analysis.score_comparison import Comparison, compare_denoisers, summarise
from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser, load_gaussian
from diffusion.data import Split, check_labels
from diffusion.denoiser import Denoiser
from diffusion.progress import Progress
from diffusion.training import load_denoiser
from diffusion.training.loading import checkpoint_steps
from diffusion.versions import versions
from samplers.measured_files import read_measured, write_measured
from samplers.model import Model, digest_of, load_model
from samplers.statistics_run import read_training_images

__all__ = [
    "MOST_TRAINING_LEVELS",
    "MOST_TRAINING_PROBES",
    "ComparedRun",
    "ScoreStudy",
    "compare_run",
    "measure_scores",
    "measure_training",
    "open_compared_run",
]

_FILE_KIND = "score comparison"
_MOST_DIRECTIONS = 64
MOST_TRAINING_PROBES = 512
_TRAINING_SIGMAS = (0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
MOST_TRAINING_LEVELS = len(_TRAINING_SIGMAS)
_KINDS = ("training", "held-out", "noise")


class ComparedRun(NamedTuple):
    """A run's network, its images and what it is compared with.

    Attributes:
        workdir: The run.
        model: Its network.
        split: Its images.
        gaussian: The Gaussian of its training images.
        candidates: Denoisers by name.
        sigmas: (L,) those noise levels of the settings that the network knows, rising.
        about: Digests of network, images and candidates, and the versions of packages:
            what is kept under another is measured again.  Plain values for JSON.
        step: Of the network's checkpoint; 0 for an imported one.
    """

    workdir: Path
    model: Model
    split: Split
    gaussian: GaussianDenoiser
    candidates: Mapping[str, Denoiser]
    sigmas: NDArray[np.float64]
    about: dict[str, Any]
    step: int = 0


class ScoreStudy(NamedTuple):
    """A network against its candidates on every kind of probe.

    Attributes:
        comparisons: By kind of probe: training, held-out (where there are such
            images), noise.
        directions: (k,) principal directions that errors are told by, 0 the largest.
        variances: (k,) their variances, squared data units.
    """

    comparisons: Mapping[str, Comparison]
    directions: NDArray[np.int64]
    variances: NDArray[np.float64]


class _Probes(NamedTuple):
    """Clean samples (N, *event) and the classes that the network is told with them."""

    images: NDArray[Any]
    labels: NDArray[Any]


def open_compared_run(
    workdir: str | Path, settings: ComparisonSettings, folder: Path
) -> ComparedRun:
    """Load a run's network and images, and fit what it is compared with.

    Args:
        workdir: A run, or an imported checkpoint with its images.
        settings: Which checkpoint and which candidates.
        folder: Where fits are kept.

    Raises:
        InputError: If there is no run, checkpoint or Gaussian, the images are not those
            it was trained on, or a candidate cannot be had.
        OSError: If something cannot be written.
    """
    workdir = Path(workdir)
    checkpoint_steps(workdir)
    # A run without images has no Gaussian either, and this error says what to do.
    gaussian = load_gaussian(workdir / "gaussian.npz")
    split = read_training_images(workdir)
    model, step = _load(workdir, settings.step)
    check_labels(split, model.num_classes, or_none=True)
    lowest, highest = model.sigma_range
    sigmas = np.array(sorted({s for s in settings.sigmas if lowest <= s <= highest}))
    if not sigmas.size:
        raise InputError(
            f"--sigmas are {settings.sigmas}, but this network knows noise levels in "
            f"[{lowest:g}, {highest:g}]; give some of those"
        )
    candidates = fit_candidates(split, gaussian, settings, folder / "models")
    about = {
        "versions": versions(),
        "model": model.digest,
        "data": split.digest,
        "gaussian": digest_of(gaussian),
        "candidates": [[name, digest_of(one)] for name, one in candidates.items()],
    }
    return ComparedRun(workdir, model, split, gaussian, candidates, sigmas, about, step)


def _load(workdir: Path, step: int | None) -> tuple[Model, int]:
    """Return the network of a step, or of the newest intact one, and which it is."""
    if step is not None:
        return load_model(workdir, step=step), step
    errors = []
    for newest in reversed(checkpoint_steps(workdir)):
        try:
            model = load_model(workdir, step=newest)
        except InputError as error:
            errors.append(error)
            continue
        if errors:
            warning = f"warning: using the older step {newest}: {errors[0]}"
            print(warning, file=sys.stderr)
        return model, newest
    raise errors[0]


def measure_scores(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> ScoreStudy:
    """Compare the network's score with every candidate's on every kind of probe.

    Args:
        run: See `open_compared_run`.
        settings: How many probes, and the seed.
        folder: Where what is measured at each level is kept.

    Returns:
        The comparisons; the same numbers whether or not the call was interrupted.

    Raises:
        OSError: If something cannot be written.
    """
    probes = _all_probes(run.split, settings)
    progress = Progress(len(probes) * len(run.sigmas), label="scores", unit="level")
    comparisons = {
        kind: _measure_kind(run, settings, kind, probe, folder, progress)
        for kind, probe in probes.items()
    }
    progress.close()
    directions = _directions(run.gaussian)
    variances = np.asarray(run.gaussian.variances, np.float64)[directions]
    return ScoreStudy(comparisons, directions, variances)


def measure_training(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> TrainingComparison:
    """Compare the network of every checkpoint with a few of the candidates.

    On noised training images, at most `MOST_TRAINING_PROBES`, at the levels nearest to
    `MOST_TRAINING_LEVELS` fixed ones: the Gaussian, a mixture and the training set.

    Args:
        run: See `open_compared_run`.
        settings: How many probes, and the seed.
        folder: Where what is measured at each level is kept.

    Returns:
        See `analysis.gaussian_first.compare_over_training`.

    Raises:
        InputError: If no checkpoint is intact.
        OSError: If something cannot be written.
    """
    run = _fewer(run)
    count = min(settings.num_probes, MOST_TRAINING_PROBES)
    settings = dataclasses.replace(settings, num_probes=count)
    probes = _all_probes(run.split, settings)["training"]
    steps = checkpoint_steps(run.workdir)
    total = len(steps) * len(run.sigmas)
    progress = Progress(total, label="checkpoints", unit="level")

    def measure(step: int, model: Model) -> Comparison:
        then = run._replace(model=model, about={**run.about, "model": model.digest})
        place = folder / f"step_{step}"
        found = _measure_kind(then, settings, "training", probes, place, progress)
        return without_details(found)

    found, skipped = measure_checkpoints(
        steps,
        lambda step: load_model(run.workdir, step=step),
        measure,
        after_skip=lambda: progress.advance(len(run.sigmas)),
    )
    progress.close()
    return stack_comparisons(run.workdir, found, skipped=skipped)


def _fewer(run: ComparedRun) -> ComparedRun:
    """Return a run with the candidates and levels that checkpoints are compared at."""
    mixtures = [name for name in run.candidates if name.startswith("mixture ")]
    one = ["mixture 10"] if "mixture 10" in mixtures else mixtures[-1:]
    names = [n for n in (GAUSSIAN, *one, EMPIRICAL) if n in run.candidates]
    names = names or list(run.candidates)[:1]
    wanted = np.log(_TRAINING_SIGMAS)
    nearest = {int(np.argmin(np.abs(np.log(run.sigmas) - s))) for s in wanted}
    digests = [pair for pair in run.about["candidates"] if pair[0] in names]
    return run._replace(
        candidates={name: run.candidates[name] for name in names},
        sigmas=run.sigmas[sorted(nearest)],
        about={**run.about, "candidates": digests},
    )


def _measure_kind(
    run: ComparedRun,
    settings: ComparisonSettings,
    kind: str,
    probes: _Probes,
    folder: Path,
    progress: Progress,
) -> Comparison:
    """Measure all levels of one kind of probe, but for those that are kept."""
    levels = []
    for sigma in run.sigmas.tolist():
        path = folder / f"{kind}_{sigma!r}.npz"
        about = _level_about(run, settings, kind, sigma)
        found = _read_level(path, about)
        if found is None:
            found = _measure(run, settings, probes, kind, sigma)
            write_measured(path, _FILE_KIND, found._asdict(), about)
        levels.append(found)
        progress.advance(note=f"{kind} probes, sigma {sigma:g}")
    return summarise(tuple(run.candidates), run.sigmas, levels)


def _measure(
    run: ComparedRun,
    settings: ComparisonSettings,
    probes: _Probes,
    kind: str,
    sigma: float,
) -> LevelSums:
    def told(numbers: NDArray[np.intp]) -> Denoiser:
        return run.model.with_classes(jnp.asarray(probes.labels[numbers]))

    key = jax.random.fold_in(jax.random.key(settings.seed), _KINDS.index(kind))
    # Of sigma itself: other levels beside it change nothing.
    bits = int(np.float32(sigma).view(np.uint32))
    return measure_level(
        run.model.denoiser,
        run.candidates,
        probes.images,
        sigma,
        jax.random.fold_in(key, bits),
        mean=run.gaussian.mean,
        batch_size=settings.batch_size,
        directions=run.gaussian.basis[:, _directions(run.gaussian)],
        reference_of=told if run.model.num_classes else None,
    )


def _all_probes(split: Split, settings: ComparisonSettings) -> dict[str, _Probes]:
    """Choose the clean samples of each kind of probe; at least two of each."""
    rng = np.random.default_rng(settings.seed)
    probes = {}
    parts = zip(_KINDS, (split.training, split.held_out), strict=False)
    for kind, dataset in parts:
        count = min(settings.num_probes, len(dataset.images))
        if count >= 2:
            chosen = np.sort(rng.choice(len(dataset.images), count, replace=False))
            images = np.asarray(dataset.images[chosen])
            probes[kind] = _Probes(images, np.asarray(dataset.labels[chosen]))
    count, event = settings.num_probes, split.training.images.shape[1:]
    nothing = np.broadcast_to(np.zeros((), np.float32), (count, *event))
    labels = rng.choice(np.asarray(split.training.labels), count)
    return {**probes, "noise": _Probes(nothing, labels)}


def _directions(gaussian: GaussianDenoiser) -> NDArray[np.int64]:
    """Return up to 64 principal directions, spread geometrically."""
    rank = gaussian.basis.shape[1]
    spread = np.geomspace(1, max(rank, 1), min(rank, _MOST_DIRECTIONS))
    return np.unique(spread.round().astype(np.int64)) - 1


def _level_about(
    run: ComparedRun, settings: ComparisonSettings, kind: str, sigma: float
) -> dict[str, Any]:
    return {
        **run.about,
        "probes": kind,
        "sigma": sigma,
        "num_probes": settings.num_probes,
        "seed": settings.seed,
    }


def _read_level(path: Path, about: dict[str, Any]) -> LevelSums | None:
    """Return what an earlier call has measured, if it is what is wanted."""
    if not path.is_file():
        return None
    try:
        found = read_measured(path, _FILE_KIND, LevelSums._fields, "measure it again")
    except InputError:
        return None  # damaged: it is measured again
    if found.about != json.loads(json.dumps(about)):
        return None
    return LevelSums(**found.arrays)


def compare_run(
    workdir: str | Path,
    sigmas: Sequence[float],
    *,
    seed: int = 0,
    step: int | None = None,
    candidates: Sequence[str | Path] = (),
) -> Comparison:
    """Compare a run's network with the Gaussian of its training images, and files.

    The quick form, which keeps nothing.  The probes are the held-out images, or the
    training images where none are held out.

    Args:
        workdir: A run of `diffusion.training.train`.
        sigmas: Noise levels, data units.
        seed: Seed of the noise.
        step: Checkpoint to use; None for the newest intact one.
        candidates: Files of further closed forms.

    Returns:
        The comparison with the Gaussian, the isotropic and the mean-isotropic model,
        and the candidates.

    Raises:
        InputError: If there is no run, no such checkpoint, or a file does not match.
    """
    denoiser = load_denoiser(workdir, step=step)
    gaussian = load_gaussian(Path(workdir) / "gaussian.npz")
    split = read_training_images(workdir)
    held_out = split.held_out.images
    return compare_denoisers(
        denoiser,
        {
            **gaussian_candidates(gaussian),
            **load_candidates(candidates, gaussian.mean.shape),
        },
        held_out if len(held_out) else split.training.images,
        np.asarray(sigmas),
        jax.random.key(seed),
        mean=gaussian.mean,
    )
