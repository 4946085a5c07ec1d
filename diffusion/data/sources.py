"""Data sets by name or path, as one kind of thing.

A preset's training images and an archive on disk are both an `ImageSource`, and
`data_digest` tells whether two of them hold the same images in the same order.
"""

import hashlib
import os
from collections.abc import Generator
from pathlib import Path

import numpy as np

from configs.errors import InputError, choice_error
from configs.presets import load_preset, preset_names
from configs.schema import DataConfig
from diffusion.data.archives import open_archive
from diffusion.data.builtin import (
    BUILTIN,
    Split,
    load_builtin,
    split_dataset,
)
from diffusion.data.image_source import ImageSource

__all__ = ["check_labels", "data_digest", "open_dataset", "split_of"]


def open_dataset(name_or_path: str | Path) -> ImageSource:
    """Open the training images of a preset, or an archive of images.

    The name of a preset wins over a file or folder of the same name in the working
    directory: ``"./digits"``, or any `Path`, is the folder.

    Args:
        name_or_path: A preset such as ``"digits"``, or a path for `open_archive`.

    Returns:
        The images; of a preset, those that its held_out_fraction and split_seed leave
        for training.

    Raises:
        InputError: If it is neither, or the archive is refused.
    """
    if isinstance(name_or_path, Path):
        return open_archive(name_or_path)
    if name_or_path in preset_names():
        return _preset_source(name_or_path)
    looks_like_path = os.sep in name_or_path or "." in name_or_path
    if looks_like_path or os.path.exists(name_or_path):
        return open_archive(name_or_path)
    unknown = str(choice_error("data set", name_or_path, preset_names()))
    raise InputError(
        f"{unknown}{'' if unknown.endswith('?') else '.'} "
        "It may also be the path of an image archive (zip, folder, npz, idx.gz)"
    )


def data_digest(source: ImageSource, batch_size: int = 1024) -> str:
    """Return what identifies the images; labels do not count.

    Args:
        source: Images in their order.
        batch_size: Images in memory at a time; the digest does not depend on it.

    Returns:
        sha256 of all values, in hexadecimal; for a preset, the digest of `split_of`.

    Raises:
        InputError: If the source cannot be read.
    """
    digest = hashlib.sha256()
    for batch in source.batches(batch_size):
        values = np.ascontiguousarray(batch.images).reshape(-1)
        digest.update(values.view(np.uint8).data)
    return digest.hexdigest()


def _preset_source(name: str) -> ImageSource:
    split = split_of(load_preset(name).data)
    images = split.training.images

    def blocks(block_size: int) -> Generator[np.ndarray, None, None]:
        for start in range(0, len(images), block_size):
            yield images[start : start + block_size].copy()

    return ImageSource(
        name=name,
        num_images=len(images),
        event_shape=images.shape[1:],
        dtype=images.dtype,
        labels=split.training.labels,
        blocks=blocks,
    )


def split_of(data: DataConfig) -> Split:
    """Return the samples of an experiment in memory, split in two.

    Args:
        data: Which samples: a built-in set, or an archive for `open_archive`.

    Returns:
        Training and held-out samples.

    Raises:
        InputError: If there are no such data, they are not of ``data.image_shape``, or
            none would be left for training.
    """
    if data.name in BUILTIN:
        dataset = load_builtin(data.name)
    elif data.name in preset_names() and not os.path.exists(data.name):
        raise InputError(
            f"the images of {data.name} do not come with this package; name an archive "
            "of them with --data.name PATH (zip, folder, npz, idx.gz)"
        )
    elif os.sep in data.name or "." in data.name or os.path.exists(data.name):
        dataset = open_archive(data.name).read()
    else:
        dataset = load_builtin(data.name)
    shape = dataset.images.shape[1:]
    if data.image_shape is not None and shape != tuple(data.image_shape):
        raise InputError(
            f"{data.name} has samples of shape {shape}, but data.image_shape is "
            f"{tuple(data.image_shape)}; use other data or set --data.image-shape"
        )
    return split_dataset(dataset, data.held_out_fraction, data.split_seed)


def check_labels(split: Split, num_classes: int) -> None:
    """Refuse data whose labels a network of `num_classes` classes cannot take.

    Raises:
        InputError: If classes are asked for and a label is missing or too large.
    """
    if num_classes == 0:
        return
    found = split.training.labels.min(), split.training.labels.max()
    if found[0] < 0 or found[1] >= num_classes:
        given = "some without" if found[0] < 0 else f"up to {found[1]}"
        raise InputError(
            f"network.label_dim is {num_classes}, so labels must be 0 to "
            f"{num_classes - 1}; the data have {given}"
        )
