"""Fitting mixtures of low-rank Gaussians: k-means, and EM from there.

Each component is a probabilistic PCA: covariance U diag(lam) U^T + r (I - U U^T).  A
pass computes the responsibilities of all images, p_ik, from logits in which nothing
cancels (`MixtureDenoiser`), then fits every component to the images weighted by p_ik,
visiting only those with p_ik > 1e-6.  The mean log-likelihood, summed in float64, does
not fall from pass to pass.  Sources: Dempster, Laird & Rubin 1977; Tipping & Bishop
1999 (mixtures of probabilistic PCA); Cappe & Moulines 2009 for minibatches; arXiv
2412.09726 for k-means + cluster covariance.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, choice_error
from diffusion.closed_form.component import Component, Members, fit_component
from diffusion.closed_form.em_checkpoint import (
    EMState,
    checkpoint_identity,
    load_checkpoint,
    save_checkpoint,
)
from diffusion.closed_form.em_passes import (
    build_mixture,
    full_pass,
    mean_log_likelihood,
    minibatch_pass,
    reseed,
)
from diffusion.closed_form.image_rows import ImageRows
from diffusion.closed_form.kmeans import fit_kmeans
from diffusion.closed_form.mixture import MixtureDenoiser
from diffusion.progress import Progress

__all__ = ["EMResult", "fit_class_mixture", "fit_mixture", "run_em"]

_COLD_ITERATIONS = 5  # of subspace iteration, where no basis is known yet
_METHODS = ("em", "kmeans")


class EMResult(NamedTuple):
    """What EM found.

    Attributes:
        mixture: The last mixture.
        log_likelihoods: Mean log density per image, in nats, of the mixture before each
            pass and of the last one: one more than there were passes.
        converged: Whether a pass gained less than the tolerance.
    """

    mixture: MixtureDenoiser
    log_likelihoods: NDArray[np.float64]
    converged: bool


def fit_mixture(
    images: ArrayLike,
    num_components: int,
    *,
    rank: int | None = None,
    key: Array | None = None,
    method: str = "em",
    num_passes: int = 100,
    tolerance: float = 1e-4,
    batch_size: int | None = None,
    variance_floor: float = 1e-6,
    checkpoint: str | Path | None = None,
) -> MixtureDenoiser:
    """Fit a Gaussian mixture to images.

    Args:
        images: (N, *event), uint8 pixels or floats in data units, in memory.
        num_components: K, in [1, N].
        rank: Principal directions per component, R; None keeps all D.
        key: A `jax.random.key`; the result is a function of it. None is key(0).
        method: ``"em"``, or ``"kmeans"`` for weight, mean and covariance of each
            k-means cluster, the published recipe and EM's start.
        num_passes: Most passes of EM.
        tolerance: EM ends when a pass gains less than this share of the mean
            log-likelihood.
        batch_size: Update after this many images; None after all of them.
        variance_floor: No variance is below this, squared data units.
        checkpoint: File written after each pass; the same call again goes on from it
            and ends bitwise equal. None writes none.

    Returns:
        The mixture, float32.

    Raises:
        InputError: If there are fewer images than components, a pixel is not finite,
            the rank is not in [0, D], a cluster is singular (with no variance floor),
            or the checkpoint is of another fit.
    """
    if method not in _METHODS:
        raise choice_error("method", method, _METHODS)
    key = jax.random.key(0) if key is None else key
    rows = ImageRows(images)
    rank = _check(rows, rank, num_passes, batch_size, variance_floor)
    clusters_key, bases_key, em_key = jax.random.split(key, 3)
    saved = None if checkpoint is None else Path(checkpoint)
    start = None
    if saved is None or not saved.exists() or method == "kmeans":
        labels = fit_kmeans(rows, num_components, clusters_key).labels
        start = _fit_clusters(
            rows, labels, range(num_components), rank, bases_key, variance_floor
        )
    if method == "kmeans":
        assert start is not None
        return start
    return run_em(
        images,
        start,
        key=em_key,
        num_passes=num_passes,
        tolerance=tolerance,
        batch_size=batch_size,
        variance_floor=variance_floor,
        checkpoint=checkpoint,
        settings={"num_components": num_components, "rank": rank},
    ).mixture


def fit_class_mixture(
    images: ArrayLike,
    labels: ArrayLike,
    *,
    rank: int | None = None,
    key: Array | None = None,
    variance_floor: float = 1e-6,
) -> MixtureDenoiser:
    """Fit one Gaussian to each class.

    Args:
        images: (N, *event), uint8 pixels or floats in data units.
        labels: (N,) integers >= 0.
        rank: Principal directions per class; None keeps all D.
        key: A `jax.random.key` for subspace iteration; None is key(0).
        variance_floor: No variance is below this, squared data units.

    Returns:
        A mixture with a component per class in increasing order of the class, weighted
        by its share of the images.

    Raises:
        InputError: If a label is missing or negative; otherwise as `fit_mixture`.
    """
    rows, labels = ImageRows(images), np.asarray(labels)
    rank = _check(rows, rank, 1, None, variance_floor)
    if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; give one "
            f"integer for each of the {len(rows)} images"
        )
    if labels.min() < 0:
        raise InputError(
            f"label {labels.min()} was given; a class-conditional fit needs a class "
            ">= 0 for every image"
        )
    key = jax.random.key(0) if key is None else key
    classes = np.unique(labels).tolist()
    return _fit_clusters(rows, labels, classes, rank, key, variance_floor)


def run_em(
    images: ArrayLike,
    start: MixtureDenoiser | None,
    *,
    key: Array | None = None,
    num_passes: int = 100,
    tolerance: float = 1e-4,
    batch_size: int | None = None,
    variance_floor: float = 1e-6,
    checkpoint: str | Path | None = None,
    settings: dict[str, object] | None = None,
) -> EMResult:
    """Run EM from a given mixture.

    Args:
        images: See `fit_mixture`.
        start: Where to begin; None needs a checkpoint.
        key: See `fit_mixture`.
        num_passes: See `fit_mixture`.
        tolerance: See `fit_mixture`.
        batch_size: See `fit_mixture`.
        variance_floor: See `fit_mixture`.
        checkpoint: See `fit_mixture`.
        settings: Whatever else a checkpoint must agree with.

    Returns:
        The mixture and the log-likelihoods that led to it.

    Raises:
        InputError: See `fit_mixture`.
    """
    rows = ImageRows(images)
    key = jax.random.key(0) if key is None else key
    _check(rows, 0, num_passes, batch_size, variance_floor)
    identity = checkpoint_identity(
        rows,
        key,
        {
            "batch_size": batch_size,
            "variance_floor": variance_floor,
            **(settings or {}),
        },
    )
    state = load_checkpoint(checkpoint, identity)
    if state is None:
        if start is None:
            raise InputError("EM needs a mixture to start from, or a checkpoint")
        state = EMState(start, (), None)
    progress = Progress(num_passes, done=len(state.history), label="EM", unit="passe")
    while not _finished(state.history, tolerance, num_passes):
        index = len(state.history)
        pass_key = jax.random.fold_in(key, index)
        if batch_size is None:
            state = full_pass(rows, state, pass_key, variance_floor)
        else:
            state = minibatch_pass(rows, state, pass_key, batch_size, variance_floor)
        save_checkpoint(checkpoint, identity, state)
        progress.advance(note=f"log-likelihood {state.history[-1]:.4f}")
    progress.close()
    last = mean_log_likelihood(rows, state.mixture)
    converged = _finished(state.history, tolerance, 2**62)
    return EMResult(state.mixture, np.asarray([*state.history, last]), converged)


def _finished(history: Sequence[float], tolerance: float, num_passes: int) -> bool:
    if len(history) >= num_passes:
        return True
    if len(history) < 2:
        return False
    gain = history[-1] - history[-2]
    return gain < tolerance * abs(history[-2])


def _fit_clusters(
    rows: ImageRows,
    labels: NDArray[np.integer],
    classes: Iterable[int],
    rank: int,
    key: Array,
    variance_floor: float,
) -> MixtureDenoiser:
    """Fit one component to the rows of each label."""
    components: list[Component | None] = []
    for k, label in enumerate(classes):
        indices = np.flatnonzero(labels == label)
        members = Members(indices, np.ones(len(indices), np.float32))
        components.append(
            fit_component(
                rows,
                members,
                rank,
                key=jax.random.fold_in(key, k),
                num_iterations=_COLD_ITERATIONS,
                variance_floor=variance_floor,
            )
            if len(indices)
            else None
        )
    everywhere = np.zeros(len(rows))
    return build_mixture(reseed(rows, components, everywhere), rows)


def _check(
    rows: ImageRows,
    rank: int | None,
    num_passes: int,
    batch_size: int | None,
    variance_floor: float,
) -> int:
    rank = rows.dimension if rank is None else rank
    if not 0 <= rank <= rows.dimension:
        raise InputError(f"rank is {rank}; it must be in [0, {rows.dimension}]")
    if num_passes < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(
            f"num_passes is {num_passes} and batch_size {batch_size}; both must be at "
            "least 1"
        )
    if not (np.isfinite(variance_floor) and variance_floor >= 0):
        raise InputError(f"variance_floor is {variance_floor}; it must be >= 0")
    return rank
