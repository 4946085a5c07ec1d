"""How good samples are: ``python -m analysis.evaluate SAMPLES --reference DATA``.

SAMPLES and DATA are each a folder, zip, npz or idx.gz of images, the name of a preset
or a packed set, or an npz of ``features`` (n, d); DATA may be statistics, ``mu`` and
``sigma``.  The same command again goes on where an interrupted one stopped.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from analysis.evaluation.choice import METRICS, PROTOCOLS, Limits, Request
from configs.errors import InputError, require, require_choice
from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m analysis.evaluate"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the samples."""

    limits: Annotated[Limits, tyro.conf.arg(name="")]
    reference: str = ""
    """Images that the samples are compared with, features of theirs, or statistics:
    as a rule the whole training set."""
    more_samples: tuple[str, ...] = ()
    """Further sets of images that follow SAMPLES as if they were one."""
    held_out: str | None = None
    """Images that nobody trained on: the control of memorisation."""
    inception: str | None = None
    """File of analysis.import_inception: adds FID, KID, precision and recall, density
    and coverage, and the Inception score."""
    metrics: tuple[str, ...] = ()
    """Names of metrics; all that are possible where none is given."""
    protocol: str = "none"
    """none, or edm: FID of images 0-49999, 50000-99999 and 100000-149999, minimum and
    mean."""
    max_images: int | None = None
    """Take a random subset of so many samples."""
    max_reference_images: int | None = None
    """Take a random subset of so many reference images."""
    reference_statistics: str | None = None
    """File that the reference's Inception statistics are read from, or written to
    where it does not exist."""
    seed: int = 0
    """Of subsets, directions, blocks and resamples."""
    out: str | None = None
    """File to write; None is evaluation.json beside SAMPLES."""
    cache: str | None = None
    """Folder in which Inception features are kept for other evaluations."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in self.metrics:
            require_choice("metric", name, METRICS)
        require_choice("protocol", self.protocol, PROTOCOLS)
        require(self.seed >= 0, "seed", self.seed, ">= 0")
        for name in ("max_images", "max_reference_images"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, ">= 1")


def main() -> None:
    """Parse the command line and evaluate."""
    example = f"{_PROGRAM} runs/x/samples/heun --reference cifar10.zip"
    samples, rest = split_positional(sys.argv[1:], "SAMPLES", example)
    options = parse_options(
        Options(Limits()),
        rest,
        program=f"{_PROGRAM} {samples or 'SAMPLES'}",
        description="Compare samples with data: print a table and write "
        "evaluation.json beside SAMPLES.",
    )
    if not options.reference:
        raise InputError(
            f"no reference was given; name the data with --reference: {example}"
        )
    # Imported here: a wrong command line should not wait for the libraries.
    from analysis.evaluation.report import write_evaluation

    write_evaluation(
        Request(
            samples=(samples or "", *options.more_samples),
            reference=options.reference,
            held_out=options.held_out,
            inception=options.inception,
            metrics=options.metrics,
            protocol=options.protocol,
            max_images=options.max_images,
            max_reference_images=options.max_reference_images,
            reference_statistics=options.reference_statistics,
            seed=options.seed,
            limits=options.limits,
        ),
        out=options.out,
        cache=options.cache,
    )


if __name__ == "__main__":
    exit_on_error(main)
