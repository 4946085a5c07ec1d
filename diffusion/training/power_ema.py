"""Power-function averages of the parameters, and others reconstructed after training.

An average with exponent gamma at step t weighs the parameters of step s by

    p(s; gamma, t) = (gamma + 1) s**gamma / t**(gamma + 1),   0 <= s <= t.

Its relative width is sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).  A
linear combination of snapshots has a combination of such profiles; the one nearest to a
wanted profile in the least-squares sense has coefficients x with A x = b, where A and b
hold the inner products of profiles (arXiv 2312.02696, appendix C).
"""

from typing import NamedTuple

import numpy as np

from configs.errors import InputError

__all__ = ["Profile", "combination", "gamma_of_width", "profile_product"]


class Profile(NamedTuple):
    """The weights that an average gives to the steps of a run.

    Attributes:
        step: Where the average was taken, t > 0, in steps.
        gamma: Exponent, > -1/2.
    """

    step: float
    gamma: float


def gamma_of_width(width: float) -> float:
    """Return the exponent of a relative width.

    The largest real root of g^3 + 7 g^2 + (16 - w^-2) g + (12 - w^-2) = 0.

    Args:
        width: sigma_rel, in (0, .28).

    Returns:
        gamma > 0: 16.97 for .05, 6.94 for .1.

    Raises:
        InputError: If the width is out of range.
    """
    if not 0 < width < 0.28:
        raise InputError(f"the width of an average is {width}; it must be in (0, 0.28)")
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def profile_product(first: Profile, second: Profile) -> float:
    """Return the inner product of two profiles, the integral of p q over s.

    With the profile that ends earlier called a:
    (ga + 1)(gb + 1) (ta / tb)^gb / ((ga + gb + 1) tb).
    """
    a, b = sorted((first, second), key=lambda profile: profile.step)
    ratio = (a.step / b.step) ** b.gamma
    scale = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return scale * ratio / b.step


def combination(snapshots: list[Profile], wanted: Profile) -> np.ndarray:
    """Return the coefficients of the snapshots whose sum is nearest to a profile.

    Args:
        snapshots: n profiles; those later than the wanted one help only if they hold
            nothing later, so they are better left out.
        wanted: The profile to reconstruct.

    Returns:
        (n,) float64 coefficients with sum 1.

    Raises:
        InputError: If there is no snapshot.
    """
    if not snapshots:
        raise InputError("there are no snapshots to reconstruct an average from")
    gram = np.array([[profile_product(a, b) for b in snapshots] for a in snapshots])
    target = np.array([profile_product(a, wanted) for a in snapshots])
    # Profiles differ in norm by the root of their length: solved as directions.
    norm = np.sqrt(np.diag(gram))
    solved = np.linalg.lstsq(gram / np.outer(norm, norm), target / norm, rcond=1e-13)[0]
    coefficients = solved / norm
    return coefficients / coefficients.sum()
