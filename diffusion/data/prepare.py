"""Preparing images for training: from an archive to a packed set.

Image files are decoded and resized in stages that survive an interruption; the official
CIFAR-10 and MNIST, and any TFDS directory, come through tensorflow-datasets (which this
module and `prepare_tfds` alone may use).  Then everything is packed the same way.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.errors import InputError, choice_error
from configs.preparation_schema import PreparationConfig
from diffusion.data.archives import open_archive
from diffusion.data.builtin import Dataset, split_rows
from diffusion.data.image_files import (
    ImageFiles,
    list_image_folder,
    list_image_zip,
)
from diffusion.data.image_source import ImageSource
from diffusion.data.packed import (
    is_packed,
    packed_folder,
    read_manifest,
    write_packed,
)
from diffusion.data.staging import (
    Sizing,
    Staged,
    fingerprint,
    stage_files,
    stage_source,
)

__all__ = ["KINDS", "prepare_data"]

_BLOCK = 4096
_NAMED = 10  # images that a message lists by name
_CONTENT = {
    "fingerprint": "its images or labels have changed since",
    "held_out": "those held out have changed since",
}


class _Preset(NamedTuple):
    """What a kind of data set asks for when nothing else is said."""

    image_size: tuple[int, int] | None = None
    held_out_fraction: float = 0.0
    write_tfds: bool = False
    crop: str = "center"


_PRESETS = {
    "cifar10": _Preset(),
    "cifar10_5k": _Preset(held_out_fraction=0.1),
    "mnist": _Preset(crop="pad"),
    "ffhq64": _Preset((64, 64), write_tfds=True),
    "afhqv2_64": _Preset((64, 64), write_tfds=True),
    "imagenet64": _Preset((64, 64)),
}
_FORMS = ("folder", "zip", "npz", "idx")
KINDS = (*_PRESETS, *_FORMS, "tfds:NAME")
_Source = ImageFiles | ImageSource


class _Opened(NamedTuple):
    """The images of a request, and those to hold out if they are apart."""

    source: _Source
    held_out: _Source | None


def prepare_data(kind: str, options: PreparationConfig) -> Path:
    """Prepare and pack a data set; the same call again goes on, or says it is done.

    Args:
        kind: One of `KINDS`.
        options: Where the images are and how they are cut.

    Returns:
        The folder of the packed set.

    Raises:
        InputError: If the images are missing or refused, or another set has the name.
        OSError: If something cannot be written.
    """
    _check_kind(kind, options)
    name = _name(kind, options)
    folder = packed_folder(name, options.data_dir)
    opened = _open(kind, options)
    request = _request(kind, options, opened)
    if is_packed(folder):
        _refuse_other(folder, request, name)
        _say(f"{name} is packed already: {folder}")
    else:
        _pack(name, folder, options, opened, request)
    if options.write_tfds or _preset(kind).write_tfds:
        from diffusion.data.prepare_tfds import export_tfds

        _say(f"written for TFDS: {export_tfds(folder, options.data_dir)}")
    _say(f"train with: python -m diffusion.train PRESET {_data_options(name, options)}")
    return folder


def _say(text: str) -> None:
    print(text, flush=True)


def _data_options(name: str, options: PreparationConfig) -> str:
    given = "" if options.data_dir == "data" else f" --data.data-dir {options.data_dir}"
    return f"--data.name {name}{given}"


def _preset(kind: str) -> _Preset:
    return _PRESETS.get(kind, _Preset())


def _check_kind(kind: str, options: PreparationConfig) -> None:
    if kind not in (*_PRESETS, *_FORMS) and not kind.startswith("tfds:"):
        raise choice_error("kind of data set", kind, KINDS)
    if options.source is None and kind not in ("cifar10", "mnist"):
        if not kind.startswith("tfds:"):
            raise InputError(
                f"{kind} needs --source PATH: a folder, zip, npz or idx file of the "
                "images"
            )
    elif options.source is not None and not os.path.exists(options.source):
        raise InputError(
            f"there is no file or folder {options.source!r}; give the path of the "
            "images with --source"
        )


def _name(kind: str, options: PreparationConfig) -> str:
    """Return what the set is called: the name of a folder below `packed`."""
    if options.name is not None:
        name = options.name
    elif kind in _PRESETS:
        name = kind
    elif kind.startswith("tfds:"):
        name = kind.removeprefix("tfds:").replace("/", "_")
    else:
        name = os.path.basename(os.path.abspath(str(options.source))).split(".")[0]
    if not name or name.startswith(".") or not {"/", "\\", "\0"}.isdisjoint(name):
        raise InputError(
            f"the name of the set is {name!r}; it must be that of one folder, without "
            "slashes and no dot in front: give another --name"
        )
    return name


def _open(kind: str, options: PreparationConfig) -> _Opened:
    """Return the images; TFDS directories are written first where they belong."""
    source = options.source
    held_out = None
    if options.held_out_source is not None:
        held_out = _open_path(options.held_out_source)
    through_tfds = kind.startswith("tfds:") or (
        kind in ("cifar10", "cifar10_5k", "mnist") and _is_official(kind, source)
    )
    if through_tfds:
        from diffusion.data.prepare_tfds import has_split, open_tfds, prepare_official

        if kind.startswith("tfds:"):
            place = source or str(Path(options.data_dir) / kind.removeprefix("tfds:"))
        else:
            official = "mnist" if kind == "mnist" else "cifar10"
            place = str(
                prepare_official(
                    official, source, options.data_dir, options.source_sha256
                )
            )
        training = open_tfds(place, "train")
        if held_out is None and options.held_out_fraction is None:
            if has_split(place, "test"):
                held_out = open_tfds(place, "test")
        return _Opened(training, held_out)
    assert source is not None
    if kind in _FORMS:
        _check_form(kind, source)
    return _Opened(_open_path(source), held_out)


def _is_official(kind: str, source: str | None) -> bool:
    """Return whether a source is what tensorflow-datasets would download."""
    if source is None:
        return True
    if kind == "mnist":
        return os.path.isfile(os.path.join(source, "train-images-idx3-ubyte.gz"))
    return source.lower().endswith((".tar.gz", ".tgz"))


def _open_path(path: str) -> _Source:
    if os.path.isdir(path):
        return list_image_folder(path)
    if path.lower().endswith(".zip"):
        return list_image_zip(path)
    return open_archive(path)


def _check_form(kind: str, source: str) -> None:
    folder = os.path.isdir(source)
    endings = {"zip": (".zip",), "npz": (".npz",), "idx": ("ubyte", "ubyte.gz")}
    fits = folder if kind == "folder" else source.lower().endswith(endings[kind])
    if not fits or (folder and kind != "folder"):
        found = "a folder" if folder else "a file of another kind"
        raise InputError(f"{source!r} is {found}, not {kind}; see --help for the kinds")


def _sizing(kind: str, options: PreparationConfig) -> Sizing:
    preset = _preset(kind)
    return Sizing(options.image_size or preset.image_size, options.crop or preset.crop)


def _fraction(kind: str, options: PreparationConfig, opened: _Opened) -> float:
    if opened.held_out is not None:
        return 0.0
    given = options.held_out_fraction
    return _preset(kind).held_out_fraction if given is None else given


def _request(kind: str, options: PreparationConfig, opened: _Opened) -> dict[str, Any]:
    """Return what identifies the set that is asked for, ready for JSON."""
    sizing, held_out = _sizing(kind, options), opened.held_out
    return {
        "kind": kind,
        "source": None if options.source is None else os.path.basename(options.source),
        "fingerprint": fingerprint(opened.source),
        "order": "of the TFDS directory" if _is_tfds(opened.source) else "of the names",
        "image_size": None if sizing.image_size is None else list(sizing.image_size),
        "crop": sizing.crop,
        "held_out_fraction": _fraction(kind, options, opened),
        "held_out": None if held_out is None else fingerprint(held_out),
        "max_images": options.max_images,
        "split_seed": options.split_seed,
        "on_corrupt": options.on_corrupt,
    }


def _is_tfds(source: _Source) -> bool:
    return isinstance(source, ImageSource) and source.name.startswith("tfds:")


def _refuse_other(folder: Path, request: dict[str, Any], name: str) -> None:
    found = read_manifest(folder).request
    differing = [key for key in request if found.get(key) != request[key]]
    if differing:
        listed = ", ".join(
            _CONTENT[key]
            if key in _CONTENT and found.get(key) and request[key]
            else f"{key} {found.get(key)!r} -> {request[key]!r}"
            for key in differing
        )
        raise InputError(
            f"{folder} holds another set ({listed}); choose another --name, or delete "
            "it"
        )


def _pack(
    name: str,
    folder: Path,
    options: PreparationConfig,
    opened: _Opened,
    request: dict[str, Any],
) -> None:
    stages = folder.with_name(f".{name}.stages")
    stages.mkdir(parents=True, exist_ok=True)
    sizing = Sizing(
        None if request["image_size"] is None else tuple(request["image_size"]),
        request["crop"],
    )
    staged = _stage(opened.source, stages / "images.npy", sizing)
    apart = None
    if opened.held_out is not None:
        apart = _stage(opened.held_out, stages / "held_out.npy", sizing)
        if apart.images.shape[1:] != staged.images.shape[1:]:
            raise InputError(
                f"held-out images have shape {apart.images.shape[1:]}, training images "
                f"{staged.images.shape[1:]}; they must agree: give --image-size"
            )
    skipped = _corrupt_names(options, *(s for s in (staged, apart) if s is not None))
    new = folder.with_name(f".{name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    rows = staged.intact()
    training, held_out = split_rows(
        len(rows), request["held_out_fraction"], options.split_seed, options.max_images
    )
    parts = {
        "training": (len(training), _blocks(staged, rows[training])),
        "held_out": (len(held_out), _blocks(staged, rows[held_out])),
    }
    if apart is not None:
        kept = apart.intact()
        parts["held_out"] = (len(kept), _blocks(apart, kept))
    manifest = write_packed(
        new, name, parts, staged.images.shape[1:], request=request, skipped=skipped
    )
    new.rename(folder)
    shutil.rmtree(stages)
    counts, shape = manifest.counts, "x".join(map(str, manifest.event_shape))
    _say(
        f"packed {folder}: {counts['training']} training and {counts['held_out']} "
        f"held-out images of {shape}, sigma_data {manifest.sigma_data:.4f}, digest "
        f"{manifest.digests['training_images'][:16]}"
    )


def _stage(source: _Source, path: Path, sizing: Sizing) -> Staged:
    if isinstance(source, ImageFiles):
        return stage_files(source, path, sizing)
    return stage_source(source, path, sizing)


def _blocks(staged: Staged, rows: np.ndarray) -> Iterator[Dataset]:
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        yield Dataset(staged.images[part], staged.labels[part])


def _corrupt_names(options: PreparationConfig, *stages: Staged) -> tuple[str, ...]:
    """Return the names of unreadable images, told to the user; or fail with them."""
    corrupt = {
        (staged.names or [])[row]: reason
        for staged in stages
        for row, reason in sorted(staged.corrupt.items())
    }
    if not corrupt:
        return ()
    skip = options.on_corrupt == "skip"
    for name, reason in corrupt.items():
        done = f"left out: {name}" if skip else name
        print(f"warning: {done}: {reason}", file=sys.stderr)
    if skip:
        return tuple(corrupt)
    listed = ", ".join(list(corrupt)[:_NAMED])
    rest = f" and {len(corrupt) - _NAMED} more" if len(corrupt) > _NAMED else ""
    raise InputError(
        f"{len(corrupt)} images cannot be read: {listed}{rest}; repair them and run "
        "the same command again (what was read is kept), or leave them out with "
        "--on-corrupt skip"
    )
