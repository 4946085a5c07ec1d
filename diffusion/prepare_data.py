"""Prepare images for training: ``python -m diffusion.prepare_data KIND [options]``.

KIND is cifar10, cifar10_5k, mnist, ffhq64, afhqv2_64, imagenet64, folder, zip, npz, idx
or tfds:NAME.  The same command again goes on, or says that it is done.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from configs.preparation_schema import PreparationConfig
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m diffusion.prepare_data"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the kind."""

    preparation: Annotated[PreparationConfig, tyro.conf.arg(name="")] = field(
        default_factory=PreparationConfig
    )


def main() -> None:
    """Parse the command line and prepare."""
    kind, rest = split_positional(
        sys.argv[1:],
        "the kind of data set",
        f"{_PROGRAM} folder --source images --image-size 64 64",
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {kind or 'KIND'}",
        description="Prepare and pack images for training. KIND is cifar10, "
        "cifar10_5k, mnist, ffhq64, afhqv2_64, imagenet64, folder, zip, npz, idx or "
        "tfds:NAME.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from diffusion.data.prepare import prepare_data

    prepare_data(kind or "", options.preparation)


if __name__ == "__main__":
    exit_on_error(main)
