"""One optimizer step, and the evaluation of a loss on fixed noise.

The batch is gathered, flipped and brought to data units inside the compiled step.  The
gradient is that of the per-image sum of squared errors, averaged over the batch, as in
EDM; what is logged is the mean over pixels, which is 1 at the start.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from configs.schema import ExperimentConfig, OptimConfig
from diffusion.data.batches import to_data_units
from diffusion.loss import denoising_loss
from diffusion.networks.functional import ModuleNetwork
from diffusion.neural import NeuralDenoiser
from diffusion.noise import NoiseLaw
from diffusion.preconditioning import Preconditioning
from diffusion.training.ema import ema_weight, power_weight, update_ema
from diffusion.training.feeding import Examples
from diffusion.training.mesh import Placement
from diffusion.training.power_ema import gamma_of_width
from diffusion.training.state import (
    UNCERTAINTY,
    LossSums,
    Skipped,
    TrainState,
    network_params,
)
from diffusion.uncertainty import log_uncertainty

__all__ = [
    "Fixed",
    "Problem",
    "build_evaluation",
    "build_optimizer",
    "build_step",
    "sigma_bins",
]

# Training uses the streams 0, 1, 2, ... of the seed, one per step.
_EVALUATION_STREAM = 2**31


class Problem(NamedTuple):
    """What is learned, without arrays.

    Attributes:
        network: The network.
        noise: The law of sigma in training.
        inverse_square_weight: Whether the loss is weighted by 1/sigma^2, as in VP and
            VE; otherwise by the preconditioning's 1/c_out^2.
        num_classes: Length of one-hot labels; 0 to train without.
    """

    network: ModuleNetwork
    noise: NoiseLaw
    inverse_square_weight: bool = False
    num_classes: int = 0


class NoisyBatch(NamedTuple):
    """Everything random of a step, drawn for the whole batch at once.

    What an image gets depends on its place in the batch alone, not on the device that
    holds it or on the part of the batch that it is computed with.

    Attributes:
        images: (B, *event) in data units.
        labels: (B,) classes.
        sigma: (B,) noise levels.
        noise: (B, *event), of unit variance.
        dropout_keys: (B,) keys, or None for no dropout.
    """

    images: Array
    labels: Array
    sigma: Array
    noise: Array
    dropout_keys: Array | None


def build_optimizer(
    config: OptimConfig, batch_size: int
) -> optax.GradientTransformation:
    """Return Adam with a linear warm-up, then constant or 1/sqrt(images).

    The rate never depends on the number of steps asked for, so a finished run can be
    trained further as if it had never stopped.
    """

    def rate(count: ArrayLike) -> Array:
        images = jnp.asarray(count) * jnp.float32(batch_size)
        value = jnp.float32(config.learning_rate)
        if config.warmup_images:
            value = value * jnp.minimum(images / config.warmup_images, 1)
        if config.decay_images:
            value = value / jnp.sqrt(jnp.maximum(images / config.decay_images, 1))
        return value

    adam = optax.adam(rate, b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    if config.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def sigma_bins(sigma: Array, edges: tuple[float, ...]) -> Array:
    """Return each level's bin as one-hot rows, (B,) -> (B, len(edges) + 1) float32."""
    index = jnp.searchsorted(jnp.asarray(edges), sigma, side="right")
    return jax.nn.one_hot(index, len(edges) + 1, dtype=jnp.float32)


