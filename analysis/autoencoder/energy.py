"""Differences of energy from a score, by quadrature along the segment between points.

With E = -log p and the score s = grad log p,

    E(x') - E(x) = -int_0^1 s(x + u (x' - x)) . (x' - x) du
                 ~ -sum_k w_k s(x + u_k (x' - x)) . (x' - x),

which for a reconstruction r is the integral of -(r - x) / sigma^2 (arXiv 1211.4246).
A rule whose nodes are symmetric about 1/2 changes its sign when the ends change places;
a field that is not a gradient gives a loop more than 0.  Both defects break detailed
balance, and both are measured here.

Rules, by name: ``left``; ``trapezoid`` and ``trapezoid-K`` (K points); ``mean-K``, the
unweighted mean over K points from end to end, which is not the trapezoid rule: its end
weights are wrong by a factor 2, an error of order 1/K; ``simpson`` (exact to degree 3);
``lobatto4`` (5); ``glK``, Gauss-Legendre with K nodes (2 K - 1).
"""

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, choice_error
from diffusion import denoiser as denoisers
from diffusion.denoiser import Denoiser, as_pytree, expand_sigma

__all__ = [
    "LineIntegral",
    "Quadrature",
    "Score",
    "antisymmetry_defect",
    "energy_difference",
    "line_integral",
    "loop_defect",
    "quadrature",
    "score_at",
]

Score = Callable[[Array], Array]
"""(B, *event) -> (B, *event), the gradient of log p at one noise level."""

_MAX_NODES = 64
_NAMES = ("left", "trapezoid", "simpson", "lobatto4")
_EXAMPLES = (
    *_NAMES,
    "mean-5",
    "mean-20",
    "trapezoid-5",
    *(f"gl{k}" for k in range(1, 9)),
)


