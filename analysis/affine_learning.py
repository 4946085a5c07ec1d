"""The learning curve of an affine denoiser, in closed form.

For D(x) = W x on centred data of covariance Sigma, the loss E|W (x0 + sigma n) - x0|^2
under gradient flow dW/dtau = -rate dL/dW has the solution

    W(tau) = W* + sum_k (W(0) - W*) u_k u_k^T exp(-2 rate tau (lambda_k + sigma^2)),

with W* = Sigma (Sigma + sigma^2)^-1, the Gaussian's denoiser: directions of large
variance are learned first, and all of them sooner at a higher noise level (Wang &
Pehlevan, arXiv 2503.03206, equation 7).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError

__all__ = ["affine_learning_curve"]


def affine_learning_curve(
    variances: ArrayLike,
    sigma: float,
    times: ArrayLike,
    *,
    rate: float = 1.0,
    initial: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return W over time, in the basis of the principal directions.

    Args:
        variances: lambda_k of all D directions, (D,), squared data units.
        sigma: Noise level, at least 0, data units.
        times: tau, (T,), at least 0.
        rate: Of the gradient flow.
        initial: U^T W(0) U, (D, D); None is 0.

    Returns:
        U^T W(tau) U, (T, D, D).

    Raises:
        InputError: If a shape does not fit or a number is negative.
    """
    values, tau = np.asarray(variances, np.float64), np.asarray(times, np.float64)
    start = np.zeros((values.size,) * 2) if initial is None else np.asarray(initial)
    if values.ndim != 1 or tau.ndim != 1 or start.shape != (values.size,) * 2:
        raise InputError(
            f"variances have shape {values.shape}, times {tau.shape} and initial "
            f"{start.shape}; they must be (D,), (T,) and (D, D)"
        )
    if not sigma >= 0 or not (values >= 0).all() or not (tau >= 0).all():
        raise InputError("sigma, variances and times must be numbers of at least 0")
    total = values + sigma**2
    best = np.diag(values / np.where(total > 0, total, 1))
    decay = np.exp(-2 * rate * tau[:, None] * total)
    return best + (start - best) * decay[:, None, :]
