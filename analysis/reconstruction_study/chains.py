"""Part 6: Metropolis-Hastings with exact energies, with a score, with the left end.

Chains start at noisy samples or far away; after half of the moves their states are
compared with fresh noisy samples by the energy distance, and by distance from the data.
A step of 1 sigma is one of sigma sqrt(2 / D) in each direction: sigma in the plane.
"""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.autoencoder.energy import line_integral, score_at
from analysis.metrics import energy_distance
from analysis.reconstruction_study.chain_plots import plot_chains, plot_distances
from analysis.reconstruction_study.measures import distance
from analysis.reconstruction_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Outcome, verdict
from samplers.chains import measure_acceptance
from samplers.metropolis_hastings import EnergyDifference, mh_sample

__all__ = ["ChainRun", "judge_chains", "measure_chains", "samples_part"]

STEPS = (1.0, 3.0)
_FAR_STEP = 3.0
_THINNING = 20
_FAR_BOX = 1.5  # times the largest value of the data
_TARGETS = 2000
EXACT, LEFT = "exact energy", "left"


class ChainRun(NamedTuple):
    """Chains of one energy, step and start.

    Attributes:
        energy: What moves were accepted by: ``exact energy``, or a score and a rule.
        rule: ``exact energy``, ``left``, or the study's rule.
        step: Of a proposal, in units of sigma sqrt(2 / D).
        start: ``data`` or ``far``.
        acceptance: Share of accepted moves.
        distance: Energy distance to fresh noisy samples, data units.
        beyond: Share of states that are off the data, see `off_the_data`.
        seconds: Taken, compilation included.
        states: (n, *event) states, data units.
        from_data: (n,) their distances from the data, in units of sigma.
    """

    energy: str
    rule: str
    step: float
    start: str
    acceptance: float
    distance: float
    beyond: float
    seconds: float
    states: NDArray[np.float64]
    from_data: NDArray[np.float64]


class ChainStudy(NamedTuple):
    """All chains, and what two fresh sets of samples would give.

    Attributes:
        runs: The chains.
        target: (n, *event) fresh noisy samples.
        floor: Energy distance of another set from them.
        beyond: Share of them that are off the data.
    """

    runs: list[ChainRun]
    target: NDArray[np.float32]
    floor: float
    beyond: float


def off_the_data(study: Study) -> float:
    """Return the distance, in sigma, beyond which a state counts as off the data.

    3 more than noise is long across a curve, sqrt(D - 1): 4 in the plane.

    Args:
        study: The study.
    """
    return 3 + math.sqrt(study.data.dimension - 1)


def measure_chains(study: Study) -> ChainStudy:
    """Run all chains.

    Args:
        study: The study.
    """
    target, other = (study.fresh(_TARGETS, seed) for seed in (11, 12))
    floor = energy_distance(*(one.reshape(len(one), -1) for one in (other, target)))
    beyond = float(np.mean(distance(study, target) > off_the_data(study)))
    starts = {"data": study.fresh(study.settings.chains, 13), "far": _far(study)}
    runs = []
    for name, rule, energy in _energies(study):
        for start, step in (
            *(("data", step) for step in STEPS),
            ("far", _FAR_STEP),
        ):
            runs.append(
                _run(study, target, energy, (name, rule, step, start), starts[start])
            )
    return ChainStudy(runs, target, floor, beyond)


def _energies(study: Study) -> Iterator[tuple[str, str, EnergyDifference]]:
    sigma, rule = study.sigma, study.settings.rule
    yield EXACT, EXACT, study.reference.energy_difference(sigma)
    exact = score_at(study.reference.denoiser, sigma)
    yield f"{study.reference.name}, left", LEFT, line_integral(exact, rule=LEFT)
    for name, denoiser in study.scores().items():
        score = score_at(denoiser, sigma)
        for one in dict.fromkeys((rule, LEFT)):
            yield f"{name}, {one}", one, line_integral(score, rule=one)


def _far(study: Study) -> NDArray[np.float32]:
    """Return starts spread over a box, or all at the point that was asked for."""
    count, event = study.settings.chains, study.data.event
    if study.settings.start is not None:
        point = np.asarray(study.settings.start, np.float32).reshape(event)
        return np.broadcast_to(point, (count, *event)).copy()
    reach = _FAR_BOX * float(np.abs(study.clean).max())
    key = study.key("chains", 1)
    return np.asarray(
        jax.random.uniform(key, (count, *event), jnp.float32, -reach, reach)
    )


