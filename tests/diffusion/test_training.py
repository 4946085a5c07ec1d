"""Training: exact resume, damaged checkpoints, contradictions, what a workdir holds."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from configs.digits import config as digits
from configs.mixture2d import config as toy
from configs.network_schema import MLPConfig, SongUNetConfig
from configs.schema import DataConfig, OptimConfig, to_dict
from diffusion import Denoiser
from diffusion.closed_form import fit_gaussian, load_gaussian
from diffusion.data import split_of
from diffusion.loss import denoising_loss
from diffusion.noise import LogNormal
from diffusion.training import load_denoiser, train
from diffusion.training.ema import ema_weight, power_weight, update_ema
from diffusion.training.log import read_metrics
from diffusion.training.record import read_record
from diffusion.training.step import build_optimizer, sigma_bins
from tests.diffusion.runs import ROOT, assert_same_run, process, with_training

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_rows_beyond_the_restored_step_are_dropped",
    "test_the_loss_falls",
)


# Over five seconds: only a second process shows that nothing lives in memory alone.
def test_resume_is_bitwise_equal(tmp_path):
    """200 steps equal 100, a new process, and 100 more."""
    config = with_training(
        dataclasses.replace(toy, network=MLPConfig(width=8, num_layers=1)),
        batch_size=8,
        log_every_steps=40,
        evaluation_images=16,
        checkpoint_every_steps=100,
        checkpoint_every_seconds=1000.0,
    )
    train(with_training(config, num_steps=200), tmp_path / "once")
    train(with_training(config, num_steps=100), tmp_path / "twice")
    options = (
        "--network.width=8 --network.num-layers=1 --training.batch-size=8 "
        "--training.log-every-steps=40 --training.evaluation-images=16 "
        "--training.checkpoint-every-steps=100 "
        "--training.checkpoint-every-seconds=1000 "
        f"--training.num-steps=200 --workdir={tmp_path / 'twice'}"
    )
    result = process("diffusion.train", "mixture2d", *options.split())
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout
    assert_same_run(tmp_path / "once", tmp_path / "twice", 200)


@pytest.mark.slow
def test_resume_is_bitwise_equal_with_the_unet(tiny_unet, tmp_path):
    """The same with images, dropout, flips and clipping."""
    config = dataclasses.replace(
        digits,
        network=dataclasses.replace(tiny_unet, dropout=0.1),
        data=dataclasses.replace(digits.data, horizontal_flip=True),
        optim=dataclasses.replace(digits.optim, clip_norm=1.0),
    )
    config = with_training(
        config, batch_size=8, log_every_steps=40, evaluation_images=16
    )
    train(with_training(config, num_steps=200), tmp_path / "once")
    train(with_training(config, num_steps=100), tmp_path / "twice")
    program = (
        "import sys; from configs.schema import ExperimentConfig, from_dict;"
        "import json; from diffusion.training import train;"
        "train(from_dict(ExperimentConfig, json.loads(sys.argv[1])), sys.argv[2])"
    )
    text = json.dumps(to_dict(with_training(config, num_steps=200)))
    subprocess.run(
        [sys.executable, "-c", program, text, str(tmp_path / "twice")],
        check=True,
        cwd=ROOT,
    )
    assert_same_run(tmp_path / "once", tmp_path / "twice", 200)


def test_a_workdir_holds_what_was_promised(tiny_run, tiny_config):
    record = read_record(tiny_run)
    split = split_of(DataConfig("digits"))
    assert record.config == tiny_config
    assert record.num_training == len(split.training.images) == 1797 - 359
    assert record.num_held_out == 359
    pixels = split.training.images / 127.5 - 1
    assert record.sigma_data == pytest.approx(np.sqrt((pixels**2).mean()), rel=1e-6)
    assert record.sigma_data == pytest.approx(0.85, abs=0.01)
    rows = read_metrics(tiny_run)
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert all(row["seconds"] > 0 for row in rows)
    assert all(len(row["loss_per_bin"]) == 6 for row in rows)
    fitted, loaded = (
        fit_gaussian(split.training.images),
        load_gaussian(tiny_run / "gaussian.npz"),
    )
    np.testing.assert_array_equal(loaded.variances, fitted.variances)


def test_the_loss_falls(tiny_config, tmp_path):
    optim = dataclasses.replace(tiny_config.optim, warmup_images=0)
    config = dataclasses.replace(tiny_config, optim=optim)
    train(with_training(config, num_steps=60, log_every_steps=30), tmp_path)
    first, last = read_metrics(tmp_path)
    assert last["loss"] < first["loss"] < 1
    assert last["ema_loss_held_out"] < first["ema_loss_held_out"] < 1


def test_a_finished_run_says_so(tiny_run, tiny_config, capsys):
    before = (tiny_run / "metrics.jsonl").read_bytes()
    train(tiny_config, tiny_run)
    assert "is trained: 20 steps" in capsys.readouterr().out
    assert (tiny_run / "metrics.jsonl").read_bytes() == before


def test_rows_beyond_the_restored_step_are_dropped(tiny_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "sec')  # a torn line
    train(tiny_config, workdir)
    assert_same_run(tiny_run, workdir, 20)


def test_load_denoiser_returns_a_pytree_of_arrays(tiny_run):
    denoiser = load_denoiser(tiny_run)
    assert isinstance(denoiser, Denoiser)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(denoiser))
    x = jnp.ones((2, 8, 8, 1))
    assert denoiser(x, 1.0).shape == x.shape
    early, raw = load_denoiser(tiny_run, step=10), load_denoiser(tiny_run, ema=False)
    for other in (early, raw):
        assert float(jnp.abs(other(x, 1.0) - denoiser(x, 1.0)).max()) > 0


def damage(workdir: Path, step: int, item: str = "ema_params") -> None:
    """Flip one bit in every 64 bytes of an item's data files.

    A single one might hit bytes that belong to no array.
    """
    folder = workdir / "checkpoints" / str(step) / item
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            content = bytearray(path.read_bytes())
            for place in range(len(content) // 2 % 64, len(content), 64):
                content[place] ^= 1
            path.write_bytes(content)


def test_a_flipped_bit_is_noticed_and_the_older_checkpoint_used(
    tiny_run, tiny_config, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    damage(workdir, 20)
    denoiser = load_denoiser(workdir)
    assert "damaged" in capsys.readouterr().err
    older = load_denoiser(tiny_run, step=10)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), denoiser.params, older.params)
    )
    with pytest.raises(InputError, match="20"):
        load_denoiser(workdir, step=20)
    # Loading has changed nothing; training sets the damaged step aside and goes on.
    assert (workdir / "checkpoints" / "20").is_dir()
    train(tiny_config, workdir)
    assert (workdir / "checkpoints" / "damaged-20").is_dir()
    assert_same_run(tiny_run, workdir, 20)


def test_an_array_is_compared_with_its_digest(tiny_run, tmp_path, capsys):
    """Damage that decodes without complaint: here the digest itself is another."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    path = next((workdir / "checkpoints" / "20").rglob("metadata"))
    meta = json.loads(path.read_text())
    digests = meta["digests"]["ema_params"]
    leaf = sorted(digests)[0]
    digests[leaf] = "0" * len(digests[leaf])
    path.write_text(json.dumps(meta))
    load_denoiser(workdir)
    assert f"ema_params/{leaf} does not match its digest" in capsys.readouterr().err


