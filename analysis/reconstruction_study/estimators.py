"""Part 8: auto-encoders, closed forms and a diffusion network as estimates of a score.

On held-out samples x = x_0 + sigma n nobody needs to know the score: its estimate
predicts the noise, sigma score = -E[n | x], and

    explained = 1 - E|n_hat - n|^2 / E|n|^2,    n_hat = (x - D(x)) / sigma,

is the share of the noise that is recognised; the true score has the most.  The same on
training samples tells who remembers them.  Where a law is known, or a diffusion network
was given, its score is explained too (`analysis.score_comparison`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.comparison.candidates import EMPIRICAL, GAUSSIAN
from analysis.plots import COLOURS, SIGMA_LABEL, STYLES, open_panels
from analysis.reconstruction_study.arms import Arm
from analysis.reconstruction_study.problem import Study
from analysis.score_comparison import compare_denoisers
from analysis.section import Section
from analysis.study_parts import Outcome
from diffusion.closed_form import EmpiricalDenoiser, fit_gaussian, fit_mixture
from diffusion.denoiser import Denoiser

__all__ = ["EstimatorStudy", "estimators_part", "measure_estimators"]

_COMPONENTS, _RANK = 10, 32
_BLOCK = 256
_LOWEST, _MOST_MORE = -0.25, 0.5  # of the figure's axes
NETWORK = "diffusion network"


class EstimatorStudy(NamedTuple):
    """Estimators at each noise level.

    Attributes:
        sigmas: (L,) noise levels, data units.
        explained: By name (L,) share of the noise of held-out samples; NaN where an
            estimator does not know a level.
        standard_error: By name (L,) of that, over samples.
        training: By name (L,) the same share on training samples.
        score: By name (L,) explained variance of the score of `against`.
        against: The law or network whose score that is, or "".
    """

    sigmas: tuple[float, ...]
    explained: dict[str, NDArray[np.float64]]
    standard_error: dict[str, NDArray[np.float64]]
    training: dict[str, NDArray[np.float64]]
    score: dict[str, NDArray[np.float64]]
    against: str


def measure_estimators(study: Study) -> EstimatorStudy:
    """Train an auto-encoder of each loss for each level, and measure all estimators.

    Args:
        study: The study.
    """
    fixed = _closed_forms(study)
    against = "" if study.truth is None else study.truth.name
    tables: list[dict[str, dict[str, float]]] = []
    for index, sigma in enumerate(study.sigmas):
        estimators = _at_level(study, fixed, sigma)
        reference = NETWORK if NETWORK in estimators and not against else against
        tables.append(_measure(study, estimators, sigma, index, reference))
    names = list(dict.fromkeys(name for table in tables for name in table))
    collect = {
        key: {
            name: np.array([table.get(name, {}).get(key, np.nan) for table in tables])
            for name in names
        }
        for key in ("explained", "standard_error", "training", "score")
    }
    shown = against or (NETWORK if NETWORK in names else "")
    return EstimatorStudy(study.sigmas, **collect, against=shown)


def _closed_forms(study: Study) -> dict[str, Denoiser]:
    """Return what does not depend on the noise level."""
    clean = jnp.asarray(study.clean)
    rank = min(_RANK, study.data.dimension)
    found: dict[str, Denoiser] = {
        GAUSSIAN: fit_gaussian(study.clean),
        f"mixture of {_COMPONENTS}": fit_mixture(
            study.clean, _COMPONENTS, rank=rank, key=study.key("estimators")
        ),
        EMPIRICAL: EmpiricalDenoiser(clean),
    }
    if study.truth is not None:
        found[study.truth.name] = study.truth.denoiser
    return found


def _at_level(
    study: Study, fixed: dict[str, Denoiser], sigma: float
) -> dict[str, Denoiser]:
    """Return all estimators of a level: auto-encoders are trained for it."""
    found: dict[str, Denoiser] = {
        "denoising auto-encoder": study.trained(Arm.RESIDUAL, sigma).denoiser,
        "contractive auto-encoder": study.trained(Arm.CONTRACTIVE, sigma).denoiser,
        **fixed,
    }
    model = study.network
    if model is not None and model.sigma_range[0] <= sigma <= model.sigma_range[1]:
        found[NETWORK] = model.denoiser
    return found


def _measure(
    study: Study,
    estimators: dict[str, Denoiser],
    sigma: float,
    index: int,
    against: str,
) -> dict[str, dict[str, float]]:
    held_out, training = study.held_out, study.clean[: study.settings.test_points]
    table = {}
    for name, denoiser in estimators.items():
        explained, error = _explained(study, denoiser, held_out, sigma, 100 + index)
        table[name] = {"explained": explained, "standard_error": error}
        remembered, _ = _explained(study, denoiser, training, sigma, 200 + index)
        table[name]["training"] = remembered
    if against:
        comparison = compare_denoisers(
            estimators[against],
            {name: one for name, one in estimators.items() if name != against},
            held_out,
            [sigma],
            study.key("estimators", 1 + index),
            mean=study.clean.mean(axis=0),
        )
        for name, value in zip(
            comparison.names, comparison.score_pooled.mean[:, 0], strict=True
        ):
            table[name]["score"] = float(value)
    return table


def _explained(
    study: Study,
    denoiser: Denoiser,
    clean: NDArray[np.float32],
    sigma: float,
    seed: int,
) -> tuple[float, float]:
    """Return the share of the noise that is recognised, and its standard error."""
    noisy = study.noised(clean, sigma, seed)
    blocks = [
        np.asarray(_denoise(denoiser, noisy[i : i + _BLOCK], np.float32(sigma)))
        for i in range(0, len(noisy), _BLOCK)
    ]
    rows = (np.concatenate(blocks).astype(np.float64) - clean).reshape(len(clean), -1)
    noise = (noisy.astype(np.float64) - clean).reshape(len(clean), -1)
    error, power = np.sum(rows**2, axis=1), np.sum(noise**2, axis=1)
    ratio = error.mean() / power.mean()
    spread = (error - ratio * power).std(ddof=1) / power.mean() / np.sqrt(len(error))
    return float(1 - ratio), float(spread)


@jax.jit
def _denoise(denoiser: Denoiser, x: jax.Array, sigma: jax.Array) -> jax.Array:
    return denoiser(x, sigma)


def estimators_part(study: Study) -> Outcome:
    """Make the section that compares estimators; see `PartMaker`."""
    found = measure_estimators(study)
    section = Section("Auto-encoders among the estimators of a score", study.folder)
    section.paragraph(
        "Share of the noise n that an estimate recognises, 1 - E|n_hat - n|^2 / E|n|^2 "
        f"with n_hat = -sigma score, on {len(study.held_out)} noisy draws of "
        f"{study.num_held_out} held-out samples, with its standard error over draws; "
        "the true score recognises most. On training samples it is larger for an "
        "estimate that remembers them. "
        + (
            f"Of score: 1 - E|s_hat - s|^2 / E|s|^2 against that of {found.against}."
            if found.against
            else ""
        )
    )
    rows = _rows(found)
    section.table(rows)
    section.figure(
        "estimators",
        _plot(found),
        "Share of the noise recognised on held-out and on training samples; bars of "
        f"error are two standard errors. Shares below {_LOWEST:g} and gains above "
        f"{_MOST_MORE:g} are in the table alone.",
    )
    if study.network is None and study.data.network is None and study.data.law is None:
        section.paragraph(
            f"No diffusion network was given. Train one (python -m diffusion.train "
            f"{study.data.name} --workdir runs/{study.data.name}) and add it with "
            f"--network runs/{study.data.name}."
        )
    section.file("estimators.csv", rows)
    return Outcome(section, {"rows": rows, "against": found.against})


def _rows(found: EstimatorStudy) -> list[dict[str, Any]]:
    rows = []
    for name, explained in found.explained.items():
        row: dict[str, Any] = {"estimate": name}
        for i, sigma in enumerate(found.sigmas):
            row[f"noise, {sigma:g}"] = float(explained[i])
            row[f"+- {sigma:g}"] = float(found.standard_error[name][i])
            row[f"training, {sigma:g}"] = float(found.training[name][i])
            if found.against:
                row[f"of score, {sigma:g}"] = float(found.score[name][i])
        rows.append(row)
    return rows


def _plot(found: EstimatorStudy) -> Figure:
    return _plot_level(found) if len(found.sigmas) == 1 else _plot_levels(found)


def _plot_level(found: EstimatorStudy) -> Figure:
    """Draw bars, the best above, where there is but one noise level."""
    figure, (axes,) = open_panels(1, 8, 4.4)
    names = sorted(found.explained, key=lambda name: found.explained[name][0])
    bars = np.arange(len(names))
    for shift, values, error, label in (
        (0.2, found.explained, found.standard_error, "held-out samples"),
        (-0.2, found.training, None, "training samples"),
    ):
        axes.barh(
            bars + shift,
            [values[name][0] for name in names],
            0.4,
            xerr=None if error is None else [2 * error[name][0] for name in names],
            color=COLOURS[0 if error is not None else 1],
            label=label,
        )
    axes.set_yticks(bars, names)
    axes.axvline(0, color="k", lw=0.8)
    axes.set(
        xlabel="share of the noise",
        title=f"Noise recognised at sigma = {found.sigmas[0]:g}",
    )
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    return figure


def _plot_levels(found: EstimatorStudy) -> Figure:
    figure, (left, right) = open_panels(2, 11, 4.4)
    for i, (name, explained) in enumerate(found.explained.items()):
        colour = COLOURS[i % len(COLOURS)]
        style = STYLES[i // len(COLOURS) % len(STYLES)]
        left.errorbar(
            found.sigmas,
            explained,
            2 * found.standard_error[name],
            fmt=style,
            ms=4,
            color=colour,
            label=name,
        )
        more = found.training[name] - explained
        right.plot(found.sigmas, more, style, ms=4, color=colour, label=name)
    left.set(xscale="log", ylabel="share of the noise", title="Held-out samples")
    right.set(xscale="log", title="Training samples: how much more")
    # An estimate that remembers its samples is far off at low noise: it leaves.
    left.set_ylim(max(left.get_ylim()[0], _LOWEST), 1.02)
    right.set_ylim(top=min(right.get_ylim()[1], _MOST_MORE))
    for axes in (left, right):
        axes.set_xlabel(SIGMA_LABEL)
        axes.grid(alpha=0.3)
    left.legend(fontsize=7)
    return figure
