"""The layers of the Inception network of 2015-12-05, as data and one interpreter.

Inception v3 (Szegedy et al., arXiv 1512.00567) is blocks of parallel chains of

    y = relu(scale (W * x - mean) / sqrt(variance + 1e-3) + bias),

with 3x3 pools between.  The graph that Frechet distances are defined with departs from
the paper: images are resized as TensorFlow 1 did, averages leave the border out, and
the last block pools by the maximum.  These departures and the names of the weights are
as documented by pytorch-fid and torch-fidelity 0.4 (both Apache-2.0).

`STAGES` says what the network is, `parameter_shapes` what parameters that takes, and
`run_steps` computes.  Images are (B, H, W, C), kernels (height, width, in, out).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = [
    "IMAGE_SIZE",
    "NUM_CLASSES",
    "STAGES",
    "Convolution",
    "Parallel",
    "Pool",
    "Step",
    "parameter_shapes",
    "resize_tf1",
    "run_steps",
]

IMAGE_SIZE = 299
"""Side of the images that the network sees, pixels."""
NUM_CLASSES = 1008
_EPSILON = 1e-3
_HIGHEST = lax.Precision.HIGHEST


class Convolution(NamedTuple):
    """A convolution without bias, batch normalisation and relu.

    Attributes:
        name: Of its parameters.
        channels: Of its output.
        kernel: Height and width.
        stride: In pixels, both ways.
        padding: SAME or VALID.
    """

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """A 3x3 pool: stride 1 keeps the size, stride 2 leaves the border out.

    Attributes:
        kind: maximum or average; an average is over the pixels within the image.
        stride: 1 or 2.
    """

    kind: str
    stride: int = 1


class Parallel(NamedTuple):
    """Chains of the same input, their outputs side by side as channels.

    Attributes:
        chains: Steps, one after another, of each.
        name: Under which its parameters lie; empty for those of the surroundings.
    """

    chains: tuple[tuple["Step", ...], ...]
    name: str = ""


Step = Convolution | Pool | Parallel


def resize_tf1(images: Array, height: int, width: int) -> Array:
    """Return images resized as by TensorFlow 1: bilinear, corners at corners.

    Output pixel i looks at i * size_in / size_out, without the half-pixel shift that is
    usual today and without a filter against aliasing; beyond the last pixel it repeats.

    Args:
        images: (B, H, W, C), float32.
        height: Of the result.
        width: Of the result.

    Returns:
        (B, height, width, C).
    """
    for axis, size in ((2, width), (1, height)):
        lower, upper, weight = _neighbours(images.shape[axis], size)
        shape = [1] * images.ndim
        shape[axis] = size
        low, high = (jnp.take(images, i, axis=axis) for i in (lower, upper))
        images = low + (high - low) * weight.reshape(shape)
    return images


def run_steps(steps: Sequence[Step], params: dict[str, Any], x: Array) -> Array:
    """Apply steps one after another.

    Args:
        steps: What to apply.
        params: Parameters by name, as `parameter_shapes` lists them.
        x: (B, H, W, C).

    Returns:
        (B, H', W', C').
    """
    for step in steps:
        if isinstance(step, Convolution):
            x = _convolution(step, params[step.name], x)
        elif isinstance(step, Pool):
            x = _pool(step, x)
        else:
            inner = params[step.name] if step.name else params
            chains = [run_steps(chain, inner, x) for chain in step.chains]
            x = jnp.concatenate(chains, axis=-1)
    return x


def parameter_shapes(
    steps: Sequence[Step], channels: int
) -> tuple[dict[str, Any], int]:
    """Return the shapes of the parameters of steps, and the channels they end with.

    Args:
        steps: What is applied.
        channels: Of the input.

    Returns:
        A dict of ``{"kernel", "scale", "bias", "mean", "variance"}`` by name, nested
        where steps are, with shapes for leaves; and the number of channels.
    """
    shapes: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, Convolution):
            vectors = dict.fromkeys(
                ("scale", "bias", "mean", "variance"), (step.channels,)
            )
            kernel = (*step.kernel, channels, step.channels)
            shapes[step.name] = {"kernel": kernel, **vectors}
            channels = step.channels
        elif isinstance(step, Parallel):
            found = [parameter_shapes(chain, channels) for chain in step.chains]
            inner = shapes.setdefault(step.name, {}) if step.name else shapes
            for chain_shapes, _ in found:
                inner.update(chain_shapes)
            channels = sum(ending for _, ending in found)
    return shapes, channels


def _neighbours(
    size_in: int, size_out: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two pixels that each output pixel lies between, and how far along."""
    # In float32, as TensorFlow's kernel computes it.
    places = np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out)
    lower = places.astype(np.int32)
    return lower, np.minimum(lower + 1, size_in - 1), places - lower.astype(np.float32)


def _convolution(step: Convolution, params: dict[str, Array], x: Array) -> Array:
    y = lax.conv_general_dilated(
        x,
        params["kernel"],
        (step.stride, step.stride),
        step.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_HIGHEST,
    )
    gain = params["scale"] / jnp.sqrt(params["variance"] + _EPSILON)
    return jax.nn.relu(y * gain + (params["bias"] - params["mean"] * gain))


