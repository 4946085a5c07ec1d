"""Estimating the statistics that DPM-Solver-v3 needs on a model (arXiv 2310.13268).

At each of N noise levels, over noised images x = x0 + sigma n, with u = log(1/sigma),
y = x - D(x, sigma) and everything entry by entry,

    l = E[(J_y v) v],  v = +-1 at random: the mean diagonal of the Jacobian of y,
    f = y - l x,   f' = (l - 1) y - D' - (dl/du) x,
    s = Cov(f, f') / Var f,   b = E f' - s E f,

where D' is the derivative along the probability flow, one Jacobian-vector product with
tangents -y for x and -sigma for sigma.  dl/du comes from finite differences.  Where f
does not vary beyond its rounding, s = 0 and b = E f'.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.denoiser import Denoiser, as_pytree
from samplers.coordinates import Coordinates
from samplers.image_draws import draw_images
from samplers.model_statistics import TabulatedStatistics
from samplers.schedules import check_grid

__all__ = ["Passes", "StatisticsEstimate", "estimate_model_statistics"]


class StatisticsEstimate(NamedTuple):
    """What an estimation returns.

    Attributes:
        statistics: l, s, b in the pixel basis.
        standard_error: (N, D) of l.
    """

    statistics: TabulatedStatistics
    standard_error: NDArray[np.float64]


class Passes(NamedTuple):
    """Finished noise levels of both passes; NaN rows are still to do.

    Attributes:
        gains: (N, D) l.
        standard_error: (N, D) of l.
        scalings: (N, D) s.
        biases: (N, D) b.
    """

    gains: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    scalings: NDArray[np.float64]
    biases: NDArray[np.float64]


def estimate_model_statistics(
    denoiser: Denoiser,
    images: ArrayLike,
    sigmas: ArrayLike,
    key: Array,
    *,
    num_samples: int = 1024,
    batch_size: int = 256,
    denoiser_of: Callable[[NDArray[np.intp]], Denoiser] | None = None,
    passes: Passes | None = None,
    after_level: Callable[[Passes], None] = lambda _: None,
) -> StatisticsEstimate:
    """Estimate l, s and b of a denoiser.

    Two passes over the levels, because f' needs dl/du; each costs num_samples
    Jacobian-vector products per level.  The draws of a level depend on the key and on
    the level's number alone, so an interrupted estimation goes on exactly.

    Args:
        denoiser: Any differentiable `Denoiser`.
        images: Clean images, (M, *event), uint8 pixels or data units.
        sigmas: (N,) decreasing noise levels, N >= 2.
        key: A `jax.random.key`.
        num_samples: Noised images per level.
        batch_size: Noised images at once.
        denoiser_of: What denoises the images of these (batch_size,) numbers, in the
            place of `denoiser`: of one structure for every batch, such as a network
            told their classes.
        passes: Levels that are done, to go on from; None begins.
        after_level: Called with all that is done after each level of each pass, 2 N
            times in all; a place to save it and to show progress.

    Returns:
        Statistics for `DPMSolverV3` and the standard error of l.

    Raises:
        InputError: If an argument is out of range, or the model's output is not finite.
    """
    grid = check_grid(sigmas)
    images = np.asarray(images)
    _check_sizes(grid, images, num_samples, batch_size)
    same = as_pytree(denoiser)
    tell = denoiser_of or (lambda numbers: same)
    size = int(np.prod(images.shape[1:]))
    if passes is None:
        passes = Passes(*np.full((4, grid.size, size), np.nan))

    def draws(level: int) -> Iterator[_Draw]:
        return _draws(
            images, grid[level], jax.random.fold_in(key, level), num_samples, batch_size
        )

    for i in range(grid.size):
        if np.isnan(passes.gains[i, 0]):
            passes.gains[i], passes.standard_error[i] = _linear_part(
                tell, draws(i), grid[i]
            )
            after_level(passes)
    slopes = np.gradient(passes.gains, -np.log(grid), axis=0)
    for i in range(grid.size):
        if np.isnan(passes.scalings[i, 0]):
            passes.scalings[i], passes.biases[i] = _rest(
                tell, draws(i), grid[i], passes.gains[i], slopes[i]
            )
            after_level(passes)
    origin = jnp.zeros(images.shape[1:], jnp.float32)
    statistics = TabulatedStatistics(
        Coordinates(origin), grid, passes.gains, passes.scalings, passes.biases
    )
    return StatisticsEstimate(statistics, passes.standard_error)


class _Draw(NamedTuple):
    """A batch of noised images.

    Attributes:
        numbers: (B,) which images they are of.
        noisy: (B, *event).
        signs: (B, *event), the probes.
        counts: (B,), 1 where a row counts and 0 where it fills up the batch.
    """

    numbers: NDArray[np.intp]
    noisy: Array
    signs: Array
    counts: Array


class _Moments:
    """Means and centred products over batches, in float64 (Chan's update)."""

    def __init__(self) -> None:
        self.count, self.means, self.products = 0, 0.0, 0.0

    def add(self, count: int, means: Array, products: Array) -> None:
        """Take in a batch's means (V, D) and centred sums of products (V, V, D)."""
        total = self.count + count
        delta = np.asarray(means, np.float64) - self.means
        shift = delta[:, None] * delta[None] * (self.count * count / total)
        self.products = self.products + np.asarray(products, np.float64) + shift
        self.means = self.means + delta * (count / total)
        self.count = total

    def covariances(self) -> NDArray[np.float64]:
        return np.asarray(self.products) / (self.count - 1)


def _draws(
    images: NDArray, sigma: float, key: Array, count: int, batch_size: int
) -> Iterator[_Draw]:
    for draws in draw_images(images, key, count, batch_size):
        dtype = draws.clean.dtype
        noisy, signs = _noised(draws.clean, jnp.asarray(sigma, dtype), draws.keys)
        counts = jnp.asarray(draws.counts, dtype)
        yield _Draw(draws.numbers, noisy, signs, counts)


@jax.jit
def _noised(clean: Array, sigma: Array, keys: Array) -> tuple[Array, Array]:
    shape = clean.shape[1:]

    def one(key: Array) -> tuple[Array, Array]:
        for_noise, for_signs = jax.random.split(key)
        noise = jax.random.normal(for_noise, shape, clean.dtype)
        return noise, jax.random.rademacher(for_signs, shape, clean.dtype)

    noise, signs = jax.vmap(one)(keys)
    return clean + sigma * noise, signs


def _linear_part(
    denoiser_of: Callable[[NDArray[np.intp]], Denoiser],
    draws: Iterator[_Draw],
    sigma: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    moments = _Moments()
    for numbers, noisy, signs, counts in draws:
        batch = _gain_batch(denoiser_of(numbers), noisy, signs, counts, sigma)
        moments.add(int(counts.sum()), *batch)
    gains = np.asarray(moments.means)[0]
    _check_finite(gains, sigma)
    return gains, np.sqrt(moments.covariances()[0, 0] / moments.count)


def _rest(
    denoiser_of: Callable[[NDArray[np.intp]], Denoiser],
    draws: Iterator[_Draw],
    sigma: float,
    gains: NDArray[np.float64],
    slopes: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    moments, power, dtype = _Moments(), 0.0, np.dtype(np.float32)
    for numbers, noisy, _, counts in draws:
        dtype = noisy.dtype
        shape = noisy.shape[1:]
        l, slope = (jnp.asarray(v.reshape(shape), dtype) for v in (gains, slopes))  # noqa: E741
        batch = _rest_batch(denoiser_of(numbers), noisy, counts, sigma, l, slope)
        moments.add(int(counts.sum()), *batch)
        power = max(power, float(jnp.mean(noisy**2)))
    covariances = moments.covariances()
    mean, mean_slope = np.asarray(moments.means)
    _check_finite(mean_slope, sigma)
    rounding = (16 * np.finfo(dtype).eps) ** 2 * power
    varies = covariances[0, 0] > rounding
    below = np.where(varies, covariances[0, 0], 1.0)
    scalings = np.where(varies, covariances[0, 1] / below, 0.0)
    return scalings, mean_slope - scalings * mean


@jax.jit
def _gain_batch(
    denoiser: Denoiser, noisy: Array, signs: Array, counts: Array, sigma: Array
) -> tuple[Array, Array]:
    level = jnp.asarray(sigma, noisy.dtype)
    _, product = jax.jvp(lambda x: denoiser(x, level), (noisy,), (signs,))
    return _batch_moments([(signs - product) * signs], counts)


@jax.jit
def _rest_batch(
    denoiser: Denoiser,
    noisy: Array,
    counts: Array,
    sigma: Array,
    gains: Array,
    slopes: Array,
) -> tuple[Array, Array]:
    level = jnp.asarray(sigma, noisy.dtype)
    y = noisy - denoiser(noisy, level)
    _, change = jax.jvp(denoiser, (noisy, level), (-y, -level))
    f = y - gains * noisy
    f_change = (gains - 1) * y - change - slopes * noisy
    return _batch_moments([f, f_change], counts)


def _batch_moments(values: list[Array], counts: Array) -> tuple[Array, Array]:
    """Return means (V, D) and sums of centred products (V, V, D) of a batch."""
    flat = jnp.stack([v.reshape(v.shape[0], -1) for v in values])
    weight = counts[None, :, None]
    means = jnp.sum(weight * flat, axis=1) / jnp.sum(counts)
    centred = (flat - means[:, None]) * weight
    return means, jnp.einsum("vbd,wbd->vwd", centred, centred, precision="highest")


def _check_sizes(
    grid: NDArray[np.float64], images: NDArray, num_samples: int, batch_size: int
) -> None:
    if grid.size < 2 or images.ndim < 2 or len(images) == 0:
        raise InputError(
            f"statistics need at least 2 noise levels and a batch of images; given "
            f"{grid.size} levels and images of shape {images.shape}"
        )
    if num_samples < 2 or batch_size < 1:
        raise InputError(
            f"num_samples is {num_samples} and batch_size {batch_size}; they must be "
            "at least 2 and 1"
        )


def _check_finite(values: NDArray[np.float64], sigma: float) -> None:
    if not np.isfinite(values).all():
        raise InputError(
            f"the model's derivative is not finite at sigma = {sigma:g}; the "
            "checkpoint or the noise level does not fit"
        )
