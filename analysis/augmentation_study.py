"""Ways to augment, side by side: ``python -m analysis.augmentation_study PRESET``.

Trains every arm with every seed, measures them, and writes one table, figure and page.
The same command again goes on where it stopped.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from analysis.augmentation_arms import ARMS, build_arm
from configs.errors import InputError
from configs.presets import load_preset, preset_names
from configs.schema import ExperimentConfig
from diffusion.command_line import exit_on_error, parse_options, split_positional
from diffusion.host_memory import keep_freed_memory

__all__ = ["main"]

_PROGRAM = "python -m analysis.augmentation_study"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the preset."""

    experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    workdir: str
    """Folder of the study; each run has a folder in it."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Arms: none, nla, score, both, each with -blind for no condition; behind = other
    transforms than augmentation.transforms, such as score-blind=rot90,flip."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of every arm with every seed; arms of one seed see the same images and
    noise."""
    num_samples: int = 1000
    """Samples drawn to look for copies and leaks."""
    sampled_checkpoints: int = 1
    """Checkpoints that are sampled: the last one, and others spread over training."""
    num_points: int = 18
    """Points of the sampler's grid."""
    background: bool = False
    """The images' background is -1: samples with another one tell that a gain
    leaked."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_samples", "sampled_checkpoints", "num_points"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 1")
        for name in ("arms", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise InputError(f"{name} are {given}; give one or more, each once")


def main() -> None:
    """Parse the command line and run the study."""
    preset, rest = split_positional(
        sys.argv[1:], "the preset", f"{_PROGRAM} glyphs --arms none score nla"
    )
    name = preset or "glyphs"
    options = parse_options(
        Options(load_preset(name), f"runs/augmentation/{name.replace(':', '-')}"),
        rest,
        program=f"{_PROGRAM} {preset or 'PRESET'}",
        description="Train arms that differ in the augmentation alone, and compare "
        "them. PRESET is one of: " + ", ".join(preset_names()) + ".",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    from analysis.augmentation_report import write_study
    from analysis.augmentation_runs import Settings, run_study

    keep_freed_memory()
    base = options.experiment
    arms = [build_arm(text, base.augmentation) for text in options.arms]
    settings = Settings.of_arms(
        arms,
        num_samples=options.num_samples,
        sampled_checkpoints=options.sampled_checkpoints,
        num_points=options.num_points,
        background=options.background,
    )
    runs = run_study(arms, base, options.seeds, options.workdir, settings)
    flips = "half" if base.data.horizontal_flip else "none"
    summary = (
        f"{len(arms)} arms, {len(options.seeds)} seeds, {base.training.num_steps:,} "
        f"steps of {base.training.batch_size} images each, on {name}; {flips} of the "
        "images are mirrored besides what an arm does."
    )
    write_study(runs, options.workdir, f"Augmentation on {name}", summary)
    print(f"study: {options.workdir}/study.html")


if __name__ == "__main__":
    exit_on_error(main)
