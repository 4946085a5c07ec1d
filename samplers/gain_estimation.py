"""Measuring how a denoiser answers along the principal directions of its data.

At each of N noise levels, over noised images x = x0 + sigma n, with z = x - mean,
y = x - D(x, sigma) and coordinates along the basis,

    l_k = Cov(y_k, z_k) / Var(z_k),     w_k = 1 - l_k,     v_k = sigma^2 w_k/(1 - w_k),

the last the variance that a Gaussian with that gain has.  y and not D is regressed: at
low noise w_k differs from 1 by less than rounding.  The complement of the basis has one
gain, from covariance and variance summed over it.  One call of the denoiser per noised
image; no derivative.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser, as_pytree
from samplers.coordinates import Coordinates
from samplers.effective_variances import EffectiveVariances, log_variances_of
from samplers.image_draws import draw_images
from samplers.model_statistics import gaussian_statistics
from samplers.schedules import check_grid

__all__ = ["GainEstimate", "estimate_gains"]

_NOTHING = 1e-10  # share of the squares that is rounding


class GainEstimate(NamedTuple):
    """What a measurement returns.

    Attributes:
        statistics: For `ResidualExponential`, or `DPMSolverV3`.
        standard_error: (N, C) of w, the complement's last.
    """

    statistics: EffectiveVariances
    standard_error: NDArray[np.float64]


def estimate_gains(
    denoiser: Denoiser,
    gaussian: GaussianDenoiser,
    images: ArrayLike,
    sigmas: ArrayLike,
    key: Array,
    *,
    rank: int | None = 128,
    num_images: int = 512,
    batch_size: int = 128,
    denoiser_of: Callable[[NDArray[np.intp]], Denoiser] | None = None,
    after_level: Callable[[], None] = lambda: None,
) -> GainEstimate:
    """Measure the gains w_k(sigma) of a denoiser in the basis of a Gaussian.

    Args:
        denoiser: Any `Denoiser`.
        gaussian: Mean and principal directions; its variances play no part.
        images: Clean images, (M, *event), uint8 pixels or data units.
        sigmas: (N,) decreasing noise levels.
        key: A `jax.random.key`; level i draws from ``fold_in(key, i)``.
        rank: Directions that are measured one by one; None takes all.
        num_images: Noised images per level, at least 2.
        batch_size: Images at once.
        denoiser_of: What denoises the images of these numbers, in the place of
            `denoiser`: of one structure for every batch, such as a network told their
            classes.
        after_level: Called after every level; a place to show progress.

    Returns:
        The gains and their standard errors, those of a regression whose errors may
        depend on x.

    Raises:
        InputError: If an argument is out of range, or the model's output is not finite.
    """
    grid, images = check_grid(sigmas), np.asarray(images)
    given = jnp.shape(gaussian.basis)[1]
    cut = gaussian.truncated(given if rank is None else min(rank, given))
    frame = gaussian_statistics(cut).coordinates
    _check(images, jnp.shape(frame.origin), num_images, batch_size)
    same = as_pytree(denoiser)
    gains = np.zeros((grid.size, frame.size))
    errors = np.zeros_like(gains)
    for i, sigma in enumerate(grid):
        sums = []
        own = jax.random.fold_in(key, i)
        for draws in draw_images(images, own, num_images, batch_size):
            model = same if denoiser_of is None else denoiser_of(draws.numbers)
            noisy = _noised(draws.clean, float(sigma), draws.keys)
            found = _measure(model, frame, noisy, sigma)
            sums.append(
                _Sums(*(np.asarray(a, np.float64)[draws.counts] for a in found))
            )
        gains[i], errors[i] = _regress(sums, float(sigma))
        after_level()
    table = log_variances_of(gains, grid)
    return GainEstimate(EffectiveVariances(frame, grid, table), errors)


class _Sums(NamedTuple):
    """Of a batch: coordinates of z and y, and products summed over the complement.

    Attributes:
        z: (B, R).
        y: (B, R).
        products: (B,) z . y outside of the basis.
        squares: (B,) z . z there.
    """

    z: Array | NDArray[np.float64]
    y: Array | NDArray[np.float64]
    products: Array | NDArray[np.float64]
    squares: Array | NDArray[np.float64]


@jax.jit
def _noised(clean: Array, sigma: float, keys: Array) -> Array:
    shape, dtype = clean.shape[1:], clean.dtype
    noise = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
    return clean + jnp.asarray(sigma, dtype) * noise


@jax.jit
def _measure(
    denoiser: Denoiser, frame: Coordinates, noisy: Array, sigma: float
) -> _Sums:
    y = noisy - denoiser(noisy, jnp.asarray(sigma, noisy.dtype))
    z, answer = frame.split(noisy), frame.split(frame.origin + y)
    products = jnp.sum(z.whole * answer.whole, axis=1)
    squares = jnp.sum(z.whole**2, axis=1)
    return _Sums(
        z.inside,
        answer.inside,
        products - jnp.sum(z.inside * answer.inside, axis=1),
        squares - jnp.sum(z.inside**2, axis=1),
    )


def _regress(
    sums: list[_Sums], sigma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return l of every direction and of the complement, and standard errors."""
    z, y, products, squares = (np.concatenate(part) for part in zip(*sums, strict=True))
    if not (np.isfinite(y).all() and np.isfinite(products).all()):
        raise InputError(
            f"the model's output is not finite at sigma = {sigma:g}; the checkpoint or "
            "the noise level does not fit"
        )
    centred = z - z.mean(axis=0)
    power = np.sum(centred**2, axis=0)
    gains = np.sum(centred * y, axis=0) / power
    left = y - y.mean(axis=0) - gains * centred
    errors = np.sqrt(np.sum((centred * left) ** 2, axis=0)) / power
    rest, error, total = 1.0, 0.0, squares.sum()
    # Without a complement there is only rounding, and any gain will do.
    if total > _NOTHING * power.sum():
        rest = products.sum() / total
        error = np.sqrt(np.sum((products - rest * squares) ** 2)) / total
    return np.append(gains, rest), np.append(errors, error)


def _check(
    images: NDArray, event: tuple[int, ...], num_images: int, batch_size: int
) -> None:
    if images.shape[1:] != event or len(images) == 0:
        raise InputError(
            f"gains are measured on images of the Gaussian's shape {event}; given an "
            f"array of shape {images.shape}"
        )
    if num_images < 2 or batch_size < 1:
        raise InputError(
            f"num_images is {num_images} and batch_size {batch_size}; they must be at "
            "least 2 and 1"
        )
