"""Images as one array in a file: NumPy's npz and MNIST's idx, read as streams.

Both are a short header and then the values of all images in C order, so a batch is the
next so many bytes.  The header is parsed, nothing is ever unpickled.
"""

import contextlib
import functools
import gzip
import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib import format as npy_format

from configs.errors import InputError
from diffusion.data.image_source import ImageSource
from diffusion.data.limits import (
    MAX_DEFLATE_RATIO,
    MAX_PIXELS,
    check_count,
    place,
    reading,
)
from diffusion.data.zip_members import check_member, list_members, open_zip

__all__ = ["open_idx", "open_npz"]

_CHUNK_BYTES = 2**17
_MAX_NPY_HEADER = 2**14  # NumPy's own headers of plain arrays take 128 bytes.
_IMAGE_DTYPES = ("uint8", "float16", "float32", "float64")
_IDX_IMAGES, _IDX_LABELS = 0x00000803, 0x00000801


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Values(NamedTuple):
    """An array that lies in a stream behind a header.

    Attributes:
        where: What messages call it.
        open_stream: Opens the stream at the header.
        offset: Bytes of the header.
        shape: (N, *event).
        dtype: As stored.
    """

    where: str
    open_stream: Callable[[], AbstractContextManager[_Stream]]
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


def open_npz(path: str) -> ImageSource:
    """Open ``images`` and, if there, ``labels`` of an npz file.

    Args:
        path: The file: images (N, *event) uint8, or floats in data units; labels (N,)
            of an integer type.

    Returns:
        The images; floats come in native byte order.

    Raises:
        InputError: If an array is of another kind, or its header does not agree with
            the size of the member.
    """
    with open_zip(path) as archive:
        members = list_members(archive, path)
        if "images.npy" not in members:
            found = ", ".join(sorted(members)) or "nothing"
            raise InputError(
                f"{path!r} has no array 'images' but {found!r:.200}; write it with "
                "np.savez(path, images=..., labels=...)"
            )
        images = _npy_values(archive, members["images.npy"], path)
        version = f"{members['images.npy'].file_size} {members['images.npy'].CRC}"
        stored = None
        if "labels.npy" in members:
            stored = _npy_values(archive, members["labels.npy"], path)
    _check_images(images)
    labels = None if stored is None else _npy_labels(stored, images)
    return _array_source(path, images, labels, version)


def open_idx(path: str) -> ImageSource:
    """Open images of MNIST's idx form, compressed by gzip or not.

    Args:
        path: The file, such as ``train-images-idx3-ubyte.gz``; the labels are read from
            ``train-labels-idx1-ubyte.gz`` beside it if that exists.

    Returns:
        Images (H, W, 1) uint8.

    Raises:
        InputError: If the header is another one, or the counts do not agree.
    """
    count, height, width = _idx_header(path, _IDX_IMAGES, 3)
    shape = (count, height, width, 1)
    uint8 = np.dtype(np.uint8)
    images = _Values(
        repr(path), functools.partial(_open_idx_stream, path), 16, shape, uint8
    )
    _check_images(images)
    _check_idx_size(path, images)
    labels, label_path = None, _idx_label_path(path)
    if label_path is not None:
        (label_count,) = _idx_header(label_path, _IDX_LABELS, 1)
        if label_count != count:
            raise InputError(
                f"{label_path!r} has {label_count} labels, {path!r} has {count} "
                "images; the numbers must agree: take both files from one data set"
            )
        stream = functools.partial(_open_idx_stream, label_path)
        labels = _read_all(_Values(repr(label_path), stream, 8, (count,), uint8))
    state = os.stat(path)
    return _array_source(path, images, labels, f"{state.st_size} {state.st_mtime_ns}")


def _array_source(
    path: str, images: _Values, labels: np.ndarray | None, version: str
) -> ImageSource:
    classes = None if labels is None else labels.astype(np.int64)
    return ImageSource(
        name=path,
        num_images=images.shape[0],
        event_shape=images.shape[1:],
        dtype=images.dtype.newbyteorder("="),
        labels=classes,
        blocks=functools.partial(_blocks, images),
        version=version,
    )


def _blocks(values: _Values, block_size: int) -> Generator[np.ndarray, None, None]:
    """Yield the next so many rows; the last only when the stream ended as it should."""
    count = values.shape[0]
    with values.open_stream() as stream:
        _fill(stream, np.empty(values.offset, np.uint8), values.where)
        for start in range(0, count, block_size):
            stop = min(start + block_size, count)
            block = np.empty((stop - start, *values.shape[1:]), values.dtype)
            _fill(stream, block, values.where)
            if stop == count:
                _check_end(stream, values)
            _check_finite(block, start, values.where)
            yield block.astype(values.dtype.newbyteorder("="), copy=False)


def _read_all(values: _Values) -> np.ndarray:
    (block,) = _blocks(values, values.shape[0])
    return block


def _fill(stream: _Stream, block: np.ndarray, where: str) -> None:
    """Fill an array from a stream, in pieces that need little memory besides."""
    flat = block.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK_BYTES):
        piece = flat[start : start + _CHUNK_BYTES]
        with reading(where):
            data = stream.read(piece.size)
        if len(data) != piece.size:
            raise InputError(
                f"{where} ends before the values that its header announces; "
                "copy or make it again"
            )
        piece[:] = np.frombuffer(data, np.uint8)


