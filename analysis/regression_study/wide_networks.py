"""Networks of several widths beside their limit kernel.

The distance, its two parts (kernel at the start, moving features), and how far weights
and activations have moved; see `analysis.kernels.coupling`.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.kernels.coupling import (
    CouplingSlopes,
    CouplingTable,
    coupling_curve,
    coupling_slopes,
)
from analysis.kernels.power_law import PowerLaw, fit_power_law
from analysis.regression_study.plots import plot_coupling, plot_movement
from analysis.regression_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Advance, Outcome, verdict
from configs.errors import InputWarning

__all__ = ["CouplingStudy", "coupling_part", "coupling_units", "measure_coupling"]

_COLUMNS = ("rel", "lin", "initk")
_LARGE = 0.2  # distance above which the kernel does not describe the network
_EARLY = (-0.6, -0.4)
_QUERIES = 1000


class CouplingStudy(NamedTuple):
    """Distances and their laws.

    Attributes:
        table: All networks at all times.
        slopes: By column of the table: rel, lin, initk.
        laws: By time: the distance as a power of the width.
    """

    table: CouplingTable
    slopes: dict[str, CouplingSlopes]
    laws: dict[int, PowerLaw]


def coupling_units(study: Study) -> int:
    """Return the units of work of this part: one for each network."""
    return len(study.settings.widths) * study.settings.width_seeds


def default_steps(study: Study) -> tuple[int, ...]:
    """Return the numbers of steps at which networks and kernel are compared."""
    given = study.settings.steps
    if given is not None:
        return given
    return (10, 100, 1000) if study.data.dimension <= 4 else (10, 30, 100)


def measure_coupling(study: Study, advance: Advance) -> CouplingStudy:
    """Train networks of all widths and seeds and compare them with the kernel.

    Args:
        study: The study.
        advance: Told of each network.

    Raises:
        InputError: If a width is too small or eta too large.
    """
    s = study.settings
    count = min(s.coupling_points, s.num_points)
    sample, test = (
        study.draw("training", count // s.draws * s.draws, with_truth=False),
        study.test,
    )
    mean = sample.labels.mean(axis=0)
    truth = None if test.truth is None else test.truth[:_QUERIES] - mean
    table = coupling_curve(
        study.key("networks"),
        s.widths,
        s.width_seeds,
        default_steps(study),
        z=sample.inputs,
        y=sample.labels - mean,
        queries=test.inputs[:_QUERIES],
        eta=study.eta,
        f_star=truth,
        after_run=lambda m, seed: advance(f"network of width {m}, start {seed}"),
    )
    slopes = {name: coupling_slopes(table, name) for name in _COLUMNS}
    laws = {
        int(tau): fit_power_law(table.width[at], table.rel[at])
        for tau, at in _by_time(table)
    }
    return CouplingStudy(table, slopes, laws)


def coupling_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on coupling; see `PartMaker`."""
    found = measure_coupling(study, advance)
    section = Section("Does a wide network follow its kernel?", folder)
    count = min(study.settings.coupling_points, study.settings.num_points)
    section.paragraph(
        f"Networks with antisymmetric start, full-batch gradient descent with step "
        f"{study.eta:.3g} on {count} points, against gradient descent on the limit "
        "kernel: root mean square distance on fresh points over the size of the "
        "kernel's prediction. It is at most the sum of two: the network's "
        "linearisation at the start from the limit kernel (a kernel of finite width), "
        "and the network from its linearisation (features that move)."
    )
    section.figure(
        "coupling",
        plot_coupling(found.table, found.slopes),
        "Left: distance against width, all starts, with the fitted power of the width. "
        "Right: its two parts.",
    )
    section.table(_slope_rows(found))
    section.table(_width_rows(found.table))
    section.figure(
        "movement",
        plot_movement(found.table),
        "How far training has moved the networks: activations that have changed, and "
        "the weight vector that has moved most.",
    )
    warning = _predicted_large(found.laws, study.settings.widths)
    if warning:
        warnings.warn(warning, InputWarning, stacklevel=2)
        section.paragraph(f"Warning: {warning}")
    figures = _figures(found)
    if study.data.truth is not None:
        _judge(section, found.slopes["rel"])
    section.file("coupling.csv", _rows(found.table))
    return Outcome(section, figures)


