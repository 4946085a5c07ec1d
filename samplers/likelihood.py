"""Log-likelihood by the probability flow, and bits per dimension.

Along a trajectory of dx/du = v = x - D(x, sigma), u = log sigma, densities change by

    d log p(x(u); e^u) / du = -div v = -(D - tr dD/dx)        (D the dimension there),

so that log p(x; sigma_min) is the log density where the trajectory ends, plus the
integral of div v from sigma_min up to that level (Chen et al., arXiv 1806.07366; Song
et al., arXiv 2011.13456, appendix D.2).  Of white noise v = x, and each direction loses
log(sigma_max / sigma_min) on the way.

The trajectory ends at sigma_max, or lower, at sigma_skip, where the images are as good
as Gaussian already: with a Gaussian the density there is that of N(mean, covariance +
sigma^2 I), the best estimate of the noised images' own; without one it is N(0,
sigma_max^2 I), from which `samplers.start.Prior` samples.

The trace of the Jacobian is exact, from D directional derivatives, or Hutchinson's
estimate, the mean of e^T (dD/dx) e over random signs e (Communications in Statistics
19, 1990), fixed along each trajectory.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError, choice_error
from diffusion.closed_form import GaussianDenoiser, isotropic_gaussian
from diffusion.denoiser import Denoiser, as_pytree, expand_sigma
from samplers.runge_kutta import Arrival, Field, Moving, dormand_prince, require_arrival

__all__ = [
    "BitsPerDimension",
    "LogLikelihood",
    "bits_per_dimension",
    "dequantise",
    "log_likelihood",
]

_DIVERGENCES = ("exact", "hutchinson")
_CHUNK = 16  # directional derivatives taken at once


class LogLikelihood(NamedTuple):
    """What `log_likelihood` returns.

    Attributes:
        log_density: (B,) natural logarithm of p(x; sigma_min), data units.
        standard_error: (B,) its standard error over the probes; 0 where the divergence
            is exact, NaN for a single probe, whose error shows only in the spread over
            many images.
        x_end: (B, *event), where the trajectories have ended.
        nfe: Evaluations of the denoiser; each is differentiated in D directions
            (exact) or in num_probes.
    """

    log_density: Array
    standard_error: Array
    x_end: Array
    nfe: int | Array


class BitsPerDimension(NamedTuple):
    """A mean over images.

    Attributes:
        value: () bits per dimension.
        standard_error: () its standard error over the images; NaN for one image.
    """

    value: Array
    standard_error: Array


def log_likelihood(
    denoiser: Denoiser,
    x: ArrayLike | Array,
    *,
    key: Array | None = None,
    gaussian: GaussianDenoiser | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_skip: float | None = None,
    divergence: str = "hutchinson",
    num_probes: int = 1,
    first_index: int = 0,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int = 1000,
) -> LogLikelihood:
    """Return log p(x; sigma_min) of samples under a denoiser.

    Args:
        denoiser: Any `Denoiser` that can be differentiated forward.
        x: Samples, (B, *event), data units, taken as samples at `sigma_min`: nothing is
            added to them.  Pixels must be made continuous first, see `dequantise`.
        key: For the probes; image i uses ``fold_in(key, i)``.
        gaussian: Gaussian of the training images, whose noised density is that of the
            trajectories' ends; None takes N(0, sigma_max^2 I).
        sigma_min: Noise level at which the density is wanted.
        sigma_max: Noise level at which trajectories end.
        sigma_skip: Where they end instead, for a Gaussian.
        divergence: "exact" or "hutchinson".
        num_probes: Hutchinson's probes per image; two or more give a standard error.
        first_index: Index of the first image.
        rtol: See `samplers.runge_kutta.dormand_prince`.
        atol: Likewise.
        max_steps: Likewise.

    Returns:
        Log densities, their standard errors, ends of the trajectories, calls.

    Raises:
        InputError: If an argument does not fit, or (outside of jit) a trajectory does
            not arrive, because the denoiser returns NaN or `max_steps` are too few.
    """
    x = jnp.asarray(x)
    top = _end(gaussian, sigma_min, sigma_max, sigma_skip)
    expand_sigma(sigma_min, x)
    signs = None
    if divergence not in _DIVERGENCES:
        raise choice_error("divergence", divergence, _DIVERGENCES)
    if divergence == "hutchinson":
        signs = _probes(key, x, num_probes, first_index)
    if gaussian is None:
        gaussian = isotropic_gaussian(jnp.zeros(x.shape[1:], x.dtype), 0.0)
    denoiser = as_pytree(denoiser)
    arrival = _climb(
        denoiser, x, signs, sigma_min, top, rtol=rtol, atol=atol, max_steps=max_steps
    )
    require_arrival(arrival, top, max_steps)
    end = gaussian.log_density(arrival.x, top)
    gained = arrival.integrals
    nfe = arrival.nfe if isinstance(arrival.nfe, Tracer) else int(arrival.nfe)
    density = (end + jnp.mean(gained, axis=1)).astype(x.dtype)
    return LogLikelihood(density, _standard_error(gained, divergence), arrival.x, nfe)


def bits_per_dimension(
    result: LogLikelihood | ArrayLike, dimension: int, *, levels: int = 256
) -> BitsPerDimension:
    """Return the mean code length of quantised images, in bits per dimension.

    A pixel y of `levels` values is x = y / s - 1 in data units, s = (levels - 1) / 2,
    and its cell is 1 / s wide.  With uniform noise in the cell (`dequantise`), Jensen's
    inequality bounds the code length of the whole image,

        -log2 P(y) <= E[-log2 p(x)] + D log2 s,

    so bits per dimension are -log p / (D ln 2) + log2 s: an offset of 6.994 for uint8.

    Args:
        result: Of `log_likelihood`, or log densities alone, (B,), natural logarithms.
        dimension: D, numbers per image.
        levels: Values of a pixel, mapped onto [-1, 1]; 256 for uint8.

    Returns:
        The mean over images and its standard error, which contains that of the probes.

    Raises:
        InputError: If a number is out of range or there are no log densities (B,).

    >>> bits = bits_per_dimension(np.full(3, -100.0), 64)
    >>> f"{float(bits.value):.3f}"
    '9.249'
    """
    given = result.log_density if isinstance(result, LogLikelihood) else result
    log_density = jnp.asarray(given)
    if log_density.ndim != 1 or not log_density.size:
        raise InputError(
            f"log densities have shape {log_density.shape}; give (B,), B >= 1"
        )
    if dimension < 1 or levels < 2:
        raise InputError(
            f"dimension is {dimension} and levels is {levels}; they must be at least 1 "
            "and 2"
        )
    bits = -log_density / (dimension * math.log(2)) + math.log2((levels - 1) / 2)
    count = len(bits)
    error = jnp.nan
    if count > 1:
        error = jnp.std(bits, ddof=1) / math.sqrt(count)
    return BitsPerDimension(jnp.mean(bits), jnp.asarray(error, bits.dtype))


def dequantise(key: Array, images: ArrayLike, *, first_index: int = 0) -> Array:
    """Return x = (y + u - 1/2) / 127.5 - 1, u uniform in [0, 1), of uint8 pixels y.

    Args:
        key: Image i uses ``fold_in(key, i)``.
        images: (B, *event) uint8.
        first_index: Index of the first image.

    Returns:
        (B, *event) float32, each value within half a grey level of its pixel.

    Raises:
        InputError: If the images are not uint8.
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8 or images.ndim < 2:
        raise InputError(
            f"images have shape {images.shape} and dtype {images.dtype}; give "
            "(B, *event) uint8 pixels"
        )

    def draw(index: Array) -> Array:
        own = jax.random.fold_in(key, index)
        return jax.random.uniform(own, images.shape[1:], jnp.float32)

    noise = jax.vmap(draw)(jnp.arange(first_index, first_index + len(images)))
    return (images.astype(jnp.float32) + (noise - 0.5)) / 127.5 - 1


