"""Part 2: how far the direction of r(x) - x is off, by distance from the data.

The points that noise makes weigh by p_sigma; bands of distance, in units of sigma, tell
what happens where noise rarely goes.  The floor is the angle between two references:
the law of the training points, the best that their loss can lead to, and the truth.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.reconstruction_study.arms import Arm
from analysis.reconstruction_study.field_plots import (
    plot_angle_by_distance,
    plot_angle_maps,
)
from analysis.reconstruction_study.measures import (
    BANDS,
    Probes,
    angles,
    band_probes,
    displacement,
)
from analysis.reconstruction_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Outcome, verdict
from diffusion.denoiser import Denoiser

__all__ = ["AngleStudy", "angles_part", "judge_angles", "measure_angles"]

_MAPPED = (
    "training points (KDE)",
    Arm.RESIDUAL.value,
    Arm.TANH_RESIDUAL.value,
    Arm.TANH_DIRECT.value,
)


class AngleStudy(NamedTuple):
    """Scores against the references.

    Attributes:
        rows: A row for each score: loss, angles, relative errors, seconds.
        probes: Points at all distances.
        maps: By name the angle to the truth at each of them, (n,) degrees.
        bayes: Loss over sigma^2 of the truth on the same noisy samples.
        identity: That of r(x) = x.
    """

    rows: dict[str, dict[str, Any]]
    probes: Probes
    maps: dict[str, NDArray[np.float64]]
    bayes: float
    identity: float


def measure_angles(study: Study) -> AngleStudy:
    """Train every kind of auto-encoder and compare its field with the references.

    Args:
        study: Of a known law.
    """
    assert study.truth is not None, "the part is left out otherwise"
    probes, sigma = band_probes(study), study.sigma
    x = np.concatenate([study.noisy, probes.x])
    truth = sigma**2 * study.truth.score(x, sigma)
    kde = sigma**2 * study.kde.score(x, sigma)
    row = _Rows(study, probes, truth, kde)
    rows, maps = {}, {}
    for name, field, seconds in _fields(study, x, kde):
        rows[name] = row.of(field, seconds)
        maps[name] = angles(field, truth)[len(study.noisy) :]
    return AngleStudy(
        rows,
        probes,
        maps,
        row.loss(truth),
        row.loss(np.zeros_like(truth)),
    )


def _fields(study: Study, x: NDArray[np.float32], kde: NDArray[np.float64]) -> Any:
    """Yield names, fields r(x) - x and seconds of training."""
    yield study.kde.name, kde, np.nan
    for arm in Arm:
        trained = study.trained(arm)
        yield (
            arm.value,
            displacement(trained.denoiser, x, study.sigma),
            trained.seconds,
        )
    if study.network is not None:
        network: Denoiser = study.network.denoiser
        yield "network", displacement(network, x, study.sigma), np.nan


class _Rows(NamedTuple):
    """Makes rows: noisy samples come first, then probes of the bands."""

    study: Study
    probes: Probes
    truth: NDArray[np.float64]
    kde: NDArray[np.float64]

    def loss(self, field: NDArray[np.float64]) -> float:
        """Return |r(x) - x_0|^2 / sigma^2, averaged over the noisy samples."""
        noise = np.asarray(self.study.noisy, np.float64) - self.study.held_out
        error = (field[: len(noise)] + noise).reshape(len(noise), -1)
        return float(np.mean(np.sum(error**2, axis=1))) / self.study.sigma**2

    def of(self, field: NDArray[np.float64], seconds: float) -> dict[str, Any]:
        """Return the row of a field."""
        count = len(self.study.noisy)
        to_truth, to_kde = (
            angles(field[:count], one[:count]) for one in (self.truth, self.kde)
        )
        row = {
            "loss / sigma^2": self.loss(field),
            "angle to KDE": float(np.median(to_kde)),
            "angle to truth": float(np.median(to_truth)),
        }
        far, far_truth = field[count:], self.truth[count:]
        to_truth = angles(far, far_truth)
        for name, low, high in BANDS:
            here = self.probes.band(low, high)
            row[f"angle {name}"] = (
                float(np.median(to_truth[here])) if any(here) else (np.nan)
            )
            error, power = (
                np.sum(one[here] ** 2) for one in (far - far_truth, far_truth)
            )
            row[f"rel L2 {name}"] = float(np.sqrt(error / power)) if power else np.nan
        return row | {"seconds": seconds}


def angles_part(study: Study) -> Outcome:
    """Make the section on angles; see `PartMaker`."""
    found = measure_angles(study)
    section = Section("How far the direction is off", study.folder)
    section.paragraph(
        "Median angle between r(x) - x and the score, over noisy samples (weighed by "
        "p_sigma) and over bands of distance from the data in units of sigma. The "
        f"floor is the law of the {len(study.clean)} training points against the "
        f"truth. Loss: |r(x) - x_0|^2 / sigma^2 of held-out samples; the identity has "
        f"{found.identity:.3f} and the truth {found.bayes:.3f}."
    )
    rows = [{"score": name, **row} for name, row in found.rows.items()]
    section.table(rows)
    section.figure(
        "angle_by_distance",
        plot_angle_by_distance(found.probes, found.maps),
        "Median angle to the truth against the distance from the data.",
    )
    if found.probes.side:
        section.figure(
            "angle_maps",
            plot_angle_maps(
                found.probes, {name: found.maps[name] for name in _MAPPED}, study.clean
            ),
            "Angle to the truth over the plane.",
        )
    if study.data.name == "spiral":
        for sentence in judge_angles(found):
            section.paragraph(sentence)
    section.file("angles.csv", rows)
    figures = {"rows": rows, "bayes": found.bayes, "identity": found.identity}
    return Outcome(section, figures)


def judge_angles(found: AngleStudy) -> list[str]:
    """Return what the spiral is to show, and whether it did.

    Args:
        found: On the spiral.
    """
    residual = found.rows[Arm.RESIDUAL.value]
    loss, angle = residual["loss / sigma^2"], residual["angle to truth"]
    old, new = (
        found.rows[arm.value]["angle to truth"]
        for arm in (Arm.TANH_DIRECT, Arm.TANH_RESIDUAL)
    )
    return [
        verdict(
            "the perceptron in the residual form has a loss below 1.1 sigma^2",
            f"{loss:.3f}",
            loss < 1.1,
        ),
        verdict(
            "its median angle to the true score is below 10 degrees",
            f"{angle:.1f}",
            angle < 10,
        ),
        verdict(
            "one layer of tanh stays above 45 degrees in the direct form",
            f"{old:.1f}",
            old > 45,
        ),
        verdict(
            "one layer of tanh comes near 10 degrees, to 15 or less, in the residual "
            "form",
            f"{new:.1f}",
            new <= 15,
        ),
    ]
