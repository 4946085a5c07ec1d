"""A learned weight that evens out the noise levels' shares of the gradient.

    L = lambda(sigma) / exp(u(sigma)) |D - x0|^2 + u(sigma)

is least where exp(u) is the expected weighted error at sigma, so that every level then
counts the same (Kendall et al., arXiv 1705.07115; Karras et al., arXiv 2312.02696,
equation 14).  u is a linear function of 128 random Fourier features of c_noise and
starts at zero.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["init_uncertainty", "log_uncertainty"]

_CHANNELS = 128


def init_uncertainty(key: Array) -> dict[str, Any]:
    """Return fresh parameters: fixed frequencies and phases, weights of zero."""
    frequency_key, phase_key = jax.random.split(key)
    return {
        "frequencies": jax.random.normal(frequency_key, (_CHANNELS,)),
        "phases": jax.random.uniform(phase_key, (_CHANNELS,)),
        "weight": jnp.zeros(_CHANNELS),
    }


def log_uncertainty(params: dict[str, Any], c_noise: Array) -> Array:
    """Return u at scaled noise levels c_noise, (B,) -> (B,)."""
    frequencies, phases = jax.lax.stop_gradient(
        (params["frequencies"], params["phases"])
    )
    angles = 2 * math.pi * (c_noise[:, None] * frequencies + phases)
    features = math.sqrt(2) * jnp.cos(angles)
    return features @ params["weight"] / math.sqrt(_CHANNELS)
