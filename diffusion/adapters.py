"""Models of other frames as denoisers of the house frame, x = x0 + sigma n.

A process x_t = alpha x0 + s n is the house frame scaled: x = x_t / alpha at noise level
sigma = s / alpha.  With alpha = 1/sqrt(1 + sigma^2) and s = sigma alpha (variance
preserving),

    noise predictor       D = x - sigma eps(x_t, t)
    v predictor           D = alpha x_t - s v(x_t, t),   v = alpha n - s x0
    score of x_t          D = (x_t + s^2 score(x_t, t)) / alpha,

and with alpha = 1 - t, s = t, sigma = t / (1 - t) (flow matching)

    velocity              D = x_t - t u(x_t, t),         u = n - x0.

Sources: Ho et al., arXiv 2006.11239; Salimans & Ho, arXiv 2202.00512; Song et al.,
arXiv 2011.13456; Lipman et al., arXiv 2210.02747; Karras et al., arXiv 2206.00364.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.denoiser import expand_sigma

__all__ = [
    "ContinuousVP",
    "DiscreteVP",
    "FlowVelocityDenoiser",
    "ScoreDenoiser",
    "TimeSchedule",
    "VPNoiseDenoiser",
    "VPScoreDenoiser",
    "VPVelocityDenoiser",
    "linear_beta_schedule",
]

Model = Callable[[Array, Array], Array]


class TimeSchedule(Protocol):
    """Which time a model expects at a noise level; a pytree."""

    def time(self, sigma: Array) -> Array:
        """Return the model's time at `sigma`, any shape."""
        ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class ContinuousVP:
    """The linear VP schedule, sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1.

    Args:
        beta_d: Slope of beta(t) over t in [0, 1].
        beta_min: beta(0).
        time_scale: The model is given t times this; 999 for score_sde's networks.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    time_scale: float = 1.0

    def sigma(self, t: ArrayLike) -> Array:
        """Return the noise level at time t in [0, 1], in data units."""
        t = jnp.asarray(t)
        return jnp.sqrt(jnp.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))

    def time(self, sigma: Array) -> Array:
        """Return time_scale t, with t the inverse of `sigma`."""
        power = 2 * self.beta_d * jnp.log1p(sigma**2)
        # sqrt(b^2 + p) - b without cancellation at small sigma.
        root = jnp.sqrt(self.beta_min**2 + power) + self.beta_min
        return self.time_scale * power / root / self.beta_d


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscreteVP:
    """A schedule given by a table, such as DDPM's 1,000 steps.

    The time is the index of the table, interpolated linearly in log sigma and held at
    its ends.

    Args:
        sigmas: (M,) increasing noise levels of times 0, ..., M - 1, data units.
    """

    sigmas: Array

    def time(self, sigma: Array) -> Array:
        """Return the fractional index in [0, M - 1]."""
        index = jnp.arange(len(self.sigmas), dtype=self.sigmas.dtype)
        return jnp.interp(jnp.log(sigma), jnp.log(self.sigmas), index)


def linear_beta_schedule(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> DiscreteVP:
    """Return DDPM's schedule: sigma_t^2 = 1 / prod_(s <= t) (1 - beta_s) - 1.

    Args:
        num_steps: M, at least 2.
        beta_start: First beta, in (0, 1).
        beta_end: Last beta, in (0, 1).

    Raises:
        InputError: If a value is out of range.
    """
    if num_steps < 2 or not 0 < beta_start <= beta_end < 1:
        raise InputError(
            f"num_steps is {num_steps} and beta runs from {beta_start} to {beta_end}; "
            "give at least 2 steps and 0 < beta_start <= beta_end < 1"
        )
    betas = np.linspace(beta_start, beta_end, num_steps)
    return DiscreteVP(jnp.asarray(np.sqrt(np.expm1(-np.cumsum(np.log1p(-betas))))))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VPNoiseDenoiser:
    """A variance-preserving noise predictor as a `Denoiser`.

    Args:
        model: ``model(x_t, t)`` with x_t (B, *event) and t (B,) returns the noise, of
            unit variance; a pytree, such as a `jax.tree_util.Partial`.
        schedule: Which time belongs to a noise level.
    """

    model: Model
    schedule: TimeSchedule

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x, level, alpha, time = _enter_vp(x, sigma, self.schedule)
        noise = self.model((alpha * x).astype(x.dtype), time)
        return (x - level * noise).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VPVelocityDenoiser:
    """A variance-preserving v predictor as a `Denoiser`.

    Args:
        model: ``model(x_t, t)`` returns v = alpha n - s x0; see `VPNoiseDenoiser`.
        schedule: Which time belongs to a noise level.
    """

    model: Model
    schedule: TimeSchedule

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x, level, alpha, time = _enter_vp(x, sigma, self.schedule)
        velocity = self.model((alpha * x).astype(x.dtype), time)
        return (alpha**2 * x - level * alpha * velocity).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VPScoreDenoiser:
    """The score of a variance-preserving process as a `Denoiser`.

    Args:
        model: ``model(x_t, t)`` returns the gradient of log p(x_t); see
            `VPNoiseDenoiser`.
        schedule: Which time belongs to a noise level.
    """

    model: Model
    schedule: TimeSchedule

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x, level, alpha, time = _enter_vp(x, sigma, self.schedule)
        gradient = self.model((alpha * x).astype(x.dtype), time)
        return (x + level**2 * alpha * gradient).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlowVelocityDenoiser:
    """A flow-matching velocity field as a `Denoiser`; t = 1 is noise.

    Args:
        model: ``model(x_t, t)`` returns u = n - x0 at x_t = (1 - t) x0 + t n.
        time_scale: The model is given t times this.
    """

    model: Model
    time_scale: float = 1.0

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x = jnp.asarray(x)
        level = expand_sigma(sigma, x)
        t = level / (1 + level)
        x_t = (x / (1 + level)).astype(x.dtype)
        time = jnp.broadcast_to(t.reshape(-1), (len(x),))
        velocity = self.model(x_t, self.time_scale * time)
        return (x_t - t * velocity).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoreDenoiser:
    """A score of the house frame as a `Denoiser`: D = x + sigma^2 score(x, sigma).

    Args:
        model: ``model(x, sigma)`` with sigma (B,) returns the score, (B, *event).
    """

    model: Model

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x = jnp.asarray(x)
        level = expand_sigma(sigma, x)
        per_sample = jnp.broadcast_to(level.reshape(-1), (len(x),))
        return (x + level**2 * self.model(x, per_sample)).astype(x.dtype)


def _enter_vp(
    x: Array, sigma: ArrayLike, schedule: TimeSchedule
) -> tuple[Array, Array, Array, Array]:
    """Return x, sigma and alpha ready to broadcast, and the time (B,)."""
    x = jnp.asarray(x)
    level = expand_sigma(sigma, x)
    alpha = 1 / jnp.sqrt(1 + level**2)
    time = jnp.broadcast_to(schedule.time(level).reshape(-1), (len(x),))
    return x, level, alpha, time
