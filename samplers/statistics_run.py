"""Model statistics of a run, written to its workdir; an interrupted run goes on."""

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.errors import InputError
from diffusion.atomic import write_atomically
from diffusion.data import split_of
from diffusion.progress import Progress
from diffusion.training.record import read_record
from diffusion.versions import versions
from samplers.model import load_model
from samplers.model_statistics import save_model_statistics
from samplers.schedules import log_linear
from samplers.statistics_estimation import Passes, estimate_model_statistics

__all__ = ["estimate_for_workdir"]

_SECONDS_BETWEEN_SAVES = 20.0


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
        InputError: If there is no run, it is told classes, or `out` exists.
        OSError: If something cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists already; delete it or choose another --out")
    model = load_model(workdir, step=step)
    record = read_record(workdir)
    if record is None:
        raise InputError(f"{workdir} is no run; statistics are estimated on one")
    if model.num_classes:
        raise InputError(
            f"{workdir} is told classes; statistics are estimated on unconditional "
            "networks (leave out the file: the Gaussian's closed form serves)"
        )
    split = split_of(record.config.data)
    images = split.training.images
    lowest, highest = (
        max(sigma_range[0], model.sigma_range[0]),
        min(sigma_range[1], model.sigma_range[1]),
    )
    sigmas = log_linear(num_levels, lowest, highest)
    about = {
        "workdir": str(workdir),
        "step": step,
        "data_digest": record.data_digest,
        "num_levels": num_levels,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "seed": seed,
        "sigma_range": [lowest, highest],
    }
    partial = out.with_name(f".{out.name}.partial.npz")
    passes = _read_partial(partial, about, num_levels, images[0].size)
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
        model.denoiser,
        images,
        sigmas,
        jax.random.key(seed),
        num_samples=num_samples,
        batch_size=batch_size,
        passes=passes,
        after_level=after_level,
    )
    progress.close()
    save_model_statistics(out, found.statistics, about={**about, **_environment()})
    partial.unlink(missing_ok=True)
    error = float(np.sqrt(np.mean(found.standard_error**2)))
    print(f"statistics at {num_levels} noise levels, rms error of l {error:.2g}: {out}")


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