class Quadrature(NamedTuple):
    """A rule on [0, 1].

    Attributes:
        nodes: (K,) float64, increasing, where the integrand is evaluated.
        weights: (K,) float64, which sum to 1.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["score"], meta_fields=["rule"]
)
@dataclass(frozen=True)
class LineIntegral:
    """The energy difference of a score as a callable for samplers; a pytree.

    Made by `line_integral`, which checks and wraps.

    Args:
        score: A `Score` that is a pytree.
        rule: Name of the quadrature.
    """

    score: Score
    rule: str

    def __call__(self, x: Array, x_new: Array) -> Array:
        """Return E(x_new) - E(x), (B,), of points (B, *event)."""
        return energy_difference(self.score, x, x_new, rule=self.rule)

    @property
    def uses_ends(self) -> bool:
        """Whether both ends of the segment are nodes of the rule."""
        nodes = quadrature(self.rule).nodes
        return bool(nodes[0] == 0 and nodes[-1] == 1)

    def between(self, x: Array, x_new: Array, score: Array, score_new: Array) -> Array:
        """Return E(x_new) - E(x), (B,), given the score at both ends.

        Args:
            x: (B, *event), data units.
            x_new: (B, *event), data units.
            score: (B, *event) at `x`.
            score_new: (B, *event) at `x_new`.
        """
        x, x_new = _points(x, x_new)
        nodes, weights = (jnp.asarray(v, x.dtype) for v in quadrature(self.rule))
        ends = (weights[0] * score + weights[-1] * score_new) * (x_new - x)
        inner = _integrate(self.score, x, x_new, nodes[1:-1], weights[1:-1])
        return inner - jnp.sum(ends, axis=tuple(range(1, x.ndim)))


def energy_difference(
    score: Score, x: ArrayLike, x_new: ArrayLike, *, rule: str = "gl3"
) -> Array:
    """Return E(x_new) - E(x) with E = -log p, integrated along the segment.

    Args:
        score: (B, *event) -> (B, *event), the gradient of log p: a plain function, or
            a pytree (`score_at` makes one of a denoiser).
        x: (B, *event), data units.
        x_new: (B, *event), data units.
        rule: Name of the quadrature; see the module.

    Returns:
        (B,) nats, in the dtype of the points, at least float32.

    Raises:
        InputError: If the rule does not exist or a shape does not fit.

    Source: Alain & Bengio, arXiv 1211.4246; nodes and weights from NumPy.
    """
    nodes, weights = quadrature(rule)
    x, x_new = _points(x, x_new)
    score = _checked(score, x)
    return _integrate(
        score, x, x_new, jnp.asarray(nodes, x.dtype), jnp.asarray(weights, x.dtype)
    )


def line_integral(score: Score, *, rule: str = "gl3") -> LineIntegral:
    """Return the energy difference of a score as a callable (x, x_new) -> (B,).

    As a pytree it takes a denoiser's arrays along into compiled functions:
    ``mh_sample(key, line_integral(score_at(denoiser, .01)), x0, .01, 1000)``.

    Args:
        score: A `Score`.
        rule: Name of the quadrature; see the module.

    Raises:
        InputError: If the rule does not exist.
    """
    quadrature(rule)
    wrapped: Any = as_pytree(score)
    return LineIntegral(wrapped, rule)


def score_at(denoiser: Denoiser, sigma: ArrayLike) -> Score:
    """Return the score of a denoiser at one noise level, (D(x, sigma) - x) / sigma^2.

    Args:
        denoiser: Any `Denoiser`.
        sigma: () or (B,), data units, above 0.

    Returns:
        A `Score` that is a pytree.

    Raises:
        InputError: If sigma is not a finite number above 0.
    """
    level = np.asarray(sigma, np.float64)
    expand_sigma(level, jnp.zeros((max(level.size, 1), 1)))
    return jax.tree_util.Partial(_score_at, as_pytree(denoiser), level)


def quadrature(rule: str) -> Quadrature:
    """Return the nodes and weights on [0, 1] of a rule.

    Args:
        rule: Its name; see the module.

    Raises:
        InputError: If there is none of that name, or not with so many nodes.
    """
    found = re.fullmatch(r"(mean-|trapezoid-|gl)(\d{1,4})", str(rule))
    if found is None and rule not in _NAMES:
        raise choice_error("rule", rule, _EXAMPLES)
    if found is None:
        return _NAMED[rule]()
    family, count = found[1], int(found[2])
    least = 1 if family == "gl" else 2
    if not least <= count <= _MAX_NODES:
        raise InputError(
            f"rule '{rule}' has {count} nodes; {family}K takes {least} to {_MAX_NODES},"
            f" such as '{family}{5}'"
        )
    if family == "gl":
        nodes, weights = np.polynomial.legendre.leggauss(count)
        return Quadrature((nodes + 1) / 2, weights / 2)
    return _mean(count) if family == "mean-" else _trapezoid(count)


def antisymmetry_defect(
    score: Score, x: ArrayLike, x_new: ArrayLike, *, rule: str = "gl3"
) -> Array:
    """Return |dE(x, x_new) + dE(x_new, x)|: 0 for symmetric rules, up to rounding.

    Args:
        score: A `Score`.
        x: (B, *event), data units.
        x_new: (B, *event), data units.
        rule: Name of the quadrature; see the module.

    Returns:
        (B,) nats.

    Raises:
        InputError: As `energy_difference`.
    """
    there = energy_difference(score, x, x_new, rule=rule)
    return jnp.abs(there + energy_difference(score, x_new, x, rule=rule))


def loop_defect(
    key: Array, score: Score, x: ArrayLike, size: float, *, rule: str = "gl8"
) -> Array:
    """Return the size of the energy gathered on the way round a random triangle.

    It is 0 for a gradient, up to the error of the rule; what is left when the rule has
    converged is the curl of the field.

    Args:
        key: A `jax.random.key` for the corners.
        score: A `Score`.
        x: (B, *event), one corner of each triangle, data units.
        size: The other two are at x + size * n with n standard normal; above 0.
        rule: Name of the quadrature; see the module.

    Returns:
        (B,) nats, without sign.

    Raises:
        InputError: As `energy_difference`, or if the size is not above 0.
    """
    x, _ = _points(x, x)
    scale = expand_sigma(size, x, name="size")
    second, third = x + scale * jax.random.normal(key, (2, *x.shape), x.dtype)
    corners = (x, second, third, x)
    sides = [
        energy_difference(score, a, b, rule=rule)
        for a, b in itertools.pairwise(corners)
    ]
    return jnp.abs(sum(sides[1:], sides[0]))


@jax.jit
def _integrate(
    score: Score, x: Array, x_new: Array, nodes: Array, weights: Array
) -> Array:
    """Return -sum_k w_k s(x + u_k (x_new - x)) . (x_new - x), (B,)."""
    path = x_new - x

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        u, weight = node
        slope = score(x + u * path) * path
        return total - weight * jnp.sum(slope, axis=tuple(range(1, x.ndim))), None

    return jax.lax.scan(add, jnp.zeros(len(x), x.dtype), (nodes, weights))[0]


def _score_at(denoiser: Denoiser, sigma: Array, x: Array) -> Array:
    return denoisers.score(denoiser, x, jnp.asarray(sigma, x.dtype))


def _points(x: ArrayLike, x_new: ArrayLike) -> tuple[Array, Array]:
    """Return both ends in one dtype, at least float32, after checking the shapes."""
    a, b = jnp.asarray(x), jnp.asarray(x_new)
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    if a.ndim < 2 or a.shape != b.shape:
        raise InputError(
            f"x has shape {a.shape} and x_new {b.shape}; give two batches of one shape,"
            " (B, *event), such as x[None]"
        )
    return a.astype(dtype), b.astype(dtype)


def _checked(score: Score, x: Array) -> Score:
    """Return the score as a pytree, after checking the shape of what it returns."""
    wrapped: Any = as_pytree(score)
    shape = jax.eval_shape(wrapped, x).shape
    if shape != x.shape:
        raise InputError(
            f"the score of points {x.shape} has shape {shape}; it must be the same"
        )
    return wrapped


def _mean(count: int) -> Quadrature:
    return Quadrature(np.linspace(0, 1, count), np.full(count, 1 / count))


def _trapezoid(count: int) -> Quadrature:
    weights = np.full(count, 1 / (count - 1))
    weights[[0, -1]] /= 2
    return Quadrature(np.linspace(0, 1, count), weights)


def _simpson() -> Quadrature:
    return Quadrature(np.array([0, 0.5, 1]), np.array([1, 4, 1]) / 6)


def _lobatto4() -> Quadrature:
    inner = np.sqrt(1 / 5)
    nodes = (np.array([-1, -inner, inner, 1]) + 1) / 2
    return Quadrature(nodes, np.array([1, 5, 5, 1]) / 12)


_NAMED = {
    "left": lambda: Quadrature(np.zeros(1), np.ones(1)),
    "trapezoid": lambda: _trapezoid(2),
    "simpson": _simpson,
    "lobatto4": _lobatto4,
}
