"""Train a denoising score network: ``python -m diffusion.train PRESET [options]``.

The same command again resumes; on a finished workdir it says so.
"""

import sys
import warnings
from dataclasses import dataclass
from typing import Annotated

import tyro

from configs.errors import InputWarning
from configs.presets import load_preset, preset_names
from configs.schema import ExperimentConfig
from diffusion.command_line import exit_on_error, parse_options, split_positional
from diffusion.host_memory import keep_freed_memory

__all__ = ["main"]

_PROGRAM = "python -m diffusion.train"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the preset."""

    experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    workdir: str
    """Folder of the run: checkpoints, metrics, configuration."""
    dry_run: tyro.conf.UseCounterAction[int] = 0
    """Print network, parameter count, FLOPs, memory and steps, and stop; needs no
    data."""
    suggest_noise: tyro.conf.UseCounterAction[int] = 0
    """Measure sigma_data and the loss over sigma on the data, propose noise levels for
    training and sampling, and stop."""
    distributed: tyro.conf.UseCounterAction[int] = 0
    """Several hosts, which JAX finds by itself: for cloud TPUs, where the environment
    does not speak of them."""
    coordinator: str | None = None
    """Several hosts: HOST:PORT of process 0; None takes what SLURM, Open MPI or the
    TPU's environment say."""
    num_processes: int | None = None
    """Several hosts: processes in all."""
    process_id: int | None = None
    """Several hosts: number of this process, from 0."""


def main() -> None:
    """Parse the command line and train."""
    preset, rest = split_positional(
        sys.argv[1:], "the preset", f"{_PROGRAM} digits --training.num-steps 200"
    )
    name = preset or "digits"
    options = parse_options(
        Options(load_preset(name), f"runs/{name.replace(':', '-')}"),
        rest,
        program=f"{_PROGRAM} {preset or 'PRESET'}",
        description="Train a denoising score network. PRESET is one of: "
        + ", ".join(preset_names())
        + "; some have variants, PRESET:VARIANT.",
    )
    if _mirrors(load_preset(name)) and not _mirrors(options.experiment):
        warnings.warn(
            f"{name} mirrors half of the images, and with these options none is "
            "mirrored; --data.horizontal-flip True mirrors half of them",
            InputWarning,
            stacklevel=1,
        )
    # Imported here: a wrong command line should not wait for the libraries.
    if options.dry_run:
        from diffusion.training.dry_run import describe_experiment

        print(describe_experiment(options.experiment))
        return
    if options.suggest_noise:
        from diffusion.training.noise_suggestion import format_suggestion, suggest_noise

        print(format_suggestion(suggest_noise(options.experiment.data)))
        return
    from diffusion.training import train
    from diffusion.training.mesh import connect_hosts

    keep_freed_memory()
    connect_hosts(
        options.coordinator,
        options.num_processes,
        options.process_id,
        find=bool(options.distributed),
    )
    train(options.experiment, options.workdir)


def _mirrors(config: ExperimentConfig) -> bool:
    return config.data.horizontal_flip or config.augmentation.mirrors_sideways


if __name__ == "__main__":
    exit_on_error(main)
