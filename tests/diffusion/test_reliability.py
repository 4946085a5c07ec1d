"""Runs that are killed, stopped, starved of disk or damaged, and go on as if not."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import InputError
from configs.mixture2d import config as toy
from configs.network_schema import MLPConfig
from configs.schema import to_dict
from diffusion.training import train
from diffusion.training.locking import lock_workdir
from diffusion.training.loop import _memory_errors
from tests.diffusion.runs import ROOT, assert_same_run, stored, with_training

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
STEPS = 200


@pytest.fixture(scope="module")
def config():
    """A perceptron wide enough that a checkpoint takes a moment to write."""
    return with_training(
        dataclasses.replace(toy, network=MLPConfig(width=96, num_layers=2)),
        num_steps=STEPS,
        batch_size=32,
        log_every_steps=100,
        evaluation_images=32,
        checkpoint_every_steps=20,
        checkpoint_every_seconds=1000.0,
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """The run that nothing has happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    train(config, workdir)
    return workdir


def start(config, workdir: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(to_dict(config)), str(workdir)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_of(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> bool:
    """Wait until the condition holds; False when the process ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        if process.poll() is not None:
            return False
    raise AssertionError("it took too long")


def unfinished(workdir: Path) -> list[Path]:
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def went_on(output: str) -> int:
    """The step that a run says it resumed at."""
    return int(output.split(" at step ")[1].split()[0])


# Over five seconds: only processes of their own can be killed.
def test_killed_within_a_checkpoint_write_it_goes_on(config, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(config, workdir)
    inside = wait_for(
        lambda: len(steps_of(workdir)) >= 2 and unfinished(workdir), process
    )
    process.kill()
    process.communicate()
    assert inside, "the run ended before it could be killed"
    assert unfinished(workdir), "the kill came after the write"
    newest = steps_of(workdir)[-1]
    again = start(config, workdir)
    output, errors = again.communicate()
    assert again.returncode == 0, errors
    assert went_on(output) >= newest > 0
    assert_same_run(whole, workdir, STEPS)
    assert not unfinished(workdir)


def test_stopped_by_a_signal_it_saves_and_says_how_to_go_on(config, whole, tmp_path):
    workdir = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(config, workdir)
        before = len(steps_of(workdir))
        assert wait_for(lambda n=before: len(steps_of(workdir)) > n, process)
        process.send_signal(number)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "run the same command to continue" in output
        stopped = int(output.split("stopped at step ")[1].split()[0])
        assert steps_of(workdir)[-1] == stopped < STEPS
    last = start(config, workdir)
    output, errors = last.communicate()
    assert went_on(output) == stopped, errors
    assert_same_run(whole, workdir, STEPS)


def largest(folder: Path) -> Path:
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def truncate(step: Path) -> None:
    path = largest(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(step: Path) -> None:
    for path in step.rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def delete_file(step: Path) -> None:
    largest(step).unlink()


def delete_metadata(step: Path) -> None:
    for path in step.rglob("manifest.ocdbt"):
        path.unlink()


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def leave_temporary(step: Path) -> None:
    name = f"{step.name}.orbax-checkpoint-tmp-1"
    shutil.copytree(step, step.with_name(name))
    shutil.rmtree(step)


@pytest.fixture(scope="module")
def half(config, tmp_path_factory) -> Path:
    """The first half of the run."""
    workdir = tmp_path_factory.mktemp("half")
    train(with_training(config, num_steps=STEPS // 2), workdir)
    return workdir


@pytest.mark.parametrize(
    "fault",
    [truncate, flip, delete_file, delete_metadata, empty, leave_temporary],
    ids=lambda fault: fault.__name__,
)
def test_damage_to_the_newest_checkpoint_costs_no_more_than_the_steps_since(
    config, whole, half, tmp_path, capsys, fault
):
    workdir = tmp_path / "run"
    shutil.copytree(half, workdir)
    assert steps_of(workdir)[-1] == STEPS // 2
    fault(workdir / "checkpoints" / str(STEPS // 2))
    capsys.readouterr()
    train(config, workdir)
    assert 0 < went_on(capsys.readouterr().out) < STEPS // 2
    assert_same_run(whole, workdir, STEPS)


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on(config, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(config, workdir, FILE_LIMIT="100000")
    output, errors = process.communicate()
    assert process.returncode == 2, output + errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "run the same command again" in lines[0]
    train(config, workdir)
    assert_same_run(whole, workdir, STEPS)


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost(config, whole, tmp_path):
    rng = random.Random(0)
    workdir, resumed, last = tmp_path / "run", 0, 0
    while True:
        process = start(config, workdir)
        try:
            output, errors = process.communicate(timeout=rng.uniform(2.0, 9.0))
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        else:
            assert process.returncode == 0, errors
        if " at step " in output:
            resumed += 1
            assert went_on(output) >= last
            last = went_on(output)
        if process.returncode == 0:
            break
    assert resumed >= 1
    assert_same_run(whole, workdir, STEPS)


def test_a_workdir_in_use_is_refused_until_its_process_ends(tiny_config, tmp_path):
    program = (
        "import sys, time; from diffusion.training.locking import lock_workdir\n"
        "with lock_workdir(sys.argv[1]):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"in use by another.*{process.pid}"):
        train(tiny_config, tmp_path)
    process.kill()
    process.communicate()
    with lock_workdir(tmp_path):  # the file is still there, the lock is not
        assert (tmp_path / ".lock").is_file()


def test_changes_of_logging_and_saving_change_no_parameter(tiny_config, tmp_path):
    for name, log, save in (("a", 5, 10), ("b", 20, 20), ("c", 4, 4)):
        train(
            with_training(
                tiny_config, log_every_steps=log, checkpoint_every_steps=save
            ),
            tmp_path / name,
        )
    found = [stored(tmp_path / name, 20) for name in ("a", "b", "c")]
    for item in ("params", "ema_params", "opt_state"):
        assert found[0][item] == found[1][item] == found[2][item]


def test_the_newest_checkpoints_and_regular_ones_are_kept(tiny_config, tmp_path):
    config = with_training(
        tiny_config,
        num_steps=20,
        checkpoint_every_steps=8,
        checkpoint_every_seconds=1e-9,
        keep_checkpoints=3,
    )
    train(config, tmp_path)
    assert steps_of(tmp_path) == [0, 8, 16, 18, 19, 20]


def test_a_checkpoint_of_other_images_is_refused(tiny_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    for path in (workdir / "checkpoints").rglob("metadata"):
        values = json.loads(path.read_text())
        values["data"]["digest"] = "0" * 64
        path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="trained on images with digest 0000"):
        train(with_training(tiny_config, num_steps=30), workdir)


def test_out_of_memory_says_what_helps(tiny_config):
    import jax

    with pytest.raises(InputError, match=r"out of memory.*--training\.accumulation"):
        with _memory_errors(tiny_config):
            # What a device that is too small raises: more than any machine has.
            jax.block_until_ready(jax.numpy.zeros(2**50, np.uint8))
    with pytest.raises(ZeroDivisionError), _memory_errors(tiny_config):
        raise ZeroDivisionError
