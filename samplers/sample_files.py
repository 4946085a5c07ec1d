"""Samples on disk, written block by block: images, archives, arrays.

    folder  images/00000/img00000000.png ..., a thousand to a folder, as EDM's data sets
    zip     images.zip, the same files in one
    npz     images.npz, ``images`` (N, *event) and ``labels`` (N,)
    npy     samples.npy, (N, *event) float32 in data units, and labels.npy

Folder and zip hold ``dataset.json`` with the classes, if there are any.  All four are
read by `diffusion.data` (npy by NumPy), so samples can be trained on and measured like
any data set.  No kind keeps more than a block in memory.
"""

import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.errors import InputError
from diffusion.atomic import write_atomically
from samplers.partial_files import PartialFiles
from samplers.stored_zip import copy_stream, end_of_directory, member_records

__all__ = ["Block", "SampleFiles", "image_name", "is_image", "quantise"]

_PER_FOLDER = 1000
_IN_GRID = 64
_CELL = 32  # pixels that an image of the grid has at least
_GAP = 2
_CHUNK = 2**20
_THREADS = 8
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Block(NamedTuple):
    """Consecutive samples.

    Attributes:
        first: Number of the first one.
        samples: (n, *event) float32, data units.
        classes: (n,) int64, or None where there are none.
    """

    first: int
    samples: NDArray[np.float32]
    classes: NDArray[np.int64] | None


class _Encoded(NamedTuple):
    """A block with what several kinds of file need of it."""

    block: Block
    pixels: NDArray[np.uint8] | None
    pngs: list[bytes]

    def names(self) -> Iterator[str]:
        """Yield the name of each image."""
        for index in range(len(self.block.samples)):
            yield image_name(self.block.first + index)


class _Writer(Protocol):
    def add(self, encoded: _Encoded) -> None: ...

    def finish(self) -> None: ...


def image_name(index: int) -> str:
    """Return where image `index` lies.

    >>> image_name(12345)
    '00012/img00012345.png'
    """
    return f"{index // _PER_FOLDER:05d}/img{index:08d}.png"


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Tell whether samples can be PNG files: (H, W, 1) or (H, W, 3)."""
    return len(event_shape) == 3 and event_shape[-1] in (1, 3)


def quantise(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the nearest of 256 levels, -1 being 0 and 1 being 255."""
    return np.clip(np.round((samples + 1) * 127.5), 0, 255).astype(np.uint8)


class SampleFiles:
    """All files of one command, in the making.

    Args:
        outdir: Where they will lie.
        partial: Where what is not whole lies.
        formats: Of folder, zip, npz, npy.
        shape: (N, *event), of all samples.
        has_classes: Whether there are classes.

    Raises:
        InputError: If the samples are no images and folder or zip is asked for.
    """

    def __init__(
        self,
        outdir: Path,
        partial: PartialFiles,
        formats: tuple[str, ...],
        shape: tuple[int, ...],
        *,
        has_classes: bool,
    ) -> None:
        """See the class."""
        self._partial, self._shape = partial, shape
        self._is_image = is_image(shape[1:])
        self._needs_png = bool({"folder", "zip"} & set(formats))
        if self._needs_png and not self._is_image:
            raise InputError(
                f"samples of shape {shape[1:]} are no images, (H, W, 1) or (H, W, 3); "
                "choose --format npy or npz"
            )
        place = _Place(outdir, partial, shape, has_classes)
        kinds = {"folder": _Folder, "zip": _Zip, "npz": _Npz, "npy": _Npy}
        self._writers: list[_Writer] = [kinds[name](place) for name in formats]
        if self._is_image:
            self._writers.append(_Grid(place))

    @property
    def digest(self) -> str:
        """What identifies all samples so far.

        d_i = sha256(d_(i-1), bytes of sample i), in hexadecimal, from the empty string.
        """
        return str(self._partial.notes.get("sha256", ""))

    def add(self, block: Block) -> None:
        """Write a block and note that it is whole.

        Raises:
            OSError: If the disk is full or read-only.
        """
        pixels = quantise(block.samples) if self._is_image else None
        pngs = []
        if self._needs_png and pixels is not None:
            with ThreadPoolExecutor(_THREADS) as threads:
                pngs = list(threads.map(_png, pixels))
        encoded = _Encoded(block, pixels, pngs)
        for writer in self._writers:
            writer.add(encoded)
        digest = bytes.fromhex(self.digest)
        for sample in np.ascontiguousarray(block.samples):
            digest = hashlib.sha256(digest + sample.tobytes()).digest()
        self._partial.notes["sha256"] = digest.hex()
        self._partial.commit(block.first + len(block.samples))

    def finish(self) -> None:
        """Put all files where they belong; harmless where it was done before.

        Raises:
            OSError: If the disk is full or read-only.
        """
        for writer in self._writers:
            writer.finish()


class _Place(NamedTuple):
    """What every kind of file is told."""

    outdir: Path
    partial: PartialFiles
    shape: tuple[int, ...]
    has_classes: bool

    def install(self, name: str, final: str) -> None:
        """Move a file of `partial` to where it belongs, unless that was done before."""
        source, target = self.partial.path(name), self.outdir / final
        if source.is_file():
            os.replace(source, target)
        elif not target.is_file():
            raise InputError(
                f"{source} is gone; delete {self.outdir} or choose another --outdir"
            )

    def append_labels(self, name: str, encoded: _Encoded) -> None:
        """Add a block's classes to the text of dataset.json, without its end."""
        classes = encoded.block.classes
        if classes is None:
            return
        pairs = zip(encoded.names(), classes.tolist(), strict=True)
        text = ",\n".join(f'["{image}", {label}]' for image, label in pairs)
        opening = '{"labels": [\n' if encoded.block.first == 0 else ",\n"
        self.partial.append(name, (opening + text).encode())


