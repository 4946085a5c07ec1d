"""A Gaussian corrected by its third cumulant, to first order.

With z = x - mean, C = covariance + sigma^2 I, P = C^-1 and the third central moments
K3 of the data (noise adds none), the density is N(x; mean, C) (1 + K3 . H3(z) / 6) with
the Hermite tensor H3.  To first order log p gains K3 . H3 / 6 and the score

    1/2 P K3[(P z)(P z)^T - P],

the leading difference between any bounded set of points seen from afar and its Gaussian
(arXiv 2412.09726 for orders 3 and 4; Edgeworth 1905).  K3 is kept in the leading
principal directions, where P is diagonal.

The expansion is one in K3 / C^(3/2): it helps where sigma is well above the largest
standard deviation and does harm below.  Below 1.5 of it this is the plain Gaussian.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form.gaussian import GaussianDenoiser
from diffusion.closed_form.image_rows import ImageRows
from diffusion.denoiser import expand_sigma

__all__ = ["EdgeworthDenoiser", "fit_third_cumulant"]

_HIGHEST = jax.lax.Precision.HIGHEST
_LARGEST_RANK = 64
_VALID_ABOVE = 1.5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EdgeworthDenoiser:
    """A Gaussian with a third cumulant as a `Denoiser`.

    Args:
        gaussian: The Gaussian.
        third_cumulant: K3 in its first R3 directions, (R3, R3, R3), symmetric, cubed
            data units.
    """

    gaussian: GaussianDenoiser
    third_cumulant: Array

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x = jnp.asarray(x)
        q, p, s2, valid = self._whitened(x, sigma)
        k3 = self.third_cumulant
        pair = jnp.einsum("bi,bj->bij", q, q) - p[:, :, None] * jnp.eye(p.shape[1])
        score = 0.5 * p * jnp.einsum("kij,bij->bk", k3, pair, precision=_HIGHEST)
        step = jnp.where(valid, s2 * score, 0.0)
        basis = self.gaussian.basis[:, : len(k3)]
        moved = jnp.matmul(step, basis.T, precision=_HIGHEST)
        return (self.gaussian(x, sigma) + moved.reshape(x.shape)).astype(x.dtype)

    def log_density(self, x: Array, sigma: ArrayLike) -> Array:
        """Return log N + K3 . H3 / 6, which is not normalised beyond first order.

        Args:
            x: (B, *event).
            sigma: () or (B,), above 0.

        Returns:
            (B,) natural logarithms, in the dtype of `x`.

        Raises:
            InputError: If a shape does not fit or a sigma is not finite and above 0.
        """
        x = jnp.asarray(x)
        q, p, _, valid = self._whitened(x, sigma)
        k3 = self.third_cumulant
        cubic = jnp.einsum("kij,bk,bi,bj->b", k3, q, q, q, precision=_HIGHEST)
        linear = jnp.einsum("kii,bk,bi->b", k3, q, p, precision=_HIGHEST)
        correction = jnp.where(valid[:, 0], (cubic - 3 * linear) / 6, 0.0)
        return (self.gaussian.log_density(x, sigma) + correction).astype(x.dtype)

    def lowest_sigma(self) -> Array:
        """Return the noise level below which the correction is left out, ()."""
        return _VALID_ABOVE * jnp.sqrt(jnp.max(self.gaussian.variances))

    def _whitened(
        self, x: Array, sigma: ArrayLike
    ) -> tuple[Array, Array, Array, Array]:
        """Return P z, the diagonal of P, sigma^2 and where the expansion holds."""
        level = expand_sigma(sigma, x).reshape(-1, 1)
        level = level.astype(jnp.promote_types(level.dtype, self.third_cumulant.dtype))
        level = jnp.broadcast_to(level, (len(x), 1))
        rank = len(self.third_cumulant)
        z = (x - self.gaussian.mean).reshape(len(x), -1)
        basis = self.gaussian.basis[:, :rank]
        c = jnp.matmul(z, basis, precision=_HIGHEST)
        p = 1 / (self.gaussian.variances[:rank] + level**2)
        return p * c, p, level**2, level >= self.lowest_sigma()


def fit_third_cumulant(
    gaussian: GaussianDenoiser, images: ArrayLike, rank: int | None = None
) -> EdgeworthDenoiser:
    """Estimate the third cumulant in the leading principal directions.

    Args:
        gaussian: Fitted to the same images.
        images: (N, *event), uint8 pixels or floats in data units.
        rank: Number of directions, in [1, min(R, 64)]; None is the most.

    Returns:
        The corrected Gaussian; its K3 is biased (divided by N), like the covariance.

    Raises:
        InputError: If the shapes do not fit or the rank is out of range.
    """
    rows = ImageRows(images)
    largest = min(_LARGEST_RANK, gaussian.basis.shape[1])
    rank = largest if rank is None else rank
    if not 1 <= rank <= largest:
        raise InputError(
            f"rank is {rank}; a third cumulant needs one in [1, {largest}]"
        )
    if rows.event != gaussian.mean.shape:
        raise InputError(
            f"images have shape {rows.event}, the Gaussian {gaussian.mean.shape}; fit "
            "both to the same images"
        )
    basis, mean = gaussian.basis[:, :rank], gaussian.mean.ravel()
    total = np.zeros((rank * rank, rank))
    for block in rows.blocks():
        valid = jnp.arange(len(block.rows)) < block.count
        total += np.asarray(_cubes(block.rows, valid, basis, mean), np.float64)
    cumulant = total.reshape(rank, rank, rank) / len(rows)
    return EdgeworthDenoiser(gaussian, jnp.asarray(cumulant, gaussian.variances.dtype))


@jax.jit
def _cubes(rows: Array, valid: Array, basis: Array, mean: Array) -> Array:
    c = jnp.matmul(rows - mean, basis, precision=_HIGHEST) * valid[:, None]
    pairs = (c[:, :, None] * c[:, None, :]).reshape(len(c), -1)
    return jnp.matmul(pairs.T, c, precision=_HIGHEST)
