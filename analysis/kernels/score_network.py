"""Gradient descent on a wide network, its linearised twin, and what they record.

On |f - y|^2 / (2 n) over all n points at once (arXiv 2401.15604), with r = f - y,

    W <- W - (eta / n) J^T r,   J^T r = ((r a^T) A)^T Z / sqrt(m),

A = 1{Z W^T > 0} (`analysis.kernels.two_layer_network`).  The linearised twin is the
same step with A kept as it was at the start.  As the width m grows the network follows
gradient descent on the kernel u.v (pi - theta) / (2 pi), which is stable for eta below
2 / mu_1, mu_1 the largest eigenvalue of the Gram matrix over n.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.two_layer_network import (
    Movement,
    Params,
    apply,
    flipped_fraction,
    init,
    largest_step,
    masked_outputs,
    masked_pullback,
    movement,
)
from configs.errors import InputError, is_positive, require

__all__ = [
    "Diagnostics",
    "GDRun",
    "Movement",
    "Params",
    "apply",
    "check_recording",
    "gd_run",
    "init",
    "largest_step",
    "linearized_run",
    "movement",
]


class Diagnostics(NamedTuple):
    """How far a network is from its start, at each of k recording times.

    Attributes:
        loss: (k,) |f - y|^2 / (2 n) on the training points, squared data units.
        flipped: (k,) fraction of the n m activations 1{w.z > 0} that have changed.
        max_dw: (k,) largest |w_r - w_r(0)| over neurons.
        norm_dw: (k,) Frobenius norm of W - W(0).
    """

    loss: Array
    flipped: Array
    max_dw: Array
    norm_dw: Array


class GDRun(NamedTuple):
    """Gradient descent, recorded.

    Attributes:
        params: The network after the last recorded step.
        outputs: (k, q, d) outputs at the queries, at each recording time.
        diagnostics: What was measured on the training points.
    """

    params: Params
    outputs: Array
    diagnostics: Diagnostics


class _Problem(NamedTuple):
    """Training inputs (n, p), labels (n, d), and where outputs are wanted (q, p)."""

    z: Array
    y: Array
    queries: Array


def gd_run(
    params: Params,
    z: ArrayLike,
    y: ArrayLike,
    eta: float,
    record_at: Sequence[int] | NDArray[np.integer],
    *,
    queries: ArrayLike | None = None,
    allow_unstable: bool = False,
) -> GDRun:
    """Train by gradient descent on all points at once, recording on the way.

    Args:
        params: The start.
        z: (n, p) training inputs.
        y: (n, d) labels.
        eta: Step size, below 2 / mu_1.
        record_at: (k,) numbers of steps, increasing, at least 0; the last is the
            length of the run.
        queries: (q, p) inputs to record outputs at; None is the training inputs.
        allow_unstable: Whether eta may be at or above 2 / mu_1; a finite network then
            leaves the neighbourhood of its start until its kernel is smaller.

    Returns:
        The trained network, outputs and diagnostics at the recording times.

    Raises:
        InputError: If shapes do not fit, a value is not finite, recording times are not
            increasing, or (outside of jit) eta is out of range.
    """
    return _recorded(
        params, z, y, eta, record_at, queries, allow_unstable, is_linear=False
    )


def linearized_run(
    params: Params,
    z: ArrayLike,
    y: ArrayLike,
    eta: float,
    record_at: Sequence[int] | NDArray[np.integer],
    *,
    queries: ArrayLike | None = None,
) -> GDRun:
    """Train the network's linearisation at the start; see `gd_run`.

    f(z; W(0)) + J(z) (W - W(0)) equals m^(-1/2) sum_r a_r 1{w_r(0).z > 0} w_r.z, so
    gradient descent on it is descent on the finite network's own kernel at the start.

    Args:
        params: The start, and the point of linearisation.
        z: (n, p) training inputs.
        y: (n, d) labels.
        eta: Step size, below 2 / mu_1.
        record_at: (k,) numbers of steps, increasing, at least 0.
        queries: (q, p) inputs to record outputs at; None is the training inputs.

    Returns:
        As `gd_run`; `flipped` counts signs of w.z that the linearisation ignores.

    Raises:
        InputError: As `gd_run`.
    """
    return _recorded(params, z, y, eta, record_at, queries, False, is_linear=True)


def check_recording(record_at: Sequence[int] | NDArray[np.integer]) -> NDArray:
    """Return recording times as (k,) int64.

    Raises:
        InputError: If they are not whole, increasing numbers >= 0.
    """
    times = np.asarray(record_at)
    allowed = (
        times.ndim == 1 and times.size > 0 and np.issubdtype(times.dtype, np.integer)
    )
    if not allowed or times[0] < 0 or not (np.diff(times) > 0).all():
        raise InputError(
            f"recording times are {record_at}; give whole, increasing numbers of steps "
            ">= 0, such as [10, 100, 1000]"
        )
    return times.astype(np.int64)


def _recorded(
    params: Params,
    z: ArrayLike,
    y: ArrayLike,
    eta: float,
    record_at: Sequence[int] | NDArray[np.integer],
    queries: ArrayLike | None,
    allow_unstable: bool,
    *,
    is_linear: bool,
) -> GDRun:
    times = check_recording(record_at)
    problem = _check_problem(params, z, y, queries)
    if not isinstance(eta, Tracer):
        _check_step(params, problem.z, eta, allow_unstable)
    lengths = jnp.asarray(np.diff(times, prepend=0), jnp.int32)
    return _descend(params, problem, jnp.asarray(eta), lengths, is_linear=is_linear)


def _check_problem(
    params: Params, z: ArrayLike, y: ArrayLike, queries: ArrayLike | None
) -> _Problem:
    dtype = params.W.dtype
    z, y = jnp.asarray(z, dtype), jnp.asarray(y, dtype)
    queries = z if queries is None else jnp.asarray(queries, dtype)
    p, d = params.W.shape[1], params.a.shape[1]
    shapes = (z.shape[1:], y.shape, queries.shape[1:])
    if not z.size or shapes != ((p,), (len(z), d), (p,)):
        raise InputError(
            f"z has shape {z.shape}, y {y.shape} and queries {queries.shape}; this "
            f"network needs (n, {p}), (n, {d}) and (q, {p}) with n >= 1"
        )
    for name, values in (("z", z), ("y", y), ("queries", queries)):
        if not isinstance(values, Tracer) and not bool(jnp.isfinite(values).all()):
            raise InputError(f"{name} holds NaN or infinity; remove or repair its rows")
    return _Problem(z, y, queries)


def _check_step(params: Params, z: Array, eta: float, allow_unstable: bool) -> None:
    require(is_positive(float(eta)), "eta", eta, "a finite number above 0")
    if allow_unstable or isinstance(z, Tracer) or isinstance(params.W, Tracer):
        return
    limit = largest_step(params, z)
    if eta >= limit:
        raise InputError(
            f"eta is {eta:g}, but gradient descent diverges from 2/mu_1 = {limit:.3g} "
            "on; choose a smaller step, or divide z by a constant"
        )


@partial(jax.jit, static_argnames="is_linear")
def _descend(
    params: Params, problem: _Problem, eta: Array, lengths: Array, *, is_linear: bool
) -> GDRun:
    z, y, queries = problem
    start, signs = params
    rate = (eta / len(z)).astype(start.dtype)

    def outputs(weights: Array, inputs: Array) -> Array:
        mask_at = start if is_linear else weights
        return masked_outputs(Params(weights, signs), inputs, mask_at)

    def step(_: Array, weights: Array) -> Array:
        residual = outputs(weights, z) - y
        mask_at = start if is_linear else weights
        return weights - rate * masked_pullback(params, z, residual, mask_at)

    def stretch(weights: Array, length: Array) -> tuple[Array, tuple]:
        weights = jax.lax.fori_loop(0, length, step, weights)
        moved = weights - start
        diagnostics = Diagnostics(
            jnp.sum((outputs(weights, z) - y) ** 2) / (2 * len(z)),
            flipped_fraction(start, weights, z),
            jnp.max(jnp.linalg.norm(moved, axis=1)),
            jnp.linalg.norm(moved),
        )
        return weights, (outputs(weights, queries), diagnostics)

    weights, (recorded, diagnostics) = jax.lax.scan(stretch, start, lengths)
    return GDRun(Params(weights, signs), recorded, diagnostics)