@functools.partial(jax.jit, static_argnames=("rtol", "atol", "max_steps"))
def _climb(
    denoiser: Denoiser,
    x: Array,
    signs: Array | None,
    sigma_min: ArrayLike,
    sigma_end: ArrayLike,
    *,
    rtol: float | None,
    atol: float,
    max_steps: int,
) -> Arrival:
    """Integrate the flow and its divergence; signs are (P, B, *event), or None."""
    field = _exact(denoiser) if signs is None else _estimated(denoiser, signs)
    return dormand_prince(
        field, x, sigma_min, sigma_end, rtol=rtol, atol=atol, max_steps=max_steps
    )


def _exact(denoiser: Denoiser) -> Field:
    """Return the flow with its divergence, (B, 1), column by column."""

    def field(x: Array, sigma: Array) -> Moving:
        dimension = math.prod(x.shape[1:])
        denoised, along = jax.linearize(lambda x: denoiser(x, sigma), x)

        def diagonal(i: Array) -> Array:
            unit = jnp.zeros((dimension,), x.dtype).at[i].set(1).reshape(x.shape[1:])
            column = along(jnp.broadcast_to(unit, x.shape))
            return column.reshape(len(x), dimension)[:, i]

        indices = jnp.arange(dimension)
        trace = jax.lax.map(diagonal, indices, batch_size=min(_CHUNK, dimension))
        divergence = dimension - jnp.sum(trace, axis=0)
        return Moving(x - denoised, divergence[:, None])

    return field


