"""What candidates and a reference answer at one noise level, summed up block by block.

Of each block of probes x = x0 + sigma n the reference's answer D is held, and compared
with one candidate's after another's; what is left of a block are sums.  Blocks have one
shape, the last is padded, so one program serves each model.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from diffusion.data import to_data_units
from diffusion.denoiser import Denoiser, as_pytree

__all__ = ["LevelSums", "measure_level"]

_HIGHEST = jax.lax.Precision.HIGHEST


class LevelSums(NamedTuple):
    """Of M candidates on N probes and k directions u, at one noise level.

    All float64, in data units squared unless said otherwise.

    Attributes:
        error: (M, N) |D - D_c|^2.
        score_power: (N,) |D - x|^2, sigma^4 times that of the reference's score.
        power: (N,) |D - mean|^2.
        candidate_score_power: (M, N) |D_c - x|^2.
        candidate_power: (M, N) |D_c - mean|^2.
        pixel_error: (M, *event) average over probes of |D - D_c|, data units.
        direction_error: (M, k) average of (u . (D - D_c))^2.
        direction_error_square: (M, k) average of its square.
        direction_power: (k,) average of (u . (D - mean))^2.
    """

    error: NDArray[np.float64]
    score_power: NDArray[np.float64]
    power: NDArray[np.float64]
    candidate_score_power: NDArray[np.float64]
    candidate_power: NDArray[np.float64]
    pixel_error: NDArray[np.float64]
    direction_error: NDArray[np.float64]
    direction_error_square: NDArray[np.float64]
    direction_power: NDArray[np.float64]


class _Probes(NamedTuple):
    """A block: x and D (B, *event), which are no padding (B,), sigma ()."""

    x: Array
    denoised: Array
    valid: Array
    sigma: Array


class _Frame(NamedTuple):
    """What errors are told by: the mean (*event), and directions (D, k)."""

    mean: Array
    directions: Array


def measure_level(
    reference: Denoiser,
    candidates: Mapping[str, Denoiser],
    images: ArrayLike,
    sigma: float,
    key: Array,
    *,
    mean: ArrayLike,
    batch_size: int = 256,
    directions: ArrayLike | None = None,
    reference_of: Callable[[NDArray[np.intp]], Denoiser] | None = None,
    after_call: Callable[[str], object] | None = None,
) -> LevelSums:
    """Compare candidates with a reference at one noise level.

    Args:
        reference: The denoiser to explain.
        candidates: Denoisers by name, at least one.
        images: Clean samples, (N, *event), uint8 or data units, N >= 1.
        sigma: Noise level, data units.
        key: A `jax.random.key`; the noise on image i is of ``fold_in(key, i)``.
        mean: Mean of the data, (*event).
        batch_size: Probes handled at once.
        directions: Orthonormal columns, (D, k); None for none.
        reference_of: What denoises images of some numbers, (B,), in place of the
            reference: a network that is told classes.
        after_call: Told after every call which candidate was called, "" for the
            reference.

    Returns:
        The sums, on the host.
    """
    pixels = np.asarray(images)
    count, size = len(pixels), min(batch_size, len(pixels))
    mean = jnp.asarray(mean)
    basis = jnp.zeros((mean.size, 0)) if directions is None else jnp.asarray(directions)
    frame = _Frame(mean, basis.astype(mean.dtype))
    models = {name: as_pytree(model) for name, model in candidates.items()}
    told = after_call or (lambda _: None)
    references, compared = [], []
    for start in range(0, count, size):
        numbers = np.minimum(np.arange(start, start + size), count - 1)
        model = as_pytree(reference) if reference_of is None else reference_of(numbers)
        valid = np.arange(start, start + size) < count
        probes = _probe(model, pixels[numbers], start, valid, sigma, key)
        references.append(_on_host(_reference_sums(probes, frame)))
        told("")
        row = []
        for name, candidate in models.items():
            row.append(_on_host(_candidate_sums(candidate, probes, frame)))
            told(name)
        compared.append(row)
    return _collect(references, compared, count)


def _on_host(sums: dict[str, Array]) -> dict[str, NDArray[np.float64]]:
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}


def _collect(
    references: list[dict[str, NDArray[np.float64]]],
    compared: list[list[dict[str, NDArray[np.float64]]]],
    count: int,
) -> LevelSums:
    """Put blocks behind each other, without the padding, and add up their sums."""

    def probes(name: str, candidate: int) -> NDArray[np.float64]:
        return np.concatenate([row[candidate][name] for row in compared])[:count]

    def average(name: str, candidate: int) -> NDArray[np.float64]:
        return np.sum([row[candidate][name] for row in compared], axis=0) / count

    each = range(len(compared[0]))

    def stacked(read: Callable[[str, int], Any], name: str) -> NDArray[np.float64]:
        return np.stack([read(name, candidate) for candidate in each])

    def of_reference(name: str) -> NDArray[np.float64]:
        return np.concatenate([block[name] for block in references])[:count]

    return LevelSums(
        error=stacked(probes, "error"),
        score_power=of_reference("score_power"),
        power=of_reference("power"),
        candidate_score_power=stacked(probes, "score_power"),
        candidate_power=stacked(probes, "power"),
        pixel_error=stacked(average, "pixel_error"),
        direction_error=stacked(average, "direction_error"),
        direction_error_square=stacked(average, "direction_error_square"),
        direction_power=np.sum([b["direction_power"] for b in references], axis=0)
        / count,
    )


@jax.jit
def _probe(
    reference: Denoiser,
    images: Array,
    first_index: Array,
    valid: Array,
    sigma: Array,
    key: Array,
) -> _Probes:
    """Put noise on images and let the reference denoise them."""
    images = to_data_units(images)
    indices = first_index + jnp.arange(images.shape[0])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], images.dtype))(
        keys
    )
    x = (images + sigma * noise).astype(images.dtype)
    return _Probes(x, reference(x, sigma), valid, sigma)


@jax.jit
def _reference_sums(probes: _Probes, frame: _Frame) -> dict[str, Array]:
    x, denoised, valid, _ = probes
    along = _along(denoised - frame.mean, frame) * valid[:, None]
    return {
        "score_power": _sum_of_squares(denoised - x),
        "power": _sum_of_squares(denoised - frame.mean),
        "direction_power": jnp.sum(along**2, axis=0),
    }


@jax.jit
def _candidate_sums(
    candidate: Denoiser, probes: _Probes, frame: _Frame
) -> dict[str, Array]:
    x, denoised, valid, sigma = probes
    own = candidate(x, sigma)
    difference = denoised - own
    masked = valid.reshape(-1, *(1,) * (x.ndim - 1))
    along = (_along(difference, frame) * valid[:, None]) ** 2
    return {
        "error": _sum_of_squares(difference),
        "score_power": _sum_of_squares(own - x),
        "power": _sum_of_squares(own - frame.mean),
        "pixel_error": jnp.sum(jnp.abs(difference) * masked, axis=0),
        "direction_error": jnp.sum(along, axis=0),
        "direction_error_square": jnp.sum(along**2, axis=0),
    }


def _along(x: Array, frame: _Frame) -> Array:
    """Return the coefficients (B, k) of (B, *event)."""
    rows = x.reshape(len(x), -1)
    return jnp.matmul(rows, frame.directions, precision=_HIGHEST)


def _sum_of_squares(x: Array) -> Array:
    return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
