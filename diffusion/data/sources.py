"""Data sets by name or path, as one kind of thing.

A preset's training images and an archive on disk are both an `ImageSource`, and
`data_digest` tells whether two of them hold the same images in the same order.
"""

import hashlib
import os
import warnings
from collections.abc import Generator
from pathlib import Path

import numpy as np

from configs.errors import InputError, InputWarning, choice_error
from configs.presets import load_preset, preset_names
from configs.schema import DataConfig
from diffusion.data.archives import open_archive
from diffusion.data.builtin import (
    BUILTIN,
    Dataset,
    Split,
    load_builtin,
    split_dataset,
)
from diffusion.data.image_source import ImageSource
from diffusion.data.packed import is_packed, open_packed, packed_folder

__all__ = ["check_labels", "data_digest", "open_dataset", "split_of"]


def open_dataset(name_or_path: str | Path) -> ImageSource:
    """Open the training images of a preset, or an archive of images.

    The name of a preset wins over a file or folder of the same name in the working
    directory: ``"./digits"``, or any `Path`, is the folder.

    Args:
        name_or_path: A preset such as ``"digits"``, the folder of a packed set, or a
            path for `open_archive`.

    Returns:
        The images; of a preset, those that its held_out_fraction and split_seed leave
        for training.

    Raises:
        InputError: If it is neither, or the archive is refused.
    """
    if is_packed(name_or_path):
        return _training_source(str(name_or_path), open_packed(name_or_path))
    if isinstance(name_or_path, Path):
        return open_archive(name_or_path)
    if name_or_path in preset_names():
        return _training_source(name_or_path, split_of(load_preset(name_or_path).data))
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


def _training_source(name: str, split: Split) -> ImageSource:
    images = split.training.images

    def blocks(block_size: int) -> Generator[np.ndarray, None, None]:
        for start in range(0, len(images), block_size):
            yield np.array(images[start : start + block_size])

    return ImageSource(
        name=name,
        num_images=len(images),
        event_shape=images.shape[1:],
        dtype=images.dtype,
        labels=split.training.labels,
        blocks=blocks,
    )


def split_of(data: DataConfig) -> Split:
    """Return the samples of an experiment, split in two.

    Args:
        data: Which samples: a built-in set, one that `diffusion.prepare_data` has
            packed, or an archive for `open_archive`.

    Returns:
        Training and held-out samples; those of a packed set are memory maps, split as
        it was prepared.

    Raises:
        InputError: If there are no such data, they are damaged or not of
            ``data.image_shape``, or none would be left for training.
    """
    packed = packed_folder(data.name, data.data_dir)
    if data.name in BUILTIN:
        split = _split(load_builtin(data.name), data)
    elif is_packed(data.name) or is_packed(packed):
        split = open_packed(data.name if is_packed(data.name) else packed)
        if data.max_images is not None:
            split = _fewer(split, data)
    elif data.name in preset_names() and not os.path.exists(data.name):
        raise InputError(
            f"the images of {data.name} are not in {packed}; prepare them: "
            f"python -m diffusion.prepare_data {data.name} --source PATH --data-dir "
            f"{data.data_dir}, or name an archive of them with --data.name PATH (zip, "
            "folder, npz, idx.gz)"
        )
    elif os.sep in data.name or "." in data.name or os.path.exists(data.name):
        split = _split(open_archive(data.name).read(), data)
    else:
        raise _unknown(data)
    shape = split.training.images.shape[1:]
    if data.image_shape is not None and shape != tuple(data.image_shape):
        raise InputError(
            f"{data.name} has samples of shape {shape}, but data.image_shape is "
            f"{tuple(data.image_shape)}; use other data or set --data.image-shape"
        )
    return split


def _split(dataset: Dataset, data: DataConfig) -> Split:
    return split_dataset(
        dataset, data.held_out_fraction, data.split_seed, data.max_images
    )


def _fewer(split: Split, data: DataConfig) -> Split:
    """Return a packed set with a random subset of its training images, in memory."""
    training = split_dataset(split.training, 0.0, data.split_seed, data.max_images)
    return training._replace(held_out=split.held_out)


def _unknown(data: DataConfig) -> InputError:
    folder = packed_folder("", data.data_dir)
    found = [path.name for path in folder.glob("*") if is_packed(path)]
    unknown = str(choice_error("data set", data.name, (*BUILTIN, *found)))
    return InputError(
        f"{unknown}{'' if unknown.endswith('?') else '.'} Prepare others with python "
        "-m diffusion.prepare_data, or name an archive (zip, folder, npz, idx.gz)"
    )


def check_labels(split: Split, num_classes: int, *, or_none: bool = False) -> None:
    """Refuse data whose labels a network of `num_classes` classes cannot take.

    Args:
        split: The data.
        num_classes: Classes of the network, 0 for one that is told none.
        or_none: Whether data in which no sample has a class pass, with a warning: a
            trained network is then told no class.

    Raises:
        InputError: If classes are asked for and a label is missing or too large.
    """
    if num_classes == 0:
        return
    sets = (split.training, split.held_out)
    if or_none and all(np.all(np.asarray(one.labels) < 0) for one in sets):
        warnings.warn(
            f"the network knows {num_classes} classes and the data none: it is told "
            "no class; give data with labels for what it does with one",
            InputWarning,
            stacklevel=2,
        )
        return
    for name, dataset in (("", split.training), ("held-out ", split.held_out)):
        if not len(dataset.labels):
            continue
        least, most = dataset.labels.min(), dataset.labels.max()
        if least < 0 or most >= num_classes:
            given = "some without" if least < 0 else f"up to {most}"
            raise InputError(
                f"network.label_dim is {num_classes}, so labels must be 0 to "
                f"{num_classes - 1}; the {name}data have {given}"
            )
