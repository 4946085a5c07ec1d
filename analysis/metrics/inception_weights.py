"""The weights of the Inception network, read from torch's file without executing it.

torch-fidelity and pytorch-fid publish the same tensors under the same names, such as
``Mixed_5b.branch1x1.conv.weight`` (out, in, height, width), with its batch
normalisation as ``bn.weight``, ``bn.bias``, ``bn.running_mean`` and ``bn.running_var``,
and ``fc.weight`` (1008, 2048).
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from analysis.metrics.inception import (
    HOW_TO_GET_WEIGHTS,
    Inception,
    inception_shapes,
)
from configs.errors import InputError
from diffusion.interop.restricted_unpickler import read_untrusted

__all__ = ["read_torch_inception", "torch_inception_shapes"]

_IGNORED = ".num_batches_tracked"
_KERNEL_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}
"""From torch's order of axes to ours."""
_BATCH_NORM = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}


class _Tensor(NamedTuple):
    """Where a tensor of torch's file belongs.

    Attributes:
        place: Names of the nested dicts down to the parameter.
        shape: In torch's order of axes.
    """

    place: tuple[str, ...]
    shape: tuple[int, ...]


def read_torch_inception(path: str | Path) -> Inception:
    """Read torch-fidelity's or pytorch-fid's ``.pth`` file.

    Nothing in the file is executed; the counters ``num_batches_tracked`` are left out.

    Args:
        path: The file.

    Returns:
        The network, float32, with the file's sha256 as digest.

    Raises:
        InputError: If the file is missing, which says what to fetch, damaged, or holds
            other tensors; the line names the first that differs.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; {HOW_TO_GET_WEIGHTS}")
    tensors, layout = _tensors(path), _layout()
    for name, (_, shape) in layout.items():
        _check(path, name, tensors.get(name), shape)
    others = tensors.keys() - layout.keys()
    if others:
        raise _other_network(path, f"it also holds {min(others)}")
    params: dict[str, Any] = {}
    for name, (place, _) in layout.items():
        node = params
        for parent in place[:-1]:
            node = node.setdefault(parent, {})
        axes = _KERNEL_AXES.get(tensors[name].ndim, (0,))
        array = np.ascontiguousarray(tensors[name].transpose(axes))
        node[place[-1]] = jnp.asarray(array, jnp.float32)
    return Inception(params, _sha256(path))


def torch_inception_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of torch's file by name, counters left out."""
    return {name: tensor.shape for name, tensor in _layout().items()}


def _layout() -> dict[str, _Tensor]:
    """Return where every tensor of torch's file belongs, by its name."""
    found: dict[str, _Tensor] = {}

    def visit(tree: dict[str, Any], place: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                visit(value, (*place, name))
                continue
            if name == "kernel":
                axes = _KERNEL_AXES[len(value)]
                value = tuple(value[axes.index(i)] for i in range(len(value)))
            # A dense layer has no batch normalisation, so its bias is its own.
            if place == ("fc",):
                last = "weight" if name == "kernel" else name
            else:
                last = f"bn.{_BATCH_NORM[name]}" if name != "kernel" else "conv.weight"
            found[".".join((*place, last))] = _Tensor((*place, name), value)

    visit(inception_shapes(), ())
    return found


def _tensors(path: Path) -> dict[str, Any]:
    """Return what the file holds by name, counters left out."""
    found = read_untrusted(path)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise _other_network(path, "it is no dict of tensors by name")
    return {n: value for n, value in found.items() if not n.endswith(_IGNORED)}


def _check(path: Path, name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    """Refuse what does not belong under its name."""
    if tensor is None:
        raise _other_network(path, f"it lacks {name}, {shape}")
    kind = getattr(tensor, "dtype", type(tensor).__name__)
    if not isinstance(tensor, np.ndarray) or kind not in (np.float32, np.float64):
        raise _other_network(path, f"{name} is of type {kind}, not float32")
    if tensor.shape != shape:
        raise _other_network(path, f"{name} has shape {tensor.shape}, not {shape}")
    if not np.isfinite(tensor).all():
        raise _other_network(path, f"{name} holds NaN or infinite values")
    if name.endswith("running_var") and tensor.min() < 0:
        raise _other_network(path, f"{name} holds a negative variance")


def _other_network(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} does not hold the Inception network of 2015-12-05: {reason}; "
        f"{HOW_TO_GET_WEIGHTS}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
