"""Where sampling begins: a start turns white noise into x at the first grid point.

`Prior` takes sigma * noise.  `Teleport` takes sigma_max * noise and moves it to the
first grid point with the exact probability flow of a Gaussian: no network call is spent
above that point (Wang & Vastola, arXiv 2412.09726).  `MomentMatched` draws from the
noised Gaussian itself: the limit of infinite sigma_max, with the mean added (Raya &
Ambrogioni, arXiv 2305.19693).  `ClassTeleport` has a Gaussian for each class, and
`AnalyticPrefix` follows the flow of any closed form, which leads further down than a
single Gaussian does.
"""

import functools
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser, MixtureDenoiser
from diffusion.denoiser import (
    Denoiser,
    as_pytree,
    expand_per_sample,
    expand_sigma,
)
from samplers.runge_kutta import (
    Arrival,
    dormand_prince,
    probability_flow,
    require_arrival,
)

__all__ = [
    "AnalyticPrefix",
    "ClassTeleport",
    "MomentMatched",
    "Prior",
    "Start",
    "Teleport",
    "require_below",
]

_MAX_STEPS = 10_000  # of an analytic prefix, which costs no network call


class Start(Protocol):
    """Anything that turns white noise into samples at a noise level."""

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return x at `sigma`, (B, *event), from white noise of that shape."""
        ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class Prior:
    """x = sigma * noise: the data's own spread is neglected against sigma."""

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return sigma * noise, (B, *event)."""
        noise = jnp.asarray(noise)
        return (jnp.asarray(sigma) * noise).astype(noise.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teleport:
    """x = flow(sigma_max * noise, sigma_max -> sigma) of a Gaussian.

    Args:
        gaussian: The Gaussian of the training images.
        sigma_max: Noise level from which the flow starts, data units; the mean is not
            added there, just as in `Prior`.
    """

    gaussian: GaussianDenoiser
    sigma_max: ArrayLike = 80.0

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return samples at `sigma`, (B, *event).

        Raises:
            InputError: If `sigma` is above sigma_max or the shapes do not fit.
        """
        require_below(sigma, self.sigma_max)
        noise = jnp.asarray(noise)
        x = (jnp.asarray(self.sigma_max) * noise).astype(noise.dtype)
        return self.gaussian.flow(x, self.sigma_max, sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentMatched:
    """x = mean + (covariance + sigma^2 I)^(1/2) noise of a Gaussian.

    Unlike `Teleport` it has no error from a finite sigma_max.

    Args:
        gaussian: The Gaussian of the training images.
    """

    gaussian: GaussianDenoiser

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return samples at `sigma`, (B, *event).

        Raises:
            InputError: If the shapes do not fit.
        """
        return self.gaussian.from_white(noise, sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassTeleport:
    """x = flow(sigma_max * noise, sigma_max -> sigma) of the Gaussian of each class.

    The classes that occur are visited one after another, each with the whole batch: 4 D
    R B multiplications per class that occurs, and beside the parameters no more memory
    than a few batches.

    Args:
        classes: Component k is the Gaussian of class k; see `fit_class_mixture`.  Its
            weights play no part.
        labels: (B,) integers in [0, K), the classes of the samples.
        sigma_max: Noise level from which the flow starts, data units.
    """

    classes: MixtureDenoiser
    labels: ArrayLike
    sigma_max: ArrayLike = 80.0

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return samples at `sigma`, (B, *event).

        Raises:
            InputError: If `sigma` is above sigma_max, or labels or shapes do not fit.
        """
        require_below(sigma, self.sigma_max)
        noise = jnp.asarray(noise)
        labels = self._checked_labels(noise)
        x = (jnp.asarray(self.sigma_max) * noise).astype(noise.dtype)
        classes = self.classes

        def visit(moved: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
            k, *parameters = part
            is_member = labels == k

            def move() -> Array:
                flowed = GaussianDenoiser(*parameters).flow(x, self.sigma_max, sigma)
                return jnp.where(expand_per_sample(is_member, x), flowed, moved)

            return jax.lax.cond(jnp.any(is_member), move, lambda: moved), None

        parts = (classes.means, classes.bases, classes.variances)
        parts = (jnp.arange(len(classes.means)), *parts, classes.residual_variances)
        return jax.lax.scan(visit, jnp.full_like(x, jnp.nan), parts)[0]

    def _checked_labels(self, noise: Array) -> Array:
        """Return the labels; refuse them, or statistics of other shapes."""
        if not isinstance(self.classes, MixtureDenoiser):
            raise InputError(
                f"classes is a {type(self.classes).__name__}; give a MixtureDenoiser "
                "whose component k is the Gaussian of class k (fit_class_mixture)"
            )
        jax.eval_shape(self.classes, noise, jnp.ones(()))  # refuses shapes that differ
        labels, num_classes = jnp.asarray(self.labels), len(self.classes.means)
        if labels.shape != noise.shape[:1] or not jnp.issubdtype(
            labels.dtype, jnp.integer
        ):
            raise InputError(
                f"labels have shape {labels.shape} and dtype {labels.dtype}; give "
                f"({len(noise)},) integers, one per sample"
            )
        if not isinstance(labels, Tracer):
            wrong = np.asarray((labels < 0) | (labels >= num_classes))
            if wrong.any():
                raise InputError(
                    f"label {labels[int(np.argmax(wrong))]} is not in "
                    f"[0, {num_classes}), the classes that have a Gaussian"
                )
        return labels


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnalyticPrefix:
    """x = sigma_max * noise, moved to sigma by the flow of a closed-form denoiser.

    There is no formula for the flow of a mixture or of the training set, so it is
    integrated (`samplers.runge_kutta`), to an accuracy far below what a grid reaches.
    A network is not called.  Memory is that of about fifteen batches: .4 GB for 2,048
    images of 32x32x3.

    Args:
        denoiser: Such as a `MixtureDenoiser` or an `EmpiricalDenoiser`.
        sigma_max: Noise level from which the flow starts, data units; as in `Prior`,
            nothing is added there.
        rtol: Error of a step relative to the noise level; None is 1e-5, or 1e-8 for
            noise of float64.
    """

    denoiser: Denoiser
    sigma_max: ArrayLike = 80.0
    rtol: float | None = field(default=None, metadata={"static": True})

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return samples at `sigma`, (B, *event).

        Raises:
            InputError: If `sigma` is above sigma_max, the shapes do not fit, or the
                flow does not arrive (inside of jit, the samples concerned are NaN).
        """
        require_below(sigma, self.sigma_max)
        noise = jnp.asarray(noise)
        x = (jnp.asarray(self.sigma_max) * noise).astype(noise.dtype)
        expand_sigma(sigma, x)
        denoiser = as_pytree(self.denoiser)
        arrival = _follow(denoiser, x, self.sigma_max, sigma, self.rtol)
        require_arrival(arrival, sigma, _MAX_STEPS)
        return arrival.x


@functools.partial(jax.jit, static_argnums=4)
def _follow(
    denoiser: Denoiser,
    x: Array,
    sigma_from: ArrayLike,
    sigma_to: ArrayLike,
    rtol: float | None,
) -> Arrival:
    flow = probability_flow(denoiser)
    return dormand_prince(
        flow, x, sigma_from, sigma_to, rtol=rtol, max_steps=_MAX_STEPS
    )


def require_below(sigma: ArrayLike, sigma_max: ArrayLike) -> None:
    """Refuse a noise level above the one that a flow starts from.

    Raises:
        InputError: Naming both; traced ones pass unseen.
    """
    if isinstance(sigma, Tracer) or isinstance(sigma_max, Tracer):
        return
    if np.any(np.asarray(sigma) > np.asarray(sigma_max)):
        raise InputError(
            f"sigma_skip is {sigma}, above sigma_max = {sigma_max}; teleport to a "
            "lower noise level or raise sigma_max"
        )
