"""A mixture of images in the frame of their leading principal directions.

    sum_k w_k N(m_k, U_k diag(lam_k) U_k^T + v (I - U_k U_k^T))

All means and all bases U_k lie in the span of d directions, and all components share
one residual variance v.  Outside of that span the mixture is N(0, v I), independent of
what is inside, and every solver and every start multiplies noise there by one number.
So a single coordinate stands for all D - d of them: solutions in d + 1 coordinates are
those in D, and errors there count D - d times.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser, fit_mixture
from diffusion.denoiser import expand_sigma

__all__ = [
    "Frame",
    "Rows",
    "SharedResidualMixture",
    "cast",
    "fit_in_frame",
    "own_frame",
    "rows_in_frame",
    "shared_residual_mixture",
    "variance_beyond",
]

_HIGHEST = jax.lax.Precision.HIGHEST
_ROWS_AT_ONCE = 5000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedResidualMixture:
    """`MixtureDenoiser` of components with one residual variance: two large products.

    Args:
        log_weights: (K,).
        means: (K, d).
        bases: (d, K R), the bases side by side.
        offsets: (K, R), U_k^T m_k.
        variances: (K, R).
        residual_variance: ().
    """

    log_weights: Array
    means: Array
    bases: Array
    offsets: Array
    variances: Array
    residual_variance: Array

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, d) at sigma () or (B,); see `Denoiser`."""
        s2 = expand_sigma(sigma, x) ** 2
        t, v = self.residual_variance + s2, self.variances + s2[..., None]
        excess = self.variances - self.residual_variance
        c = jnp.matmul(x, self.bases, precision=_HIGHEST)
        c = c.reshape(len(x), *self.offsets.shape) - self.offsets
        cross = jnp.matmul(x, self.means.T, precision=_HIGHEST)
        twice = (jnp.sum(self.means**2, axis=1) - 2 * cross) / t
        twice += jnp.sum(jnp.log1p(excess / t[..., None]), axis=-1)
        twice -= jnp.sum(c**2 * (excess / (v * t[..., None])), axis=-1)
        p = jax.nn.softmax(self.log_weights - 0.5 * twice, axis=1)
        rest = self.residual_variance / t
        gains = self.variances / v - rest[..., None]
        moved = (p[..., None] * gains * c).reshape(len(x), -1)
        denoised = rest * x + jnp.matmul(moved, self.bases.T, precision=_HIGHEST)
        denoised += (1 - rest) * jnp.matmul(p, self.means, precision=_HIGHEST)
        return denoised

    def covariance(self) -> NDArray[np.float64]:
        """Return the covariance of the mixture about its mean, (d, d)."""
        weights = np.asarray(jax.nn.softmax(self.log_weights), np.float64)
        means, bases = np.asarray(self.means), np.asarray(self.bases)
        centred = means - weights @ means
        excess = np.asarray(self.variances) - float(self.residual_variance)
        within = bases * (weights[:, None] * excess).reshape(-1) @ bases.T
        between = centred.T * weights @ centred
        return within + between + float(self.residual_variance) * np.eye(len(within))

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Draw samples, (count, d)."""
        num_components, rank = np.shape(self.offsets)
        means, bases = np.asarray(self.means), np.asarray(self.bases)
        bases = bases.reshape(-1, num_components, rank)
        residual = float(self.residual_variance)
        weights = np.exp(np.asarray(self.log_weights, np.float64))
        ks = rng.choice(num_components, size=count, p=weights / weights.sum())
        x = rng.normal(size=(count, means.shape[1]))
        for k in np.unique(ks):
            z, basis = x[ks == k], bases[:, k]
            gains = np.sqrt(np.asarray(self.variances[k])) - residual**0.5
            x[ks == k] = means[k] + residual**0.5 * z + (z @ basis * gains) @ basis.T
        return x


class Frame(NamedTuple):
    """Coordinates of a pixel vector: those in the span, and the rest as it is.

    Attributes:
        mean: (D,), the origin, data units.
        basis: (D, d).
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]

    @property
    def outside(self) -> int:
        """Number of directions outside of the span."""
        return self.basis.shape[0] - self.basis.shape[1]

    @property
    def weights(self) -> NDArray[np.float64]:
        """How many directions each coordinate stands for, (d + 1,)."""
        return np.append(np.ones(self.basis.shape[1]), float(self.outside))


class Rows(NamedTuple):
    """Images in a frame.

    Attributes:
        inside: (N, d) coordinates.
        outside: Mean square of what lies outside of the span, summed over directions.
    """

    inside: NDArray[np.float32]
    outside: float


