"""What a network learns and when: losses per noise level over checkpoints, symmetry.

    loss(sigma) = lambda(sigma) mean |D(x0 + sigma n, sigma) - x0|^2 / D,
    lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2,

EDM's weight (arXiv 2206.00364), with which the loss of a network that has learned
nothing is about 1 at every level.  The gap between the losses of held-out and training
images is what was learned by heart; a distance to the training set alone hides it
(arXiv 2505.17638).  The noise of image i at level l depends on the key, l and i alone,
so the losses of two models differ by the models.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.checkpoints import measure_checkpoints
from configs.errors import InputError
from diffusion.data import to_data_units
from diffusion.denoiser import Denoiser, as_pytree
from diffusion.loss import denoising_loss
from diffusion.neural import NeuralDenoiser
from diffusion.training.loading import checkpoint_steps, load_denoiser
from diffusion.training.record import read_record

__all__ = [
    "EncodedMap",
    "EquivarianceError",
    "LearningCurves",
    "WeightedLosses",
    "equivariance_error",
    "losses_over_training",
    "weighted_losses",
]


class WeightedLosses(NamedTuple):
    """EDM-weighted losses of one denoiser, per noise level.

    Attributes:
        sigmas: (L,) noise levels, data units.
        mean: (L,) float64, average over images.
        standard_error: (L,) float64 standard error of that average; nan for one image.
        per_image: (L, N) float64; those of another denoiser under the same key are of
            the same noise, so the two can be compared image by image.
    """

    sigmas: NDArray[np.float64]
    mean: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    per_image: NDArray[np.float64]


class LearningCurves(NamedTuple):
    """Losses over the checkpoints of a run.

    Attributes:
        steps: (S,) training steps, ascending.
        sigmas: (L,) noise levels, data units.
        loss: By name of the images, (S, L) average weighted losses.
        standard_error: By name, (S, L) their standard errors.
        skipped: Steps on the disk that could not be loaded.
    """

    steps: NDArray[np.int64]
    sigmas: NDArray[np.float64]
    loss: Mapping[str, NDArray[np.float64]]
    standard_error: Mapping[str, NDArray[np.float64]]
    skipped: tuple[int, ...]


class EquivarianceError(NamedTuple):
    """How far a denoiser is from following a transform, per noise level.

    Attributes:
        sigmas: (L,) noise levels, data units.
        error: (L,) relative error; 0 for a denoiser that follows it exactly.
        standard_error: (L,) standard error over images, to first order; nan for one
            image.
    """

    sigmas: NDArray[np.float64]
    error: NDArray[np.float64]
    standard_error: NDArray[np.float64]


class EncodedMap(Protocol):
    """What is needed of a transform of `diffusion.augmentation`."""

    def apply(self, params: Any, x: Array) -> Array:
        """Return T x of one example, (*event)."""
        ...

    def encode(self, params: Any) -> Array:
        """Return the condition that tells a network of T, (k,)."""
        ...


def weighted_losses(
    denoiser: Denoiser | Callable[[Array, Array], Array],
    images: ArrayLike,
    sigmas: ArrayLike,
    key: Array,
    *,
    sigma_data: float,
    batch_size: int = 256,
) -> WeightedLosses:
    """Return a denoiser's EDM-weighted loss at each noise level.

    mean over images of lambda(sigma) |D(x0 + sigma n, sigma) - x0|^2 / D.

    Args:
        denoiser: Any `Denoiser`; a plain function is wrapped in `jax.tree_util.Partial`
            (arrays that it closes over are then compiled in).
        images: Clean samples, (N, *event), uint8 or data units; memory maps too.
        sigmas: (L,) noise levels, data units.
        key: A `jax.random.key`; image i, level l: ``fold_in(fold_in(key, l), i)``.
        sigma_data: Standard deviation of the data in the weight, data units.
        batch_size: Images handled at once; the last block is padded.

    Returns:
        Averages over the N images with their standard errors.

    Raises:
        InputError: If there is no level or no image, or a number is out of range.
    """
    images, levels = _checked(images, sigmas)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    size = min(batch_size, len(images))
    return _weighted_losses(denoiser, images, levels, key, sigma_data, size)


def losses_over_training(
    workdir: str | Path,
    images: Mapping[str, ArrayLike],
    sigmas: ArrayLike,
    key: Array,
    *,
    steps: Sequence[int] | None = None,
    sigma_data: float | None = None,
    ema: bool = True,
    batch_size: int = 256,
) -> LearningCurves:
    """Return losses per noise level of every intact checkpoint of a run.

    All checkpoints and all sets of images see the same noise; one program is compiled
    for all of them.

    Args:
        workdir: The folder that `train` wrote.
        images: By name, such as ``{"training": ..., "held_out": ...}``, (N, *event)
            each, uint8 or data units.
        sigmas: (L,) noise levels, data units.
        key: See `weighted_losses`.
        steps: Checkpoints to evaluate; None for all.
        sigma_data: Standard deviation of the data in the weight; None for the one that
            the run was trained with.
        ema: Whether to take the averaged parameters.
        batch_size: Images handled at once.

    Returns:
        Losses by name, (S, L) each; see `LearningCurves`.

    Raises:
        InputError: If the workdir holds no run or no intact checkpoint, there is no
            level or no image, or a number is out of range.
    """
    if not images:
        raise InputError('no images; give them by name, such as {"held_out": images}')
    levels = _checked(next(iter(images.values())), sigmas)[1]
    sets = {name: _checked(values, levels)[0] for name, values in images.items()}
    size = max(1, min(batch_size, max(map(len, sets.values()))))
    steps = checkpoint_steps(workdir) if steps is None else steps
    record = read_record(workdir)
    if sigma_data is None and record is not None:
        sigma_data = record.sigma_data

    def measure(_: int, denoiser: Denoiser) -> dict[str, WeightedLosses]:
        return {
            name: _weighted_losses(denoiser, values, levels, key, sigma_data, size)
            for name, values in sets.items()
        }

    rows, skipped = measure_checkpoints(
        steps, lambda step: load_denoiser(workdir, step=step, ema=ema), measure
    )
    return LearningCurves(
        steps=np.array(list(rows)),
        sigmas=levels,
        loss={n: np.stack([row[n].mean for row in rows.values()]) for n in sets},
        standard_error={
            n: np.stack([row[n].standard_error for row in rows.values()]) for n in sets
        },
        skipped=skipped,
    )


def equivariance_error(
    denoiser: Denoiser | Callable[[Array, Array], Array],
    transform: EncodedMap,
    params: Any,
    images: ArrayLike,
    sigmas: ArrayLike,
    key: Array,
    *,
    conditioned: Denoiser | Callable[[Array, Array], Array] | None = None,
) -> EquivarianceError:
    """Return how far D(T x, sigma, omega) is from T D(x, sigma, 0), per noise level.

    sqrt(sum |D(T x, sigma, omega) - T D(x, sigma, 0)|^2 / sum |T D(x, sigma, 0)|^2),
    x = x0 + sigma n, the sums over images.  It is 0 for the ideal denoiser that knows
    omega where T can be undone; where it cannot (a mask), no denoiser reaches 0.

    Args:
        denoiser: D(., sigma, 0): any `Denoiser`, or a function.
        transform: T, applied to one example at a time, sigma staying as it is.
        params: Parameters of T of each image: arrays with leading axis B.
        images: Clean samples, (B, *event), uint8 or data units; all in one batch.
        sigmas: (L,) noise levels, data units.
        key: See `weighted_losses`.
        conditioned: D(., sigma, omega).  None is for a `NeuralDenoiser`, which is told
            the encodings of `params`.  Give `denoiser` once more for a network that
            takes no condition.

    Returns:
        Relative errors with standard errors, (L,) each.

    Raises:
        InputError: If a shape does not fit, `conditioned` is missing, a level is out of
            range, or T D is zero.
    """
    host_images, levels = _checked(images, sigmas)
    clean = _data_units(host_images)
    apply = jax.vmap(transform.apply)
    if conditioned is None:
        if not isinstance(denoiser, NeuralDenoiser):
            raise InputError(
                f"{type(denoiser).__name__} takes no condition; give the denoiser of "
                "transformed images as conditioned"
            )
        condition = jax.vmap(transform.encode)(params).astype(clean.dtype)
        conditioned = dataclasses.replace(denoiser, condition=condition)
    plain, moved = as_pytree(denoiser), as_pytree(conditioned)
    errors, deviations = [], []
    for index, sigma in enumerate(levels):
        x = _noisy(clean, 0, sigma, jax.random.fold_in(key, index))
        wanted = apply(params, _call(plain, x, sigma))
        found = _call(moved, apply(params, x), sigma)
        error, deviation = _relative_error(found, wanted)
        errors.append(error)
        deviations.append(deviation)
    return EquivarianceError(levels, np.array(errors), np.array(deviations))


def _weighted_losses(
    denoiser: Any,
    images: NDArray,
    sigmas: NDArray[np.float64],
    key: Array,
    sigma_data: float | None,
    size: int,
) -> WeightedLosses:
    """Return losses in blocks of `size`; the arguments are checked but for one."""
    if sigma_data is None or not 0 < sigma_data < np.inf:
        raise InputError(f"sigma_data is {sigma_data}; it must be a number above 0")
    denoiser = as_pytree(denoiser)
    keys = [jax.random.fold_in(key, index) for index in range(len(sigmas))]
    blocks = []
    for start in range(0, len(images), size):
        block = images[start : start + size]
        padding = [(0, size - len(block))] + [(0, 0)] * (block.ndim - 1)
        padded = _data_units(np.pad(block, padding))
        blocks.append(
            [
                _squared_errors(denoiser, padded, start, sigma, level_key)
                for sigma, level_key in zip(sigmas, keys, strict=True)
            ]
        )
    squared = np.concatenate([np.asarray(b, np.float64) for b in blocks], axis=1)
    weight = (sigmas**2 + sigma_data**2) / (sigmas * sigma_data) ** 2
    losses = weight[:, None] * squared[:, : len(images)]
    count = len(images)
    deviation = (
        losses.std(axis=1, ddof=1) if count > 1 else np.full(len(sigmas), np.nan)
    )
    return WeightedLosses(
        sigmas, losses.mean(axis=1), deviation / np.sqrt(count), losses
    )


@jax.jit
def _squared_errors(
    denoiser: Denoiser, clean: Array, first_index: Array, sigma: Array, key: Array
) -> Array:
    """Return |D(x, sigma) - x0|^2 / D of each image of a block, (B,)."""
    return denoising_loss(
        denoiser, _noisy(clean, first_index, sigma, key), clean, sigma
    )


@jax.jit
def _call(denoiser: Denoiser, x: Array, sigma: Array) -> Array:
    return denoiser(x, sigma)


@jax.jit
def _noisy(clean: Array, first_index: Array, sigma: Array, key: Array) -> Array:
    """Return x0 + sigma n; image i of the set has the noise of ``fold_in(key, i)``."""

    def noise(index: Array) -> Array:
        key_of_image = jax.random.fold_in(key, index)
        return jax.random.normal(key_of_image, clean.shape[1:], clean.dtype)

    indices = first_index + jnp.arange(clean.shape[0])
    return (clean + sigma * jax.vmap(noise)(indices)).astype(clean.dtype)


def _relative_error(found: Array, wanted: Array) -> tuple[float, float]:
    """Return sqrt(sum a / sum b) and its standard error over samples.

    a = |found - wanted|^2 and b = |wanted|^2 of each sample, in float64.
    """
    a, b = (
        np.square(np.asarray(v, np.float64)).reshape(len(v), -1).sum(axis=1)
        for v in (np.asarray(found, np.float64) - np.asarray(wanted), wanted)
    )
    if not b.sum() > 0:
        raise InputError(
            "the transformed, denoised images are all zero, so nothing can be measured "
            "relative to them"
        )
    squared = a.sum() / b.sum()
    error, count = np.sqrt(squared), len(a)
    if count < 2:
        return float(error), np.nan
    # The ratio's derivative is (a_i - ratio b_i) / sum b; that of its root, halved.
    spread = np.sqrt(count / (count - 1) * np.square(a - squared * b).sum()) / b.sum()
    return float(error), float(spread / (2 * error)) if error > 0 else 0.0


def _data_units(images: NDArray) -> Array:
    """Return images as floats in data units, of at least 32 bits."""
    values = to_data_units(images)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _checked(
    images: ArrayLike, sigmas: ArrayLike
) -> tuple[NDArray, NDArray[np.float64]]:
    """Return images (N, *event) and noise levels (L,), both on the host."""
    images, levels = np.asarray(images), np.asarray(sigmas, np.float64)
    if images.ndim < 2 or not images.size or levels.ndim != 1 or not levels.size:
        raise InputError(
            f"images have shape {images.shape} and sigmas {levels.shape}; give (N, "
            "*event) and (L,), at least one of each"
        )
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images have dtype {images.dtype}; give uint8 or floats in data units"
        )
    if not (np.isfinite(levels) & (levels > 0)).all():
        raise InputError(f"sigmas are {levels}; each must be finite and > 0")
    return images, levels
