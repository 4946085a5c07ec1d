"""What a constant feature is for: without it predictions are straight along rays."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.kernels.kernel_denoiser import Lifting
from analysis.kernels.posterior import posterior_mean
from analysis.kernels.regression import predict
from analysis.kernels.stop_curves import target_norm
from analysis.regression_study.measurements import Homogeneity
from analysis.regression_study.problem import Regression, Sample, Study, mean_squares
from analysis.regression_study.score_plots import plot_ray
from analysis.section import Section
from analysis.study_parts import Advance, Outcome
from configs.errors import InputWarning

__all__ = ["homogeneity_part", "measure_homogeneity"]

_MULTIPLES = np.linspace(0.05, 2.5, 60)


def measure_homogeneity(study: Study) -> Homogeneity:
    """Fit the training set of seed 0 with and without the constant feature.

    Args:
        study: The study.
    """
    with warnings.catch_warnings():
        # That a lift without bias is homogeneous is what is measured here.
        warnings.simplefilter("ignore", InputWarning)
        bare = study.regress(_without(study, study.training))
        fits = [(bare, bare.rows(_without(study, study.test).inputs))]
        fits.append((study.main, study.main_rows))
        best, at_gcv, norms = zip(
            *(_errors(study, one, rows) for one, rows in fits), strict=True
        )
        ray = along = straightness = None
        if study.data.truth is not None:
            ray, along = _MULTIPLES, _along_ray(study, bare)
            straightness = np.array([_straightness(ray, f) for f in along[:2]])
    return Homogeneity(
        np.array([0.0, study.settings.bias]),
        np.array(best),
        np.array(at_gcv),
        np.array(norms),
        ray,
        along,
        straightness,
    )


def _without(study: Study, sample: Sample) -> Sample:
    """Return a sample lifted without the constant feature, its last column."""
    return sample._replace(inputs=sample.inputs[:, :-1])


def _errors(
    study: Study, one: Regression, rows: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the least error, that at the GCV stop, and the norm of the fit there."""
    stop, target = one.stop(), study.test.target
    at_stop, *path = np.sqrt(
        mean_squares(one, rows, target, np.append(stop, one.times()))
    )
    return min(path), at_stop, float(target_norm(one.model, stop))


def _along_ray(study: Study, bare: Regression) -> NDArray[np.float64]:
    """Return the first output along a ray, at the first time: both fits, the truth."""
    first, _ = study.settings.t_range
    truth = study.data.truth
    assert truth is not None, "the ray is left out otherwise"
    points = _MULTIPLES[:, None] * np.asarray(truth.means)[0]
    times = np.full(len(points), first)
    values = []
    for one, bias in ((bare, 0.0), (study.main, study.settings.bias)):
        lifting = Lifting(
            t_range=study.settings.t_range, bias=bias, scale=study.settings.scale
        )
        rows = one.rows(np.asarray(lifting(points, times)))
        mean = np.broadcast_to(one.mean, points.shape)
        values.append(np.asarray(predict(one.model, rows, one.stop(), f0=mean))[:, 0])
    values.append(np.asarray(posterior_mean(truth, points, times))[:, 0])
    return np.stack(values)


def _straightness(ray: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return the largest distance from the fitted line over the largest value."""
    line = np.polyval(np.polyfit(ray, values, 1), ray)
    return float(np.abs(values - line).max() / np.abs(values).max())


def homogeneity_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on homogeneity; see `PartMaker`."""
    found = measure_homogeneity(study)
    advance("with and without a constant feature")
    section = Section("Why the input needs a constant feature", folder)
    section.paragraph(
        "Without it kernel and network are positively homogeneous: linear along every "
        "ray from the origin (at the first time), which the posterior mean is not."
    )
    rows: list[dict[str, Any]] = [
        {
            "bias": float(bias),
            "least error": float(best),
            "error at the GCV stop": float(gcv),
            "norm of the fit": float(norm),
        }
        for bias, best, gcv, norm in zip(*found[:4], strict=True)
    ]
    section.table(rows)
    section.paragraph(
        f"Without the feature the least error is {found.best[0] / found.best[1]:.2f} "
        "times as large."
    )
    figures: dict[str, Any] = {
        "rows": rows,
        "error_ratio": float(found.best[0] / found.best[1]),
    }
    if found.ray is not None and found.straightness is not None:
        section.figure(
            "ray",
            plot_ray(found),
            "First output along the ray through the first component's mean, at the "
            "first time, stopped by GCV.",
        )
        figures["distance_from_a_line"] = found.straightness.tolist()
    return Outcome(section, figures)
