"""One Gaussian from weighted rows: the M-step of EM for low-rank covariances.

The covariance C = Z^T Z, with rows of Z sqrt(w_i / W) (x_i - mean), is never formed
where D is large.  Its leading eigenpairs come from subspace iteration: Q <- orth(C Q),
then Rayleigh-Ritz on Q.  Started from the last basis, one iteration is enough for EM:
no Ritz value falls, because the Rayleigh quotient of C q is at least that of q, and so
the likelihood does not fall either.  The residual variance is what the trace leaves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.closed_form.image_rows import ImageRows

__all__ = ["Component", "Members", "fit_component", "merge_rows"]

_HIGHEST = jax.lax.Precision.HIGHEST
_EXACT_DIMENSION = 512
_OVERSAMPLING = 8


class Component(NamedTuple):
    """One Gaussian of a mixture, on the host.

    Attributes:
        weight: Sum of the weights of its rows.
        mean: (D,) float64.
        basis: (D, R) orthonormal columns.
        variances: (R,), decreasing.
        residual_variance: Variance of the other D - R directions.
    """

    weight: float
    mean: NDArray[np.float64]
    basis: NDArray[np.float64]
    variances: NDArray[np.float64]
    residual_variance: float


class Members(NamedTuple):
    """Which rows belong to a component, and how much.

    Attributes:
        indices: (n,) rows of the data set.
        weights: (n,) float32, > 0.
    """

    indices: NDArray[np.integer]
    weights: NDArray[np.float32]


def fit_component(
    rows: ImageRows,
    members: Members,
    rank: int,
    *,
    key: Array,
    previous: NDArray[np.float64] | None = None,
    num_iterations: int = 1,
    variance_floor: float = 1e-6,
) -> Component:
    """Fit mean, leading principal directions and residual variance.

    Args:
        rows: The data set.
        members: Its rows with their weights; at least one.
        rank: R, in [0, D].
        key: Decides the directions that subspace iteration starts from, beside
            `previous`.
        previous: Basis to start from, (D, R); None starts from random directions.
        num_iterations: Subspace iterations; exact where D is small.
        variance_floor: No variance is below this, squared data units.

    Returns:
        The component.

    Raises:
        InputError: If a variance is 0 and the floor is 0 too.
    """
    weight = float(members.weights.sum(dtype=np.float64))
    mean = _sum(rows, members, lambda x, w, _: _weighted_rows(x, w)) / weight
    total = _sum(rows, members, _weighted_squares, mean) / weight
    if rank == 0:
        basis, variances = np.zeros((len(mean), 0)), np.zeros(0)
    elif rows.dimension <= _EXACT_DIMENSION or 2 * rank > rows.dimension:
        values, vectors = np.linalg.eigh(_sum(rows, members, _scatter, mean) / weight)
        basis, variances = vectors[:, ::-1][:, :rank], values[::-1][:rank]
    else:
        start = _start(rows.dimension, rank, previous, key)
        basis, variances = _subspace(rows, members, mean, start, num_iterations)
        basis, variances = basis[:, :rank], variances[:rank] / weight
    rest = (float(total) - variances.sum()) / max(1, rows.dimension - rank)
    return _floored(
        Component(weight, mean, basis, variances, float(rest)), variance_floor
    )


def merge_rows(
    old: Component, rows: Array, weights: Array, variance_floor: float
) -> Component:
    """Add weighted rows to a component and keep its rank: one step of minibatch EM.

    The covariances merge as in `merge` of two sets of moments.  What the old component
    holds off its basis stays isotropic, so the leading directions follow from a thin
    matrix with R + n + 1 columns.

    Args:
        old: The component, with the weight that it keeps.
        rows: (n, D).
        weights: (n,), >= 0.
        variance_floor: No variance is below this, squared data units.

    Returns:
        A component of the summed weight.
    """
    x, w = np.asarray(rows, np.float64), np.asarray(weights, np.float64)
    added = w.sum()
    weight = old.weight + added
    middle = w @ x / added
    shift = middle - old.mean
    mean = old.mean + shift * (added / weight)
    share = old.weight / weight
    excess = np.maximum(old.variances - old.residual_variance, 0)
    thin = np.concatenate(
        [
            old.basis * np.sqrt(share * excess),
            ((x - middle) * np.sqrt(w / weight)[:, None]).T,
            shift[:, None] * np.sqrt(share * added / weight),
        ],
        axis=1,
    )
    rank, dimension = old.basis.shape[1], len(mean)
    isotropic = share * old.residual_variance
    left, singular, _ = np.linalg.svd(thin, full_matrices=False)
    singular = np.pad(singular**2, (0, max(0, rank - len(singular))))
    if left.shape[1] < rank:
        left = np.concatenate([left, old.basis[:, left.shape[1] :]], axis=1)
    rest = singular[rank:].sum() / max(1, dimension - rank) + isotropic
    component = Component(
        weight, mean, left[:, :rank], singular[:rank] + isotropic, float(rest)
    )
    return _floored(component, variance_floor)


def _floored(component: Component, floor: float) -> Component:
    variances = np.maximum(component.variances, floor)
    rest = max(component.residual_variance, floor)
    dimension, rank = component.basis.shape
    if (variances <= 0).any() or (rest <= 0 and rank < dimension):
        raise InputError(
            f"a cluster of weight {component.weight:.4g} is singular: it does not "
            "vary in some direction; set variance_floor above 0, lower the rank, or "
            "ask for fewer components"
        )
    return component._replace(variances=variances, residual_variance=rest)


def _start(
    dimension: int, rank: int, previous: NDArray[np.float64] | None, key: Array
) -> NDArray[np.float64]:
    """Return orthonormal columns: the previous basis and some random directions."""
    known = 0 if previous is None else previous.shape[1]
    width = min(dimension, rank + _OVERSAMPLING)
    random = np.asarray(jax.random.normal(key, (dimension, width - known)), np.float64)
    columns = random if previous is None else np.concatenate([previous, random], axis=1)
    return np.linalg.qr(columns)[0]


def _subspace(
    rows: ImageRows,
    members: Members,
    mean: NDArray[np.float64],
    start: NDArray[np.float64],
    num_iterations: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Ritz vectors (D, q) and Ritz values (q,) of the scatter, decreasing."""
    basis = start
    for _ in range(num_iterations):
        basis = np.linalg.qr(_sum(rows, members, _scatter_times, mean, basis))[0]
    values, vectors = np.linalg.eigh(_sum(rows, members, _projected, mean, basis))
    return basis @ vectors[:, ::-1], values[::-1]


