"""Import a checkpoint: ``python -m diffusion.import_checkpoint FILE --workdir DIR``.

Reads EDM's ``.pkl`` snapshots and folders of diffusers' ``UNet2DModel``; nothing in the
file is executed, and nothing is downloaded.
"""

import sys
from dataclasses import dataclass

from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m diffusion.import_checkpoint"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the file."""

    workdir: str
    """Folder to write: the same as a trained run's."""
    data: str | None = None
    """The images it was trained on, as a preset or an archive; what is needed to
    teleport and to compare."""


def main() -> None:
    """Parse the command line and import."""
    path, rest = split_positional(
        sys.argv[1:],
        "the file",
        f"{_PROGRAM} edm-cifar10.pkl --workdir runs/edm-cifar10",
    )
    options = parse_options(
        Options("runs/imported"),
        rest,
        program=f"{_PROGRAM} {path or 'FILE'}",
        description="Import a checkpoint of EDM (.pkl) or of diffusers' UNet2DModel (a "
        "folder). Nothing in it is executed.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from diffusion.importing import import_checkpoint

    model = import_checkpoint(path or "", options.workdir, data=options.data)
    shape = "x".join(map(str, model.event_shape))
    kind = type(model.network).__name__.removesuffix("Config")
    print(f"imported a {kind} for {shape} images into {options.workdir}")
    if model.notice:
        print(f"licence: {model.notice}")
    if options.data is None:
        print(
            "without --data there is no Gaussian to teleport with, nor to compare with"
        )
    print(f"next: python -m samplers.generate {options.workdir}")


if __name__ == "__main__":
    exit_on_error(main)
