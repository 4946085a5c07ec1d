"""The score at stops that are too early, right, late and far too late."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.kernels.diffusion_regression import score_from_f, weighted_errors
from analysis.kernels.posterior import posterior_mean
from analysis.kernels.regression import predict
from analysis.regression_study.measurements import FieldStudy, ScoreField
from analysis.regression_study.problem import Study
from analysis.regression_study.score_plots import plot_error_by_time, plot_field
from analysis.section import Section
from analysis.study_parts import Advance, Outcome

__all__ = ["fields_part", "measure_fields"]

_BINS = 8
_FIELD_TIMES = (0.1, 0.5)
_SIDE, _REACH = 19, 2.4


def measure_fields(study: Study) -> FieldStudy:
    """Measure errors at four stops, and score fields where they can be drawn.

    Args:
        study: The study, of a score.
    """
    main, test, gcv = study.main, study.test, study.main_stop
    stops = np.array([gcv / 30, gcv, 10 * gcv, main.times()[-1]])
    predicted = np.asarray(predict(main.model, study.main_rows, stops, f0=_mean(study)))
    squares = np.sum((predicted - test.target) ** 2, axis=-1)
    edges = np.linspace(*study.settings.t_range, _BINS + 1)
    place = np.clip(np.digitize(test.t, edges) - 1, 0, _BINS - 1)
    by_time = np.sqrt(
        np.stack(
            [
                [
                    row[place == b].mean() if (place == b).any() else np.nan
                    for row in squares
                ]
                for b in range(_BINS)
            ],
            axis=1,
        )
    )
    weighted = np.full((len(stops), 3), np.nan)
    if test.truth is not None:
        weighted = np.array(
            [
                [float(e) for e in weighted_errors(f, test.truth, test.t)]
                for f in predicted
            ]
        )
    drawn = study.data.truth is not None and study.data.dimension == 2
    fields = [_field(study, t, stops) for t in _FIELD_TIMES] if drawn else []
    names = ("GCV / 30", "GCV", "10 GCV", "to the end")
    return FieldStudy(names, stops, edges, by_time, weighted, tuple(fields))


def _mean(study: Study) -> NDArray[np.float64]:
    return np.broadcast_to(study.main.mean, study.test.target.shape)


def _field(study: Study, t: float, stops: NDArray[np.float64]) -> ScoreField:
    axis = np.linspace(-_REACH, _REACH, _SIDE)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    times = np.full(len(points), t)
    rows = study.main.rows(np.asarray(study.lifting(points, times)))
    mean = np.broadcast_to(study.main.mean, points.shape)
    fitted = predict(study.main.model, rows, stops, f0=mean)
    assert study.data.truth is not None, "fields are drawn of known truths"
    exact = posterior_mean(study.data.truth, points, times)
    to_score = [np.asarray(score_from_f(f, points, times)) for f in (exact, *fitted)]
    return ScoreField(t, points, to_score[0], np.stack(to_score[1:]))


def fields_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on score fields; see `PartMaker`."""
    found = measure_fields(study)
    advance("score fields")
    section = Section("The score at four stops", folder)
    for field in found.fields:
        section.figure(
            f"field_{field.t:g}",
            plot_field(field, found.names),
            f"Score at t = {field.t:g}: exact, then stopped too early, by GCV, ten "
            "times later, and trained to the end. One scale for all arrows; "
            "longer ones than the exact field has are cut.",
        )
    known = study.data.truth is not None
    section.figure(
        "error_by_time",
        plot_error_by_time(found, known),
        "Root mean square error of f against diffusion time"
        + ("." if known else ", from held-out labels, whose noise is in it."),
    )
    rows = [_row(found, i, known) for i in range(len(found.stops))]
    section.table(rows)
    if known:
        section.paragraph(
            "Error of f weighs all times alike; that of the score by (alpha / h)^2, "
            "hundreds at the first time; weighted by h it is that of the noise."
        )
    return Outcome(section, {"stops": rows})


def _row(found: FieldStudy, i: int, known: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"stop": found.names[i], "s": float(found.stops[i])}
    if known:
        names = ("error of f", "of the score", "of the noise")
        row |= dict(zip(names, found.weighted[i].tolist(), strict=True))
    by_time = found.by_time[i]
    return row | {
        "error of f at the first times": float(by_time[0]),
        "at the last times": float(by_time[-1]),
    }
