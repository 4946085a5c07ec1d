"""The spectrum of the kernel on the data, and the radius where noise begins."""

import math
from pathlib import Path

import numpy as np

from analysis.kernels.critical_radius import CLASSICAL, critical_radius, rwy_stop
from analysis.kernels.power_law import fit_power_law
from analysis.kernels.stop_curves import noise_level, target_norm
from analysis.regression_study.measurements import SpectrumStudy
from analysis.regression_study.plots import plot_spectrum
from analysis.regression_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Advance, Outcome

__all__ = ["measure_spectrum", "spectrum_part"]

_CONSTANTS = {"1": 1.0, "2e": CLASSICAL}
_FIRST = 10  # eigenvalues before this one belong to no power law yet


def measure_spectrum(study: Study) -> SpectrumStudy:
    """Fit the eigenvalues' power law and find the critical radius.

    Args:
        study: The study; noise and norm are estimated at the GCV stop.
    """
    model, stop = study.main.model, study.main_stop
    n, p = model.spectrum.n, study.training.inputs.shape[1]
    mu = np.asarray(model.spectrum.evals)
    last = max(min(n // 4, int((mu > 0).sum())), 3)
    first = min(_FIRST, last // 2)
    exponent = fit_power_law(np.arange(first, last + 1), mu[first - 1 : last]).exponent
    sigma = math.sqrt(float(noise_level(model, stop)))
    norm = float(target_norm(model, stop))
    return SpectrumStudy(
        mu[mu > 0],
        exponent,
        -p / (p - 1),
        sigma,
        norm,
        {
            name: critical_radius(mu, sigma, c, B=norm, n=n)
            for name, c in _CONSTANTS.items()
        },
        {name: rwy_stop(mu, sigma, norm, c=c, n=n).s for name, c in _CONSTANTS.items()},
        stop,
    )


def spectrum_part(study: Study, folder: Path, advance: Advance) -> Outcome:
    """Make the section on the spectrum; see `PartMaker`."""
    found = measure_spectrum(study)
    advance("spectrum")
    section = Section("The spectrum, and where noise begins", folder)
    n, p = study.main.model.spectrum.n, study.training.inputs.shape[1]
    section.paragraph(
        f"Eigenvalues mu_j of K / n on {n} points in {p} lifted dimensions fall as j "
        f"to the power {found.exponent:.3f}; on a sphere it would be -p/(p - 1) = "
        f"{found.theory:.3f}. The largest is {found.mu[0]:.3g}, so gradient descent is "
        f"stable below eta = {2 / found.mu[0]:.3g}."
    )
    section.figure(
        "spectrum",
        plot_spectrum(found, n),
        "Left: eigenvalues, the power law, and 1/s at the GCV stop: directions below "
        "it are hardly fitted. Right: complexity R_K against what noise allows; "
        "training stops where they cross, at s = 1 / radius^2.",
    )
    rows = [
        {
            "constant c": name,
            "critical radius": radius,
            "s = 1 / radius^2": radius**-2 if radius > 0 else math.inf,
            "s of the stopping rule": found.stops[name],
            "s / GCV stop": found.stops[name] / found.gcv,
        }
        for name, radius in found.radii.items()
    ]
    section.table(rows)
    section.paragraph(
        f"With noise {found.sigma:.3g} per output and a target of norm "
        f"{found.norm:.3g}, both estimated at the GCV stop s = {found.gcv:.3g}."
    )
    section.file(
        "spectrum.csv",
        [{"j": j + 1, "mu": float(value)} for j, value in enumerate(found.mu)],
    )
    figures = {
        "exponent": found.exponent,
        "theory": found.theory,
        "largest_eigenvalue": float(found.mu[0]),
        "noise": found.sigma,
        "norm": found.norm,
        "gcv_stop": found.gcv,
        "radius": dict(found.radii),
        "stop": {
            name: s if math.isfinite(s) else None for name, s in found.stops.items()
        },
    }
    return Outcome(section, figures)
