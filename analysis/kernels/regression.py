"""Kernel regression at all training times from one eigendecomposition.

With K = U diag(n mu) U^T, labels y, first guess u0 and c = U^T (y - u0), the fit after
a time s (steps, penalty: see `filters`) leaves the part rho = 1 - g(mu, s) of each c_i:

    training points    f_s = y - U rho c
    elsewhere          f_s(x) = f_0(x) + k(x, Z) U diag(g / (n mu)) c
    df = sum g,    |f_s - f_0|_H^2 = sum g^2 c^2 / (n mu),    |y - f_s|^2 = |rho c|^2

(arXiv 2401.15604 sees score matching so; the d coordinates of a label share one K).
Nystrom's features phi (n, R) have the same form with K = phi phi^T and the eigenvectors
Q of phi^T phi / n: U = phi Q / sqrt(n mu) spans only R directions, and what y has
outside of them is never fitted.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from analysis.kernels.checks import as_labels, check_exact_size, check_finite
from analysis.kernels.filters import Filter, flow
from configs.errors import InputError

__all__ = [
    "BiasVariance",
    "FlowModel",
    "Spectrum",
    "bias_variance",
    "decompose",
    "dof",
    "fit",
    "gains",
    "left_vectors",
    "predict",
    "residuals",
    "rkhs_norm",
    "train_residual",
]

_TIMES_AT_ONCE = 32
_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Spectrum(NamedTuple):
    """The eigendecomposition of a kernel on n points.

    Attributes:
        evals: (r,) eigenvalues mu of K / n, decreasing, >= 0; 0 where K has none.
        evecs: (n, n) eigenvectors U of K as columns, or (R, r) Q for features.
        n: Number of points.
        scale: None for the exact K; (r,) 1 / sqrt(n mu) for features.
        features: (n, R) features of the points, or None: exact, or not kept.
    """

    evals: Array
    evecs: Array
    n: int
    scale: Array | None = None
    features: Array | None = None


class FlowModel(NamedTuple):
    """A regression of which only the training time is open.

    Attributes:
        spectrum: Of the kernel on the training points.
        coef: (r, d) labels along the eigenvectors, U^T (y - u0).
        rest: () squared length of the part of y - u0 that no eigenvector reaches.
        target: (n, d) y - u0, or None where the data were streamed.
    """

    spectrum: Spectrum
    coef: Array
    rest: Array
    target: Array | None = None


class BiasVariance(NamedTuple):
    """The two parts of the error on the training points, per output.

    Attributes:
        bias: Squared bias, in the shape of the times.
        variance: Variance, in the shape of the times.
    """

    bias: Array
    variance: Array


def decompose(K: ArrayLike, jitter: float | None = None) -> Spectrum:
    """Return the eigendecomposition of a Gram matrix: the one step of order n^3.

    A NumPy matrix is handled by NumPy in its own dtype, so that float64 stays float64
    whatever JAX is set to; a JAX array by JAX.  Eigenvalues below rounding, eps mu_1,
    become 0, and their directions are never fitted: no function of the kernel's space
    tells their labels apart.

    Args:
        K: (n, n) symmetric and positive semidefinite.
        jitter: Added to the diagonal, in units of K; None for 0, which is right for
            every filter.

    Returns:
        All n eigenvalues of K / n, decreasing, with eigenvectors.

    Raises:
        InputError: If K is not square, not finite, clearly not positive semidefinite,
            or too large (it says what Nystrom would need).
    """
    shape = np.shape(K)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise InputError(f"K has shape {shape}; give the (n, n) Gram matrix, n >= 1")
    check_exact_size(shape[0])
    check_finite("K", K)
    eigh: Any = np.linalg.eigh if isinstance(K, np.ndarray) else jnp.linalg.eigh
    values, vectors = eigh(K)
    _check_semidefinite(values)
    evals = _without_rounding((values[::-1] + (jitter or 0)) / shape[0])
    return Spectrum(evals, vectors[:, ::-1], shape[0])


def fit(spec: Spectrum, y: ArrayLike, u0: ArrayLike | None = None) -> FlowModel:
    """Return the regression of some labels, ready for any training time.

    Args:
        spec: See `decompose` and `analysis.kernels.nystrom`.
        y: (n, d) labels, or (n,).
        u0: The first guess at the training points, in the shape of `y`; None for 0.

    Returns:
        The model.  Its cost is that of one product with the eigenvectors.

    Raises:
        InputError: If a shape does not fit, a label is not finite, or the spectrum is
            one of streamed data, which keeps no features.
    """
    target = jnp.asarray(as_labels(y, spec.n))
    target = target.astype(jnp.result_type(target, spec.evecs))
    if u0 is not None:
        target = target - jnp.asarray(as_labels(u0, spec.n, "u0"))
    vectors = jnp.asarray(spec.evecs)
    if spec.scale is None:
        rest = jnp.zeros((), target.dtype)
        return FlowModel(spec, _dot(vectors.T, target), rest, target)
    if spec.features is None:
        raise InputError(
            "this spectrum is of streamed data and keeps no features; nystrom_stream "
            "takes the labels in the same pass"
        )
    coef = _column(spec.scale) * _dot(
        vectors.T, _dot(jnp.asarray(spec.features).T, target)
    )
    rest = jnp.sum(target**2) - jnp.sum(coef**2)
    return FlowModel(spec, coef, jnp.maximum(rest, 0), target)


def predict(
    model: FlowModel,
    Kxt: ArrayLike,
    s: ArrayLike,
    *,
    f0: ArrayLike | None = None,
    filter: Filter = flow,
) -> Array:
    """Return the fit at other points, f_0 + k(x, Z) U diag(g / (n mu)) c.

    The product with U is taken once, and then each time costs q n d: nothing of the
    size of times x points x n is ever held.

    Args:
        model: See `fit`.
        Kxt: (q, n) kernel between the points and the training points; for Nystrom the
            (q, R) features of the points.
        s: () or (S,) training times; steps for `Descent`, penalties for `ridge`.
        f0: The first guess at the points, (q, d) or (q,); None for 0.
        filter: What is fitted of each eigenvalue at a time.

    Returns:
        (S, q, d), or (q, d) for a single time.

    Raises:
        InputError: If a shape does not fit, or the filter refuses (eta too large).
    """
    rows, shape = jnp.asarray(Kxt), model.spectrum.evecs.shape
    if rows.ndim != 2 or rows.shape[1] != shape[0]:
        raise InputError(
            f"Kxt has shape {rows.shape}; give (q, {shape[0]}): the kernel with the "
            "training points, or with Nystrom the features of the points"
        )
    fitted = gains(model.spectrum, s, filter)
    times = fitted.reshape(-1, fitted.shape[-1])
    values = _evaluate(rows, model.spectrum.evecs, _readout(model), times)
    if f0 is not None:
        values = values + jnp.asarray(as_labels(f0, len(rows), "f0"))
    return values.reshape(*fitted.shape[:-1], *values.shape[1:])


def residuals(model: FlowModel, s: ArrayLike, *, filter: Filter = flow) -> Array:
    """Return y - f_s at the training points, U rho c.

    Args:
        model: See `fit`; not of streamed data.
        s: () or (S,) training times.
        filter: See `predict`.

    Returns:
        (S, n, d), or (n, d) for a single time.

    Raises:
        InputError: If the model keeps no labels, as one of streamed data does not.
    """
    if model.target is None:
        raise InputError(
            "a model of streamed data keeps no labels; predict on the features of "
            "the points, and subtract"
        )
    fitted = gains(model.spectrum, s, filter)
    times = fitted.reshape(-1, fitted.shape[-1])
    vectors = left_vectors(model.spectrum)
    explained = _evaluate(vectors, None, model.coef, times)
    left = model.target - explained
    return left.reshape(*fitted.shape[:-1], *left.shape[1:])


def train_residual(model: FlowModel, s: ArrayLike, *, filter: Filter = flow) -> Array:
    """Return the mean squared residual of the training points, |y - f_s|^2 / n.

    Args:
        model: See `fit`.
        s: () or (S,) training times.
        filter: See `predict`.

    Returns:
        In the shape of `s`; summed over the d outputs.
    """
    return _squared_residual(
        gains(model.spectrum, s, filter), model.coef, model.rest, model.spectrum.n
    )


@jax.jit
def _squared_residual(fitted: Array, coef: Array, rest: Array, n: int) -> Array:
    return (_dot((1 - fitted) ** 2, jnp.sum(coef**2, axis=1)) + rest) / n


def rkhs_norm(model: FlowModel, s: ArrayLike, *, filter: Filter = flow) -> Array:
    """Return the norm of the fit in the kernel's space, |f_s - f_0|_H.

    Along the flow |f_s|_H^2 <= .41 s |y|^2 / n.

    Args:
        model: See `fit`.
        s: () or (S,) training times.
        filter: See `predict`.

    Returns:
        In the shape of `s`; the root of the sum of squares over the d outputs.
    """
    spectrum = model.spectrum
    fitted = gains(spectrum, s, filter)
    return _norm(fitted, model.coef, spectrum.evals, spectrum.n)


@jax.jit
def _norm(fitted: Array, coef: Array, mu: Array, n: int) -> Array:
    return jnp.sqrt(_dot(fitted**2, jnp.sum(coef**2, axis=1) * _inverse(mu) / n))


def dof(model: FlowModel | Spectrum, s: ArrayLike, *, filter: Filter = flow) -> Array:
    """Return the degrees of freedom of the fit, sum g: the trace of the smoother.

    Args:
        model: See `fit`; a `Spectrum` serves as well.
        s: () or (S,) training times.
        filter: See `predict`.

    Returns:
        In the shape of `s`, from 0 to n.
    """
    spectrum = model.spectrum if isinstance(model, FlowModel) else model
    return gains(spectrum, s, filter).sum(axis=-1)


def bias_variance(
    spec: Spectrum,
    f_star: ArrayLike,
    noise: ArrayLike,
    s: ArrayLike,
    *,
    filter: Filter = flow,
) -> BiasVariance:
    """Return what the error on the training points consists of, per output.

    bias^2 = |rho U^T f|^2 / n and variance = tr(S Sigma S) / n with S = U g U^T: the
    mean over the noise of |f_s - f|^2 / n is their sum.

    Args:
        spec: See `decompose`.
        f_star: (n, d) true function at the training points less the first guess.
        noise: Variance of a label's noise per output: (), or (n,) where it differs.
        s: () or (S,) training times.
        filter: See `predict`.

    Returns:
        Both parts in the shape of `s`; means over the d outputs.

    Raises:
        InputError: If a shape does not fit.
    """
    model = fit(spec, f_star)
    fitted = gains(spec, s, filter)
    if np.ndim(noise) == 0:
        weights = jnp.full(len(spec.evals), jnp.asarray(noise))
    else:
        per_point = jnp.asarray(as_labels(noise, spec.n, "noise"))
        weights = (per_point * left_vectors(spec) ** 2).sum(axis=0)
    bias = train_residual(model, s, filter=filter) / model.coef.shape[1]
    return BiasVariance(bias, _dot(fitted**2, weights) / spec.n)


def gains(spectrum: Spectrum, s: ArrayLike, filter: Filter = flow) -> Array:
    """Return what is fitted of each eigenvalue at each time; 0 where mu = 0.

    Args:
        spectrum: See `decompose`.
        s: () or (S,) training times.
        filter: (mu, time) -> fitted part.

    Returns:
        (S, r), or (r,) for a single time.
    """
    mu, times, kept = _columns(spectrum.evals, s)
    return _only(kept, filter(mu, times))


@jax.jit
def _columns(evals: ArrayLike, s: ArrayLike) -> tuple[Array, Array, Array]:
    """Return eigenvalues, none of them 0, times as a column, and which are not 0."""
    mu = jnp.asarray(evals)
    return jnp.where(mu > 0, mu, mu[0]), jnp.asarray(s)[..., None], mu > 0


@jax.jit
def _only(kept: Array, fitted: Array) -> Array:
    return jnp.where(kept, fitted, 0)


def left_vectors(spectrum: Spectrum) -> Array:
    """Return the eigenvectors over the training points, (n, r).

    Raises:
        InputError: If the spectrum is one of streamed data.
    """
    if spectrum.scale is None:
        return spectrum.evecs
    if spectrum.features is None:
        raise InputError(
            "this spectrum is of streamed data and keeps no features; decompose the "
            "features of a part of the points"
        )
    vectors = jnp.asarray(spectrum.evecs) * jnp.asarray(spectrum.scale)
    return _dot(spectrum.features, vectors)


def _readout(model: FlowModel) -> Array:
    """Return what multiplies g in a prediction: (r, d)."""
    spectrum = model.spectrum
    if spectrum.scale is not None:
        return _column(spectrum.scale) * model.coef
    return _column(_inverse(spectrum.evals) / spectrum.n) * model.coef


@jax.jit
def _evaluate(
    rows: Array, vectors: Array | None, readout: Array, fitted: Array
) -> Array:
    """Return rows vectors diag(g) readout for each row g of `fitted`, (S, q, d)."""
    projected = rows if vectors is None else _dot(rows, vectors)
    return jax.lax.map(
        lambda g: _dot(projected, g[:, None] * readout),
        fitted,
        batch_size=_TIMES_AT_ONCE,
    )


def _inverse(mu: ArrayLike) -> Array:
    """Return 1 / mu, 0 where mu = 0."""
    mu = jnp.asarray(mu)
    return jnp.where(mu > 0, 1 / jnp.where(mu > 0, mu, 1), 0)


def _column(values: ArrayLike) -> Array:
    return jnp.asarray(values)[:, None]


def _without_rounding(evals: Array) -> Array:
    """Return eigenvalues, largest first, with 0 for those that are rounding."""
    limit = jnp.finfo(evals.dtype).eps * evals[:1]
    return evals * (evals > limit)


def _check_semidefinite(values: Array) -> None:
    """Refuse what no kernel gives: a negative eigenvalue beyond rounding."""
    if isinstance(values, Tracer):
        return
    lowest, highest = float(values[0]), float(values[-1])
    rounding = 10 * len(values) ** 0.5 * float(jnp.finfo(values.dtype).eps)
    if highest <= 0 or -lowest > max(rounding, 1e-6) * highest:
        raise InputError(
            f"K has eigenvalues from {lowest:.3g} to {highest:.3g}; the Gram matrix of "
            "a kernel has none below 0 and one above it"
        )
