"""The studies from start to end: seconds, and the figures that their pages state.

    python -m benchmarks.studies mixture2d digits spiral
    python -m benchmarks.studies mnist --mnist t10k-images-idx3-ubyte.gz

Each data set is studied by the command that users call, in a fresh folder and a process
of its own.  What is measured is added to ``benchmarks/results/kernel_study.json`` and
``autoencoder_study.json``; a data set that is not measured keeps its former figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results_file import RESULTS, write_result

__all__ = ["main"]


class _Call(NamedTuple):
    study: str
    options: tuple[str, ...] = ()


_CALLS = {
    "mixture2d": _Call("kernel_study"),
    "digits": _Call("kernel_study", ("--parts", "sizes")),
    "mnist": _Call("kernel_study", ("--parts", "sizes", "--landmarks", "2048")),
    "spiral": _Call("autoencoder_study"),
}


def main() -> None:
    """Study, and write the figures."""
    parser = argparse.ArgumentParser(description="Time the studies.")
    parser.add_argument("names", nargs="+", choices=_CALLS)
    parser.add_argument("--mnist", help="the file of images, idx3-ubyte.gz")
    options = parser.parse_args()
    if "mnist" in options.names and not options.mnist:
        parser.error("mnist needs --mnist FILE, such as t10k-images-idx3-ubyte.gz")
    for name in options.names:
        call = _CALLS[name]
        file = ("--data", options.mnist) if name == "mnist" else ()
        figures = _former(call.study)
        figures[name] = _study(name, call, file)
        print(f"{name}: {figures[name]['wall_seconds']} s", flush=True)
        write_result(call.study, f"python -m benchmarks.studies {name}", figures)


def _study(name: str, call: _Call, file: tuple[str, ...]) -> dict[str, Any]:
    """Return the record of one study and the seconds that the command took."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", f"analysis.{call.study}", name, *call.options, *file]
        begun = time.perf_counter()
        subprocess.run([sys.executable, *command, "--output", folder], check=True)
        seconds = time.perf_counter() - begun
        record = json.loads((Path(folder) / "record.json").read_text())
    return {
        "options": list(call.options),
        "wall_seconds": round(seconds, 1),
        "seconds": {part: round(s, 1) for part, s in record["seconds"].items()},
        "figures": record["figures"],
    }


def _former(study: str) -> dict[str, Any]:
    path = RESULTS / f"{study}.json"
    return json.loads(path.read_text())["figures"] if path.is_file() else {}


if __name__ == "__main__":
    main()
