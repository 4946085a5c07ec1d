"""Statistics for DPM-Solver-v3: ``python -m samplers.estimate_statistics WORKDIR``."""

import sys
from dataclasses import dataclass

from configs.errors import InputError
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m samplers.estimate_statistics"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the workdir."""

    num_levels: int = 120
    """Noise levels, uniform in log sigma."""
    num_samples: int = 1024
    """Noised training images per level; more help more than further levels do."""
    batch_size: int = 128
    """Images at once."""
    sigma_min: float = 0.002
    """Lowest noise level, data units."""
    sigma_max: float = 80.0
    """Highest noise level, data units."""
    seed: int = 0
    """Seed of images, noise and probes."""
    step: int | None = None
    """Checkpoint to use; None for the newest."""
    out: str | None = None
    """File to write; None is WORKDIR/model_statistics.npz."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        lowest = {"num_levels": 2, "num_samples": 2, "batch_size": 1, "seed": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}; it must be >= {least}"
                )
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; they "
                "must satisfy 0 < sigma_min < sigma_max"
            )


def main() -> None:
    """Parse the command line and estimate."""
    workdir, rest = split_positional(
        sys.argv[1:], "the workdir", f"{_PROGRAM} runs/digits"
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {workdir or 'WORKDIR'}",
        description="Estimate the model statistics that DPM-Solver-v3 needs on the "
        "network trained in WORKDIR. An interrupted estimation goes on.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from samplers.statistics_run import estimate_for_workdir

    estimate_for_workdir(
        workdir or "",
        options.out or f"{workdir}/model_statistics.npz",
        num_levels=options.num_levels,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
        sigma_range=(options.sigma_min, options.sigma_max),
        seed=options.seed,
        step=options.step,
    )


if __name__ == "__main__":
    exit_on_error(main)
