"""The trace of a network's tangent kernel, estimated with random signs on its outputs.

For v of random signs (Hutchinson 1990)

    E (J_i^T v).(J_j^T v) = tr Theta_ij,        Theta_ij = J_i J_j^T, (d, d),

so that one gradient for each input stands for d of them.  See
`analysis.kernels.empirical_ntk` for what a network is.

Where the gradients themselves take long, each is a program of its own: the weights'
gradient of a convolution within a compiled loop takes XLA's processors fifteen times as
long as outside (issue 12868 of JAX).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.empirical_ntk import Apply, contract, flat_output
from analysis.kernels.gram import check_points, fill_blocks
from configs.errors import require, require_choice

__all__ = ["EstimatedNTK", "ProbeMethod", "estimate_traced_ntk"]

ProbeMethod = Literal["gradients", "vjp_jvp"]

_HIGHEST = jax.lax.Precision.HIGHEST
_LARGE = 100_000  # parameters


class EstimatedNTK(NamedTuple):
    """A Monte Carlo estimate of the traced kernel.

    Attributes:
        mean: (n, q) estimates of tr Theta_ij, unbiased.
        standard_error: (n, q) standard errors of the mean over the probes.
    """

    mean: Array
    standard_error: Array


def estimate_traced_ntk(
    apply: Apply,
    params: Any,
    A: ArrayLike,
    B: ArrayLike | None,
    key: Array,
    *,
    num_probes: int = 16,
    method: ProbeMethod = "gradients",
    block: int = 16,
) -> EstimatedNTK:
    """Return tr Theta_ij estimated with random signs on the outputs.

    All pairs share the probes, so that the estimate is a matrix without negative
    eigenvalues, and errors of entries go together.  Of 100,000 parameters and more each
    gradient is a call of one compiled program; of fewer, and within another compiled
    function, the whole is one program.

    Args:
        apply: See `empirical_ntk`.
        params: Parameters.
        A: (n, *event) inputs.
        B: (q, *event) inputs, or None for `A` itself.
        key: A `jax.random.key`.
        num_probes: At least 2.
        method: ``"gradients"`` holds the gradients J^T v of two blocks, block x P
            numbers each; ``"vjp_jvp"`` holds one gradient, and pushes it forward
            through all inputs of a block: n q passes instead of products of vectors.
        block: Inputs of either set at once.  Gradients are computed again for each
            block of the other set: the larger it is, the fewer.

    Returns:
        Estimates and standard errors, (n, q) each.

    Raises:
        InputError: If a shape does not fit, the method is unknown, or there are fewer
            than two probes.
    """
    require_choice("method", method, get_args(ProbeMethod))
    require(num_probes >= 2, "num_probes", num_probes, "a whole number, >= 2")
    a, b = check_points(A, B, block)
    output = jax.eval_shape(apply, params, a[:1])
    probes = _draw_probes(key, (num_probes, math.prod(output.shape[1:])), output.dtype)
    params = jax.tree.map(jnp.asarray, params)
    found = _Probed(params, probes, apply=apply, method=method)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, a, b)))
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if traced or size < _LARGE:
        values = fill_blocks(found, a, b, block)
    else:
        values = jnp.asarray(_one_by_one(found, a, b, block))
    spread = jnp.std(values, axis=2, ddof=1)
    return EstimatedNTK(jnp.mean(values, axis=2), spread / math.sqrt(num_probes))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Probed:
    """(J_i^T v).(J_j^T v) for each probe v, (n, q, probes)."""

    params: Any
    probes: Array
    apply: Apply = field(metadata={"static": True})
    method: ProbeMethod = field(metadata={"static": True})

    def __call__(self, a: Array, b: Array) -> Array:
        by_gradients = self.method == "gradients"
        one = self._by_gradients(a, b) if by_gradients else self._by_pushing(a, b)
        return jnp.moveaxis(jax.lax.map(one, self.probes), 0, 2)

    def _by_gradients(self, a: Array, b: Array) -> Callable[[Array], Array]:
        def one(probe: Array) -> Array:
            first = self._gradients(probe, a)
            second = first if b is a else self._gradients(probe, b)
            return contract("np,qp->nq", first, second)

        return one

    def _by_pushing(self, a: Array, b: Array) -> Callable[[Array], Array]:
        _, push = jax.linearize(lambda p: self.apply(p, a), self.params)

        def one(probe: Array) -> Array:
            def column(single: Array) -> Array:
                pushed = push(self.gradient(probe, single)).reshape(len(a), -1)
                return jnp.matmul(pushed, probe, precision=_HIGHEST)

            return jax.lax.map(column, b).T

        return one

    def _gradients(self, probe: Array, x: Array) -> list[Array]:
        tree = jax.lax.map(lambda single: self.gradient(probe, single), x)
        return [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(tree)]

    def gradient(self, probe: Array, single: Array) -> Any:
        """Return J^T v of one input, a tree like the parameters.

        Args:
            probe: (d,) v.
            single: (*event).
        """
        return jax.grad(lambda p: jnp.vdot(probe, flat_output(self.apply, p, single)))(
            self.params
        )


def _one_by_one(found: _Probed, a: Array, b: Array | None, block: int) -> NDArray[Any]:
    """Return what `_Probed` gives for all inputs, by a call for each gradient."""
    others = a if b is None else b
    size = min(block, max(len(a), len(others)))
    parts = _kept_gradients if found.method == "gradients" else _pushed_gradients
    shape = (len(a), len(others), len(found.probes))
    values = np.zeros(shape, found.probes.dtype)
    for k, probe in enumerate(found.probes):
        for rows, columns, part in parts(found, probe, a, b, size):
            values[rows, columns, k] = part
            if b is None:
                values[columns, rows, k] = part.T
    return values


_Part = tuple[slice, slice, NDArray[Any]]


def _kept_gradients(
    found: _Probed, probe: Array, a: Array, b: Array | None, size: int
) -> Iterator[_Part]:
    """Yield blocks of the matrix; the gradients of two blocks of inputs are held."""
    others = a if b is None else b
    first = second = None
    for rows in _slices(len(a), size):
        first = _fill(found, probe, first, a[rows], size)
        for columns in _slices(len(others), size, rows.start if b is None else 0):
            if b is None and columns == rows:
                part = np.asarray(_products(first, first))
                part = (part + part.T) / 2
            else:
                second = _fill(found, probe, second, others[columns], size)
                part = np.asarray(_products(first, second))
            yield rows, columns, part[: len(a[rows]), : len(others[columns])]


def _pushed_gradients(
    found: _Probed, probe: Array, a: Array, b: Array | None, size: int
) -> Iterator[_Part]:
    """Yield blocks of the matrix; one gradient is held."""
    others = a if b is None else b
    for rows in _slices(len(a), size):
        x = a[rows]
        spare = [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, spare, mode="edge")
        for columns in _slices(len(others), size, rows.start if b is None else 0):
            pushed = [_column(found, probe, x, single) for single in others[columns]]
            part = np.stack([np.asarray(one) for one in pushed], axis=1)[: len(a[rows])]
            if b is None and columns == rows:
                part = (part + part.T) / 2
            yield rows, columns, part


def _slices(count: int, size: int, first: int = 0) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(first, count, size)]


def _fill(found: _Probed, probe: Array, rows: Any | None, x: Array, size: int) -> Any:
    """Return a tree of gradients, (size, ...) each, in the memory of a former one."""
    if rows is None:
        rows = jax.tree.map(
            lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), found.params
        )
    for index, single in enumerate(x):
        rows = _with_gradient(rows, found, probe, single, index)
    return rows


@partial(jax.jit, donate_argnums=0)
def _with_gradient(
    rows: Any, found: _Probed, probe: Array, single: Array, index: Array
) -> Any:
    gradient = found.gradient(probe, single)
    return jax.tree.map(lambda row, leaf: row.at[index].set(leaf), rows, gradient)


@jax.jit
def _products(first: Any, second: Any) -> Array:
    flat = (
        [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)]
        for tree in (first, second)
    )
    return contract("np,qp->nq", *flat)


@jax.jit
def _column(found: _Probed, probe: Array, x: Array, single: Array) -> Array:
    """Return v^T J_i J_j^T v for all inputs i of a block and one j."""
    tangent = found.gradient(probe, single)
    _, pushed = jax.jvp(lambda p: found.apply(p, x), (found.params,), (tangent,))
    return jnp.matmul(pushed.reshape(len(x), -1), probe, precision=_HIGHEST)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _draw_probes(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """Return random signs, (probes, d); probe i depends on the key and on i alone."""

    def draw(index: Array) -> Array:
        probe_key = jax.random.fold_in(key, index)
        return jax.random.rademacher(probe_key, shape[1:], dtype)

    return jax.vmap(draw)(jnp.arange(shape[0]))
