"""Packed data sets: what training reads.

A packed set is a folder of plain NumPy files, mapped into memory rather than read:

    manifest.json                                   what they are, and their digests
    training_images.npy   (N, H, W, C) uint8        training_labels.npy   (N,) int64
    held_out_images.npy   (M, H, W, C) uint8        held_out_labels.npy   (M,) int64

Labels are -1 where there are no classes.  The digests are compared when a set is
opened, so that what a run trains on is what its manifest says.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.errors import InputError
from diffusion.atomic import write_atomically
from diffusion.data.builtin import Dataset, Split

__all__ = [
    "Manifest",
    "is_packed",
    "new_images",
    "open_packed",
    "packed_folder",
    "read_manifest",
    "write_packed",
]

MANIFEST = "manifest.json"
_VERSION = 1
_PARTS = ("training", "held_out")
_CHUNK = 2**24


class Manifest(NamedTuple):
    """What a packed set is.

    Attributes:
        name: What training calls it.
        request: The source and all options that it was made with.
        event_shape: Shape of one image, (H, W, C).
        counts: Number of images of each part.
        digests: sha256 of the values of each file, by its name without ending; that of
            ``training_images`` is the digest that a run records.
        sigma_data: Root mean square of all training pixels in data units.
        num_classes: Largest label plus one; 0 without classes.
        skipped: Names of images that could not be read.
    """

    name: str
    request: dict[str, Any]
    event_shape: tuple[int, ...]
    counts: dict[str, int]
    digests: dict[str, str]
    sigma_data: float
    num_classes: int
    skipped: tuple[str, ...] = ()


def packed_folder(name: str, data_dir: str | Path) -> Path:
    """Return where the packed set of a name lies."""
    return Path(data_dir) / "packed" / name


def is_packed(folder: str | Path) -> bool:
    """Return whether a folder is a packed set."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of a packed set.

    Raises:
        InputError: If it is missing, damaged or of an unknown form.
    """
    path = Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_text())
        if values.pop("version") != _VERSION:
            raise ValueError("another version")
        values.pop("layout", None)
        manifest = Manifest(**values)
        return manifest._replace(
            event_shape=tuple(manifest.event_shape),
            counts={part: int(manifest.counts[part]) for part in _PARTS},
            skipped=tuple(manifest.skipped),
        )
    except FileNotFoundError:
        raise InputError(
            f"{folder} is no packed data set, it has no {MANIFEST}; make one with "
            "python -m diffusion.prepare_data"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete {folder} and prepare the data again"
        ) from error


def open_packed(folder: str | Path) -> Split:
    """Map a packed set into memory, after comparing it with its digests.

    Args:
        folder: As `write_packed` made it.

    Returns:
        Training and held-out images as read-only memory maps, with their labels.

    Raises:
        InputError: If a file is missing or is not what the manifest says.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    parts = {}
    for part in _PARTS:
        shape = (manifest.counts[part], *manifest.event_shape)
        images = _mapped(folder, f"{part}_images", shape, np.uint8, manifest)
        labels = _mapped(folder, f"{part}_labels", shape[:1], np.int64, manifest)
        parts[part] = Dataset(images, np.asarray(labels))
    return Split(
        parts["training"],
        parts["held_out"],
        digest=manifest.digests["training_images"],
        sigma_data=manifest.sigma_data,
    )


def _mapped(
    folder: Path, name: str, shape: tuple[int, ...], dtype: Any, manifest: Manifest
) -> np.ndarray:
    path = folder / f"{name}.npy"
    again = f"delete {folder} and prepare the data again"
    try:
        mode = "r" if math.prod(shape) else None  # An empty file cannot be mapped.
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); {again}") from error
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}, its manifest says "
            f"{np.dtype(dtype)} {shape}; {again}"
        )
    if _digest(array) != manifest.digests.get(name):
        raise InputError(f"{path} does not have the digest of its manifest; {again}")
    return array


def _digest(array: np.ndarray) -> str:
    """Return the sha256 of all values in C order, read in pieces."""
    digest = hashlib.sha256()
    flat = array.reshape(-1)
    step = max(1, _CHUNK // array.dtype.itemsize)
    for start in range(0, flat.size, step):
        part = np.ascontiguousarray(flat[start : start + step])
        digest.update(part.view(np.uint8).data)
    return digest.hexdigest()


def write_packed(
    folder: str | Path,
    name: str,
    parts: Mapping[str, tuple[int, Iterable[Dataset]]],
    event_shape: tuple[int, ...],
    *,
    request: dict[str, Any],
    skipped: tuple[str, ...] = (),
) -> Manifest:
    """Write the files of a packed set, the manifest last.

    Args:
        folder: Where to; the caller moves it to its place.
        name: What training calls the set.
        parts: For ``"training"`` and ``"held_out"``, the number of images and blocks of
            them; one block is in memory at a time.
        event_shape: Shape of one image.
        request: What it was made of, for the manifest.
        skipped: Names of images left out.

    Returns:
        The manifest.

    Raises:
        OSError: If the disk is full or read-only.
    """
    folder = Path(folder)
    digests: dict[str, str] = {}
    sum_of_squares, num_classes = 0.0, 0
    for part in _PARTS:
        count, blocks = parts[part]
        labels = np.full(count, -1, np.int64)
        images = new_images(folder / f"{part}_images.npy", (count, *event_shape))
        start = 0
        for block in blocks:
            stop = start + len(block.images)
            images[start:stop], labels[start:stop] = block.images, block.labels
            if part == "training":
                sum_of_squares += _sum_of_squares(block.images)
            start = stop
        assert start == count, (part, start, count)
        if isinstance(images, np.memmap):
            images.flush()
        np.save(folder / f"{part}_labels.npy", labels)
        num_classes = max(num_classes, int(labels.max(initial=-1)) + 1)
        digests |= {
            f"{part}_images": _digest(images),
            f"{part}_labels": _digest(labels),
        }
    counts = {part: parts[part][0] for part in _PARTS}
    manifest = Manifest(
        name=name,
        request=request,
        event_shape=tuple(event_shape),
        counts=counts,
        digests=digests,
        sigma_data=math.sqrt(
            sum_of_squares / (counts["training"] * math.prod(event_shape))
        ),
        num_classes=num_classes,
        skipped=skipped,
    )
    text = json.dumps({"version": _VERSION, **manifest._asdict()}, indent=2) + "\n"
    write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))
    return manifest


def new_images(path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return a writable uint8 array in a new file; an empty one cannot be mapped."""
    if math.prod(shape):
        return np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    np.save(path, np.empty(shape, np.uint8))
    return np.empty(shape, np.uint8)


def _sum_of_squares(images: np.ndarray) -> float:
    """Return the sum of squares in data units, exactly, from counts of each value."""
    counts = np.bincount(images.reshape(-1), minlength=256)
    values = np.arange(256) / 127.5 - 1
    return float(counts @ values**2)
