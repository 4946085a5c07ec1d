"""A real run: loss curves per bin of sigma and a grid of samples.

    python -m benchmarks.real_training PRESET --data-dir DIR [--name NAME]

On an accelerator, ``--accelerator STEPS`` trains a DDPM++ of ``--channels`` channels in
bfloat16 instead, and ``--weights FILE`` keeps its averaged weights.  Its images, and
those held out, are prepared by

    python -m diffusion.prepare_data zip --source cifar10-jpeg-train.zip
        --held-out-source cifar10-jpeg-test.zip --name cifar10 --data-dir DIR
"""

import argparse
import dataclasses
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from analysis.plots import plot_loss_per_bin, plot_losses, plot_sample_grid, save_figure
from benchmarks.measure import matmul_gflops
from benchmarks.results_file import RESULTS, write_result
from configs.network_schema import SongUNetConfig
from configs.presets import load_preset
from configs.schema import ExperimentConfig
from diffusion.host_memory import keep_freed_memory
from diffusion.interop.safetensors import save_params
from diffusion.networks.cost import count_flops
from diffusion.training import load_denoiser, train
from diffusion.training.building import build_run_network
from diffusion.training.log import read_metrics
from samplers import Heun, karras, sample


def accelerator_config(
    config: ExperimentConfig, channels: int, steps: int
) -> ExperimentConfig:
    """CIFAR-10's preset with fewer channels, in bfloat16, with a short warm-up."""
    network = SongUNetConfig(
        model_channels=channels, dropout=0.1, augment_dim=9, dtype="bfloat16"
    )
    return dataclasses.replace(
        config,
        network=network,
        optim=dataclasses.replace(config.optim, warmup_images=500_000),
        training=dataclasses.replace(
            config.training,
            num_steps=steps,
            log_every_steps=500,
            checkpoint_every_steps=5_000,
            checkpoint_every_seconds=120.0,
            steps_per_dispatch=10,
        ),
    )


def step_gflops(config: ExperimentConfig, shape: tuple[int, ...]) -> float:
    """Return the work of a training step per image."""
    network = build_run_network(config, shape)
    params = jax.eval_shape(network.init, jax.random.key(0))

    def total(params: Any, x: Any, c: Any) -> Any:
        return network.apply(params, x, c).astype("float32").sum()

    arrays = [jax.ShapeDtypeStruct(s, "float32") for s in ((1, *shape), (1,))]
    return count_flops(jax.grad(total), params, *arrays) / 1e9


def size_of_ceiling() -> int:
    """Return how large a matrix product must be to keep the device busy."""
    return 4096 if jax.default_backend() == "cpu" else 16384


def command_line(arguments: list[str], data_dir: str) -> str:
    """Return the command with all of its options, the data's place as DIR."""
    given = [argument.replace(data_dir, "DIR") for argument in arguments]
    return shlex.join(["python", "-m", "benchmarks.real_training", *given])


def main() -> None:
    """Train, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--name")
    parser.add_argument("--workdir", default="runs/real_training")
    parser.add_argument("--accelerator", type=int, metavar="STEPS")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    config = load_preset(options.preset)
    name = options.name or config.data.name
    data = dataclasses.replace(config.data, name=name, data_dir=options.data_dir)
    config = dataclasses.replace(config, data=data)
    if options.accelerator:
        config = accelerator_config(config, options.channels, options.accelerator)
    keep_freed_memory()
    train(config, options.workdir)
    rows = read_metrics(options.workdir)
    model = load_denoiser(options.workdir)
    shape = tuple(config.data.image_shape or (32, 32, 3))
    samples = sample(model, jax.random.key(0), (64, *shape), karras(18), solver=Heun())
    result = f"real_training_{options.preset.replace(':', '_')}"
    if options.accelerator:
        result += f"_{options.channels}_channels"
    folder = RESULTS / "figures"
    folder.mkdir(exist_ok=True)
    grid = plot_sample_grid(np.asarray(samples.x, np.float32), columns=16)
    save_figure(grid, folder / f"{result}_samples.png")
    save_figure(plot_losses(rows), folder / f"{result}_loss.png")
    save_figure(plot_loss_per_bin(rows), folder / f"{result}_loss_per_bin.png")
    if options.weights is not None:
        params = jax.tree.map(
            lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), model.params
        )
        save_params(options.weights, params)
    gflops = step_gflops(config, shape)
    # The first row's time holds the compilation.
    rate = statistics.median(row["images_per_second"] for row in rows[1:] or rows)
    dtype = getattr(config.network, "dtype", "float32")
    ceiling = matmul_gflops(size_of_ceiling(), dtype)
    figures = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "seconds": round(rows[-1]["seconds"], 1),
        "steps": rows[-1]["step"],
        "images": rows[-1]["images"],
        "images_per_second_median": rate,
        "gflops_per_image_step": gflops,
        f"{dtype}_matmul_gflops": ceiling,
        f"share_of_{dtype}_matmul": rate * gflops / ceiling,
        "curves": [
            {
                key: row[key]
                for key in (
                    "step",
                    "seconds",
                    "loss",
                    "ema_loss_training",
                    "ema_loss_held_out",
                    "ema_loss_held_out_per_bin",
                )
            }
            for row in rows
        ],
        "sigma_bin_edges": rows[-1]["sigma_bin_edges"],
    }
    write_result(result, command_line(sys.argv[1:], options.data_dir), figures)


if __name__ == "__main__":
    main()
