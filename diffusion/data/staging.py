"""Images of an archive, decoded and resized into one array on the disk.

Decoding a large set takes hours.  A journal beside the array says how far it is: the
same call again goes on there, and reads once more what was corrupt or has changed.
"""

import contextlib
import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.errors import InputError
from diffusion.atomic import write_atomically
from diffusion.data.image_files import (
    ImageFiles,
    image_pixels,
    image_shape,
    opened_image,
)
from diffusion.data.image_source import ImageSource
from diffusion.data.limits import UnreadableError, place
from diffusion.data.packed import new_images
from diffusion.data.resizing import resize_image, resize_pixels
from diffusion.progress import Progress

__all__ = ["Sizing", "Staged", "fingerprint", "stage_files", "stage_source"]

_CHUNK = 32  # images that one thread decodes at a time
_SECONDS_BETWEEN_NOTES = 5.0


class Sizing(NamedTuple):
    """How images are brought to one size.

    Attributes:
        image_size: Height and width, or None to keep that of the first image.
        crop: See `diffusion.data.resizing`.
    """

    image_size: tuple[int, int] | None
    crop: str


class Staged(NamedTuple):
    """Decoded images on the disk.

    Attributes:
        images: (N, H, W, C) uint8, mapped; rows of corrupt images are undefined.
        labels: (N,) int64, -1 without classes.
        corrupt: What is wrong with the images that could not be read, by row.
        names: Name of each image, for messages; None for arrays.
    """

    images: np.ndarray
    labels: np.ndarray
    corrupt: dict[int, str]
    names: list[str] | None = None

    def intact(self) -> np.ndarray:
        """Return the rows that were read, in increasing order."""
        keep = np.ones(len(self.images), bool)
        keep[list(self.corrupt)] = False
        return np.flatnonzero(keep)


def fingerprint(source: ImageFiles | ImageSource) -> str:
    """Return what tells one source from another without reading its images.

    Relative names, sizes and labels count, and what is at hand of the content: the
    checksums in a zip or npz, else the time of the last change.  Where the source lies
    does not.
    """
    if isinstance(source, ImageFiles):
        digest = hashlib.sha256(_digest_of_names(source).encode())
        digest.update(source.versions().tobytes())
    else:
        values = source.num_images, source.event_shape, source.version
        text = f"{os.path.basename(source.name)} {values}"
        digest = hashlib.sha256(text.encode(errors="surrogateescape"))
    if source.labels is not None:
        digest.update(source.labels.tobytes())
    return digest.hexdigest()


def _digest_of_names(files: ImageFiles) -> str:
    text = "\0".join(files.names).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()


def stage_source(source: ImageSource, path: str | Path, sizing: Sizing) -> Staged:
    """Write a stream of images of one size to an array on the disk.

    Args:
        source: Pixels, (H, W, C) uint8.
        path: File to write, ``.npy``.
        sizing: How they are brought to another size, a block at a time.

    Returns:
        The images; none is corrupt, for a stream is whole or refused.

    Raises:
        InputError: If the source cannot be read or is not of pixels.
        OSError: If the disk is full or read-only.
    """
    shape = source.event_shape
    if source.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3):
        raise InputError(
            f"{source.name!r} holds {source.dtype} values of shape {shape}; packed are "
            "images (height, width, channels) of type uint8, grey or RGB: convert them"
        )
    height, width = sizing.image_size or shape[:2]
    images = new_images(path, (source.num_images, height, width, shape[2]))
    progress = Progress(source.num_images, label="reading", unit="image")
    start = 0
    with contextlib.closing(source.blocks(1024)) as blocks:
        for block in blocks:
            images[start : start + len(block)] = resize_pixels(
                block, height, width, sizing.crop, where=repr(source.name)
            )
            start += len(block)
            progress.advance(len(block))
    progress.close()
    labels = source.labels
    if labels is None:
        labels = np.full(source.num_images, -1, np.int64)
    return Staged(images, labels, {})


def stage_files(files: ImageFiles, path: str | Path, sizing: Sizing) -> Staged:
    """Decode image files into an array on the disk, going on where a call ended.

    Args:
        files: The images.
        path: File to write, ``.npy``; the journal lies beside it.
        sizing: How they are brought to one size; another one begins anew.

    Returns:
        The images, with what could not be read.

    Raises:
        InputError: If an image is refused for what it is: size, channels, depth.
        OSError: If the disk is full or read-only.
    """
    path = Path(path)
    shape = _first_shape(files, sizing)
    work = {"names": _digest_of_names(files), "shape": shape, **sizing._asdict()}
    journal = Journal(path.with_suffix(".json"), work, files.versions())
    if journal.done and path.is_file():
        images = np.lib.format.open_memmap(path, "r+")
    else:
        images = new_images(path, (len(files.names), *shape))
        journal.begin()
    progress = Progress(
        len(files.names), done=journal.done, label="reading", unit="image"
    )
    rows = itertools.chain(journal.stale(), range(journal.done, len(files.names)))
    # Decoding sets the filter of warnings in each thread; here it is put back.
    with warnings.catch_warnings(), files.open_reader() as read:
        warnings.simplefilter("ignore")
        noted = time.monotonic()
        for row, pixels in _decoded(files, read, rows, shape, sizing):
            if row >= journal.done:
                progress.advance()
            if isinstance(pixels, str):
                journal.add(row, pixels)
            else:
                images[row] = pixels
                journal.add(row)
            if time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                _note(journal, images)
                noted = time.monotonic()
    _note(journal, images)
    progress.close()
    labels = files.labels
    if labels is None:
        labels = np.full(len(files.names), -1, np.int64)
    return Staged(images, labels, journal.corrupt, files.names)


