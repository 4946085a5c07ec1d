"""Statistics and gains of a run's network, measured on its training images.

They are written to its workdir with what they were measured on: the checkpoint
(`samplers.model.Model.digest`), images, settings.  A network that is told classes
denoises every image with its own.
"""

import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.sampler_schema import SamplerConfig
from diffusion.atomic import write_atomically
from diffusion.data import Split, check_labels, split_of
from diffusion.denoiser import Denoiser
from diffusion.progress import Progress
from diffusion.training.record import read_record
from diffusion.versions import versions
from samplers.effective_variances import save_effective_variances
from samplers.gain_estimation import estimate_gains
from samplers.model import Model, digest_of, load_model
from samplers.model_files import read_gaussian
from samplers.model_statistics import save_model_statistics
from samplers.schedules import log_linear
from samplers.statistics_estimation import Passes, estimate_model_statistics

__all__ = [
    "MeasuredRun",
    "estimate_for_workdir",
    "estimate_gains_for_workdir",
    "open_run",
    "read_training_images",
]

_SECONDS_BETWEEN_SAVES = 20.0


class MeasuredRun(NamedTuple):
    """A run's network and the images that it is measured on.

    Attributes:
        model: The network.
        images: (M, *event), its training images.
        denoiser_of: What denoises the images of some numbers, (B,); None where that
            is the model's denoiser for all.
        about: Which run it is, plain values for JSON.
    """

    model: Model
    images: NDArray[Any]
    denoiser_of: Callable[[NDArray[np.intp]], Denoiser] | None
    about: dict[str, Any]


def read_training_images(workdir: str | Path) -> Split:
    """Return the images that a run was trained on, without its network.

    Args:
        workdir: A run of `diffusion.training.train`.

    Raises:
        InputError: If there is no run, or the images are not those it was trained on.
    """
    record = read_record(workdir)
    if record is None:
        raise InputError(f"{workdir} is no run; statistics are measured on one")
    split = split_of(record.config.data)
    if split.digest != record.data_digest:
        raise InputError(
            f"{record.config.data.name} now holds other images (sha256 "
            f"{split.digest[:12]}...) than {workdir} was trained on "
            f"({record.data_digest[:12]}...); put those back"
        )
    return split


def open_run(workdir: str | Path, *, step: int | None = None) -> MeasuredRun:
    """Load a run's network and its training images.

    Args:
        workdir: A run of `diffusion.training.train`.
        step: Checkpoint to use; None for the newest intact one.

    Raises:
        InputError: If there is no run, or the images are not those it was trained on.
    """
    split = read_training_images(workdir)
    model = load_model(workdir, step=step)
    check_labels(split, model.num_classes)
    labels = np.asarray(split.training.labels, np.int32)

    def denoiser_of(numbers: NDArray[np.intp]) -> Denoiser:
        return model.with_classes(jnp.asarray(labels[numbers]))

    about = {
        "workdir": str(workdir),
        "step": step,
        "model_sha256": model.digest,
        "data_digest": split.digest,
    }
    told = denoiser_of if model.num_classes else None
    return MeasuredRun(model, split.training.images, told, about)


def estimate_for_workdir(
    workdir: str | Path,
    out: str | Path,
    *,
    num_levels: int,
    num_samples: int,
    batch_size: int,
    sigma_range: tuple[float, float],
    seed: int,
    step: int | None = None,
) -> None:
    """Estimate l, s and b of a run's network on its training images.

    What is done is kept beside `out` every 20 s; the same call goes on from it,
    and ends with the same file.

    Args:
        workdir: A run of `diffusion.training.train`.
        out: The ``.npz`` to write.
        num_levels: Noise levels, uniform in log sigma.
        num_samples: Noised images per level.
        batch_size: Images at once.
        sigma_range: Lowest and highest level; cut to what the network knows.
        seed: Seed of images, noise and probes.
        step: Checkpoint to use; None for the newest intact one.

    Raises:
        InputError: If there is no run, or `out` exists.
        OSError: If something cannot be written.
    """
    out = _new_file(out)
    run = open_run(workdir, step=step)
    sigmas = _levels(run.model, num_levels, sigma_range)
    about = {
        **run.about,
        "num_levels": num_levels,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "seed": seed,
        "sigma_range": [float(sigmas[-1]), float(sigmas[0])],
    }
    partial = out.with_name(f".{out.name}.partial.npz")
    passes = _read_partial(partial, about, num_levels, run.images[0].size)
    done = sum(int(np.isfinite(p[:, 0]).sum()) for p in (passes.gains, passes.biases))
    progress = Progress(
        2 * num_levels, done=done, label="model statistics", unit="level"
    )

    saved = time.monotonic()

    def after_level(passes: Passes) -> None:
        nonlocal saved
        # All levels are written each time: at every one it would be most of the work.
        if time.monotonic() - saved >= _SECONDS_BETWEEN_SAVES:
            _write_partial(partial, about, passes)
            saved = time.monotonic()
        progress.advance(note=str(out))

    found = estimate_model_statistics(
        run.model.denoiser,
        run.images,
        sigmas,
        jax.random.key(seed),
        num_samples=num_samples,
        batch_size=batch_size,
        denoiser_of=run.denoiser_of,
        passes=passes,
        after_level=after_level,
    )
    progress.close()
    save_model_statistics(out, found.statistics, about={**about, **_environment()})
    partial.unlink(missing_ok=True)
    error = _rms(found.standard_error)
    print(f"statistics at {num_levels} noise levels, rms error of l {error:.2g}: {out}")