def _run(
    study: Study,
    target: NDArray[np.float32],
    energy: EnergyDifference,
    what: tuple[str, str, float, str],
    x0: NDArray[np.float32],
) -> ChainRun:
    name, rule, step, start = what
    began = time.perf_counter()
    kept = study.moves // _THINNING
    chain = mh_sample(
        study.key("chains"),
        energy,
        x0,
        step * study.step_unit,
        kept,
        thinning=_THINNING,
        log_density=study.reference.log_density_at(study.sigma),
    )
    states = np.asarray(chain.x[kept // 2 :], np.float64)
    states = states.reshape(-1, *study.data.event)
    seconds = time.perf_counter() - began
    # As many as there are targets: the rest is of the same chains.
    some = np.random.default_rng(0).permutation(len(states))[:_TARGETS]
    states = states[some]
    from_data = distance(study, states)
    return ChainRun(
        name,
        rule,
        step,
        start,
        measure_acceptance(chain, burn_in=kept // 2).mean,
        energy_distance(
            states.reshape(len(states), -1), target.reshape(len(target), -1)
        ),
        float(np.mean(from_data > off_the_data(study))),
        seconds,
        states,
        from_data,
    )


def samples_part(study: Study) -> Outcome:
    """Make the section on Metropolis-Hastings; see `PartMaker`."""
    found, settings = measure_chains(study), study.settings
    limit = f"{off_the_data(study):.3g} sigma"
    section = Section("Samples by Metropolis-Hastings", study.folder)
    far = (
        f"at {settings.start}"
        if settings.start is not None
        else f"uniform in a box {_FAR_BOX:g} times as large as the data"
    )
    section.paragraph(
        f"{settings.chains} chains of {study.moves} moves, the first half left out; "
        "proposals x + step n, where a step of 1 sigma is sigma sqrt(2 / D) in each "
        "direction. Distance: energy distance from fresh noisy samples, "
        f"0 on average for equal laws; two fresh sets have {found.floor:.4f}. Beyond: "
        f"share farther than {limit} from the data; of fresh samples "
        f"{found.beyond:.4f}. Chains begin at noisy samples, or far: {far}."
    )
    rows = [_row(run, limit) for run in found.runs]
    section.table(rows)
    section.figure(
        "acceptance_by_distance",
        plot_distances(found.runs, distance(study, found.target)),
        "Distance from the data, in sigma, of fresh samples and of chains that began "
        "at samples, with a step of 3 sigma.",
    )
    if study.data.dimension == 2:
        section.figure(
            "chains",
            plot_chains(found.runs, found.target),
            "States of chains with a step of 3 sigma, beside fresh samples.",
        )
    for sentence in judge_chains(found):
        section.paragraph(sentence)
    section.file("samples.csv", rows)
    return Outcome(section, {"rows": rows, "floor": found.floor})


def _row(run: ChainRun, limit: str) -> dict[str, Any]:
    return {
        "accepted by": run.energy,
        "step / sigma": run.step,
        "start": run.start,
        "acceptance": run.acceptance,
        "distance": run.distance,
        f"beyond {limit}": run.beyond,
        "seconds": run.seconds,
    }


def judge_chains(found: ChainStudy) -> list[str]:
    """Return what the left end is to show, and whether it did.

    Args:
        found: All chains.
    """
    here = [r for r in found.runs if r.start == "data" and r.step == max(STEPS)]
    exact, left = (
        next(run for run in here if run.rule == rule) for rule in (EXACT, LEFT)
    )
    return [
        verdict(
            "with the exact score and a step of 3 sigma the left-end rule accepts "
            "wrongly: at least .05 more or fewer moves, or twice the distance to the "
            "target",
            f"acceptance {left.acceptance:.3f} against {exact.acceptance:.3f}, "
            f"distance {left.distance:.4f} against {exact.distance:.4f}, off the data "
            f"{left.beyond:.3f} against {exact.beyond:.3f}",
            abs(left.acceptance - exact.acceptance) > 0.05
            or left.distance > 2 * max(exact.distance, found.floor),
        )
    ]
