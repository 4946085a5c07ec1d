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

import jax
import numpy as np
import pytest

from configs import InputError
from configs.digits import config as digits
from configs.mixture2d import config as toy
from configs.network_schema import MLPConfig
from diffusion.data import split_of
from diffusion.training import load_denoiser, train
from diffusion.training.locking import lock_workdir
from diffusion.training.log import read_metrics
from diffusion.training.loop import _memory_errors
from diffusion.training.preemption import watch_for_preemption
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

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_a_full_disk_stops_with_one_line_and_the_run_goes_on",
    "test_a_signal_while_the_data_are_read_stops_before_the_first_step",
    "test_damage_to_the_newest_checkpoint_costs_no_more_than_the_steps_since[empty_directory]",
    "test_killed_within_a_checkpoint_write_it_goes_on",
)

# Found by the same digest as a truncated file, or skipped like an empty folder.
COVERED = ("flip_a_byte", "delete_metadata", "leave_temporary", "delete_a_file")
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            id=fault.__name__,
            marks=pytest.mark.slow if fault.__name__ in COVERED else (),
        )
        for fault in FAULTS
    ],
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
    assert 0 < resumed_at(capsys.readouterr().out) < STEPS // 2
    assert_same_run(whole, workdir, STEPS)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(0, id="at-once"),
        pytest.param(STEPS // 2, id="half-way", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_stops_with_one_line_and_the_run_goes_on(
    config, whole, half, tmp_path, capsys, first
):
    workdir = tmp_path / "run"
    if first:
        shutil.copytree(half, workdir)
    process = start(config, workdir, file_limit=100_000)
    output, errors = process.communicate()
    assert process.returncode == 2, output + errors
    assert resumed_at(output) == (first or None)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "run the same command again" in lines[0]
    capsys.readouterr()
    train(config, workdir)
    output = capsys.readouterr().out
    if first:
        assert resumed_at(output) >= first > 0
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_logging_may_change_on_the_way(tiny_config, tmp_path):
    """Parameters are bitwise the same, and rows are means since the last one."""
    each = with_training(tiny_config, log_every_steps=1)
    train(each, tmp_path / "each")
    train(with_training(tiny_config, num_steps=12), tmp_path / "run")
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [5, 10, 12]
    train(with_training(tiny_config, log_every_steps=4), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [5, 10, 16, 20]
    losses = [row["loss"] for row in read_metrics(tmp_path / "each")]
    for row, first in zip(rows, (0, 5, 10, 16), strict=True):
        wanted = np.mean(losses[first : row["step"]])
        assert row["loss"] == pytest.approx(wanted, rel=1e-5)
    one, other = (stored(tmp_path / name, 20) for name in ("each", "run"))
    for item in ("params", "ema_params", "opt_state"):
        assert one[item] == other[item]


@pytest.mark.slow
def test_the_remedies_for_memory_go_on_in_the_same_workdir(tiny_unet, tmp_path, capsys):
    """What the message of an exhausted device advises changes results by rounding."""
    network = dataclasses.replace(
        tiny_unet, channel_mult=(1,), attention_resolutions=()
    )
    config = with_training(
        dataclasses.replace(digits, network=network),
        num_steps=2,
        batch_size=8,
        log_every_steps=2,
        evaluation_images=8,
    )
    train(config, tmp_path)
    shutil.copytree(tmp_path, tmp_path / "spared")
    more = with_training(config, num_steps=4)
    train(more, tmp_path)
    capsys.readouterr()
    frugal = dataclasses.replace(
        with_training(more, accumulation=4),
        network=dataclasses.replace(network, checkpoint_blocks=True),
    )
    train(frugal, tmp_path / "spared")
    assert resumed_at(capsys.readouterr().out) == 2
    one, other = (
        load_denoiser(workdir, ema=False).params
        for workdir in (tmp_path, tmp_path / "spared")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, other)
    rows = [read_metrics(workdir)[-1] for workdir in (tmp_path, tmp_path / "spared")]
    for name in ("loss", "ema_loss_held_out"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-4)


def test_a_signal_while_the_data_are_read_stops_before_the_first_step(
    tiny_config, tiny_run, tmp_path, monkeypatch, capsys
):
    def read(config):
        signal.raise_signal(signal.SIGTERM)
        return split_of(config)

    with monkeypatch.context() as patched:
        patched.setattr("diffusion.training.loop.split_of", read)
        train(tiny_config, tmp_path)
    assert "stopped at step 0 and saved; run the same" in capsys.readouterr().out
    assert steps_of(tmp_path) == [0]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(tiny_config, tmp_path)
    assert_same_run(tiny_run, tmp_path, 20)


def test_among_several_processes_an_interrupt_is_passed_on(monkeypatch):
    """As SIGTERM, the one signal that jax.distributed watches."""
    came = []
    monkeypatch.setattr("diffusion.training.preemption.jax.process_count", lambda: 2)
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    # A shell starts what runs in its background with SIGINT ignored.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with watch_for_preemption() as asked:
            signal.raise_signal(signal.SIGINT)
            assert came == [signal.SIGTERM]
            assert not asked()  # the answer is the one that all agree upon
            with pytest.raises(KeyboardInterrupt):  # the second acts as usual
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, usual)


@pytest.mark.slow
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
    with pytest.raises(InputError, match=r"out of memory.*--training\.accumulation"):
        with _memory_errors(tiny_config):
            # What a device that is too small raises: more than any machine has.
            jax.block_until_ready(jax.numpy.zeros(2**50, np.uint8))
    with pytest.raises(ZeroDivisionError), _memory_errors(tiny_config):
        raise ZeroDivisionError
