"""Training of auto-encoders: one noise level, or several that fall to the last.

Adam with a cosine decay on the denoising loss over sigma^2 or on the contractive loss
over sigma^2; or L-BFGS on all samples at once, each with a few replicas of noise that
stay fixed, which is how the networks of one layer of arXiv 1211.4246's time were
trained and what they still need.

A schedule trains at each of its noise levels in turn, starting from the parameters of
the level before; in the residual form r = x + sigma net(x / scale) takes the sigma of
the level, so that the network's output stays of size 1.  What comes out is the
auto-encoder of the last level.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.autoencoder.contraction import rcae_loss
from analysis.autoencoder.network import AutoencoderDenoiser, AutoencoderNetwork
from analysis.autoencoder.reconstruction import dae_loss
from analysis.kernels.checks import check_finite
from configs.errors import InputError, is_positive, require, require_choice

__all__ = [
    "OBJECTIVES",
    "OPTIMIZERS",
    "AutoencoderSettings",
    "TrainedAutoencoder",
    "sigma_schedule",
    "train_autoencoder",
]

OBJECTIVES = ("denoising", "contraction")
OPTIMIZERS = ("adam", "lbfgs")
_MEMORY = 20


@dataclass(frozen=True)
class AutoencoderSettings:
    """An auto-encoder and its training.

    Args:
        sigmas: Noise levels, decreasing, data units; one is no schedule.
        hidden: Width of each hidden layer.
        activation: "silu" or "tanh".
        form: "residual" or "direct".
        scale: Divides x, data units; None takes the data's standard deviation.
        squash: c of an output c tanh(.), or None.
        objective: "denoising" or "contraction".
        probes: Of the contraction, per sample; None takes the exact Jacobian.
        optimizer: "adam", or "lbfgs" on all samples at once.
        num_steps: Steps, over all levels together.
        batch_size: Adam's samples per step, drawn with replacement.
        learning_rate: Of Adam's first step; it falls to 0 as a cosine.
        replicas: Of each sample for L-BFGS, with noise that is drawn once.
    """

    sigmas: tuple[float, ...] = (0.01,)
    hidden: tuple[int, ...] = (128, 128, 128)
    activation: str = "silu"
    form: str = "residual"
    scale: float | None = None
    squash: float | None = None
    objective: str = "denoising"
    probes: int | None = None
    optimizer: str = "adam"
    num_steps: int = 12_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    replicas: int = 10

    def __post_init__(self) -> None:
        levels = self.sigmas
        allowed = len(levels) > 0 and all(is_positive(level) for level in levels)
        decreasing = all(a > b for a, b in itertools.pairwise(levels))
        require(
            allowed and decreasing,
            "sigmas",
            levels,
            "one or more finite numbers above 0, decreasing",
        )
        require_choice("objective", self.objective, OBJECTIVES)
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        enough = self.num_steps >= len(levels)
        require(enough, "num_steps", self.num_steps, "at least one per noise level")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.replicas >= 1, "replicas", self.replicas, "at least 1")
        rate = self.learning_rate
        require(is_positive(rate), "learning_rate", rate, "a finite number above 0")


class TrainedAutoencoder(NamedTuple):
    """An auto-encoder and how its loss fell.

    Attributes:
        denoiser: At the last noise level.
        steps: (C,) steps done at the end of each chunk.
        losses: (C,) loss over sigma^2, averaged over the steps of the chunk.
    """

    denoiser: AutoencoderDenoiser
    steps: NDArray[np.int64]
    losses: NDArray[np.float64]


class _State(NamedTuple):
    params: Any
    optimizer: Any
    loss: Array


def sigma_schedule(
    sigma: float, *, factors: tuple[float, ...] = (10.0, 5.0, 2.0, 1.0)
) -> tuple[float, ...]:
    """Return noise levels that fall to `sigma`, for `AutoencoderSettings.sigmas`.

    Large noise first fills the space between and around the data, where an
    auto-encoder of small noise is not trained.

    Args:
        sigma: The last level, above 0, data units.
        factors: Multiples of it, decreasing to 1.

    Returns:
        As many levels as factors, data units.

    Raises:
        InputError: If sigma is not above 0 or the factors do not decrease to 1.
    """
    require(is_positive(sigma), "sigma", sigma, "a finite number above 0")
    decreasing = all(a > b for a, b in itertools.pairwise(factors))
    ends = len(factors) > 0 and factors[-1] == 1
    require(decreasing and ends, "factors", factors, "decreasing to 1")
    return tuple(factor * sigma for factor in factors)


def train_autoencoder(
    settings: AutoencoderSettings,
    data: ArrayLike,
    key: Array,
    *,
    chunk: int = 500,
    progress: Callable[[int, float], None] | None = None,
) -> TrainedAutoencoder:
    """Train an auto-encoder; of equal arguments, bitwise the same on one machine.

    Args:
        settings: What to train, and how.
        data: (N, *event) clean samples, floats, data units; their dtype is that of the
            parameters.
        key: A `jax.random.key`: parameters, batches and noise.
        chunk: Steps between two calls of `progress`; no result depends on it.
        progress: Called with the steps done and the chunk's loss, or None.

    Returns:
        The denoiser and its losses.

    Raises:
        InputError: If a sample is not finite, there is no batch axis, or the loss
            became infinite or no number.
    """
    data = _check_data(data)
    require(chunk >= 1, "chunk", chunk, "at least 1")
    network = _network(settings, data)
    start, draws = jax.random.split(key)
    params = network.init(start, data.dtype)
    # Only what the compiled function needs: the rest would compile it anew.
    plan = dataclasses.replace(settings, sigmas=(1.0,))
    state = _fresh(params, plan)
    steps, losses = [], []
    for level, first, last, is_new in _chunks(settings, chunk):
        if is_new and settings.optimizer == "lbfgs":
            state = _fresh(state.params, plan)  # curvatures of another loss
        sigma = jnp.asarray(level, data.dtype)
        state = _train_chunk(state, data, draws, sigma, first, last, plan, network)
        steps.append(last)
        losses.append(float(state.loss) / (last - first))
        if not np.isfinite(losses[-1]):
            raise InputError(
                f"the loss is {losses[-1]} after {last} steps; lower learning_rate "
                f"({settings.learning_rate:g}) or raise the noise level"
            )
        if progress is not None:
            progress(last, losses[-1])
    sigma = jnp.asarray(settings.sigmas[-1], data.dtype)
    denoiser = AutoencoderDenoiser(state.params, sigma, network)
    return TrainedAutoencoder(denoiser, np.asarray(steps), np.asarray(losses))


@functools.partial(jax.jit, static_argnames=("settings", "network"))
def _train_chunk(
    state: _State,
    data: Array,
    key: Array,
    sigma: Array,
    first: int,
    last: int,
    settings: AutoencoderSettings,
    network: AutoencoderNetwork,
) -> _State:
    """Take the steps from `first` to before `last`; one program for any of them."""
    optimizer = _optimizer(settings)

    def objective(params: Any, x: Array, noise: Array) -> Array:
        def reconstruction(samples: Array) -> Array:
            return network.apply(params, samples, sigma)

        if settings.objective == "denoising":
            return dae_loss(reconstruction, x, noise, sigma)
        return rcae_loss(reconstruction, x, sigma, key=noise, probes=settings.probes)

    def adam(index: Array, state: _State) -> _State:
        which, noise = jax.random.split(jax.random.fold_in(key, index))
        rows = jax.random.randint(which, (settings.batch_size,), 0, len(data))
        loss, gradient = jax.value_and_grad(objective)(state.params, data[rows], noise)
        updates, moments = optimizer.update(gradient, state.optimizer)
        params = optax.apply_updates(state.params, updates)
        return _State(params, moments, state.loss + loss)

    replicas = jnp.repeat(data, settings.replicas, axis=0)

    def lbfgs(_: Array, state: _State) -> _State:
        def total(params: Any) -> Array:
            return objective(params, replicas, key)

        loss, gradient = optax.value_and_grad_from_state(total)(
            state.params, state=state.optimizer
        )
        updates, memory = optimizer.update(
            gradient,
            state.optimizer,
            state.params,
            value=loss,
            grad=gradient,
            value_fn=total,
        )
        params = optax.apply_updates(state.params, updates)
        return _State(params, memory, state.loss + loss)

    start = state._replace(loss=jnp.zeros_like(state.loss))
    step = adam if settings.optimizer == "adam" else lbfgs
    return jax.lax.fori_loop(first, last, step, start)


def _optimizer(settings: AutoencoderSettings) -> Any:
    if settings.optimizer == "lbfgs":
        return optax.lbfgs(memory_size=_MEMORY)
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps)
    return optax.adam(rate)


def _fresh(params: Any, settings: AutoencoderSettings) -> _State:
    dtype = params[0].weight.dtype
    return _State(params, _optimizer(settings).init(params), jnp.zeros((), dtype))


def _chunks(
    settings: AutoencoderSettings, chunk: int
) -> Iterator[tuple[float, int, int, bool]]:
    """Yield (sigma, first step, last step, whether the level is new).

    Levels take equally many steps; what is left over goes to the last.
    """
    each = settings.num_steps // len(settings.sigmas)
    for index, sigma in enumerate(settings.sigmas):
        start = index * each
        is_last = index == len(settings.sigmas) - 1
        end = settings.num_steps if is_last else start + each
        for first in range(start, end, chunk):
            yield sigma, first, min(first + chunk, end), first == start


def _network(settings: AutoencoderSettings, data: Array) -> AutoencoderNetwork:
    scale = float(jnp.std(data)) if settings.scale is None else settings.scale
    return AutoencoderNetwork(
        data.shape[1:],
        settings.hidden,
        activation=settings.activation,
        form=settings.form,
        scale=scale or 1.0,  # a single point has no spread
        squash=settings.squash,
    )


def _check_data(data: ArrayLike) -> Array:
    rows = jnp.asarray(data)
    if rows.ndim < 2 or not rows.size or not jnp.issubdtype(rows.dtype, jnp.floating):
        raise InputError(
            f"data have shape {rows.shape} and dtype {rows.dtype}; give floats "
            "(N, *event) with N >= 1"
        )
    check_finite("data", rows)
    return rows
