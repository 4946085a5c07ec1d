"""What auto-encoders learn: ``python -m analysis.autoencoder_study DATA``."""

import sys

from analysis.reconstruction_study.settings import BUILT_IN, StudySettings
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m analysis.autoencoder_study"


def main() -> None:
    """Parse the command line and run the study."""
    name, rest = split_positional(sys.argv[1:], "the data set", f"{_PROGRAM} spiral")
    settings = parse_options(
        StudySettings(),
        rest,
        program=f"{_PROGRAM} {name or 'DATA'}",
        description="Write a page, tables and figures on the data set DATA: "
        + ", ".join(BUILT_IN)
        + ", the folder of a run, whose network is looked at too, or the path of a "
        "file .npz with x (n, d), or .csv. The same command again goes on where it was "
        "interrupted.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from analysis.reconstruction_study.report import write_study

    write_study(name or "", settings)


if __name__ == "__main__":
    exit_on_error(main)
