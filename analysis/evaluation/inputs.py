"""What is evaluated: images, features computed elsewhere, or their statistics.

Images of every kind become uint8 pixels, as published numbers are computed on: floats
in data units are rounded to the nearest of 256 levels and what lies beyond -1 and 1 is
clipped.  Each set knows the sha256 of what was used of it, in its order.
"""

import contextlib
import hashlib
import math
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.metrics.feature_statistics import (
    FeatureStatistics,
    check_features,
    load_statistics,
)
from configs.errors import InputError
from diffusion.data import ImageSource, open_dataset
from diffusion.progress import Progress

__all__ = [
    "FeatureSet",
    "ImageSet",
    "StatisticsSet",
    "check_alike",
    "check_signed",
    "count_images",
    "kind_of",
    "open_features",
    "open_images",
    "open_statistics",
]

_IN_MEMORY = 2**29  # bytes of a set that are read rather than put into a file
_BATCH = 1024
_SHOWN = 20_000  # images whose reading takes long enough for a progress bar
_UNSIGNED = -0.25  # data units: floats of [0, 1] stay above, with some overshoot
_BEYOND = 1.5  # data units: what a sampler may overshoot, and no range of its own
_KINDS = {"features": {"features.npy"}, "statistics": {"mu.npy", "sigma.npy"}}


class ImageSet(NamedTuple):
    """Images of one size.

    Attributes:
        name: Path or preset.
        images: (n, H, W, C) uint8, in memory or a memory map.
        digest: sha256 of the values of `images`.
        total: Images that the source has, of which n were taken.
        quantised: Whether they were floats.
        clipped: Share of values beyond -1 and 1.
        lowest: Least value before quantising, data units.
    """

    name: str
    images: NDArray[np.uint8]
    digest: str
    total: int
    quantised: bool
    clipped: float
    lowest: float


class FeatureSet(NamedTuple):
    """Features computed elsewhere: name, (n, d) floats, sha256 of the values."""

    name: str
    features: NDArray[Any]
    digest: str


class StatisticsSet(NamedTuple):
    """Mean and covariance from a file, with the digests that it states."""

    name: str
    statistics: FeatureStatistics
    digest: str
    weights: str


def kind_of(path: str) -> str:
    """Return "features", "statistics" or "images", by what an npz holds.

    Args:
        path: A file, a folder or the name of a preset.
    """
    if path.lower().endswith(".npz") and zipfile.is_zipfile(path):
        with contextlib.suppress(OSError, zipfile.BadZipFile):
            with zipfile.ZipFile(path) as archive:
                members = set(archive.namelist())
            if "images.npy" not in members:
                for kind, wanted in _KINDS.items():
                    if wanted <= members:
                        return kind
    return "images"


def open_images(
    paths: Sequence[str],
    label: str,
    folder: Path,
    max_images: int | None = None,
    *,
    seed: int = 0,
) -> ImageSet:
    """Read images of a data set, or of several one after the other.

    Args:
        paths: What `diffusion.data.open_dataset` opens, or the output folder of
            samplers.generate.
        label: What the set is, for progress and errors.
        folder: Where pixels go that take more than half a gigabyte.
        max_images: Take a random subset of so many, in their order; None for all.
        seed: Of the subset.

    Returns:
        The images.

    Raises:
        InputError: If a path cannot be read, sizes differ, the values are in no known
            range, or there are fewer than `max_images`.
    """
    sources = [open_dataset(_inside(path)) for path in paths]
    shapes = {source.event_shape for source in sources}
    if len(shapes) > 1 or len(sources[0].event_shape) != 3:
        raise InputError(
            f"the {label} have shape {', '.join(map(str, sorted(shapes)))}; all must "
            "be images (H, W, C) of one size; of vectors, give an npz of 'features' "
            "(n, d) on both sides"
        )
    total = sum(source.num_images for source in sources)
    count = total if max_images is None else max_images
    if count > total:
        raise InputError(
            f"there are only {total} {label} in {' and '.join(paths)}; {count} were "
            "asked for"
        )
    chosen = np.zeros(total, bool)
    rng = np.random.default_rng(seed)
    chosen[
        rng.choice(total, count, replace=False) if count < total else slice(None)
    ] = True
    images = _room((count, *sources[0].event_shape), folder)
    return _fill(images, sources, chosen, label, " ".join(paths))


def count_images(paths: Sequence[str]) -> int:
    """Return how many images some data sets have together.

    Args:
        paths: See `open_images`.

    Raises:
        InputError: If a path cannot be read.
    """
    return sum(open_dataset(_inside(path)).num_images for path in paths)


