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
from diffusion.data.archives import open_archive
from diffusion.data.builtin import load_split
from diffusion.data.image_source import ImageSource

__all__ = ["data_digest", "open_dataset"]


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
        sha256 of all values, in hexadecimal; for a preset, the digest of `load_split`.

    Raises:
        InputError: If the source cannot be read.
    """
    digest = hashlib.sha256()
    for batch in source.batches(batch_size):
        values = np.ascontiguousarray(batch.images).reshape(-1)
        digest.update(values.view(np.uint8).data)
    return digest.hexdigest()


def _preset_source(name: str) -> ImageSource:
    data = load_preset(name).data
    split = load_split(data.name, data.held_out_fraction, data.split_seed)
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
