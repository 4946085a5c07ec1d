"""Samplers on a trained network, against its own fine solution.

Command: python -m benchmarks.network_sampling WORKDIR

The combinations that were best on the mixture (`benchmarks.error_vs_nfe`, second part)
are taken as they are, published ones and ours; beside them stand solvers without a
search, the automatic skip, and the sampler that `samplers.tune` chooses for this run on
a mixture of its training images.  The truth is the network's own solution on 500 points
from the same 32 noises; 250 points say how far it has converged.

A network has detail at every noise level, a mixture has none below its residual
variance: what ending the grid early costs is measured apart, as the error and the
energy of the finest level of a Laplacian pyramid by last sigma.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.metrics.pyramid import laplacian_pyramid
from analysis.plots import save_figure
from benchmarks.results_file import RESULTS, write_result
from configs.errors import InputError
from configs.sampler_schema import SamplerConfig
from diffusion.progress import Progress
from diffusion.training.record import read_record
from samplers.automatic_skip import resolve_skip
from samplers.building import build_sampler
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.model import Model, load_model
from samplers.sampling import sample
from samplers.schedules import log_linear
from samplers.statistics_run import estimate_gains_for_workdir
from samplers.tuning import describe
from samplers.tuning_run import tune

CALLS = (5, 6, 8, 10)
LAST_SIGMAS = (0.002, 0.02, 0.05, 0.1, 0.2)
SEED = 11
NUM_IMAGES = 32
NUM_VERIFIED = 8
FINE_POINTS = 500
_SHOWN = 6


class Judge(NamedTuple):
    """The network and its fine solutions, (B, *event), from the noises of one key."""

    model: Model
    exact: NDArray[np.float32]

    def draw(self, config: SamplerConfig) -> NDArray[np.float32]:
        """Return what a sampler makes of the same noises."""
        sampler = build_sampler(config, self.model)
        return draw(self.model, sampler.sigmas, sampler.solver, sampler.start)

    def errors(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """Return rms errors, of whole images and of their finest detail."""
        fine, exact = (laplacian_pyramid(x, 2)[0] for x in (samples, self.exact))
        return {
            "rms": _rms(samples - self.exact),
            "fine_rms": _rms(fine - exact),
            "fine_energy": float(np.mean(fine**2) / np.mean(exact**2)),
        }


def draw(model: Model, sigmas: Any, solver: Any, start: Any) -> NDArray[np.float32]:
    """Draw 32 images."""
    shape = (NUM_IMAGES, *model.event_shape)
    key = jax.random.key(SEED)
    found = sample(model.denoiser, key, shape, sigmas, solver=solver, start=start)
    return np.asarray(found.x)


def published_config(row: dict[str, Any]) -> SamplerConfig:
    """Return the settings of a row of the mixture's benchmark.

    >>> published_config({"solver": "UniPC-3 bh2, order kept", "family": "teleport",
    ...     "sigma_skip": 20.0, "schedule": "Karras 5", "last_sigma": 0.02,
    ...     "calls": 8}).lower_order_final
    False
    """
    name, _, rest = row["solver"].partition(", ")
    ours = name.startswith("residual")
    words = name.replace("-", " ").split()
    if ours:
        solver: dict[str, Any] = {
            "solver": "residual_exponential",
            "order": int(words[1]),
            "lower_order_final": False,
        }
    elif words[0] == "UniPC":
        solver = {"solver": "unipc", "order": int(words[1]), "variant": words[2]}
    else:
        order = int(words[1].removesuffix("M"))
        solver = {"solver": "dpm_solver_pp", "order": order, "variant": words[2]}
    if rest == "order kept":
        solver["lower_order_final"] = False
    kind, *rho = row["schedule"].split()
    grid: dict[str, Any] = {"schedule": "log_linear"}
    if kind == "Karras":
        grid = {"schedule": "karras", "rho": float(rho[0])}
    start: dict[str, Any] = {}
    if row["family"] != "none":
        start = {"teleport": row["sigma_skip"], "skip_mode": "re-spread"}
    return SamplerConfig(
        **solver, **grid, **start, sigma_min=row["last_sigma"], nfe=row["calls"]
    )


def plain_configs(calls: int) -> dict[str, SamplerConfig]:
    """Return what is used without a search."""
    log = {"schedule": "log_linear", "nfe": calls}
    return {
        "DPM-Solver++ 2M": SamplerConfig(solver="dpm_solver_pp", **log),
        "UniPC-3": SamplerConfig(solver="unipc", **log),
    }


def gaussian_configs(calls: int, workdir: Path) -> dict[str, SamplerConfig]:
    """Return ours with the Gaussian's own variances, without a search."""
    same = {
        "gaussian": str(workdir / "gaussian.npz"),
        "order": 2,
        "schedule": "log_linear",
        "sigma_min": 0.05,
        "teleport": 10.0 if calls <= 6 else 40.0,
        "skip_mode": "re-spread",
        "nfe": calls,
    }
    residual = {"solver": "residual_exponential", "lower_order_final": False, **same}
    return {
        "DPM-Solver-v3, Gaussian": SamplerConfig(solver="dpm_solver_v3", **same),
        "residual, Gaussian of rank 128": SamplerConfig(**residual),
        "residual, Gaussian of rank 512": SamplerConfig(**residual, rank=512),
    }


