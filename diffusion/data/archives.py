"""Image archives on disk, opened by what they are.

Zip of EDM's layout, folder of images, npz of arrays, MNIST's idx: every kind becomes an
`ImageSource`, checked before anything is decoded and read in bounded memory.
"""

import os
from pathlib import Path

from configs.errors import InputError
from diffusion.data.array_files import open_idx, open_npz
from diffusion.data.image_files import (
    list_image_folder,
    list_image_zip,
    open_image_files,
)
from diffusion.data.image_source import ImageSource

__all__ = ["open_archive"]

_READERS = {
    ".zip": lambda path: open_image_files(list_image_zip(path)),
    ".npz": open_npz,
    "idx3-ubyte": open_idx,
    "idx3-ubyte.gz": open_idx,
}


def open_archive(path: str | Path) -> ImageSource:
    """Open an archive of labelled images.

    Args:
        path: One of four.  ``.zip``: image files with ``dataset.json``, as EDM writes
            them.  A folder of image files, with ``dataset.json`` or one sub-folder for
            each class.  ``.npz``: arrays ``images`` (N, *event) uint8 or float and
            ``labels`` (N,).  ``-idx3-ubyte``, maybe with ``.gz``: MNIST's images, with
            the file of labels beside it.

    Returns:
        The images in a fixed order; nothing but sizes, labels and the header of the
        first image has been read.

    Raises:
        InputError: If there is no such file, it is none of these, or it is refused
            (see `diffusion.data.limits`).
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return open_image_files(list_image_folder(name))
    if not os.path.exists(name):
        raise InputError(
            f"there is no file or folder {name!r}; give the path of an image archive "
            "(zip, folder, npz, idx.gz)"
        )
    for ending, open_reader in _READERS.items():
        if os.path.isfile(name) and name.lower().endswith(ending):
            return open_reader(name)
    raise InputError(
        f"{name!r} is no image archive; its name must end in "
        f"{', '.join(_READERS)}, or it must be a folder of images"
    )
