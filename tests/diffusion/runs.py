"""Training runs for tests: small changes, processes, what makes two runs the same."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from diffusion.training.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def with_training(config, **changes):
    return dataclasses.replace(
        config, training=dataclasses.replace(config.training, **changes)
    )


def stored(workdir: Path, step: int) -> dict[str, str]:
    """The digests of every leaf of the state, as written when it was in memory."""
    meta = json.loads(
        next((workdir / "checkpoints" / str(step)).rglob("metadata")).read_text()
    )
    return meta["digests"]


def process(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **kwargs,
    )


def assert_same_run(first: Path, second: Path, step: int) -> None:
    assert stored(first, step) == stored(second, step)
    rows = [read_metrics(workdir) for workdir in (first, second)]
    for row in (*rows[0], *rows[1]):
        for name in ("seconds", "images_per_second", "device_memory_bytes"):
            del row[name]
    assert rows[0] == rows[1]
    assert len(rows[0]) >= 3
