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

A process x_t = alpha x0 + sigma n is the same frame scaled: x_t / alpha at noise level
sigma / alpha.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form.checks import check_event, check_variances
from diffusion.denoiser import expand_sigma

if TYPE_CHECKING:
    from diffusion.closed_form.edgeworth import EdgeworthDenoiser

__all__ = ["GaussianDenoiser", "isotropic_gaussian"]

_HIGHEST = jax.lax.Precision.HIGHEST


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

    def flow(
        self,
        x: Array,
        sigma_from: ArrayLike,
        sigma_to: ArrayLike,
        *,
        alpha_from: ArrayLike = 1.0,
        alpha_to: ArrayLike = 1.0,
    ) -> Array:
        """Move samples along the probability-flow ODE, exactly.

        For x_t = alpha x0 + sigma n every mode scales by sqrt((alpha_to^2 v +
        sigma_to^2) / (alpha_from^2 v + sigma_from^2)) about alpha times the mean; alpha
        is 1 in the house frame, sqrt(1 - sigma^2) in the VP one and 1 - sigma in flow
        matching.

        Args:
            x: Samples at (`alpha_from`, `sigma_from`), (B, *event).
            sigma_from: () or (B,), above 0.
            sigma_to: () or (B,), above 0; may be larger or smaller than `sigma_from`.
            alpha_from: () or (B,), above 0.
            alpha_to: () or (B,), above 0.

        Returns:
            The same trajectories at (`alpha_to`, `sigma_to`), (B, *event), in the dtype
            of `x`.

        Raises:
            InputError: If a shape does not fit, or a sigma or alpha is not finite and
                above 0.
        """
        x = jnp.asarray(x)
        a, b = self._levels(x, sigma_from), self._levels(x, sigma_to)
        scale_from = self._levels(x, alpha_from, name="alpha")
        scale_to = self._levels(x, alpha_to, name="alpha")
        a, b = (a / scale_from) ** 2, (b / scale_to) ** 2
        v = jnp.asarray(self.residual_variance)
        gains = jnp.sqrt((b + self.variances) / (a + self.variances))
        rest = jnp.sqrt((b + v) / (a + v))
        return self._scale_modes(x, gains, rest, scale_from, scale_to)

    def denoiser_trajectory(
        self, x: Array, sigma_from: ArrayLike, sigma_to: ArrayLike
    ) -> Array:
        """Return D along the trajectory through `x`, without following it.

        D(x(sigma_to), sigma_to) = mean + sum_k xi_k c_k u_k + ..., with
        xi_k = variances_k / sqrt((sigma_to^2 + variances_k)(sigma_from^2 +
        variances_k)), which stays finite at sigma_to = 0 (arXiv 2412.09726).

        Args:
            x: Samples at `sigma_from`, (B, *event).
            sigma_from: () or (B,), above 0.
            sigma_to: () or (B,), at least 0.

        Returns:
            (B, *event), in the dtype of `x`.

        Raises:
            InputError: If a shape does not fit or a sigma is out of range.
        """
        x = jnp.asarray(x)
        a = self._levels(x, sigma_from) ** 2
        b = self._levels(x, sigma_to, allow_zero=True) ** 2

        def gain(variance: Array) -> Array:
            below = jnp.sqrt((b + variance) * (a + variance))
            return variance / jnp.where(variance > 0, below, 1.0)

        rest = gain(jnp.asarray(self.residual_variance))
        return self._scale_modes(x, gain(jnp.asarray(self.variances)), rest)

    def from_white(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return mean + (covariance + sigma^2 I)^(1/2) noise.

        White noise becomes a sample of the noised Gaussian, mean and covariance
        matched: the limit of `flow` from an infinite noise level, with the mean added
        ("Gaussian late start", arXiv 2305.19693).

        Args:
            noise: Standard normal, (B, *event).
            sigma: () or (B,), at least 0, data units.

        Returns:
            (B, *event), in the dtype of `noise`.

        Raises:
            InputError: If a shape does not fit or a sigma is out of range.
        """
        noise = jnp.asarray(noise)
        s2 = self._levels(noise, sigma, allow_zero=True) ** 2
        gains = jnp.sqrt(self.variances + s2)
        rest = jnp.sqrt(self.residual_variance + s2)
        return self._scale_modes(self.mean + noise, gains, rest).astype(noise.dtype)

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
        return self.from_white(white, sigma)

    def mean_variance(self) -> Array:
        """Return the variance averaged over all D directions, ()."""
        dimension, rank = self.basis.shape
        rest = (dimension - rank) * jnp.asarray(self.residual_variance)
        return (jnp.sum(self.variances) + rest) / dimension

    def truncated(self, rank: int) -> "GaussianDenoiser":
        """Keep the first `rank` directions; the others share their mean variance.

        Args:
            rank: In [0, R].

        Returns:
            A Gaussian of the same mean and of the same total variance.

        Raises:
            InputError: If `rank` is outside [0, R].
        """
        dimension, given = self.basis.shape
        if not 0 <= rank <= given:
            raise InputError(
                f"rank is {rank}; this Gaussian can be cut to ranks in [0, {given}]"
            )
        if rank == given:
            return self
        rest = (dimension - given) * jnp.asarray(self.residual_variance)
        residual = (jnp.sum(self.variances[rank:]) + rest) / (dimension - rank)
        return GaussianDenoiser(
            self.mean, self.basis[:, :rank], self.variances[:rank], residual
        )

    def isotropic(self) -> "GaussianDenoiser":
        """Return N(mean, mean_variance I): the mean and the spread, no directions."""
        return isotropic_gaussian(self.mean, self.mean_variance())

    def mean_only(self) -> "GaussianDenoiser":
        """Return the denoiser that always answers with the mean: variance 0."""
        return isotropic_gaussian(self.mean, 0.0)

    def with_third_cumulant(
        self, images: ArrayLike, *, rank: int | None = None
    ) -> "EdgeworthDenoiser":
        """Add the third cumulant of some images in the leading principal directions.

        Args:
            images: (N, *event), uint8 or data units: those the Gaussian was fitted to.
            rank: Number of directions; None is min(R, 64).  The cumulant has rank^3
                entries.

        Returns:
            See `EdgeworthDenoiser`.

        Raises:
            InputError: If the shapes do not fit or `rank` is not in [1, min(R, 64)].
        """
        from diffusion.closed_form.edgeworth import fit_third_cumulant

        return fit_third_cumulant(self, images, rank)

    def _levels(
        self,
        x: Array,
        sigma: ArrayLike,
        *,
        allow_zero: bool = False,
        name: str = "sigma",
    ) -> Array:
        """Check the shapes; return sigma as (1, 1) or (B, 1) in the wide dtype."""
        event = jnp.shape(self.mean)
        check_event(x, event, "Gaussian")
        basis, variances = jnp.shape(self.basis), jnp.shape(self.variances)
        if len(basis) != 2 or basis[0] != math.prod(event) or variances != basis[1:]:
            raise InputError(
                f"a Gaussian over {event} needs basis ({math.prod(event)}, R) and "
                f"variances (R,); given {basis} and {variances}"
            )
        check_variances(self.variances, self.residual_variance)
        level = expand_sigma(sigma, x, allow_zero=allow_zero, name=name)
        wide = jnp.promote_types(level.dtype, jnp.result_type(self.mean))
        return level.reshape(-1, 1).astype(wide)

    def _project(self, x: Array, alpha: ArrayLike = 1.0) -> tuple[Array, Array]:
        """Return z = x / alpha - mean as (B, D) and U^T z as (B, R)."""
        z = x.reshape(x.shape[0], -1) / alpha - jnp.ravel(self.mean)
        return z, jnp.matmul(z, self.basis, precision=_HIGHEST)

    def _back_project(self, coefficients: Array) -> Array:
        return jnp.matmul(coefficients, jnp.transpose(self.basis), precision=_HIGHEST)

    def _scale_modes(
        self,
        x: Array,
        gains: Array,
        rest: Array,
        alpha_from: ArrayLike = 1.0,
        alpha_to: ArrayLike = 1.0,
    ) -> Array:
        """Scale z by `gains` (., R) along the basis and by `rest` (., 1) off it."""
        z, c = self._project(x, alpha_from)
        dimension, rank = self.basis.shape
        # A full basis has no complement; leaving it out also avoids adding and
        # subtracting rest * z, which would cost digits where rest is large.
        if rank == dimension:
            scaled = self._back_project(gains * c)
        else:
            scaled = rest * z + self._back_project((gains - rest) * c)
        moved = jnp.asarray(alpha_to) * (jnp.ravel(self.mean) + scaled)
        return moved.reshape(x.shape).astype(x.dtype)


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