def open_features(path: str, label: str) -> FeatureSet:
    """Read ``features`` (n, d) of an npz.

    Args:
        path: The file.
        label: What the set is, for errors.

    Returns:
        The features.

    Raises:
        InputError: If it cannot be read, is no array (n, d) or holds a number that is
            not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            features = archive["features"]
    except Exception as error:  # np.load says little, in many types
        raise InputError(f"{path} cannot be read as an npz: {error}") from error
    try:
        (features,) = check_features(1, **{label: features})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    values = np.ascontiguousarray(features)
    digest = hashlib.sha256(values.reshape(-1).view(np.uint8).data).hexdigest()
    return FeatureSet(path, values, digest)


def open_statistics(path: str) -> StatisticsSet:
    """Read ``mu`` and ``sigma`` of an npz: ours, or EDM's.

    Args:
        path: The file.

    Returns:
        The statistics, with digests where the file states them.

    Raises:
        InputError: See `load_statistics`.
    """
    stored = load_statistics(path)
    return StatisticsSet(
        path, stored.statistics, stored.data_digest, stored.weights_digest
    )


def check_alike(samples: ImageSet, other: ImageSet, label: str) -> None:
    """Refuse two sets of images of different size or range.

    Args:
        samples: The images evaluated.
        other: The reference, or held-out images.
        label: What the other set is.

    Raises:
        InputError: If image shapes differ, or one has floats from 0 and the other from
            -1.
    """
    a, b = samples.images.shape[1:], other.images.shape[1:]
    if a != b:
        raise InputError(
            f"the samples have shape {a} and the {label} {b}, height, width, channels; "
            "resize one of them beforehand, and say so beside every number"
        )
    for first, second in ((samples, other), (other, samples)):
        if first.quantised and first.lowest > _UNSIGNED and second.lowest < -0.5:
            raise InputError(
                f"{first.name} has floats from {first.lowest:.3g} up and {second.name} "
                "values down to -1; floats must be in [-1, 1]: give 2 x - 1 of [0, 1]"
            )


def check_signed(samples: ImageSet) -> None:
    """Refuse floats that are in [0, 1], where no other images tell the range.

    Args:
        samples: The images evaluated.

    Raises:
        InputError: If they were floats and none is near -1.
    """
    if samples.quantised and samples.lowest > _UNSIGNED:
        raise InputError(
            f"{samples.name} has floats from {samples.lowest:.3g} up; floats must be "
            "in [-1, 1]: give 2 x - 1 of [0, 1], or pixels 0 to 255 as uint8"
        )


def _inside(path: str) -> str:
    """Return what samplers.generate has put its images into, or the path itself."""
    folder = Path(path)
    if not (folder / "record.json").is_file():
        return path
    for name in ("images", "images.zip", "images.npz"):
        if (folder / name).exists():
            return str(folder / name)
    raise InputError(
        f"{path} holds samples but no images; draw them with --format folder, zip or "
        "npz"
    )


def _room(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """Return an array to fill; a large one lies in a file without a name."""
    if math.prod(shape) <= _IN_MEMORY:
        return np.empty(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise OSError(
            f"cannot write into {folder}: {error.strerror or error}; free some space "
            "or choose another --cache"
        ) from error


def _fill(
    images: NDArray[np.uint8],
    sources: Sequence[ImageSource],
    chosen: NDArray[np.bool_],
    label: str,
    name: str,
) -> ImageSet:
    digest, start, place = hashlib.sha256(), 0, 0
    lowest, clipped, values = math.inf, 0, 0
    shown = len(images) >= _SHOWN
    progress = Progress(len(images), label=f"reading {label}", unit="image")
    for source in sources:
        for batch in source.batches(_BATCH):
            taken = batch.images[chosen[place : place + len(batch.images)]]
            place += len(batch.images)
            if not len(taken):
                continue
            pixels, low, beyond = _pixels(taken, name)
            lowest, clipped = min(lowest, low), clipped + beyond
            values += pixels.size
            images[start : start + len(pixels)] = pixels
            digest.update(np.ascontiguousarray(pixels).reshape(-1).data)
            start += len(pixels)
            if shown:
                progress.advance(len(pixels), note=" ")
    progress.close()
    quantised = any(source.dtype != np.uint8 for source in sources)
    share = clipped / max(values, 1)
    return ImageSet(
        name, images, digest.hexdigest(), len(chosen), quantised, share, lowest
    )


def _pixels(images: NDArray[Any], name: str) -> tuple[NDArray[np.uint8], float, int]:
    """Return uint8 pixels, the least value in data units, and how many were clipped."""
    if images.dtype == np.uint8:
        return images, float(images.min()) / 127.5 - 1, 0
    if not np.isfinite(images).all():
        raise InputError(
            f"{name} holds a value that is not finite; leave such images out and "
            "report how many they were"
        )
    low, high = float(images.min()), float(images.max())
    if max(-low, high) > _BEYOND:
        raise InputError(
            f"{name} has floats from {low:.3g} to {high:.3g}; floats must be in [-1, "
            "1], pixels 0 to 255 uint8"
        )
    beyond = int(np.sum(np.abs(images) > 1))
    levels = np.clip(np.round((images.astype(np.float32) + 1) * 127.5), 0, 255)
    return levels.astype(np.uint8), low, beyond
