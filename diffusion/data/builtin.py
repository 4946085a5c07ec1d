"""Data sets that need no download.

``digits``: scikit-learn's handwritten digits, 1,797 grey images of 8x8 pixels with 17
grey levels, scaled to uint8 (Alpaydin & Kaynak 1998, UCI Machine Learning Repository).
``mixture2d``: points of three equal Gaussians of standard deviation .25 with means on a
circle of radius 1.5, whose score is known in closed form.
``glyphs``: 2,176 drawn grey images of 12x12 pixels, slanted upright letters F, P and L
and the figure 7 (`diffusion.data.glyphs`), which show when a model turns images.
"""

import functools
import hashlib
import math
from typing import Any, NamedTuple

import numpy as np

from configs.errors import InputError, choice_error
from diffusion.data.batches import to_data_units
from diffusion.data.glyphs import GLYPHS, draw_glyphs

__all__ = ["BUILTIN", "Dataset", "Split", "load_builtin", "split_dataset", "split_rows"]

_MIXTURE_POINTS = 10_000
_MIXTURE_STD = 0.25
_MIXTURE_RADIUS = 1.5
_NUM_GLYPHS = 2_176


class Dataset(NamedTuple):
    """Labelled samples in memory.

    Attributes:
        images: (N, *event), uint8 pixels or floats in data units.
        labels: (N,) int64 classes.
    """

    images: np.ndarray
    labels: np.ndarray


class Split(NamedTuple):
    """A data set in two parts, and what identifies it.

    Attributes:
        training: What training sees.
        held_out: What it never sees; may be empty.
        digest: sha256 of the training images.
        sigma_data: Root mean square of all training pixels, in data units: what the
            preconditioning divides by, as it does not subtract the mean.
    """

    training: Dataset
    held_out: Dataset
    digest: str
    sigma_data: float


def load_builtin(name: str) -> Dataset:
    """Return a built-in data set, in a fixed order.

    Args:
        name: ``"digits"``, ``"glyphs"`` or ``"mixture2d"``.

    Returns:
        Images (1797, 8, 8, 1) or (2176, 12, 12, 1) uint8, or points (10000, 2) float32,
        with their classes.

    Raises:
        InputError: If there is no data set of that name.
    """
    if name not in BUILTIN:
        raise choice_error("data set", name, BUILTIN)
    return BUILTIN[name]()


def split_rows(
    count: int, held_out_fraction: float, split_seed: int, max_images: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose at random which samples are for training and which are held out.

    Args:
        count: Number of samples, N.
        held_out_fraction: Share held out, in [0, 1); rounded to whole samples.
        split_seed: Seed of the permutation that decides which.
        max_images: Most samples for training.  A smaller subset lies in each larger
            one, and which samples are held out does not depend on it.

    Returns:
        Training and held-out rows, each in increasing order.

    Raises:
        InputError: If no training sample would be left, or fewer than `max_images`.
    """
    num_held_out = round(held_out_fraction * count)
    left = count - num_held_out
    if left < 1:
        raise InputError(
            f"held_out_fraction {held_out_fraction} leaves none of the {count} samples "
            "for training; lower it"
        )
    if max_images is not None and max_images > left:
        raise InputError(
            f"max_images is {max_images}, but there are only {left} training samples; "
            "lower it or leave it out"
        )
    order = np.random.default_rng(split_seed).permutation(count)
    training = order[num_held_out:][:max_images]
    return np.sort(training), np.sort(order[:num_held_out])


def split_dataset(
    dataset: Dataset,
    held_out_fraction: float,
    split_seed: int,
    max_images: int | None = None,
) -> Split:
    """Split samples at random into training and held-out ones.

    Args:
        dataset: All samples.
        held_out_fraction: Share held out, in [0, 1); rounded to whole samples.
        split_seed: Seed of the permutation that decides which.
        max_images: Most samples for training; None for all.

    Returns:
        The two parts, each in the data set's own order, with digest and sigma_data.

    Raises:
        InputError: If no training sample would be left, or fewer than `max_images`.
    """
    training, held_out = split_rows(
        len(dataset.images), held_out_fraction, split_seed, max_images
    )
    images = np.ascontiguousarray(dataset.images[training])
    return Split(
        training=Dataset(images, dataset.labels[training]),
        held_out=Dataset(dataset.images[held_out], dataset.labels[held_out]),
        digest=hashlib.sha256(images.reshape(-1).view(np.uint8).data).hexdigest(),
        sigma_data=_root_mean_square(images),
    )


def _root_mean_square(images: np.ndarray, block_size: int = 4096) -> float:
    """Return the root mean square in data units, a block at a time."""
    total = 0.0
    for start in range(0, len(images), block_size):
        pixels = to_data_units(images[start : start + block_size])
        total += float(np.sum(np.square(np.asarray(pixels, np.float64))))
    return math.sqrt(total / images.size)


@functools.cache
def _digits() -> Dataset:
    # Imported here: it takes a second, and points and files do without it.
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    grey = np.asarray(loaded["images"], np.float64)
    pixels = np.round(grey * (255 / 16)).astype(np.uint8)[..., None]
    return Dataset(pixels, np.asarray(loaded["target"], np.int64))


@functools.cache
def _mixture2d() -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, _MIXTURE_POINTS)
    angle = 2 * math.pi * labels / 3
    means = _MIXTURE_RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = means + _MIXTURE_STD * rng.normal(size=means.shape)
    return Dataset(points.astype(np.float32), labels)


@functools.cache
def _glyphs() -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(GLYPHS), _NUM_GLYPHS)
    return Dataset(draw_glyphs(rng, labels), labels)


BUILTIN = {"digits": _digits, "glyphs": _glyphs, "mixture2d": _mixture2d}
