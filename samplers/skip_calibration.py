"""How far a network is from a Gaussian along its own paths, measured once.

A few samples are followed from x = sigma_max n down to the lowest noise level with a
fine solver.  At every level the residual

    r_i(sigma) = D_network(x_i(sigma), sigma) - D_gaussian(x_i(sigma), sigma)

is kept: its rms, delta(sigma), says where a teleport may end, and its course what a
teleport or a solver would miss (`samplers.skip`).  The paths are the network's own, not
x0 + sigma n, because then the residual forces the Gaussian's flow along exactly these
paths.

Beside it stands what an isotropic fit misses, D = c + gain x with the best constant
image and one gain per level.  With its best constant too, a Gaussian of the right
images is several times better than that.  One whose directions are of something else is
not, and is refused (`require_matched`); one whose mean is off is not refused, but every
teleport by it is predicted to be bad.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from configs.errors import InputError, require
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser, as_pytree
from samplers.measured_files import read_measured, write_measured
from samplers.schedules import check_grid
from samplers.solver import Solver
from samplers.unipc import UniPC

__all__ = [
    "LoadedSkipCalibration",
    "SkipCalibration",
    "calibrate_skip",
    "load_skip_calibration",
    "require_matched",
    "save_skip_calibration",
]

_KIND = "skip calibration"
_NAMES = ("sigmas", "residuals", "noise", "isotropic_rms")
_SOLVER = UniPC(order=3)
_JUDGED = (1.0, 40.0)  # below, small variances decide; above, all outputs are the mean


class SkipCalibration(NamedTuple):
    """Residuals along the paths of B samples.

    Attributes:
        sigmas: (N,) decreasing noise levels, data units, float64.
        residuals: D_network - D_gaussian on the paths, (N, B, *event), data units.
        noise: (B, *event); the paths begin at sigmas[0] noise.
        isotropic_rms: (N,) rms that the best D = c + gain x misses, data units.
        weights: (*event), how much each entry counts in an rms; None for all alike.
    """

    sigmas: NDArray[np.float64]
    residuals: NDArray[Any]
    noise: NDArray[Any]
    isotropic_rms: NDArray[np.float64]
    weights: NDArray[np.float64] | None = None

    @property
    def rms(self) -> NDArray[np.float64]:
        """delta(sigma), rms of the residuals at each level, (N,)."""
        return np.array([_rms(level, self.weights) for level in self.residuals])

    def rms_of(self, values: NDArray[Any]) -> float:
        """Return the rms of (B, *event) values over samples and weighted entries."""
        return _rms(values, self.weights)


class LoadedSkipCalibration(NamedTuple):
    """What a file holds.

    Attributes:
        calibration: The residuals.
        about: What they were measured on, as it was given.
    """

    calibration: SkipCalibration
    about: dict[str, Any]


def calibrate_skip(
    denoiser: Denoiser,
    gaussian: GaussianDenoiser,
    sigmas: ArrayLike,
    key: Array,
    *,
    num_samples: int = 32,
    batch_size: int = 32,
    weights: ArrayLike | None = None,
    denoiser_of: Callable[[NDArray[np.intp]], Denoiser] | None = None,
    after_level: Callable[[], None] = lambda: None,
) -> SkipCalibration:
    """Follow a few samples and keep what the Gaussian misses.

    Costs num_samples calls per level.

    Args:
        denoiser: The network.
        gaussian: The Gaussian of its training images.
        sigmas: (N,) decreasing noise levels, N >= 4, from sigma_max to sigma_min; 32 of
            them, uniform in log sigma, are fine enough (20 leave the paths an error of
            .0024 rms on a mixture of CIFAR-10).
        key: A `jax.random.key`; sample i uses ``fold_in(key, i)``.
        num_samples: Samples to follow.
        batch_size: Samples at once.
        weights: (*event), how much each entry counts; None for all alike.
        denoiser_of: Given the numbers of the samples of a batch, the denoiser for them,
            for networks that are told classes; None takes `denoiser` for all.
        after_level: Called after each level of each batch, N ceil(num_samples /
            batch_size) times in all; a place to show progress.

    Returns:
        See `SkipCalibration`.

    Raises:
        InputError: If an argument is out of range or an output is not finite.
    """
    grid = check_grid(sigmas)
    require(grid.size >= 4, "number of sigmas", grid.size, "at least 4")
    require(num_samples >= 2, "num_samples", num_samples, "at least 2")
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    event = jnp.shape(gaussian.mean)
    kept = []
    for first in range(0, num_samples, batch_size):
        # The last batch is filled up, so that one program serves all.
        numbers = np.arange(first, first + batch_size)
        one = denoiser
        if denoiser_of is not None:
            one = denoiser_of(np.minimum(numbers, num_samples - 1))
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(numbers))
        noise = jax.vmap(lambda k: jax.random.normal(k, event))(keys)
        path = _follow(as_pytree(one), gaussian, noise, grid, after_level)
        kept.append(_Path(*(part[:, : num_samples - first] for part in path)))
    whole = _Path(*(np.concatenate(parts, axis=1) for parts in zip(*kept, strict=True)))
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        require(weights.shape == event, "shape of weights", weights.shape, str(event))
    return SkipCalibration(
        grid,
        whole.denoised - whole.gaussian,
        whole.x[0] / grid[0].astype(whole.x.dtype),
        _isotropic_rms(whole, weights),
        weights,
    )


def require_matched(calibration: SkipCalibration) -> None:
    """Refuse a Gaussian that is no better than an isotropic fit.

    Each is granted the best constant image at each level, so that directions are judged
    and not the mean.  Their rms are compared in the geometric mean over noise levels
    between 1 and 40 (all levels where there is none).  Measured ratios: .18 to .26
    for the images' own Gaussian (digits, glyphs, CIFAR-10; of rank 8 .49), .94 and .98
    for one of the other half of the classes of digits and glyphs, 1.2 to 1.4 for one of
    shuffled pixels.

    Raises:
        InputError: If the ratio is 1 or more.
    """
    sigmas, residuals = calibration.sigmas, calibration.residuals
    judged = (sigmas >= _JUDGED[0]) & (sigmas <= _JUDGED[1])
    judged = judged if judged.any() else np.ones_like(judged)
    centred = [level - level.mean(axis=0) for level in residuals[judged]]
    rms = [calibration.rms_of(level) for level in centred]
    smallest = np.finfo(np.float32).tiny
    gaussian, isotropic = (
        float(np.exp(np.mean(np.log(np.maximum(values, smallest)))))
        for values in (rms, calibration.isotropic_rms[judged])
    )
    if gaussian >= isotropic > smallest:
        raise InputError(
            "the Gaussian's statistics are of another data set: at noise levels "
            f"{sigmas[judged].min():.2g} to {sigmas[judged].max():.2g} it misses the "
            f"model's output by {gaussian:.2g} rms, and one gain for all directions by "
            f"{isotropic:.2g}; fit one to the model's own training images, train a "
            "network that has hardly begun, or do not teleport"
        )


def save_skip_calibration(
    path: str | Path, calibration: SkipCalibration, *, about: dict[str, Any]
) -> None:
    """Write a calibration to a ``.npz``, atomically; residuals and noise as float32.

    Args:
        path: The file.
        calibration: What to keep.
        about: What it was measured on, plain values for JSON.

    Raises:
        OSError: If the file cannot be written.
    """
    arrays = {
        "sigmas": np.asarray(calibration.sigmas, np.float64),
        "residuals": np.asarray(calibration.residuals, np.float32),
        "noise": np.asarray(calibration.noise, np.float32),
        "isotropic_rms": np.asarray(calibration.isotropic_rms, np.float64),
    }
    if calibration.weights is not None:
        arrays["weights"] = np.asarray(calibration.weights, np.float64)
    write_measured(path, _KIND, arrays, about)


def load_skip_calibration(path: str | Path) -> LoadedSkipCalibration:
    """Read what `save_skip_calibration` wrote.

    Args:
        path: The ``.npz``.

    Raises:
        InputError: If the file is missing or is not one of these.
    """
    arrays, about = read_measured(path, _KIND, _NAMES, "measure one first")
    weights = arrays.get("weights")
    sigmas, residuals, noise, isotropic_rms = (arrays[name] for name in _NAMES)
    found = SkipCalibration(sigmas, residuals, noise, isotropic_rms, weights)
    levels = check_grid(found.sigmas).size
    shapes_fit = (
        found.residuals.shape == (levels, *found.noise.shape)
        and found.isotropic_rms.shape == (levels,)
        and (weights is None or weights.shape == found.noise.shape[1:])
    )
    if not shapes_fit or not all(np.isfinite(arrays[n]).all() for n in _NAMES):
        raise InputError(f"{path} is damaged; measure the skip calibration again")
    return LoadedSkipCalibration(found, about)


class _Path(NamedTuple):
    """Where samples were and what both models said there, (N, B, *event) each."""

    x: NDArray[Any]
    denoised: NDArray[Any]
    gaussian: NDArray[Any]


def _follow(
    denoiser: Denoiser,
    gaussian: GaussianDenoiser,
    noise: Array,
    grid: NDArray[np.float64],
    after_level: Callable[[], None],
) -> _Path:
    """Follow a batch from grid[0] noise along all of the grid."""
    wide = jnp.promote_types(noise.dtype, jnp.float32)
    levels = jnp.asarray(grid, wide)
    plan = jax.tree.map(lambda a: jnp.asarray(a, wide), _SOLVER.plan(grid))
    state = _begin(
        _SOLVER, denoiser, (levels[0] * noise).astype(noise.dtype), levels[0]
    )
    rows = []
    for i in range(grid.size):
        if i:
            coefficients = jax.tree.map(lambda a, i=i: a[i - 1], plan)
            state = _advance(_SOLVER, denoiser, state, coefficients)
        answers = state.x, state.denoised, _call(gaussian, state.x, levels[i])
        rows.append([np.asarray(answer) for answer in answers])
        if not np.isfinite(rows[-1][1]).all():
            raise InputError(
                f"the model's output is not finite at sigma = {grid[i]:g}; the "
                "checkpoint or the noise level does not fit"
            )
        after_level()
    return _Path(*(np.stack(parts) for parts in zip(*rows, strict=True)))


@jax.jit
def _call(denoiser: Denoiser, x: Array, sigma: Array) -> Array:
    return denoiser(x, sigma)


@jax.jit
def _begin(solver: Solver, denoiser: Denoiser, x: Array, sigma: Array) -> Any:
    return solver.init(denoiser, x, sigma)


@jax.jit
def _advance(solver: Solver, denoiser: Denoiser, state: Any, coefficients: Any) -> Any:
    return solver.step(denoiser, state, coefficients)


def _isotropic_rms(
    path: _Path, weights: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return what the best D = c + gain x misses at each level, (N,)."""
    share = 1.0 if weights is None else weights
    found = []
    for level in zip(path.x, path.denoised, strict=True):
        x, denoised = (v - v.mean(axis=0, dtype=np.float64) for v in level)
        gain = np.sum(share * x * denoised) / np.sum(share * x**2)
        found.append(_rms(denoised - gain * x, weights))
    return np.array(found)


def _rms(values: NDArray[Any], weights: NDArray[np.float64] | None) -> float:
    squares = np.asarray(values, np.float64) ** 2
    if weights is not None:
        squares = squares * (weights / np.mean(weights))
    return float(np.sqrt(np.mean(squares)))