def _estimated(denoiser: Denoiser, signs: Array) -> Field:
    """Return the flow with Hutchinson's estimates of its divergence, (B, P)."""

    def field(x: Array, sigma: Array) -> Moving:
        denoised, along = jax.linearize(lambda x: denoiser(x, sigma), x)

        def quadratic(sign: Array) -> Array:
            product = sign * along(sign.astype(x.dtype))
            return jnp.sum(product.reshape(len(x), -1), axis=1)

        batch = min(_CHUNK, len(signs))
        traces = jax.lax.map(quadratic, signs, batch_size=batch)
        return Moving(x - denoised, math.prod(x.shape[1:]) - traces.T)

    return field


def _probes(key: Array | None, x: Array, num_probes: int, first_index: int) -> Array:
    """Return random signs, (P, B, *event), of image i from ``fold_in(key, i)``."""
    if key is None:
        raise InputError(
            "Hutchinson's estimate needs a key; pass key=jax.random.key(0), or "
            'divergence="exact" where the dimension is small'
        )
    if num_probes < 1:
        raise InputError(f"num_probes is {num_probes}; it must be at least 1")
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def draw(index: Array) -> Array:
        own = jax.random.fold_in(key, index)
        return jax.random.rademacher(own, (num_probes, *x.shape[1:]), dtype)

    indices = jnp.arange(first_index, first_index + len(x))
    return jax.vmap(draw, out_axes=1)(indices)


def _end(
    gaussian: GaussianDenoiser | None,
    sigma_min: float,
    sigma_max: float,
    sigma_skip: float | None,
) -> float:
    """Return the noise level at which the trajectories end."""
    if sigma_skip is not None and gaussian is None:
        raise InputError(
            f"sigma_skip is {sigma_skip}, but there is no Gaussian for the part above; "
            "pass gaussian=..., or leave sigma_skip out"
        )
    top = sigma_max if sigma_skip is None else sigma_skip
    if not (0 < sigma_min < top <= sigma_max and np.isfinite(sigma_max)):
        raise InputError(
            f"sigma_min is {sigma_min}, sigma_skip {sigma_skip} and sigma_max "
            f"{sigma_max}; they must satisfy 0 < sigma_min < sigma_skip <= sigma_max"
        )
    return top


def _standard_error(gained: Array, divergence: str) -> Array:
    """Return the standard error over probes (B, P), of their mean, (B,)."""
    count = gained.shape[1]
    if divergence == "exact":
        return jnp.zeros(len(gained), gained.dtype)
    if count == 1:
        return jnp.full(len(gained), jnp.nan, gained.dtype)
    return jnp.std(gained, axis=1, ddof=1) / math.sqrt(count)
