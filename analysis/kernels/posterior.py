"""What a regression of the score should find, from any denoiser of the data.

In the frame of the process X_t = alpha X_0 + sqrt(h) n,

    f_*(x_t, t) = E[X_0 | x_t] = D(x_t / alpha, sigma),   sigma = sqrt(h) / alpha,
    Cov(X_0 | x_t) = sigma^2 dD/dx,              df_*/dx_t = (alpha / h) Cov(X_0 | x_t).

No regression has a loss E |f - X_0|^2 below E tr Cov(X_0 | X_t), the noise of its
labels.  D is a mixture (`diffusion.closed_form.MixtureDenoiser`), or the clean samples
themselves, whose f_* knows them by heart (`diffusion.closed_form.EmpiricalDenoiser`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from analysis.kernels.ornstein_uhlenbeck import ou, to_ve
from diffusion.denoiser import Denoiser, as_pytree, expand_sigma

__all__ = ["BayesFloor", "bayes_floor", "posterior_covariance", "posterior_mean"]


class BayesFloor(NamedTuple):
    """The regression loss that no function is below.

    Attributes:
        value: Average of tr Cov(X_0 | X_t), squared data units.
        standard_error: Of that average.
    """

    value: float
    standard_error: float


def posterior_mean(
    denoiser: Denoiser, xt: ArrayLike, t: ArrayLike, *, beta: float = 1.0
) -> Array:
    """Return f_*(x_t, t) = E[X_0 | X_t = x_t] from a denoiser of the data.

    Args:
        denoiser: Any `Denoiser`: a mixture, or the clean samples themselves.
        xt: Noisy samples, (n, d).
        t: Times, () or (n,), above 0.
        beta: Constant rate of the process.

    Returns:
        (n, d).
    """
    x, sigma = to_ve(jnp.asarray(xt), *ou(t, beta))
    expand_sigma(sigma, x)  # checks what the compiled function cannot see
    return _call(as_pytree(denoiser), x, sigma)


def posterior_covariance(
    denoiser: Denoiser, xt: ArrayLike, t: ArrayLike, *, beta: float = 1.0
) -> Array:
    """Return Cov(X_0 | X_t = x_t), sigma^2 times the Jacobian of the denoiser.

    It also says how fast f_* varies: df_*/dx_t = (alpha / h) Cov(X_0 | x_t).

    Args:
        denoiser: A differentiable `Denoiser` that is the posterior mean of some data.
        xt: Noisy samples, (n, d).
        t: Times, () or (n,), above 0.
        beta: Constant rate of the process.

    Returns:
        (n, d, d), squared data units.
    """
    x, sigma = to_ve(jnp.asarray(xt), *ou(t, beta))
    expand_sigma(sigma, x)
    sigma = jnp.broadcast_to(sigma, (len(x),))
    return _covariances(as_pytree(denoiser), x, sigma)


def bayes_floor(
    denoiser: Denoiser, xt: ArrayLike, t: ArrayLike, *, beta: float = 1.0
) -> BayesFloor:
    """Estimate the least regression loss, the average of tr Cov(X_0 | X_t).

    Args:
        denoiser: See `posterior_covariance`.
        xt: Noisy samples drawn from the process, (n, d), n >= 2.
        t: Their times, (n,).
        beta: Constant rate of the process.

    Returns:
        The average with its standard error; divided by d it is the variance of the
        label noise per coordinate.
    """
    covariance = posterior_covariance(denoiser, xt, t, beta=beta)
    traces = np.trace(np.asarray(covariance, np.float64), axis1=1, axis2=2)
    deviation = traces.std(ddof=1) / math.sqrt(len(traces))
    return BayesFloor(float(traces.mean()), float(deviation))


@jax.jit
def _call(denoiser: Denoiser, x: Array, sigma: Array) -> Array:
    return denoiser(x, sigma)


@jax.jit
def _covariances(denoiser: Denoiser, x: Array, sigma: Array) -> Array:
    def one(x: Array, sigma: Array) -> Array:
        jacobian = jax.jacfwd(lambda x: denoiser(x[None], sigma)[0])(x)
        return sigma**2 * jacobian

    return jax.vmap(one)(x, sigma)
