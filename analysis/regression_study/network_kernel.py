"""The tangent kernel of a trained network, and whether its regression is the network.

A denoiser D(x, sigma) = skip(x, sigma) + N(x, sigma; theta) is, near the parameters
theta that training has found, linear in them with the kernel (arXiv 1806.07572)

    k(x, x') = tr(J J'^T) / d,   J = dN(x, sigma; theta) / dtheta,   (d, P).

Kernel regression with this k, from the first guess `skip`, is fitted to what the
network gives for some noised images and, apart from that, to the clean images; it then
says what the network gives for others.  Where the d-by-P Jacobians are too large the
trace is estimated with random signs on the outputs, in two halves: their difference
and the standard error over the signs are two views of the noise of the estimate.  All
images share the signs, so that the estimate is itself a kernel.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.kernels.empirical_ntk import Apply, traced_empirical_ntk
from analysis.kernels.probed_ntk import estimate_traced_ntk
from analysis.kernels.regression import Spectrum, decompose, fit, predict
from analysis.kernels.stop_curves import gcv
from configs.errors import InputError, require
from diffusion.adapters import VPNoiseDenoiser
from diffusion.denoiser import Denoiser
from diffusion.neural import Network, NeuralDenoiser
from samplers.model import Model

__all__ = [
    "KernelChoice",
    "NetworkKernel",
    "NoisedImages",
    "network_kernel",
]

_MOST_JACOBIAN_ENTRIES = 2**27  # of two blocks: half a GiB of float32
_NUM_TIMES = 120
# Beyond 1e5 / mu_1 a fit would follow the rounding of float32 in the kernel.
_TIMES_OF_LARGEST = np.geomspace(0.1, 1e5, _NUM_TIMES)


@dataclass(frozen=True)
class KernelChoice:
    """Which kernels are computed.

    Args:
        sigmas: Noise levels, data units; those that the network does not know are left
            out.
        num_images: Noised training images that are fitted.
        num_held_out: Noised images that are predicted.
        num_probes: Random signs on the outputs, an even number; the exact trace is
            taken where its Jacobians are small.
        block: Images whose gradients are held at once, two blocks of them.
        step: Checkpoint; None for the newest intact one.
    """

    sigmas: tuple[float, ...] = (0.05, 0.2, 1.0, 5.0)
    num_images: int = 64
    num_held_out: int = 64
    num_probes: int = 16
    block: int = 16
    step: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_images", "num_held_out"):
            value = getattr(self, name)
            require(value >= 2, name, value, "a whole number, >= 2")
        even = self.num_probes >= 4 and self.num_probes % 2 == 0
        require(even, "num_probes", self.num_probes, "an even number, >= 4")


class NoisedImages(NamedTuple):
    """Images at one noise level, those that are fitted before those that are predicted.

    Attributes:
        clean: (n + q, *event) images, data units.
        noised: (n + q, *event) clean + sigma noise.
        classes: (n + q,) what a network that is told classes is told.
        num_fitted: n.
    """

    clean: Array
    noised: Array
    classes: Array
    num_fitted: int


class NetworkKernel(NamedTuple):
    """The kernel of a network at one noise level, and what its regression says.

    Shares are of the squares of the labels clean - skip; explained is 1 less the
    squared error over that of the mean, for the part N of the network alone.

    Attributes:
        sigma: Noise level, data units.
        evals: (n,) eigenvalues of K / n on the fitted images, decreasing.
        effective_rank: (sum mu)^2 / sum mu^2.
        alignment: <K, Y Y^T> / (|K| |Y Y^T|) of K and labels Y, both centred.
        share: (n,) share of the labels in the first eigenvectors, cumulative.
        probe_error: Standard error over probes, root mean square over that of K.
        half_error: Half the difference of two halves of the probes, likewise.
        explained: Of N at the other images, by the regression of N.
        explained_by_clean: Likewise, by the regression of clean images.
        rms: Root mean square difference from the network there, regression of N.
        rms_by_clean: Likewise, regression of clean images.
        network_loss: Root mean square distance of D from the clean images there.
        clean_loss: Likewise, of the regression of clean images.
        skip_loss: Likewise, of the skip alone.
    """

    sigma: float
    evals: NDArray[np.float64]
    effective_rank: float
    alignment: float
    share: NDArray[np.float64]
    probe_error: float
    half_error: float
    explained: float
    explained_by_clean: float
    rms: float
    rms_by_clean: float
    network_loss: float
    clean_loss: float
    skip_loss: float


def network_kernel(
    model: Model, images: NoisedImages, sigma: float, key: Array, choice: KernelChoice
) -> NetworkKernel:
    """Measure the tangent kernel of a network at one noise level.

    Args:
        model: A network.
        images: What is fitted and what is predicted.
        sigma: Their noise level, data units.
        key: Of the probes.
        choice: How many probes, and how many images at once.

    Returns:
        Plain numbers, computed in float64 from the kernel and outputs in float32.

    Raises:
        InputError: If the model is no network.
    """
    denoiser, n = model.denoiser, images.num_fitted
    apply, params = _trained_part(denoiser, model.event_shape, model.num_classes)
    rows = _rows(denoiser, images, sigma, model.num_classes)
    outputs = _call(apply, params, rows)
    flat = (len(rows), -1)
    own = np.asarray(outputs, np.float64).reshape(flat)
    skip = _skip(denoiser, images.noised, sigma).reshape(flat)
    clean = np.asarray(images.clean, np.float64).reshape(flat)
    halves = _halves(apply, params, rows, key, choice)
    kernel = (halves[0].mean + halves[1].mean) / (2 * own.shape[1])
    spectrum = decompose(kernel[:n, :n])
    labels = clean - skip
    by_own = _regress(spectrum, kernel[n:, :n], own[:n])
    by_clean = _regress(spectrum, kernel[n:, :n], labels[:n])
    mu = np.asarray(spectrum.evals)
    return NetworkKernel(
        sigma=sigma,
        evals=mu,
        effective_rank=float(mu.sum() ** 2 / (mu**2).sum()),
        alignment=_alignment(kernel[:n, :n], labels[:n]),
        share=_cumulative_share(np.asarray(spectrum.evecs), labels[:n]),
        probe_error=_relative_error(halves),
        half_error=_half_difference(halves),
        explained=_explained(by_own, own[n:]),
        explained_by_clean=_explained(by_clean, own[n:]),
        rms=_rms(by_own - own[n:]),
        rms_by_clean=_rms(by_clean - own[n:]),
        network_loss=_rms(own[n:] - labels[n:]),
        clean_loss=_rms(by_clean - labels[n:]),
        skip_loss=_rms(labels[n:]),
    )


class _Half(NamedTuple):
    """An estimate of traces in float64, with its standard errors."""

    mean: NDArray[np.float64]
    standard_error: NDArray[np.float64]


@dataclass(frozen=True)
class _Output:
    """c_out F(x; c_noise) of rows (x, c_noise, c_out, one-hot class); hashable."""

    network: Network
    event: tuple[int, ...]

    def __call__(self, params: Any, rows: Array) -> Array:
        size = math.prod(self.event)
        x = rows[:, :size].reshape(-1, *self.event)
        c_noise, c_out, labels = rows[:, size], rows[:, size + 1], rows[:, size + 2 :]
        told = labels if labels.shape[1] else None
        output = self.network.apply(params, x, c_noise, labels=told)
        output = output[..., : self.event[-1]].reshape(len(rows), size)
        return c_out[:, None] * output


@dataclass(frozen=True)
class _PredictedNoisePart:
    """D - x of rows (x, sigma), D a noise predictor without its parameters."""

    predict: Any
    schedule: Any
    event: tuple[int, ...]

    def __call__(self, params: Any, rows: Array) -> Array:
        x = rows[:, :-1].reshape(-1, *self.event)
        model = jax.tree_util.Partial(self.predict, params)
        denoised = VPNoiseDenoiser(model, self.schedule)(x, rows[:, -1])
        return (denoised - x).reshape(len(rows), -1)


def _trained_part(
    denoiser: Denoiser, event: tuple[int, ...], num_classes: int
) -> tuple[Apply, Any]:
    """Return N as a pure function of parameters and rows, and its parameters."""
    if isinstance(denoiser, NeuralDenoiser):
        return _Output(denoiser.network, tuple(event)), denoiser.params
    if isinstance(denoiser, VPNoiseDenoiser) and not num_classes:
        model: Any = denoiser.model
        part = _PredictedNoisePart(model.func, denoiser.schedule, tuple(event))
        return part, model.args[0]
    raise InputError(
        f"a {type(denoiser).__name__} has no parameters that were trained; give a run"
    )


def _rows(
    denoiser: Denoiser, images: NoisedImages, sigma: float, num_classes: int
) -> Array:
    """Return what N takes, one row for each image, so that blocks can be cut."""
    x = images.noised.reshape(len(images.noised), -1)
    level = jnp.full((len(x), 1), sigma, x.dtype)
    if not isinstance(denoiser, NeuralDenoiser):
        return jnp.concatenate([x, level], axis=1)
    c = denoiser.preconditioning(denoiser.preconditioning.round_sigma(level))
    columns = [c.c_in * x, jnp.broadcast_to(c.c_noise, level.shape), c.c_out]
    if num_classes:
        columns.append(jax.nn.one_hot(images.classes, num_classes))
    return jnp.concatenate(columns, axis=1)


def _skip(denoiser: Denoiser, x: Array, sigma: float) -> NDArray[np.float64]:
    """Return what D is where N is zero."""
    if not isinstance(denoiser, NeuralDenoiser):
        return np.asarray(x, np.float64)
    level = jnp.full((len(x),) + (1,) * (x.ndim - 1), sigma, x.dtype)
    level = denoiser.preconditioning.round_sigma(level)
    return np.asarray(denoiser.preconditioning.skip(x, level), np.float64)


def _call(apply: Apply, params: Any, rows: Array) -> Array:
    return jax.jit(apply)(params, rows)


def _halves(
    apply: Apply, params: Any, rows: Array, key: Array, choice: KernelChoice
) -> list[_Half]:
    """Return two estimates of the trace among all rows; the exact one if small."""
    outputs = jax.eval_shape(apply, params, rows[:1]).size
    size = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))
    if 2 * choice.block * outputs * size <= _MOST_JACOBIAN_ENTRIES:
        exact = traced_empirical_ntk(apply, params, rows, block=choice.block)
        whole = np.asarray(exact, np.float64)
        return [_Half(whole, np.zeros_like(whole))] * 2
    found = []
    for half in range(2):
        one = estimate_traced_ntk(
            apply,
            params,
            rows,
            None,
            jax.random.fold_in(key, half),
            num_probes=choice.num_probes // 2,
            block=choice.block,
        )
        found.append(_Half(*(np.asarray(part, np.float64) for part in one)))
    return found


def _regress(spectrum: Spectrum, cross: NDArray, labels: NDArray) -> NDArray:
    """Return the regression at the stop of generalized cross-validation, (q, d)."""
    with jax.enable_x64(True):
        model = fit(spectrum, labels)
        times = _TIMES_OF_LARGEST / float(spectrum.evals[0])
        best = times[int(np.argmin(np.asarray(gcv(model, times))))]
        return np.asarray(predict(model, cross, best))


def _alignment(kernel: NDArray, labels: NDArray) -> float:
    centred = labels - labels.mean(axis=0)
    k = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    gram = centred @ centred.T
    return float((k * gram).sum() / (np.linalg.norm(k) * np.linalg.norm(gram)))


def _cumulative_share(vectors: NDArray, labels: NDArray) -> NDArray[np.float64]:
    squares = ((vectors.T @ labels) ** 2).sum(axis=1)
    return np.cumsum(squares) / (labels**2).sum()


def _relative_error(halves: list[_Half]) -> float:
    first, second = halves
    variance = (first.standard_error**2 + second.standard_error**2) / 4
    whole = (first.mean + second.mean) / 2
    return float(np.sqrt(np.sum(variance) / np.sum(whole**2)))


def _half_difference(halves: list[_Half]) -> float:
    first, second = halves
    whole = np.linalg.norm(first.mean + second.mean)
    return float(np.linalg.norm(first.mean - second.mean) / whole)


def _explained(found: NDArray, truth: NDArray) -> float:
    spread = ((truth - truth.mean(axis=0)) ** 2).sum()
    return float(1 - ((found - truth) ** 2).sum() / spread)


def _rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(values**2)))
