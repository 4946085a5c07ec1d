"""This project's weights as ``.safetensors``: names, shapes and numbers, no code.

A parameter's name is its path in the nested dict, ``unet/conv_in/kernel``, and its
layout the one of the network (HWIO, (in, out)).  The architecture is not in the file.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.atomic import write_atomically

__all__ = ["load_params", "read_safetensors", "save_params"]


def save_params(path: str | Path, params: dict[str, Any]) -> None:
    """Write a nested dict of arrays.

    Args:
        path: The file; written whole or not at all.
        params: Nested dict of arrays.

    Raises:
        OSError: If it cannot be written.
    """
    # Imported here: only files of this kind need it.
    import safetensors.numpy

    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    arrays = {
        jax.tree_util.keystr(place, simple=True, separator="/"): np.ascontiguousarray(
            leaf
        )
        for place, leaf in leaves
    }
    data = safetensors.numpy.save(arrays)
    write_atomically(Path(path), lambda file: file.write(data))


def load_params(path: str | Path) -> dict[str, Any]:
    """Read what `save_params` wrote.

    Args:
        path: The file.

    Returns:
        Nested dict of NumPy arrays.

    Raises:
        InputError: If the file is missing or damaged.
    """
    params: dict[str, Any] = {}
    for name, array in read_safetensors(path).items():
        *owners, leaf = name.split("/")
        place = params
        for owner in owners:
            place = place.setdefault(owner, {})
            if not isinstance(place, dict):
                raise InputError(f"{path} has both a tensor and a group {owner}")
        if leaf in place:
            raise InputError(f"{path} has both a tensor and a group {name}")
        place[leaf] = array
    return params


def read_safetensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read all tensors of a file by name.

    Raises:
        InputError: If the file is missing or damaged, or holds a type that NumPy has
            no name for.
    """
    import safetensors
    import safetensors.numpy

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no intact safetensors file: {text}") from error
