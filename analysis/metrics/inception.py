"""Features of the Inception network of 2015-12-05, which FID is defined with.

    f(image) = mean over 8x8 pixels of the last block, (2048,),
    logits   = W f, (1008,), the network's bias left out,

of uint8 images resized to 299x299 as TensorFlow 1 did and scaled to (x - 128) / 128.
FID (Heusel et al., arXiv 1706.08500) is the Frechet distance of the Gaussians fitted to
f; the Inception score (Salimans et al., arXiv 1606.03498) uses the logits.  Another
network, another resize or other weights give other numbers under the same name.

The weights are a file that the user provides; see `HOW_TO_GET_WEIGHTS`.
"""

import functools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.inception_layers import (
    IMAGE_SIZE,
    NUM_CLASSES,
    STAGES,
    parameter_shapes,
    resize_tf1,
    run_steps,
)
from configs.errors import InputError, require, require_choice
from diffusion.atomic import write_atomically

__all__ = [
    "HOW_TO_GET_WEIGHTS",
    "LAYERS",
    "RESIZE",
    "Inception",
    "InceptionFeatures",
    "inception_features",
    "inception_layer",
    "inception_shapes",
    "load_inception",
    "save_inception",
]

LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")
"""What `inception_layer` gives; all but the logits averaged over pixels."""
RESIZE = f"TF1 bilinear to {IMAGE_SIZE}x{IMAGE_SIZE}"
"""What is done to the images first: to be printed with every number."""
HOW_TO_GET_WEIGHTS = (
    "fetch weights-inception-2015-12-05-6726825d.pth from torch-fidelity's release "
    "v0.2.0 (github.com/toshas/torch-fidelity/releases) or pytorch-fid's "
    "pt_inception-2015-12-05-6726825d.pth, the same weights, and run python -m "
    "analysis.import_inception FILE --out inception.npz"
)
_FORMAT = "scorelab inception 1"
_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inception:
    """The network with its weights.

    Args:
        params: float32 arrays, nested by name; see `inception_shapes`.
        digest: sha256 of the file that the weights come from.
    """

    params: dict[str, Any]
    digest: str = field(metadata={"static": True})


class InceptionFeatures(NamedTuple):
    """What the network says of images.

    Attributes:
        features: (n, 2048) float32.
        logits: (n, 1008) float32, the bias left out.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]


def inception_features(
    inception: Inception,
    images: ArrayLike,
    *,
    batch_size: int = 32,
    advance: Callable[[int], object] | None = None,
) -> InceptionFeatures:
    """Return features and logits of images.

    They are those of float32 arithmetic at full precision on every device, equal to
    torch-fidelity's up to rounding.

    Args:
        inception: The network.
        images: (n, H, W, C) uint8, C = 3 or, grey, 1.
        batch_size: Images computed at once; the last batch is padded.
        advance: Called with the number of images done after each batch.

    Returns:
        Arrays in host memory, 12 kB an image.

    Raises:
        InputError: If the images are not uint8 or have another shape.
    """
    layers = ("2048", "logits_unbiased")
    found = _in_batches(inception, images, layers, batch_size, advance)
    return InceptionFeatures(*found)


def inception_layer(
    inception: Inception,
    images: ArrayLike,
    layer: str,
    *,
    batch_size: int = 32,
    advance: Callable[[int], object] | None = None,
) -> NDArray[np.float32]:
    """Return one layer of images; what lies behind it is not computed.

    Args:
        inception: The network.
        images: (n, H, W, C) uint8, C = 3 or, grey, 1.
        layer: One of `LAYERS`.
        batch_size: Images computed at once; the last batch is padded.
        advance: Called with the number of images done after each batch.

    Returns:
        (n, width) float32: width is the layer's name, or 1008 for logits.

    Raises:
        InputError: If the layer is unknown, the images are not uint8 or have another
            shape.
    """
    require_choice("Inception layer", layer, LAYERS)
    return _in_batches(inception, images, (layer,), batch_size, advance)[0]


def inception_shapes() -> dict[str, Any]:
    """Return the shapes of the parameters, nested as the parameters are.

    ``{"Conv2d_1a_3x3": {"kernel": (3, 3, 3, 32), "scale": (32,), ...}, ...,
    "fc": {"kernel": (2048, 1008), "bias": (1008,)}}``; kernels are (height, width, in,
    out), variances those of batch normalisation.
    """
    steps = [step for _, stage in STAGES for step in stage]
    shapes, width = parameter_shapes(steps, 3)
    dense = {"kernel": (width, NUM_CLASSES), "bias": (NUM_CLASSES,)}
    return {**shapes, "fc": dense}


def save_inception(path: str | Path, inception: Inception) -> None:
    """Write the network to one ``.npz``, atomically.

    Args:
        path: Destination, written exactly so (no suffix is added).
        inception: The network.

    Raises:
        InputError: If its parameters are not those of the network.
        OSError: If the file cannot be written.
    """
    leaves = _flat(inception.params)
    arrays: dict[str, Any] = {name: np.asarray(a) for name, a in leaves.items()}
    _check_shapes(path, {name: a.shape for name, a in arrays.items()})
    write_atomically(
        path,
        lambda file: np.savez(
            file,
            format=np.asarray(_FORMAT),
            digest=np.asarray(inception.digest),
            **arrays,
        ),
    )


def load_inception(path: str | Path) -> Inception:
    """Read the network from a file of ``python -m analysis.import_inception``.

    Args:
        path: The ``.npz`` file.

    Returns:
        The network, float32.

    Raises:
        InputError: If the file is missing, which says what to fetch, damaged or another
            one.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"there are no Inception weights at {path}; to get them, "
            f"{HOW_TO_GET_WEIGHTS}"
        )
    arrays, digest = _read(path)
    _check_shapes(path, {name: a.shape for name, a in arrays.items()})
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise InputError(
                f"{path} holds numbers in {name} that are not finite float32; import "
                "the weights again"
            )
    return Inception(_nested({n: jnp.asarray(a) for n, a in arrays.items()}), digest)


