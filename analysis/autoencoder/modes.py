"""Where a reconstruction leads: its fixed points, and which of them are spurious.

A point with r(x) = x is a point of zero score.  From many starts

    x <- x + gain (r(x) - x)

climbs the density that r describes; what it reaches is classified by the eigenvalues of
the symmetrised dr/dx - I, sigma^2 times the Hessian of log p: all negative is a mode.
Far from the data r was never trained, and can have modes where no data are (the
"spurious maxima" of arXiv 1211.4246).  They are recognised by the density of the data
there, a sum of Gaussians of width sigma on all of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.autoencoder.energy import Score
from configs.errors import InputError, is_positive, require
from diffusion.closed_form import EmpiricalDenoiser
from diffusion.denoiser import as_pytree, expand_sigma

__all__ = ["Modes", "reconstruction_of", "spurious_mode_search"]


class Modes(NamedTuple):
    """Fixed points of a reconstruction, those that most starts led to first.

    Attributes:
        x: (M, *event) float64, data units.
        kind: M of ``mode``, ``saddle``, ``minimum`` and ``flat``, where an eigenvalue
            is not told from 0, as along a ridge.
        eigenvalues: (M, D) of the symmetrised dr/dx - I, ascending, without unit.
        starts: (M,) how many starts ended there.
        log_density: (M,) of the data, each a Gaussian of width sigma.
        threshold: What that must reach, the quantile of the data themselves.
        spurious: (M,) whether it does not.
        unsettled: Starts that were still moving, or had left all bounds, at the end.
    """

    x: NDArray[np.float64]
    kind: tuple[str, ...]
    eigenvalues: NDArray[np.float64]
    starts: NDArray[np.int64]
    log_density: NDArray[np.float64]
    threshold: float
    spurious: NDArray[np.bool_]
    unsettled: int


def reconstruction_of(score: Score, sigma: float) -> Callable[[Array], Array]:
    """Return r(x) = x + sigma^2 score(x), a pytree.

    Args:
        score: (B, *event) -> (B, *event).
        sigma: Noise level of the score, data units, above 0.

    Raises:
        InputError: If sigma is not a finite number above 0.
    """
    require(is_positive(sigma), "sigma", sigma, "a finite number above 0")
    return jax.tree_util.Partial(_reconstruct, as_pytree(score), np.float64(sigma))


def spurious_mode_search(
    reconstruction: Callable[[Array], Array],
    starts: ArrayLike,
    steps: int,
    *,
    data: ArrayLike,
    sigma: float,
    gain: float = 1.0,
    tolerance: float = 1e-3,
    radius: float = 0.5,
    flat: float = 1e-3,
    quantile: float = 1e-3,
) -> Modes:
    """Follow a reconstruction from many starts; say where it ends and what is there.

    Args:
        reconstruction: r, (B, *event) -> (B, *event); `reconstruction_of` makes one of
            a score.
        starts: (B, *event), data units, such as uniform on a box around the data.
        steps: Moves of every start, at least 1.
        data: (N, *event), data units, the data that r was trained on.
        sigma: Noise level of r, data units, above 0.
        gain: Share of r(x) - x in a move, above 0; below 1 where moves alternate.
        tolerance: A start has settled where |r(x) - x| is at most this, in units of
            sigma; above 0.
        radius: Settled starts closer than this are one fixed point, in units of sigma;
            at least 0.
        flat: Eigenvalues of dr/dx - I below this in size count as 0; at least 0.
        quantile: A fixed point is spurious below this quantile of the data's own
            density, in [0, 1].

    Returns:
        See `Modes`; without any fixed point all of its arrays have length 0.

    Raises:
        InputError: If an argument is out of range or r changes the shape.

    Source: Alain & Bengio, arXiv 1211.4246, on spurious maxima; the search is ours.
    """
    x = jnp.asarray(starts)
    expand_sigma(sigma, x)
    require(steps == int(steps) and steps >= 1, "steps", steps, "an integer >= 1")
    for name, value in (("gain", gain), ("tolerance", tolerance)):
        require(is_positive(value), name, value, "a finite number above 0")
    require(radius >= 0, "radius", radius, "at least 0")
    require(flat >= 0, "flat", flat, "at least 0")
    require(0 <= quantile <= 1, "quantile", quantile, "in [0, 1]")
    r: Any = as_pytree(reconstruction)
    shape = jax.eval_shape(r, x).shape
    if shape != x.shape:
        raise InputError(
            f"the reconstruction of starts {x.shape} has shape {shape}; give the same"
        )
    dimension = int(np.prod(x.shape[1:]))
    ends, pull = _follow(r, x, jnp.asarray(gain, x.dtype), int(steps))
    settled = np.asarray(pull) <= tolerance * sigma
    # The most settled of a cluster stands for it.
    order = np.argsort(np.asarray(pull)[settled], kind="stable")
    found = np.asarray(ends)[settled][order]
    centres, counts = _cluster(found.reshape(len(found), dimension), radius * sigma)
    points = jnp.asarray(found[centres])
    eigenvalues = _eigenvalues(r, points)
    density = EmpiricalDenoiser(jnp.asarray(data, x.dtype))
    # One call for both, which is also never empty.
    both = jnp.concatenate([points, density.points])
    answers = np.asarray(_log_density(density, both, sigma), np.float64)
    log_density, of_data = np.split(answers, [len(points)])
    threshold = float(np.quantile(of_data, quantile, method="lower"))
    return Modes(
        x=np.asarray(points, np.float64),
        kind=tuple(_kind(values, flat) for values in eigenvalues),
        eigenvalues=eigenvalues,
        starts=counts,
        log_density=log_density,
        threshold=threshold,
        spurious=log_density < threshold,
        unsettled=int(np.sum(~settled)),
    )


@functools.partial(jax.jit, static_argnames="steps")
def _follow(
    reconstruction: Callable[[Array], Array], x: Array, gain: Array, steps: int
) -> tuple[Array, Array]:
    """Return where starts end and how far r would move them from there, (B,)."""

    def move(_: Array, x: Array) -> Array:
        return (x + gain * (reconstruction(x) - x)).astype(x.dtype)

    x = jax.lax.fori_loop(0, steps, move, x)
    left = jnp.sum((reconstruction(x) - x) ** 2, axis=tuple(range(1, x.ndim)))
    return x, jnp.sqrt(left)


def _cluster(
    points: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the points that stand for clusters and their sizes, largest first.

    A point joins the first that stands no further away than the radius.
    """
    centres: list[int] = []
    counts: list[int] = []
    for i, point in enumerate(points):
        near = np.linalg.norm(points[centres] - point, axis=1) <= radius
        if near.any():
            counts[int(np.argmax(near))] += 1
        else:
            centres.append(i)
            counts.append(1)
    order = np.argsort(-np.array(counts, np.int64), kind="stable")
    return np.array(centres, np.int64)[order], np.array(counts, np.int64)[order]


