"""What solvers know of a network: ``python -m samplers.estimate_statistics WORKDIR``.

Statistics for DPM-Solver-v3, or with ``--gains`` those of the residual integrator.
"""

import sys
from dataclasses import dataclass

import tyro

from configs.errors import InputError
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m samplers.estimate_statistics"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the workdir."""

    gains: tyro.conf.UseCounterAction[int] = 0
    """Measure gains for residual_exponential in the place of statistics for
    dpm_solver_v3; a minute."""
    num_levels: int | None = None
    """Noise levels, uniform in log sigma; None is 120, or 20 of gains."""
    num_samples: int | None = None
    """Noised training images per level, None is 1024, or 512 of gains; more help more
    than further levels do."""
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
    """File to write; None is WORKDIR/model_statistics.npz, or WORKDIR/gains.npz."""
    rank: int | None = None
    """--gains: principal directions that are measured one by one; None is 128."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        lowest = {"num_levels": 2, "num_samples": 2, "batch_size": 1, "seed": 0}
        lowest["rank"] = 0
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; it must be >= {least}")
        if self.rank is not None and not self.gains:
            raise InputError(
                f"rank is {self.rank}, but statistics have none; add --gains or leave "
                "it out"
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
        description="Estimate what DPM-Solver-v3 or, with --gains, the residual "
        "integrator knows of the network trained in WORKDIR. An interrupted estimation "
        "of statistics goes on.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from samplers.statistics_run import (
        estimate_for_workdir,
        estimate_gains_for_workdir,
    )

    sigma_range = (options.sigma_min, options.sigma_max)
    if options.gains:
        estimate_gains_for_workdir(
            workdir or "",
            options.out or f"{workdir}/gains.npz",
            num_levels=options.num_levels or 20,
            num_images=options.num_samples or 512,
            batch_size=options.batch_size,
            sigma_range=sigma_range,
            seed=options.seed,
            rank=128 if options.rank is None else options.rank,
            step=options.step,
        )
    else:
        estimate_for_workdir(
            workdir or "",
            options.out or f"{workdir}/model_statistics.npz",
            num_levels=options.num_levels or 120,
            num_samples=options.num_samples or 1024,
            batch_size=options.batch_size,
            sigma_range=sigma_range,
            seed=options.seed,
            step=options.step,
        )


if __name__ == "__main__":
    exit_on_error(main)
