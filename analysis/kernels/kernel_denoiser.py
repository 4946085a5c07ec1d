"""A kernel regression of the score, or a wide network, as a denoiser.

    D(x, sigma) = Pi_D f(z),   f(z) = mean + sum_j k(z, z_j) c_j,
    z = lift(alpha x, t),   t = log(1 + sigma^2) / beta,   alpha = exp(-beta t / 2),

with Pi_D the projection onto the ball of radius D that holds the data: what was
regressed on noisy samples in the frame of the process (arXiv 2401.15604) is called in
the house frame, so every sampler, metric and figure works on it.  The coefficients are
those of one training time, c = U diag(g / (n mu)) U^T (y - mean); with Nystrom z_j are
the landmarks.  Outside of the times that were trained on, t is held at the nearer end.

The kernel has a cusp where z meets a training point; the derivative there leaves the
cusp out, so Jacobians and divergences see f between the points.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.checks import check_exact_size
from analysis.kernels.diffusion_regression import Triples, check_times, lift
from analysis.kernels.filters import Filter, flow
from analysis.kernels.gram import Kernel, gram
from analysis.kernels.nystrom import NystromMap
from analysis.kernels.ornstein_uhlenbeck import project_ball, time_of_sigma
from analysis.kernels.regression import FlowModel, decompose, fit, gains
from analysis.kernels.relu_ntk import relu_ntk
from analysis.kernels.score_network import Params, apply
from configs.errors import InputError, is_positive, require
from diffusion.closed_form.checks import check_event
from diffusion.denoiser import expand_sigma

__all__ = [
    "KernelDenoiser",
    "Lifting",
    "ScoreNetworkDenoiser",
    "dual_coefficients",
    "fit_kernel_denoiser",
    "kernel_denoiser",
]

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Lifting:
    """How a noisy sample and its time become an input; static under jit.

    Args:
        t_range: First and last time of training, 0 < T0 < T.
        bias: Constant feature; see `analysis.kernels.diffusion_regression.lift`.
        scale: Divides x: a number, one for each coordinate, or None for 1.
        clock: "linear" or "log".
        beta: Constant rate of the process.
    """

    t_range: tuple[float, float] = (0.05, 2.0)
    bias: float = 1.0
    scale: float | tuple[float, ...] | None = None
    clock: str = "linear"
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.t_range)
        require(is_positive(self.beta), "beta", self.beta, "a finite number above 0")

    def __call__(self, xt: ArrayLike, t: ArrayLike) -> Array:
        """Return z, (n, p), of noisy samples (n, d) at times () or (n,)."""
        first, last = self.t_range
        held = jnp.clip(jnp.asarray(t), first, last)
        return lift(xt, held, first, self.bias, self.scale, clock=self.clock)

    def sigma_range(self) -> tuple[float, float]:
        """Return the noise levels of the first and the last time, data units."""
        first, last = np.sqrt(np.expm1(self.beta * np.asarray(self.t_range)))
        return float(first), float(last)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelDenoiser:
    """A kernel predictor of one training time as a `Denoiser`.

    Computes in the wider of the dtypes of `x` and the coefficients and returns the
    dtype of `x`; a call on B samples holds B M kernel values.

    Args:
        points: (M, p) lifted training points, or landmarks.
        coefficients: (M, D) c, D = prod(event).
        mean: (D,) first guess, data units.
        radius: Of the ball that f is projected onto, (), or None.
        event: Shape of one sample.
        lifting: How x and sigma become z.
        kernel: k(a, b) of (n, p) and (q, p) points; hashable, as a function is.
    """

    points: Array
    coefficients: Array
    mean: Array
    radius: Array | None = None
    event: tuple[int, ...] = dataclasses.field(metadata={"static": True}, kw_only=True)
    lifting: Lifting = dataclasses.field(metadata={"static": True}, kw_only=True)
    kernel: Kernel = dataclasses.field(
        default=relu_ntk, metadata={"static": True}, kw_only=True
    )

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""

        def f(z: Array) -> Array:
            values = self.kernel(z, self.points.astype(z.dtype))
            return self.mean + jnp.matmul(values, self.coefficients, precision=_HIGHEST)

        dtype = self.coefficients.dtype
        return _denoise(f, self.lifting, self.event, self.radius, dtype, x, sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoreNetworkDenoiser:
    """A two-layer network trained on triples as a `Denoiser`.

    Args:
        params: The network, of as many outputs as a sample has elements.
        mean: (D,) what its outputs are added to, data units.
        radius: Of the ball that f is projected onto, (), or None.
        event: Shape of one sample.
        lifting: How x and sigma become z.
    """

    params: Params
    mean: Array
    radius: Array | None = None
    event: tuple[int, ...] = dataclasses.field(metadata={"static": True}, kw_only=True)
    lifting: Lifting = dataclasses.field(metadata={"static": True}, kw_only=True)

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""

        def f(z: Array) -> Array:
            return self.mean + apply(self.params, z)

        dtype = self.params.W.dtype
        return _denoise(f, self.lifting, self.event, self.radius, dtype, x, sigma)


def kernel_denoiser(
    model: FlowModel,
    points: ArrayLike | NystromMap,
    s: float,
    *,
    lifting: Lifting,
    event: tuple[int, ...],
    mean: ArrayLike | None = None,
    radius: float | None = None,
    kernel: Kernel = relu_ntk,
    filter: Filter = flow,
) -> KernelDenoiser:
    """Return the denoiser that a regression is at one training time.

    Args:
        model: The regression, of labels less `mean`.
        points: (n, p) lifted training points, or the map of Nystrom's features (whose
            kernel must be `kernel`).
        s: Training time; steps for the filter `Descent`.
        lifting: How the points were lifted.
        event: Shape of one sample; labels are flattened samples.
        mean: (D,) constant first guess; None for 0.
        radius: D of the data, to project onto; None does not.
        kernel: The kernel of the regression.
        filter: How the kernel is trained.

    Returns:
        The denoiser, in the dtype of the regression as JAX holds it.

    Raises:
        InputError: If shapes do not fit or the radius is not above 0.
    """
    coefficients = dual_coefficients(model, s, filter=filter)
    if isinstance(points, NystromMap):
        coefficients = np.asarray(points.whitening) @ np.asarray(coefficients)
        points = points.landmarks
    size = int(np.prod(event))
    if coefficients.shape != (np.shape(points)[0], size):
        raise InputError(
            f"the regression has {coefficients.shape[0]} points and "
            f"{coefficients.shape[1]} outputs; points of shape {np.shape(points)} and "
            f"events of shape {event} need ({np.shape(points)[0]}, {size})"
        )
    if radius is not None:
        require(is_positive(radius), "radius", radius, "a finite number above 0")
    dtype = coefficients.dtype
    return KernelDenoiser(
        jnp.asarray(points, dtype),
        jnp.asarray(coefficients),
        jnp.zeros(size, dtype) if mean is None else jnp.asarray(mean, dtype),
        None if radius is None else jnp.asarray(radius, dtype),
        event=tuple(event),
        lifting=lifting,
        kernel=kernel,
    )


def fit_kernel_denoiser(
    triples: Triples,
    s: float,
    *,
    lifting: Lifting,
    event: tuple[int, ...] | None = None,
    mean: ArrayLike | None = None,
    radius: float | None = None,
    kernel: Kernel = relu_ntk,
    filter: Filter = flow,
) -> KernelDenoiser:
    """Regress clean samples on noisy ones by a kernel, exactly and in float64.

    For a choice of `s` by the data decompose and fit yourself, and take
    `kernel_denoiser`.

    Args:
        triples: Noisy samples (n, D), times and clean samples.
        s: Training time.
        lifting: How to lift them; its times should be those of the triples.
        event: Shape of one sample; None is (D,).
        mean: (D,) constant first guess; None is the mean of the clean samples.
        radius: D of the data, to project onto; None does not.
        kernel: k(a, b) of points (n, p) and (q, p).
        filter: How the kernel is trained.

    Returns:
        The denoiser, in the dtype of the triples.

    Raises:
        InputError: If shapes do not fit, a value is not finite, or n is too large for
            the exact path.
    """
    check_exact_size(len(triples.y))
    dtype = jnp.asarray(triples.xt).dtype
    xt, t, y = (np.asarray(v, np.float64) for v in triples[:3])
    guess = y.mean(axis=0) if mean is None else np.asarray(mean, np.float64)
    with jax.enable_x64(True):
        z = lifting(xt, t)
        model = fit(decompose(np.asarray(gram(kernel, z))), y - guess)
        denoiser = kernel_denoiser(
            model,
            z,
            s,
            lifting=lifting,
            event=y.shape[1:] if event is None else event,
            mean=guess,
            radius=radius,
            kernel=kernel,
            filter=filter,
        )
        return jax.tree.map(lambda leaf: leaf.astype(dtype), denoiser)


def dual_coefficients(
    model: FlowModel, s: ArrayLike, *, filter: Filter = flow
) -> NDArray[np.floating]:
    """Return what multiplies the kernel's values in a prediction, U diag(g/(n mu)) c.

    Args:
        model: The regression.
        s: () training time.
        filter: How the kernel is trained.

    Returns:
        (n, d); of Nystrom's features (R, d), what multiplies the features.
    """
    spectrum = model.spectrum
    mu = np.asarray(spectrum.evals)
    if spectrum.scale is None:
        scale = np.where(mu > 0, 1 / np.where(mu > 0, mu, 1), 0) / spectrum.n
    else:
        scale = np.asarray(spectrum.scale)
    weights = np.asarray(gains(spectrum, s, filter)) * scale
    return np.asarray(spectrum.evecs) @ (weights[:, None] * np.asarray(model.coef))


def _denoise(
    f: Callable[[Array], Array],
    lifting: Lifting,
    event: tuple[int, ...],
    radius: Array | None,
    dtype: jnp.dtype,
    x: Array,
    sigma: ArrayLike,
) -> Array:
    """Call f, on lifted inputs, in the house frame."""
    x = jnp.asarray(x)
    check_event(x, event, "kernel denoiser")
    level = expand_sigma(sigma, x).reshape(-1)
    level = level.astype(jnp.promote_types(level.dtype, dtype))
    rows = x.reshape(x.shape[0], -1).astype(level.dtype)
    alpha = jax.lax.rsqrt(1 + level**2)
    z = lifting(alpha[:, None] * rows, time_of_sigma(level, lifting.beta))
    return project_ball(f(z), radius).reshape(x.shape).astype(x.dtype)
