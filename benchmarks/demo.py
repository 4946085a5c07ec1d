"""The main job, timed from an empty workdir, and once more when it is done.

Command: .venv/bin/python -m benchmarks.demo
Nothing else should run meanwhile.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import write_result


def main() -> None:
    """Run the demo twice and write its figures."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "demo"
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            command = [sys.executable, "-m", "analysis.demo", "--workdir", str(workdir)]
            subprocess.run(command, check=True)
            seconds.append(time.perf_counter() - started)
        metrics = json.loads((workdir / "metrics.json").read_text())
        checkpoints = len(
            [p for p in (workdir / "checkpoints").iterdir() if p.is_dir()]
        )
    for key in ("settings", "versions"):
        metrics.pop(key)
    figures = {
        "seconds_first_call": round(seconds[0], 1),
        "seconds_second_call": round(seconds[1], 1),
        "checkpoints_kept": checkpoints,
        **metrics,
    }
    write_result("demo", "python -m benchmarks.demo", figures)


if __name__ == "__main__":
    main()
