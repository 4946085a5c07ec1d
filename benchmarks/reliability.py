"""Training that is killed, starved and damaged, round after round.

    python -m benchmarks.reliability [--rounds 100]

Each SIGKILL round starts or resumes a run and kills it: at a random moment after it has
made progress, every second time while a checkpoint is being written (its temporary
directory exists), and every fifth time before the first progress of its own.  After ten
kills a run is left in peace; its final state is compared bit for bit with one that
nothing has happened to, and the next begins.  Then damage to files, a disk that is full
at once or after the first half of a run, signals.
"""

import argparse
import dataclasses
import json
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import write_result
from configs.mixture2d import config as toy
from configs.network_schema import MLPConfig
from configs.schema import ExperimentConfig
from diffusion.training import train
from tests.diffusion.runs import FAULTS, resumed_at, start, steps_of, unfinished

STEPS = 3_000
KILLS_PER_RUN = 10


def run_config() -> ExperimentConfig:
    """A perceptron large enough that a checkpoint takes a moment to write."""
    training = dataclasses.replace(
        toy.training,
        num_steps=STEPS,
        batch_size=64,
        log_every_steps=1_000,
        evaluation_images=64,
        checkpoint_every_steps=500,
        checkpoint_every_seconds=0.2,
        keep_checkpoints=3,
    )
    network = MLPConfig(width=128, num_layers=3)
    return dataclasses.replace(toy, network=network, training=training)


def shortened(config: ExperimentConfig, steps: int) -> ExperimentConfig:
    training = dataclasses.replace(config.training, num_steps=steps)
    return dataclasses.replace(config, training=training)


def digests(workdir: Path) -> dict[str, str]:
    """The digests of every leaf of the final state."""
    place = workdir / "checkpoints" / str(STEPS)
    return json.loads(next(place.rglob("metadata")).read_text())["digests"]


class Round:
    """What happened in one round."""

    def __init__(self, process: subprocess.Popen, inside: bool, newest: int) -> None:
        self.output, self.errors = process.communicate()
        self.code, self.inside, self.newest = process.returncode, inside, newest
        self.resumed_at = resumed_at(self.output)


def kill_once(
    config: ExperimentConfig, workdir: Path, rng: random.Random, moment: str
) -> Round:
    """Start or resume, kill, and say what was killed.

    Args:
        config: What is trained.
        workdir: Where.
        rng: Chooses the moment.
        moment: "write", "random", both after progress, or "early", before it.
    """
    newest = max(steps_of(workdir), default=0)
    process = start(config, workdir)

    def progressed() -> bool:
        return max(steps_of(workdir), default=0) > newest

    if moment != "early":
        while process.poll() is None and not progressed():
            time.sleep(0.001)
    # A start takes some seconds: imports, data, compilation.
    until = time.monotonic() + rng.uniform(0.0, 6.0 if moment == "early" else 1.5)
    while process.poll() is None:
        if moment == "write" and unfinished(workdir):
            break
        if moment != "write" and time.monotonic() >= until:
            break
        if moment == "early" and progressed():
            break
        time.sleep(0.0005)
    process.kill()
    found = Round(process, False, newest)
    found.inside = found.code != 0 and bool(unfinished(workdir))
    return found


def kills(config: ExperimentConfig, wanted: dict[str, str], rounds: int) -> dict:
    """Kill so many times; every run that ends must be the uninterrupted one."""
    rng = random.Random(0)
    counts = {
        "kills": 0,
        "inside_a_write": 0,
        "before_progress": 0,
        "resumed": 0,
        "runs": 0,
        "lost": 0,
    }
    of_this_run = 0
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run0"
        while counts["kills"] < rounds or of_this_run:
            moment = "write" if counts["kills"] % 2 == 0 else "random"
            moment = "early" if counts["kills"] % 5 == 4 else moment
            if of_this_run == KILLS_PER_RUN or counts["kills"] == rounds:
                newest = max(steps_of(workdir), default=0)
                found = Round(start(config, workdir), False, newest)
                assert found.code == 0, found.errors
            else:
                found = kill_once(config, workdir, rng, moment)
            if found.resumed_at is not None:
                counts["resumed"] += 1
                assert found.resumed_at >= found.newest, (found.output, found.newest)
            elif found.newest > 0:
                # Killed before it could say so does not count as a loss of steps.
                assert found.code != 0, found.output + found.errors
            if found.code == 0:
                counts["runs"] += 1
                counts["lost"] += digests(workdir) != wanted
                workdir, of_this_run = Path(folder) / f"run{counts['runs']}", 0
                continue
            of_this_run += 1
            counts["kills"] += 1
            counts["inside_a_write"] += found.inside
            newest = max(steps_of(workdir), default=0)
            counts["before_progress"] += newest <= found.newest
    return counts


def damages(config: ExperimentConfig, wanted: dict[str, str]) -> dict[str, int]:
    """Damage the newest checkpoint of half a run in each way, and go on."""
    lost = {}
    half = shortened(config, STEPS // 2)
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "run"
            train(half, workdir)
            fault(workdir / "checkpoints" / str(STEPS // 2))
            found = Round(start(config, workdir), False, 0)
            assert found.code == 0, found.errors
            resumed = found.resumed_at
            assert resumed is not None and 0 < resumed < STEPS // 2, found.output
            lost[fault.__name__] = int(digests(workdir) != wanted)
    return lost


def full_disk_and_signals(
    config: ExperimentConfig, wanted: dict[str, str]
) -> dict[str, int]:
    """A limit on file sizes stands in for a full disk; then SIGTERM and SIGINT."""
    lost = {}
    for name, steps in (("full_disk", 0), ("full_disk_after_half", STEPS // 2)):
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "run"
            if steps:
                train(shortened(config, steps), workdir)
            found = Round(start(config, workdir, file_limit=100_000), False, 0)
            assert found.code == 2 and "error: " in found.errors, found.errors
            found = Round(start(config, workdir), False, 0)
            assert found.code == 0, found.errors
            assert (found.resumed_at or 0) >= steps, found.output
            lost[name] = int(digests(workdir) != wanted)
    for number in (signal.SIGTERM, signal.SIGINT):
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "run"
            process = start(config, workdir)
            while process.poll() is None and len(steps_of(workdir)) < 3:
                time.sleep(0.01)
            process.send_signal(number)
            found = Round(process, False, 0)
            assert found.code == 0, found.errors
            assert "run the same command to continue" in found.output, found.output
            found = Round(start(config, workdir), False, 0)
            assert found.code == 0 and found.resumed_at, found.errors
            lost[number.name] = int(digests(workdir) != wanted)
    return lost


def main() -> None:
    """Run all rounds and write what was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    config = run_config()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(config, folder)
        wanted = digests(Path(folder))
    figures = {
        "steps_of_a_run": STEPS,
        "sigkill": kills(config, wanted, rounds),
        "lost_after_damage": damages(config, wanted),
        "lost_after_full_disk_and_signals": full_disk_and_signals(config, wanted),
    }
    figures["seconds"] = round(time.perf_counter() - started, 1)
    command = f"python -m benchmarks.reliability --rounds {rounds}"
    write_result("reliability", command, figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
