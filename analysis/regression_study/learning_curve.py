"""Errors against the number of clean samples, beside closed forms fitted on the same.

With a known truth the error is E|f - f_*|^2 and falls as a power of n; of real data
only the loss E|f - X_0|^2 can be measured, on held-out rows, whose floor is the same
for all estimators: their differences are those of the errors.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.kernels.posterior import posterior_mean
from analysis.kernels.power_law import PowerLaw, fit_power_law
from analysis.regression_study.measurements import LearningCurve
from analysis.regression_study.plots import plot_learning_curve
from analysis.regression_study.problem import Sample, Study, mean_squares
from analysis.section import Section
from analysis.study_parts import Advance, Outcome
from diffusion.closed_form import EmpiricalDenoiser, fit_gaussian

__all__ = [
    "closed_form_errors",
    "first_win",
    "measure_learning_curve",
    "sizes_part",
    "sizes_units",
]

_SMALLEST, _LARGEST = 64, 8192
_FEW_SEEDS = 4096  # points beyond which one training set is enough


class _Case(NamedTuple):
    size: int
    draws: int
    seed: int


def sizes_units(study: Study) -> int:
    """Return the units of work: one for each regression."""
    return len(list(_cases(study)))


def measure_learning_curve(study: Study, advance: Advance) -> LearningCurve:
    """Fit training sets of all sizes, stop by GCV, and measure errors.

    Args:
        study: The study.
        advance: Told of each regression.

    Raises:
        InputError: If there are too few rows, or the exact path was asked for and
            there are too many points.
    """
    rows: list[tuple[Any, ...]] = []
    others: dict[str, list[float]] = {}
    for case in _cases(study):
        sample = study.draw(
            "training",
            case.size * case.draws,
            seed=case.seed,
            draws=case.draws,
            with_truth=False,
        )
        fitted = study.regress(sample, seed=case.seed)
        k, target, stop = (
            fitted.rows(study.test.inputs),
            study.test.target,
            fitted.stop(),
        )
        at_stop, *path = mean_squares(
            fitted, k, target, np.append(stop, fitted.times())
        )
        exact = fitted.model.spectrum.scale is None
        rows.append((*case, exact, stop, at_stop, min(path)))
        for name, value in closed_form_errors(study, sample).items():
            others.setdefault(name, []).append(value)
        advance(f"{case.size} samples, {case.draws} draws")
    size, draws, seed, exact, stop, gcv, best = map(np.array, zip(*rows, strict=True))
    arrays = {name: np.array(values) for name, values in others.items()}
    return LearningCurve(size, draws, seed, exact, stop, gcv, best, arrays)


def _cases(study: Study) -> Iterator[_Case]:
    settings = study.settings
    for draws in _draws(study):
        for size in _sizes(study):
            few = size * draws > _FEW_SEEDS
            for seed in range(1 if few else settings.size_seeds):
                yield _Case(size, draws, seed)


def _draws(study: Study) -> tuple[int, ...]:
    if study.data.labels is not None:
        return (1,)
    given = study.settings.size_draws
    return given or ((1,) if study.data.truth is not None else (1, 4, 16))


def _sizes(study: Study) -> list[int]:
    if study.settings.sizes is not None:
        return list(study.settings.sizes)
    if study.data.truth is not None:
        return [*(2**k for k in range(6, 12)), _LARGEST]
    rows = len(study.data.clean)
    powers = [2**k for k in range(4, 14) if 2**k < rows and 2**k >= _SMALLEST]
    return [*powers, min(rows, _LARGEST)]


def closed_form_errors(study: Study, sample: Sample) -> dict[str, float]:
    """Return mean squared errors of estimators fitted on the same clean samples.

    Args:
        study: The study, whose test points are used.
        sample: The training points.

    Returns:
        By name: Gaussian, isotropic Gaussian and the training set itself; where labels
        are regressed linear least squares and the mean.
    """
    test, clean = study.test, sample.clean
    if study.data.labels is not None:
        inputs = np.concatenate([sample.xt, np.ones((len(sample.xt), 1))], axis=1)
        weights, *_ = np.linalg.lstsq(inputs, sample.labels, rcond=None)
        fitted = {
            "linear least squares": test.xt @ weights[:-1] + weights[-1],
            "mean": np.broadcast_to(sample.labels.mean(axis=0), test.labels.shape),
        }
    else:
        gaussian = fit_gaussian(clean)
        denoisers = {
            "Gaussian": gaussian,
            "isotropic": gaussian.isotropic(),
            "training set": EmpiricalDenoiser(jnp.asarray(clean)),
        }
        fitted = {
            name: np.asarray(posterior_mean(one, test.xt, test.t))
            for name, one in denoisers.items()
        }
    return {
        name: float(np.mean(np.sum((f - test.target) ** 2, axis=1)))
        for name, f in fitted.items()
    }


def sizes_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on sizes; see `PartMaker`."""
    found = measure_learning_curve(study, advance)
    known = study.data.truth is not None
    section = Section("Error against the number of samples", folder)
    section.paragraph(
        f"Kernel regression stopped by GCV, {len(study.test.inputs)} test points; "
        + (
            "mean squared distance from the truth."
            if known
            else "mean squared distance from held-out labels: a floor that no "
            "estimator is below is in all of them alike."
        )
        + " Draws: noise draws for each clean sample. Closed forms are fitted on the "
        "same samples."
    )
    law = _law(found) if known else None
    section.figure(
        "sizes",
        plot_learning_curve(found, law, log=known),
        "Mean squared error against clean samples, means over training sets.",
    )
    rows = _rows(found)
    section.table(rows)
    figures: dict[str, Any] = {"rows": rows}
    if law is not None:
        figures |= _say_law(section, study, found, law)
    else:
        figures["kernel_wins"] = _compare(section, found)
    section.file("sizes.csv", _all_rows(found))
    return Outcome(section, figures)