def _pool(step: Pool, x: Array) -> Array:
    padding = "SAME" if step.stride == 1 else "VALID"
    window, strides = (1, 3, 3, 1), (1, step.stride, step.stride, 1)
    if step.kind == "maximum":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
    counts = [
        np.minimum(np.arange(n) + 2, n) - np.maximum(np.arange(n) - 1, 0)
        for n in x.shape[1:3]
    ]
    return total / np.outer(*counts).astype(np.float32)[:, :, None]


_AVERAGE, _MAXIMUM = Pool("average"), Pool("maximum")
_HALVE = Pool("maximum", stride=2)


def _halving(name: str, channels: int) -> Convolution:
    return Convolution(name, channels, (3, 3), stride=2, padding="VALID")


def _block_35(name: str, pooled: int) -> Parallel:
    """Return a block at 35x35 pixels: 1x1, 5x5, two 3x3, pool."""
    chains = (
        (Convolution("branch1x1", 64),),
        (Convolution("branch5x5_1", 48), Convolution("branch5x5_2", 64, (5, 5))),
        (
            Convolution("branch3x3dbl_1", 64),
            Convolution("branch3x3dbl_2", 96, (3, 3)),
            Convolution("branch3x3dbl_3", 96, (3, 3)),
        ),
        (_AVERAGE, Convolution("branch_pool", pooled)),
    )
    return Parallel(chains, name)


def _reduction_17(name: str) -> Parallel:
    """Return the block from 35x35 to 17x17 pixels."""
    chains = (
        (_halving("branch3x3", 384),),
        (
            Convolution("branch3x3dbl_1", 64),
            Convolution("branch3x3dbl_2", 96, (3, 3)),
            _halving("branch3x3dbl_3", 96),
        ),
        (_HALVE,),
    )
    return Parallel(chains, name)


def _block_17(name: str, inner: int) -> Parallel:
    """Return a block at 17x17 pixels, 7x7 split into rows and columns."""
    row, column = (1, 7), (7, 1)
    chains = (
        (Convolution("branch1x1", 192),),
        (
            Convolution("branch7x7_1", inner),
            Convolution("branch7x7_2", inner, row),
            Convolution("branch7x7_3", 192, column),
        ),
        (
            Convolution("branch7x7dbl_1", inner),
            Convolution("branch7x7dbl_2", inner, column),
            Convolution("branch7x7dbl_3", inner, row),
            Convolution("branch7x7dbl_4", inner, column),
            Convolution("branch7x7dbl_5", 192, row),
        ),
        (_AVERAGE, Convolution("branch_pool", 192)),
    )
    return Parallel(chains, name)


def _reduction_8(name: str) -> Parallel:
    """Return the block from 17x17 to 8x8 pixels."""
    chains = (
        (Convolution("branch3x3_1", 192), _halving("branch3x3_2", 320)),
        (
            Convolution("branch7x7x3_1", 192),
            Convolution("branch7x7x3_2", 192, (1, 7)),
            Convolution("branch7x7x3_3", 192, (7, 1)),
            _halving("branch7x7x3_4", 192),
        ),
        (_HALVE,),
    )
    return Parallel(chains, name)


def _block_8(name: str, pool: Pool) -> Parallel:
    """Return a block at 8x8 pixels, whose 3x3 are a row beside a column."""

    def fork(prefix: str) -> Parallel:
        row = Convolution(f"{prefix}a", 384, (1, 3))
        column = Convolution(f"{prefix}b", 384, (3, 1))
        return Parallel(((row,), (column,)))

    chains = (
        (Convolution("branch1x1", 320),),
        (Convolution("branch3x3_1", 384), fork("branch3x3_2")),
        (
            Convolution("branch3x3dbl_1", 448),
            Convolution("branch3x3dbl_2", 384, (3, 3)),
            fork("branch3x3dbl_3"),
        ),
        (pool, Convolution("branch_pool", 192)),
    )
    return Parallel(chains, name)


STAGES: tuple[tuple[str, tuple[Step, ...]], ...] = (
    (
        "64",
        (
            Convolution("Conv2d_1a_3x3", 32, (3, 3), stride=2, padding="VALID"),
            Convolution("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
            Convolution("Conv2d_2b_3x3", 64, (3, 3)),
            _HALVE,
        ),
    ),
    (
        "192",
        (
            Convolution("Conv2d_3b_1x1", 80),
            Convolution("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
            _HALVE,
        ),
    ),
    (
        "768",
        (
            _block_35("Mixed_5b", 32),
            _block_35("Mixed_5c", 64),
            _block_35("Mixed_5d", 64),
            _reduction_17("Mixed_6a"),
            _block_17("Mixed_6b", 128),
            _block_17("Mixed_6c", 160),
            _block_17("Mixed_6d", 160),
            _block_17("Mixed_6e", 192),
        ),
    ),
    (
        "2048",
        (
            _reduction_8("Mixed_7a"),
            _block_8("Mixed_7b", _AVERAGE),
            _block_8("Mixed_7c", _MAXIMUM),
        ),
    ),
)
"""The network up to each layer that is given out, named by its width."""
