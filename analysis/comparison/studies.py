"""The sections beyond scores: training, trajectories, perturbations, slices.

Each is kept once it is made.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.comparison.paths import (
    emergence_section,
    key_of,
    perturbation_section,
    rotation_section,
    some_candidates,
    trajectory_section,
    variance_section,
)
from analysis.comparison.run import (
    MOST_TRAINING_LEVELS,
    MOST_TRAINING_PROBES,
    ComparedRun,
    measure_training,
)
from analysis.comparison.settings import ComparisonSettings
from analysis.far_field import compare_far_field, far_field_rows
from analysis.gaussian_first import TrainingComparison, departures
from analysis.score_slices import score_slice, slice_rows
from analysis.section import Section, kept_section
from analysis.study_plots import (
    plot_far_field,
    plot_score_slice,
)
from analysis.training_plots import plot_gaussian_first
from diffusion.closed_form import EdgeworthDenoiser
from diffusion.progress import Progress
from diffusion.training.loading import checkpoint_steps

__all__ = ["study_sections"]

_SLICE_SIGMAS = (0.1, 0.5, 2.0, 10.0)
_SLICE_POINTS = 21
_FAR_PROBES = 256


def study_sections(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> list[Section]:
    """Make the sections of all parts that were asked for and apply.

    Args:
        run: See `open_compared_run`.
        settings: Which parts, sizes and seed.
        folder: The page's folder.

    Returns:
        The sections, in order.

    Raises:
        InputError: If no checkpoint is intact.
        OSError: If something cannot be written.
    """
    makers = _makers(run, settings)
    progress = Progress(len(makers), label="studies", unit="section")
    sections = []
    for name, make in makers.items():
        about = {
            **run.about,
            "section": name,
            "num_trajectories": settings.num_trajectories,
            "num_probes": settings.num_probes,
            "sigmas": run.sigmas.tolist(),
            "seed": settings.seed,
        }
        if name == "training":
            about["steps"] = checkpoint_steps(run.workdir)
        path = folder / "partial" / f"section_{name}.json"
        section = kept_section(path, folder, about)
        if section is None:
            section = make(run, settings, folder)
            section.keep(path, about)
        sections.append(section)
        progress.advance(note=name)
    progress.close()
    return sections


_Maker = Callable[[ComparedRun, ComparisonSettings, Path], Section]


def _makers(run: ComparedRun, settings: ComparisonSettings) -> dict[str, _Maker]:
    """Return what makes each section that is wanted and applies."""
    makers: dict[str, _Maker] = {}
    if settings.wants("scores") and _edgeworth(run) is not None:
        makers["far_field"] = _far_field
    several = len(checkpoint_steps(run.workdir)) > 1
    if settings.wants("training") and (several or settings.parts is not None):
        makers["training"] = _training
    if settings.wants("trajectories"):
        makers |= {
            "trajectories": trajectory_section,
            "rotation": rotation_section,
            "variances": variance_section,
            "emergence": emergence_section,
        }
    if settings.wants("perturbation"):
        makers["perturbation"] = perturbation_section
    if settings.wants("slices") and len(run.split.training.images) >= 3:
        makers["slices"] = _slices
    return makers


def _edgeworth(run: ComparedRun) -> EdgeworthDenoiser | None:
    """Return the corrected Gaussian, if it is among the candidates and of full rank."""
    for model in run.candidates.values():
        if isinstance(model, EdgeworthDenoiser):
            full = model.gaussian.basis.shape[0] == model.gaussian.basis.shape[1]
            return model if full else None
    return None


def _far_field(run: ComparedRun, settings: ComparisonSettings, folder: Path) -> Section:
    section = Section("The training set from afar", folder)
    edgeworth = _edgeworth(run)
    assert edgeworth is not None, "there would be no such section"
    found = compare_far_field(
        run.split.training.images,
        edgeworth,
        run.sigmas,
        key_of(settings, "scores"),
        num_probes=min(settings.num_probes, _FAR_PROBES),
    )
    section.figure(
        "far_field",
        plot_far_field(found),
        "Why any bounded set looks Gaussian from afar: distance of the training set's "
        "denoised image from its Gaussian's, the rigorous bound on it, and what the "
        "third cumulant does not predict of it.",
    )
    section.file("far_field.csv", far_field_rows(found))
    return section


def _training(run: ComparedRun, settings: ComparisonSettings, folder: Path) -> Section:
    section = Section("What is learned first", folder)
    found = measure_training(run, settings, folder / "partial")
    section.paragraph(
        f"Unexplained fraction of the score of each of {len(found.steps)} checkpoints, "
        f"{found.num_probes} noised training images at each level. So that it does not "
        f"take as long as all the rest, at most {MOST_TRAINING_PROBES} images, "
        f"{MOST_TRAINING_LEVELS} of the noise levels, and of the candidates the "
        "Gaussian, one mixture and the training set. Where it falls, passes a minimum "
        "and rises for the Gaussian, the network has become the Gaussian first and "
        "departed from it afterwards: at the first checkpoint that is above the "
        "minimum, with all after it, by more than two standard errors."
    )
    if found.skipped:
        section.paragraph(f"Damaged checkpoints left out: steps {found.skipped}.")
    section.figure(
        "training",
        plot_gaussian_first(found),
        "Triangles: the checkpoint nearest to the candidate.",
    )
    for name in found.names:
        rows = [one._asdict() for one in departures(found, name)]
        section.paragraph(f"Nearest to {name}:")
        section.table(rows)
    section.file("training.csv", _training_rows(found))
    return section


def _training_rows(found: TrainingComparison) -> list[dict[str, Any]]:
    return [
        {
            "step": int(step),
            "num_images": int(found.num_images[s]),
            "candidate": name,
            "sigma": float(sigma),
            "score": float(found.score.mean[s, m, i]),
            "score_standard_error": float(found.score.standard_error[s, m, i]),
            "denoised": float(found.denoised.mean[s, m, i]),
            "denoised_standard_error": float(found.denoised.standard_error[s, m, i]),
        }
        for s, step in enumerate(found.steps)
        for m, name in enumerate(found.names)
        for i, sigma in enumerate(found.sigmas)
    ]


def _slices(run: ComparedRun, settings: ComparisonSettings, folder: Path) -> Section:
    section = Section("A plane through the score field", folder)
    section.paragraph(
        "The plane of three training images (crosses), or the plane itself for points "
        "in two dimensions. Arrows: the part of the score in the plane."
    )
    network, anchors = run.model.denoiser, _anchors(run, settings)
    if run.model.num_classes:
        classes, counts = np.unique(run.split.training.labels, return_counts=True)
        told = int(classes[np.argmax(counts)])
        count = min(settings.batch_size, _SLICE_POINTS**2)
        network = run.model.with_classes(jnp.full(count, told))
        section.paragraph(
            f"This network is told classes: here class {told}, the most frequent one, "
            "at every point; the images may be of others."
        )
    models = {"network": network, **some_candidates(run)}
    lowest, highest = run.model.sigma_range
    rows = []
    for sigma in (s for s in _SLICE_SIGMAS if lowest <= s <= highest):
        found = score_slice(
            models,
            anchors,
            sigma,
            num_points=_SLICE_POINTS,
            batch_size=settings.batch_size,
        )
        section.figure(f"slice_{sigma:g}", plot_score_slice(found), f"sigma {sigma:g}")
        rows += slice_rows(found)
    section.file("slices.csv", rows)
    return section


def _anchors(run: ComparedRun, settings: ComparisonSettings) -> NDArray[Any]:
    """Choose three training images, of three classes where there are so many."""
    images, labels = run.split.training
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(images))
    _, first = np.unique(np.asarray(labels)[order], return_index=True)
    chosen = order[np.sort(first)[:3]] if len(first) >= 3 else order[:3]
    return np.asarray(images[np.sort(chosen)])
