"""Image files in a zip of EDM's layout or in a folder.

EDM (arXiv 2206.00364) keeps a data set as ``NNNNN/imgNNNNNNNN.png`` and so on beside a
``dataset.json`` of the form ``{"labels": [[name, class], ...]}``; the order of the
images is that of their sorted names.
"""

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from configs.errors import InputError
from diffusion.data.image_labels import LABEL_FILE, folder_labels, json_labels
from diffusion.data.image_source import ImageSource
from diffusion.data.limits import (
    MAX_IMAGE_BYTES,
    MAX_IMAGES,
    MAX_JSON_BYTES,
    MAX_PIXELS,
    UnreadableError,
    check_count,
    place,
    reading,
)
from diffusion.data.zip_members import (
    check_member,
    list_members,
    open_zip,
    read_member,
)

__all__ = [
    "ImageFiles",
    "image_pixels",
    "image_shape",
    "list_image_folder",
    "list_image_zip",
    "open_image_files",
    "opened_image",
]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Skipping these in silence would lose data; a README may lie beside the images.
_OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2", ".npy")
_GREY_MODES = ("1", "L")
_COLOUR_MODES = ("P", "RGB", "RGBX", "CMYK", "YCbCr")
_ALPHA_MODES = ("RGBA", "LA", "PA")
_PNG_DEPTH = 24  # Position of the bit depth in the header chunk, which comes first.

_Read = Callable[[str], bytes]


class ImageFiles(NamedTuple):
    """Image files of any size in an archive, in sorted order of their names.

    Attributes:
        path: The archive or folder.
        names: The files, N of them.
        labels: (N,) int64 classes, or None.
        open_reader: Opens the archive; gives a function from name to bytes.
        versions: Gives (N, 2) int64 that change with the files: size in bytes, and
            the checksum in a zip, the time of the last change (ns) in a folder.
    """

    path: str
    names: list[str]
    labels: np.ndarray | None
    open_reader: Callable[[], AbstractContextManager[_Read]]
    versions: Callable[[], np.ndarray]


def list_image_zip(path: str) -> ImageFiles:
    """List the image files of a zip; `dataset.json` at its top gives the labels.

    Raises:
        InputError: If the archive or its labels are refused.
    """
    with open_zip(path) as archive:
        members = list_members(archive, path)
        names = _image_names(members, path)
        for name in names:
            check_member(members[name], path, MAX_IMAGE_BYTES)
        labels = None
        if LABEL_FILE in members:
            check_member(members[LABEL_FILE], path, MAX_JSON_BYTES)
            text = read_member(archive, members[LABEL_FILE], path)
            labels = json_labels(text, names, path)

    @contextlib.contextmanager
    def open_reader() -> Iterator[_Read]:
        with open_zip(path) as archive:
            yield lambda name: read_member(archive, members[name], path)

    def versions() -> np.ndarray:
        found = [(members[name].file_size, members[name].CRC) for name in names]
        return np.array(found, np.int64)

    return ImageFiles(path, names, labels, open_reader, versions)


def list_image_folder(path: str) -> ImageFiles:
    """List the image files below a folder.

    Sub-folders are searched, links to folders are not followed, and names that begin
    with a dot are passed over.  Labels come from `dataset.json` at the top; without
    one, the first sub-folder's name is the class if every image lies in one (numbered
    in sorted order), unless the layout is EDM's, whose folders are no classes.

    Raises:
        InputError: If the folder or its labels are refused.
    """
    files = list(_files_below(path))
    names = _image_names(files, path)
    if LABEL_FILE in files:
        text = _read_file(path, LABEL_FILE, MAX_JSON_BYTES)
        labels = json_labels(text, names, path)
    else:
        labels = folder_labels(names)

    @contextlib.contextmanager
    def open_reader() -> Iterator[_Read]:
        yield lambda name: _read_file(path, name, MAX_IMAGE_BYTES)

    @functools.cache  # What is decoded later must not pass for newer than it is.
    def versions() -> np.ndarray:
        with reading(repr(path)):
            found = [os.stat(os.path.join(path, name)) for name in names]
        return np.array([(f.st_size, f.st_mtime_ns) for f in found], np.int64)

    return ImageFiles(path, names, labels, open_reader, versions)


def open_image_files(files: ImageFiles) -> ImageSource:
    """Return image files of one size as a source.

    Returns:
        Images (H, W, C) uint8, C = 1 for grey and 3 for colour; H, W and C are those of
        the first image.

    Raises:
        InputError: If the first image is refused; while reading, if another one is, or
            has another shape.
    """
    path, names = files.path, files.names
    with files.open_reader() as read:
        first = read(names[0])
    with opened_image(first, place(path, names[0])) as image:
        shape = image_shape(image, first, place(path, names[0]))
    blocks = functools.partial(_blocks, files, shape)
    return ImageSource(
        path, len(names), shape, np.dtype(np.uint8), files.labels, blocks
    )


