"""Denoising score matching as a regression: clean samples on noisy ones and times.

With X_t = alpha X_0 + sqrt(h) n (`analysis.kernels.ornstein_uhlenbeck`) the score is
(alpha f_*(x, t) - x) / h, where f_*(x, t) = E[X_0 | X_t = x].  Under the weight
h^2/alpha^2 the denoising loss *is*

    E |f(X_t, t) - X_0|^2,

a regression whose labels X_0 carry the noise X_0 - f_*, of mean zero given X_t, larger
at larger t, and bounded by the diameter of the data (arXiv 2401.15604).  The truth f_*
is in `analysis.kernels.posterior`.
"""

import math
import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from analysis.kernels.ornstein_uhlenbeck import (
    OUCoefficients,
    VEState,
    convert_prediction,
    f_from_score,
    keep_mask,
    ou,
    project_ball,
    score_from_f,
    tail_loss_bound,
    time_of_sigma,
    to_ve,
    truncation_radius,
)
from configs.errors import InputError, InputWarning, require, require_choice

__all__ = [
    "OUCoefficients",
    "Triples",
    "VEState",
    "WeightedErrors",
    "check_times",
    "convert_prediction",
    "dsm_triples",
    "f_from_score",
    "keep_mask",
    "lift",
    "ou",
    "project_ball",
    "score_from_f",
    "tail_loss_bound",
    "time_of_sigma",
    "time_weights",
    "to_ve",
    "truncation_radius",
    "weighted_errors",
]

_LAWS = ("uniform", "log_uniform", "importance")
_CLOCKS = ("linear", "log")


class Triples(NamedTuple):
    """A regression sample: noisy input, time, clean label, and whose noise it is.

    Attributes:
        xt: (n, d) noisy inputs alpha x0 + sqrt(h) n.
        t: (n,) times.
        y: (n, d) labels, the clean samples.
        group: (n,) int32 index of the clean sample; triples of one group are dependent.
    """

    xt: Array
    t: Array
    y: Array
    group: Array


class WeightedErrors(NamedTuple):
    """Root mean square errors of one prediction under three weightings.

    Attributes:
        f: sqrt(mean |f - f_*|^2), data units.
        score: sqrt(mean (alpha/h)^2 |f - f_*|^2), the error of the score itself.
        h: sqrt(mean (alpha^2/h) |f - f_*|^2), the score weighted by h: the error of
            the predicted noise.
    """

    f: Array
    score: Array
    h: Array


def dsm_triples(
    key: Array,
    x0: ArrayLike,
    n: int,
    t_range: tuple[float, float],
    draws: int = 1,
    *,
    beta: float = 1.0,
    times: str = "uniform",
) -> Triples:
    """Draw a regression sample from clean data.

    Clean samples are drawn without replacement, `draws` triples of each.  With the same
    key the sample of a smaller n (same draws) is the beginning of that of a larger.

    Args:
        key: A `jax.random.key`.
        x0: Clean samples, (N, d), data units.
        n: Number of triples, a multiple of `draws` with n / draws <= N.
        t_range: First and last time, 0 < T0 < T.
        draws: Noise draws for each clean sample.
        beta: Constant rate of the process.
        times: Law of t: "uniform"; "log_uniform"; or "importance", of density in
            proportion to (alpha/h)^2, under which the plain regression loss is the
            unweighted score loss.  See `time_weights`.

    Returns:
        Triples; triple j has the noise of ``fold_in(key, j)``.

    Raises:
        InputError: If a number is out of range, or the data are not finite (N, d).
    """
    x0 = jnp.asarray(x0)
    if x0.ndim != 2 or not jnp.issubdtype(x0.dtype, jnp.floating):
        raise InputError(
            f"x0 has shape {x0.shape} and dtype {x0.dtype}; give floats (N, d), such "
            "as x0.reshape(N, -1)"
        )
    _check_finite(x0, "x0")
    check_times(t_range)
    require_choice("law of times", times, _LAWS)
    if draws < 1 or n < 1 or n % draws or n // draws > len(x0):
        raise InputError(
            f"n is {n} and draws is {draws} for {len(x0)} clean samples; n must be a "
            f"multiple of draws, at most {len(x0) * max(draws, 1)}"
        )
    return _draw(key, x0, n, tuple(t_range), draws, beta, times)


def time_weights(
    t: ArrayLike,
    t_range: tuple[float, float],
    times: str = "uniform",
    *,
    beta: float = 1.0,
) -> Array:
    """Return uniform density / density of a law of t, so that averages are unbiased.

    Args:
        t: (n,) times drawn from the law.
        t_range: First and last time.
        times: The law; see `dsm_triples`.
        beta: Constant rate of the process.

    Returns:
        (n,) weights: mean(weights * values) estimates the average over uniform times.

    Raises:
        InputError: If the law is unknown or the times are out of order.
    """
    check_times(t_range)
    require_choice("law of times", times, _LAWS)
    first, last = t_range
    t = jnp.asarray(t, dtype=_float_of(t))
    if times == "uniform":
        return jnp.ones_like(t)
    if times == "log_uniform":
        return t * math.log(last / first) / (last - first)
    alpha, h = ou(t, beta)
    total = 1 / -math.expm1(-beta * first) - 1 / -math.expm1(-beta * last)
    return (h / alpha) ** 2 * total / (beta * (last - first))


