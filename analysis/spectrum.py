"""Which features a sampler decides when: one principal direction at a time.

Under the Gaussian model with variance lambda_k along u_k the denoised sample gains its
coefficient along the trajectory as

    u_k.(D_sigma - mean) / u_k.(x_0 - mean) = sqrt(lambda_k / (lambda_k + sigma^2)),

half of it at sigma = sqrt(3 lambda_k): large variances, the layout, come first.  A step
delta u_k taken at sigma' moves the finished sample by

    delta sqrt(lambda_k / (lambda_k + sigma'^2)) u_k

and by nothing off u_k.  Both are measured here on any denoiser.  Source: Wang &
Vastola, arXiv 2303.02490 and 2412.09726.

A grid ends at sigma_e > 0, where the finished sample is D; the predictions are exact
for that, and differ from those above by sigma_e^2 / lambda_k.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from analysis.trajectories import DenoiserOf, trace_blocks
from configs.errors import InputError, is_positive
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser
from samplers import Heun, Solver, integrate
from samplers.schedules import check_grid

__all__ = [
    "Emergence",
    "PerturbationResponse",
    "emergence_rows",
    "measure_emergence",
    "perturbation_response",
    "perturbation_rows",
]

_NEGLIGIBLE = 1e-9  # of the largest variance


class Emergence(NamedTuple):
    """When the coefficients of the denoised sample appear.

    Attributes:
        directions: (K,) indices of principal directions.
        variances: (K,) their variances, squared data units.
        sigmas: (L,) noise grid, data units.
        num_samples: Trajectories behind every number.
        predicted: (L, K) share of the final coefficient, by the Gaussian.
        measured: (L, K) slope of the coefficient over the final one, across samples.
        standard_error: (L, K) of that slope; nan for fewer than three samples.
        half_predicted: (K,) sqrt(3 lambda_k), data units.
        half_measured: (K,) noise level at which the slope passes one half for the first
            time; nan where it does not on the grid.
    """

    directions: NDArray[np.int64]
    variances: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    num_samples: int
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    half_predicted: NDArray[np.float64]
    half_measured: NDArray[np.float64]


class PerturbationResponse(NamedTuple):
    """What a step along a principal direction does to the finished sample.

    Attributes:
        directions: (K,) indices of principal directions.
        variances: (K,) their variances, squared data units.
        levels: (P,) noise levels at which the step is taken, data units.
        num_samples: Trajectories behind every number.
        size: Length of the step relative to the noise level.
        predicted: (P, K) change along the direction per length of the step, by the
            Gaussian.
        measured: (P, K) the same of the denoiser, averaged.
        standard_error: (P, K) of that average; nan for one sample.
        off: (P, K) root mean square length of the change off the direction, per length
            of the step; the Gaussian predicts 0.
    """

    directions: NDArray[np.int64]
    variances: NDArray[np.float64]
    levels: NDArray[np.float64]
    num_samples: int
    size: float
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    off: NDArray[np.float64]


def measure_emergence(
    denoiser: Denoiser,
    gaussian: GaussianDenoiser,
    key: Array,
    *,
    sigmas: ArrayLike,
    num_samples: int = 128,
    directions: Sequence[int] | None = None,
    num_directions: int = 12,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    block_size: int = 64,
    denoiser_of: DenoiserOf | None = None,
) -> Emergence:
    """Measure when the coefficients of the denoised sample appear.

    Args:
        denoiser: Any `Denoiser`, usually a network.
        gaussian: The Gaussian of its training images.
        key: A `jax.random.key`; trajectory i uses ``fold_in(key, i)``.
        sigmas: (L,) noise grid.
        num_samples: Trajectories.
        directions: Principal directions, 0 the largest; None for some, spread
            geometrically over those in which the data vary.
        num_directions: How many of these at most.
        solver: How to move along the grid.
        block_size: Trajectories at once.
        denoiser_of: See `analysis.trajectories.trace_blocks`.

    Returns:
        Prediction and measurement at every grid point.

    Raises:
        InputError: If a direction is out of range, or the grid or a number is not as
            described.
    """
    grid = check_grid(sigmas)
    chosen = _chosen(gaussian, directions, num_directions)
    basis = jnp.asarray(gaussian.basis)[:, chosen]
    parts = []
    shape = (num_samples, *gaussian.mean.shape)
    for trace in trace_blocks(
        denoiser,
        key,
        shape,
        grid,
        solver=solver,
        block_size=block_size,
        denoiser_of=denoiser_of,
    ):
        flat = trace.denoised.reshape(*trace.denoised.shape[:2], -1)
        centred = flat - jnp.ravel(gaussian.mean)
        found = jnp.matmul(centred, basis, precision="highest")
        parts.append(np.asarray(found, np.float64))
    measured, error = _slopes(np.concatenate(parts, axis=1))
    variances = np.asarray(gaussian.variances, np.float64)[chosen]
    total = variances + grid[:, None] ** 2
    return Emergence(
        directions=chosen,
        variances=variances,
        sigmas=grid,
        num_samples=num_samples,
        predicted=np.sqrt(total[-1] / total),
        measured=measured,
        standard_error=error,
        half_predicted=np.sqrt(3 * variances),
        half_measured=np.array([_half_level(grid, one) for one in measured.T]),
    )


def _slopes(
    coefficients: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return slopes over the last level, (L, K), and their standard errors.

    The errors allow for a spread that depends on the sample.
    """
    centred = coefficients - coefficients.mean(axis=1, keepdims=True)
    final = centred[-1]
    power = np.sum(final**2, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.sum(centred * final, axis=1) / power
        rest = centred - slopes[:, None] * final
        errors = np.sqrt(np.sum((rest * final) ** 2, axis=1)) / power
    count = coefficients.shape[1]
    if count < 3:
        return slopes, np.full_like(slopes, np.nan)
    return slopes, errors * np.sqrt(count / (count - 2))


def _half_level(sigmas: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Return where shares (L,) first pass one half on the way down the grid.

    log(1/share^2 - 1) is linear in log sigma under the Gaussian, so that is what is
    interpolated.
    """
    above = shares >= 0.5
    if above[0] or not above.any():
        return float("nan")
    after = int(np.argmax(above))
    pair = slice(after - 1, after + 1)
    bounded = np.clip(shares[pair], 1e-6, 1 - 1e-6)
    heights = np.log(bounded**-2 - 1)
    weight = (heights[0] - np.log(3)) / (heights[0] - heights[1])
    logs = np.log(sigmas[pair])
    return float(np.exp(logs[0] + weight * (logs[1] - logs[0])))


def perturbation_response(
    denoiser: Denoiser,
    gaussian: GaussianDenoiser,
    key: Array,
    *,
    sigmas: ArrayLike,
    levels: Sequence[float] = (40.0, 10.0, 2.5, 0.6, 0.15),
    num_samples: int = 64,
    directions: Sequence[int] | None = None,
    num_directions: int = 12,
    size: float = 0.1,
    solver: Solver = Heun(),  # noqa: B008, a frozen value
    block_size: int = 64,
    denoiser_of: DenoiserOf | None = None,
) -> PerturbationResponse:
    """Step off the trajectories and measure where they end.

    Args:
        denoiser: Any `Denoiser`, usually a network.
        gaussian: The Gaussian of its training images.
        key: A `jax.random.key`; trajectory i uses ``fold_in(key, i)``.
        sigmas: (L,) noise grid.
        levels: Noise levels at which to step; the nearest grid points are taken.  Each
            costs K + 1 samplings of the rest of the grid.
        num_samples: Trajectories.
        directions: Principal directions, 0 the largest; None for some, spread
            geometrically over those in which the data vary.
        num_directions: How many of these at most.
        size: Length of the step relative to the noise level.
        solver: How to move along the grid; a deterministic one.
        block_size: Trajectories at once.
        denoiser_of: See `analysis.trajectories.trace_blocks`.

    Returns:
        Prediction and measurement for every level and direction.

    Raises:
        InputError: If a direction is out of range, or the grid or a number is not as
            described.
    """
    grid = check_grid(sigmas)
    if not is_positive(size) or not levels or not all(map(is_positive, levels)):
        raise InputError(
            f"size is {size} and levels are {levels}; all must be finite and above 0, "
            "with one level at least"
        )
    chosen = _chosen(gaussian, directions, num_directions)
    places = sorted({int(np.argmin(np.abs(np.log(grid / s)))) for s in levels})
    steps = jnp.asarray(gaussian.basis)[:, chosen].T
    steps = steps.reshape(len(chosen), *gaussian.mean.shape)
    parts, done = [], 0
    shape = (num_samples, *gaussian.mean.shape)
    for trace in trace_blocks(
        denoiser,
        key,
        shape,
        grid,
        solver=solver,
        block_size=block_size,
        denoiser_of=denoiser_of,
    ):
        numbers = np.arange(done, done + trace.x.shape[1])
        model = denoiser if denoiser_of is None else denoiser_of(numbers)
        changes = [
            _changes(model, trace.x[place], steps, grid[place:], size, solver)
            for place in places
        ]
        parts.append(np.stack(changes))
        done += len(numbers)
    # (P, K, along and off, n)
    along, off = np.moveaxis(np.concatenate(parts, axis=-1), 2, 0)
    spread = along.std(axis=-1, ddof=1) if num_samples > 1 else np.nan * along[..., 0]
    variances = np.asarray(gaussian.variances, np.float64)[chosen]
    level_total = grid[places, None] ** 2 + variances
    end_total = grid[-1] ** 2 + variances
    return PerturbationResponse(
        directions=chosen,
        variances=variances,
        levels=grid[places],
        num_samples=num_samples,
        size=size,
        predicted=variances / np.sqrt(level_total * end_total),
        measured=along.mean(axis=-1),
        standard_error=spread / np.sqrt(num_samples),
        off=np.sqrt(np.mean(off, axis=-1)),
    )


def _changes(
    denoiser: Denoiser,
    x: Array,
    steps: Array,
    sigmas: NDArray[np.float64],
    size: float,
    solver: Solver,
) -> NDArray[np.float64]:
    """Return changes of the finished samples per step, (K, 2, B).

    Along the direction, and squared off it.
    """
    length = size * sigmas[0]
    before = integrate(solver, denoiser, x, sigmas).x
    found = []
    for step in steps:
        moved = (x + length * step).astype(x.dtype)
        change = np.asarray(
            integrate(solver, denoiser, moved, sigmas).x - before, np.float64
        ).reshape(len(x), -1)
        change, unit = change / length, np.asarray(step, np.float64).ravel()
        along = change @ unit
        off = np.sum((change - np.outer(along, unit)) ** 2, axis=1)
        found.append(np.stack([along, off]))
    return np.stack(found)


def _chosen(
    gaussian: GaussianDenoiser, directions: Sequence[int] | None, most: int
) -> NDArray[np.int64]:
    """Return the directions asked for, or some from the largest to the smallest."""
    variances = np.asarray(gaussian.variances)
    if directions is None:
        # Pixels that never change leave variances that are rounding.
        least = _NEGLIGIBLE * variances.max(initial=0)
        count = int(np.sum(variances > least))
        spread = np.geomspace(1, max(count, 1), max(most, 1)).round()
        directions = [int(index) for index in np.unique(spread) - 1]
    count = int(np.sum(variances > 0))
    if not directions or not all(0 <= k < count for k in directions):
        raise InputError(
            f"directions are {tuple(directions)}; each must be in [0, {count}), the "
            "principal directions of variance above 0"
        )
    return np.asarray(directions, np.int64)


def emergence_rows(emergence: Emergence) -> list[dict[str, Any]]:
    """Return a row of plain numbers per direction and grid point, for a table."""
    return [
        {
            "direction": int(direction),
            "variance": float(emergence.variances[index]),
            "sigma": float(sigma),
            "predicted": float(emergence.predicted[level, index]),
            "measured": float(emergence.measured[level, index]),
            "standard_error": float(emergence.standard_error[level, index]),
            "half_predicted": float(emergence.half_predicted[index]),
            "half_measured": float(emergence.half_measured[index]),
        }
        for index, direction in enumerate(emergence.directions)
        for level, sigma in enumerate(emergence.sigmas)
    ]


def perturbation_rows(response: PerturbationResponse) -> list[dict[str, Any]]:
    """Return a row of plain numbers per level and direction, for a table."""
    return [
        {
            "sigma": float(sigma),
            "direction": int(direction),
            "variance": float(response.variances[index]),
            "predicted": float(response.predicted[level, index]),
            "measured": float(response.measured[level, index]),
            "standard_error": float(response.standard_error[level, index]),
            "off": float(response.off[level, index]),
        }
        for level, sigma in enumerate(response.levels)
        for index, direction in enumerate(response.directions)
    ]
