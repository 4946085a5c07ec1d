"""Kernel regression and tangent kernels: speed, memory and accuracy, in one run.

Command: python -m benchmarks.kernels [--only PART ...] [--without PART ...] [--tiny]

Each part is a process of its own, so that its peak of resident memory is its own.
Results are asserted equal to the peer's before anything is timed.  Parts: exact (the
exact path against NumPy and SciPy), gram (share of the matrix product's speed), nystrom
(50,000 points), stream (a million points), accuracy (Nystrom against the exact fit),
two_layers (three exact tangent kernels), unet (a U-Net's, traced by probes).  A run
writes what it measured beside what an earlier one did; with --tiny it writes nothing.
Nothing else should run meanwhile; see `benchmarks.kernel_regression_speed` and
`benchmarks.tangent_kernel_speed` for what is done.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.kernel_regression_speed import (
    measure_accuracy,
    measure_exact,
    measure_gram,
    measure_nystrom,
    measure_stream,
)
from benchmarks.results_file import RESULTS, write_result
from benchmarks.tangent_kernel_speed import measure_two_layers, measure_unet

_COMMAND = "python -m benchmarks.kernels"
PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "exact": measure_exact,
    "gram": measure_gram,
    "nystrom": measure_nystrom,
    "stream": measure_stream,
    "accuracy": measure_accuracy,
    "two_layers": measure_two_layers,
    "unet": measure_unet,
}


def main() -> None:
    """Measure the parts one after another, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS))
    parser.add_argument("--without", nargs="+", choices=tuple(PARTS), default=[])
    parser.add_argument("--tiny", action="store_true", help="small; writes nothing")
    parser.add_argument("--inside", choices=tuple(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(_inside(options.inside, options.tiny)))
        return
    figures = {}
    path = RESULTS / "kernels.json"
    selected = [p for p in options.only or PARTS if p not in options.without]
    if set(selected) != set(PARTS) and path.is_file():
        figures = json.loads(path.read_text())["figures"]
    for part in selected:
        figures[part] = _in_a_process(part, options.tiny)
        print(f"{part}: {json.dumps(figures[part])}", flush=True)
        if not options.tiny:
            write_result("kernels", _COMMAND, figures)


def _inside(part: str, tiny: bool) -> dict[str, Any]:
    """Measure one part in this process, and what it needed."""
    started = time.perf_counter()
    figures = PARTS[part](tiny)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    whole = time.perf_counter() - started
    return {**figures, "seconds_of_the_part": whole, "peak_gib_of_the_part": peak}


def _in_a_process(part: str, tiny: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.kernels", "--inside", part]
    command += ["--tiny"] if tiny else []
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