_LABELS_END = b"\n]}\n"


class _Folder(NamedTuple):
    place: _Place

    def add(self, encoded: _Encoded) -> None:
        folder = self.place.outdir / "images"
        paths = [folder / name for name in encoded.names()]
        for parent in {path.parent for path in paths}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(_write_durably, paths, encoded.pngs))
        self.place.append_labels("folder.labels", encoded)

    def finish(self) -> None:
        if not self.place.has_classes:
            return

        def write(file: Any) -> None:
            with open(self.place.partial.path("folder.labels"), "rb") as source:
                copy_stream(source, file)
            file.write(_LABELS_END)

        write_atomically(self.place.outdir / "images" / "dataset.json", write)


class _Zip(NamedTuple):
    place: _Place

    def add(self, encoded: _Encoded) -> None:
        for name, png in zip(encoded.names(), encoded.pngs, strict=True):
            self._begin(name, len(png), zlib.crc32(png))
            self.place.partial.append("images.zip", png)
        self.place.append_labels("zip.labels", encoded)

    def finish(self) -> None:
        partial, count = self.place.partial, self.place.shape[0]
        # Not committed: a process killed in here begins it anew.
        if partial.path("images.zip").is_file():
            if self.place.has_classes:
                partial.append("zip.labels", _LABELS_END)
                partial.flush()
                with open(partial.path("zip.labels"), "rb") as text:
                    self._begin("dataset.json", *copy_stream(text))
                self._append_file("zip.labels")
                count += 1
            partial.flush()
            offset, size = partial.sizes["images.zip"], partial.sizes["zip.directory"]
            self._append_file("zip.directory")
            end = end_of_directory(count, size, offset)
            partial.append("images.zip", end)
            partial.flush()
        self.place.install("images.zip", "images.zip")

    def _begin(self, name: str, size: int, checksum: int) -> None:
        partial = self.place.partial
        offset = partial.sizes.get("images.zip", 0)
        local, entry = member_records(name, size, checksum, offset)
        partial.append("images.zip", local)
        partial.append("zip.directory", entry)

    def _append_file(self, name: str) -> None:
        with open(self.place.partial.path(name), "rb") as source:
            while piece := source.read(_CHUNK):
                self.place.partial.append("images.zip", piece)


class _Npz(NamedTuple):
    place: _Place

    def add(self, encoded: _Encoded) -> None:
        pixels = encoded.pixels
        values = encoded.block.samples if pixels is None else pixels
        _append_array(self.place, "npz.images", encoded.block.first, values)
        if encoded.block.classes is not None:
            labels = encoded.block.classes
            _append_array(self.place, "npz.labels", encoded.block.first, labels)

    def finish(self) -> None:
        write_atomically(self.place.outdir / "images.npz", self._write)

    def _write(self, file: Any) -> None:
        names = ("images", "labels") if self.place.has_classes else ("images",)
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                path = self.place.partial.path(f"npz.{name}")
                member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
                member.file_size = path.stat().st_size  # decides on 64-bit fields
                with open(path, "rb") as source, archive.open(member, "w") as target:
                    copy_stream(source, target)  # type: ignore[arg-type]


class _Npy(NamedTuple):
    place: _Place

    def add(self, encoded: _Encoded) -> None:
        block = encoded.block
        _append_array(self.place, "samples.npy", block.first, block.samples)
        if block.classes is not None:
            _append_array(self.place, "labels.npy", block.first, block.classes)

    def finish(self) -> None:
        self.place.install("samples.npy", "samples.npy")
        if self.place.has_classes:
            self.place.install("labels.npy", "labels.npy")


class _Grid(NamedTuple):
    """The first images side by side, `grid.png`."""

    place: _Place

    def add(self, encoded: _Encoded) -> None:
        shown = max(0, _IN_GRID - encoded.block.first)
        if encoded.pixels is not None and shown:
            self.place.partial.append("grid", encoded.pixels[:shown].tobytes())

    def finish(self) -> None:
        data = self.place.partial.path("grid").read_bytes()
        pixels = np.frombuffer(data, np.uint8).reshape(-1, *self.place.shape[1:])
        picture = _png(_grid(pixels))
        write_atomically(self.place.outdir / "grid.png", lambda f: f.write(picture))


def _append_array(place: _Place, name: str, first: int, values: NDArray[Any]) -> None:
    """Add rows to an array of N rows in NumPy's form."""
    if first == 0:
        header = io.BytesIO()
        description = {
            "descr": np.lib.format.dtype_to_descr(values.dtype),
            "fortran_order": False,
            "shape": (place.shape[0], *values.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(header, description)
        place.partial.append(name, header.getvalue())
    place.partial.append(name, np.ascontiguousarray(values).tobytes())


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (H, W, 1 or 3) pixels as the bytes of a PNG file."""
    grey = pixels.shape[-1] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if grey else pixels).save(buffer, format="png")
    return buffer.getvalue()


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file that only the journal vouches for."""
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; free some space or "
            "choose another folder"
        ) from error


def _grid(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (n, H, W, C) images in rows, small ones enlarged."""
    height, width, channels = pixels.shape[1:]
    factor = max(1, math.ceil(_CELL / max(height, width)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    cell = height * factor + _GAP, width * factor + _GAP
    canvas = np.full((rows * cell[0], columns * cell[1], channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * cell[0], (index % columns) * cell[1]
        canvas[top : top + cell[0] - _GAP, left : left + cell[1] - _GAP] = image
    return canvas[:-_GAP, :-_GAP]
