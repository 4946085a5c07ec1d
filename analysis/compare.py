"""A network's score against closed forms: ``python -m analysis.compare WORKDIR``."""

import sys

from analysis.comparison.settings import ComparisonSettings
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m analysis.compare"


def main() -> None:
    """Parse the command line and compare."""
    workdir, rest = split_positional(
        sys.argv[1:], "the workdir", f"{_PROGRAM} runs/digits"
    )
    settings = parse_options(
        ComparisonSettings(),
        rest,
        program=f"{_PROGRAM} {workdir or 'WORKDIR'}",
        description="Write tables, figures and a page into WORKDIR/comparison. The "
        "same command again goes on where it was interrupted.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from analysis.comparison.report import write_comparison

    write_comparison(workdir or "", settings)


if __name__ == "__main__":
    exit_on_error(main)
