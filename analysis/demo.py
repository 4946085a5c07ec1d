"""The main job: ``python -m analysis.demo`` trains on digits and writes a report.

Run again it resumes what is unfinished, or says that it is done.
"""

import sys
from dataclasses import dataclass

from diffusion.command_line import exit_on_error, parse_options

__all__ = ["main"]


@dataclass(frozen=True)
class Options:
    """Everything the command takes."""

    workdir: str = "runs/demo"
    """Folder of the run and its report."""


def main() -> None:
    """Parse the command line, train, and write the report."""
    options = parse_options(
        Options(),
        sys.argv[1:],
        program="python -m analysis.demo",
        description="Train on handwritten digits, sample, compare, write a report.",
    )
    from analysis.run_report import ReportSettings, run_demo
    from configs.digits import config

    run_demo(config, options.workdir, ReportSettings())


if __name__ == "__main__":
    exit_on_error(main)
