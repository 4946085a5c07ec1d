"""Closed-form denoisers against public peers, and fits at data-set scale.

Command: .venv/bin/python -m benchmarks.closed_form --data PATH
PATH is a folder with cifar10-jpeg-train.zip, cifar10-jpeg-test.zip and
cifar10-raw-5k.npz; without it generated images take their place where that is possible.
Needs the extra `bench` (torch).  Nothing else should run meanwhile; takes 20 minutes.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.closed_form_fits import (
    measure_denoising_loss,
    measure_em,
    measure_held_out,
    measure_moments,
)
from benchmarks.closed_form_speed import (
    measure_empirical,
    measure_gaussian,
    measure_mixture,
    measure_small_sigma,
    measure_teleport,
)
from benchmarks.images import generated_images, load_images
from benchmarks.results_file import RESULTS, write_result

_NEEDS_DATA = ("denoising_loss", "em", "held_out")


def sections(folder: Path | None) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what can be measured with the data at hand."""
    if folder is None:
        images = generated_images(50_000)
        print(f"without --data left out: {', '.join(_NEEDS_DATA)}; others: noise")
    else:
        images = load_images(folder / "cifar10-jpeg-train.zip")
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "empirical": lambda: measure_empirical(images),
        "empirical_small_sigma": measure_small_sigma,
        "mixture": lambda: measure_mixture(images),
        "gaussian": lambda: measure_gaussian(images),
        "teleport": measure_teleport,
        "moments": lambda: measure_moments(images),
    }
    if folder is not None:
        raw = load_images(folder / "cifar10-raw-5k.npz")
        test = load_images(folder / "cifar10-jpeg-test.zip")
        found["denoising_loss"] = lambda: measure_denoising_loss(images, raw)
        found["held_out"] = lambda: measure_held_out(images, test)
        found["em"] = lambda: measure_em(images, test)
    return found


def main() -> None:
    """Measure each section and write what came out after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", help="measure these, keep the others")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "images": "generated" if options.data is None else "cifar10-jpeg-train.zip"
    }
    if options.only:
        figures = json.loads((RESULTS / "closed_form.json").read_text())["figures"]
    figures["peers"] = {
        name: importlib.metadata.version(name)
        for name in ("torch", "scikit-learn", "scipy")
    }
    for name, measure in sections(options.data).items():
        if options.only and name not in options.only:
            continue
        figures[name] = measure()
        print(name, figures[name], flush=True)
        write_result(
            "closed_form", "python -m benchmarks.closed_form --data PATH", figures
        )


if __name__ == "__main__":
    main()
