"""The denoiser of a Gaussian, and the exact solution of its probability-flow ODE.

For x0 ~ N(mean, S) with S = U diag(variances) U^T + v (I - U U^T), where U has
orthonormal columns and v is the residual variance of the complement,

    D(x, sigma) = mean + v/(v + sigma^2) z_perp
                  + sum_k variances_k/(variances_k + sigma^2) c_k u_k,
    x(sigma_to) = mean + sqrt((sigma_to^2 + v)/(sigma_from^2 + v)) z_perp
                  + sum_k sqrt((sigma_to^2 + variances_k)
                               /(sigma_from^2 + variances_k)) c_k u_k,

with z = x - mean, c = U^T z and z_perp = z - U c.  D is the Wiener filter: the best
affine denoiser of any density with these two moments.  Source: Wang & Vastola, arXiv
2412.09726 (residual variance added here); the second line is their teleportation.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.denoiser import expand_sigma

__all__ = ["GaussianDenoiser", "fit_gaussian", "isotropic_gaussian"]

_HIGHEST = jax.lax.Precision.HIGHEST
_BLOCK_ELEMENTS = 2**24


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianDenoiser:
    """The Gaussian N(mean, U diag(variances) U^T + v (I - U U^T)) as a `Denoiser`.

    Computes in the wider of the dtypes of `x` and the parameters and returns the dtype
    of `x`; matrix products run at full precision on every device.

    Args:
        mean: (*event), data units.
        basis: U, (D, R) with orthonormal columns, D = prod(event), R <= D.
        variances: (R,), >= 0, squared data units.
        residual_variance: v, (), >= 0: the variance of the D - R other directions.
    """

    mean: Array
    basis: Array
    variances: Array
    residual_variance: ArrayLike = 0.0

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x = jnp.asarray(x)
        s2 = self._levels(x, sigma) ** 2
        v = jnp.asarray(self.residual_variance)
        return self._scale_modes(
            x, self.variances / (self.variances + s2), v / (v + s2)
        )

    def flow(self, x: Array, sigma_from: ArrayLike, sigma_to: ArrayLike) -> Array:
        """Move samples along the probability-flow ODE, exactly.

        Args:
            x: Samples at noise level `sigma_from`, (B, *event).
            sigma_from: () or (B,), above 0.
            sigma_to: () or (B,), above 0; may be larger or smaller than `sigma_from`.

        Returns:
            The same trajectories at `sigma_to`, (B, *event), in the dtype of `x`.

        Raises:
            InputError: If a shape does not fit or a sigma is not finite and above 0.
        """
        x = jnp.asarray(x)
        a, b = self._levels(x, sigma_from) ** 2, self._levels(x, sigma_to) ** 2
        v = jnp.asarray(self.residual_variance)
        gains = jnp.sqrt((b + self.variances) / (a + self.variances))
        return self._scale_modes(x, gains, jnp.sqrt((b + v) / (a + v)))

    def log_density(self, x: Array, sigma: ArrayLike) -> Array:
        """Return log p(x; sigma) of the noised Gaussian, its normaliser included.

        Args:
            x: (B, *event).
            sigma: () or (B,), above 0.

        Returns:
            (B,) natural logarithms, in the dtype of `x`.

        Raises:
            InputError: If a shape does not fit or a sigma is not finite and above 0.
        """
        x = jnp.asarray(x)
        s2 = self._levels(x, sigma) ** 2
        z, c = self._project(x)
        dimension, rank = self.basis.shape
        total = self.variances + s2
        distance = jnp.sum(c**2 / total, axis=1)
        log_determinant = jnp.sum(jnp.log(total), axis=1)
        if rank < dimension:
            off = z - self._back_project(c)
            rest = self.residual_variance + s2[:, 0]
            distance += jnp.sum(off**2, axis=1) / rest
            log_determinant += (dimension - rank) * jnp.log(rest)
        normaliser = dimension * math.log(2 * math.pi)
        return (-0.5 * (distance + log_determinant + normaliser)).astype(x.dtype)

    def sample(self, key: Array, n: int, sigma: ArrayLike = 0.0) -> Array:
        """Draw samples of the Gaussian noised to `sigma`.

        Sample i depends on the key and on i alone, not on `n`.

        Args:
            key: A `jax.random.key`.
            n: Number of samples.
            sigma: () or (n,), at least 0, data units.

        Returns:
            (n, *event), in the dtype of the mean.

        Raises:
            InputError: If sigma is negative, not finite or of the wrong shape.
        """
        mean = jnp.asarray(self.mean)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        white = jax.vmap(lambda k: jax.random.normal(k, mean.shape, mean.dtype))(keys)
        s2 = self._levels(white, sigma, allow_zero=True) ** 2
        gains = jnp.sqrt(self.variances + s2)
        rest = jnp.sqrt(self.residual_variance + s2)
        return self._scale_modes(mean + white, gains, rest)

    def mean_variance(self) -> Array:
        """Return the variance averaged over all D directions, ()."""
        dimension, rank = self.basis.shape
        rest = (dimension - rank) * jnp.asarray(self.residual_variance)
        return (jnp.sum(self.variances) + rest) / dimension

    def _levels(self, x: Array, sigma: ArrayLike, *, allow_zero: bool = False) -> Array:
        """Check the shapes; return sigma as (1, 1) or (B, 1) in the wide dtype."""
        event = jnp.shape(self.mean)
        if x.shape[1:] != event:
            raise InputError(
                f"x has shape {x.shape}, but this Gaussian is over events of shape "
                f"{event}: give ({'B, ' + ', '.join(map(str, event))})"
            )
        basis, variances = jnp.shape(self.basis), jnp.shape(self.variances)
        if len(basis) != 2 or basis[0] != math.prod(event) or variances != basis[1:]:
            raise InputError(
                f"a Gaussian over {event} needs basis ({math.prod(event)}, R) and "
                f"variances (R,); given {basis} and {variances}"
            )
        level = expand_sigma(sigma, x, allow_zero=allow_zero)
        wide = jnp.promote_types(level.dtype, jnp.result_type(self.mean))
        return level.reshape(-1, 1).astype(wide)

    def _project(self, x: Array) -> tuple[Array, Array]:
        """Return z = x - mean as (B, D) and its coefficients U^T z as (B, R)."""
        z = (x - self.mean).reshape(x.shape[0], -1)
        return z, jnp.matmul(z, self.basis, precision=_HIGHEST)

    def _back_project(self, coefficients: Array) -> Array:
        return jnp.matmul(coefficients, jnp.transpose(self.basis), precision=_HIGHEST)

    def _scale_modes(self, x: Array, gains: Array, rest: Array) -> Array:
        """Scale z by `gains` (., R) along the basis and by `rest` (., 1) off it."""
        z, c = self._project(x)
        dimension, rank = self.basis.shape
        # A full basis has no complement; leaving it out also avoids adding and
        # subtracting rest * z, which would cost digits where rest is large.
        if rank == dimension:
            scaled = self._back_project(gains * c)
        else:
            scaled = rest * z + self._back_project((gains - rest) * c)
        return (self.mean + scaled.reshape(x.shape)).astype(x.dtype)


def fit_gaussian(images: ArrayLike, rank: int | None = None) -> GaussianDenoiser:
    """Fit mean and covariance of a data set in closed form.

    The covariance is the biased one, sum (x - mean)(x - mean)^T / N: the Gaussian then
    has exactly the moments of the empirical distribution, and its denoiser is the best
    affine one for it.  Two passes in float64, in blocks.

    Args:
        images: (N, *event).  uint8 pixels become x / 127.5 - 1, floats stay as they
            are.
        rank: Number of principal directions to keep; None keeps all D.  The residual
            variance is the mean of the dropped eigenvalues.

    Returns:
        A `GaussianDenoiser` with variances in decreasing order, float32 (float64 under
        `jax.enable_x64`).

    Raises:
        InputError: If there are no images, a pixel is not finite, the dtype is neither
            uint8 nor float, or `rank` is not in [1, D].
    """
    images = np.asarray(images)
    _check_images(images)
    dimension = math.prod(images.shape[1:])
    rank = dimension if rank is None else rank
    if not 1 <= rank <= dimension:
        raise InputError(f"rank is {rank}; it must be in [1, {dimension}]")
    mean, covariance = _moments(images.reshape(images.shape[0], -1))
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    eigenvalues = np.maximum(eigenvalues[::-1], 0)
    dropped = eigenvalues[rank:]
    return GaussianDenoiser(
        mean=jnp.asarray(mean.reshape(images.shape[1:])),
        basis=jnp.asarray(eigenvectors[:, ::-1][:, :rank]),
        variances=jnp.asarray(eigenvalues[:rank]),
        residual_variance=jnp.asarray(dropped.mean() if dropped.size else 0.0),
    )


def isotropic_gaussian(mean: Array, variance: ArrayLike) -> GaussianDenoiser:
    """Return N(mean, variance I); variance 0 knows nothing of the data but its mean.

    Args:
        mean: (*event), data units.
        variance: (), >= 0, squared data units.

    Returns:
        A `GaussianDenoiser` of rank 0.
    """
    mean = jnp.asarray(mean)
    return GaussianDenoiser(
        mean=mean,
        basis=jnp.zeros((mean.size, 0), mean.dtype),
        variances=jnp.zeros(0, mean.dtype),
        residual_variance=jnp.asarray(variance, mean.dtype),
    )


def _check_images(images: np.ndarray) -> None:
    if images.ndim < 2 or images.size == 0:
        raise InputError(
            f"images have shape {images.shape}; give at least one, as (N, *event)"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"images have dtype {images.dtype}; give uint8 pixels or floats"
        )


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (D,) and biased covariance (D, D) of (N, D) rows, in float64."""
    count, dimension = rows.shape
    size = max(1, _BLOCK_ELEMENTS // dimension)
    starts = range(0, count, size)
    mean = sum(_block(rows, i, size).sum(axis=0) for i in starts) / count
    covariance = np.zeros((dimension, dimension))
    for i in starts:
        centred = _block(rows, i, size) - mean
        covariance += centred.T @ centred
    return np.asarray(mean), covariance / count


def _block(rows: np.ndarray, start: int, size: int) -> np.ndarray:
    """Return one block of rows as float64 in data units."""
    part = rows[start : start + size]
    block = part.astype(np.float64)
    if part.dtype == np.uint8:
        return block / 127.5 - 1
    if not np.isfinite(block).all():
        row = start + int(np.argmin(np.isfinite(block).all(axis=1)))
        raise InputError(
            f"image {row} holds NaN or infinite pixels; remove or repair it"
        )
    return block
