"""Convolutions and changes of resolution, NHWC.

Resampling by 2 with a symmetric filter f of even length n, normalised to sum 1, has
padding p = n/2 - 1: down-sampling is y[i] = sum_t f[t] x[2i + t - p] per axis, and
up-sampling the transpose of that, times 2 per axis (Karras et al., arXiv 2206.00364).
"""

import functools

import jax.numpy as jnp
from jax import Array, lax

__all__ = ["convolve", "downsample", "upsample"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, padding: int) -> Array:
    """Return the convolution (cross-correlation) of zero-padded images.

    Args:
        x: (B, H, W, C_in).
        kernel: (k, k, C_in, C_out), in the dtype of `x`.
        padding: Rows and columns of zeros on each side.

    Returns:
        (B, H + 2 padding - k + 1, W + 2 padding - k + 1, C_out).
    """
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0])
    sides = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (1, 1), sides, dimension_numbers=_LAYOUT)


def downsample(
    x: Array, taps: tuple[int, ...] = (1, 1), *, padded: bool = True
) -> Array:
    """Halve height and width; `taps` (1, 1) averages 2x2 pixels.

    Args:
        x: (B, H, W, C), H and W even.
        taps: The filter before normalisation: symmetric, of even length n.
        padded: Whether to add n/2 - 1 zeros on each side; False where they are there.

    Returns:
        (B, H/2, W/2, C), or one pixel per 2x2 that the filter covers if not padded.
    """
    if taps == (1, 1):
        b, h, w, c = x.shape
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    pad = (len(taps) // 2 - 1) if padded else 0
    for axis in (1, 2):
        sides = [(pad, pad) if a == axis else (0, 0) for a in range(4)]
        wide = jnp.pad(x, sides)
        count = (wide.shape[axis] - len(taps)) // 2 + 1
        parts = [
            (tap / sum(taps))
            * lax.slice_in_dim(wide, t, t + 2 * count - 1, stride=2, axis=axis)
            for t, tap in enumerate(taps)
        ]
        x = functools.reduce(jnp.add, parts)
    return x


def upsample(x: Array, taps: tuple[int, ...] = (1, 1)) -> Array:
    """Double height and width; `taps` (1, 1) repeats pixels.

    Args:
        x: (B, H, W, C).
        taps: The filter before normalisation: symmetric, of even length n.

    Returns:
        (B, 2H, 2W, C).
    """
    b, h, w, c = x.shape
    if taps == (1, 1):
        spread = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        return spread.reshape(b, 2 * h, 2 * w, c)
    pad = len(taps) // 2 - 1
    for axis in (1, 2):
        size = x.shape[axis]
        reach = len(taps) // 2
        sides = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        wide = jnp.pad(x, sides)
        phases = []
        for phase in (0, 1):
            terms = [
                (2 * tap / sum(taps))
                * lax.slice_in_dim(wide, start, start + size, axis=axis)
                for t, tap in enumerate(taps)
                if (phase + pad - t) % 2 == 0
                for start in [reach + (phase + pad - t) // 2]
            ]
            phases.append(sum(terms))
        shape = list(x.shape)
        shape[axis] = 2 * size
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x