def build_step(
    config: ExperimentConfig,
    problem: Problem,
    optimizer: optax.GradientTransformation,
    place: Placement,
    shardings: Any,
) -> Callable[[TrainState, Examples, Array | None], TrainState]:
    """Return the compiled step ``(state, examples, indices) -> state``.

    ``examples`` is the whole training set on the devices and ``indices`` the (n, B)
    samples of n optimizer steps; or ``examples`` are the samples of one step, and
    ``indices`` None.  The state's buffers are donated.

    Args:
        config: The experiment.
        problem: What is learned.
        optimizer: See `build_optimizer`.
        place: Where arrays live.
        shardings: Of the state, see `Placement.state_shardings`.
    """
    parts, dtype = config.training.accumulation, config.training.dtype
    gradient_of = _gradient(problem, parts, place)

    def step(state: TrainState, examples: Examples, indices: Array | None) -> Any:
        images, labels = examples.images, examples.labels
        if indices is not None:
            images, labels = images[indices], labels[indices]
        images = to_data_units(images).astype(dtype)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch = _draw(config, problem, images, labels, key)
        batch = jax.lax.with_sharding_constraint(batch, place.batch)
        gradient, losses = gradient_of(state.params, batch, examples.preconditioning)
        bins = sigma_bins(batch.sigma, config.training.sigma_bin_edges)
        return _updated(config, optimizer, state, gradient, losses, bins)

    def steps(state: TrainState, examples: Examples, indices: Array | None) -> Any:
        if indices is None or indices.shape[0] == 1:
            return step(state, examples, None if indices is None else indices[0])
        return jax.lax.scan(
            lambda s, chosen: (step(s, examples, chosen), None), state, indices
        )[0]

    return jax.jit(steps, donate_argnums=0, out_shardings=shardings)


def _draw(
    config: ExperimentConfig, problem: Problem, images: Array, labels: Array, key: Array
) -> NoisyBatch:
    """Flip the images of a step and draw its noise."""
    flip_key, loss_key = jax.random.split(key)
    sigma_key, noise_key, dropout_key = jax.random.split(loss_key, 3)
    if config.data.horizontal_flip:
        images = _flip_half(images, flip_key)
    count = images.shape[0]
    return NoisyBatch(
        images=images,
        labels=labels,
        sigma=problem.noise.sample(sigma_key, (count,)).astype(images.dtype),
        noise=jax.random.normal(noise_key, images.shape, images.dtype),
        dropout_keys=jax.vmap(lambda i: jax.random.fold_in(dropout_key, i))(
            jnp.arange(count)
        ),
    )


def _gradient(
    problem: Problem, num_parts: int, place: Placement
) -> Callable[[dict[str, Any], NoisyBatch, Preconditioning], tuple[Any, Array]]:
    """Return the gradient of the mean loss, in parts, and the (B,) losses."""

    def objective(params: Any, batch: NoisyBatch, preconditioning: Any) -> Any:
        losses = _losses(problem, params, batch, preconditioning)
        value = losses
        if UNCERTAINTY in params:
            c_noise = preconditioning(batch.sigma).c_noise
            log = log_uncertainty(params[UNCERTAINTY], c_noise)
            value = losses / jnp.exp(log) + log
        return jnp.mean(value) * math.prod(batch.images.shape[1:]), losses

    differentiate = jax.grad(objective, has_aux=True)

    def gradient(params: Any, batch: NoisyBatch, preconditioning: Any) -> Any:
        if num_parts == 1:
            return differentiate(params, batch, preconditioning)
        # Part j takes every num_parts-th example from j on: each device keeps its own.
        parts = jax.tree.map(
            lambda leaf: jnp.swapaxes(
                leaf.reshape(-1, num_parts, *leaf.shape[1:]), 0, 1
            ),
            batch,
        )
        parts = jax.lax.with_sharding_constraint(parts, place.steps)

        def add(total: Any, part: NoisyBatch) -> Any:
            found, losses = differentiate(params, part, preconditioning)
            return jax.tree.map(jnp.add, total, found), losses

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, losses = jax.lax.scan(add, zeros, parts)
        mean = jax.tree.map(lambda leaf: leaf / num_parts, total)
        return mean, jnp.swapaxes(losses, 0, 1).reshape(-1)

    return gradient


