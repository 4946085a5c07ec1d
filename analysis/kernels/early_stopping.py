"""When to stop training: rules that pick a time from the labels, or from truth.

GCV, SURE, the discrepancy, hold-out and the oracle look at a curve over all times
(`analysis.kernels.stop_curves`); the local-Rademacher rules at the spectrum, the noise
and the norm (`analysis.kernels.critical_radius`); one at n alone.  GCV needs nothing
else and is the default: its valley is flat, so the time may be off by a factor of two
and the error by a few per cent.

A rule is a function of a `StopProblem`; `RULES` names those that there are, and
`choose_stop` takes any other one as well.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.critical_radius import (
    CLASSICAL,
    critical_radius,
    data_free_stop,
    kernel_complexity,
    rwy_stop,
    stop_ratio,
)
from analysis.kernels.regression import FlowModel, dof
from analysis.kernels.stop_curves import (
    default_times,
    discrepancy,
    gcv,
    holdout,
    noise_level,
    oracle,
    sure,
    target_norm,
)
from configs.errors import (
    InputError,
    InputWarning,
    is_positive,
    require,
    require_choice,
)

__all__ = [
    "RULES",
    "Choice",
    "Rule",
    "StopProblem",
    "StopResult",
    "choose_stop",
    "critical_radius",
    "data_free_stop",
    "default_times",
    "discrepancy",
    "gcv",
    "holdout",
    "kernel_complexity",
    "noise_level",
    "oracle",
    "rwy_stop",
    "sure",
    "target_norm",
]


class StopProblem(NamedTuple):
    """All that a rule may look at.

    Attributes:
        model: The regression.
        times: (S,) increasing times to choose from.
        sigma: Standard deviation of the noise per output, given or estimated.
        B: Norm of the target per output, given or estimated.
        rows: (q, n) kernel of hold-out or test points, or None.
        values: (q, d) their labels or true values, or None.
        f0: (q, d) the first guess there, or None.
        input_dimension: Dimension p of the lifted input, or None.
    """

    model: FlowModel
    times: NDArray[np.float64]
    sigma: float
    B: float
    rows: ArrayLike | None = None
    values: ArrayLike | None = None
    f0: ArrayLike | None = None
    input_dimension: int | None = None


class Choice(NamedTuple):
    """What a rule says.

    Attributes:
        s: Training time; inf for interpolation.
        curve: (S,) what it looked at, at each time.
    """

    s: float
    curve: NDArray[np.float64]


Rule = Callable[[StopProblem], Choice]


class StopResult(NamedTuple):
    """A stop, and what it means.

    Attributes:
        s: Training time.
        tau: Whole number of steps of eta until then; inf where `s` is.
        sigma: Standard deviation of the noise per output: given, or estimated at the
            GCV stop.
        B: Norm of the target per output: given, or estimated there.
        df: Degrees of freedom at the stop.
        curve: (S,) the rule's curve.
        times: (S,) times of the curve.
    """

    s: float
    tau: float
    sigma: float
    B: float
    df: float
    curve: NDArray[np.float64]
    times: NDArray[np.float64]


def choose_stop(
    model: FlowModel,
    rule: str | Rule = "gcv",
    *,
    times: ArrayLike | None = None,
    eta: float = 1.0,
    sigma2: float | None = None,
    B: float | None = None,
    rows: ArrayLike | None = None,
    values: ArrayLike | None = None,
    f0: ArrayLike | None = None,
    input_dimension: int | None = None,
) -> StopResult:
    """Choose when to stop.

    Args:
        model: See `analysis.kernels.regression.fit`.
        rule: A name in `RULES`, or any function of a `StopProblem`.
        times: (S,) increasing times to choose from; None for `default_times`.
        eta: Step size, which turns the time into steps.
        sigma2: Variance of the noise per output; None estimates it at the GCV stop.
        B: Norm of the target per output; None likewise.
        rows: For ``"holdout"`` and ``"oracle"``: (q, n) kernel, or (q, R) features.
        values: For the same: (q, d) labels or true values.
        f0: For the same: (q, d) the first guess, or None for 0.
        input_dimension: For ``"data_free"``: dimension p of the lifted input.

    Returns:
        The stop with its estimates and the rule's curve.

    Raises:
        InputError: If the rule is unknown, lacks what it needs, or a value is out of
            range.

    Warns:
        InputWarning: If the best time is the first or last of those to choose from.
    """
    if isinstance(rule, str):
        require_choice("stopping rule", rule, RULES)
        rule = RULES[rule]
    require(is_positive(eta), "eta", eta, "a finite number > 0")
    grid = _checked_times(model, times)
    start = _best(grid, gcv(model, grid), warn=False).s
    if sigma2 is None:
        sigma2 = float(noise_level(model, start))
    require(math.isfinite(sigma2) and sigma2 >= 0, "sigma2", sigma2, "finite, >= 0")
    norm = float(target_norm(model, start)) if B is None else B
    problem = StopProblem(
        model, grid, math.sqrt(sigma2), norm, rows, values, f0, input_dimension
    )
    choice = rule(problem)
    return StopResult(
        s=choice.s,
        # A time that is a whole number of steps but for rounding counts as it.
        tau=math.floor(choice.s / eta * (1 + 1e-12))
        if choice.s < math.inf
        else math.inf,
        sigma=problem.sigma,
        B=norm,
        df=float(dof(model, choice.s)),
        curve=choice.curve,
        times=grid,
    )


def _gcv_rule(problem: StopProblem) -> Choice:
    return _best(problem.times, gcv(problem.model, problem.times))


def _sure_rule(problem: StopProblem) -> Choice:
    curve = sure(problem.model, problem.times, problem.sigma**2)
    return _best(problem.times, curve)


def _discrepancy_rule(problem: StopProblem) -> Choice:
    curve = np.asarray(discrepancy(problem.model, problem.times, problem.sigma**2))
    reached = np.flatnonzero(curve <= 0)
    s = float(problem.times[reached[0]]) if reached.size else math.inf
    return Choice(s, curve.astype(np.float64))


def _points_rule(problem: StopProblem) -> Choice:
    if problem.rows is None or problem.values is None:
        raise InputError(
            "this stopping rule needs points: give rows, their kernel with the "
            "training points, and values, their labels (hold-out) or truth (oracle)"
        )
    curve = holdout(
        problem.model, problem.rows, problem.values, problem.times, f0=problem.f0
    )
    return _best(problem.times, curve)


def _radius_rule(problem: StopProblem, c: float, known_norm: bool) -> Choice:
    spectrum = problem.model.spectrum
    norm = problem.B if known_norm else 1.0
    mu, n = np.asarray(spectrum.evals), int(spectrum.n)
    stop = rwy_stop(mu, problem.sigma, norm, c=c, n=n)
    return Choice(stop.s, stop_ratio(mu, problem.times, problem.sigma, norm, c, n=n))


def _data_free_rule(problem: StopProblem) -> Choice:
    if problem.input_dimension is None:
        raise InputError(
            "the rule 'data_free' needs input_dimension, that of the lifted input: "
            "d + 2 for a diffusion in d dimensions"
        )
    s = data_free_stop(int(problem.model.spectrum.n), problem.input_dimension)
    return Choice(s, problem.times / s)


RULES: dict[str, Rule] = {
    "gcv": _gcv_rule,
    "sure": _sure_rule,
    "discrepancy": _discrepancy_rule,
    "holdout": _points_rule,
    "oracle": _points_rule,
    "rwy_2e": partial(_radius_rule, c=CLASSICAL, known_norm=False),
    "rwy_2e_norm": partial(_radius_rule, c=CLASSICAL, known_norm=True),
    "rwy_1": partial(_radius_rule, c=1.0, known_norm=False),
    "rwy_1_norm": partial(_radius_rule, c=1.0, known_norm=True),
    "data_free": _data_free_rule,
}
"""Rules by name.  ``rwy_2e`` and ``rwy_1`` take the norm of the target to be 1; the
curves of these and of ``data_free`` pass 1 at the stop."""


def _best(times: NDArray, curve: ArrayLike, *, warn: bool = True) -> Choice:
    """Return the time at which a curve is smallest."""
    values = np.asarray(curve, np.float64)
    place = int(np.argmin(values))
    if warn and place in (0, len(times) - 1):
        warnings.warn(
            f"the best training time is {times[place]:.3g}, at the end of those to "
            f"choose from, {times[0]:.3g} to {times[-1]:.3g}; give other times",
            InputWarning,
            stacklevel=4,
        )
    return Choice(float(times[place]), values)


def _checked_times(model: FlowModel, times: ArrayLike | None) -> NDArray[np.float64]:
    if times is None:
        return default_times(model.spectrum.evals)
    grid = np.asarray(times, np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not (grid > 0).all():
        raise InputError(f"times have shape {grid.shape}; give (S,), S >= 2, each > 0")
    require(bool((np.diff(grid) > 0).all()), "times", grid.tolist()[:4], "increasing")
    return grid
