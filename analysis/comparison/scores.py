"""The sections on scores: what is explained, who wins, ranks, directions, pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.comparison.candidates import EMPIRICAL, GAUSSIAN
from analysis.comparison.plots import (
    nearest_levels,
    plot_direction_errors,
    plot_pixel_errors,
    plot_ranks,
    plot_unexplained,
)
from analysis.comparison.ranges import (
    SigmaRange,
    best_ranges,
    ranges_where,
    unexplained_ranges,
)
from analysis.comparison.run import ScoreStudy
from analysis.plots import plot_explained_variance
from analysis.score_comparison import Comparison
from analysis.section import Section
from diffusion.atomic import write_atomically

__all__ = ["comparison_rows", "direction_rows", "representatives", "score_sections"]

_THRESHOLDS = (0.01, 0.05)
_QUANTITIES = (
    "score",
    "denoised",
    "score_reversed",
    "denoised_reversed",
    "score_pooled",
    "denoised_pooled",
    "squared_error",
)
_SHOWN_SIGMAS = (0.1, 0.5, 2.0, 5.0, 20.0)


def score_sections(study: ScoreStudy, folder: Path) -> list[Section]:
    """Write tables and figures of a study and say what is in them.

    Args:
        study: Result of `measure_scores`.
        folder: The page's folder.

    Returns:
        The sections, in order.

    Raises:
        OSError: If something cannot be written.
    """
    sections = [
        _explained(study, folder),
        _winners(study, folder),
        _ranks(study, folder),
        _directions(study, folder),
        _pixels(study, folder),
    ]
    return [section for section in sections if section is not None]


def representatives(names: Sequence[str]) -> list[str]:
    """Return the candidates that are drawn where not all can be.

    Args:
        names: All of them.

    Returns:
        The Gaussian, the mixture of most components and the training set, as far as
        they are there; else the last three.
    """
    mixtures = [name for name in names if name.startswith("mixture ")]
    wanted = (GAUSSIAN, *mixtures[-1:], EMPIRICAL)
    return [name for name in wanted if name in names] or list(names)[-3:]


def comparison_rows(study: ScoreStudy) -> list[dict[str, Any]]:
    """Return a row of plain numbers per kind of probe, candidate and level."""
    rows = []
    for kind, comparison in study.comparisons.items():
        for i, name in enumerate(comparison.names):
            for j, sigma in enumerate(comparison.sigmas):
                row: dict[str, Any] = {
                    "probes": kind,
                    "candidate": name,
                    "sigma": float(sigma),
                    "num_probes": comparison.num_probes,
                }
                for quantity in _QUANTITIES:
                    summary = getattr(comparison, quantity)
                    row[quantity] = float(summary.mean[i, j])
                    error = float(summary.standard_error[i, j])
                    row[f"{quantity}_standard_error"] = error
                rows.append(row)
    return rows


def direction_rows(study: ScoreStudy) -> list[dict[str, Any]]:
    """Return a row per kind of probe, candidate, level and principal direction."""
    rows = []
    for kind, comparison in study.comparisons.items():
        errors = comparison.directions
        for i, name in enumerate(comparison.names):
            for j, sigma in enumerate(comparison.sigmas):
                for k, direction in enumerate(study.directions):
                    rows.append(
                        {
                            "probes": kind,
                            "candidate": name,
                            "sigma": float(sigma),
                            "direction": int(direction),
                            "variance": float(study.variances[k]),
                            "error": float(errors.error.mean[i, j, k]),
                            "standard_error": float(
                                errors.error.standard_error[i, j, k]
                            ),
                            "power": float(errors.power[j, k]),
                        }
                    )
    return rows


def _explained(study: ScoreStudy, folder: Path) -> Section:
    section = Section("How much of the network is explained", folder)
    section.paragraph(
        "Unexplained: |s - s_c|^2 / |s|^2 of the network's score s and a candidate's "
        "s_c, averaged over probes; of denoised images both sides are centred on the "
        "data's mean. Bands: two standard errors. Lines: 1 and 5 %."
    )
    for quantity, label in (("score", "score"), ("denoised", "denoised image")):
        section.figure(
            f"unexplained_{quantity}",
            plot_unexplained(study.comparisons, quantity, label),
            f"Unexplained fraction of the network's {label}.",
        )
    kind, first = next(iter(study.comparisons.items()))
    section.figure(
        "explained_variance",
        plot_explained_variance(first),
        f"Explained variance, {first.num_probes} {kind} probes at each level.",
    )
    for kind, comparison in study.comparisons.items():
        section.paragraph(f"Unexplained fraction of the score, {kind} probes:")
        section.table(_unexplained_table(comparison))
    section.file("comparison.csv", comparison_rows(study))
    return section


def _unexplained_table(comparison: Comparison) -> list[dict[str, Any]]:
    unexplained = 1 - comparison.score.mean
    return [
        {
            "candidate": name,
            **{
                f"{sigma:g}": f"{value:.3g}"
                for sigma, value in zip(comparison.sigmas, row, strict=True)
            },
        }
        for name, row in zip(comparison.names, unexplained, strict=True)
    ]


def _winners(study: ScoreStudy, folder: Path) -> Section:
    section = Section("Who wins where", folder)
    section.paragraph(
        "Ranges of neighbouring noise levels at which a candidate leaves least of the "
        "score unexplained. Clear: at so many of them the next best is worse by more "
        "than two standard errors."
    )
    best, thresholds = [], []
    for kind, comparison in study.comparisons.items():
        best += [_range_row(kind, one) for one in best_ranges(comparison)]
        for threshold in _THRESHOLDS:
            for name in representatives(comparison.names):
                for one in unexplained_ranges(comparison, name, threshold):
                    row = {"unexplained below": f"{threshold:.0%}"}
                    thresholds.append({**_range_row(kind, one), **row})
                    del thresholds[-1]["clear"]
    section.table(best)
    section.paragraph("Where a candidate leaves less than 1 % and 5 % unexplained:")
    section.table(thresholds)
    duel = [row for kind, c in study.comparisons.items() for row in _duel(kind, c)]
    if duel:
        section.paragraph("Where the Gaussian explains more than the training set:")
        section.table(duel)
    section.file("best.csv", best)
    section.file("thresholds.csv", thresholds)
    return section


def _range_row(kind: str, found: SigmaRange) -> dict[str, Any]:
    return {
        "probes": kind,
        "candidate": found.name,
        "from sigma": found.lowest,
        "to sigma": found.highest,
        "levels": found.num_levels,
        "clear": found.num_clear,
    }


def _duel(kind: str, comparison: Comparison) -> list[dict[str, Any]]:
    """Return where the Gaussian beats the empirical model, if both are there."""
    names = comparison.names
    if GAUSSIAN not in names or EMPIRICAL not in names:
        return []
    rows = comparison.score.mean
    better = rows[names.index(GAUSSIAN)] > rows[names.index(EMPIRICAL)]
    found = [
        _range_row(kind, one)
        for one in ranges_where(comparison.sigmas, better, GAUSSIAN)
    ]
    for row in found:
        del row["clear"]
    return found


def _ranks(study: ScoreStudy, folder: Path) -> Section | None:
    comparison = next(iter(study.comparisons.values()))
    prefix = f"{GAUSSIAN} rank "
    ranks = {
        name: int(name.removeprefix(prefix))
        for name in comparison.names
        if name.startswith(prefix)
    }
    if not ranks:
        return None
    section = Section("How many directions a Gaussian needs", folder)
    full = GAUSSIAN in comparison.names
    if full:
        ranks[GAUSSIAN] = max(int(study.directions[-1]) + 1, max(ranks.values()) + 1)
    section.figure(
        "ranks",
        plot_ranks(comparison, ranks, _SHOWN_SIGMAS),
        "Unexplained fraction of the score over the rank of the Gaussian"
        f"{', the last point all directions' if full else ''}; directions that are "
        "left out share their mean variance.",
    )
    return section


def _directions(study: ScoreStudy, folder: Path) -> Section | None:
    if not study.directions.size:
        return None
    section = Section("Which directions are off", folder)
    section.paragraph(
        "Squared error of the denoised image along principal directions u of the "
        "training images, over the network's own spread along them: "
        "E (u.(D - D_c))^2 / E (u.(D - mean))^2. At 1 a candidate knows nothing."
    )
    for kind, comparison in study.comparisons.items():
        names = representatives(comparison.names)
        section.figure(
            f"directions_{kind}",
            plot_direction_errors(comparison, study.directions, names, _SHOWN_SIGMAS),
            f"{kind} probes; direction 1 has the largest variance.",
        )
    section.file("directions.csv", direction_rows(study))
    return section


def _pixels(study: ScoreStudy, folder: Path) -> Section:
    section = Section("Error per pixel", folder)
    first = next(iter(study.comparisons.values()))
    levels = nearest_levels(first, _SHOWN_SIGMAS)
    rows = [
        {
            "probes": kind,
            "candidate": name,
            **{
                f"sigma {comparison.sigmas[level]:g}": float(values[level])
                for level in levels
            },
        }
        for kind, comparison in study.comparisons.items()
        for name, values in zip(
            comparison.names, comparison.squared_error.mean, strict=True
        )
    ]
    section.paragraph("Mean squared difference of the denoised image per value:")
    section.table(rows)
    if first.pixel_error.ndim == 5:  # (M, L, H, W, C)
        for kind, comparison in study.comparisons.items():
            names = representatives(comparison.names)
            section.figure(
                f"pixels_{kind}",
                plot_pixel_errors(comparison, names, _SHOWN_SIGMAS),
                f"Where the denoised images differ, {kind} probes.",
            )
    maps: dict[str, Any] = {
        kind: comparison.pixel_error.astype(np.float32)
        for kind, comparison in study.comparisons.items()
    }
    path = folder / "pixel_error.npz"
    write_atomically(path, lambda file: np.savez(file, **maps))
    section.items.append(
        {
            "text": f"Mean |D - D_c| of every value: {path.name}, an array "
            "(candidates, levels, ...) for each kind of probe.",
            "file": path.name,
        }
    )
    return section