def automatic_configs(
    calls: int, model: Model, workdir: Path
) -> dict[str, SamplerConfig]:
    """Return the automatic skip for a published solver and for ours."""
    same = {
        "schedule": "log_linear",
        "nfe": calls,
        "teleport": "auto",
        "skip_mode": "re-spread",
        "lower_order_final": False,
    }
    return {
        f"auto, {solver}, to {last:g}": resolve_skip(
            SamplerConfig(solver=solver, sigma_min=last, **same), model, workdir
        )
        for solver in ("dpm_solver_pp", "residual_exponential")
        for last in (0.002, 0.05)
    }


def configs_of(calls: int, model: Model, workdir: Path) -> dict[str, SamplerConfig]:
    """Return everything that is tried with so many calls."""
    path = RESULTS / "error_vs_nfe_ours.json"
    if not path.is_file():
        raise InputError(
            f"there is no {path}; run python -m benchmarks.error_vs_nfe --part 2 first"
        )
    chosen = json.loads(path.read_text())["figures"]
    found = plain_configs(calls)
    for name, rows in chosen["best"].items():
        row = next(row for row in rows if row["calls"] == calls)
        if name == "published":
            found["best published on the mixture"] = published_config(row)
        elif name == "fitted 128, gains":
            found["ours on the mixture"] = published_config(row)
    found |= gaussian_configs(calls, workdir)
    found |= automatic_configs(calls, model, workdir)
    found["tuned"] = tune(workdir, calls, num_verified=NUM_VERIFIED)
    return found


def run(workdir: Path) -> tuple[dict[str, Any], Figure]:
    """Draw, compare; return everything that is written, and the figure."""
    if not (workdir / "gains.npz").is_file():
        estimate_gains_for_workdir(
            workdir,
            workdir / "gains.npz",
            num_levels=20,
            num_images=512,
            batch_size=64,
            sigma_range=(0.002, 80.0),
            seed=0,
        )
    model = load_model(workdir)
    record = read_record(workdir)
    assert record is not None, "load_model has read it"
    solver = DPMSolverPP(3, "corrected", lower_order_final=False)
    ends = max(0.002, model.sigma_range[0]), min(80.0, model.sigma_range[1])
    start = build_sampler(SamplerConfig(solver="euler"), model).start
    exact, half = (
        draw(model, log_linear(points, *ends), solver, start)
        for points in (FINE_POINTS, FINE_POINTS // 2)
    )
    judge = Judge(model, exact)
    table: dict[str, Any] = {}
    for calls in CALLS:
        configs = configs_of(calls, model, workdir)
        progress = Progress(len(configs), label=f"{calls} calls", unit="sampler")
        for name, config in configs.items():
            found = judge.errors(judge.draw(config))
            row = {"sampler": describe(config), **found}
            table.setdefault(name, {})[str(calls)] = row
            progress.advance(note=name)
        progress.close()
    tuned = {
        str(calls): json.loads((workdir / f"tuned-{calls}.json").read_text())
        for calls in CALLS
    }
    detail, figure = measure_detail(judge)
    figures = {
        "network": {
            "type": type(record.config.network).__name__,
            "images": record.config.data.name,
            "trained_on_images": record.config.training.num_steps
            * record.config.training.batch_size,
        },
        "samples": NUM_IMAGES,
        "fine_points": FINE_POINTS,
        "rms_of_fine_solution": _rms(exact),
        "rms_change_from_half_as_many_points": _rms(exact - half),
        "by_sampler_and_calls": table,
        "tuned": {
            calls: {name: values[name] for name in ("best", "plain", "surrogate")}
            for calls, values in tuned.items()
        },
        "last_sigma": detail,
    }
    return figures, figure


def measure_detail(judge: Judge) -> tuple[dict[str, Any], Figure]:
    """Vary where the grid ends, for a published solver and ours at 6 and 10 calls."""
    found: dict[str, Any] = {}
    shown: dict[str, NDArray[np.float32]] = {"500 points": judge.exact}
    for solver in ("dpm_solver_pp", "residual_exponential"):
        for calls in (6, 10):
            rows = []
            for last in LAST_SIGMAS:
                config = SamplerConfig(
                    solver=solver,
                    schedule="log_linear",
                    lower_order_final=False,
                    nfe=calls,
                    teleport=20.0,
                    skip_mode="re-spread",
                    sigma_min=last,
                )
                samples = judge.draw(config)
                rows.append({"last_sigma": last, **judge.errors(samples)})
                if calls == 10 and solver == "residual_exponential":
                    shown[f"to {last:g}"] = samples
            found[f"{solver}, {calls} calls"] = rows
    return found, _show(shown)


def _show(shown: dict[str, NDArray[np.float32]]) -> Figure:
    figure = Figure(figsize=(1.3 * _SHOWN + 1, 1.3 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), _SHOWN)
    for (name, images), row in zip(shown.items(), grid, strict=True):
        for image, axes in zip(images, row, strict=False):
            pixels = np.clip((image + 1) / 2, 0, 1)
            axes.imshow(pixels.squeeze(), cmap="gray", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=9)
    figure.suptitle("ours, 10 calls: where the grid ends", fontsize=10)
    return figure


def _rms(values: NDArray[Any]) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(values))))


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    options = parser.parse_args(arguments)
    figures, figure = run(options.workdir)
    write_result(
        "network_sampling", "python -m benchmarks.network_sampling WORKDIR", figures
    )
    save_figure(figure, RESULTS / "figures" / "network_sampling_last_sigma.png")


if __name__ == "__main__":
    main()
