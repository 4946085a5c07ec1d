"""What an experiment would take, before any data is there.

Everything is counted on the built network; nothing is allocated or computed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from configs.augmentation_schema import expand
from configs.errors import InputError
from configs.schema import ExperimentConfig
from diffusion.augmentation import ScoreAugmentation
from diffusion.data import BUILTIN, load_builtin
from diffusion.networks.cost import count_flops, saved_bytes
from diffusion.training.building import build_problem

__all__ = ["describe_experiment"]

_COPIES = 5  # parameters, their average, the gradient, Adam's two moments


def describe_experiment(config: ExperimentConfig) -> str:
    """Return network, parameters, FLOPs, memory and steps as lines of text.

    Args:
        config: The experiment; its data need not exist.

    Returns:
        Lines ready to print.

    Raises:
        InputError: If the shape of a sample is neither given nor known, or does not fit
            the network.
    """
    event_shape = _event_shape(config)
    problem = build_problem(config, event_shape)
    network, training = problem.network, config.training
    params = jax.eval_shape(network.init, jax.random.key(0))
    num_params = network.num_parameters()
    forward, step, saved = _costs(network, params, event_shape, problem.num_classes)
    shape = "x".join(map(str, event_shape))
    part = training.batch_size // training.accumulation
    images = training.num_steps * training.batch_size
    lines = [
        f"network: {type(config.network).__name__.removesuffix('Config')} for samples "
        f"of {shape}, {config.network.dtype}",
        f"parameters: {num_params:,}",
        f"FLOPs per image: {forward / 1e9:,.3g} G forward, {step / 1e9:,.3g} G in a "
        "training step",
        f"memory: {_gib(_COPIES * 4 * num_params)} for parameters, their average, the "
        f"gradient and Adam; {_gib(saved)} of activations per image, "
        f"{_gib(saved * part)} for {part} at a time, before the compiler saves any",
        *_augmentation_lines(config, problem.augmentation, event_shape),
        f"steps: {training.num_steps:,} of {training.batch_size:,} images, {images:,} "
        "images in all",
    ]
    return "\n".join(lines)


def _augmentation_lines(
    config: ExperimentConfig,
    augmentation: ScoreAugmentation | None,
    event_shape: tuple[int, ...],
) -> list[str]:
    if augmentation is None:
        return []
    settings = config.augmentation
    names = " or ".join(settings.expanded)
    if settings.mode == "nla+score":
        clean = " or ".join(expand(settings.nla_transforms))
        names = f"{clean} on clean, {names} on noisy images"
    size = augmentation.condition_size(event_shape)
    told = f"a condition of {size} numbers" if size else "without condition"
    return [f"augmentation: {settings.mode}, {names}, {told}"]


def _event_shape(config: ExperimentConfig) -> tuple[int, ...]:
    if config.data.image_shape is not None:
        return tuple(config.data.image_shape)
    if config.data.name in BUILTIN:
        return load_builtin(config.data.name).images.shape[1:]
    raise InputError(
        f"the shape of {config.data.name}'s samples is not known beforehand; say it "
        "with --data.image-shape 32 32 3"
    )


def _costs(
    network: Any, params: Any, event_shape: tuple[int, ...], num_classes: int
) -> tuple[int, int, int]:
    """Return forward FLOPs, training FLOPs and saved bytes per image."""

    def batch(size: int) -> tuple[Any, ...]:
        shapes = [(size, *event_shape), (size,)]
        if num_classes:
            shapes.append((size, num_classes))
        return tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)

    def total(*arguments: Any) -> jax.Array:
        return network.apply(*arguments).astype(jnp.float32).sum()

    forward = count_flops(network.apply, params, *batch(1))
    step = count_flops(jax.grad(total), params, *batch(1))
    # What is kept of the parameters is the same for any batch, and cancels.
    saved = [saved_bytes(network.apply, params, *batch(size)) for size in (1, 2)]
    return forward, step, saved[1] - saved[0]


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"
