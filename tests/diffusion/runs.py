"""Training runs for tests and benchmarks: processes, faults, what makes runs equal."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from configs.schema import to_dict
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


PROGRAM = (
    "import sys, json, os, signal, resource;"
    "from configs.schema import ExperimentConfig, from_dict;"
    "from diffusion.command_line import exit_on_error;"
    "from diffusion.training import train;"
    "c = from_dict(ExperimentConfig, json.loads(sys.argv[1]));"
    "limit = int(os.environ.get('FILE_LIMIT', 0));"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "limit and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit));"
    "exit_on_error(lambda: train(c, sys.argv[2]))"
)


def start(config, workdir: Path, file_limit: int = 0) -> subprocess.Popen:
    """Train in a process of its own; a limit on file sizes stands for a full disk."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(to_dict(config)), str(workdir)],
        cwd=ROOT,
        env={**os.environ, "FILE_LIMIT": str(file_limit), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_of(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def unfinished(workdir: Path) -> list[Path]:
    """The temporary directories of checkpoints that are being written."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def resumed_at(output: str) -> int | None:
    """The step that a run says it went on at, if it did."""
    found = output.split(" at step ")
    return int(found[1].split()[0]) if output.startswith("resuming") else None


def largest(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(step: Path) -> None:
    path = largest(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(step: Path) -> None:
    for path in step.rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def delete_a_file(step: Path) -> None:
    largest(step).unlink()


def delete_metadata(step: Path) -> None:
    for path in step.rglob("manifest.ocdbt"):
        path.unlink()


def empty_directory(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def leave_temporary(step: Path) -> None:
    step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp-1"))


FAULTS = (
    truncate,
    flip_a_byte,
    delete_a_file,
    delete_metadata,
    empty_directory,
    leave_temporary,
)
