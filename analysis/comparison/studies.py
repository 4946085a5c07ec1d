"""The sections beyond scores: training, trajectories, perturbations, slices.

Each is kept once it is made.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.comparison.candidates import EMPIRICAL, GAUSSIAN
from analysis.comparison.run import ComparedRun, measure_training
from analysis.comparison.scores import representatives
from analysis.comparison.settings import PARTS, ComparisonSettings
from analysis.far_field import compare_far_field, far_field_rows
from analysis.gaussian_first import TrainingComparison, departures
from analysis.rotation_plane import measure_rotation, rotation_rows
from analysis.score_slices import score_slice, slice_rows
from analysis.section import Section, kept_section
from analysis.spectrum import (
    emergence_rows,
    measure_emergence,
    perturbation_response,
    perturbation_rows,
)
from analysis.study_plots import (
    plot_emergence,
    plot_far_field,
    plot_perturbation,
    plot_rotation,
    plot_score_slice,
    plot_trajectories,
)
from analysis.training_plots import plot_gaussian_first
from analysis.trajectories import compare_trajectories, trajectory_rows
from diffusion.closed_form import EdgeworthDenoiser
from diffusion.denoiser import Denoiser
from diffusion.progress import Progress
from diffusion.training.loading import checkpoint_steps
from samplers import karras

__all__ = ["study_sections"]

_NUM_POINTS = 18
_SLICE_SIGMAS = (0.1, 0.5, 2.0, 10.0)
_STEP_SAMPLES = 32
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
            "trajectories": _trajectories,
            "rotation": _rotation,
            "emergence": _emergence,
        }
    if settings.wants("perturbation"):
        makers["perturbation"] = _perturbation
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
        _key(settings, "scores"),
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
        f"{found.num_probes} noised training images at each level. Where it falls, "
        "passes a minimum and rises for the Gaussian, the network has become the "
        "Gaussian first and departed from it afterwards."
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


def _trajectories(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> Section:
    found = compare_trajectories(
        run.model.denoiser,
        _some(run, classes=True),
        _key(settings, "trajectories"),
        shape=(settings.num_trajectories, *run.model.event_shape),
        sigmas=_grid(run),
        block_size=_block(settings),
    )
    section = _unconditional("Sampling trajectories from the same noise", run, folder)
    section.figure(
        "trajectories",
        plot_trajectories(found),
        f"{found.num_samples} trajectories, Heun on {len(found.sigmas)} points of a "
        "Karras grid; a Gaussian's is exact. Bands: quartiles. Dashed: the mean "
        "squared error that counts as close.",
    )
    spread = found.final.std(axis=1, ddof=1)
    section.table(
        [
            {
                "candidate": name,
                "final squared error": float(found.final[i].mean()),
                "its standard deviation": float(spread[i]),
                "close points of x": int(found.close_x[i]),
                "close points of D": int(found.close_denoised[i]),
            }
            for i, name in enumerate(found.names)
        ]
    )
    section.file("trajectories.csv", trajectory_rows(found))
    return section


def _rotation(run: ComparedRun, settings: ComparisonSettings, folder: Path) -> Section:
    found = measure_rotation(
        run.model.denoiser,
        _key(settings, "trajectories"),
        shape=(settings.num_trajectories, *run.model.event_shape),
        sigmas=_grid(run),
        block_size=_block(settings),
    )
    section = _unconditional("Trajectories are nearly plane", run, folder)
    section.figure(
        "rotation",
        plot_rotation(found),
        "How much of sample and path lies off the plane of noise and finished sample. "
        "Bands: quartiles.",
    )
    section.file("rotation.csv", rotation_rows(found))
    return section


def _emergence(run: ComparedRun, settings: ComparisonSettings, folder: Path) -> Section:
    found = measure_emergence(
        run.model.denoiser,
        run.gaussian,
        _key(settings, "trajectories"),
        sigmas=_grid(run),
        num_samples=settings.num_trajectories,
        block_size=_block(settings),
    )
    section = _unconditional("Which features appear when", run, folder)
    section.figure(
        "emergence",
        plot_emergence(found),
        "Under the Gaussian a coefficient of variance v has appeared to "
        "sqrt(v / (v + sigma^2)) of its final value, to one half at sqrt(3 v).",
    )
    section.file("emergence.csv", emergence_rows(found))
    return section


def _perturbation(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> Section:
    found = perturbation_response(
        run.model.denoiser,
        run.gaussian,
        _key(settings, "perturbation"),
        sigmas=_grid(run),
        num_samples=min(settings.num_trajectories, _STEP_SAMPLES),
        block_size=_block(settings),
    )
    section = _unconditional("What a step off the trajectory does", run, folder)
    section.figure(
        "perturbation",
        plot_perturbation(found),
        f"A step of {found.size:g} sigma' along a principal direction of variance v at "
        "sigma'. The Gaussian predicts sqrt(v / (v + sigma'^2)) of it in the finished "
        "sample, and nothing off the direction.",
    )
    section.file("perturbation.csv", perturbation_rows(found))
    return section


def _slices(run: ComparedRun, settings: ComparisonSettings, folder: Path) -> Section:
    section = _unconditional("A plane through the score field", run, folder)
    section.paragraph(
        "The plane of three training images (crosses), or the plane itself for points "
        "in two dimensions. Arrows: the part of the score in the plane."
    )
    models = {"network": run.model.denoiser, **_some(run)}
    anchors = _anchors(run, settings)
    lowest, highest = run.model.sigma_range
    rows = []
    for sigma in (s for s in _SLICE_SIGMAS if lowest <= s <= highest):
        found = score_slice(models, anchors, sigma, batch_size=settings.batch_size)
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


def _some(run: ComparedRun, *, classes: bool = False) -> Mapping[str, Denoiser]:
    """Return a few candidates: the Gaussian, a mixture, the training set."""
    names = representatives(list(run.candidates))
    if classes and "class mixture" in run.candidates:
        names = [GAUSSIAN, "class mixture", EMPIRICAL]
    return {name: run.candidates[name] for name in names if name in run.candidates}


def _grid(run: ComparedRun) -> NDArray[np.float64]:
    lowest, highest = run.model.sigma_range
    return karras(_NUM_POINTS, max(0.002, lowest), min(80.0, highest))


def _block(settings: ComparisonSettings) -> int:
    return min(settings.batch_size, 64)


def _key(settings: ComparisonSettings, part: str) -> Array:
    number = len(PARTS) + PARTS.index(part)
    return jax.random.fold_in(jax.random.key(settings.seed), number)


def _unconditional(title: str, run: ComparedRun, folder: Path) -> Section:
    """Begin a section in which the network is told no class."""
    section = Section(title, folder)
    if run.model.num_classes:
        section.paragraph("This network is told classes; here it is asked without one.")
    return section