def image_pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Return (H, W, C) uint8 pixels of an open image, grey or RGB."""
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def _blocks(
    files: ImageFiles, shape: tuple[int, int, int], block_size: int
) -> Generator[np.ndarray, None, None]:
    path, names = files.path, files.names
    with files.open_reader() as read:
        for start in range(0, len(names), block_size):
            part = names[start : start + block_size]
            block = np.empty((len(part), *shape), np.uint8)
            for row, name in zip(block, part, strict=True):
                row[...] = _decode(read(name), place(path, name), shape, names[0])
            yield block


@contextlib.contextmanager
def opened_image(data: bytes, where: str) -> Iterator[Image.Image]:
    """Open an image, of which only the header is parsed; tell failures in one line.

    Args:
        data: The file's bytes.
        where: What messages call it.

    Yields:
        The image.

    Raises:
        InputError: If anything in the block fails to read it.
    """
    # Pillow warns of dropped transparency, of metadata, and of sizes checked here.
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise UnreadableError(
                f"{where} is no readable PNG, JPEG, WebP or BMP image; "
                "copy or make it again"
            ) from error
        except Image.DecompressionBombError as error:
            raise _too_large(where, "far too many") from error
        with image:
            yield image


def image_shape(image: Image.Image, data: bytes, where: str) -> tuple[int, int, int]:
    """Return (H, W, C) from the header alone.

    Raises:
        InputError: If the image is too large, has more than 8 bits per channel or an
            alpha channel.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(where, f"{width} x {height}")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        raise InputError(
            f"{where} has an alpha channel ({image.mode}); only grey and RGB images "
            "are read, for without alpha hidden colours would show: paint it on a "
            "background, e.g. magick mogrify -background white -alpha remove *.png"
        )
    # Pillow would cut 16-bit colour down to 8 bits without a word.
    deep = image.format == "PNG" and data[_PNG_DEPTH] == 16
    if deep or image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise InputError(
            f"{where} has {'16-bit' if deep else image.mode} pixels; only 8 bits per "
            "channel are read: convert the images to 8 bits"
        )
    return height, width, 1 if image.mode in _GREY_MODES else 3


def _too_large(where: str, found: str) -> InputError:
    return InputError(
        f"{where} has {found} pixels; at most {MAX_PIXELS} are allowed: "
        "resize the images first"
    )


def _decode(
    data: bytes, where: str, shape: tuple[int, int, int], first: str
) -> np.ndarray:
    """Return the pixels, (H, W, C) uint8, of an image that has the shape of the first.

    The shape is compared before anything is decoded.
    """
    with opened_image(data, where) as image:
        found = image_shape(image, data, where)
        if found != shape:
            raise InputError(
                f"{where} has shape {found} (height, width, channels), the first "
                f"image, {first!r}, has {shape}; all must agree: crop, resize or "
                "convert them first"
            )
        return image_pixels(image, shape[2])


def _image_names(files: Collection[str], path: str) -> list[str]:
    """Return the sorted names of the image files, or refuse what would be lost."""
    names, strays = [], []
    for file in files:
        parts = file.replace("\\", "/").split("/")
        if file.startswith(("/", "\\")) or ".." in parts:
            raise InputError(
                f"{place(path, file)} points outside the archive; names must be "
                "relative and without '..': make the archive again"
            )
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        suffix = os.path.splitext(file)[1].lower()
        if suffix in _OTHER_SUFFIXES:
            raise InputError(
                f"{place(path, file)} is of a kind that is not read; images must be "
                f"{', '.join(_SUFFIXES)}: convert or remove it"
            )
        if suffix in _SUFFIXES:
            names.append(file)
        elif parts[-1] == LABEL_FILE and len(parts) > 1:
            strays.append(file)
    check_count(len(names), repr(path))
    if strays and LABEL_FILE not in files:
        raise InputError(
            f"{place(path, strays[0])} is not at the top, where labels are read; "
            "move all contents of its folder to the top"
        )
    return sorted(names)


def _files_below(path: str) -> Iterator[str]:
    """Yield the relative names, with slashes, of all files below a folder."""

    def fail(error: OSError) -> None:
        raise error

    count = 0
    with reading(repr(path)):
        for folder, subfolders, files in os.walk(path, onerror=fail):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            count += len(files)
            if count > MAX_IMAGES:
                raise InputError(
                    f"{path!r} has more than {MAX_IMAGES} files; divide it into several"
                )
            relative = os.path.relpath(folder, path).replace(os.sep, "/")
            yield from (f if relative == "." else f"{relative}/{f}" for f in files)


def _read_file(folder: str, name: str, max_bytes: int) -> bytes:
    where, path = place(folder, name), os.path.join(folder, name)
    if not os.path.isfile(path):  # Reading a named pipe would wait for ever.
        raise InputError(f"{where} is no file; remove it or put the image there")
    with reading(where), open(path, "rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(
            f"{where} has more than the {max_bytes} bytes allowed; store smaller files"
        )
    return data