class Journal:
    """How far the staging of files is, and which version of each has been read.

    Args:
        path: The file; an array of versions lies beside it.
        work: What decides on rows and pixels; a journal of other work is not used.
        versions: (N, 2), see `ImageFiles`.
    """

    def __init__(self, path: Path, work: dict[str, Any], versions: np.ndarray) -> None:
        """Read the files if they are there."""
        self.path, self.work = path, json.loads(json.dumps(work))
        self.versions, self._read = versions, np.zeros_like(versions)
        self._new: list[int] = []
        self.done = 0
        self.corrupt: dict[int, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads(path.read_text())
            if values["work"] == self.work:
                self._read = np.lib.format.open_memmap(self._beside(), "r+")
                self.done = int(values["done"])
                self.corrupt = {int(k): str(v) for k, v in values["corrupt"].items()}

    def _beside(self) -> Path:
        return self.path.with_suffix(".versions.npy")

    def begin(self) -> None:
        """Forget what was read."""
        self.done, self.corrupt = 0, {}
        self._read = np.lib.format.open_memmap(
            self._beside(), "w+", np.int64, self.versions.shape
        )

    def stale(self) -> list[int]:
        """Return the rows to read again: those that failed or have changed since."""
        changed = (self._read[: self.done] != self.versions[: self.done]).any(axis=1)
        return sorted({*np.flatnonzero(changed).tolist(), *self.corrupt})

    def add(self, row: int, problem: str | None = None) -> None:
        """Note that a row has been read, or what is wrong with it."""
        self.done = max(self.done, row + 1)
        self.corrupt.pop(row, None)
        if problem is not None:
            self.corrupt[row] = problem
        self._new.append(row)

    def write(self) -> None:
        """Write the files; the images must be on the disk."""
        self._read[self._new] = self.versions[self._new]
        self._new.clear()
        if isinstance(self._read, np.memmap):
            self._read.flush()
        values = {"work": self.work, "done": self.done, "corrupt": self.corrupt}
        text = json.dumps(values)
        write_atomically(self.path, lambda file: file.write(text.encode()))


def _note(journal: Journal, images: np.ndarray) -> None:
    if isinstance(images, np.memmap):
        images.flush()  # first: the journal must not promise what is not on the disk
    journal.write()


def _first_shape(files: ImageFiles, sizing: Sizing) -> tuple[int, int, int]:
    """Return the shape that all images are to have, from the first readable header."""
    error: InputError | None = None
    with files.open_reader() as read:
        for name in files.names[:100]:
            where = place(files.path, name)
            try:
                data = read(name)
                with opened_image(data, where) as image:
                    height, width, channels = image_shape(image, data, where)
            except UnreadableError as found:
                error = error or found
                continue
            height, width = sizing.image_size or (height, width)
            return height, width, channels
    assert error is not None
    raise error


def _decoded(
    files: ImageFiles,
    read: Any,
    rows: Iterator[int],
    shape: tuple[int, int, int],
    sizing: Sizing,
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Yield each row's pixels, or what is wrong with it, in order."""

    def decode(chunk: list[int]) -> list[tuple[int, np.ndarray | str]]:
        return [
            (row, _pixels(files, read, files.names[row], shape, sizing))
            for row in chunk
        ]

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        chunks = iter(lambda: list(itertools.islice(rows, _CHUNK)), [])
        # A window, for `map` would read a whole set ahead of what is written.
        while window := list(itertools.islice(chunks, 4 * workers)):
            for results in pool.map(decode, window):
                yield from results


def _pixels(
    files: ImageFiles,
    read: Any,
    name: str,
    shape: tuple[int, int, int],
    sizing: Sizing,
) -> np.ndarray | str:
    where = place(files.path, name)
    try:
        data = read(name)
        with opened_image(data, where) as image:
            found = image_shape(image, data, where)
            _check_shape(found, shape, where, sizing)
            mode = "L" if shape[2] == 1 else "RGB"
            image = image if image.mode == mode else image.convert(mode)
            if sizing.image_size is not None:
                size = sizing.image_size
                image = resize_image(image, *size, sizing.crop, where=where)
            return image_pixels(image, shape[2])
    except UnreadableError as error:
        return str(error)


def _check_shape(
    found: tuple[int, int, int],
    shape: tuple[int, int, int],
    where: str,
    sizing: Sizing,
) -> None:
    if found[2] != shape[2]:
        kinds = {1: "grey", 3: "in colour"}
        raise InputError(
            f"{where} is {kinds[found[2]]}, the first image {kinds[shape[2]]}; all "
            "must agree: convert the images to one kind"
        )
    if sizing.image_size is None and found != shape:
        raise InputError(
            f"{where} has {found[0]}x{found[1]} pixels, the first image "
            f"{shape[0]}x{shape[1]}; give one size, --image-size {shape[0]} {shape[1]}"
        )
