"""A network's score against closed forms: ``python -m analysis.compare WORKDIR``."""

import sys
from dataclasses import dataclass

from configs.errors import InputError
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m analysis.compare"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the workdir."""

    sigmas: tuple[float, ...] = (
        *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
        *(5.0, 10.0, 20.0, 40.0, 80.0),
    )
    """Noise levels, in data units."""
    seed: int = 0
    """Seed of the noise on the probes."""
    step: int | None = None
    """Checkpoint to use; None for the newest."""
    candidates: tuple[str, ...] = ()
    """Files of diffusion.fit_closed_form to compare with too."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.sigmas or any(not 0 < s < float("inf") for s in self.sigmas):
            raise InputError(f"sigmas are {self.sigmas}; each must be finite and > 0")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be >= 0")


def main() -> None:
    """Parse the command line and compare."""
    workdir, rest = split_positional(
        sys.argv[1:], "the workdir", f"{_PROGRAM} runs/digits"
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {workdir or 'WORKDIR'}",
        description="Write a table, a figure and a page into WORKDIR/comparison.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from analysis.comparison_report import write_comparison

    write_comparison(
        workdir or "",
        options.sigmas,
        seed=options.seed,
        step=options.step,
        candidates=options.candidates,
    )


if __name__ == "__main__":
    exit_on_error(main)
