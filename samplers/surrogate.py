"""A closed-form stand-in for a network: a mixture of its training images.

What start, solver and grid do to an image depends mostly on the data.  So they can be
searched (`samplers.tuning`) on a model whose exact solutions cost no network call: a
mixture of Gaussians fitted to the training images in their leading principal directions
(`samplers.frame`), or any mixture over whole images.  Beside it stands what a user of
the network knows, in the same coordinates: the Gaussian, and gains along its principal
directions, measured on the mixture as they would be on the network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from diffusion.closed_form import GaussianDenoiser, MixtureDenoiser
from samplers.coordinates import Coordinates
from samplers.effective_variances import EffectiveVariances, log_variances_of
from samplers.frame import (
    Frame,
    SharedResidualMixture,
    cast,
    fit_in_frame,
    own_frame,
    rows_in_frame,
    variance_beyond,
)
from samplers.gain_estimation import estimate_gains
from samplers.schedules import log_linear

__all__ = [
    "Surrogate",
    "fit_surrogate",
    "measure_gains_in_frame",
    "surrogate_of_mixture",
]

_GAIN_LEVELS = 20
_TINY = 1e-30  # in the place of a variance of 0, of which there is no logarithm


class Surrogate(NamedTuple):
    """A closed form to search on, and what a user of the network knows, alike.

    Attributes:
        denoiser: The closed form.
        gaussian: The run's Gaussian, in the same coordinates.
        frame: Where the d + 1 coordinates are; None where they are the pixels.
        description: Figures of the fit, plain values for JSON.
    """

    denoiser: SharedResidualMixture | MixtureDenoiser
    gaussian: GaussianDenoiser
    frame: Frame | None
    description: dict[str, Any]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return jnp.shape(self.gaussian.mean)

    @property
    def weights(self) -> NDArray[np.float64]:
        """How many directions each number of a sample stands for, flat."""
        if self.frame is not None:
            return self.frame.weights
        return np.ones(int(np.prod(self.event_shape)))

    def noise(self, seed: int, count: int) -> NDArray[np.float64]:
        """Return white noise, (count, *event); 1 for the coordinate outside."""
        noise = np.random.default_rng(seed).normal(size=(count, *self.event_shape))
        if self.frame is not None:
            noise[:, -1] = 1.0
        return noise

    def mixture(self, event_shape: tuple[int, ...]) -> MixtureDenoiser:
        """Return the closed form over whole samples.

        Args:
            event_shape: Shape of one sample.
        """
        if isinstance(self.denoiser, MixtureDenoiser):
            return self.denoiser
        assert self.frame is not None, "a mixture of one residual variance has a frame"
        found, frame = self.denoiser, self.frame
        count, rank = np.shape(found.variances)
        means = frame.mean + np.asarray(found.means)[:, :-1] @ frame.basis.T
        bases = frame.basis @ np.asarray(found.bases)[:-1]
        bases = bases.reshape(-1, count, rank).transpose(1, 0, 2)
        residual = np.full(count, np.asarray(found.residual_variance))
        return MixtureDenoiser(
            *(
                jnp.asarray(part, jnp.float32)
                for part in (
                    found.log_weights,
                    means.reshape(count, *event_shape),
                    bases,
                    found.variances,
                    residual,
                )
            )
        )

    def gaussian_gains(self, rank: int) -> EffectiveVariances:
        """Return the Gaussian, cut to `rank`, as gains that do not depend on sigma."""
        rank = min(rank, jnp.shape(self.gaussian.basis)[1])
        variances = np.asarray(self.gaussian.variances, np.float64)
        rest = variance_beyond(self.gaussian, rank, self.weights.sum())
        table = np.log(np.maximum(np.append(variances[:rank], rest), _TINY))
        frame = Coordinates(self.gaussian.mean, self.gaussian.basis[:, :rank])
        return EffectiveVariances(frame, np.ones(1), table[None])

    def measured_gains(
        self, sigma_range: tuple[float, float], *, rank: int, num_images: int, seed: int
    ) -> EffectiveVariances:
        """Measure the surrogate's own gains as they would be measured on the network.

        Args:
            sigma_range: Lowest and highest noise level.
            rank: Directions that are measured one by one.
            num_images: Noised samples of the surrogate per level.
            seed: Of samples and noise.
        """
        sigmas, key = log_linear(_GAIN_LEVELS, *sigma_range), jax.random.key(seed)
        if isinstance(self.denoiser, MixtureDenoiser):
            clean = self.denoiser.sample(key, num_images)
            return estimate_gains(
                self.denoiser,
                self.gaussian,
                clean,
                sigmas,
                key,
                rank=rank,
                num_images=num_images,
            ).statistics
        assert self.frame is not None, "a mixture of one residual variance has a frame"
        clean = self.denoiser.sample(np.random.default_rng(seed), num_images)
        return measure_gains_in_frame(
            cast(self.denoiser, jnp.float32),
            self.gaussian,
            clean.astype(np.float32),
            sigmas,
            key,
            rank=rank,
            outside=self.frame.outside,
            num_images=num_images,
        )


def fit_surrogate(
    images: NDArray[Any],
    gaussian: GaussianDenoiser,
    key: Array,
    *,
    dimension: int = 256,
    num_components: int = 10,
    rank: int = 32,
) -> Surrogate:
    """Fit a mixture to training images in the leading directions of their Gaussian.

    Args:
        images: (N, *event), uint8 pixels or floats in data units.
        gaussian: Of the same images.
        key: A `jax.random.key`, for k-means.
        dimension: d; at most the rank of the Gaussian.
        num_components: K; at most N.
        rank: Principal directions per component; at most d, and below D.

    Returns:
        The surrogate, in d + 1 coordinates.

    Raises:
        InputError: If the Gaussian has no directions, or a pixel is not finite.
    """
    frame, own = own_frame(gaussian, dimension)
    rows = rows_in_frame(images, frame)
    rank = min(rank, frame.basis.shape[1], len(frame.mean) - 1)
    num_components = min(num_components, len(images))
    mixture = fit_in_frame(rows, frame, num_components, rank, key)
    total = float(np.sum(rows.inside**2, dtype=np.float64)) / len(rows.inside)
    return Surrogate(
        mixture,
        own,
        frame,
        {
            "kind": "mixture of the training images",
            "num_images": len(images),
            "dimension": frame.basis.shape[1],
            "num_components": num_components,
            "rank": rank,
            "share_of_variance_inside": total / (total + max(rows.outside, 0.0)),
            "residual_variance": float(mixture.residual_variance),
        },
    )


def surrogate_of_mixture(
    mixture: MixtureDenoiser, gaussian: GaussianDenoiser, about: dict[str, Any]
) -> Surrogate:
    """Take a mixture over whole images as the surrogate.

    Args:
        mixture: Over samples of the Gaussian's shape.
        gaussian: What a user of the network teleports with.
        about: Where the mixture comes from, plain values for JSON.
    """
    size = {"num_components": len(mixture.means), "rank": mixture.bases.shape[2]}
    return Surrogate(mixture, gaussian, None, {**about, **size})


def measure_gains_in_frame(
    denoiser: SharedResidualMixture,
    gaussian: GaussianDenoiser,
    images: NDArray[Any],
    sigmas: ArrayLike,
    key: Array,
    *,
    rank: int,
    outside: int,
    num_images: int = 512,
) -> EffectiveVariances:
    """Measure gains in d + 1 coordinates as if it were done in all D.

    The complement of the basis has one gain, sum_k Cov_k / sum_k Var_k, in which the
    last coordinate counts `outside` times.  So all d directions are measured, and those
    beyond `rank` are put together with it.

    Args:
        denoiser: In d + 1 coordinates.
        gaussian: Mean and principal directions, likewise.
        images: (M, d + 1), clean.
        sigmas: (N,) decreasing noise levels.
        key: A `jax.random.key`.
        rank: Directions that keep a gain of their own.
        outside: Directions that the last coordinate stands for.
        num_images: Noised images per level.
    """
    basis = _completed(np.asarray(gaussian.basis, np.float64))
    dtype = jnp.result_type(gaussian.mean)
    rank = min(rank, jnp.shape(gaussian.basis)[1])
    whole = GaussianDenoiser(
        gaussian.mean,
        jnp.asarray(basis, dtype),
        jnp.ones(basis.shape[1], dtype),
        jnp.ones((), dtype),
    )
    found = estimate_gains(
        denoiser, whole, images, sigmas, key, rank=None, num_images=num_images
    ).statistics
    s2 = np.asarray(found.sigmas, np.float64)[:, None] ** 2
    rates = s2 / (s2 + np.exp(np.asarray(found.log_variances)))  # l = 1 - w
    clean = np.asarray(images, np.float64) - np.asarray(gaussian.mean)
    power = np.append((clean @ basis).var(axis=0), np.mean(clean[:, -1] ** 2)) + s2
    power[:, -1] *= outside
    share = power[:, rank:]
    total = np.maximum(share.sum(axis=1), _TINY)
    rest = np.sum(share * rates[:, rank:], axis=1) / total
    log_rest = log_variances_of(rest, np.asarray(found.sigmas, np.float64))
    kept = np.asarray(found.log_variances)[:, :rank]
    table = np.concatenate([kept, log_rest[:, None]], axis=1)
    return EffectiveVariances(
        Coordinates(gaussian.mean, whole.basis[:, :rank]), found.sigmas, table
    )


def _completed(basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return d orthonormal directions of the span, (d + 1, d), these ones first."""
    d, given = len(basis) - 1, basis.shape[1]
    vectors = np.linalg.svd(basis[:-1], full_matrices=True)[0]
    rest = np.pad(vectors[:, given:d], ((0, 1), (0, 0)))
    return np.concatenate([basis, rest], axis=1)
