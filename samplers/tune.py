"""Choose a sampler for a run: ``python -m samplers.tune WORKDIR --calls 6``."""

import sys
from dataclasses import dataclass

from configs.errors import InputError
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m samplers.tune"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the workdir."""

    calls: int = 6
    """Network calls per image."""
    verify: int = 8
    """Images on which the best are tried with the network itself; 0 for none."""
    surrogate: str | None = None
    """File of a mixture to search on; None fits one to the training images."""
    seed: int = 0
    """Seed of everything that is drawn."""
    step: int | None = None
    """Checkpoint to use; None for the newest."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in {"calls": 2, "verify": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}; it must be >= {least}"
                )


def main() -> None:
    """Parse the command line and tune."""
    workdir, rest = split_positional(
        sys.argv[1:], "the workdir", f"{_PROGRAM} runs/digits --calls 6"
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {workdir or 'WORKDIR'}",
        description="Choose start, solver and grid for the network trained in WORKDIR "
        "on a mixture of its training images, try the best on the network, and keep "
        "the choice in WORKDIR/tuned-CALLS.json. An interrupted search goes on.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from samplers.tuning_run import tune

    tune(
        workdir or "",
        options.calls,
        num_verified=options.verify,
        surrogate=options.surrogate,
        seed=options.seed,
        step=options.step,
    )


if __name__ == "__main__":
    exit_on_error(main)