def own_frame(
    gaussian: GaussianDenoiser, dimension: int
) -> tuple[Frame, GaussianDenoiser]:
    """Return the frame of a Gaussian's leading directions, and the Gaussian in it.

    Args:
        gaussian: Over (*event), D = prod(event).
        dimension: d; at most its rank.

    Raises:
        InputError: If the Gaussian has no directions.
    """
    size, given = gaussian.basis.shape
    d = min(dimension, given)
    if d < 1:
        raise InputError(
            "the Gaussian has no principal directions to fit a surrogate in; fit one "
            "of higher rank with diffusion.fit_closed_form --kind gaussian"
        )
    frame = Frame(
        np.ravel(np.asarray(gaussian.mean, np.float32)),
        np.asarray(gaussian.basis[:, :d], np.float32),
    )
    variances = np.asarray(gaussian.variances, np.float64)
    residual = variance_beyond(gaussian, d, size)
    inside = GaussianDenoiser(
        jnp.zeros(d + 1),
        jnp.eye(d + 1, d),
        jnp.asarray(variances[:d], jnp.float32),
        jnp.float32(residual),
    )
    return frame, inside


def variance_beyond(gaussian: GaussianDenoiser, rank: int, dimension: float) -> float:
    """Return the mean variance of all directions after the first `rank`.

    Args:
        gaussian: Over `dimension` directions, whatever its coordinates.
        rank: In [0, R].
        dimension: D.
    """
    variances = np.asarray(gaussian.variances, np.float64)
    residual = float(np.asarray(gaussian.residual_variance))
    left = variances[rank:].sum() + (dimension - variances.size) * residual
    return float(left / max(dimension - rank, 1))


def rows_in_frame(images: NDArray[Any], frame: Frame) -> Rows:
    """Return the coordinates of images, (N, *event), uint8 pixels or data units."""
    inside, power = [], 0.0
    for start in range(0, len(images), _ROWS_AT_ONCE):
        rows = images[start : start + _ROWS_AT_ONCE].reshape(-1, len(frame.mean))
        if rows.dtype == np.uint8:
            rows = rows / np.float32(127.5) - 1
        centred = np.asarray(rows, np.float32) - frame.mean
        inside.append(centred @ frame.basis)
        power += float(np.sum(centred**2, dtype=np.float64))
    joined = np.concatenate(inside)
    power -= float(np.sum(joined**2, dtype=np.float64))
    return Rows(joined, max(power, 0.0) / len(images))


def fit_in_frame(
    rows: Rows, frame: Frame, num_components: int, rank: int, key: Array
) -> SharedResidualMixture:
    """Fit clusters in the span; what they leave is spread over all D - R directions."""
    found = fit_mixture(
        rows.inside, num_components, rank=rank, method="kmeans", key=key
    )
    weights = np.asarray(jax.nn.softmax(found.log_weights), np.float64)
    dimension = rows.inside.shape[1]
    left = weights @ np.asarray(found.residual_variances, np.float64)
    residual = ((dimension - rank) * left + rows.outside) / (len(frame.mean) - rank)
    bases = np.asarray(found.bases, np.float64)
    # Orthonormal in float64 too: the formulas of the denoiser rely on it.
    bases = np.linalg.qr(bases)[0]
    means = np.asarray(found.means, np.float64)
    return shared_residual_mixture(
        np.log(weights), means, bases, np.asarray(found.variances), residual
    )


def shared_residual_mixture(
    log_weights: NDArray[Any],
    means: NDArray[Any],
    bases: NDArray[Any],
    variances: NDArray[Any],
    residual_variance: float,
) -> SharedResidualMixture:
    """Add the coordinate that stands for the outside, and lay the bases side by side.

    Args:
        log_weights: (K,).
        means: (K, d).
        bases: (K, d, R).
        variances: (K, R).
        residual_variance: Of all components.
    """
    means = np.pad(means, ((0, 0), (0, 1)))
    bases = np.pad(bases, ((0, 0), (0, 1), (0, 0)))
    return SharedResidualMixture(
        log_weights,  # pyright: ignore[reportArgumentType]
        means,  # pyright: ignore[reportArgumentType]
        bases.transpose(1, 0, 2).reshape(means.shape[1], -1),  # pyright: ignore[reportArgumentType]
        np.einsum("kdr,kd->kr", bases, means),
        variances.astype(np.float64),  # pyright: ignore[reportArgumentType]
        np.float64(residual_variance),  # pyright: ignore[reportArgumentType]
    )


def cast(tree: Any, dtype: Any) -> Any:
    """Return a pytree of arrays of `dtype` on the device."""
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), tree)
