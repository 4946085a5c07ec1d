"""Part 3: denoising and contraction as sigma goes to 0, on a mixture on the line.

Both optima are known: the posterior mean, and the solution of the contractive problem.
Of their difference the part along its prediction, sigma^4 grad Laplacian log p / 2, is

    ratio = <r_RCAE - r_DAE, prediction>_p / <prediction, prediction>_p  ->  1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.autoencoder.optima import (
    dae_optimum_1d,
    optimum_expansion,
    rcae_optimum_1d,
)
from analysis.autoencoder.training import AutoencoderSettings, train_autoencoder
from analysis.reconstruction_study.limit_plots import plot_limit, plot_limit_errors
from analysis.reconstruction_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Outcome, verdict

__all__ = ["LimitStudy", "limit_part", "measure_limit"]

_WEIGHTS, _MEANS, _DEVIATIONS = (0.4, 0.6), (-1.0, 0.8), (0.5, 0.6)
_REACH, _NODES = 5.0, 8001
_SIGMAS = (0.3, 0.2, 0.1, 0.05, 0.025)
_TRAINED_SIGMA, _TRAINED_POINTS = 0.3, 20_000
_SHOWN = 3.0


class LimitStudy(NamedTuple):
    """Optima on the line.

    Attributes:
        grid: (M,) points, data units.
        weights: (M,) density on the grid, summing to 1.
        sigmas: (L,) decreasing noise levels, data units.
        score: (M,) grad log p.
        denoising: (L, M) r - x of the denoising optimum, data units.
        contraction: (L, M) of the contractive one.
        terms: By objective (M,) terms of sigma^4 in r; see
            `analysis.autoencoder.optima`.
        ratio: (L,) see the module.
        trained: By objective (M,) r - x of a trained auto-encoder at `trained_sigma`.
        trained_sigma: Its noise level.
    """

    grid: NDArray[np.float64]
    weights: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    score: NDArray[np.float64]
    denoising: NDArray[np.float64]
    contraction: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    ratio: NDArray[np.float64]
    trained: dict[str, NDArray[np.float64]]
    trained_sigma: float

    def rms(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return root mean squares under p over the last axis."""
        return np.sqrt(np.sum(self.weights * field**2, axis=-1))


def log_mixture(x: Array) -> Array:
    """Return log p of the mixture on the line, up to a constant, (n, 1) -> (n,)."""
    weights, means, deviations = (
        jnp.asarray(v) for v in (_WEIGHTS, _MEANS, _DEVIATIONS)
    )
    z = (x - means) / deviations
    return jax.nn.logsumexp(jnp.log(weights / deviations) - z**2 / 2, axis=1)


def measure_limit(study: Study) -> LimitStudy:
    """Solve for both optima at several sigmas, and train both losses at one.

    Args:
        study: Of its settings the steps and the seed are used; the law is its own.
    """
    grid = np.linspace(-_REACH, _REACH, _NODES)
    with jax.enable_x64(True):
        expansion = optimum_expansion(log_mixture, grid[:, None])
        terms = {
            name: np.asarray(getattr(expansion, name), np.float64)[:, 0]
            for name in ("score", "denoising", "contraction")
        }
        p = np.exp(np.asarray(log_mixture(jnp.asarray(grid)[:, None])))
    weights = p / p.sum()
    optima = {
        solve: np.stack([solve(grid, log_mixture, sigma) - grid for sigma in _SIGMAS])
        for solve in (dae_optimum_1d, rcae_optimum_1d)
    }
    sigmas = np.array(_SIGMAS)
    gap = terms["contraction"] - terms["denoising"]
    predicted = sigmas[:, None] ** 4 * gap
    found = optima[rcae_optimum_1d] - optima[dae_optimum_1d]
    ratio = (weights * found * predicted).sum(axis=1) / (weights * predicted**2).sum(
        axis=1
    )
    return LimitStudy(
        grid,
        weights,
        sigmas,
        terms.pop("score"),
        optima[dae_optimum_1d],
        optima[rcae_optimum_1d],
        terms,
        ratio,
        _trained(study, grid),
        _TRAINED_SIGMA,
    )


