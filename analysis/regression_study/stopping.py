"""Every stopping rule on several training sets, and what over-training costs.

The error is the root mean square distance from the truth; where nobody knows the truth
it is that from held-out labels, whose noise no function removes, and ratios are nearer
to 1.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.kernels.early_stopping import RULES, choose_stop
from analysis.kernels.score_network import gd_run, init
from analysis.regression_study.measurements import NetworkPath, StopStudy
from analysis.regression_study.plots import plot_stop_ratios, plot_stops
from analysis.regression_study.problem import Regression, Study, mean_squares
from analysis.regression_study.wide_networks import default_steps
from analysis.section import Section
from analysis.study_parts import Advance, Outcome, verdict
from configs.errors import InputWarning

__all__ = [
    "measure_network_paths",
    "measure_stops",
    "stopping_part",
    "stopping_units",
]

_PATH_POINTS = 24
_MOST_WIDTHS = 3
_HOLDOUT_SHARE = 5  # one hold-out point for so many training points
_OVER = 1.5
_WORST, _MEAN = 1.15, 1.05


def stopping_units(study: Study) -> int:
    """Return the units of work: one for each seed and each network."""
    return study.settings.stop_seeds + len(_path_widths(study))


def measure_stops(study: Study, advance: Advance) -> StopStudy:
    """Try every rule on every training set.

    Args:
        study: The study.
        advance: Told of each training set.
    """
    found = []
    for seed in range(study.settings.stop_seeds):
        if seed:
            settings = study.settings
            sample = study.draw(
                "training",
                settings.num_points,
                seed=seed,
                draws=settings.draws,
                with_truth=False,
            )
            regression = study.regress(sample, seed=seed)
            rows = regression.rows(study.test.inputs)
        else:
            regression, rows = study.main, study.main_rows
        found.append(_try_rules(study, regression, rows, seed))
        advance(f"stopping rules, training set {seed}")
    times, errors, stops, stop_errors, degrees, noise, norms = map(
        np.array, zip(*found, strict=True)
    )
    return StopStudy(
        times, errors, tuple(RULES), stops, stop_errors, degrees, noise, norms
    )


def _try_rules(
    study: Study, regression: Regression, rows: NDArray[np.float64], seed: int
) -> tuple[Any, ...]:
    """Return times, errors, and of each rule stop, error, degrees of freedom."""
    model, times, test = regression.model, regression.times(), study.test
    count = max(16, study.settings.num_points // _HOLDOUT_SHARE)
    holdout = study.draw("hold-out", count, seed=seed, with_truth=False)
    points = {
        "holdout": (regression.rows(holdout.inputs), holdout.labels - regression.mean),
        "oracle": (rows, test.target - regression.mean),
    }
    results = []
    with warnings.catch_warnings():
        # A rule at an end of the times is seen in the table.
        warnings.simplefilter("ignore", InputWarning)
        for rule in RULES:
            k, values = points.get(rule, (None, None))
            results.append(
                choose_stop(
                    model,
                    rule,
                    times=times,
                    rows=k,
                    values=values,
                    input_dimension=test.inputs.shape[1],
                )
            )
    stops = np.array([one.s for one in results])
    errors = np.sqrt(mean_squares(regression, rows, test.target, times))
    at_stops = np.sqrt(mean_squares(regression, rows, test.target, stops))
    degrees = np.array([one.df for one in results])
    return times, errors, stops, at_stops, degrees, results[0].sigma, results[0].B


def measure_network_paths(study: Study, advance: Advance) -> list[NetworkPath]:
    """Train a few networks on the training set of seed 0, recording their errors.

    Args:
        study: The study.
        advance: Told of each network.
    """
    sample, test = study.training, study.test
    mean = sample.labels.mean(axis=0)
    last = default_steps(study)[-1]
    record = np.unique(np.geomspace(1, last, _PATH_POINTS).astype(np.int64))
    paths = []
    for m in _path_widths(study):
        params = init(study.key("networks", m), m, sample.inputs.shape[1], mean.size)
        run = gd_run(
            params,
            sample.inputs,
            sample.labels - mean,
            study.eta,
            record,
            queries=test.inputs,
        )
        gap = np.asarray(run.outputs, np.float64) - (test.target - mean)
        errors = np.sqrt(np.mean(np.sum(gap**2, axis=-1), axis=-1))
        paths.append(NetworkPath(m, study.eta * record.astype(np.float64), errors))
        advance(f"path of a network of width {m}")
    return paths


def _path_widths(study: Study) -> list[int]:
    """Return the first, the middle and the last width."""
    widths = study.settings.widths
    places = np.linspace(0, len(widths) - 1, _MOST_WIDTHS).round().astype(int)
    fits = [widths[i] for i in sorted(set(places.tolist()))]
    return [m for m in fits if m >= study.data.num_outputs]


def stopping_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on stopping; see `PartMaker`."""
    found = measure_stops(study, advance)
    paths = measure_network_paths(study, advance)
    known = study.data.truth is not None
    section = Section("When should training stop?", folder)
    of_what = "from the truth" if known else "from held-out labels, noise included"
    section.paragraph(
        f"{len(found.times)} training sets of {study.settings.num_points} points, "
        f"{len(study.test.inputs)} test points; error: root mean square distance "
        f"{of_what}. Noise and norm, where a rule wants them, are estimated at the GCV "
        "stop. rwy: the local-Rademacher rule with the constant in its name, with the "
        "norm of the target or with norm 1."
    )
    section.figure(
        "stopping",
        plot_stops(found, paths),
        "Error of the kernel against training time (band: all training sets), stops of "
        "every rule on the first set, and networks trained on that set.",
    )
    section.figure(
        "stop_ratios",
        plot_stop_ratios(found),
        "Error at each rule's stop over the least error: mean and worst training set.",
    )
    section.table(_rule_rows(found))
    figures = _figures(found)
    section.paragraph(
        f"Trained on to s = {found.times[0, -1]:.2g} the error is "
        f"{figures['over_training_mean']:.2f} times the least on average, "
        f"{figures['over_training_least']:.2f} times at least."
    )
    if known:
        _judge(section, figures)
    section.file("stopping.csv", _rows(found))
    section.file(
        "network_paths.csv",
        [
            {"width": one.width, "s": float(s), "error": float(error)}
            for one in paths
            for s, error in zip(one.times, one.errors, strict=True)
        ],
    )
    return Outcome(section, figures)


