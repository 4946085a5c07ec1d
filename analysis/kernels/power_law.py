"""A power law through measured points, with an interval for its exponent.

    log y = log factor + exponent log x,   by least squares,

as errors against widths and numbers of samples are read.  Scatter and bend of the
points alike widen the interval, which is Student's.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import InputError, require

__all__ = ["PowerLaw", "fit_power_law"]


class PowerLaw(NamedTuple):
    """y = factor x^exponent, by least squares in log-log.

    Attributes:
        exponent: The slope.
        low: Lower end of its confidence interval; nan with fewer than 3 points.
        high: Upper end.
        factor: y at x = 1.
    """

    exponent: float
    low: float
    high: float
    factor: float


def fit_power_law(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> PowerLaw:
    """Fit y = factor x^exponent by least squares in log-log.

    Args:
        x: (k,) numbers above 0, not all equal.
        y: (k,) numbers above 0.
        confidence: Of Student's interval for the exponent, in (0, 1).

    Returns:
        The law.

    Raises:
        InputError: If there are not two different x, or a number is not above 0.
    """
    require(0 < confidence < 1, "confidence", confidence, "in (0, 1)")
    pairs = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    if not ((pairs > 0) & np.isfinite(pairs)).all() or len(np.unique(pairs[0])) < 2:
        raise InputError(
            "a power law needs finite numbers above 0 at two or more different x; "
            f"given x = {pairs[0].tolist()} and y = {pairs[1].tolist()}"
        )
    u, v = np.log(pairs)
    centred = u - u.mean()
    exponent = centred @ v / (centred @ centred)
    left = v - v.mean() - exponent * centred
    freedom = len(u) - 2
    half = np.nan
    if freedom > 0:
        variance = left @ left / freedom / (centred @ centred)
        half = _student_quantile((1 + confidence) / 2, freedom) * math.sqrt(variance)
    factor = math.exp(v.mean() - exponent * u.mean())
    return PowerLaw(exponent, exponent - half, exponent + half, factor)


def _student_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's law; the series is good to .1% from 3 on."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        a = 4 * probability * (1 - probability)
        return 2 * (probability - 0.5) * math.sqrt(2 / a)
    x, v = NormalDist().inv_cdf(probability), freedom
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / v ** (k + 1) for k, term in enumerate(terms))