def test_no_intact_checkpoint_is_one_line_and_nothing_is_lost(
    tiny_run, tiny_config, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    for step in (0, 10, 20):
        damage(workdir, step)
    for call in (lambda: load_denoiser(workdir), lambda: train(tiny_config, workdir)):
        with pytest.raises(InputError, match="no intact checkpoint"):
            call()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == [
        "0",
        "10",
        "20",
    ]


def test_a_contradicting_configuration_is_refused_by_field(tiny_run, tiny_config):
    changed = dataclasses.replace(
        tiny_config,
        seed=5,
        optim=dataclasses.replace(tiny_config.optim, learning_rate=0.5),
    )
    with pytest.raises(InputError) as caught:
        train(changed, tiny_run)
    message = str(caught.value)
    assert "optim.learning_rate" in message
    assert "seed 0 -> 5" in message
    assert "network" not in message


def test_a_workdir_without_checkpoint_is_one_line(tmp_path, tiny_run):
    with pytest.raises(InputError, match="no checkpoint in"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text((tiny_run / "config.json").read_text())
    with pytest.raises(InputError, match="no checkpoint in"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        load_denoiser(tmp_path)
    with pytest.raises(InputError, match="no checkpoint of step 7"):
        load_denoiser(tiny_run, step=7)


def test_a_checkpoint_of_another_network_is_named(tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"width": 16', '"width": 18'))
    with pytest.raises(InputError, match="of another network: ema_params/"):
        load_denoiser(workdir)


def test_labels_that_the_network_has_no_place_for_are_refused(tiny_config, tmp_path):
    network = SongUNetConfig(model_channels=4, channel_mult=(1,), label_dim=5)
    with pytest.raises(InputError, match="labels must be 0 to 4; the data have up to"):
        train(dataclasses.replace(tiny_config, network=network), tmp_path)


def test_noise_levels_are_log_normal():
    law = LogNormal(-0.3, 1.7)
    logs = np.log(law.sample(jax.random.key(0), (20_000,)))
    assert logs.mean() == pytest.approx(-0.3, abs=5 * 1.7 / np.sqrt(20_000))
    assert logs.std() == pytest.approx(1.7, rel=0.03)
    np.testing.assert_allclose(law.quantile(jnp.asarray(0.5)), np.exp(-0.3), rtol=1e-6)
    np.testing.assert_allclose(
        law.quantile(jnp.asarray(0.8413447)), np.exp(1.4), rtol=1e-4
    )


def test_the_loss_is_the_weighted_mean_square():
    x, target = jnp.ones((2, 3)), jnp.zeros((2, 3))
    losses = denoising_loss(
        lambda x, sigma: 2 * x, x, target, jnp.ones(2), weight=jnp.asarray([1.0, 3.0])
    )
    np.testing.assert_allclose(losses, [4.0, 12.0])
    with pytest.raises(InputError, match="agree"):
        denoising_loss(lambda x, s: x, x, target[:1], jnp.ones(2))


def test_ema_is_the_recurrence_with_a_ramp():
    # Half-life 1000 images, but at most a tenth of the images seen.
    ramp, flat = (ema_weight(jnp.float32(n), 100, 1000, 0.1) for n in (2000, 1e6))
    assert float(ramp) == pytest.approx(1 - 0.5 ** (100 / 200))
    assert float(flat) == pytest.approx(1 - 0.5**0.1)
    average = update_ema(
        {"a": jnp.asarray(4.0)}, {"a": jnp.asarray(2.0)}, jnp.float32(0.25)
    )
    assert float(average["a"]) == pytest.approx(0.75 * 4 + 0.25 * 2)


def test_weights_of_averages_are_exact_in_float32_after_many_steps():
    """Against NumPy in float64; as 1 - beta they would be off by percents."""
    for step in (1, 2, 1000, 400_000, 4_000_000):
        for gamma in (0.72, 6.94, 16.97):
            wanted = -np.expm1((gamma + 1) * np.log1p(-1 / step)) if step > 1 else 1
            found = float(power_weight(jnp.int32(step), gamma))
            assert found == pytest.approx(wanted, rel=2e-6), (step, gamma)
    wanted = -np.expm1(-np.log(2) * 32 / 5e8)
    found = float(ema_weight(jnp.float32(1e9), 32, 5e8, None))
    assert found == pytest.approx(wanted, rel=1e-6)


def test_sigma_bins_are_half_open():
    bins = sigma_bins(jnp.asarray([0.01, 0.05, 0.1, 30.0]), (0.05, 0.2, 20.0))
    np.testing.assert_array_equal(np.argmax(bins, axis=1), [0, 1, 1, 3])


def test_the_learning_rate_warms_up_and_decays():
    config = OptimConfig(
        learning_rate=1.0, warmup_images=100, decay_images=1000, beta1=0.0, beta2=0.0
    )
    optimizer = build_optimizer(config, batch_size=10)
    params = jnp.asarray(0.0)
    state = optimizer.init(params)
    rates = []
    for _ in range(401):
        update, state = optimizer.update(jnp.asarray(1.0), state, params)
        rates.append(-float(update))
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5, rel=1e-3)
    assert rates[50] == pytest.approx(1.0, rel=1e-3)
    assert rates[400] == pytest.approx(0.5, rel=1e-3)


def test_a_full_disk_is_one_line_and_loses_nothing(tiny_run, tmp_path):
    """The limit on the size of a file stands in for a full disk."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from diffusion.command_line import exit_on_error;"
        "from diffusion.closed_form import load_gaussian, save_gaussian;"
        "g = load_gaussian(sys.argv[1]);"
        "exit_on_error(lambda: save_gaussian(sys.argv[1], g))"
    )
    path = workdir / "gaussian.npz"
    before = path.read_bytes()
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert path.read_bytes() == before
    assert [p.name for p in workdir.glob(".gaussian*")] == []


def test_a_disk_too_small_for_a_checkpoint_is_one_line(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "diffusion.training.checkpoint.shutil.disk_usage",
        lambda folder: SimpleNamespace(free=1000),
    )
    with pytest.raises(OSError, match="1,000 bytes are free") as caught:
        train(tiny_config, tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoints_that_cannot_be_written_are_one_line(tiny_config, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        train(tiny_config, tmp_path)
