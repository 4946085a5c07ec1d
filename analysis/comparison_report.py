"""A network against closed forms: table, figure and page in ``WORKDIR/comparison``."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from analysis.candidates import gaussian_candidates, load_candidates
from analysis.plots import plot_explained_variance, save_figure
from analysis.report import Report
from analysis.score_comparison import Comparison, compare_denoisers
from diffusion.atomic import write_atomically
from diffusion.closed_form import load_gaussian
from diffusion.data import Split, split_of
from diffusion.training import load_denoiser
from diffusion.training.record import read_record

__all__ = ["compare_run", "write_comparison"]

_HEADER = (
    "candidate",
    "sigma",
    "score",
    "score_standard_error",
    "denoised",
    "denoised_standard_error",
    "squared_error",
)


def compare_run(
    workdir: str | Path,
    sigmas: Sequence[float],
    *,
    seed: int = 0,
    step: int | None = None,
    candidates: Sequence[str | Path] = (),
) -> Comparison:
    """Compare a run's network with the closed forms of its training images.

    The probes are the held-out images, or the training images where none are held out.

    Args:
        workdir: A run of `diffusion.training.train`.
        sigmas: Noise levels, data units.
        seed: Seed of the noise.
        step: Checkpoint to use; None for the newest intact one.
        candidates: Files of further closed forms.

    Returns:
        The comparison with the Gaussian, the isotropic and the mean-isotropic model,
        and the candidates.

    Raises:
        InputError: If there is no run, no such checkpoint, or a file does not match.
    """
    denoiser = load_denoiser(workdir, step=step)
    gaussian = load_gaussian(Path(workdir) / "gaussian.npz")
    split = _split_of(workdir)
    held_out = split.held_out.images
    return compare_denoisers(
        denoiser,
        {
            **gaussian_candidates(gaussian),
            **load_candidates(candidates, gaussian.mean.shape),
        },
        held_out if len(held_out) else split.training.images,
        np.asarray(sigmas),
        jax.random.key(seed),
        mean=gaussian.mean,
    )


def _split_of(workdir: str | Path) -> Split:
    record = read_record(workdir)
    assert record is not None, "load_denoiser has read it"
    return split_of(record.config.data)


def write_comparison(
    workdir: str | Path,
    sigmas: Sequence[float],
    *,
    seed: int = 0,
    step: int | None = None,
    candidates: Sequence[str | Path] = (),
) -> None:
    """Write ``comparison.csv``, ``explained_variance.png`` and ``comparison.html``.

    Args:
        workdir: A run of `diffusion.training.train`.
        sigmas: Noise levels, data units.
        seed: Seed of the noise.
        step: Checkpoint to use; None for the newest intact one.
        candidates: Files of further closed forms.

    Raises:
        InputError: If there is no run, no such checkpoint, or a file does not match.
        OSError: If something cannot be written.
    """
    comparison = compare_run(
        workdir, sigmas, seed=seed, step=step, candidates=candidates
    )
    folder = Path(workdir) / "comparison"
    rows = _rows(comparison)
    text = io.StringIO()
    csv.writer(text).writerows([_HEADER, *rows])
    write_atomically(
        folder / "comparison.csv", lambda file: file.write(text.getvalue().encode())
    )
    png = save_figure(
        plot_explained_variance(comparison), folder / "explained_variance.png"
    )
    report = Report(f"The network of {workdir} against closed forms")
    report.paragraph(
        f"{comparison.num_probes} noised images at each sigma; seed {seed}; "
        f"checkpoint {'newest' if step is None else step}."
    )
    report.figure(png, "Explained variance of score and centred denoised image.")
    report.table(_HEADER, [[_short(cell) for cell in row] for row in rows])
    report.write(folder / "comparison.html")
    print(f"comparison: {folder / 'comparison.html'}")


def _rows(comparison: Comparison) -> list[tuple[str | float, ...]]:
    return [
        (
            name,
            float(sigma),
            float(comparison.score.mean[i, j]),
            float(comparison.score.standard_error[i, j]),
            float(comparison.denoised.mean[i, j]),
            float(comparison.denoised.standard_error[i, j]),
            float(comparison.squared_error.mean[i, j]),
        )
        for i, name in enumerate(comparison.names)
        for j, sigma in enumerate(comparison.sigmas)
    ]


def _short(cell: str | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:.4g}"
