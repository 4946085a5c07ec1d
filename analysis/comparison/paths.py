"""The sections that follow the network's trajectories: paths, planes, steps off them.

A network that is told classes is told one for each noise, drawn as often as it is among
the training images: the same in all sections.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.comparison.candidates import EMPIRICAL, GAUSSIAN
from analysis.comparison.class_gaussians import ClassGaussians
from analysis.comparison.run import ComparedRun
from analysis.comparison.scores import representatives
from analysis.comparison.settings import PARTS, ComparisonSettings
from analysis.rotation_plane import measure_rotation, rotation_rows
from analysis.sample_variances import compare_variances, variance_rows
from analysis.section import Section
from analysis.spectrum import (
    emergence_rows,
    measure_emergence,
    perturbation_response,
    perturbation_rows,
)
from analysis.study_plots import (
    plot_emergence,
    plot_perturbation,
    plot_rotation,
    plot_trajectories,
    plot_variances,
)
from analysis.trajectories import (
    DenoiserOf,
    compare_trajectories,
    trace_blocks,
    trajectory_rows,
)
from diffusion.closed_form import MixtureDenoiser
from diffusion.denoiser import Denoiser
from samplers import karras

__all__ = [
    "emergence_section",
    "key_of",
    "perturbation_section",
    "rotation_section",
    "some_candidates",
    "trajectory_section",
    "variance_section",
]

_NUM_POINTS = 18
_STEP_SAMPLES = 32


def trajectory_section(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> Section:
    """Make the section on sampling trajectories from the same noise.

    Args and errors: see `analysis.comparison.studies.study_sections`.
    """
    found = compare_trajectories(
        run.model.denoiser,
        some_candidates(run, classes=True),
        key_of(settings, "trajectories"),
        shape=(settings.num_trajectories, *run.model.event_shape),
        sigmas=_grid(run),
        block_size=_block(settings),
        reference_of=_told(run, settings),
        candidates_of=_told_candidates(run, settings),
    )
    section = _begin("Sampling trajectories from the same noise", run, folder)
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


def rotation_section(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> Section:
    """Make the section on the plane in which trajectories nearly stay.

    Args and errors: see `analysis.comparison.studies.study_sections`.
    """
    found = measure_rotation(
        run.model.denoiser,
        key_of(settings, "trajectories"),
        shape=(settings.num_trajectories, *run.model.event_shape),
        sigmas=_grid(run),
        block_size=_block(settings),
        denoiser_of=_told(run, settings),
    )
    section = _begin("Trajectories are nearly plane", run, folder)
    section.paragraph(
        "Where samples turn and do not only shrink (the frame x / sqrt(1 + sigma^2)), "
        "two principal components hold "
        f"{found.position_variance.mean():.2%} of a trajectory's variance and "
        f"{found.step_variance.mean():.2%} of its steps', on average."
    )
    section.figure(
        "rotation",
        plot_rotation(found),
        "How much of sample and path lies off the plane of noise and finished sample. "
        "Bands: quartiles.",
    )
    section.file("rotation.csv", rotation_rows(found))
    return section


def variance_section(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> Section:
    """Make the section on the variance of the network's samples.

    Args and errors: see `analysis.comparison.studies.study_sections`.
    """
    traces = trace_blocks(
        run.model.denoiser,
        key_of(settings, "trajectories"),
        (settings.num_trajectories, *run.model.event_shape),
        _grid(run),
        block_size=_block(settings),
        denoiser_of=_told(run, settings),
    )
    samples = np.concatenate([np.asarray(trace.denoised[-1]) for trace in traces])
    found = compare_variances(samples, run.gaussian)
    section = _begin("How the network's samples vary", run, folder)
    section.figure(
        "variances",
        plot_variances(found),
        f"Variance of {found.num_samples} finished samples along the training images' "
        "principal directions; band: two standard errors. What is missing on the left "
        "is diversity, on the right detail.",
    )
    section.file("variances.csv", variance_rows(found))
    return section


def emergence_section(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> Section:
    """Make the section on which features appear when.

    Args and errors: see `analysis.comparison.studies.study_sections`.
    """
    found = measure_emergence(
        run.model.denoiser,
        run.gaussian,
        key_of(settings, "trajectories"),
        sigmas=_grid(run),
        num_samples=settings.num_trajectories,
        block_size=_block(settings),
        denoiser_of=_told(run, settings),
    )
    section = _begin("Which features appear when", run, folder)
    section.figure(
        "emergence",
        plot_emergence(found),
        "Under the Gaussian a coefficient of variance v has appeared to "
        "sqrt(v / (v + sigma^2)) of its final value, to one half at sqrt(3 v).",
    )
    section.file("emergence.csv", emergence_rows(found))
    return section


def perturbation_section(
    run: ComparedRun, settings: ComparisonSettings, folder: Path
) -> Section:
    """Make the section on what a step off the trajectory does.

    Args and errors: see `analysis.comparison.studies.study_sections`.
    """
    found = perturbation_response(
        run.model.denoiser,
        run.gaussian,
        key_of(settings, "perturbation"),
        sigmas=_grid(run),
        num_samples=min(settings.num_trajectories, _STEP_SAMPLES),
        block_size=_block(settings),
        denoiser_of=_told(run, settings),
    )
    section = _begin("What a step off the trajectory does", run, folder)
    section.figure(
        "perturbation",
        plot_perturbation(found),
        f"A step of {found.size:g} sigma' along a principal direction of variance v at "
        "sigma'. The Gaussian predicts sqrt(v / (v + sigma'^2)) of it in the finished "
        "sample, and nothing off the direction.",
    )
    section.file("perturbation.csv", perturbation_rows(found))
    return section


def some_candidates(
    run: ComparedRun, *, classes: bool = False
) -> Mapping[str, Denoiser]:
    """Return a few candidates: the Gaussian, a mixture, the training set."""
    names = representatives(list(run.candidates))
    if classes and "class mixture" in run.candidates:
        names = [GAUSSIAN, "class mixture", EMPIRICAL]
    return {name: run.candidates[name] for name in names if name in run.candidates}


def key_of(settings: ComparisonSettings, part: str) -> Array:
    """Return the key of everything random in a part."""
    number = len(PARTS) + PARTS.index(part)
    return jax.random.fold_in(jax.random.key(settings.seed), number)


def _begin(title: str, run: ComparedRun, folder: Path) -> Section:
    """Begin a section on trajectories of the network."""
    section = Section(title, folder)
    if run.model.num_classes:
        section.paragraph(
            "This network is told classes: one for each noise, drawn as often as it is "
            "among the training images, the same in all sections."
        )
    return section


def _classes(run: ComparedRun, settings: ComparisonSettings) -> NDArray[Any]:
    """Draw the class of each trajectory's noise, (n,), as the training images have."""
    rng = np.random.default_rng((settings.seed, len(PARTS)))
    labels = np.asarray(run.split.training.labels)
    return rng.choice(labels, settings.num_trajectories)


def _told(run: ComparedRun, settings: ComparisonSettings) -> DenoiserOf | None:
    """Return the network that is told the classes of noises; None without classes."""
    if not run.model.num_classes:
        return None
    labels = _classes(run, settings)
    return lambda numbers: run.model.with_classes(jnp.asarray(labels[numbers]))


def _told_candidates(
    run: ComparedRun, settings: ComparisonSettings
) -> dict[str, DenoiserOf]:
    """Return the candidate that is told the same classes, where there is one."""
    mixture = run.candidates.get("class mixture")
    if not run.model.num_classes or not isinstance(mixture, MixtureDenoiser):
        return {}
    # A component for each class that occurs, in their order.
    occurring = np.unique(np.asarray(run.split.training.labels))
    components = np.searchsorted(occurring, _classes(run, settings))
    return {
        "Gaussian of the class": lambda numbers: ClassGaussians(
            mixture, jnp.asarray(components[numbers])
        )
    }


def _grid(run: ComparedRun) -> NDArray[np.float64]:
    lowest, highest = run.model.sigma_range
    return karras(_NUM_POINTS, max(0.002, lowest), min(80.0, highest))


def _block(settings: ComparisonSettings) -> int:
    return min(settings.batch_size, 64)