def lift(
    x: ArrayLike,
    t: ArrayLike,
    t0: float,
    bias: float = 1.0,
    scale: ArrayLike | tuple[float, ...] | None = None,
    *,
    clock: str = "linear",
) -> Array:
    """Return the network's input z = (x / scale, t - t0, bias).

    Without a constant feature the kernel and the network are positively homogeneous:
    linear along every ray from (0, t0), so they cannot fit what f_* does.  Leave `bias`
    in [1, 4].

    Args:
        x: Noisy samples, (n, d).
        t: Times, () or (n,).
        t0: First time of the window.
        bias: Constant feature; 0 leaves it out ("no bias: z = (x, t - t0)").
        scale: Divides x: () (keeps the kernel isotropic in x) or (d,); None is 1.
        clock: "linear", t - t0, or "log", log(t / t0).

    Returns:
        (n, d + 2), or (n, d + 1) without bias, in the dtype of `x`.

    Raises:
        InputError: If x is not (n, d), or the bias or the clock is not as described.
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise InputError(f"x has shape {x.shape}; give (n, d), flattened if need be")
    require(math.isfinite(bias) and bias >= 0, "bias", bias, "a finite number >= 0")
    require_choice("clock", clock, _CLOCKS)
    if not bias:
        warnings.warn(
            "bias is 0, so predictions are linear along rays from (0, t0) and cannot "
            "fit the posterior mean; bias=1 removes this",
            InputWarning,
            stacklevel=2,
        )
    t = jnp.asarray(t, x.dtype)
    time = t - t0 if clock == "linear" else jnp.log(t / t0)
    columns = [x if scale is None else x / jnp.asarray(scale, x.dtype)]
    columns.append(jnp.broadcast_to(time, (len(x),))[:, None])
    if bias:
        columns.append(jnp.full((len(x), 1), bias, x.dtype))
    return jnp.concatenate(columns, axis=1)


def weighted_errors(
    f_hat: ArrayLike, f_star: ArrayLike, t: ArrayLike, *, beta: float = 1.0
) -> WeightedErrors:
    """Return root mean square errors of f under three weightings.

    (alpha/h)^2 is 400 at t = .05 and 1 at t = 1: what is small for f may be large for
    the score, so all are reported.

    Args:
        f_hat: Predictions, (n, d).
        f_star: The truth, (n, d).
        t: Times, (n,) or ().
        beta: Constant rate of the process.

    Returns:
        Three errors, () each; |.| is the Euclidean norm over the d outputs.

    Raises:
        InputError: If the shapes differ.
    """
    f_hat, f_star = jnp.asarray(f_hat), jnp.asarray(f_star)
    if f_hat.shape != f_star.shape or f_hat.ndim != 2:
        raise InputError(
            f"f_hat has shape {f_hat.shape} and f_star {f_star.shape}; give both (n, d)"
        )
    square = jnp.sum((f_hat - f_star) ** 2, axis=1)
    alpha, h = ou(t, beta)
    weights = (1.0, (alpha / h) ** 2, alpha**2 / h)
    return WeightedErrors(*(jnp.sqrt(jnp.mean(w * square)) for w in weights))


def check_times(t_range: tuple[float, float]) -> None:
    """Refuse a window of times that is not 0 < T0 < T < infinity.

    Raises:
        InputError: Naming the window.
    """
    first, last = t_range
    if not 0 < first < last < math.inf:
        raise InputError(
            f"t_range is ({first}, {last}); it must be (T0, T) with 0 < T0 < T, such "
            "as (0.05, 2)"
        )


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _draw(
    key: Array,
    x0: Array,
    n: int,
    t_range: tuple[float, float],
    draws: int,
    beta: float,
    times: str,
) -> Triples:
    order_key, noise_key = jax.random.split(key)
    group = jax.random.permutation(order_key, len(x0))[: n // draws]
    group = jnp.repeat(group, draws).astype(jnp.int32)

    def draw(index: Array) -> tuple[Array, Array]:
        when, white = jax.random.split(jax.random.fold_in(noise_key, index))
        noise = jax.random.normal(white, x0.shape[1:], x0.dtype)
        return jax.random.uniform(when, (), x0.dtype), noise

    u, noise = jax.vmap(draw)(jnp.arange(n))
    t = _quantile(u, t_range, times, beta)
    alpha, h = ou(t, beta)
    xt = alpha[:, None] * x0[group] + jnp.sqrt(h)[:, None] * noise
    return Triples(xt, t, x0[group], group)


def _quantile(u: Array, t_range: tuple[float, float], times: str, beta: float) -> Array:
    """Turn uniform numbers in [0, 1) into times of a law."""
    first, last = t_range
    if times == "uniform":
        return first + (last - first) * u
    if times == "log_uniform":
        return first * jnp.exp(u * math.log(last / first))
    # The integral of (alpha/h)^2 is -1/(beta h), so 1/h is linear in u.
    start, end = (1 / -math.expm1(-beta * t) for t in t_range)
    return -jnp.log1p(-1 / (start + u * (end - start))) / beta


def _check_finite(x: Array, name: str) -> None:
    if isinstance(x, Tracer):
        return
    wrong = ~np.isfinite(np.asarray(x)).all(axis=1)
    if wrong.any():
        raise InputError(
            f"{name} has NaN or infinity in row {int(np.argmax(wrong))}; remove or "
            "repair it"
        )


def _float_of(values: ArrayLike) -> jnp.dtype:
    """Return the dtype to compute with: at least 32 bits."""
    return jnp.promote_types(jnp.result_type(values), jnp.float32)
