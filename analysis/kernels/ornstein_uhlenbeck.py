"""The Ornstein-Uhlenbeck process, and the words in which a score is said in it.

dX_t = -beta/2 X_t dt + sqrt(beta) dB_t makes of a clean sample

    X_t = alpha X_0 + sqrt(h) n,   alpha = exp(-beta t / 2),   h = 1 - alpha^2.

With f = E[X_0 | X_t = x], Tweedie's formula gives the score (alpha f - x) / h, and so
the predicted noise (x - alpha f) / sqrt(h) and velocity (alpha x - f) / sqrt(h): four
words for one thing.  The house frame is x / alpha at sigma = sqrt(h) / alpha, where
t = log(1 + sigma^2) / beta and scores are alpha times as large.  Data of radius D stay,
but for a small probability, within a radius that depends on d: `truncation_radius`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.errors import is_positive, require, require_choice
from diffusion.denoiser import expand_per_sample

__all__ = [
    "OUCoefficients",
    "VEState",
    "convert_prediction",
    "f_from_score",
    "keep_mask",
    "ou",
    "project_ball",
    "score_from_f",
    "tail_loss_bound",
    "time_of_sigma",
    "to_ve",
    "truncation_radius",
]

_PREDICTIONS = ("f", "score", "noise", "velocity")


class OUCoefficients(NamedTuple):
    """What the process does in time t: X_t = alpha X_0 + sqrt(h) n.

    Attributes:
        alpha: exp(-beta t / 2), the shape of t.
        h: 1 - alpha^2, the variance of the noise, the shape of t.
    """

    alpha: Array
    h: Array


class VEState(NamedTuple):
    """A noisy sample in the house frame, x = x0 + sigma n.

    Attributes:
        x: (B, *event), data units.
        sigma: Noise level, () or (B,), data units.
    """

    x: Array
    sigma: Array


def ou(t: ArrayLike, beta: float = 1.0) -> OUCoefficients:
    """Return alpha = exp(-beta t / 2) and h = 1 - alpha^2.

    Args:
        t: Times, any shape, >= 0.
        beta: Constant rate of the process, above 0.

    Returns:
        Both in the shape of `t`; h keeps its digits at small t.

    Raises:
        InputError: If `beta` is not above 0.
    """
    require(is_positive(beta), "beta", beta, "a finite number above 0")
    t = jnp.asarray(t, dtype=_float_of(t))
    return OUCoefficients(jnp.exp(-beta * t / 2), -jnp.expm1(-beta * t))


def to_ve(x_t: ArrayLike, alpha: ArrayLike, h: ArrayLike) -> VEState:
    """Move to the house frame: x = x_t / alpha, sigma = sqrt(h) / alpha.

    Args:
        x_t: Noisy samples, (B, *event).
        alpha: Signal scale, () or (B,), above 0.
        h: Noise variance, () or (B,), above 0.

    Returns:
        The sample and its noise level; a score there is alpha times the score here.
    """
    x_t, alpha = jnp.asarray(x_t), jnp.asarray(alpha)
    return VEState(x_t / expand_per_sample(alpha, x_t), jnp.sqrt(h) / alpha)


def time_of_sigma(sigma: ArrayLike, beta: float = 1.0) -> Array:
    """Return the time at which sqrt(h) / alpha is sigma: log(1 + sigma^2) / beta."""
    return jnp.log1p(jnp.square(jnp.asarray(sigma, dtype=_float_of(sigma)))) / beta


def project_ball(f: ArrayLike, radius: ArrayLike | None) -> Array:
    """Return the nearest point of the ball of a radius: f min(1, radius / |f|).

    Args:
        f: (..., d).
        radius: D >= 0, (); None leaves f as it is.

    Returns:
        (..., d); the derivative is the identity inside, 0 included.
    """
    f = jnp.asarray(f)
    if radius is None:
        return f
    square = jnp.sum(f**2, axis=-1, keepdims=True)
    bound = jnp.asarray(radius, f.dtype)
    outside = square > bound**2
    # The root is taken of numbers above 0 only, so that its derivative is finite.
    return jnp.where(
        outside, f * bound * jax.lax.rsqrt(jnp.where(outside, square, 1.0)), f
    )


def score_from_f(
    f: ArrayLike,
    x: ArrayLike,
    t: ArrayLike,
    radius: ArrayLike | None = None,
    *,
    beta: float = 1.0,
) -> Array:
    """Return the score of the noisy density, (alpha Pi_D f - x) / h.

    Args:
        f: Predicted clean samples, (n, d).
        x: Noisy samples x_t, (n, d).
        t: Times, () or (n,).
        radius: D, to project f first; None does not.
        beta: Constant rate of the process.

    Returns:
        (n, d), in the frame of x_t; the score in the house frame is alpha times it.
    """
    return convert_prediction(
        project_ball(f, radius), x, t, source="f", target="score", beta=beta
    )


def f_from_score(
    score: ArrayLike, x: ArrayLike, t: ArrayLike, *, beta: float = 1.0
) -> Array:
    """Return the clean samples that a score predicts, (x + h score) / alpha."""
    return convert_prediction(score, x, t, source="score", target="f", beta=beta)


def convert_prediction(
    value: ArrayLike,
    x: ArrayLike,
    t: ArrayLike,
    *,
    source: str,
    target: str,
    beta: float = 1.0,
) -> Array:
    """Say one prediction in other words.

    score = (alpha f - x) / h, noise = (x - alpha f) / sqrt(h), velocity
    alpha noise - sqrt(h) f = (alpha x - f) / sqrt(h).

    Args:
        value: The prediction, (n, d).
        x: Noisy samples x_t, (n, d).
        t: Times, () or (n,), above 0.
        source: What `value` is: "f" (clean samples), "score", "noise" or "velocity".
        target: What is wanted, of the same names.
        beta: Constant rate of the process.

    Returns:
        (n, d).

    Raises:
        InputError: If a name is unknown.
    """
    require_choice("prediction", source, _PREDICTIONS)
    require_choice("prediction", target, _PREDICTIONS)
    value, x = jnp.asarray(value), jnp.asarray(x)
    alpha, h = (expand_per_sample(c, x) for c in ou(t, beta))
    deviation = jnp.sqrt(h)
    # Each is (a f + b x) / c.
    words = {
        "f": (1.0, 0.0, 1.0),
        "score": (alpha, -1.0, h),
        "noise": (-alpha, 1.0, deviation),
        "velocity": (-1.0, alpha, deviation),
    }
    a, b, c = words[source]
    f = (c * value - b * x) / a
    a, b, c = words[target]
    return (a * f + b * x) / c


def truncation_radius(radius: float, dimension: int, delta: float) -> float:
    """Return a radius that |X_t| passes with probability at most delta, at every t.

    D + sqrt(d) + sqrt(2 log(1/delta)), by the concentration of the Gaussian norm.

    Args:
        radius: D, with |X_0| <= D, data units.
        dimension: d.
        delta: Probability, in (0, 1).

    Returns:
        The radius, for `keep_mask`.

    Raises:
        InputError: If a number is out of range.
    """
    require(is_positive(radius), "radius", radius, "a finite number above 0")
    require(0 < delta < 1, "delta", delta, "in (0, 1)")
    return radius + math.sqrt(dimension) + math.sqrt(2 * math.log(1 / delta))


def keep_mask(x: ArrayLike, radius: ArrayLike) -> Array:
    """Return whether |x| <= radius, (n,), for x (n, d)."""
    return jnp.linalg.norm(jnp.asarray(x), axis=-1) <= radius


def tail_loss_bound(radius: float, delta: float) -> float:
    """Return 4 D^2 delta, what inputs beyond the truncation radius add to the loss.

    Both Pi_D f and f_* lie in the ball of radius D, so they are at most 2 D apart.

    Args:
        radius: D, with |X_0| <= D, data units.
        delta: Probability of those inputs, in (0, 1).
    """
    return 4 * radius**2 * delta


def _float_of(values: ArrayLike) -> jnp.dtype:
    """Return the dtype to compute with: at least 32 bits."""
    return jnp.promote_types(jnp.result_type(values), jnp.float32)
