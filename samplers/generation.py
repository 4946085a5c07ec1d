"""From a model to files of samples: `SamplerConfig` becomes solver, grid and start.

The model is the network of a workdir, or a closed form in a file.

Writes ``samples.npy`` (N, *event) float32 in data units, one PNG per image where the
samples are images, and, last of all, ``record.json`` with everything that produced
them.  A folder with a record is complete.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.errors import InputError, choice_error
from configs.schema import SamplerConfig, to_dict
from diffusion.adapters import VPNoiseDenoiser
from diffusion.atomic import write_atomically
from diffusion.closed_form import GaussianDenoiser, load_closed_form, load_gaussian
from diffusion.denoiser import Denoiser
from diffusion.neural import NeuralDenoiser
from diffusion.progress import Progress
from diffusion.training import load_denoiser
from diffusion.training.record import Record, read_record
from diffusion.versions import versions
from samplers.euler import Euler
from samplers.heun import Heun
from samplers.sampling import sample_blocks
from samplers.schedules import karras, log_linear, skip_above
from samplers.solver import Solver
from samplers.start import Prior, Start, Teleport

__all__ = ["Model", "Sampler", "build_sampler", "generate_samples", "load_model"]

_SOLVERS = {"euler": Euler, "heun": Heun}


class Sampler(NamedTuple):
    """What `sample` needs beside a denoiser.

    Attributes:
        solver: How to move along the grid.
        sigmas: (L,) the grid, after any skip.
        start: How noise becomes x at its first point.
    """

    solver: Solver
    sigmas: NDArray[np.float64]
    start: Start


class Model(NamedTuple):
    """What to sample from.

    Attributes:
        denoiser: A network or a closed form.
        event_shape: Shape of one sample.
        gaussian: What to teleport with where the settings name nothing: a file, or the
            model itself; None if there is none.
        sigma_range: Lowest and highest noise level that the model knows.
    """

    denoiser: Denoiser
    event_shape: tuple[int, ...]
    gaussian: Path | GaussianDenoiser | None
    sigma_range: tuple[float, float] = (0.0, math.inf)


def load_model(
    path: str | Path, *, step: int | None = None, condition: Sequence[float] = ()
) -> Model:
    """Load a network from its workdir, or a closed form from its file.

    Args:
        path: A run of `diffusion.training.train`, or an ``.npz`` of
            `diffusion.fit_closed_form`.
        step: Checkpoint to use; None for the newest intact one.
        condition: Augmentation condition of all samples; none for images as they are.

    Raises:
        InputError: If there is neither, or it has no input for such a condition.
    """
    if Path(path).is_file():
        if step is not None:
            raise InputError(f"{path} has no steps; leave out --step {step}")
        if condition:
            raise InputError(f"{path} is a closed form; leave out --condition")
        found = load_closed_form(path)
        model = found.denoiser
        own = model if isinstance(model, GaussianDenoiser) else None
        return Model(model, found.event_shape, own)
    denoiser = load_denoiser(path, step=step)
    record = read_record(path)
    assert record is not None, "load_denoiser has read it"
    if condition:
        denoiser = _conditioned(denoiser, record, condition)
    gaussian = Path(path) / "gaussian.npz"
    return Model(denoiser, record.event_shape, gaussian, _sigma_range(denoiser))


def _conditioned(
    denoiser: NeuralDenoiser | VPNoiseDenoiser,
    record: Record,
    condition: Sequence[float],
) -> NeuralDenoiser:
    """Return the denoiser of transformed images."""
    size = getattr(record.config.network, "augment_dim", 0)
    if not isinstance(denoiser, NeuralDenoiser) or size == 0:
        raise InputError(
            "this network has no input for an augmentation condition; leave out "
            "--condition"
        )
    if len(condition) != size or not np.isfinite(condition).all():
        raise InputError(
            f"--condition has {len(condition)} numbers; this network takes {size} "
            "finite ones"
        )
    told = record.config.augmentation
    if told.mode != "none" and not told.condition:
        raise InputError(
            "this network was trained without being told the augmentation; leave out "
            "--condition"
        )
    values = jnp.asarray(condition, jnp.float32)
    return dataclasses.replace(denoiser, condition=values)


def _sigma_range(denoiser: NeuralDenoiser | VPNoiseDenoiser) -> tuple[float, float]:
    if isinstance(denoiser, NeuralDenoiser):
        rule = denoiser.preconditioning
        return rule.sigma_min, rule.sigma_max
    sigmas = np.asarray(getattr(denoiser.schedule, "sigmas", [0.0, math.inf]))
    return float(sigmas[0]), float(sigmas[-1])


def build_sampler(config: SamplerConfig, model: Model) -> Sampler:
    """Return the sampler of a configuration.

    A grid that leaves the noise levels that the model knows is brought into them.

    Args:
        config: The settings.
        model: What to sample from.

    Raises:
        InputError: If a setting is unknown, or the Gaussian is asked for and missing or
            of other samples.
    """
    if config.solver not in _SOLVERS:
        raise choice_error("solver", config.solver, _SOLVERS)
    lowest, highest = model.sigma_range
    sigma_min = max(config.sigma_min, lowest)
    sigma_max = min(config.sigma_max, highest)
    if sigma_min >= sigma_max:
        raise InputError(
            f"the grid from {config.sigma_max:g} to {config.sigma_min:g} lies outside "
            f"the noise levels {lowest:g} to {highest:g} that the model knows"
        )
    ends = config.num_points, sigma_min, sigma_max
    sigmas = log_linear(*ends)
    if config.schedule == "karras":
        sigmas = karras(*ends, config.rho)
    solver = _SOLVERS[config.solver]()
    if config.teleport is None:
        return Sampler(solver, sigmas, Prior())
    gaussian = config.gaussian or model.gaussian
    if gaussian is None:
        raise InputError(
            "teleporting needs a Gaussian, and this model is none; name one of the "
            "same images with --sampler.gaussian FILE"
        )
    if not isinstance(gaussian, GaussianDenoiser):
        gaussian = load_gaussian(gaussian, event_shape=model.event_shape)
    start = Teleport(gaussian, sigma_max)
    return Sampler(solver, skip_above(sigmas, config.teleport), start)


def generate_samples(
    workdir: str | Path,
    outdir: str | Path,
    config: SamplerConfig,
    *,
    num_samples: int,
    seed: int,
    block_size: int = 256,
    step: int | None = None,
    condition: Sequence[float] = (),
) -> None:
    """Draw samples from a model and write them to a folder.

    Args:
        workdir: A run of `diffusion.training.train`, or the file of a closed form.
        outdir: Where to write; must not hold anything yet.
        config: Solver, grid and start.
        num_samples: How many; sample i depends on the seed and on i alone.
        seed: Seed of the noise.
        block_size: Samples computed at once.
        step: Checkpoint to use; None for the newest intact one.
        condition: Augmentation condition of all samples, for transformed images.

    Raises:
        InputError: If there is no run, a setting does not fit, or outdir is not empty.
        OSError: If something cannot be written.
    """
    outdir = Path(outdir)
    if outdir.exists() and (not outdir.is_dir() or any(outdir.iterdir())):
        raise InputError(
            f"{outdir} exists already; choose another --outdir or delete it"
        )
    if condition and config.teleport is not None:
        raise InputError(
            "the Gaussian is of images as they are, not of transformed ones; leave out "
            "--sampler.teleport or --condition"
        )
    model = load_model(workdir, step=step, condition=condition)
    sampler = build_sampler(config, model)
    shape = (num_samples, *model.event_shape)
    started = time.monotonic()
    blocks = sample_blocks(
        model.denoiser,
        jax.random.key(seed),
        shape,
        sampler.sigmas,
        block_size=block_size,
        solver=sampler.solver,
        start=sampler.start,
    )
    digest = _write_samples(outdir, shape, blocks)
    seconds = time.monotonic() - started
    nfe = sampler.solver.nfe(len(sampler.sigmas))
    _write_json(
        outdir / "record.json",
        {
            "workdir": str(workdir),
            "step": step,
            "condition": list(condition),
            "sampler": to_dict(config),
            "sigmas": sampler.sigmas.tolist(),
            "nfe": nfe,
            "num_samples": num_samples,
            "block_size": block_size,
            "seed": seed,
            "seconds_with_compilation": seconds,
            "sha256": digest,
            "backend": jax.default_backend(),
            "versions": versions(),
        },
    )
    print(f"{num_samples} samples, {nfe} network calls each, {seconds:.1f} s: {outdir}")


def _write_samples(
    outdir: Path, shape: tuple[int, ...], blocks: Iterator[NDArray[Any]]
) -> str:
    """Write blocks as they come; return the sha256 of all samples' bytes."""
    outdir.mkdir(parents=True, exist_ok=True)
    partial = outdir / ".samples.npy"
    samples = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
    progress = Progress(shape[0], label="sampling", unit="sample")
    digest = hashlib.sha256()
    done = 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise InputError(
                f"samples from number {done} on are not finite; the checkpoint or the "
                "noise grid does not fit"
            )
        samples[done : done + len(block)] = block
        digest.update(np.ascontiguousarray(block).tobytes())
        _write_images(outdir, block, done)
        done += len(block)
        progress.advance(len(block), note=str(outdir))
    progress.close()
    samples.flush()
    partial.rename(outdir / "samples.npy")
    return digest.hexdigest()


def _write_images(outdir: Path, block: NDArray[Any], first: int) -> None:
    """Write (n, H, W, 1 or 3) samples as PNG files; nothing for other shapes."""
    if block.ndim != 4 or block.shape[-1] not in (1, 3):
        return
    pixels = np.clip(np.round((block + 1) * 127.5), 0, 255).astype(np.uint8)
    for index, image in enumerate(pixels, start=first):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        write_atomically(
            outdir / f"{index:06d}.png", lambda f, p=picture: p.save(f, format="png")
        )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