def _eigenvalues(
    reconstruction: Callable[[Array], Array], points: Array
) -> NDArray[np.float64]:
    """Return the eigenvalues of the symmetrised dr/dx - I at each point, (M, D)."""
    dimension = int(np.prod(points.shape[1:]))
    if not len(points):
        return np.zeros((0, dimension))
    # Points one after another: D x D numbers each.
    jacobians = np.asarray(_jacobians(reconstruction, points), np.float64)
    symmetric = (jacobians + jacobians.transpose(0, 2, 1)) / 2
    return np.linalg.eigvalsh(symmetric - np.eye(dimension)).astype(np.float64)


@jax.jit
def _log_density(density: EmpiricalDenoiser, x: Array, sigma: ArrayLike) -> Array:
    return density.log_density(x, sigma)


@jax.jit
def _jacobians(reconstruction: Callable[[Array], Array], points: Array) -> Array:
    def at(point: Array) -> Array:
        def flat(row: Array) -> Array:
            return reconstruction(row.reshape(1, *point.shape)).ravel()

        return jax.jacfwd(flat)(point.ravel())

    return jax.lax.map(at, points)


def _kind(eigenvalues: NDArray[np.float64], flat: float) -> str:
    if np.any(np.abs(eigenvalues) <= flat):
        return "flat"
    if np.all(eigenvalues < 0):
        return "mode"
    return "minimum" if np.all(eigenvalues > 0) else "saddle"


def _reconstruct(score: Score, sigma: Array, x: Array) -> Array:
    return x + jnp.asarray(sigma, x.dtype) ** 2 * score(x)
