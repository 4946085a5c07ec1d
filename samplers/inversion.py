"""From data to noise: a sampler run backwards.

The probability flow has no direction, so the grid may be walked upwards: from the
samples at its last, lowest level to its first, and from there to sigma_max by the exact
flow of a Gaussian, the inverse of `samplers.start.Teleport`.  The noise found makes the
same samples again; changed a little, it makes samples that are changed a little.

A sampler ends with x0 = D(x, sigma_min), which is solved for x to first order:

    x = x0 + (x0 - D(x0, sigma_min)),

one Euler step from noise level 0 whose slope is taken at sigma_min.  What it neglects
is of the order (sigma_min^2 / variance)^2 relative to x0; directions in which the data
do not vary at all carry no trace of their noise, and nothing can bring it back.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser, as_pytree, expand_sigma
from samplers.heun import Heun
from samplers.schedules import check_grid
from samplers.solver import Plan, Solver
from samplers.start import require_below

__all__ = ["Inverse", "Inversion", "invert"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inverse:
    """noise = flow(x, sigma -> sigma_max) / sigma_max, the inverse of `Teleport`.

    Args:
        gaussian: The Gaussian of the training images.
        sigma_max: Noise level that the flow goes up to, data units.
    """

    gaussian: GaussianDenoiser
    sigma_max: ArrayLike = 80.0

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Return white noise, (B, *event), from samples at `sigma`.

        Raises:
            InputError: If `sigma` is above sigma_max or the shapes do not fit.
        """
        require_below(sigma, self.sigma_max)
        x = jnp.asarray(x)
        moved = self.gaussian.flow(x, sigma, self.sigma_max)
        return (moved / jnp.asarray(self.sigma_max)).astype(x.dtype)


class Inversion(NamedTuple):
    """What `invert` returns.

    Attributes:
        noise: (B, *event), white where the samples are those of the denoiser.
        nfe: Denoiser calls spent.
    """

    noise: Array
    nfe: int


def invert(
    denoiser: Denoiser,
    x: ArrayLike | Array,
    sigmas: ArrayLike,
    gaussian: GaussianDenoiser | None,
    *,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    sigma_max: float = 80.0,
) -> Inversion:
    """Return the noise from which a sampler makes given samples.

    `sample` with the same grid and solver and with ``Teleport(gaussian, sigma_max)``
    makes of this noise what was inverted, up to the error of the solver, on the way up
    and on the way down.

    Args:
        denoiser: Any `Denoiser`.
        x: Clean samples, (B, *event).
        sigmas: The grid of the sampler, (L,), decreasing and positive.
        gaussian: The Gaussian whose flow goes from ``sigmas[0]`` to sigma_max; None
            divides by ``sigmas[0]``, the inverse of `Prior`.
        solver: A deterministic one.
        sigma_max: Noise level that the start begins at, data units.

    Returns:
        Noise, and denoiser calls: one more than the solver makes on such a grid.

    Raises:
        InputError: If the grid or a shape is not as described, the solver is stochastic
            or cannot walk upwards, or (outside of jit) the denoiser returns NaN.
    """
    grid = check_grid(sigmas)[::-1].copy()
    x = jnp.asarray(x)
    expand_sigma(grid[0], x)
    inverse = None if gaussian is None else Inverse(gaussian, sigma_max)
    if inverse is not None:
        require_below(grid[-1], sigma_max)
    denoiser = as_pytree(denoiser)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    plan = jax.tree.map(lambda a: jnp.asarray(a, wide), _rising_plan(solver, grid))
    top, is_finite = _walk(solver, denoiser, x, jnp.asarray(grid[0], wide), plan)
    _require_finite(is_finite, grid)
    noise = top / grid[-1] if inverse is None else inverse(top, grid[-1])
    return Inversion(noise.astype(x.dtype), solver.nfe(grid.size) + 1)


def _rising_plan(solver: Solver, grid: np.ndarray) -> Plan:
    """Return the solver's plan of an increasing grid, or say that it has none."""
    name = type(solver).__name__
    if getattr(solver, "churn", 0):
        raise InputError(
            f"{name} adds noise of its own, which cannot be inverted; choose a "
            "deterministic solver such as Heun() or set churn=0"
        )
    with np.errstate(all="ignore"):
        plan = solver.plan(grid)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plan)):
        raise InputError(
            f"{name} cannot walk an increasing grid; choose another solver, such as "
            "Heun()"
        )
    return plan


@jax.jit
def _walk(
    solver: Solver, denoiser: Denoiser, x: Array, sigma: Array, plan: Plan
) -> tuple[Array, Array]:
    """Return x at the grid's other end, and where D was finite, (L + 1, B)."""

    def finite(denoised: Array) -> Array:
        return jnp.isfinite(denoised).reshape(len(denoised), -1).all(axis=1)

    def body(state: Any, coefficients: Plan) -> tuple[Any, Array]:
        state = solver.step(denoiser, state, coefficients)
        return state, finite(state.denoised)

    denoised = denoiser(x, sigma)
    lifted = (x + (x - denoised)).astype(x.dtype)
    first = solver.init(denoiser, lifted, sigma)
    last, later = jax.lax.scan(body, first, plan)
    start = jnp.stack([finite(denoised), finite(first.denoised)])
    return last.x, jnp.concatenate([start, later])


def _require_finite(is_finite: Array, grid: np.ndarray) -> None:
    """Refuse NaN, naming the first noise level and image; see `_walk`."""
    if isinstance(is_finite, Tracer) or np.all(is_finite):
        return
    row, image = np.argwhere(~np.asarray(is_finite))[0]
    raise InputError(
        f"the denoiser returned NaN or infinity for image {image} at sigma = "
        f"{grid[max(row - 1, 0)]:.4g}; call it there to see why"
    )
