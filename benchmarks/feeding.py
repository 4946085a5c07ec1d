"""How fast images reach the step, and what preparing them takes.

    python -m benchmarks.feeding --data PATH

PATH holds ``cifar10-jpeg-train.zip`` in EDM's layout.  Measured are the preparation of
that archive; the pure input rate, which is the training loop's own feed with a step
that does no more than gather, normalise and flip; the whole training loop (noise
levels, noise, loss, gradient, Adam, averages, log, checkpoints) around a network that
costs nothing, and the parts of such a step; and the share of a real training step that
goes by waiting for input.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import seconds_of
from benchmarks.results_file import write_result
from configs.cifar10 import config as cifar10
from configs.mixture2d import config as toy
from configs.network_schema import SongUNetConfig
from configs.preparation_schema import PreparationConfig
from configs.schema import AugmentationConfig, ExperimentConfig
from diffusion.data import open_packed, to_data_units
from diffusion.data.prepare import prepare_data
from diffusion.host_memory import keep_freed_memory
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training import train
from diffusion.training.building import build_problem
from diffusion.training.feeding import Feed
from diffusion.training.log import read_metrics
from diffusion.training.loop import Run
from diffusion.training.mesh import make_placement
from diffusion.training.noisy_batch import draw_noisy_batch
from diffusion.training.state import create_state, init_params
from diffusion.training.step import build_optimizer, build_step

ARCHIVE = "cifar10-jpeg-train.zip"


def config_of(
    placement: str, unit: int = 1, data_dir: str = "data"
) -> ExperimentConfig:
    """CIFAR-10 with mirrored images and no other augmentation."""
    data = dataclasses.replace(
        cifar10.data, placement=placement, data_dir=data_dir, horizontal_flip=True
    )
    return dataclasses.replace(
        cifar10,
        data=data,
        augmentation=AugmentationConfig(),
        network=dataclasses.replace(cifar10.network, augment_dim=0),
        training=dataclasses.replace(
            cifar10.training,
            steps_per_dispatch=unit,
            num_steps=400_000,
            log_every_steps=100 * unit,
            checkpoint_every_steps=1_000 * unit,
        ),
    )


def input_rate(data: Any, placement: str, seconds: float) -> float:
    """Return images per second of the feed with a step that learns nothing."""
    config = config_of(placement)
    size = config.training.batch_size
    place = make_placement(1, size)
    feed = Feed(config, data, EDMPreconditioning(0.5), place, 0)

    @jax.jit
    def step(total: Any, count: Any, examples: Any, indices: Any) -> Any:
        images, labels = examples.images, examples.labels
        if indices is not None:
            images, labels = images[indices[0]], labels[indices[0]]
        images = to_data_units(images)
        key = jax.random.fold_in(jax.random.key(0), count)
        mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        values = jnp.where(mirrored, images[:, :, ::-1], images)
        return total + values.mean(), count + 1

    total, count = jnp.float32(0), jnp.int32(0)
    steps, started = 0, 0.0
    while True:
        total, count = step(total, count, *feed.at(steps))
        if steps == 5:
            jax.block_until_ready(total)
            started, first = time.perf_counter(), steps
        if steps > 5 and time.perf_counter() - started > seconds:
            break
        steps += 1
    jax.block_until_ready(total)
    rate = (steps - first) * size / (time.perf_counter() - started)
    feed.close()
    return rate


@dataclasses.dataclass(frozen=True)
class NoOpNetwork:
    """A network that costs nothing: its input times one number, which is learned."""

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Return the number."""
        return {"factor": jnp.zeros(())}

    def apply(
        self, params: dict[str, Any], x: jax.Array, c_noise: jax.Array, **unused: Any
    ) -> jax.Array:
        """Return factor * x."""
        return params["factor"] * x


def loop_rate(folder: str, placement: str, steps: int, unit: int = 1) -> float:
    """Return images per second of `train` itself around the no-op network."""
    config = config_of(placement, unit, data_dir=folder)
    every = steps // 5
    training = dataclasses.replace(
        config.training,
        num_steps=steps,
        log_every_steps=every,
        checkpoint_every_steps=steps,
        evaluation_images=512,
    )
    config = dataclasses.replace(config, training=training)
    with tempfile.TemporaryDirectory() as workdir:
        run = Run(config, Path(workdir))
        network: Any = NoOpNetwork()
        run.problem = run.problem._replace(network=network)
        run.execute(lambda: False)
        rows = read_metrics(workdir)
    # The first row's time holds the compilation.
    return statistics.median(row["images_per_second"] for row in rows[1:])


