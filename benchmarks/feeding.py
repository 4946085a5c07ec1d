"""How fast images reach the step, and what preparing them takes.

    python -m benchmarks.feeding --data PATH

PATH holds ``cifar10-jpeg-train.zip`` in EDM's layout.  Measured are the preparation of
that archive; the training loop's own feed with a step that does no more than gather,
flip and normalise; the same with everything random that a step draws; and the share of
a real training step that goes by waiting for input.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.results_file import write_result
from configs.cifar10 import config as cifar10
from configs.mixture2d import config as toy
from configs.network_schema import SongUNetConfig
from configs.preparation_schema import PreparationConfig
from configs.schema import ExperimentConfig
from diffusion.data import open_packed, to_data_units
from diffusion.data.prepare import prepare_data
from diffusion.host_memory import keep_freed_memory
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training import train
from diffusion.training.building import build_problem
from diffusion.training.feeding import Feed
from diffusion.training.log import read_metrics
from diffusion.training.mesh import make_placement
from diffusion.training.state import create_state, init_params
from diffusion.training.step import _draw, _flip_half, build_optimizer, build_step

ARCHIVE = "cifar10-jpeg-train.zip"


def config_of(placement: str, unit: int = 1) -> ExperimentConfig:
    return dataclasses.replace(
        cifar10,
        data=dataclasses.replace(cifar10.data, placement=placement),
        training=dataclasses.replace(
            cifar10.training,
            steps_per_dispatch=unit,
            num_steps=400_000,
            log_every_steps=100 * unit,
            checkpoint_every_steps=1_000 * unit,
        ),
    )


def no_op_rate(data: Any, placement: str, *, random: bool, seconds: float) -> float:
    """Return images per second of the feed with a step that learns nothing."""
    config = config_of(placement)
    problem = build_problem(config, (32, 32, 3))
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
        if random:
            batch = _draw(config, problem, images, labels, key)
            values = batch.images + batch.sigma[:, None, None, None] * batch.noise
        else:
            values = _flip_half(images, key)
        # The network that does nothing: one pass over its input.
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
    archive = parser.parse_args().data / ARCHIVE
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
            for random in (False, True):
                name = f"images_per_second_{placement}"
                name += "_with_noise" if random else ""
                figures[name] = no_op_rate(data, placement, random=random, seconds=6.0)
        figures["real_step"] = lost_to_input(data)
    figures["mixture2d_steps_per_second_by_steps_per_dispatch"] = dispatch_rates()
    figures = jax.tree.map(lambda x: float(np.float32(x)), figures)
    command = "python -m benchmarks.feeding --data PATH"
    write_result("feeding", command, figures)
    print(figures)


if __name__ == "__main__":
    main()
