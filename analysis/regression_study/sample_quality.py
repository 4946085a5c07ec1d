"""Samples of the kernel's score, and their distance from the data, against the stop.

The flow starts where the data are at the last time, x = x0 + sigma n of training rows:
at T = 2 a start of noise alone would be wrong by alpha = .37 of the data.  It ends at
the first time, and is compared with held-out data that have the noise of that time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.kernel_denoiser import kernel_denoiser
from analysis.metrics import energy_distance
from analysis.plots import plot_sample_grid
from analysis.regression_study.measurements import SampleStudy
from analysis.regression_study.problem import Study, draw_mixture
from analysis.regression_study.score_plots import plot_sample_distance, plot_samples
from analysis.section import Section
from analysis.study_parts import Advance, Outcome
from diffusion.closed_form import fit_gaussian
from diffusion.denoiser import Denoiser
from samplers import karras
from samplers.sampling import sample

__all__ = ["NoisedData", "measure_samples", "samples_part", "samples_units"]

_MULTIPLES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
_GCV = _MULTIPLES.index(1.0)
_SHOWN = 60


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoisedData:
    """A start: points of the data with noise, x = x0 + sigma noise.

    Args:
        points: (B, *event) clean samples.
    """

    points: Array

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return samples at `sigma`, (B, *event)."""
        return self.points + jnp.asarray(sigma) * noise


class _Setting(NamedTuple):
    """What all samples of a study have in common."""

    key: Array
    sigmas: NDArray[np.float64]
    start: NoisedData


def samples_units(study: Study) -> int:
    """Return the units of work: one for each stop."""
    return len(_MULTIPLES) + 1


def measure_samples(study: Study, advance: Advance) -> SampleStudy:
    """Sample at several stops and measure the distance from the reference.

    Args:
        study: The study, of a score.
        advance: Told of each stop.
    """
    main, settings = study.main, study.settings
    lowest, highest = study.lifting.sigma_range()
    reference, fresh, begin = _sets(study)
    setting = _Setting(
        study.key("sampling"),
        karras(settings.sampler_points, lowest, highest),
        NoisedData(jnp.asarray(begin)),
    )
    scale = 1 / np.sqrt(1 + lowest**2)
    stops = np.append(study.main_stop * np.array(_MULTIPLES), main.times()[-1])
    samples, denoised = [], []
    for s in stops.tolist():
        denoiser = kernel_denoiser(
            main.model,
            main.points,
            s,
            lifting=study.lifting,
            event=(study.data.dimension,),
            mean=main.mean,
            kernel=main.kernel,
        )
        last, clean = _sample(denoiser, setting)
        samples.append(scale * last)
        denoised.append(clean)
        advance(f"samples at s = {s:.3g}")
    others: dict[str, Denoiser] = {"Gaussian": fit_gaussian(study.training.clean)}
    if study.data.truth is not None:
        others["exact score"] = study.data.truth
    distances = {
        name: energy_distance(scale * _sample(one, setting)[0], reference)
        for name, one in others.items()
    }
    return SampleStudy(
        stops,
        np.array([energy_distance(x, reference) for x in samples]),
        energy_distance(fresh, reference),
        distances,
        _GCV,
        np.stack(samples),
        reference,
        denoised[_GCV],
    )


def _sets(study: Study) -> tuple[NDArray[np.float64], ...]:
    """Return reference and fresh data at the first time, and clean starts, (B, D)."""
    count, data = study.settings.num_samples, study.data
    keys = [study.key("sampling", seed) for seed in (1, 2, 3)]
    if data.truth is not None:
        clean = [draw_mixture(data.truth, key, count) for key in keys]
    else:
        pools = (data.held_out, data.clean, study.training.clean)
        clean = [
            pool[np.asarray(jax.random.choice(key, len(pool), (count,)))]
            if len(pool) < count
            else pool[np.asarray(jax.random.permutation(key, len(pool)))[:count]]
            for pool, key in zip(pools, keys, strict=True)
        ]
    sigma, _ = study.lifting.sigma_range()
    noised = [
        (x + sigma * np.asarray(jax.random.normal(jax.random.fold_in(key, 1), x.shape)))
        / np.sqrt(1 + sigma**2)
        for x, key in zip(clean[:2], keys, strict=False)
    ]
    return noised[0], noised[1], clean[2]


def _sample(
    denoiser: Denoiser, setting: _Setting
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return samples at the last noise level, and denoised, (B, D) each."""
    shape = setting.start.points.shape
    solution = sample(
        denoiser,
        setting.key,
        shape,
        setting.sigmas,
        start=setting.start,
        trace=True,
    )
    assert solution.trace is not None, "it was asked for"
    return np.asarray(solution.trace.x[-1]), np.asarray(solution.x)


def samples_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on samples; see `PartMaker`."""
    found = measure_samples(study, advance)
    section = Section("Samples against the stop", folder)
    t_first, t_last = study.settings.t_range
    known = study.data.truth is not None
    section.paragraph(
        f"{len(found.reference)} samples by Heun on {study.settings.sampler_points} "
        f"noise levels from t = {t_last:g} to {t_first:g}, begun at noised training "
        "data; energy distance from "
        + ("fresh" if known else "held-out")
        + f" data with the noise of t = {t_first:g}. It is an unbiased estimate, "
        "around 0 where the laws agree."
    )
    section.figure(
        "sample_distance",
        plot_sample_distance(found),
        "Energy distance against the stop.",
    )
    rows = [
        {
            "s": float(s),
            "s / GCV stop": float(s / found.stops[found.gcv]),
            "distance": d,
        }
        for s, d in zip(found.stops, found.distances.tolist(), strict=True)
    ]
    section.table(rows)
    section.table(
        [{"other": "fresh data", "distance": found.floor}]
        + [{"other": name, "distance": value} for name, value in found.others.items()]
    )
    if study.data.dimension == 2:
        section.figure(
            "samples",
            plot_samples(found),
            "Samples at four stops beside the reference.",
        )
    elif len(study.data.event) == 3:
        shown = found.denoised[:_SHOWN].reshape(-1, *study.data.event)
        section.figure("samples", plot_sample_grid(shown), "Denoised at the GCV stop.")
    best = int(found.distances.argmin())
    section.paragraph(
        f"The least distance, {found.distances[best]:.4g}, is found at "
        f"{rows[best]['s / GCV stop']:.3g} times the GCV stop; at the GCV stop it is "
        f"{found.distances[found.gcv]:.4g}, trained to the end "
        f"{found.distances[-1]:.4g}, and of fresh data {found.floor:.4g}."
    )
    section.file("samples.csv", rows)
    figures = {
        "rows": rows,
        "floor": found.floor,
        "others": found.others,
        "at_gcv": float(found.distances[found.gcv]),
        "least": float(found.distances[best]),
        "at_the_end": float(found.distances[-1]),
    }
    return Outcome(section, figures)
