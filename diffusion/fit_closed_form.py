"""Fit a closed-form model: ``python -m diffusion.fit_closed_form DATASET [options]``.

DATASET is the name of a preset or a path to images: an EDM zip, a folder, an npz or an
idx.gz.  The same command again resumes, or says that it is done.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from configs.closed_form_schema import ClosedFormConfig
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m diffusion.fit_closed_form"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the data set."""

    fit: Annotated[ClosedFormConfig, tyro.conf.arg(name="")]
    out: str | None = None
    """File to write; None is runs/closed_form/DATASET-KIND.npz."""


def main() -> None:
    """Parse the command line and fit."""
    dataset, rest = split_positional(
        sys.argv[1:], "the data set", f"{_PROGRAM} digits --kind gaussian"
    )
    options = parse_options(
        Options(ClosedFormConfig()),
        rest,
        program=f"{_PROGRAM} {dataset or 'DATASET'}",
        description="Fit a Gaussian, a mixture or the empirical model to images. "
        "DATASET is a preset's name or a path: EDM zip, folder, npz, idx.gz.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from diffusion.closed_form_fitting import fit_to_file

    name = Path(dataset or "").name.split(".")[0]
    default = f"runs/closed_form/{name}-{options.fit.kind}.npz"
    fit_to_file(dataset or "", options.out or default, options.fit)


if __name__ == "__main__":
    exit_on_error(main)