@functools.partial(jax.jit, static_argnames="layers")
def _apply(
    params: dict[str, Any], images: Array, layers: tuple[str, ...]
) -> tuple[Array, ...]:
    """Return layers of uint8 images (B, H, W, C)."""
    x = images.astype(jnp.float32)
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    x = (resize_tf1(x, IMAGE_SIZE, IMAGE_SIZE) - 128) / 128
    found = {}
    for name, steps in STAGES:
        x = run_steps(steps, params, x)
        found[name] = x.mean(axis=(1, 2))
        if set(layers) <= set(found):
            break
    else:
        dense = params["fc"]
        logits = jnp.matmul(found["2048"], dense["kernel"], precision=_HIGHEST)
        found |= {"logits_unbiased": logits, "logits": logits + dense["bias"]}
    return tuple(found[layer] for layer in layers)


def _in_batches(
    inception: Inception,
    images: ArrayLike,
    layers: tuple[str, ...],
    batch_size: int,
    advance: Callable[[int], object] | None,
) -> list[NDArray[np.float32]]:
    """Return each layer of all images, (n, width)."""
    pixels = np.asarray(images)
    _check_images(pixels)
    require(batch_size >= 1, "batch_size", batch_size, ">= 1")
    size = min(batch_size, len(pixels))
    parts = []
    for start in range(0, len(pixels), size):
        batch = pixels[start : start + size]
        padding = ((0, size - len(batch)), (0, 0), (0, 0), (0, 0))
        found = _apply(inception.params, np.pad(batch, padding), layers)
        parts.append([np.asarray(layer)[: len(batch)] for layer in found])
        if advance is not None:
            advance(len(batch))
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


def _check_images(images: NDArray[Any]) -> None:
    if images.dtype != np.uint8:
        raise InputError(
            f"images have dtype {images.dtype}, but the Inception network sees uint8 "
            "pixels 0 to 255; from data units: np.clip(np.round((x + 1) * 127.5), 0, "
            "255).astype(np.uint8)"
        )
    if images.ndim != 4 or not images.size or images.shape[-1] not in (1, 3):
        hint = "; channels come last" if images.shape[1:2] in ((1,), (3,)) else ""
        raise InputError(
            f"images have shape {images.shape}; give (n, H, W, C), n >= 1, with C = 3 "
            f"or, grey, 1{hint}"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by path, such as Mixed_5b/branch1x1/scale."""
    leaves = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}/")
        else:
            leaves[prefix + name] = value
    return leaves


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts; undoes `_flat`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _check_shapes(path: str | Path, shapes: dict[str, tuple[int, ...]]) -> None:
    wanted = _flat(inception_shapes())
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            raise InputError(
                f"{path} does not hold the Inception network: {name} has shape "
                f"{shapes.get(name, 'none')} instead of {wanted.get(name, 'none')}"
            )


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """Return arrays and digest of a file, whatever their shapes."""
    try:
        # What `save_inception` writes is stored as it is: a small file cannot grow.
        with zipfile.ZipFile(path) as archive:
            if any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(path, allow_pickle=False) as file:
            if str(file["format"]) != _FORMAT:
                raise ValueError(f"its format is {str(file['format'])!r}")
            names = [name for name in file.files if name not in ("format", "digest")]
            return {name: file[name] for name in names}, str(file["digest"])
    except (
        *(KeyError, ValueError, TypeError, EOFError, OSError, MemoryError),
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} was not written by python -m analysis.import_inception or is "
            f"damaged ({reason}); if it is a .pth file, import it first"
        ) from error
