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
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, choice_error
from diffusion.closed_form.component import (
    Component,
    Members,
    fit_component,
    merge_rows,
)
from diffusion.closed_form.em_checkpoint import (
    EMState,
    checkpoint_identity,
    load_checkpoint,
    save_checkpoint,
)
from diffusion.closed_form.image_rows import Block, ImageRows
from diffusion.closed_form.kmeans import fit_kmeans
from diffusion.closed_form.mixture import Assignment, MixtureDenoiser
from diffusion.progress import Progress

__all__ = ["EMResult", "fit_class_mixture", "fit_mixture", "run_em"]

_VISITED = 1e-6  # responsibilities below this do not move a component
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
            state = _full_pass(rows, state, pass_key, variance_floor)
        else:
            state = _minibatch_pass(rows, state, pass_key, batch_size, variance_floor)
        save_checkpoint(checkpoint, identity, state)
        progress.advance(note=f"log-likelihood {state.history[-1]:.4f}")
    progress.close()
    last = _mean_log_likelihood(rows, state.mixture)
    converged = _finished(state.history, tolerance, 2**62)
    return EMResult(state.mixture, np.asarray([*state.history, last]), converged)


def _finished(history: Sequence[float], tolerance: float, num_passes: int) -> bool:
    if len(history) >= num_passes:
        return True
    if len(history) < 2:
        return False
    gain = history[-1] - history[-2]
    return gain < tolerance * abs(history[-2])


def _full_pass(
    rows: ImageRows, state: EMState, key: Array, variance_floor: float
) -> EMState:
    """One E-step over all images and one M-step of every component."""
    members, densities = _memberships(rows, state.mixture)
    log_likelihood = float(densities.mean())
    _assert_monotone(state, log_likelihood)
    rank = state.mixture.bases.shape[2]
    bases = np.asarray(state.mixture.bases, np.float64)
    components: list[Component | None] = [None] * len(members)
    for k, member in enumerate(members):
        if member.weights.sum() >= 1:  # at least one image's worth
            components[k] = fit_component(
                rows,
                member,
                rank,
                key=jax.random.fold_in(key, k),
                previous=bases[k],
                variance_floor=variance_floor,
            )
    reseeded = state.reseeded
    if None in components:
        reseeded = len(state.history)
    alive = _reseed(rows, components, densities)
    return EMState(_mixture(alive, rows), (*state.history, log_likelihood), reseeded)


