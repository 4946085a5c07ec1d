"""Inception features of images, kept in files as they are computed.

An image takes the network about a second on a CPU, so features are written to memory
maps beside a note of how many are done: an interrupted evaluation goes on, and another
one with the same ``--cache`` finds the features of the reference.  A file belongs to
the images and the weights whose digests are in its name.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.evaluation.inputs import ImageSet
from analysis.metrics.inception import RESIZE, inception_features, load_inception
from configs.errors import InputError
from diffusion.atomic import write_json
from diffusion.progress import Progress

__all__ = ["Extractor", "Features", "extract_features", "load_extractor"]

_CHUNK = 256
_NAMES = ("features", "logits")


class Features(NamedTuple):
    """Features (n, 2048) and unbiased logits (n, 1008) of images, memory maps."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]


class Extractor(NamedTuple):
    """A network that gives features of uint8 images.

    Attributes:
        extract: Takes (b, H, W, C) uint8, returns `features` and `logits`.
        digest: sha256 of the weights.
        resize: What is done to the images first.
        widths: Of features and of logits.
    """

    extract: Callable[[NDArray[np.uint8]], Any]
    digest: str
    resize: str
    widths: tuple[int, int] = (2048, 1008)


def load_extractor(path: str | Path) -> Extractor:
    """Return the Inception network of a file of `analysis.import_inception`.

    Args:
        path: The file.

    Returns:
        The network, its digest and its resize.

    Raises:
        InputError: If the file is missing, which says what to fetch, or another one.
    """
    inception = load_inception(path)
    return Extractor(
        lambda images: inception_features(inception, images), inception.digest, RESIZE
    )


def extract_features(
    extractor: Extractor, images: ImageSet, label: str, folder: Path
) -> Features:
    """Return the features of all images, as far as they are not in `folder` yet.

    Args:
        extractor: The network.
        images: What to look at.
        label: What the set is, for progress.
        folder: Where the files go.

    Returns:
        Read-only memory maps.

    Raises:
        InputError: If a file in `folder` is damaged, or a feature is not finite.
        OSError: If the disk is full or read-only.
    """
    key = hashlib.sha256(f"{images.digest} {extractor.digest}".encode()).hexdigest()
    paths = {name: folder / f"{name}-{key[:24]}.npy" for name in _NAMES}
    note = folder / f"done-{key[:24]}.json"
    count, done = len(images.images), _done(note)
    if done < count:
        shapes = [(count, width) for width in extractor.widths]
        files = {
            name: _open(path, shape, new=not done)
            for (name, path), shape in zip(paths.items(), shapes, strict=True)
        }
        progress = Progress(
            count, done=done, label=f"features of {label}", unit="image"
        )
        for start in range(done, count, _CHUNK):
            part = np.asarray(images.images[start : start + _CHUNK])
            found = extractor.extract(part)
            for name, file in files.items():
                values = np.asarray(getattr(found, name))
                if not np.isfinite(values).all():
                    raise InputError(
                        f"{name} of {images.name}, images {start} to "
                        f"{start + len(part) - 1}, hold a number that is not finite; "
                        "import the weights again"
                    )
                file[start : start + len(part)] = values
                file.flush()
            write_json(note, {"done": start + len(part)})
            progress.advance(len(part), note=" ")
        progress.close()
    return Features(**{name: _load(path) for name, path in paths.items()})


def _done(note: Path) -> int:
    try:
        return int(json.loads(note.read_text())["done"])
    except FileNotFoundError:
        return 0
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(note) from error


def _open(path: Path, shape: tuple[int, int], *, new: bool) -> np.memmap:
    """Return a new file, or one begun before."""
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", np.float32, shape)
    file = _load(path, "r+")
    if file.shape != shape:
        raise _damaged(path)
    return file


def _load(path: Path, mode: str = "r") -> np.memmap:
    try:
        return np.lib.format.open_memmap(path, mode)
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    key = path.stem.rpartition("-")[2]
    names = [f"{name}-{key}.npy" for name in _NAMES] + [f"done-{key}.json"]
    return InputError(
        f"{path} is damaged; delete {', '.join(names)} in {path.parent}, and the same "
        "command computes them again"
    )
