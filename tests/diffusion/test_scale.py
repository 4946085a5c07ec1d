"""One computation, however many devices and processes share it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import InputError
from diffusion.train import main
from diffusion.training.locking import lock_workdir
from diffusion.training.log import read_metrics
from diffusion.training.mesh import connect_hosts, make_placement, together

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    "digits --network.model-channels 4 --network.channel-mult 1 --network.dropout 0.1 "
    "--augmentation.mode nla+score --augmentation.nla-transforms edm-nla:.5 "
    "--network.augment-dim 20 "
    "--data.horizontal-flip True --training.batch-size 16 --training.log-every-steps 1 "
    "--training.evaluation-images 40 --training.checkpoint-every-steps 25"
)


def environment(devices: int, x64: bool) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(x64)),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={devices}",
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(workdir: Path, *, devices=1, processes=1, steps=50, x64=True, options=""):
    """Start to train in processes of their own."""
    command = f"-m diffusion.train {OPTIONS} --training.num-steps {steps} {options}"
    command += f" --workdir {workdir}"
    if x64:
        command += " --training.dtype float64"
    port = free_port()
    running = []
    for number in range(processes):
        hosts = ""
        if processes > 1:
            hosts = (
                f" --coordinator 127.0.0.1:{port} --num-processes {processes} "
                f"--process-id {number}"
            )
        running.append(
            subprocess.Popen(
                [sys.executable, *(command + hosts).split()],
                cwd=ROOT,
                env=environment(devices, x64),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def train(workdir: Path, *, steps=50, every=1, **settings):
    """Train in processes of their own and return the losses by step."""
    for process in start(workdir, steps=steps, **settings):
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, output + errors
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == list(range(every, steps + 1, every))
    return np.array([[row["loss"], row["ema_loss_held_out"]] for row in rows])


# Over five seconds each: only processes of their own have other devices.
@pytest.mark.slow
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 1e-4)])
def test_losses_do_not_depend_on_devices_and_processes(tmp_path, x64, tolerance):
    one = train(tmp_path / "1x1", x64=x64)
    assert one[-1, 0] < one[0, 0]
    for name, setting in {
        "1x4": {"devices": 4},
        "1x4-sharded-data": {"devices": 4, "options": "--data.placement sharded"},
        "1x4-fsdp": {"devices": 4, "options": "--mesh.fsdp 2"},
        "2x2": {"devices": 2, "processes": 2},
        "2x2-streamed": {
            "devices": 2,
            "processes": 2,
            "options": "--data.placement streamed",
        },
    }.items():
        found = train(tmp_path / name, x64=x64, **setting)
        np.testing.assert_allclose(found, one, rtol=tolerance, err_msg=name)


@pytest.mark.slow
def test_checkpoints_move_between_devices_and_processes(tmp_path):
    """Each part of the run somewhere else, against all of it in one place."""
    one = train(tmp_path / "one", steps=60)
    moved = tmp_path / "moved"
    train(moved, steps=15, devices=4)
    train(moved, steps=30, devices=2, processes=2)
    train(moved, steps=45, devices=4, options="--mesh.fsdp 4")
    found = train(moved, steps=60)
    np.testing.assert_allclose(found, one, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "unit"), [(signal.SIGTERM, 1), (signal.SIGINT, 5)])
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path, number, unit):
    """Only the second process gets it; both save the same step and end well."""
    options = f"--training.steps-per-dispatch {unit} --training.log-every-steps {unit}"
    setting = {"devices": 1, "options": options}
    running = start(tmp_path / "run", processes=2, steps=100_000, **setting)
    until = time.monotonic() + 200
    while len(read_metrics(tmp_path / "run")) < 5:
        assert time.monotonic() < until
        time.sleep(0.1)
    running[1].send_signal(number)
    for number, process in enumerate(running):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, output + errors
        assert ("run the same command to continue" in output) == (number == 0)
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    stopped = max(int(name) for name in names if name.isdigit())
    assert stopped >= 5
    assert stopped % unit == 0
    # It goes on with one process.
    losses = train(tmp_path / "run", steps=stopped + 5, every=unit, **setting)
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_what_only_one_host_finds_wrong_ends_all(tmp_path):
    """A workdir in use, and a contradiction to the run that is there."""
    workdir = tmp_path / "run"
    train(workdir, steps=2)
    with lock_workdir(workdir):
        in_use = errors_of(start(workdir, processes=2, steps=4))
    assert f"in use by another process (process {os.getpid()})" in in_use[0]
    other = start(workdir, processes=2, steps=4, options="--optim.learning-rate 0.5")
    contradicting = errors_of(other)
    assert "optim.learning_rate" in contradicting[0]
    for errors in (in_use, contradicting):
        assert "error: process 0 refused to go on; see its message" in errors[1]


def errors_of(running: list[subprocess.Popen]) -> list[str]:
    """What processes that refuse to train say."""
    found = []
    for process in running:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 2, output + errors
        found.append(errors)
    return found


def test_a_failure_elsewhere_is_a_failure_here(monkeypatch):
    gathered = "jax.experimental.multihost_utils.process_allgather"
    monkeypatch.setattr("diffusion.training.mesh.jax.process_count", lambda: 3)
    monkeypatch.setattr(gathered, lambda flag: np.asarray([False, flag, False]))
    assert together(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 // 0)
    monkeypatch.setattr(gathered, lambda flag: np.asarray([flag, False, True]))
    with pytest.raises(InputError, match="process 2 refused to go on"):
        together(lambda: 5)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(4, 1), (2, 2)])
def test_noise_and_flips_are_the_same_on_any_devices(devices, processes):
    """Bit for bit, and where the data lie makes no difference either."""
    program = """
