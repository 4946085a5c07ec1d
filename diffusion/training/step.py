"""One optimizer step, and the evaluation of a loss on fixed noise.

The batch is gathered, brought to data units, noised and augmented inside the compiled
step.  The gradient is that of the per-image sum of squared errors, averaged over the
batch, as in EDM; what is logged is the mean over pixels, which is 1 at the start.
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
from diffusion.denoiser import expand_per_sample
from diffusion.loss import denoising_loss
from diffusion.neural import NeuralDenoiser
from diffusion.preconditioning import Preconditioning
from diffusion.training.ema import ema_weight, power_weight, update_ema
from diffusion.training.feeding import Examples
from diffusion.training.mesh import Placement
from diffusion.training.noisy_batch import NoisyBatch, Problem, draw_noisy_batch
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
    "build_evaluation",
    "build_optimizer",
    "build_step",
    "sigma_bins",
]

# Training uses the streams 0, 1, 2, ... of the seed, one per step.
_EVALUATION_STREAM = 2**31


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
        seen = state.step * jnp.float32(config.training.batch_size)
        batch = draw_noisy_batch(problem, images, labels, key, images_seen=seen)
        batch = jax.lax.with_sharding_constraint(batch, place.batch)
        gradient, losses = gradient_of(state.params, batch, examples.preconditioning)
        found = _sums(config, problem, batch, losses)
        return _updated(config, optimizer, state, gradient, *found)

    def steps(state: TrainState, examples: Examples, indices: Array | None) -> Any:
        if indices is None or indices.shape[0] == 1:
            return step(state, examples, None if indices is None else indices[0])
        return jax.lax.scan(
            lambda s, chosen: (step(s, examples, chosen), None), state, indices
        )[0]

    return jax.jit(steps, donate_argnums=0, out_shardings=shardings)


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
        return jnp.mean(value) * math.prod(batch.target.shape[1:]), losses

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
    loss: Array,
    count: Array,
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
    step, ema, size = state.step + 1, config.ema, config.training.batch_size
    weight = ema_weight(
        step * jnp.float32(size), size, ema.half_life_images, ema.ramp_fraction
    )
    power_emas = {
        width: update_ema(
            average, params, power_weight(step, gamma_of_width(float(width)))
        )
        for width, average in state.power_emas.items()
    }
    old = state.sums
    sums = LossSums(
        loss=old.loss + loss,
        count=old.count + count,
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
    return chosen(moved, state)._replace(step=step, skipped=skipped)


def _sums(
    config: ExperimentConfig, problem: Problem, batch: NoisyBatch, losses: Array
) -> tuple[Array, Array]:
    """Return losses summed, and counted, by bin of sigma and by transform if any."""
    bins = sigma_bins(batch.sigma, config.training.sigma_bin_edges)
    if batch.family is None or problem.augmentation is None:
        return losses @ bins, bins.sum(axis=0)
    families = jax.nn.one_hot(
        batch.family, len(problem.augmentation.families), dtype=bins.dtype
    )
    return (families * losses[:, None]).T @ bins, families.T @ bins


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

        sigma = problem.noise.quantile(fixed.probability).astype(images.dtype)
        scale = expand_per_sample(sigma, images)
        noisy = images + scale * jax.vmap(noise)(fixed.number)
        batch = NoisyBatch(noisy, images, examples.labels, sigma)
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
    noisy, sigma, labels = batch.noisy, batch.sigma, None
    if problem.num_classes:
        labels = jax.nn.one_hot(batch.labels, problem.num_classes, dtype=noisy.dtype)
    denoiser = NeuralDenoiser(
        network_params(params),
        problem.network,
        preconditioning,
        labels=labels,
        condition=batch.condition,
        dropout_key=batch.dropout_keys,
    )
    weight = sigma**-2
    if not problem.inverse_square_weight:
        weight = preconditioning.loss_weight(sigma)
    if batch.factor is not None:
        weight = weight * batch.factor
    return denoising_loss(denoiser, noisy, batch.target, sigma, weight=weight)
