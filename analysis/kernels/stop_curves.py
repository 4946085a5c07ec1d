"""Of each training time, a number that says how good it is.

With the residual |y - f_s|^2 of n points, summed over d outputs,

    GCV           |y - f_s|^2 / n / (1 - df / n)^2             smallest, while df < .9 n
    SURE          |y - f_s|^2 / (n d) - sigma^2 + 2 sigma^2 df / n            smallest
    discrepancy   |y - f_s|^2 / (n d) - tau sigma^2               first at 0 or below
    hold-out      mean |f_s - y|^2 of points left out                         smallest
    oracle        mean |f_s - f|^2 of the true f, for comparison              smallest

and, at the time that GCV chooses, estimates of the noise and of the target's norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.checks import as_labels
from analysis.kernels.regression import (
    FlowModel,
    dof,
    predict,
    rkhs_norm,
    train_residual,
)

__all__ = [
    "default_times",
    "discrepancy",
    "gcv",
    "holdout",
    "noise_level",
    "oracle",
    "sure",
    "target_norm",
]

_MOST_DEGREES = 0.9
_NUM_TIMES = 141


def gcv(model: FlowModel, s: ArrayLike) -> Array:
    """Return generalized cross-validation, |y - f_s|^2 / n / (1 - df / n)^2.

    Args:
        model: See `analysis.kernels.regression.fit`.
        s: () or (S,) training times.

    Returns:
        In the shape of `s`, squared units of the labels, summed over outputs; inf where
        df >= .9 n: there it becomes 0 / 0, and would point to interpolation.
    """
    return _validate(train_residual(model, s), dof(model, s), model.spectrum.n)


@jax.jit
def _validate(error: Array, df: Array, n: int) -> Array:
    kept = df < _MOST_DEGREES * n
    return jnp.where(kept, error / (1 - jnp.where(kept, df / n, 0)) ** 2, jnp.inf)


def sure(model: FlowModel, s: ArrayLike, sigma2: ArrayLike) -> Array:
    """Return Stein's unbiased estimate of the error on the training points.

    |y - f_s|^2 / (n d) - sigma^2 + 2 sigma^2 df / n; its mean over the noise is that of
    |f_s - f|^2 / (n d).

    Args:
        model: See `analysis.kernels.regression.fit`.
        s: () or (S,) training times.
        sigma2: Variance of a label's noise, mean over points and outputs.

    Returns:
        In the shape of `s`, per output.
    """
    error = train_residual(model, s) / model.coef.shape[1]
    return error - sigma2 + 2 * sigma2 * dof(model, s) / model.spectrum.n


def discrepancy(
    model: FlowModel, s: ArrayLike, sigma2: ArrayLike, tau: float = 1.0
) -> Array:
    """Return how far the residual, |y - f_s|^2 / (n d), is above tau sigma^2.

    Args:
        model: See `analysis.kernels.regression.fit`.
        s: () or (S,) training times.
        sigma2: See `sure`.
        tau: Share of the noise that the residual may fall to.

    Returns:
        In the shape of `s`, per output, decreasing; the rule stops at the first time at
        which it is 0 or below.
    """
    return train_residual(model, s) / model.coef.shape[1] - tau * jnp.asarray(sigma2)


def holdout(
    model: FlowModel,
    Kv: ArrayLike,
    yv: ArrayLike,
    s: ArrayLike,
    *,
    f0: ArrayLike | None = None,
) -> Array:
    """Return the mean of |f_s - y|^2 over points left out of the training.

    Args:
        model: Of the other points.
        Kv: (q, n) kernel with the training points, or (q, R) features.
        yv: (q, d) labels.
        s: () or (S,) training times.
        f0: The first guess there, (q, d); None for 0.

    Returns:
        In the shape of `s`, summed over outputs.

    Raises:
        InputError: If a shape does not fit.
    """
    labels = jnp.asarray(as_labels(yv, np.shape(Kv)[0], "yv"))
    errors = predict(model, Kv, s, f0=f0) - labels
    return jnp.mean(jnp.sum(errors**2, axis=-1), axis=-1)


def oracle(
    model: FlowModel,
    Kt: ArrayLike,
    ft: ArrayLike,
    s: ArrayLike,
    *,
    f0: ArrayLike | None = None,
) -> Array:
    """Return the mean of |f_s - f|^2 over test points of which the truth is known.

    Args:
        model: See `analysis.kernels.regression.fit`.
        Kt: (q, n) kernel with the training points, or (q, R) features.
        ft: (q, d) true function.
        s: () or (S,) training times.
        f0: The first guess there, (q, d); None for 0.

    Returns:
        In the shape of `s`, summed over outputs.

    Raises:
        InputError: If a shape does not fit.
    """
    return holdout(model, Kt, ft, s, f0=f0)


def noise_level(model: FlowModel, s: ArrayLike) -> Array:
    """Return the variance of the noise, |y - f_s|^2 / (d (n - df)).

    Args:
        model: See `analysis.kernels.regression.fit`.
        s: () or (S,) training times; at the GCV stop it is good to a few per cent.

    Returns:
        sigma^2 per output, in the shape of `s`.
    """
    n, outputs = model.spectrum.n, model.coef.shape[1]
    return train_residual(model, s) * n / (outputs * (n - dof(model, s)))


def target_norm(model: FlowModel, s: ArrayLike) -> Array:
    """Return the norm of the target in the kernel's space, that of f_s per output.

    Args:
        model: See `analysis.kernels.regression.fit`.
        s: () or (S,) training times, such as the GCV stop.

    Returns:
        B, the root of the mean over outputs of |f_s - f_0|_H^2, in the shape of `s`.
    """
    return rkhs_norm(model, s) / model.coef.shape[1] ** 0.5


def default_times(mu: ArrayLike, count: int = _NUM_TIMES) -> NDArray[np.float64]:
    """Return times from .1 / mu_1, hardly begun, to 1e6 / mu_1, in equal ratios.

    Args:
        mu: (r,) eigenvalues of K / n.
        count: Number of times, at least 2.

    Returns:
        (count,) float64.
    """
    return np.logspace(-1, 6, count) / float(np.max(np.asarray(mu)))