import dataclasses, json, hashlib, sys
import jax, numpy as np
if len(sys.argv) > 1:
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from configs.digits import config
from diffusion.data import split_of
from diffusion.training.building import build_problem
from diffusion.training.feeding import Feed
from diffusion.training.mesh import host_value, make_placement
from diffusion.training.noisy_batch import draw_noisy_batch
from diffusion.preconditioning import EDMPreconditioning
from diffusion.data import to_data_units
from configs.schema import AugmentationConfig
config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, horizontal_flip=True),
    network=dataclasses.replace(config.network, augment_dim=20),
    augmentation=AugmentationConfig(
        mode="nla+score", nla_transforms=("edm-nla:.5",), loss_normalization="gain"))
data = split_of(config.data).training
problem = build_problem(config, (8, 8, 1))
found = {}
for placement in ("replicated", "sharded", "streamed"):
    chosen = dataclasses.replace(
        config, data=dataclasses.replace(config.data, placement=placement))
    place = make_placement(1, 64)
    feed = Feed(chosen, data, EDMPreconditioning(0.5), place, 40)
    @jax.jit
    def draw(examples, indices):
        images, labels = examples.images, examples.labels
        if indices is not None:
            images, labels = images[indices[0]], labels[indices[0]]
        key = jax.random.fold_in(jax.random.key(0), 40)
        batch = draw_noisy_batch(problem, to_data_units(images), labels, key)
        batch = batch._replace(dropout_keys=jax.random.key_data(batch.dropout_keys))
        return jax.lax.with_sharding_constraint(batch, place.batch)
    examples, indices = feed.at(40)
    batch = draw(examples, indices)
    assert len(batch.noisy.sharding.device_set) == jax.device_count()
    found[placement] = [
        hashlib.sha256(np.ascontiguousarray(host_value(leaf)).tobytes()).hexdigest()
        for leaf in batch]
    feed.close()
print(json.dumps(found))
"""
    found = []
    coordinator = f"127.0.0.1:{free_port()}"
    hosts = [[coordinator, str(n)] for n in range(processes)] if processes > 1 else [[]]
    for number, arguments in ((1, [[]]), (devices, hosts)):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", program, *others],
                cwd=ROOT,
                env=environment(number, False),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for others in arguments
        ]
        for process in running:
            output, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            digests = json.loads(output.splitlines()[-1])
            assert digests["replicated"] == digests["sharded"] == digests["streamed"]
            found.append(digests["replicated"])
    assert len(found) == 1 + processes
    assert all(digests == found[0] for digests in found)
    assert len(set(found[0])) == 8


def test_batches_that_devices_do_not_divide_are_refused():
    program = (
        "from configs import InputError\n"
        "from diffusion.training.mesh import make_placement\n"
        "for arguments in ((1, 6), (1, 8, 4), (3, 8)):\n"
        "    try:\n"
        "        make_placement(*arguments)\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(4, False),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert "batch_size 6 in 1 parts of 6 is not divisible by 4 devices" in lines[0]
    assert "choose a multiple of 16" in lines[1]
    assert "mesh.fsdp is 3; it must divide the number of devices, 4" in lines[2]


def test_large_arrays_are_divided_and_small_ones_are_not():
    program = """
import jax, numpy as np
from diffusion.training.mesh import make_placement
place = make_placement(4, 8)
shapes = {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), np.float32),
          "odd": jax.ShapeDtypeStruct((6, 4097), np.float32),
          "bias": jax.ShapeDtypeStruct((128,), np.float32)}
found = place.state_shardings(shapes)
print({name: str(sharding.spec) for name, sharding in found.items()})
array = place.put(np.zeros((3, 3, 64, 128), np.float32), found["kernel"])
assert array.addressable_shards[0].data.shape == (3, 3, 64, 32)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(4, False),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.count("fsdp") == 1
    assert "'fsdp'" in result.stdout.split("'odd'")[0]


@pytest.mark.parametrize(
    ("variables", "find", "joins"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, False, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, False),
        ({"SLURM_NTASKS": "4"}, False, False),  # a shell with an allocation
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, False, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False, False),
    ],
)
def test_hosts_are_found_where_there_are_several(monkeypatch, variables, find, joins):
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda: calls.append("joined"))
    connect_hosts(find=find)
    assert calls == ["joined"] * joins


def test_hosts_that_cannot_be_found_are_one_line(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(InputError, match="--distributed: JAX finds no other hosts"):
        connect_hosts(find=True)
    with pytest.raises(InputError, match="--distributed finds the hosts by itself"):
        connect_hosts("127.0.0.1:1", 2, 0, find=True)


def test_the_flag_reaches_the_connection(monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(
        "diffusion.training.mesh.connect_hosts",
        lambda *given, find: found.append((given, find)),
    )
    monkeypatch.setattr("diffusion.training.train", lambda config, workdir: None)
    for flag in ([], ["--distributed"]):
        command = ["train", "digits", "--workdir", str(tmp_path), *flag]
        monkeypatch.setattr(sys, "argv", command)
        main()
    assert found == [((None, None, None), False), ((None, None, None), True)]


def test_options_of_several_hosts_go_together():
    with pytest.raises(InputError, match="go together"):
        connect_hosts("127.0.0.1:1", None, 0)
    with pytest.raises(InputError, match="must be from 0 to 1"):
        connect_hosts("127.0.0.1:1", 2, 2)
    assert make_placement(1, 3).mesh.size == 1
