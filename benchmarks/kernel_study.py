"""The kernel study from start to end: seconds, and the figures its page states.

    python -m benchmarks.kernel_study
    python -m benchmarks.kernel_study --only digits
    python -m benchmarks.kernel_study --only mnist --mnist t10k-images-idx3-ubyte.gz

Each data set is studied by the command that users call, in a fresh folder and a process
of its own.  What is measured is added to ``benchmarks/results/kernel_study.json``; a
data set that is not measured keeps its former figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, write_result

__all__ = ["main"]

_OPTIONS = {
    "mixture2d": (),
    "digits": ("--parts", "sizes"),
    "mnist": ("--parts", "sizes", "--landmarks", "2048"),
}


def main() -> None:
    """Study, and write the figures."""
    parser = argparse.ArgumentParser(description="Time the kernel study.")
    parser.add_argument("--only", nargs="+", choices=_OPTIONS, default=["mixture2d"])
    parser.add_argument("--mnist", help="the file of images, idx3-ubyte.gz")
    options = parser.parse_args()
    if "mnist" in options.only and not options.mnist:
        parser.error("mnist needs --mnist FILE, such as t10k-images-idx3-ubyte.gz")
    figures = _former()
    for name in options.only:
        file = ("--data", options.mnist) if name == "mnist" else ()
        figures[name] = _study(name, (*_OPTIONS[name], *file))
        print(f"{name}: {figures[name]['wall_seconds']} s", flush=True)
    write_result("kernel_study", "python -m benchmarks.kernel_study", figures)


def _study(name: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Return the record of one study and the seconds that the command took."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "analysis.kernel_study", name, *options, "--output", folder]
        begun = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True)
        seconds = time.perf_counter() - begun
        record = json.loads((Path(folder) / "record.json").read_text())
    return {
        "options": [o for o in options if "/" not in o],
        "wall_seconds": round(seconds, 1),
        "seconds": {part: round(s, 1) for part, s in record["seconds"].items()},
        "figures": record["figures"],
    }


def _former() -> dict[str, Any]:
    path = RESULTS / "kernel_study.json"
    return json.loads(path.read_text())["figures"] if path.is_file() else {}


if __name__ == "__main__":
    main()