def _updated(
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: Any,
    losses: Array,
    bins: Array,
) -> TrainState:
    """Return the state after a step; one without a finite gradient changes nothing.

    It is counted, and nothing else: averages stay where they are too.  Nor does any
    step change anything once too many in a row were of that kind.
    """
    norm = optax.tree.norm(gradient)
    limit = config.training.max_skipped_steps
    good = jnp.isfinite(norm) & (state.skipped.in_row <= limit)

    def chosen(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    count, ema, size = state.step + 1, config.ema, config.training.batch_size
    weight = ema_weight(
        count * jnp.float32(size), size, ema.half_life_images, ema.ramp_fraction
    )
    power_emas = {
        width: update_ema(
            average, params, power_weight(count, gamma_of_width(float(width)))
        )
        for width, average in state.power_emas.items()
    }
    old = state.sums
    sums = LossSums(
        loss=old.loss + losses @ bins,
        count=old.count + bins.sum(axis=0),
        gradient_norm=old.gradient_norm + norm,
        steps=old.steps + 1,
    )
    skipped = Skipped(
        state.skipped.total + ~good, jnp.where(good, 0, state.skipped.in_row + 1)
    )
    moved = state._replace(
        params=params,
        ema_params=update_ema(state.ema_params, params, weight),
        power_emas=power_emas,
        opt_state=opt_state,
        sums=sums,
    )
    return chosen(moved, state)._replace(step=count, skipped=skipped)


def _flip_half(images: Array, key: Array) -> Array:
    """Mirror each image of (B, H, W, C) left to right with probability one half."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


class Fixed(NamedTuple):
    """What is fixed for the images of a block that is evaluated again and again.

    Attributes:
        number: (B,) int32 place of each image in its set; its noise depends on it.
        probability: (B,) of the quantile of the training law that is its sigma.
        valid: (B,) 1, or 0 for padding.
    """

    number: Array
    probability: Array
    valid: Array


def build_evaluation(
    config: ExperimentConfig, problem: Problem, place: Placement
) -> Callable[[dict[str, Any], Examples, Fixed], tuple[Array, Array]]:
    """Return ``(params, block, fixed) -> (loss sums, counts)``, by sigma bin.

    Image i of a set always gets the same noise and sigma, in blocks of any size: two
    evaluations differ by the parameters alone.
    """

    def evaluate(
        params: dict[str, Any], examples: Examples, fixed: Fixed
    ) -> tuple[Array, Array]:
        images = to_data_units(examples.images).astype(config.training.dtype)
        key = jax.random.fold_in(jax.random.key(config.seed), _EVALUATION_STREAM)

        def noise(number: Array) -> Array:
            own_key = jax.random.fold_in(key, number)
            return jax.random.normal(own_key, images.shape[1:], images.dtype)

        batch = NoisyBatch(
            images=images,
            labels=examples.labels,
            sigma=problem.noise.quantile(fixed.probability).astype(images.dtype),
            noise=jax.vmap(noise)(fixed.number),
            dropout_keys=None,
        )
        batch = jax.lax.with_sharding_constraint(batch, place.batch)
        losses = _losses(problem, params, batch, examples.preconditioning)
        bins = sigma_bins(batch.sigma, config.training.sigma_bin_edges)
        bins = bins * fixed.valid[:, None]
        return losses @ bins, bins.sum(axis=0)

    return jax.jit(evaluate, out_shardings=place.replicated)


def _losses(
    problem: Problem,
    params: dict[str, Any],
    batch: NoisyBatch,
    preconditioning: Preconditioning,
) -> Array:
    """Return the (B,) weighted losses of a batch."""
    images, sigma, labels = batch.images, batch.sigma, None
    noisy = images + sigma.reshape((-1,) + (1,) * (images.ndim - 1)) * batch.noise
    if problem.num_classes:
        labels = jax.nn.one_hot(batch.labels, problem.num_classes, dtype=images.dtype)
    denoiser = NeuralDenoiser(
        network_params(params),
        problem.network,
        preconditioning,
        labels=labels,
        dropout_key=batch.dropout_keys,
    )
    weight = sigma**-2
    if not problem.inverse_square_weight:
        weight = preconditioning.loss_weight(sigma)
    return denoising_loss(denoiser, noisy, images, sigma, weight=weight)
