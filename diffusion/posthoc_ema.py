"""Reconstruct an average: ``python -m diffusion.posthoc_ema WORKDIR --width W``.

The run must have kept power-function averages (``--ema.power-widths 0.05 0.1``).
"""

import sys
from dataclasses import dataclass

from configs.errors import InputError
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m diffusion.posthoc_ema"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the workdir."""

    width: float = 0.1
    """Relative width of the average, in (0, 0.28)."""
    step: int | None = None
    """Step at which to take it; None for the last snapshot."""
    out: str | None = None
    """Folder to write; None is WORKDIR-ema-WIDTH."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.width < 0.28:
            raise InputError(f"width is {self.width}; it must be in (0, 0.28)")


def main() -> None:
    """Parse the command line and reconstruct."""
    workdir, rest = split_positional(
        sys.argv[1:], "the workdir", f"{_PROGRAM} runs/cifar10 --width 0.07"
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {workdir or 'WORKDIR'}",
        description="Reconstruct a power-function average of the parameters of a run, "
        "of any width, as a workdir that samplers.generate takes.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from diffusion.training.reconstruction import reconstruct_workdir

    out = options.out or f"{str(workdir).rstrip('/')}-ema-{options.width:g}"
    step = reconstruct_workdir(workdir or "", options.width, out, options.step)
    print(f"{out}: average of width {options.width:g} at step {step}")


if __name__ == "__main__":
    exit_on_error(main)
