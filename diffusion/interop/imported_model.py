"""What a foreign checkpoint becomes, and how its tensors find their places."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.network_schema import NetworkConfig
from configs.schema import PreconditioningConfig
from diffusion.networks import build_network

__all__ = ["ImportedModel", "fill_params"]

Tensors = dict[str, NDArray[Any]]


class ImportedModel(NamedTuple):
    """A network with its weights, in this project's terms.

    Attributes:
        network: The architecture.
        preconditioning: How its output becomes a denoiser.
        event_shape: (H, W, C) of one image.
        params: Nested dict of float32 arrays.
        notice: What its licence asks to be told, or an empty string.
    """

    network: NetworkConfig
    preconditioning: PreconditioningConfig
    event_shape: tuple[int, ...]
    params: dict[str, Any]
    notice: str


def fill_params(
    network: NetworkConfig,
    event_shape: tuple[int, ...],
    tensors: Tensors,
    name_of: Callable[[str], str],
    *,
    output_factor: int = 1,
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """Put tensors in PyTorch's layout into the places of a network.

    Convolution kernels OIHW become HWIO, and dense kernels (out, in) become (in, out).

    Args:
        network: The architecture.
        event_shape: (H, W, C) of one image.
        tensors: The checkpoint's tensors by name.
        name_of: The checkpoint's name of a path such as ``unet/conv_in/kernel``.
        output_factor: See `build_network`.
        ignored: Names that may be left over.

    Returns:
        Nested dict of float32 arrays.

    Raises:
        InputError: If a tensor is missing, left over, not finite, or of another shape.
    """
    built = build_network(network, event_shape, output_factor=output_factor)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    left, values = set(tensors), []
    for path, shape in leaves:
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        name = name_of(place)
        if name not in tensors:
            raise InputError(f"the checkpoint has no tensor {name} for {place}")
        left.discard(name)
        values.append(_in_our_layout(name, tensors[name], place, shape.shape))
    unknown = sorted(name for name in left if not ignored(name))
    if unknown:
        raise InputError(
            f"the checkpoint has {len(unknown)} tensors that its architecture has no "
            f"place for, such as {unknown[0]}; is it of another architecture?"
        )
    return jax.tree_util.tree_unflatten(structure, values)


def _in_our_layout(
    name: str, tensor: NDArray[Any], place: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    array = np.asarray(tensor).astype(np.float32)
    if place.endswith("kernel"):
        if array.ndim == 2 and len(shape) == 4:
            array = array[:, :, None, None]  # an attention layer kept as a dense one
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
        array = array.transpose(tuple(axes))
    if array.shape != shape:
        raise InputError(
            f"tensor {name} has shape {array.shape} in this layout, but {place} needs "
            f"{shape}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"tensor {name} holds NaN or infinite values")
    return np.ascontiguousarray(array)