def _judge(section: Section, slopes: CouplingSlopes) -> None:
    early, late = float(slopes.slope[0]), float(slopes.slope[-1])
    first, last = int(slopes.tau[0]), int(slopes.tau[-1])
    section.paragraph(
        verdict(
            "the distance falls as the width to the power -.5 +- .1 at early times",
            f"{early:.3f} after {first} steps (95 % interval {slopes.low[0]:.3f} to "
            f"{slopes.high[0]:.3f})",
            _EARLY[0] <= early <= _EARLY[1],
        )
    )
    section.paragraph(
        verdict(
            "the power is nearer to 0 later",
            f"{late:.3f} after {last} steps",
            late > early,
        )
    )


def _predicted_large(laws: dict[int, PowerLaw], widths: tuple[int, ...]) -> str:
    """Say for which widths and steps the kernel is no description."""
    cases = [
        (tau, [m for m in widths if law.factor * m**law.exponent > _LARGE])
        for tau, law in laws.items()
    ]
    parts = [
        f"of widths {', '.join(map(str, large))} after {tau} steps"
        for tau, large in cases
        if large
    ]
    if not parts:
        return ""
    return (
        f"the predicted distance from the kernel is above {_LARGE:.0%} for networks "
        f"{'; '.join(parts)}: what is said of the kernel does not hold for those"
    )


def _figures(found: CouplingStudy) -> dict[str, Any]:
    slopes = found.slopes["rel"]
    return {
        "slopes": [
            {
                "steps": int(tau),
                "slope": float(slope),
                "low": _finite(low),
                "high": _finite(high),
            }
            for tau, slope, low, high in zip(*slopes, strict=True)
        ],
        "width_for_5_percent": {
            str(tau): _width_for(law, 0.05) for tau, law in found.laws.items()
        },
        "mean_distance": {
            f"{m}": {
                str(tau): float(found.table.rel[at & (found.table.width == m)].mean())
                for tau, at in _by_time(found.table)
            }
            for m in np.unique(found.table.width).tolist()
        },
    }


def _width_for(law: PowerLaw, distance: float) -> float | None:
    """Return the width at which a law is at a distance; None if it does not fall."""
    if law.exponent >= 0:
        return None
    return float((distance / law.factor) ** (1 / law.exponent))


def _slope_rows(found: CouplingStudy) -> list[dict[str, Any]]:
    rows = []
    for i, tau in enumerate(found.slopes["rel"].tau.tolist()):
        row: dict[str, Any] = {"steps": tau}
        for name, label in zip(_COLUMNS, ("all", "moving", "start"), strict=True):
            one = found.slopes[name]
            row[f"power of the width, {label}"] = (
                f"{one.slope[i]:.3f} ({one.low[i]:.3f} to {one.high[i]:.3f})"
            )
        width = _width_for(found.laws[tau], 0.05)
        row["width for 5 %"] = "-" if width is None else f"{width:.2g}"
        rows.append(row)
    return rows


def _width_rows(table: CouplingTable) -> list[dict[str, Any]]:
    rows = []
    for m in np.unique(table.width).tolist():
        row: dict[str, Any] = {"width": m}
        for tau, at in _by_time(table):
            row[f"distance, {tau} steps"] = float(
                table.rel[at & (table.width == m)].mean()
            )
        last = (table.tau == table.tau.max()) & (table.width == m)
        row["changed activations"] = float(table.flip[last].mean())
        row["largest movement"] = float(table.max_dw[last].mean())
        if np.isfinite(table.net_error).all():
            row["error of the network"] = float(table.net_error[last].mean())
            row["error of the kernel"] = float(table.kernel_error[last].mean())
        rows.append(row)
    return rows


def _rows(table: CouplingTable) -> list[dict[str, Any]]:
    return [
        {name: value.item() for name, value in zip(table._fields, row, strict=True)}
        for row in zip(*table, strict=True)
    ]


def _by_time(table: CouplingTable) -> list[tuple[int, NDArray[np.bool_]]]:
    return [(int(tau), table.tau == tau) for tau in np.unique(table.tau)]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
