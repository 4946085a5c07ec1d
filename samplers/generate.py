"""Draw samples: ``python -m samplers.generate WORKDIR [options]``.

Instead of a workdir, the ``.npz`` of a closed form will do.
"""

import sys
from dataclasses import dataclass, field

from configs.errors import InputError
from configs.schema import SamplerConfig
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m samplers.generate"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the workdir."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    num_samples: int = 64
    """Samples to draw; sample i depends on the seed and on i alone."""
    seed: int = 0
    """Seed of the noise."""
    block_size: int = 256
    """Samples computed at once."""
    step: int | None = None
    """Checkpoint to use; None for the newest."""
    condition: tuple[float, ...] = ()
    """Augmentation condition, for transformed images; none for images as they are."""
    outdir: str | None = None
    """Folder to write to; None makes one in WORKDIR/samples named by the settings; of a
    file, the folder beside it that is called like it."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_samples", "block_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be >= 0")


def main() -> None:
    """Parse the command line and draw samples."""
    workdir, rest = split_positional(
        sys.argv[1:], "the workdir", f"{_PROGRAM} runs/digits"
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {workdir or 'WORKDIR'}",
        description="Draw samples from the network trained in WORKDIR, or from the "
        "closed form in a file WORKDIR.npz.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from samplers.generation import generate_samples

    generate_samples(
        workdir or "",
        options.outdir or f"{_home(workdir or '')}/samples/{_folder_name(options)}",
        options.sampler,
        num_samples=options.num_samples,
        seed=options.seed,
        block_size=options.block_size,
        step=options.step,
        condition=options.condition,
    )


def _home(workdir: str) -> str:
    """Return the workdir, or the folder beside a file that is named like it."""
    return workdir.removesuffix(".npz")


def _folder_name(options: Options) -> str:
    sampler = options.sampler
    parts = [sampler.solver, sampler.schedule, str(sampler.num_points)]
    if sampler.teleport is not None:
        parts.append(f"teleport{sampler.teleport:g}")
    if options.step is not None:
        parts.append(f"step{options.step}")
    if any(options.condition):
        parts.append("condition" + "_".join(f"{c:g}" for c in options.condition))
    return "-".join([*parts, f"seed{options.seed}"])


if __name__ == "__main__":
    exit_on_error(main)
