"""From a model to files of samples, resumable.

Blocks of samples (`samplers.drawing`) are written as they come
(`samplers.sample_files`).  A folder with ``record.json``, which is written last, is
complete; what is unfinished lies in ``.partial`` with a journal
(`samplers.partial_files`), and the same command goes on after the last whole block.
The files are then byte for byte those of a command that was not interrupted; of
``record.json`` only the seconds differ.
"""

import dataclasses
import json
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from configs.errors import InputError, InputWarning
from configs.sampler_schema import GenerationConfig
from configs.schema import to_dict
from diffusion.atomic import write_json
from diffusion.progress import Progress
from diffusion.versions import versions
from samplers.automatic_skip import resolve_skip
from samplers.building import build_sampler
from samplers.drawing import Drawing, draw_blocks
from samplers.model import Model, digest_of, load_guided_model
from samplers.partial_files import PartialFiles, open_partial_files
from samplers.sample_files import SampleFiles, is_image
from samplers.tuned_files import load_tuned

__all__ = ["generate_samples"]


def generate_samples(
    workdir: str | Path, outdir: str | Path, config: GenerationConfig
) -> None:
    """Draw samples from a model and write them to a folder, or go on doing so.

    Args:
        workdir: A run of `diffusion.training.train`, or the file of a closed form.
        outdir: Where to write; empty, or begun by the same command.
        config: What to draw, how, and what to write.

    Raises:
        InputError: If there is no such model, a setting does not fit, samples are not
            finite, or outdir holds something else.
        OSError: If something cannot be written.
    """
    outdir, count = Path(outdir), config.num_samples
    _check_outdir(outdir)
    _check(config)
    model = load_guided_model(workdir, config)
    class_rule = _class_rule(config, model)
    config = _resolve(config, model, workdir, class_rule)
    _check(config)
    drawing = Drawing(
        model,
        build_sampler(config.sampler, model),
        config.seed,
        config.block_size,
        class_rule,
    )
    is_picture = is_image(model.event_shape)
    formats = config.format or (("folder",) if is_picture else ("npy",))
    settings = _settings(config, drawing, formats)
    if (outdir / "record.json").is_file():
        record = _read_json(outdir / "record.json")
        if "model_sha256" not in record:  # of another program, or an earlier version
            raise _exists(outdir)
        _refuse_other(outdir, record, settings)
        shutil.rmtree(outdir / ".partial", ignore_errors=True)
        print(f"{count} samples are complete already: {outdir}")
        return
    with open_partial_files(outdir / ".partial", settings) as partial:
        _refuse_other(outdir, partial.settings, settings)
        seconds, digest = _fill(outdir, partial, drawing, count)
        networks = 1 if config.guidance is None else 2
        results = {
            "workdir": str(workdir),
            "step": config.step,
            "sigmas": drawing.sampler.sigmas.tolist(),
            "nfe": drawing.nfe,
            "networks": networks,
            "seconds_with_compilation": seconds,
            "sha256": digest,
        }
        write_json(outdir / "record.json", {**settings, **results, **_context()})
        shutil.rmtree(outdir / ".partial")
    calls = f"{drawing.nfe}" if networks == 1 else f"{drawing.nfe} x 2"
    print(f"{count} samples, {calls} network calls each, {seconds:.1f} s: {outdir}")


def _resolve(
    config: GenerationConfig, model: Model, workdir: str | Path, class_rule: str | None
) -> GenerationConfig:
    """Return the configuration with the sampler that was tuned or is predicted best."""
    sampler = config.sampler
    if sampler.tuned is not None:
        sampler = load_tuned(
            workdir, sampler.tuned, model=model, other_data=sampler.other_data
        )
    sampler = resolve_skip(sampler, model, workdir, class_rule=class_rule)
    return dataclasses.replace(config, sampler=sampler)


def _settings(
    config: GenerationConfig, drawing: Drawing, formats: tuple[str, ...]
) -> dict[str, Any]:
    """Return what decides on every byte that is written, ready for JSON."""
    values = to_dict(config)
    # Which file or checkpoint it was is told by what it held.
    for name in ("step", "guide", "guide_step"):
        del values[name]
    return {
        **values,
        "class_label": drawing.class_rule,
        "format": list(formats),
        "model_sha256": digest_of((drawing.model.denoiser, drawing.sampler)),
    }


def _class_rule(config: GenerationConfig, model: Model) -> str | None:
    """Return how classes are chosen; None where there are none."""
    if model.num_classes:
        return config.class_label or "random"
    if config.class_label is not None:
        raise InputError("this model is told no classes; leave out --class-label")
    return None


def _fill(
    outdir: Path, partial: PartialFiles, drawing: Drawing, count: int
) -> tuple[float, str]:
    """Draw what is missing; return the seconds that it took and what identifies all."""
    started = time.monotonic()
    _note_context(outdir, partial)
    files = SampleFiles(
        outdir,
        partial,
        tuple(partial.settings["format"]),
        (count, *drawing.model.event_shape),
        has_classes=drawing.class_rule is not None,
    )
    progress = Progress(count, done=partial.done, label="sampling", unit="sample")
    if partial.done < count:
        for block in draw_blocks(drawing, partial.done, count):
            files.add(block)
            progress.advance(len(block.samples), note=f"NFE {drawing.nfe}")
    progress.close()
    files.finish()
    return time.monotonic() - started, files.digest


def _check_outdir(outdir: Path) -> None:
    """Refuse a folder that this command has not begun."""
    if not outdir.exists():
        return
    ours = outdir.is_dir() and (
        any((outdir / name).exists() for name in (".partial", "record.json"))
        or not any(outdir.iterdir())
    )
    if not ours:
        raise _exists(outdir)


def _exists(outdir: Path) -> InputError:
    return InputError(f"{outdir} exists already; choose another --outdir or delete it")


def _check(config: GenerationConfig) -> None:
    sampler = config.sampler
    if config.condition and (sampler.teleport is not None or sampler.moment_matched):
        raise InputError(
            "the Gaussian is of images as they are, not of transformed ones; leave out "
            "--sampler.teleport or --condition"
        )


def _refuse_other(outdir: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on with what was begun with other settings."""
    listed = ", ".join(_differences(old, new))
    if listed:
        raise InputError(
            f"{outdir} holds samples of other settings ({listed}); use those, choose "
            "another --outdir, or delete it"
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name, value in new.items():
        before = old.get(name, "missing")
        if isinstance(value, dict) and isinstance(before, dict):
            yield from (f"{name}.{line}" for line in _differences(before, value))
        elif before != value and name == "model_sha256":
            yield "another checkpoint or closed form; name it, e.g. with --step"
        elif before != value:
            yield f"{name} {before!r} -> {value!r}"


def _context() -> dict[str, Any]:
    """Return what may change the last digits of samples."""
    devices = jax.local_devices()
    return {
        "backend": jax.default_backend(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "versions": versions(),
    }


def _note_context(outdir: Path, partial: PartialFiles) -> None:
    """Keep where samples were begun; warn where they go on elsewhere."""
    begun = partial.notes.setdefault("context", _context())
    if partial.done:
        changes = ", ".join(_differences(begun, _context()))
        if changes:
            warnings.warn(
                f"{outdir} was begun elsewhere ({changes}); samples from number "
                f"{partial.done} on may differ in their last digits",
                InputWarning,
                stacklevel=2,
            )
    else:
        partial.commit(0)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); choose another --outdir or delete it"
        ) from error
