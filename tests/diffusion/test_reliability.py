"""Runs that are killed, stopped, starved of disk or damaged, and go on as if not."""

import dataclasses
import json
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
from diffusion.training import train
from diffusion.training.locking import lock_workdir
from diffusion.training.loop import _memory_errors
from tests.diffusion.runs import (
    FAULTS,
    ROOT,
    assert_same_run,
    resumed_at,
    start,
    steps_of,
    stored,
    unfinished,
    with_training,
)

STEPS = 200


@pytest.fixture(scope="module")
def config():
    """A perceptron wide enough that a checkpoint takes a moment to write."""
    return with_training(
        dataclasses.replace(toy, network=MLPConfig(width=96, num_layers=2)),
        num_steps=STEPS,
        batch_size=32,
        log_every_steps=50,
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


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> bool:
    """Wait until the condition holds; False when the process ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        if process.poll() is not None:
            return False
    raise AssertionError("it took too long")


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
    assert resumed_at(output) >= newest > 0
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
    assert resumed_at(output) == stopped, errors
    assert_same_run(whole, workdir, STEPS)


@pytest.fixture(scope="module")
def half(config, tmp_path_factory) -> Path:
    """The first half of the run."""
    workdir = tmp_path_factory.mktemp("half")
    train(with_training(config, num_steps=STEPS // 2), workdir)
    return workdir


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damage_to_the_newest_checkpoint_costs_no_more_than_the_steps_since(
    config, whole, half, tmp_path, capsys, fault
):
    workdir = tmp_path / "run"
    shutil.copytree(half, workdir)
    assert steps_of(workdir)[-1] == STEPS // 2
    fault(workdir / "checkpoints" / str(STEPS // 2))
    capsys.readouterr()
    train(config, workdir)
    assert 0 < resumed_at(capsys.readouterr().out) < STEPS // 2
    assert_same_run(whole, workdir, STEPS)


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on(config, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(config, workdir, file_limit=100_000)
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
        step = resumed_at(output)
        if step is not None:
            resumed += 1
            assert step >= last
            last = step
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
