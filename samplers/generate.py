"""Draw samples: ``python -m samplers.generate WORKDIR [options]``.

Instead of a workdir, the ``.npz`` of a closed form will do.  The same command again
goes on where it was interrupted.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from configs.sampler_schema import GenerationConfig
from configs.solver_table import solver_table
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m samplers.generate"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the workdir."""

    generation: Annotated[GenerationConfig, tyro.conf.arg(name="")] = field(
        default_factory=GenerationConfig
    )
    outdir: str | None = None
    """Folder to write to; None makes one in WORKDIR/samples named by the settings; of a
    file, the folder beside it that is called like it."""


def main() -> None:
    """Parse the command line and draw samples."""
    if "--list-solvers" in sys.argv[1:]:
        print(solver_table())
        return
    workdir, rest = split_positional(
        sys.argv[1:], "the workdir", f"{_PROGRAM} runs/digits"
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {workdir or 'WORKDIR'}",
        description="Draw samples from the network trained in WORKDIR, or from the "
        "closed form in a file WORKDIR.npz; again, go on where it was interrupted. "
        "--list-solvers prints the solvers and their options.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from samplers.generation import generate_samples

    config = options.generation
    outdir = options.outdir or f"{_home(workdir or '')}/samples/{_folder_name(config)}"
    generate_samples(workdir or "", outdir, config)


def _home(workdir: str) -> str:
    """Return the workdir, or the folder beside a file that is named like it."""
    return workdir.removesuffix(".npz")


def _folder_name(config: GenerationConfig) -> str:
    """Return a name that tells the settings that are not the defaults."""
    sampler = config.sampler
    parts = [sampler.solver, sampler.schedule, str(sampler.num_points)]
    if sampler.tuned is not None:
        parts = []
    elif sampler.sigmas is not None:
        parts[1:] = ["own_grid"]
    elif sampler.nfe is not None:
        parts[2:] = []
    left_out = ("solver", "schedule", "num_points", "sigmas", "other_data")
    for owner, names in ((sampler, left_out), (config, ("sampler", "seed"))):
        for item in dataclasses.fields(owner):
            value = getattr(owner, item.name)
            if item.name not in (*names, "num_samples", "block_size", "format"):
                if value != item.default:
                    parts.append(_part(item.name, value))
    return "-".join([*parts, f"seed{config.seed}"])


def _part(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"no_{name}"
    if isinstance(value, str):
        return f"{name}_{Path(value).stem}"
    if isinstance(value, tuple):
        return name + "_".join(f"{number:g}" for number in value)
    return f"{name}{value:g}" if isinstance(value, int | float) else name


if __name__ == "__main__":
    exit_on_error(main)
