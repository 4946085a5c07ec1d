"""Part 1: the field r(x) - x in the plane, beside sigma^2 times the true score."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.reconstruction_study.data import Window
from analysis.reconstruction_study.field_plots import plot_fields
from analysis.reconstruction_study.measures import angles, displacement
from analysis.reconstruction_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Outcome

__all__ = ["WindowFields", "fields_part", "measure_fields"]

_SIDE = 24


class WindowFields(NamedTuple):
    """Fields on a grid.

    Attributes:
        window: Its square.
        points: (n, 2) data units.
        exact: (n, 2) sigma^2 times the reference's score, data units.
        fields: By name (n, 2) r(x) - x, data units.
        angle: By name the median angle to `exact`, degrees.
    """

    window: Window
    points: NDArray[np.float64]
    exact: NDArray[np.float64]
    fields: dict[str, NDArray[np.float64]]
    angle: dict[str, float]


def measure_fields(study: Study) -> list[WindowFields]:
    """Evaluate r(x) - x and the reference in each window.

    Args:
        study: Of points of the plane.
    """
    found = []
    for window in study.data.windows or (_around(study),):
        axis = np.linspace(-window.reach, window.reach, _SIDE)
        points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        points = (points + window.centre).astype(np.float32)
        exact = study.sigma**2 * study.reference.score(points, study.sigma)
        fields = {
            name: displacement(denoiser, points, study.sigma)
            for name, denoiser in study.scores().items()
        }
        angle = {
            name: float(np.median(angles(field, exact)))
            for name, field in fields.items()
        }
        found.append(
            WindowFields(window, points.astype(np.float64), exact, fields, angle)
        )
    return found


def _around(study: Study) -> Window:
    return Window((0.0, 0.0), float(1.2 * np.abs(study.clean).max()))


def fields_part(study: Study) -> Outcome:
    """Make the section on the field of arrows; see `PartMaker`."""
    found = measure_fields(study)
    section = Section("The field r(x) - x", study.folder)
    section.paragraph(
        "The best denoising auto-encoder has r(x) - x = sigma^2 grad log p_sigma(x) at "
        f"every sigma; here sigma = {study.sigma:g}. Arrows longer than a share of the "
        "window are cut."
    )
    section.figure(
        "fields",
        plot_fields(found, study.clean, study.reference.name),
        "First row: sigma^2 times the score of the reference "
        f"({study.reference.name}); below: r(x) - x. Dots: clean points.",
    )
    rows = [
        {
            "window": f"+-{one.window.reach:g} around ({one.window.centre[0]:g}, "
            f"{one.window.centre[1]:g})",
            **{f"median angle, {name}": value for name, value in one.angle.items()},
        }
        for one in found
    ]
    section.table(rows)
    section.file("fields.csv", rows)
    return Outcome(section, {"windows": rows})