def _law(found: LearningCurve) -> PowerLaw:
    one = found.draws == found.draws.min()
    return fit_power_law(found.size[one], found.gcv[one])


def _say_law(
    section: Section, study: Study, found: LearningCurve, law: PowerLaw
) -> dict[str, Any]:
    p = study.test.inputs.shape[1]
    theory = -p / (2 * p - 1)
    one = found.draws == found.draws.min()
    stop = fit_power_law(found.size[one], found.stop[one])
    section.paragraph(
        f"The error falls as n to the power {law.exponent:.3f} (95 % interval "
        f"{law.low:.3f} to {law.high:.3f}); for a target in the kernel's space on a "
        f"sphere in p = {p} dimensions the rate is -p/(2p - 1) = {theory:.3f}. The GCV "
        f"stop grows as n to the power {stop.exponent:.3f} ({stop.low:.3f} to "
        f"{stop.high:.3f}; there {-theory:.3f})."
    )
    return {
        "exponent": law.exponent,
        "low": _finite(law.low),
        "high": _finite(law.high),
        "theory": theory,
        "stop_exponent": stop.exponent,
    }


def _compare(section: Section, found: LearningCurve) -> dict[str, Any]:
    """Say from which size on the kernel beats each closed form."""
    wins: dict[str, Any] = {}
    for name, losses in found.others.items():
        for draws in np.unique(found.draws).tolist():
            first = first_win(found, losses, draws)
            wins.setdefault(name, {})[str(draws)] = first
            largest = int(found.size[found.draws == draws].max())
            text = (
                f"from {first} samples on"
                if first is not None
                else f"at no size up to {largest}, or not at the largest"
            )
            many = f"{draws} noise draws a sample" if draws > 1 else "one noise draw"
            section.paragraph(f"With {many} kernel regression beats {name}: {text}.")
    return wins


def first_win(
    found: LearningCurve, losses: NDArray[np.float64], draws: int
) -> int | None:
    """Return the size from which on the kernel's mean loss is below another's.

    Args:
        found: The errors.
        losses: (rows,) of the other estimator.
        draws: Noise draws for each clean sample.

    Returns:
        The least size such that the kernel wins there and at all larger ones, or None.
    """
    of_draws = found.draws == draws
    first = None
    for size in np.unique(found.size[of_draws])[::-1].tolist():
        at = of_draws & (found.size == size)
        if not found.gcv[at].mean() < losses[at].mean():
            break
        first = size
    return first


def _rows(found: LearningCurve) -> list[dict[str, Any]]:
    """Return means over training sets."""
    rows = []
    for draws in np.unique(found.draws).tolist():
        for size in np.unique(found.size[found.draws == draws]).tolist():
            at = (found.draws == draws) & (found.size == size)
            rows.append(
                {
                    "samples": size,
                    "draws": draws,
                    "sets": int(at.sum()),
                    "path": "exact" if found.exact[at].all() else "Nystrom",
                    "kernel, GCV": float(found.gcv[at].mean()),
                    "kernel, best": float(found.best[at].mean()),
                    "GCV stop s": math.exp(float(np.log(found.stop[at]).mean())),
                    **{name: float(v[at].mean()) for name, v in found.others.items()},
                }
            )
    return rows


def _all_rows(found: LearningCurve) -> list[dict[str, Any]]:
    return [
        {
            "samples": int(found.size[i]),
            "draws": int(found.draws[i]),
            "training set": int(found.seed[i]),
            "exact": bool(found.exact[i]),
            "s": float(found.stop[i]),
            "kernel, GCV": float(found.gcv[i]),
            "kernel, best": float(found.best[i]),
            **{name: float(values[i]) for name, values in found.others.items()},
        }
        for i in range(len(found.size))
    ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
