"""The whole test suite: how many tests, how long, which are the slowest.

Command: .venv/bin/python -m benchmarks.suite
"""

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.results_file import write_result

_WORKERS = ("-n", "2")


def run(*selection: str) -> dict[str, object]:
    """Run pytest and return its figures; fails when a test fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *_WORKERS, *selection]
        started = time.perf_counter()
        subprocess.run([*command, f"--junitxml={report}"], check=True)
        seconds = time.perf_counter() - started
        cases = list(ElementTree.parse(report).iter("testcase"))
    slowest = sorted(cases, key=lambda case: -float(case.get("time", 0)))[:10]
    return {
        "tests": len(cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
        "seconds": round(seconds, 1),
        "slowest": {
            f"{case.get('classname')}.{case.get('name')}": float(case.get("time", 0))
            for case in slowest
        },
    }


def main() -> None:
    """Run the fast tests, then all of them, and write the summary."""
    figures = {"make test": run("-m", "not slow"), "make test-all": run()}
    write_result("suite", "python -m benchmarks.suite", figures)


if __name__ == "__main__":
    main()
