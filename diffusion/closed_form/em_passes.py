"""One pass of EM over a data set: all at once, or minibatch by minibatch.

See `diffusion.closed_form.em` for what EM does here and its sources.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form.component import (
    Component,
    Members,
    fit_component,
    merge_rows,
)
from diffusion.closed_form.em_checkpoint import EMState
from diffusion.closed_form.image_rows import ImageRows
from diffusion.closed_form.mixture import Assignment, MixtureDenoiser

__all__ = [
    "build_mixture",
    "full_pass",
    "mean_log_likelihood",
    "minibatch_pass",
    "reseed",
]

_VISITED = 1e-6  # responsibilities below this do not move a component


def full_pass(
    rows: ImageRows, state: EMState, key: Array, variance_floor: float
) -> EMState:
    """One E-step over all images and one M-step of every component.

    Args:
        rows: The images.
        state: Before the pass.
        key: Decides the directions that subspace iteration adds.
        variance_floor: No variance is below this, squared data units.

    Returns:
        The state after the pass.

    Raises:
        InputError: If the likelihood stops being finite or a cluster is singular.
    """
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
    alive = reseed(rows, components, densities)
    return EMState(
        build_mixture(alive, rows), (*state.history, log_likelihood), reseeded
    )


def minibatch_pass(
    rows: ImageRows,
    state: EMState,
    key: Array,
    batch_size: int,
    variance_floor: float,
) -> EMState:
    """Stepwise EM: statistics decay with step size (t + 2)^-.6 per batch.

    Args:
        rows: The images.
        state: Before the pass.
        key: Decides the order of the images.
        batch_size: Images per update.
        variance_floor: No variance is below this, squared data units.

    Returns:
        The state after the pass; its likelihood is that seen on the way.
    """
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
        mixture = build_mixture(components, rows)
        for block in rows.blocks(chosen):
            found = _assign(mixture, block.rows)
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
        build_mixture(components, rows),
        (*state.history, log_likelihood),
        state.reseeded,
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
        found = _assign(mixture, block.rows)
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


def mean_log_likelihood(rows: ImageRows, mixture: MixtureDenoiser) -> float:
    """Return the mean log density of the images in nats, summed in float64."""
    parts = [
        np.asarray(_assign(mixture, block.rows).log_density, np.float64)[: block.count]
        for block in rows.blocks()
    ]
    return float(np.concatenate(parts).mean())


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
    slack = 1e-5 * max(1.0, abs(state.history[-1]))  # float32 densities, any order
    assert log_likelihood >= state.history[-1] - slack, (
        f"the log-likelihood fell from {state.history[-1]} to {log_likelihood}"
    )


def reseed(
    rows: ImageRows,
    components: Iterable[Component | None],
    densities: NDArray[np.float64],
) -> list[Component]:
    """Put dead components, None, at the images that the mixture explains worst.

    Args:
        rows: The images.
        components: K of them; at least one is alive.
        densities: (N,) log density of each image.

    Returns:
        K components; a new one has an average weight and the shape of the heaviest.
    """
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


def build_mixture(components: Sequence[Component], rows: ImageRows) -> MixtureDenoiser:
    """Return components as a mixture, float32, with weights that sum to 1."""
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
