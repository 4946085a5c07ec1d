"""The report on one run: samplers, explained variance, losses.

Everything is computed from the workdir.  Figures, ``samples.npz`` and ``report.html``
are written first and ``metrics.json`` last: a workdir that holds it is complete.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from analysis.comparison.run import compare_run
from analysis.plots import (
    plot_explained_variance,
    plot_loss_per_bin,
    plot_losses,
    plot_sample_grid,
    save_figure,
)
from analysis.report import Report
from analysis.score_comparison import Comparison
from analysis.teleportation import StartComparison, TimedSamples, compare_starts
from configs.errors import InputError
from configs.schema import ExperimentConfig, to_dict
from diffusion.atomic import write_atomically, write_json
from diffusion.closed_form import load_gaussian
from diffusion.training import load_denoiser, train
from diffusion.training.log import finite_or_none, read_metrics
from diffusion.training.record import read_record
from diffusion.versions import versions
from samplers import karras

__all__ = ["ReportSettings", "is_complete", "run_demo", "write_run_report"]

_SHOWN = 60


class ReportSettings(NamedTuple):
    """What the report computes.

    Attributes:
        num_samples: Samples per sampler.
        num_points: Points of the whole Karras grid.
        skip_points: Grid points that the teleport leaves out.
        sigmas: Noise levels of the score comparison, data units.
        seed: Seed of the samplers' noise and of the comparison's.
    """

    num_samples: int = 128
    num_points: int = 18
    skip_points: int = 6
    sigmas: tuple[float, ...] = (
        *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
        *(5.0, 7.0, 10.0, 20.0, 40.0, 80.0),
    )
    seed: int = 0


def is_complete(
    workdir: str | Path, config: ExperimentConfig, settings: ReportSettings
) -> bool:
    """Return whether the workdir holds the report of just these settings."""
    workdir = Path(workdir)
    try:
        found = json.loads((workdir / "metrics.json").read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return found == _settings(config, settings) and (workdir / "report.html").is_file()


def write_run_report(workdir: str | Path, settings: ReportSettings) -> dict[str, Any]:
    """Compute everything and write report, figures, samples and metrics.

    Args:
        workdir: A run of `diffusion.training.train` on a built-in image set.
        settings: What to compute.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: If there is no run, or its samples are not images.
        OSError: If something cannot be written.
    """
    workdir = Path(workdir)
    denoiser = load_denoiser(workdir)
    record = read_record(workdir)
    assert record is not None, "load_denoiser has read it"
    if len(record.event_shape) != 3:
        raise InputError(
            f"{workdir} holds samples of shape {record.event_shape}; the report draws "
            "images, (H, W, C)"
        )
    gaussian = load_gaussian(workdir / "gaussian.npz")
    _say("sampling: whole grid, teleported, control, Gaussian")
    starts = compare_starts(
        denoiser,
        gaussian,
        jax.random.key(settings.seed),
        (settings.num_samples, *record.event_shape),
        karras(settings.num_points),
        skip_points=settings.skip_points,
    )
    _say(f"comparing scores at {len(settings.sigmas)} noise levels")
    comparison = compare_run(workdir, settings.sigmas, seed=settings.seed)
    rows = read_metrics(workdir)
    metrics = _metrics(record.config, settings, starts, comparison, rows)
    _write_samples(workdir / "samples.npz", starts)
    _write_page(workdir, metrics, starts, comparison, rows)
    write_json(workdir / "metrics.json", metrics)
    return metrics


def run_demo(
    config: ExperimentConfig, workdir: str | Path, settings: ReportSettings
) -> None:
    """Train, or resume, and write the report unless it is there already.

    Args:
        config: The experiment, on a built-in image set.
        workdir: Folder of the run.
        settings: What the report computes.

    Raises:
        InputError: If the workdir belongs to another experiment.
        OSError: If something cannot be written.
    """
    workdir = Path(workdir)
    page = workdir / "report.html"
    train(config, workdir)
    if is_complete(workdir, config, settings):
        _say(f"done already: {page}. To start afresh delete {workdir}.")
        return
    metrics = write_run_report(workdir, settings)
    _say(_summary(metrics))
    _say(f"report: {page}")


def _say(text: str) -> None:
    print(text, flush=True)


def _settings(config: ExperimentConfig, settings: ReportSettings) -> dict[str, Any]:
    report = {**settings._asdict(), "sigmas": list(settings.sigmas)}
    return {"experiment": to_dict(config), "report": report}


def _metrics(
    config: ExperimentConfig,
    settings: ReportSettings,
    starts: StartComparison,
    comparison: Comparison,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    samplers = {
        name: {"nfe": timed.nfe, "seconds": timed.seconds}
        for name, timed in _timed_samples(starts).items()
    }
    return {
        "settings": _settings(config, settings),
        "versions": versions(),
        "backend": jax.default_backend(),
        "samplers": samplers,
        "sigma_skip": starts.sigma_skip,
        "teleported_rms": finite_or_none(starts.teleported_rms),
        "control_rms": finite_or_none(starts.control_rms),
        "comparison": {
            "num_probes": comparison.num_probes,
            "sigmas": comparison.sigmas.tolist(),
            "score": _by_candidate(comparison, comparison.score.mean),
            "denoised": _by_candidate(comparison, comparison.denoised.mean),
            "squared_error": _by_candidate(comparison, comparison.squared_error.mean),
        },
        "training": rows[-1],
    }


def _timed_samples(starts: StartComparison) -> dict[str, TimedSamples]:
    return {
        "plain": starts.plain,
        "teleported": starts.teleported,
        "control": starts.control,
        "gaussian": starts.gaussian,
    }


def _by_candidate(comparison: Comparison, values: np.ndarray) -> dict[str, Any]:
    return {
        name: [finite_or_none(v) for v in row]
        for name, row in zip(comparison.names, values, strict=True)
    }


def _write_samples(path: Path, starts: StartComparison) -> None:
    arrays: dict[str, Any] = {
        name: timed.x for name, timed in _timed_samples(starts).items()
    }
    write_atomically(path, lambda file: np.savez(file, **arrays))


def _write_page(
    workdir: Path,
    metrics: Mapping[str, Any],
    starts: StartComparison,
    comparison: Comparison,
    rows: list[dict[str, Any]],
) -> None:
    report = Report(f"Denoising score network on {metrics_name(metrics)}")
    report.paragraph(_summary(metrics))
    report.heading("Samplers, from the same noise")
    report.table(*_sampler_table(metrics))
    for name, caption in _grid_captions(metrics).items():
        images = _timed_samples(starts)[name].x[:_SHOWN]
        _add(report, workdir, f"samples_{name}", plot_sample_grid(images), caption)
    report.heading("How much of the network a Gaussian explains")
    _add(
        report,
        workdir,
        "explained_variance",
        plot_explained_variance(comparison),
        f"{comparison.num_probes} noised held-out images at each sigma. Left: "
        "1 - |s - s_G|^2/|s|^2 of the score. Right: 1 - |D - D_G|^2/|D - mean|^2 of "
        "the denoised image; a model that knows the mean alone is at 0. Bands: two "
        "standard errors.",
    )
    report.heading("Training")
    _add(
        report,
        workdir,
        "losses",
        plot_losses(rows),
        "Weighted denoising loss; training and held-out images see the same noise.",
    )
    _add(
        report,
        workdir,
        "loss_per_sigma",
        plot_loss_per_bin(rows),
        "The same per bin of sigma: solid for training, dashed for held-out images.",
    )
    report.heading("Settings that produced this page")
    shown = {key: metrics[key] for key in ("settings", "versions", "backend")}
    report.preformatted(json.dumps(shown, indent=2))
    report.write(workdir / "report.html")


def metrics_name(metrics: Mapping[str, Any]) -> str:
    """Return the name of the data set behind a report's metrics."""
    return metrics["settings"]["experiment"]["data"]["name"]