def _judge(section: Section, figures: dict[str, Any]) -> None:
    gcv, literal = figures["rules"]["gcv"], figures["rules"]["rwy_2e"]
    seeds = figures["training_sets"]
    section.paragraph(
        verdict(
            f"over-training raises the error by more than {_OVER} times",
            f"{figures['over_training_least']:.2f} at least in {seeds} training sets",
            figures["over_training_least"] > _OVER,
        )
    )
    section.paragraph(
        verdict(
            f"at the GCV stop the error is at most {_WORST} times that at the best in "
            f"each training set, below {_MEAN} on average",
            f"{gcv['worst_ratio']:.3f} at worst, {gcv['mean_ratio']:.3f} on average of "
            f"{seeds}",
            gcv["worst_ratio"] <= _WORST and gcv["mean_ratio"] < _MEAN,
        )
    )
    section.paragraph(
        verdict(
            "the literal constant 2e, with norm 1, stops too early",
            f"at {literal['mean_time_ratio']:.3f} of the best time on (geometric) "
            f"average, {literal['largest_time_ratio']:.3f} at most, where the error is "
            f"{literal['mean_ratio']:.2f} times the least",
            literal["largest_time_ratio"] < 1 and literal["mean_ratio"] > _MEAN,
        )
    )


def _figures(found: StopStudy) -> dict[str, Any]:
    best = found.best_times
    rules = {}
    for i, name in enumerate(found.rules):
        ratio, stops = found.ratios[:, i], found.stops[:, i]
        relative = np.where(np.isinf(stops), np.nan, stops) / best
        usable = np.isfinite(relative).all()
        rules[name] = {
            "mean_ratio": float(ratio.mean()),
            "worst_ratio": float(ratio.max()),
            "median_stop": float(np.median(stops)) if usable else None,
            "mean_time_ratio": float(np.exp(np.log(relative).mean()))
            if usable
            else None,
            "largest_time_ratio": float(relative.max()) if usable else None,
        }
    return {
        "training_sets": len(found.times),
        "best_error_mean": float(found.best.mean()),
        "best_time_median": float(np.median(best)),
        "over_training_mean": float(found.over_training.mean()),
        "over_training_least": float(found.over_training.min()),
        "estimated_noise_mean": float(found.noise.mean()),
        "estimated_norm_mean": float(found.norms.mean()),
        "rules": rules,
    }


def _rule_rows(found: StopStudy) -> list[dict[str, Any]]:
    figures = _figures(found)["rules"]
    return [
        {
            "rule": name,
            "median stop s": np.median(found.stops[:, i]).item(),
            "s / best s (geometric mean)": figures[name]["mean_time_ratio"] or np.nan,
            "degrees of freedom": float(found.degrees[:, i].mean()),
            "error / least, mean": figures[name]["mean_ratio"],
            "worst": figures[name]["worst_ratio"],
        }
        for i, name in enumerate(found.rules)
    ]


def _rows(found: StopStudy) -> list[dict[str, Any]]:
    return [
        {
            "training set": seed,
            "rule": rule,
            "s": float(found.stops[seed, i]),
            "degrees of freedom": float(found.degrees[seed, i]),
            "error": float(found.stop_errors[seed, i]),
            "least error": float(found.best[seed]),
            "ratio": float(found.ratios[seed, i]),
        }
        for seed in range(len(found.times))
        for i, rule in enumerate(found.rules)
    ]