def _trained(study: Study, grid: NDArray[np.float64]) -> dict[str, Any]:
    """Return r - x of a perceptron trained by each loss, on the grid."""
    rng = np.random.default_rng(study.settings.seed)
    which = rng.choice(len(_WEIGHTS), size=_TRAINED_POINTS, p=_WEIGHTS)
    points = rng.normal(np.array(_MEANS)[which], np.array(_DEVIATIONS)[which])
    found = {}
    for objective in ("denoising", "contraction"):
        settings = AutoencoderSettings(
            (_TRAINED_SIGMA,),
            hidden=study.settings.hidden[:2],
            objective=objective,
            num_steps=study.settings.num_steps,
            batch_size=study.settings.batch_size,
        )
        denoiser = train_autoencoder(
            settings,
            points[:, None].astype(np.float32),
            study.key("networks", 1),
        ).denoiser
        x = jnp.asarray(grid[:, None], jnp.float32)
        found[objective] = np.asarray(denoiser(x) - x, np.float64)[:, 0]
    return found


def limit_part(study: Study) -> Outcome:
    """Make the section on sigma going to 0; see `PartMaker`."""
    found = measure_limit(study)
    section = Section(
        "Denoising, contraction, and the score as sigma -> 0", study.folder
    )
    section.paragraph(
        "Two Gaussians on the line. (r - x) / sigma^2 of both optima goes to the score "
        "as sigma^2; they differ by sigma^4 grad Laplacian log p / 2, and neither is "
        "the other's limit before that."
    )
    section.figure(
        "limit",
        plot_limit(found, _SHOWN),
        "Left: r(x) against x. Then (r - x) / sigma^2 at two noise levels beside the "
        "score and the expansion to sigma^4.",
    )
    section.figure(
        "limit_errors",
        plot_limit_errors(found),
        "Root mean square distance of (r - x) / sigma^2 from the score, and from the "
        "expansion to sigma^4, against sigma.",
    )
    rows = _rows(found)
    section.table(rows)
    section.table(_trained_rows(found))
    last = float(found.ratio[-1])
    section.paragraph(
        verdict(
            f"at sigma = {found.sigmas[-1]:g} the optima differ by what is predicted, "
            "to 10 %",
            f"{last:.3f} of it",
            abs(last - 1) < 0.1,
        )
    )
    section.file("limit.csv", rows)
    return Outcome(section, {"rows": rows, "trained": _trained_rows(found)})


def _rows(found: LimitStudy) -> list[dict[str, Any]]:
    rows = []
    for i, sigma in enumerate(found.sigmas):
        row = {"sigma": float(sigma), "gap / predicted gap": float(found.ratio[i])}
        for name in ("denoising", "contraction"):
            estimate = getattr(found, name)[i] / sigma**2
            term = found.terms[name]
            row[f"{name}: off the score"] = float(found.rms(estimate - found.score))
            row[f"{name}: off sigma^4"] = float(
                found.rms(estimate - found.score - sigma**2 * term)
            )
        rows.append(row)
    return rows


def _trained_rows(found: LimitStudy) -> list[dict[str, Any]]:
    """Return how near trained auto-encoders are to both optima."""
    at = int(np.argmin(np.abs(found.sigmas - found.trained_sigma)))
    scale = found.trained_sigma**2
    return [
        {
            f"trained at sigma {found.trained_sigma:g}": objective,
            "off the denoising optimum": float(
                found.rms((field - found.denoising[at]) / scale)
            ),
            "off the contractive optimum": float(
                found.rms((field - found.contraction[at]) / scale)
            ),
            "optima apart": float(
                found.rms((found.contraction[at] - found.denoising[at]) / scale)
            ),
        }
        for objective, field in found.trained.items()
    ]