def _add(report: Report, workdir: Path, name: str, figure: Figure, text: str) -> None:
    report.figure(save_figure(figure, workdir / "figures" / f"{name}.png"), text)


def _summary(metrics: Mapping[str, Any]) -> str:
    plain, short = (metrics["samplers"][name] for name in ("plain", "teleported"))
    saved = 1 - short["nfe"] / plain["nfe"]
    return (
        f"Teleportation starts at sigma = {metrics['sigma_skip']:.4g} and takes "
        f"{short['nfe']} network calls instead of {plain['nfe']} ({saved:.0%} fewer). "
        f"Its samples differ from the whole grid's by {metrics['teleported_rms']:.4f} "
        "rms in data units (pixels lie in [-1, 1]); the control, the same short grid "
        f"started at sigma * noise, by {metrics['control_rms']:.4f}, "
        f"{metrics['control_rms'] / max(metrics['teleported_rms'], 1e-30):.1f} times "
        "as far."
    )


def _sampler_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    count = metrics["settings"]["report"]["num_samples"]
    distance = {
        "teleported": metrics["teleported_rms"],
        "control": metrics["control_rms"],
    }
    rows = []
    for name, cost in metrics["samplers"].items():
        model = "Gaussian" if name == "gaussian" else "network"
        gap = f"{distance[name]:.4f}" if name in distance else "-"
        rows.append([name, f"{cost['nfe']} ({model})", f"{cost['seconds']:.3f}", gap])
    header = ["start", "NFE", f"seconds for {count} samples", "rms from plain"]
    return header, rows


def _grid_captions(metrics: Mapping[str, Any]) -> dict[str, str]:
    nfe = {name: cost["nfe"] for name, cost in metrics["samplers"].items()}
    skip = metrics["sigma_skip"]
    return {
        "plain": f"Network, whole grid from sigma = 80: {nfe['plain']} calls.",
        "teleported": f"Network, teleported to sigma = {skip:.4g}: "
        f"{nfe['teleported']} calls, the same noise.",
        "gaussian": "The Gaussian of the training images alone, the same noise: no "
        "network call.",
    }