def _check_end(stream: _Stream, values: _Values) -> None:
    with reading(values.where):
        rest = stream.read(1)  # At the end, this also compares the checksum.
    if rest:
        raise InputError(
            f"{values.where} goes on after the {values.shape[0]} images or labels that "
            "its header announces; copy or make it again"
        )


def _check_finite(block: np.ndarray, start: int, where: str) -> None:
    if block.dtype.kind != "f":
        return
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{where}: image {start + int(np.argmin(finite))} has values that are NaN "
            "or infinite; only finite ones are allowed: repair or remove it"
        )


def _check_images(images: _Values) -> None:
    """Refuse images of a shape or type that cannot be read in bounded memory."""
    count, event = images.shape[0], images.shape[1:]
    check_count(count, images.where)
    if not event or min(event) < 1 or math.prod(event) > MAX_PIXELS:
        raise InputError(
            f"{images.where} has shape {images.shape}; it must be (N, height, width, "
            f"channels) or (N, length), with at most {MAX_PIXELS} values per image"
        )
    if images.dtype.newbyteorder("=").name not in _IMAGE_DTYPES:
        raise InputError(
            f"{images.where} has type {images.dtype}; it must be one of "
            f"{', '.join(_IMAGE_DTYPES)}: convert it"
        )


def _npy_values(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> _Values:
    """Return where the values of an array lie, from its header."""
    check_member(info, path, max_bytes=None)
    where = place(path, info.filename)
    with reading(where), archive.open(info) as stream:
        head = io.BytesIO(stream.read(min(info.file_size, _MAX_NPY_HEADER)))
        shape, fortran_order, dtype = _npy_header(head)
    if dtype.hasobject:
        raise InputError(
            f"{where} holds Python objects, which only pickle can read; pickles are "
            "never loaded: save an array of numbers"
        )
    if fortran_order and len(shape) > 1:
        raise InputError(
            f"{where} is in Fortran order, which cannot be read image by image; "
            "save np.ascontiguousarray of it"
        )
    if not shape or min(shape) < 0:
        raise InputError(f"{where} has shape {shape}; it must have one row per image")
    promised = head.tell() + math.prod(shape) * dtype.itemsize
    if promised != info.file_size:
        raise InputError(
            f"{where} has {info.file_size} bytes, its header promises {promised}; "
            "copy or make it again"
        )
    stream = functools.partial(_open_npy_stream, path, info)
    return _Values(where, stream, head.tell(), shape, dtype)


def _npy_header(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(head)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(head)
    if version == (2, 0):
        return npy_format.read_array_header_2_0(head)
    raise ValueError(
        f"version {version} of the npy format, which plain arrays need not"
    )


def _npy_labels(stored: _Values, images: _Values) -> np.ndarray:
    """Return (N,) classes as stored."""
    if stored.shape != images.shape[:1] or stored.dtype.kind not in "iu":
        raise InputError(
            f"{stored.where} has shape {stored.shape} and type {stored.dtype}; it must "
            f"be {images.shape[:1]} integers: number the classes, one for each image"
        )
    labels = _read_all(stored).astype(np.int64)
    if labels.min() < 0:
        raise InputError(
            f"{stored.where} has the label {labels.min()}; labels must not be "
            "negative: number the classes from 0, or leave labels out"
        )
    return labels


@contextlib.contextmanager
def _open_npy_stream(path: str, info: zipfile.ZipInfo) -> Iterator[_Stream]:
    with open_zip(path) as archive:
        with reading(place(path, info.filename)):
            stream = archive.open(info)
        with stream:
            yield stream


@contextlib.contextmanager
def _open_idx_stream(path: str) -> Iterator[_Stream]:
    with reading(repr(path)):
        compressed = path.lower().endswith(".gz")
        stream = gzip.open(path, "rb") if compressed else open(path, "rb")
    with stream:
        yield stream


def _idx_header(path: str, magic: int, num_dims: int) -> tuple[int, ...]:
    """Return the sizes that an idx file announces, the number of items first."""
    with _open_idx_stream(path) as stream, reading(repr(path)):
        head = stream.read(4 * (1 + num_dims))
        found, *sizes = struct.unpack(f">{1 + num_dims}I", head)
    if found != magic:
        kind = "images" if magic == _IDX_IMAGES else "labels"
        raise InputError(
            f"{path!r} begins with {found:#010x}; idx {kind} begin with {magic:#010x}: "
            f"give the file of the {kind}"
        )
    return tuple(sizes)


def _check_idx_size(path: str, images: _Values) -> None:
    """Refuse an idx file that cannot hold, or has not, what its header announces."""
    promised = images.offset + math.prod(images.shape)
    file_bytes = os.path.getsize(path)
    compressed = path.lower().endswith(".gz")
    if promised > MAX_DEFLATE_RATIO * file_bytes or (
        not compressed and promised != file_bytes
    ):
        raise InputError(
            f"{path!r} has {file_bytes} bytes, which cannot be the {promised} that its "
            "header announces; copy or make it again"
        )


def _idx_label_path(path: str) -> str | None:
    """Return the neighbour with the labels: images-idx3 becomes labels-idx1."""
    folder, file = os.path.split(path)
    neighbour = re.sub(r"images([-.])idx3", r"labels\1idx1", file)
    if neighbour == file:
        return None
    plain = re.sub(r"\.gz$", "", neighbour)
    for candidate in (neighbour, plain, f"{plain}.gz"):
        found = os.path.join(folder, candidate)
        if os.path.isfile(found):
            return found
    return None
