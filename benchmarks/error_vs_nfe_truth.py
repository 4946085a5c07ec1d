"""A mixture whose exact solutions are cheap, and what a user of it would know.

The truth is a mixture of K components of rank R in D = 3,072 pixels,

    sum_k w_k N(m_k, U_k diag(lam_k) U_k^T + v (I - U_k U_k^T)),

fitted to half of the images: clusters of k-means, their means and covariances.  Two
choices make it cheap and cost nothing in exactness, since the truth is ours to choose:
all means (about that of the half) and all bases lie in the span of the half's leading
`dimension` principal directions, and all components share one residual variance v.
Outside of that span the truth then is the Gaussian N(0, v I), independent of what is
inside.  There every solver and every start multiplies noise by one number, so a single
coordinate stands for all D - dimension of them: solutions in dimension + 1 coordinates
are those in D.

A user knows the other half of the images: its Gaussian (128 directions and a residual
variance) and a coarser mixture (10 components).  Both are cut to the same span and see
the same outside; their residual variances are those that the images leave.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from diffusion.closed_form import GaussianDenoiser, fit_gaussian, fit_mixture
from diffusion.denoiser import expand_sigma

_HIGHEST = jax.lax.Precision.HIGHEST
_ROWS_AT_ONCE = 5000


class Setting(NamedTuple):
    """Sizes of the problem."""

    dimension: int = 256
    num_components: int = 100
    rank: int = 32
    gaussian_rank: int = 128
    coarse_components: int = 10


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


class Problem(NamedTuple):
    """The truth and what a user knows, in d + 1 coordinates, float64.

    Attributes:
        truth: What solvers call.
        gaussian: Of the other half of the images.
        coarse: A mixture fitted to the other half.
        frame: Where the coordinates are.
        description: Figures of the fit.
    """

    truth: SharedResidualMixture
    gaussian: GaussianDenoiser
    coarse: SharedResidualMixture
    frame: Frame
    description: dict[str, Any]


def fit_problem(images: NDArray[np.uint8], setting: Setting) -> Problem:
    """Fit the truth to the images of even index, the user's models to the others."""
    halves = images[::2], images[1::2]
    whole = fit_gaussian(halves[0])
    frame = Frame(
        np.ravel(np.asarray(whole.mean)),
        np.asarray(whole.basis)[:, : setting.dimension],
    )
    keys = jax.random.split(jax.random.key(0))
    ours, others = (_coordinates(half, frame) for half in halves)
    truth = _fit_mixture(ours, frame, setting.num_components, setting.rank, keys[0])
    coarse = _fit_mixture(
        others, frame, setting.coarse_components, setting.rank, keys[1]
    )
    gaussian = _fit_gaussian(others, frame, setting.gaussian_rank)
    variances = np.asarray(whole.variances, np.float64)
    description = {
        "images": [len(half) for half in halves],
        "D": len(frame.mean),
        "setting": setting._asdict(),
        "variance_inside_span": float(
            variances[: setting.dimension].sum() / variances.sum()
        ),
        "residual_variance": {
            "truth": float(truth.residual_variance),
            "gaussian": float(np.asarray(gaussian.residual_variance)),
            "coarse_mixture": float(coarse.residual_variance),
        },
        "rms_of_truth": float(
            np.sqrt(
                (
                    np.trace(truth.covariance()[:-1, :-1])
                    + frame.outside * float(truth.residual_variance)
                )
                / len(frame.mean)
            )
        ),
    }
    return Problem(truth, gaussian, coarse, frame, description)


def cast(tree: Any, dtype: Any) -> Any:
    """Return a pytree of arrays of `dtype` on the device."""
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), tree)


class _Rows(NamedTuple):
    """Images in the frame: coordinates (n, d) and their mean square outside of it."""

    inside: NDArray[np.float32]
    outside: float


def _coordinates(images: NDArray[np.uint8], frame: Frame) -> _Rows:
    inside, power = [], 0.0
    for start in range(0, len(images), _ROWS_AT_ONCE):
        rows = images[start : start + _ROWS_AT_ONCE].reshape(-1, len(frame.mean))
        centred = rows / np.float32(127.5) - 1 - frame.mean
        inside.append(centred @ frame.basis)
        power += float(np.sum(centred**2, dtype=np.float64))
    joined = np.concatenate(inside)
    power -= float(np.sum(joined**2, dtype=np.float64))
    return _Rows(joined, power / len(images))


def _fit_mixture(
    rows: _Rows, frame: Frame, num_components: int, rank: int, key: Array
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


def _fit_gaussian(rows: _Rows, frame: Frame, rank: int) -> GaussianDenoiser:
    """Fit mean, leading directions, and what they leave over all D - rank others."""
    inside = rows.inside.astype(np.float64)
    mean = inside.mean(axis=0)
    centred = inside - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(inside))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    left = variances[rank:].sum() + rows.outside
    return GaussianDenoiser(
        np.append(mean, 0.0),  # pyright: ignore[reportArgumentType]
        np.pad(vectors[:, :rank], ((0, 1), (0, 0))),  # pyright: ignore[reportArgumentType]
        variances[:rank].copy(),  # pyright: ignore[reportArgumentType]
        left / (len(frame.mean) - rank),
    )