def _minibatch_pass(
    rows: ImageRows,
    state: EMState,
    key: Array,
    batch_size: int,
    variance_floor: float,
) -> EMState:
    """Stepwise EM: statistics decay with step size (t + 2)^-.6 per batch."""
    order_seed = np.asarray(jax.random.bits(key, (2,), "uint32")).tolist()
    order = np.random.default_rng(order_seed).permutation(len(rows))
    components = _components(state.mixture)
    per_pass = -(-len(rows) // batch_size)
    step = len(state.history) * per_pass
    densities = []
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        decay = (step + 2) ** -0.6
        step += 1
        mixture = _mixture(components, rows)
        for block in rows.blocks(chosen):
            found = _assign_block(mixture, block)
            densities.append(np.asarray(found.log_density, np.float64)[: block.count])
            p = np.asarray(found.responsibilities)[: block.count]
            share = decay * block.count / len(chosen)
            for k, old in enumerate(components):
                kept = old._replace(weight=old.weight * (1 - share))
                near = p[:, k] > _VISITED
                if near.any():
                    weights = p[near, k] * (share / block.count)
                    part = block.rows[: block.count][near]
                    kept = merge_rows(kept, part, weights, variance_floor)
                components[k] = kept
    log_likelihood = float(np.concatenate(densities).mean())
    return EMState(
        _mixture(components, rows), (*state.history, log_likelihood), state.reseeded
    )


def _memberships(
    rows: ImageRows, mixture: MixtureDenoiser
) -> tuple[list[Members], NDArray[np.float64]]:
    """Return who belongs to each component, and the log density of each image."""
    num_components = len(mixture.log_weights)
    indices: list[list[NDArray[np.int64]]] = [[] for _ in range(num_components)]
    weights: list[list[NDArray[np.float32]]] = [[] for _ in range(num_components)]
    densities, start = [], 0
    for block in rows.blocks():
        found = _assign_block(mixture, block)
        p = np.asarray(found.responsibilities)[: block.count]
        densities.append(np.asarray(found.log_density, np.float64)[: block.count])
        for k in range(num_components):
            near = np.flatnonzero(p[:, k] > _VISITED)
            indices[k].append(near + start)
            weights[k].append(p[near, k])
        start += block.count
    members = [
        Members(np.concatenate(i), np.concatenate(w).astype(np.float32))
        for i, w in zip(indices, weights, strict=True)
    ]
    return members, np.concatenate(densities)


def _mean_log_likelihood(rows: ImageRows, mixture: MixtureDenoiser) -> float:
    parts = [
        np.asarray(_assign_block(mixture, block).log_density, np.float64)[: block.count]
        for block in rows.blocks()
    ]
    return float(np.concatenate(parts).mean())


def _assign_block(mixture: MixtureDenoiser, block: Block) -> Assignment:
    return _assign(mixture, block.rows)


@jax.jit
def _assign(mixture: MixtureDenoiser, rows: Array) -> Assignment:
    return mixture.assign(rows.reshape(len(rows), *mixture.means.shape[1:]))


def _assert_monotone(state: EMState, log_likelihood: float) -> None:
    """Stop where EM has done what it cannot do."""
    if not np.isfinite(log_likelihood):
        raise InputError(
            f"the log-likelihood is {log_likelihood}; raise variance_floor or ask for "
            "fewer components"
        )
    if not state.history or state.reseeded == len(state.history) - 1:
        return
    slack = 1e-6 * max(1.0, abs(state.history[-1]))  # float32 densities
    assert log_likelihood >= state.history[-1] - slack, (
        f"the log-likelihood fell from {state.history[-1]} to {log_likelihood}"
    )


def _reseed(
    rows: ImageRows,
    components: Iterable[Component | None],
    densities: NDArray[np.float64],
) -> list[Component]:
    """Put dead components at the images that the mixture explains worst."""
    given = list(components)
    alive = [component for component in given if component is not None]
    heaviest = max(alive, key=lambda component: component.weight)
    worst = iter(np.argsort(densities, kind="stable").tolist())
    share = len(rows) / len(given)
    return [
        heaviest._replace(
            weight=share, mean=np.asarray(rows.row(next(worst)), np.float64)
        )
        if component is None
        else component
        for component in given
    ]


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
    return _mixture(_reseed(rows, components, everywhere), rows)


def _mixture(components: Sequence[Component], rows: ImageRows) -> MixtureDenoiser:
    weights = np.asarray([component.weight for component in components])
    means = np.stack([component.mean for component in components])
    return MixtureDenoiser(
        log_weights=jnp.asarray(np.log(weights / weights.sum()), jnp.float32),
        means=jnp.asarray(means.reshape(-1, *rows.event), jnp.float32),
        bases=jnp.asarray(np.stack([c.basis for c in components]), jnp.float32),
        variances=jnp.asarray(np.stack([c.variances for c in components]), jnp.float32),
        residual_variances=jnp.asarray(
            [component.residual_variance for component in components], jnp.float32
        ),
    )


def _components(mixture: MixtureDenoiser) -> list[Component]:
    """Return the components of a mixture with weights that sum to 1."""
    weights = np.asarray(jax.nn.softmax(mixture.log_weights), np.float64)
    return [
        Component(
            float(weights[k]),
            np.asarray(mixture.means[k], np.float64).ravel(),
            np.asarray(mixture.bases[k], np.float64),
            np.asarray(mixture.variances[k], np.float64),
            float(mixture.residual_variances[k]),
        )
        for k in range(len(weights))
    ]


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
