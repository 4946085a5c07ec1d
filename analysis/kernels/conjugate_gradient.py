"""Ridge regression by conjugate gradients, where no eigendecomposition is wanted.

    (K + n lam I) alpha = y,     f(x) = k(x, Z) alpha,

the filter `ridge` at a single penalty.  K enters by its products alone, so it need not
be held.  Iterations grow as sqrt(mu_1 / lam).  Stopping them early is no early stopping
of gradient descent: the polynomial that they apply depends on the labels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from analysis.kernels.checks import as_labels, check_finite
from configs.errors import InputError, is_positive, require
from diffusion.denoiser import as_pytree

__all__ = ["RidgeSolution", "ridge_conjugate_gradient"]

_FACTOR = 256.0
_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class RidgeSolution(NamedTuple):
    """Coefficients of a ridge regression.

    Attributes:
        alpha: (n, d) coefficients: f(x) = k(x, Z) alpha.
        num_steps: Iterations, each one product with K.
        residual: () |y - (K + n lam I) alpha| / |y|.
    """

    alpha: Array
    num_steps: Array
    residual: Array


def ridge_conjugate_gradient(
    K: ArrayLike | Callable[[Array], Array],
    y: ArrayLike,
    lam: float,
    *,
    rtol: float | None = None,
    max_steps: int = 1000,
) -> RidgeSolution:
    """Solve (K + n lam I) alpha = y for all d columns of y at once.

    Args:
        K: (n, n) Gram matrix, or a function (n, d) -> (n, d), a product with it; arrays
            of the function are best leaves of a `jax.tree_util.Partial`.
        y: (n, d) labels, or (n,).
        lam: Penalty in units of the eigenvalues of K / n, as in `filters.ridge`.
        rtol: Largest relative error of a residual; None for 1e-10 in float64 and 1e-5
            in float32.
        max_steps: Iterations at most.

    Returns:
        The solution, which `kernel @ alpha` turns into predictions.

    Raises:
        InputError: If a shape does not fit, a value is not finite, `lam` is not
            positive, or the iterations do not suffice.
    """
    require(is_positive(float(lam)), "lam", lam, "a finite number > 0")
    labels = jnp.asarray(as_labels(y, np.shape(y)[0]))
    n = labels.shape[0]
    if not callable(K):
        if np.shape(K) != (n, n):
            raise InputError(f"K has shape {np.shape(K)}; it must be ({n}, {n}), as y")
        check_finite("K", K)
        K = jax.tree_util.Partial(_dot, jnp.asarray(K))
    if rtol is None:
        rtol = 1e-10 if labels.dtype == jnp.float64 else 1e-5
    solution = _solve(as_pytree(K), labels, n * lam, rtol, max_steps)
    if not float(solution.residual) <= 10 * rtol:
        raise InputError(
            f"conjugate gradients reached a residual of {float(solution.residual):.1e} "
            f"in {max_steps} steps, not {rtol:.1e}; take more steps, a larger lam, or "
            "decompose"
        )
    return solution


@jax.jit
def _solve(
    product: Callable[[Array], Array],
    labels: Array,
    penalty: ArrayLike,
    rtol: float,
    max_steps: int,
) -> RidgeSolution:
    """Solve (K / penalty + I) beta = y, where |beta| <= |y|, up to a common factor.

    `lineax` compares steps with the solution and residuals with the right side by one
    scale, and gives up where p.A p is small beside p.p: beta is of the size of y, and
    the factor keeps A large.
    """

    def apply(beta: Array) -> Array:
        return _FACTOR * (product(beta) / penalty + beta)

    right = _FACTOR * labels
    length = jnp.maximum(_length(right), jnp.finfo(right.dtype).tiny)
    operator = lineax.FunctionLinearOperator(
        apply, jax.eval_shape(lambda: right), lineax.positive_semidefinite_tag
    )
    atol: Any = rtol * length
    solver = lineax.CG(0.0, atol, norm=_length, max_steps=max_steps)
    found = lineax.linear_solve(operator, right, solver, throw=False)
    left = _length(right - apply(found.value)) / length
    return RidgeSolution(found.value / penalty, found.stats["num_steps"], left)


def _length(values: Array) -> Array:
    return jnp.sqrt(jnp.sum(values**2))
