"""EDM's preconditioning against the Gaussian one: who is ahead after how many steps?

Command: python -m benchmarks.preconditioning_study [--data PATH]

Same network, seeds, images and noise; what differs is whether c_skip x or the Gaussian
of the training images stands beside the network.  Both are judged by EDM's weighted
loss on held-out images, at the same noise levels with the same noise.  Without --data
the part on CIFAR-10 images is left out.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.results_file import RESULTS, write_result
from configs.digits import config as digits
from configs.network_schema import SongUNetConfig
from configs.schema import (
    DataConfig,
    EMAConfig,
    ExperimentConfig,
    OptimConfig,
    PreconditioningConfig,
    TrainingConfig,
)
from diffusion import denoising_loss
from diffusion.data import split_of, to_data_units
from diffusion.host_memory import keep_freed_memory
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training import load_denoiser, train
from diffusion.training.building import build_problem

LOSSLESS = "cifar10-raw-5k.npz"
STEPS = (100, 200, 300, 500, 700, 1000, 1500, 2000, 3000)
EVALUATED = 512


def digits_config(seed: int) -> ExperimentConfig:
    training = dataclasses.replace(digits.training, checkpoint_every_steps=100)
    return dataclasses.replace(digits, training=training, seed=seed)


def cifar_config(archive: Path, seed: int) -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(name=str(archive), held_out_fraction=0.1),
        network=SongUNetConfig(
            model_channels=16,
            channel_mult=(1, 2, 2),
            num_blocks=1,
            attention_resolutions=(8,),
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_images=3_200),
        ema=EMAConfig(half_life_images=20_000, ramp_fraction=0.25),
        training=TrainingConfig(
            batch_size=32,
            log_every_steps=500,
            evaluation_images=64,
            checkpoint_every_steps=100,
            checkpoint_every_seconds=1e6,
        ),
        seed=seed,
    )


def held_out_losses(config: ExperimentConfig, workdir: Path) -> dict[int, float]:
    """Return EDM's weighted held-out loss by step, of the averaged parameters."""
    split = split_of(config.data)
    images = np.asarray(to_data_units(split.held_out.images[:EVALUATED]))
    rng = np.random.default_rng(0)
    quantiles = (rng.permutation(len(images)) + 0.5) / len(images)
    noise_law = build_problem(config, images.shape[1:]).noise
    sigma = noise_law.quantile(jnp.asarray(quantiles, jnp.float32))
    noise = rng.normal(size=images.shape).astype(np.float32)
    noisy = images + np.asarray(sigma)[:, None, None, None] * noise
    weight = EDMPreconditioning(split.sigma_data).loss_weight(sigma)

    @jax.jit
    def loss(denoiser: Any, noisy: Any, images: Any, sigma: Any, weight: Any) -> Any:
        return denoising_loss(denoiser, noisy, images, sigma, weight=weight).mean()

    return {
        step: float(
            loss(load_denoiser(workdir, step=step), noisy, images, sigma, weight)
        )
        for step in STEPS
        if step <= config.training.num_steps
    }


def study(config: ExperimentConfig) -> dict[str, Any]:
    """Train with both preconditionings; return curves and where they cross."""
    curves: dict[str, dict[int, float]] = {}
    for name in ("edm", "gaussian"):
        varied = dataclasses.replace(
            config,
            preconditioning=PreconditioningConfig(name=name),
            training=dataclasses.replace(config.training, num_steps=STEPS[-1]),
        )
        with tempfile.TemporaryDirectory() as folder:
            train(varied, folder)
            curves[name] = held_out_losses(varied, Path(folder))
        print(name, curves[name], flush=True)
    ahead = {
        step: curves["gaussian"][step] < curves["edm"][step] for step in curves["edm"]
    }
    lost = [step for step, leads in ahead.items() if not leads]
    return {
        "edm_weighted_held_out_loss": curves,
        "gaussian_over_edm": {
            step: curves["gaussian"][step] / curves["edm"][step] for step in ahead
        },
        "gaussian_behind_at_steps": lost,
    }


def main() -> None:
    """Run each study and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=("digits", "cifar10_lossless"))
    options = parser.parse_args()
    keep_freed_memory()
    path = RESULTS / "preconditioning_study.json"
    figures: dict[str, Any] = {}
    if options.only and path.is_file():
        figures = json.loads(path.read_text())["figures"]
    studies = {f"digits_seed{seed}": digits_config(seed) for seed in (0, 1)}
    if options.data is None:
        print("no --data: the part on CIFAR-10 images is left out")
    else:
        archive = options.data / LOSSLESS
        studies["cifar10_lossless"] = cifar_config(archive, 0)
    for name, config in studies.items():
        if options.only and not any(name.startswith(word) for word in options.only):
            continue
        figures[name] = study(config)
        command = "python -m benchmarks.preconditioning_study --data PATH"
        write_result("preconditioning_study", command, figures)


if __name__ == "__main__":
    main()
