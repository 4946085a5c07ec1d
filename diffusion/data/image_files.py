"""Image files in a zip of EDM's layout or in a folder.

EDM (arXiv 2206.00364) keeps a data set as ``NNNNN/imgNNNNNNNN.png`` and so on beside a
``dataset.json`` of the form ``{"labels": [[name, class], ...]}``; the order of the
images is that of their sorted names.
"""

import contextlib
import functools
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from configs.errors import InputError
from diffusion.data.image_source import ImageSource
from diffusion.data.limits import (
    MAX_IMAGE_BYTES,
    MAX_IMAGES,
    MAX_JSON_BYTES,
    MAX_PIXELS,
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

__all__ = ["open_image_folder", "open_image_zip"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Skipping these in silence would lose data; a README may lie beside the images.
_OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2", ".npy")
_LABEL_FILE = "dataset.json"
_EDM_NAME = re.compile(r"\d{5}/img\d{8}\.\w+")
_GREY_MODES = ("1", "L")
_COLOUR_MODES = ("P", "PA", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_PNG_DEPTH = 24  # Position of the bit depth in the header chunk, which comes first.
_MAX_CLASS = 2**31 - 1

_Read = Callable[[str], bytes]


def open_image_zip(path: str) -> ImageSource:
    """Open a zip of image files, in sorted order of their names.

    Args:
        path: The file; `dataset.json` at its top gives the labels.

    Returns:
        Images (H, W, C) uint8, C = 1 for grey and 3 for colour.

    Raises:
        InputError: If the archive, its labels or the first image are refused.
    """
    with open_zip(path) as archive:
        members = list_members(archive, path)
        names = _image_names(members, path)
        for name in names:
            check_member(members[name], path, MAX_IMAGE_BYTES)
        labels = None
        if _LABEL_FILE in members:
            check_member(members[_LABEL_FILE], path, MAX_JSON_BYTES)
            text = read_member(archive, members[_LABEL_FILE], path)
            labels = _json_labels(text, names, path)
        first = read_member(archive, members[names[0]], path)

    @contextlib.contextmanager
    def open_reader() -> Iterator[_Read]:
        with open_zip(path) as archive:
            yield lambda name: read_member(archive, members[name], path)

    return _image_source(path, names, labels, first, open_reader)


def open_image_folder(path: str) -> ImageSource:
    """Open a folder of image files, in sorted order of their relative names.

    Sub-folders are searched, links to folders are not followed, and names that begin
    with a dot are passed over.

    Args:
        path: The folder.  Labels come from `dataset.json` at its top; without one, the
            first sub-folder's name is the class if every image lies in one (numbered
            in sorted order), unless the layout is EDM's, whose folders are no classes.

    Returns:
        Images (H, W, C) uint8, C = 1 for grey and 3 for colour.

    Raises:
        InputError: If the folder, its labels or the first image are refused.
    """
    files = list(_files_below(path))
    names = _image_names(files, path)
    if _LABEL_FILE in files:
        text = _read_file(path, _LABEL_FILE, MAX_JSON_BYTES)
        labels = _json_labels(text, names, path)
    else:
        labels = _folder_labels(names)
    first = _read_file(path, names[0], MAX_IMAGE_BYTES)

    @contextlib.contextmanager
    def open_reader() -> Iterator[_Read]:
        yield lambda name: _read_file(path, name, MAX_IMAGE_BYTES)

    return _image_source(path, names, labels, first, open_reader)


def _image_source(
    path: str,
    names: list[str],
    labels: np.ndarray | None,
    first: bytes,
    open_reader: Callable[[], AbstractContextManager[_Read]],
) -> ImageSource:
    """Return the source; ``first`` are the bytes of the image that fixes the shape."""
    with _opened(first, place(path, names[0])) as image:
        shape = _shape(image, first, place(path, names[0]))
    blocks = functools.partial(_blocks, path, names, shape, open_reader)
    return ImageSource(path, len(names), shape, np.dtype(np.uint8), labels, blocks)


def _blocks(
    path: str,
    names: list[str],
    shape: tuple[int, int, int],
    open_reader: Callable[[], AbstractContextManager[_Read]],
    block_size: int,
) -> Generator[np.ndarray, None, None]:
    with open_reader() as read:
        for start in range(0, len(names), block_size):
            part = names[start : start + block_size]
            block = np.empty((len(part), *shape), np.uint8)
            for row, name in zip(block, part, strict=True):
                row[...] = _decode(read(name), place(path, name), shape, names[0])
            yield block


@contextlib.contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    """Open an image, of which only the header is parsed; tell failures in one line."""
    # Pillow warns of dropped transparency, of metadata, and of sizes checked here.
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise InputError(
                f"{where} is no readable PNG, JPEG, WebP or BMP image; "
                "copy or make it again"
            ) from error
        except Image.DecompressionBombError as error:
            raise _too_large(where, "far too many") from error
        with image:
            yield image


def _shape(image: Image.Image, data: bytes, where: str) -> tuple[int, int, int]:
    """Return (H, W, C) from the header alone, or refuse the image."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(where, f"{width} x {height}")
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
    with _opened(data, where) as image:
        found = _shape(image, data, where)
        if found != shape:
            raise InputError(
                f"{where} has shape {found} (height, width, channels), the first "
                f"image, {first!r}, has {shape}; all must agree: crop, resize or "
                "convert them first"
            )
        mode = "L" if shape[2] == 1 else "RGB"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(shape)


def _image_names(files: Collection[str], path: str) -> list[str]:
    """Return the sorted names of the image files, or refuse what would be lost."""
    names, strays = [], []
    for file in files:
        parts = file.split("/")
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
        elif parts[-1] == _LABEL_FILE and len(parts) > 1:
            strays.append(file)
    check_count(len(names), repr(path))
    if strays and _LABEL_FILE not in files:
        raise InputError(
            f"{place(path, strays[0])} is not at the top, where labels are read; "
            "move all contents of its folder to the top"
        )
    return sorted(names)


def _json_labels(text: bytes, names: list[str], path: str) -> np.ndarray | None:
    """Return (N,) int64 classes from the text of dataset.json; None for null labels."""
    where = place(path, _LABEL_FILE)
    with reading(where):
        content: Any = json.loads(text)
    if not isinstance(content, dict):
        raise InputError(f'{where} must be {{"labels": [[name, class], ...]}}')
    labels = content.get("labels")
    if labels is None:
        return None
    classes = _classes_by_name(labels, where)
    for name in names:
        if name not in classes:
            raise InputError(
                f"{where} has no label for image {name!r}; label every image, "
                "or none (null)"
            )
    return np.array([classes[name] for name in names], np.int64)


def _classes_by_name(labels: Any, where: str) -> dict[str, int]:
    """Return the class of each name, from pairs or a dict as JSON gives them."""
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    if not isinstance(pairs, list):
        raise InputError(f"{where}: labels must be a list of [name, class], or null")
    classes: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise InputError(f"{where}: label {pair!r:.80} must be [name, class]")
        name, label = pair
        if not isinstance(name, str) or name in classes:
            raise InputError(
                f"{where} labels {name!r:.80}, which is no name or occurs twice; "
                "give one label for each image"
            )
        if type(label) is not int or not 0 <= label <= _MAX_CLASS:
            raise InputError(
                f"{where} labels {name!r:.80} with {label!r:.80}; labels must be "
                f"integers from 0 to {_MAX_CLASS}: number the classes"
            )
        classes[name] = label
    return classes


def _folder_labels(names: list[str]) -> np.ndarray | None:
    """Return (N,) int64 classes from first sub-folders, None where there are none."""
    if not all("/" in name for name in names):
        return None
    if all(_EDM_NAME.fullmatch(name) for name in names):
        return None
    folders = [name.split("/")[0] for name in names]
    classes = {folder: number for number, folder in enumerate(sorted(set(folders)))}
    return np.array([classes[folder] for folder in folders], np.int64)


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
