"""Part 5: energy differences by each rule against exact ones, and what they break.

Moves are x -> x + step n from noisy samples x, the step in units of sigma sqrt(2 / D),
which is sigma in the plane.  Exact differences are those of the
reference's log density; with the reference's own score what is off is the quadrature,
with an auto-encoder's it is the score as well.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.autoencoder.energy import (
    energy_difference,
    loop_defect,
    score_at,
)
from analysis.plots import COLOURS, open_panels
from analysis.reconstruction_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Outcome, verdict
from diffusion.denoiser import Denoiser

__all__ = ["EnergyStudy", "energies_part", "judge_energies", "measure_energies"]

STEPS = (1.0, 2.0, 5.0)
PROPOSALS = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
_EXACT = "exact energy"
_SHOWN_RULES = ("left", "trapezoid", "gl3")
_FINEST = "gl16"


class EnergyStudy(NamedTuple):
    """Energy differences of moves.

    Attributes:
        exact: (S, n) exact differences for each step, nats.
        found: By (score, rule) (S, n) differences, nats.
        floor: By score (S, n) what the finest rule gives.
        antisymmetry: By (score, rule) the largest |dE(x, x') + dE(x', x)| at 1 sigma.
        loops: By score the median |dE| around triangles of size sigma.
        acceptance: By name (P,) share of proposals from noisy samples that would be
            accepted, for each of `PROPOSALS` in units of sigma.
        reference: Name of the exact score.
    """

    exact: NDArray[np.float64]
    found: dict[tuple[str, str], NDArray[np.float64]]
    floor: dict[str, NDArray[np.float64]]
    antisymmetry: dict[tuple[str, str], float]
    loops: dict[str, float]
    acceptance: dict[str, NDArray[np.float64]]
    reference: str

    def rms(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the root mean square error for each step, (S,) nats."""
        return np.sqrt(np.mean((difference - self.exact) ** 2, axis=1))

    def acceptance_error(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean error of the acceptance probability for each step, (S,)."""
        off = _acceptance(difference) - _acceptance(self.exact)
        return np.abs(off).mean(axis=1)


def measure_energies(study: Study) -> EnergyStudy:
    """Evaluate every rule on every score, and the exact differences.

    Args:
        study: The study.
    """
    sigma, count = study.sigma, study.settings.pairs
    start = np.asarray(study.noisy[:count], np.float64)
    white = np.asarray(jax.random.normal(study.key("pairs"), start.shape), np.float64)
    x, moved, exact = _moves(study, start, white, STEPS)
    name, shape = study.reference.name, exact.shape
    proposed = _moves(study, start, white, PROPOSALS)
    acceptance = {_EXACT: _acceptance(proposed.exact).mean(axis=1)}
    found, floor, antisymmetry, loops = {}, {}, {}, {}
    # In float64: energies have the size 1 / sigma^2.
    with jax.enable_x64(True):
        scores: dict[str, Denoiser] = {name: study.reference.build(), **study.scores()}
        for label, denoiser in scores.items():
            score = score_at(denoiser, sigma)
            for rule in (*study.settings.rules, _FINEST):
                values = energy_difference(score, x, moved, rule=rule)
                found[label, rule] = np.asarray(values, np.float64).reshape(shape)
                back = np.asarray(energy_difference(score, moved, x, rule=rule))
                defect = np.abs(found[label, rule] + back.reshape(shape))
                antisymmetry[label, rule] = float(defect[0].max())
            floor[label] = found.pop((label, _FINEST))
            for rule in (rule for rule in _SHOWN_RULES if rule in study.settings.rules):
                values = energy_difference(score, *proposed[:2], rule=rule)
                rows = np.asarray(values, np.float64).reshape(proposed.exact.shape)
                acceptance[f"{label}, {rule}"] = _acceptance(rows).mean(axis=1)
            loop = loop_defect(study.key("pairs", 1), score, x, sigma, rule=_FINEST)
            loops[label] = float(np.median(np.asarray(loop)))
    return EnergyStudy(exact, found, floor, antisymmetry, loops, acceptance, name)


class _Moves(NamedTuple):
    """Moves of every length in one batch: one compiled program for each rule.

    Attributes:
        x: (S n, *event) starts, the n of the first length first.
        moved: (S n, *event) ends.
        exact: (S, n) exact differences of energy, nats.
    """

    x: NDArray[np.float64]
    moved: NDArray[np.float64]
    exact: NDArray[np.float64]


def _moves(
    study: Study,
    start: NDArray[np.float64],
    white: NDArray[np.float64],
    steps: tuple[float, ...],
) -> _Moves:
    x = np.concatenate([start] * len(steps))
    moved = np.concatenate([start + step * study.step_unit * white for step in steps])
    at, there = (study.reference.log_density(one, study.sigma) for one in (x, moved))
    return _Moves(x, moved, (at - there).reshape(len(steps), len(start)))


def _acceptance(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.maximum(difference, 0))


def energies_part(study: Study) -> Outcome:
    """Make the section on energy differences; see `PartMaker`."""
    found = measure_energies(study)
    section = Section("Energy differences", study.folder)
    section.paragraph(
        "E(x') - E(x) = -int score . dx along the segment, from noisy samples x to "
        "x' = x + step n, where a step of 1 sigma is sigma sqrt(2 / D) in each "
        "direction. Errors are root mean squares in nats against the exact "
        f"density of {found.reference}; floor: what an exact quadrature of the score "
        "gives; acceptance: mean error of min(1, exp(-dE)); antisymmetry: the largest "
        "|dE(x, x') + dE(x', x)| at 1 sigma."
    )
    section.figure(
        "energies",
        _plot(found),
        "Energy differences at 1 sigma against exact ones, by rule.",
    )
    section.figure(
        "acceptance_by_step",
        _plot_acceptance(found),
        "Share of proposals x + step n from noisy samples that would be accepted, "
        "against the step.",
    )
    rows = _rows(found)
    section.table(rows)
    section.table(
        [
            {"score": name, "median |dE| around a triangle of size sigma": value}
            for name, value in found.loops.items()
        ]
    )
    for sentence in judge_energies(found):
        section.paragraph(sentence)
    section.file("energies.csv", rows)
    curves = [
        {
            "accepted by": name,
            **{
                f"{step:g} sigma": float(value)
                for step, value in zip(PROPOSALS, values, strict=True)
            },
        }
        for name, values in found.acceptance.items()
    ]
    section.file("acceptance_by_step.csv", curves)
    return Outcome(section, {"rows": rows, "loops": found.loops, "acceptance": curves})


def _rows(found: EnergyStudy) -> list[dict[str, Any]]:
    rows = []
    for (name, rule), values in found.found.items():
        row: dict[str, Any] = {"score": name, "rule": rule}
        row |= _by_step("rms", found.rms(values))
        row["acceptance, 1 sigma"] = float(found.acceptance_error(values)[0])
        row["antisymmetry"] = found.antisymmetry[name, rule]
        rows.append(row)
    for name, values in found.floor.items():
        row = {"score": name, "rule": "floor", **_by_step("rms", found.rms(values))}
        row["acceptance, 1 sigma"] = float(found.acceptance_error(values)[0])
        rows.append(row | {"antisymmetry": np.nan})
    return rows


def _by_step(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    return {
        f"{name}, {step:g} sigma": float(value)
        for step, value in zip(STEPS, values, strict=True)
    }


def judge_energies(found: EnergyStudy) -> list[str]:
    """Return what the rules are to show, and whether they did.

    Args:
        found: Of a study with the rules left and gl3; of others there is less to say.
    """
    name, sentences = found.reference, []
    model = next(label for label in found.floor if label != name)
    if (name, "gl3") in found.found:
        quadrature = found.rms(found.found[name, "gl3"])[:2]
        floor = found.rms(found.floor[model])[:2]
        sentences.append(
            verdict(
                "with three Gauss-Legendre nodes the error of the quadrature is below "
                f"that of the {model}'s score at 1 and 2 sigma",
                f"{quadrature[0]:.2g} and {quadrature[1]:.2g} against {floor[0]:.2g} "
                f"and {floor[1]:.2g} nats",
                bool((quadrature < floor).all()),
            )
        )
    if (name, "left") in found.found and (name, "gl3") in found.found:
        left, gl3 = (
            found.acceptance_error(found.found[name, rule])[0]
            for rule in ("left", "gl3")
        )
        sentences.append(
            verdict(
                "the left-end rule is off by more than .05 in the probability of "
                "accepting a move of 1 sigma, and ten times as far as gl3",
                f"{left:.3f}, gl3 {gl3:.4f}",
                bool(left > 0.05 and left > 10 * gl3),
            )
        )
    return sentences


def _plot(found: EnergyStudy) -> Figure:
    rules = [
        rule for rule in _SHOWN_RULES if (found.reference, rule) in found.found
    ] or list(dict.fromkeys(rule for _, rule in found.found))[:3]
    figure, panels = open_panels(len(rules), 4.4 * len(rules), 4.4, share_y=True)
    low, high = np.quantile(found.exact[0], (0.01, 0.99))
    for axes, rule in zip(panels, rules, strict=True):
        for i, name in enumerate(found.floor):
            values = found.found[name, rule][0]
            axes.plot(found.exact[0], values, ".", ms=3, color=COLOURS[i], label=name)
        axes.plot([low, high], [low, high], color="0.5", lw=1)
        margin = 0.3 * (high - low)
        axes.set(
            title=rule,
            xlabel="exact (nats)",
            xlim=(low, high),
            ylim=(low - margin, high + margin),
        )
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("by quadrature (nats)")
    panels[0].legend(fontsize=8)
    return figure


def _plot_acceptance(found: EnergyStudy) -> Figure:
    """Draw acceptance against the step: a colour for each score, a style for a rule."""
    figure, (axes,) = open_panels(1, 8, 4.4)
    colours = {name: COLOURS[i] for i, name in enumerate(found.floor)}
    styles: dict[str, str] = dict(zip(_SHOWN_RULES, (":", "--", "-"), strict=True))
    for name, values in found.acceptance.items():
        label, _, rule = name.rpartition(", ")
        axes.plot(
            PROPOSALS,
            values,
            styles.get(rule, "-"),
            color=colours.get(label, "k"),
            lw=1.5 if label else 3,
            alpha=1 if label else 0.4,
            label=name,
        )
    axes.set(xscale="log", xlabel="step (sigma)", ylabel="accepted", ylim=(0, 1))
    axes.set_xticks(PROPOSALS, [f"{step:g}" for step in PROPOSALS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
