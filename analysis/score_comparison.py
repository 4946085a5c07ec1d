"""How much of a score one model explains of another's.

    explained variance = 1 - |reference - candidate|^2 / |reference|^2,

averaged over probes x = x0 + sigma n.  For scores the reference is the network's score;
for denoised images both sides are first centred on the data's mean, so that a model
which knows the mean alone explains nothing.  Source: Wang & Vastola, arXiv 2412.09726.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.data import to_data_units
from diffusion.denoiser import Denoiser, score

__all__ = [
    "Comparison",
    "Summary",
    "compare_denoisers",
    "explained_variance",
    "unexplained_fractions",
]


class Summary(NamedTuple):
    """A quantity over candidates and noise levels.

    Attributes:
        mean: (M, L) average over probes.
        standard_error: (M, L) standard error of that average.
    """

    mean: NDArray[np.float64]
    standard_error: NDArray[np.float64]


class Comparison(NamedTuple):
    """Candidates against a reference denoiser.

    Attributes:
        names: The M candidates.
        sigmas: (L,) noise levels, data units.
        num_probes: Noisy samples behind every number.
        score: Explained variance of the reference's score.
        denoised: Explained variance of its denoised, centred sample.
        squared_error: |reference - candidate|^2 / D of the denoised sample, squared
            data units.
    """

    names: tuple[str, ...]
    sigmas: NDArray[np.float64]
    num_probes: int
    score: Summary
    denoised: Summary
    squared_error: Summary


def unexplained_fractions(reference: ArrayLike, candidate: ArrayLike) -> Array:
    """Return |reference - candidate|^2 / |reference|^2 of each sample.

    Args:
        reference: (n, *event).
        candidate: (n, *event).

    Returns:
        (n,) fractions, >= 0; 0 where both are zero.

    Raises:
        InputError: If the shapes differ or there is no sample.
    """
    reference, candidate = jnp.asarray(reference), jnp.asarray(candidate)
    if reference.shape != candidate.shape or reference.ndim < 2 or not reference.size:
        raise InputError(
            f"reference has shape {reference.shape} and candidate {candidate.shape}; "
            "give both as (n, *event) with n >= 1"
        )
    error, power = _sum_of_squares(reference - candidate), _sum_of_squares(reference)
    return jnp.where(error == 0, 0.0, error / power)


def explained_variance(reference: ArrayLike, candidate: ArrayLike) -> Array:
    """Return the share of the reference that the candidate explains.

    1 - mean over samples of |reference - candidate|^2 / |reference|^2: 1 for equal
    arrays, 0 for a candidate of zeros, negative for one that is worse than zeros.

    Args:
        reference: Scores or centred denoised samples, (n, *event).
        candidate: The same of another model, (n, *event).

    Returns:
        The average, ().

    Raises:
        InputError: If the shapes differ or there is no sample.
    """
    return 1 - jnp.mean(unexplained_fractions(reference, candidate))


def compare_denoisers(
    reference: Denoiser,
    candidates: Mapping[str, Denoiser],
    images: ArrayLike,
    sigmas: ArrayLike,
    key: Array,
    *,
    mean: ArrayLike,
    batch_size: int = 256,
) -> Comparison:
    """Compare candidates with a reference on noised images.

    Args:
        reference: The denoiser to explain, usually a network.
        candidates: Denoisers by name.
        images: Clean samples to put noise on, (N, *event), uint8 or data units.
        sigmas: (L,) noise levels, data units.
        key: A `jax.random.key`; image i, level l: ``fold_in(fold_in(key, l), i)``.
        mean: Mean of the data, (*event), which centres denoised samples.
        batch_size: Images handled at once.

    Returns:
        Averages over the N probes with their standard errors.

    Raises:
        InputError: If there is no candidate, no level or no image.
    """
    sigmas = np.asarray(sigmas, np.float64)
    images = to_data_units(images)
    if not (np.isfinite(sigmas) & (sigmas > 0)).all():
        raise InputError(f"sigmas are {sigmas}; each must be finite and > 0")
    if not candidates or sigmas.ndim != 1 or not sigmas.size or not len(images):
        raise InputError(
            f"{len(candidates)} candidates, sigmas of shape {sigmas.shape} and "
            f"{len(images)} images were given; at least one of each is needed"
        )
    models, mean = tuple(candidates.values()), jnp.asarray(mean)
    blocks = range(0, len(images), batch_size)
    levels = []
    for index, sigma in enumerate(sigmas):
        level_key = jax.random.fold_in(key, index)
        parts = [
            _probe(
                reference, models, images[i : i + batch_size], i, sigma, level_key, mean
            )
            for i in blocks
        ]
        levels.append(
            np.concatenate([np.asarray(p, np.float64) for p in parts], axis=2)
        )
    # (3 quantities, M candidates, L levels, N probes)
    values = np.stack(levels, axis=2)
    values[:2] = 1 - values[:2]
    count = values.shape[-1]
    spread = (
        values.std(axis=-1, ddof=1) if count > 1 else np.full(values.shape[:3], np.nan)
    )
    summaries = zip(values.mean(axis=-1), spread / np.sqrt(count), strict=True)
    return Comparison(
        tuple(candidates), sigmas, count, *(Summary(a, b) for a, b in summaries)
    )


@jax.jit
def _probe(
    reference: Denoiser,
    candidates: tuple[Denoiser, ...],
    images: Array,
    first_index: Array,
    sigma: Array,
    key: Array,
    mean: Array,
) -> Array:
    """Return unexplained score, unexplained denoised and squared error, (3, M, B)."""
    indices = first_index + jnp.arange(images.shape[0])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], images.dtype))(
        keys
    )
    x = (images + sigma * noise).astype(images.dtype)
    target, target_score = reference(x, sigma) - mean, score(reference, x, sigma)

    def against(candidate: Denoiser) -> Array:
        denoised = candidate(x, sigma) - mean
        scores = score(candidate, x, sigma)
        size = target[0].size
        return jnp.stack(
            [
                unexplained_fractions(target_score, scores),
                unexplained_fractions(target, denoised),
                _sum_of_squares(target - denoised) / size,
            ]
        )

    return jnp.stack([against(candidate) for candidate in candidates], axis=1)


def _sum_of_squares(x: Array) -> Array:
    return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