def estimate_gains_for_workdir(
    workdir: str | Path,
    out: str | Path,
    *,
    num_levels: int,
    num_images: int,
    batch_size: int,
    sigma_range: tuple[float, float],
    seed: int,
    rank: int = 128,
    step: int | None = None,
) -> None:
    """Measure the gains of a run's network along principal directions of its images.

    The directions are those of the workdir's ``gaussian.npz``.  It takes a minute;
    interrupted, it begins again.

    Args:
        workdir: A run of `diffusion.training.train`.
        out: The ``.npz`` to write.
        num_levels: Noise levels, uniform in log sigma.
        num_images: Noised images per level.
        batch_size: Images at once.
        sigma_range: Lowest and highest level; cut to what the network knows.
        seed: Seed of images and noise.
        rank: Directions that are measured one by one.
        step: Checkpoint to use; None for the newest intact one.

    Raises:
        InputError: If there is no run, it has no Gaussian, or `out` exists.
        OSError: If something cannot be written.
    """
    out = _new_file(out)
    run = open_run(workdir, step=step)
    gaussian = read_gaussian(SamplerConfig(), run.model, "measuring gains")
    sigmas = _levels(run.model, num_levels, sigma_range)
    progress = Progress(num_levels, label="gains", unit="level")
    found = estimate_gains(
        run.model.denoiser,
        gaussian,
        run.images,
        sigmas,
        jax.random.key(seed),
        rank=rank,
        num_images=num_images,
        batch_size=batch_size,
        denoiser_of=run.denoiser_of,
        after_level=lambda: progress.advance(note=str(out)),
    )
    progress.close()
    about = {
        **run.about,
        "gaussian_sha256": digest_of(gaussian),
        "num_levels": num_levels,
        "num_images": num_images,
        "batch_size": batch_size,
        "seed": seed,
        "sigma_range": [float(sigmas[-1]), float(sigmas[0])],
        **_environment(),
    }
    save_effective_variances(out, found.statistics, about=about)
    directions = found.statistics.coordinates.size - 1
    # Where the directions span everything there is no complement to be wrong about.
    measured = directions + (directions < run.images[0].size)
    error = _rms(found.standard_error[:, :measured])
    print(
        f"gains at {num_levels} noise levels in {directions} directions, rms standard "
        f"error {error:.2g}: {out}"
    )


def _new_file(path: str | Path) -> Path:
    if Path(path).exists():
        raise InputError(f"{path} exists already; delete it or choose another --out")
    return Path(path)


def _levels(
    model: Model, num_levels: int, sigma_range: tuple[float, float]
) -> NDArray[np.float64]:
    """Return noise levels inside a range, cut to what the network knows."""
    lowest = max(sigma_range[0], model.sigma_range[0])
    highest = min(sigma_range[1], model.sigma_range[1])
    return log_linear(num_levels, lowest, highest)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _environment() -> dict[str, Any]:
    return {"backend": jax.default_backend(), "versions": versions()}


def _write_partial(path: Path, about: dict[str, Any], passes: Passes) -> None:
    text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    write_atomically(path, lambda file: np.savez(file, about=text, **passes._asdict()))


def _read_partial(
    path: Path, about: dict[str, Any], num_levels: int, size: int
) -> Passes:
    """Return what an interrupted estimation has done."""
    if not path.exists():
        return Passes(*np.full((4, num_levels, size), np.nan))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("about", *Passes._fields)}
        told = json.loads(arrays.pop("about").tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}); delete it") from error
    different = [name for name in about if told.get(name) != about[name]]
    if different:
        name = different[0]
        raise InputError(
            f"{path} was begun with {name} {told.get(name)!r}, now {about[name]!r}; "
            "give the same or delete it"
        )
    return Passes(**arrays)
