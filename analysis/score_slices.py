"""A plane through the score field: what models say in the plane of three images.

The plane runs through three anchors a_0, a_1, a_2; its frame e_1, e_2 is a_1 - a_0 and
a_2 - a_0, made orthonormal.  At the points x = origin + u e_1 + v e_2 the score of
every model is split into its part in the plane, drawn as arrows, and the rest: with
many dimensions most of a score may stand upright on the plane.  Data of two dimensions
are the plane themselves.  Source: Wang & Vastola, arXiv 2412.09726.

The points carry no noise, unlike those that a network of images is trained on at
sigma: what it says there is an extrapolation, while a closed form is exact everywhere.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, is_positive
from diffusion.data import to_data_units
from diffusion.denoiser import Denoiser, as_pytree, score

__all__ = ["ScoreSlice", "score_slice", "slice_rows"]


class ScoreSlice(NamedTuple):
    """Scores of models on a grid of a plane; row i, column j is (across[j], up[i]).

    Attributes:
        names: The M models.
        sigma: Noise level, data units.
        across: (n,) coordinates along e_1, data units.
        up: (n,) coordinates along e_2, data units.
        vectors: (M, n, n, 2) the score's part in the plane, along e_1 and e_2, inverse
            data units.
        magnitude: (M, n, n) length of the whole score.
        out_of_plane: (M, n, n) share of the squared length that is off the plane.
        anchors: (3, 2) the anchors' coordinates.
        frame: (2, D) e_1 and e_2.
        origin: (D,) the point of coordinates 0.
    """

    names: tuple[str, ...]
    sigma: float
    across: NDArray[np.float64]
    up: NDArray[np.float64]
    vectors: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    out_of_plane: NDArray[np.float64]
    anchors: NDArray[np.float64]
    frame: NDArray[np.float64]
    origin: NDArray[np.float64]


def score_slice(
    denoisers: Mapping[str, Denoiser],
    anchors: ArrayLike,
    sigma: float,
    *,
    num_points: int = 21,
    margin: float = 0.25,
    batch_size: int = 256,
) -> ScoreSlice:
    """Evaluate scores on the plane of three anchors.

    Args:
        denoisers: Models by name.
        anchors: Three samples, (3, *event), uint8 or data units.
        sigma: Noise level, data units.
        num_points: n, grid points a side.
        margin: How far the square grid reaches beyond the anchors, relative to their
            extent.
        batch_size: Points at once.

    Returns:
        Scores on n x n points.  The plane's origin is the anchors' centre; for data of
        two dimensions coordinates are the data's own.

    Raises:
        InputError: If there is no model, the anchors are not three or lie on a line, or
            a number is out of range.
    """
    points = np.asarray(to_data_units(anchors), np.float64)
    if points.ndim < 2 or len(points) != 3 or not np.isfinite(points).all():
        raise InputError(
            f"anchors have shape {points.shape}; give three finite samples, (3, *event)"
        )
    if not denoisers or num_points < 2 or not is_positive(sigma) or not margin >= 0:
        raise InputError(
            f"{len(denoisers)} models, num_points {num_points}, sigma {sigma} and "
            f"margin {margin} were given; at least one, 2, above 0 and 0 are needed"
        )
    event = points.shape[1:]
    origin, frame = _plane(points.reshape(3, -1))
    places = (points.reshape(3, -1) - origin) @ frame.T
    across, up = _axes(places, num_points, margin)
    u, v = np.meshgrid(across, up)
    x = origin + np.stack([u.ravel(), v.ravel()], axis=1) @ frame
    x = x.reshape(-1, *event)
    scores = np.stack(
        [_scores(model, x, sigma, batch_size) for model in denoisers.values()]
    ).reshape(len(denoisers), num_points, num_points, -1)
    vectors = scores @ frame.T
    squared = np.sum(scores**2, axis=-1)
    inside = np.sum(vectors**2, axis=-1)
    off = 1 - inside / np.where(squared > 0, squared, 1)
    return ScoreSlice(
        names=tuple(denoisers),
        sigma=float(sigma),
        across=across,
        up=up,
        vectors=vectors,
        magnitude=np.sqrt(squared),
        out_of_plane=np.where(squared > 0, np.maximum(off, 0), 0),
        anchors=places,
        frame=frame,
        origin=origin,
    )


def _plane(
    points: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return origin (D,) and frame (2, D) of the plane of three points (3, D)."""
    if points.shape[1] == 2 and np.ptp(points, axis=0).any():
        return np.zeros(2), np.eye(2)
    first, second = points[1] - points[0], points[2] - points[0]
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    if min(lengths) > 0:
        e1 = first / lengths[0]
        second = second - (second @ e1) * e1
        height = np.linalg.norm(second)
        if height > 1e-6 * lengths[1]:
            return points.mean(axis=0), np.stack([e1, second / height])
    raise InputError(
        "the three anchors lie on a line (or two are the same); choose others"
    )


def _axes(
    places: NDArray[np.float64], num_points: int, margin: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coordinates of a square grid around the anchors (3, 2)."""
    low, high = places.min(axis=0), places.max(axis=0)
    half = (1 + 2 * margin) * float((high - low).max()) / 2
    middle = (low + high) / 2
    offsets = np.linspace(-half, half, num_points)
    return middle[0] + offsets, middle[1] + offsets


def _scores(
    model: Denoiser, x: NDArray[np.float64], sigma: float, batch_size: int
) -> NDArray[np.float64]:
    """Return the scores at points (P, *event) as (P, D), in blocks of one size."""
    model = as_pytree(model)
    size = min(batch_size, len(x))
    parts = []
    for first in range(0, len(x), size):
        block = x[first : first + size]
        padding = ((0, size - len(block)), *((0, 0),) * (x.ndim - 1))
        found = _score(model, jnp.asarray(np.pad(block, padding)), sigma)
        parts.append(np.asarray(found, np.float64)[: len(block)])
    return np.concatenate(parts).reshape(len(x), -1)


@jax.jit
def _score(model: Denoiser, x: Array, sigma: Array) -> Array:
    return score(model, x, sigma)


def slice_rows(found: ScoreSlice) -> list[dict[str, Any]]:
    """Return a row of plain numbers per model and point, for a table."""
    return [
        {
            "model": name,
            "sigma": found.sigma,
            "across": float(across),
            "up": float(up),
            "score_across": float(found.vectors[index, row, column, 0]),
            "score_up": float(found.vectors[index, row, column, 1]),
            "magnitude": float(found.magnitude[index, row, column]),
            "out_of_plane": float(found.out_of_plane[index, row, column]),
        }
        for index, name in enumerate(found.names)
        for row, up in enumerate(found.up)
        for column, across in enumerate(found.across)
    ]