def _sum(rows: ImageRows, members: Members, term, *arguments) -> NDArray[np.float64]:  # noqa: ANN001, ANN002
    """Add up ``term(rows, weights, *arguments)`` over blocks, in float64."""
    total = 0.0
    given = [jnp.asarray(argument, jnp.float32) for argument in arguments] or [None]
    start = 0
    for block in rows.blocks(members.indices):
        weights = np.zeros(len(block.rows), np.float32)
        weights[: block.count] = members.weights[start : start + block.count]
        start += block.count
        total = total + np.asarray(term(block.rows, weights, *given), np.float64)
    return np.asarray(total)


@jax.jit
def _weighted_rows(rows: Array, weights: Array) -> Array:
    return jnp.matmul(weights, rows, precision=_HIGHEST)


@jax.jit
def _weighted_squares(rows: Array, weights: Array, mean: Array) -> Array:
    return jnp.sum(weights * jnp.sum((rows - mean) ** 2, axis=1))


@jax.jit
def _scatter(rows: Array, weights: Array, mean: Array) -> Array:
    z = jnp.sqrt(weights)[:, None] * (rows - mean)
    return jnp.matmul(z.T, z, precision=_HIGHEST)


@jax.jit
def _scatter_times(rows: Array, weights: Array, mean: Array, basis: Array) -> Array:
    z = jnp.sqrt(weights)[:, None] * (rows - mean)
    inside = jnp.matmul(z, basis, precision=_HIGHEST)
    return jnp.matmul(z.T, inside, precision=_HIGHEST)


@jax.jit
def _projected(rows: Array, weights: Array, mean: Array, basis: Array) -> Array:
    z = jnp.sqrt(weights)[:, None] * (rows - mean)
    inside = jnp.matmul(z, basis, precision=_HIGHEST)
    return jnp.matmul(inside.T, inside, precision=_HIGHEST)
