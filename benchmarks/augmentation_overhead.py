"""What augmentation costs within a full-size training step.

Command: python -m benchmarks.augmentation_overhead [--pairs 20] [--arms ...]

The step is that of ``cifar10`` (DDPM++, 55.7 M parameters) on 8 images, with no
augmentation and with others, those of the arms; the steps take turns, one of each per
round, and their ratio is taken within a round.  The augmentation alone is timed too, on
the same 8 images, which tells a per cent of a step better than the step's own noise
does.
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import seconds_of
from benchmarks.results_file import write_result
from configs.cifar10 import config as cifar10
from configs.schema import AugmentationConfig, ExperimentConfig
from diffusion.augmentation import augmentation_preset
from diffusion.data import Dataset
from diffusion.host_memory import keep_freed_memory
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training.building import build_problem
from diffusion.training.feeding import examples_of
from diffusion.training.mesh import make_placement
from diffusion.training.state import create_state, init_params
from diffusion.training.step import build_optimizer, build_step

BATCH, SHAPE = 8, (32, 32, 3)
ARMS = {
    "none": AugmentationConfig(),
    "scoreaug-linear": AugmentationConfig("score", ("scoreaug-linear",)),
    "edm-nla": AugmentationConfig("nla", ("edm-nla:.12",)),
}


class Arm:
    """A training step with state of its own."""

    def __init__(self, augmentation: AugmentationConfig) -> None:
        config = experiment(augmentation)
        problem = build_problem(config, SHAPE)
        place = make_placement(1, BATCH)
        optimizer = build_optimizer(config.optim, BATCH)
        found = problem.augmentation

        def initial() -> Any:
            return create_state(
                init_params(config, problem.network, jax.random.key(0)),
                optimizer,
                len(config.training.sigma_bin_edges) + 1,
                num_transforms=0 if found is None else len(found.families),
            )

        shardings = place.state_shardings(jax.eval_shape(initial))
        self.step = build_step(config, problem, optimizer, place, shardings)
        self.state = initial()
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (BATCH, *SHAPE), np.uint8)
        data = Dataset(images, np.zeros(BATCH, np.int64))
        self.examples = examples_of(data, EDMPreconditioning(0.5), place)
        self.indices = place.put(np.arange(BATCH)[None], place.steps)

    def seconds(self) -> float:
        started = time.perf_counter()
        self.state = self.step(self.state, self.examples, self.indices)
        jax.block_until_ready(self.state)
        return time.perf_counter() - started


def experiment(augmentation: AugmentationConfig) -> ExperimentConfig:
    sizes = {"none": 9, "score": 11, "nla": 9}
    network = dataclasses.replace(cifar10.network, augment_dim=sizes[augmentation.mode])
    return dataclasses.replace(
        cifar10,
        network=network,
        augmentation=augmentation,
        training=dataclasses.replace(cifar10.training, batch_size=BATCH),
    )


def augmentation_alone() -> dict[str, float]:
    """Return the seconds that each augmentation takes on one batch."""
    keys = jax.random.split(jax.random.key(0), BATCH)
    clean, noise = jax.random.normal(jax.random.key(1), (2, BATCH, *SHAPE))
    calls = {}
    for name in ("scoreaug-linear", "edm-nla"):
        augment = jax.jit(augmentation_preset(name))
        calls[name] = lambda f=augment: f(keys, clean, noise, jnp.ones(BATCH))
    return seconds_of(calls, repeats=50)


def steps(pairs: int, names: list[str]) -> dict[str, Any]:
    """Return the seconds of a step of each arm, and the ratios within a round."""
    arms = {name: Arm(ARMS[name]) for name in ("none", *names)}
    for arm in arms.values():
        arm.seconds()
    rounds = np.array([[arm.seconds() for arm in arms.values()] for _ in range(pairs)])
    figures: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for column, name in enumerate(arms):
        figures[name] = {"median_seconds": float(np.median(rounds[:, column]))}
        if column:
            ratios = rounds[:, column] / rounds[:, 0]
            medians = np.median(rng.choice(ratios, (2000, pairs)), axis=1)
            figures[name] |= {
                "median_ratio": float(np.median(ratios)),
                "ratio_interval_95": np.quantile(medians, (0.025, 0.975)).tolist(),
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    others = [name for name in ARMS if name != "none"]
    parser.add_argument("--arms", nargs="+", choices=others, default=others)
    options = parser.parse_args()
    keep_freed_memory()
    alone = augmentation_alone()
    print(alone)
    found = steps(options.pairs, options.arms)
    figures: dict[str, Any] = {"batch": BATCH, "rounds": options.pairs, "steps": found}
    plain = figures["steps"]["none"]["median_seconds"]
    figures["alone"] = {
        name: {"seconds": value, "share_of_a_step": value / plain}
        for name, value in alone.items()
    }
    write_result(
        "augmentation_overhead",
        f"python -m benchmarks.augmentation_overhead --pairs {options.pairs} "
        f"--arms {' '.join(options.arms)}",
        figures,
    )


if __name__ == "__main__":
    main()
