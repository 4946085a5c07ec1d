"""Where the error of a trained network comes from: four terms, for several f_H.

f_H, a function of the kernel's space near the truth, is the ridge projection of f_* on
many points of its own; see `analysis.kernels.coupling`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from analysis.kernels.coupling import (
    ErrorTerms,
    Target,
    decompose_error,
    hilbert_target,
)
from analysis.kernels.filters import Descent
from analysis.kernels.gram import gram
from analysis.kernels.regression import decompose, fit
from analysis.kernels.relu_ntk import relu_ntk
from analysis.kernels.score_network import gd_run, init
from analysis.regression_study.measurements import ErrorChain
from analysis.regression_study.plots import plot_error_chain
from analysis.regression_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Advance, Outcome

__all__ = ["decomposition_part", "measure_error_chain"]

_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_MOST_STEPS = 3000


def measure_error_chain(study: Study) -> ErrorChain:
    """Split the error of the widest network at the GCV stop.

    Args:
        study: The study; its truth must be known.
    """
    training, test, main = study.training, study.test, study.main
    oracle = study.draw("oracle", study.settings.largest_exact)
    assert training.truth is not None, "the part is left out otherwise"
    assert test.truth is not None and oracle.truth is not None, "likewise"
    steps = round(min(max(study.main_stop / study.eta, 1), _MOST_STEPS))
    width = max(study.settings.widths)
    labels = training.labels - main.mean
    params = init(
        study.key("networks", 1), width, training.inputs.shape[1], main.mean.size
    )
    run = gd_run(
        params, training.inputs, labels, study.eta, [steps], queries=test.inputs
    )
    truth = Target(training.truth - main.mean, test.truth - main.mean)
    spectrum = decompose(np.asarray(gram(relu_ntk, oracle.inputs)))
    oracle_fit = fit(spectrum, oracle.truth - main.mean)
    k_train, k_query = (
        np.asarray(gram(relu_ntk, one.inputs, oracle.inputs))
        for one in (training, test)
    )
    targets = [hilbert_target(oracle_fit, k_train, k_query, p) for p in _PENALTIES]
    terms = tuple(
        decompose_error(
            main.model.spectrum,
            study.main_rows,
            labels,
            truth,
            target.values,
            steps,
            filter=Descent(study.eta),
            network=run.outputs[0],
        )
        for target in targets
    )
    norms = np.array([target.norm for target in targets])
    return ErrorChain(np.array(_PENALTIES), norms, terms, width, steps)


def decomposition_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on the four terms; see `PartMaker`."""
    found = measure_error_chain(study)
    advance("four terms of the error")
    section = Section("Where does the error come from?", folder)
    section.paragraph(
        f"A network of width {found.width} after {found.steps} steps, the GCV stop, on "
        f"{study.settings.num_points} points. Coupling: from the kernel fit of the "
        "labels. Mismatch: from there to the kernel fit of virtual labels, f_H with "
        "the noise of the labels. Early stopping: from there to f_H. Approximation: "
        "from f_H to the truth. Root mean squares; the error is at most the sum."
    )
    section.figure(
        "decomposition",
        plot_error_chain(found),
        "The four terms against the norm of f_H in the kernel's space; the line is the "
        "error itself.",
    )
    rows = _rows(found)
    section.table(rows)
    largest = found.terms[int(np.argmin([sum(t[:4]) for t in found.terms]))]
    parts = dict(zip(ErrorTerms._fields[:4], largest[:4], strict=True))
    section.paragraph(
        f"The sum overshoots the error by a factor of {rows[0]['sum / error']:.2f} "
        f"with the f_H of least norm and {min(r['sum / error'] for r in rows):.2f} at "
        f"best. There the largest term is {max(parts, key=lambda name: parts[name])}."
    )
    section.file("decomposition.csv", rows)
    figures = {"width": found.width, "steps": found.steps, "rows": rows}
    return Outcome(section, figures)


def _rows(found: ErrorChain) -> list[dict[str, Any]]:
    return [
        {
            "penalty": float(penalty),
            "norm of f_H": float(norm),
            **{name: float(value) for name, value in terms._asdict().items()},
            "sum / error": float(sum(terms[:4]) / terms.total),
        }
        for penalty, norm, terms in zip(
            found.penalties, found.norms, found.terms, strict=True
        )
    ]