def parts_of_a_step(data: Any) -> dict[str, float]:
    """Return the seconds that parts of a step take on their own, without a network."""
    config = config_of("replicated")
    problem = build_problem(config, (32, 32, 3))
    size = config.training.batch_size
    pixels, labels = jnp.asarray(data.images), jnp.zeros(size, jnp.int32)
    chosen = jnp.asarray(np.random.default_rng(0).permutation(len(pixels))[:size])
    key = jax.random.key(0)
    images = to_data_units(pixels[:size])
    gather = jax.jit(lambda pixels, chosen: to_data_units(pixels[chosen]))
    normal = jax.jit(lambda key: jax.random.normal(key, images.shape))
    bits = jax.jit(lambda key: jax.random.bits(key, images.shape))
    levels = jax.jit(lambda key: problem.noise.sample(key, (size,)))
    draw = jax.jit(
        lambda images, labels, key: draw_noisy_batch(problem, images, labels, key)
    )
    return seconds_of(
        {
            "gather_and_normalise": lambda: gather(pixels, chosen),
            "random_bits_of_noise": lambda: bits(key),
            "noise": lambda: normal(key),
            "noise_levels": lambda: levels(key),
            "flip_levels_noise_and_keys": lambda: draw(images, labels, key),
        },
        repeats=20,
    )


def lost_to_input(data: Any) -> dict[str, float]:
    """Return the share of a small network's step that is spent on its input."""
    config = config_of("replicated")
    config = dataclasses.replace(
        config,
        network=SongUNetConfig(model_channels=16, channel_mult=(1, 2, 2), num_blocks=1),
        training=dataclasses.replace(config.training, batch_size=32),
    )
    place = make_placement(1, 32)
    problem = build_problem(config, (32, 32, 3))
    optimizer = build_optimizer(config.optim, 32)

    def initial() -> Any:
        params = init_params(config, problem.network, jax.random.key(0))
        return create_state(params, optimizer, 6)

    shardings = place.state_shardings(jax.eval_shape(initial))
    step = build_step(config, problem, optimizer, place, shardings)
    feed = Feed(config, data, EDMPreconditioning(0.5), place, 0)
    state = step(initial(), *feed.at(0))
    jax.block_until_ready(state)
    waiting, started = 0.0, time.perf_counter()
    for number in range(1, 61):
        before = time.perf_counter()
        examples, indices = feed.at(number)
        jax.block_until_ready((examples.images, indices))
        waiting += time.perf_counter() - before
        state = step(state, examples, indices)
        jax.block_until_ready(state)
    total = time.perf_counter() - started
    return {"seconds_per_step": total / 60, "share_of_input": waiting / total}


def dispatch_rates() -> dict[str, float]:
    """Return steps per second of a small network, one or ten at a time."""
    rates = {}
    for unit in (1, 10):
        config = dataclasses.replace(
            toy,
            training=dataclasses.replace(
                toy.training,
                num_steps=4_000,
                log_every_steps=1_000,
                checkpoint_every_steps=4_000,
                checkpoint_every_seconds=1e6,
                steps_per_dispatch=unit,
            ),
        )
        with tempfile.TemporaryDirectory() as folder:
            train(config, folder)
            rows = read_metrics(folder)
        rate = max(row["images_per_second"] for row in rows)
        rates[str(unit)] = rate / config.training.batch_size
    return rates


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1_000, help="of the no-op loop")
    parser.add_argument("--seconds", type=float, default=6.0, help="of the input alone")
    options = parser.parse_args()
    archive, seconds = options.data / ARCHIVE, options.seconds
    keep_freed_memory()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        place = prepare_data(
            "zip",
            PreparationConfig(source=str(archive), data_dir=folder, name="cifar10"),
        )
        figures["prepare_50000_jpeg_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        data = open_packed(place).training
        figures["open_and_verify_seconds"] = time.perf_counter() - started
        assert len(data.images) == 50_000
        for placement in ("replicated", "streamed"):
            figures[f"input_alone_images_per_second_{placement}"] = input_rate(
                data, placement, seconds
            )
            figures[f"training_loop_images_per_second_{placement}"] = loop_rate(
                folder, placement, options.steps
            )
        figures["training_loop_images_per_second_replicated_ten_steps_at_once"] = (
            loop_rate(folder, "replicated", options.steps, unit=10)
        )
        figures["seconds_of_parts_of_a_step"] = parts_of_a_step(data)
        figures["real_step"] = lost_to_input(data)
    figures["mixture2d_steps_per_second_by_steps_per_dispatch"] = dispatch_rates()
    figures = jax.tree.map(lambda x: float(np.float32(x)), figures)
    command = "python -m benchmarks.feeding --data PATH"
    write_result("feeding", command, figures)
    print(figures)


if __name__ == "__main__":
    main()
