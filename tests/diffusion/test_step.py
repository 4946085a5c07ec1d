"""The optimizer step: accumulation, several at a time, skipped steps, averages."""

import dataclasses
import json
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from configs import InputError
from configs.digits import config as digits
from configs.schema import EMAConfig
from diffusion.data import split_of
from diffusion.networks.layers import dropout, split_key
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training import load_denoiser, train
from diffusion.training.building import build_problem
from diffusion.training.evaluation import Evaluator
from diffusion.training.feeding import Feed
from diffusion.training.log import read_metrics
from diffusion.training.loop import Run
from diffusion.training.mesh import make_placement
from diffusion.training.noise_suggestion import (
    _moments,
    format_suggestion,
    suggest_noise,
)
from diffusion.training.power_ema import (
    Profile,
    combination,
    gamma_of_width,
    profile_product,
)
from diffusion.training.reconstruction import reconstruct_average, reconstruct_workdir
from diffusion.training.snapshots import list_snapshots
from diffusion.training.state import create_state, init_params
from diffusion.training.step import build_step
from tests.diffusion.runs import stored, with_training

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_parameters_do_not_depend_on_accumulation",
    "test_too_many_such_steps_stop_the_run_at_its_last_checkpoint",
)


@dataclasses.dataclass(frozen=True)
class Recorder:
    """An optimizer whose state is the last gradient: what is compared here."""

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, gradient, state, params):
        return jax.tree.map(jnp.zeros_like, gradient), gradient


def gradient_after_a_step(config, dtype: str):
    """The gradient of the first step of training, as one vector, and the losses."""
    config = with_training(config, dtype=dtype)
    split = split_of(config.data)
    problem = build_problem(config, split.training.images.shape[1:])
    place = make_placement(1, config.training.batch_size, config.training.accumulation)

    def initial():
        params = init_params(config, problem.network, jax.random.key(1))
        return create_state(params, Recorder(), 6, dtype=dtype)

    state = initial()
    shardings = place.state_shardings(jax.eval_shape(initial))
    step = build_step(config, problem, Recorder(), place, shardings)
    feed = Feed(config, split.training, EDMPreconditioning(0.5), place, 0)
    state = step(state, *feed.at(0))
    leaves = jax.tree.leaves(state.opt_state)
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves]), state.sums


@pytest.mark.slow  # parameters after ten steps are compared in the fast suite
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)]
)
def test_gradients_do_not_depend_on_accumulation(tiny_unet, dtype, tolerance):
    """Noise, flips, dropout and dropped labels are those of the whole batch."""
    network = dataclasses.replace(
        tiny_unet, channel_mult=(1,), dropout=0.3, label_dim=10, label_dropout=0.5
    )
    config = dataclasses.replace(
        digits,
        network=network,
        data=dataclasses.replace(digits.data, horizontal_flip=True),
    )
    found = {}
    with jax.enable_x64(dtype == "float64"):
        for parts in (1, 2, 4):
            changed = with_training(config, batch_size=8, accumulation=parts)
            found[parts], sums = gradient_after_a_step(changed, dtype)
            assert float(sums.count.sum()) == 8
    assert found[1].dtype == np.dtype(dtype)
    norm = np.linalg.norm(found[1])
    assert norm > 0
    for parts in (2, 4):
        error = np.linalg.norm(found[parts] - found[1])
        assert error <= tolerance * norm, (parts, error / norm)


def test_parameters_do_not_depend_on_accumulation(tiny_config, tmp_path):
    found = {}
    for parts in (1, 2, 4):
        workdir = tmp_path / str(parts)
        train(with_training(tiny_config, num_steps=10, accumulation=parts), workdir)
        params = load_denoiser(workdir, ema=False).params
        found[parts] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
    for parts in (2, 4):
        np.testing.assert_allclose(found[parts], found[1], atol=2e-5)


def test_dropout_of_an_example_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    x = jnp.ones((6, 4, 4, 3))
    whole = dropout(x, 0.5, keys)
    np.testing.assert_array_equal(dropout(x[2:4], 0.5, keys[2:4]), whole[2:4])
    assert 0.3 < float((whole == 0).mean()) < 0.7
    assert not np.array_equal(whole[0], whole[1])
    parts = split_key(keys, 3)
    assert parts.shape == (3, 6)
    one = split_key(keys[5], 3)
    np.testing.assert_array_equal(
        jax.random.key_data(parts[:, 5]), jax.random.key_data(one)
    )


@pytest.mark.slow
def test_several_steps_at_a_time_are_the_same_steps(tiny_config, tmp_path):
    for name, unit in (("one", 1), ("five", 5)):
        train(with_training(tiny_config, steps_per_dispatch=unit), tmp_path / name)
    one, five = (
        jax.tree.leaves(load_denoiser(tmp_path / name).params)
        for name in ("one", "five")
    )
    for a, b in zip(one, five, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Resuming in units is bitwise the same run.
    half = with_training(tiny_config, steps_per_dispatch=5, num_steps=10)
    train(half, tmp_path / "resumed")
    train(with_training(half, num_steps=20), tmp_path / "resumed")
    assert stored(tmp_path / "five", 20) == stored(tmp_path / "resumed", 20)
    with pytest.raises(InputError, match=r"multiple of .*steps_per_dispatch = 3"):
        with_training(tiny_config, steps_per_dispatch=3)


def poisoned(limit: int, bad: set[int], tiny_config, tmp_path, monkeypatch):
    """Train with gradients that are NaN at some steps."""
    import diffusion.training.loop as loop

    build = loop.build_step

    def built(*arguments):
        step = build(*arguments)

        def poison(state, examples, indices):
            if int(state.step) in bad:
                nan = examples.preconditioning
                examples = examples._replace(
                    preconditioning=jax.tree.map(lambda x: x * np.nan, nan)
                )
            return step(state, examples, indices)

        return poison

    monkeypatch.setattr(loop, "build_step", built)
    train(with_training(tiny_config, max_skipped_steps=limit), tmp_path)


def test_a_step_without_finite_gradient_changes_nothing(
    tiny_config, tmp_path, monkeypatch
):
    config = dataclasses.replace(
        tiny_config,
        preconditioning=dataclasses.replace(
            tiny_config.preconditioning, name="gaussian"
        ),
    )
    poisoned(3, {4, 5, 6, 11}, config, tmp_path / "bad", monkeypatch)
    rows = read_metrics(tmp_path / "bad")
    assert [row["skipped_steps"] for row in rows] == [1, 3, 4, 4]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves(load_denoiser(tmp_path / "bad").params)
    )


def test_too_many_such_steps_stop_the_run_at_its_last_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    config = dataclasses.replace(
        tiny_config,
        preconditioning=dataclasses.replace(
            tiny_config.preconditioning, name="gaussian"
        ),
    )
    with pytest.raises(
        InputError, match=r"not finite in 3 steps in a row, up to step 15"
    ):
        poisoned(2, set(range(12, 16)), config, tmp_path, monkeypatch)
    found = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert found == [0, 10]
    assert np.isfinite(jax.tree.leaves(load_denoiser(tmp_path).params)[0]).all()


@pytest.mark.slow
def test_a_skipped_step_moves_no_average_either(tiny_config):
    """Bit for bit: the step is counted, and nothing else differs."""
    config = dataclasses.replace(
        tiny_config, ema=EMAConfig(half_life_images=50, ramp_fraction=None)
    )
    run = Run(config, Path("unused"))

    def initial():
        params = init_params(config, run.problem.network, jax.random.key(1))
        return create_state(params, run.optimizer, 6, power_widths=(0.1, 0.2))

    shardings = run.place.state_shardings(jax.eval_shape(initial))
    step = build_step(config, run.problem, run.optimizer, run.place, shardings)
    feed = Feed(config, run.split.training, EDMPreconditioning(0.5), run.place, 0)
    state = initial()
    for count in range(5):
        state = step(state, *feed.at(count))
    before = jax.tree.map(np.asarray, state)
    average, last = (jax.tree.leaves(x) for x in (before.ema_params, before.params))
    assert any((a != b).any() for a, b in zip(average, last, strict=True))
    images, indices = feed.at(5)
    images = images._replace(images=images.images.astype(jnp.float32) * jnp.nan)
    after = jax.tree.map(np.asarray, step(state, images, indices))
    assert (after.step, after.skipped.total, after.skipped.in_row) == (6, 1, 1)
    unmoved = after._replace(step=before.step, skipped=before.skipped)
    jax.tree.map(np.testing.assert_array_equal, unmoved, before)


def held_out_row(config, **changes):
    """The row of the untrained network, and the evaluator that gave it."""
    run = Run(with_training(config, **changes), Path("unused"))
    evaluator = Evaluator(
        run.config, run.problem, EDMPreconditioning(0.5), run.split, run.place
    )
    return evaluator.row(run.initial_state()), evaluator


def test_held_out_losses_cover_all_levels_and_do_not_depend_on_blocks(tiny_config):
    """Small batches reach the outer bins too, and images keep noise and level."""
    images = 300
    rows, evaluators = zip(
        *(
            held_out_row(tiny_config, evaluation_images=images, **changes)
            for changes in (
                {"batch_size": 8},
                {"batch_size": 300},
                {"batch_size": 24, "accumulation": 3},
            )
        ),
        strict=True,
    )
    law = tiny_config.noise
    quantiles = stats.norm.ppf((np.arange(images) + 0.5) / images)
    sigma = np.exp(law.p_mean + law.p_std * quantiles)
    edges = tiny_config.training.sigma_bin_edges
    wanted = np.bincount(np.searchsorted(edges, sigma, side="right"), minlength=6)
    for name in ("ema_loss_training_per_bin", "ema_loss_held_out_per_bin"):
        filled = [value is not None for value in rows[0][name]]
        assert filled == (wanted > 0).tolist()
        assert sum(filled) >= 5
        for other in rows[1:]:
            assert other[name] == pytest.approx(rows[0][name], rel=1e-4)
    # Blocks are the parts of a batch, on the devices alike; both sides get one noise.
    blocks = evaluators[2]._blocks
    for (one, fixed), (two, also_fixed) in zip(*blocks.values(), strict=True):
        assert one.images.shape[0] == two.images.shape[0] == 8
        assert one.images.sharding == fixed.number.sharding
        jax.tree.map(np.testing.assert_array_equal, fixed, also_fixed)
    assert one.images.sharding.spec == make_placement(1, 8).batch.spec


def test_widths_and_exponents_are_the_published_pairs():
    published = {
        0.05: 16.97,
        0.1: 6.94,
        0.01: 97.0,
        0.15: 3.558,
        0.2: 1.826,
        0.25: 0.72,
    }
    for width, gamma in published.items():
        found = gamma_of_width(width)
        assert found == pytest.approx(gamma, rel=2e-3)
        back = np.sqrt((found + 1) / ((found + 2) ** 2 * (found + 3)))
        assert back == pytest.approx(width, rel=1e-9)
    with pytest.raises(InputError, match="must be in"):
        gamma_of_width(0.3)


def test_products_of_profiles_are_their_integrals():
    def density(s, profile):
        g = profile.gamma
        return (g + 1) * s**g / profile.step ** (g + 1) if s <= profile.step else 0.0

    for a, b in [
        (Profile(3.0, 2.0), Profile(5.0, 7.0)),
        (Profile(5.0, 2.0), Profile(3.0, 7.0)),
        (Profile(4.0, 1.5), Profile(4.0, 1.5)),
    ]:
        product = lambda s, a=a, b=b: density(s, a) * density(s, b)  # noqa: E731
        wanted = integrate.quad(product, 0, min(a.step, b.step))[0]
        assert profile_product(a, b) == pytest.approx(wanted, rel=1e-8)
    # A snapshot that is the wanted profile is all of the combination.
    mine = [Profile(10.0, 3.0), Profile(20.0, 3.0), Profile(20.0, 9.0)]
    np.testing.assert_allclose(combination(mine, mine[1]), [0, 1, 0], atol=1e-9)


@pytest.mark.slow
def test_an_average_of_another_width_is_reconstructed(tiny_config, tmp_path):
    """Against one that was tracked during the run."""
    wanted = 0.08
    config = dataclasses.replace(
        tiny_config,
        ema=EMAConfig(power_widths=(0.05, 0.1, wanted), snapshot_every_steps=10),
        optim=dataclasses.replace(tiny_config.optim, warmup_images=0),
    )
    train(with_training(config, num_steps=200, log_every_steps=200), tmp_path)
    found = list_snapshots(tmp_path)
    assert len(found) == 3 * 20
    from diffusion.interop.safetensors import load_params

    tracked = load_params(tmp_path / "ema_snapshots" / f"{wanted}-200.safetensors")
    for snapshot in found:
        if snapshot.width == wanted:
            snapshot.path.unlink()
    rebuilt, step = reconstruct_average(tmp_path, wanted)
    assert step == 200
    # The classic average and the parameters themselves are much further away.
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    norm = np.linalg.norm(flat(tracked))
    error = np.linalg.norm(flat(rebuilt) - flat(tracked)) / norm
    assert error < 1e-3
    last = load_denoiser(tmp_path, ema=False).params
    assert np.linalg.norm(flat(last) - flat(tracked)) / norm > 20 * error
    out = tmp_path / "wider"
    reconstruct_workdir(tmp_path, wanted, out)
    np.testing.assert_allclose(flat(load_denoiser(out).params), flat(rebuilt))
    with pytest.raises(InputError, match=r"reconstructed from .* not trained further"):
        train(with_training(config, num_steps=400, log_every_steps=200), out)
    with pytest.raises(InputError, match="holds a run already"):
        reconstruct_workdir(tmp_path, 0.1, out)
    with pytest.raises(InputError, match=r"first snapshot .* is of step 10"):
        reconstruct_average(tmp_path, 0.1, step=5)


def test_averages_are_their_closed_forms(tiny_config, tmp_path):
    """Both, from the parameters of every step of a run."""
    steps, width = 6, 0.2
    base = dataclasses.replace(
        tiny_config,
        ema=EMAConfig(half_life_images=50, ramp_fraction=None, power_widths=(width,)),
        optim=dataclasses.replace(tiny_config.optim, warmup_images=0),
    )
    config = with_training(
        base, num_steps=steps, checkpoint_every_steps=1, log_every_steps=3
    )
    train(config, tmp_path)
    params = [
        np.asarray(
            jax.tree.leaves(load_denoiser(tmp_path, step=s, ema=False).params)[0],
            np.float64,
        )
        for s in range(steps + 1)
    ]
    beta = 0.5 ** (config.training.batch_size / 50)
    classic = beta**steps * params[0] + (1 - beta) * sum(
        beta ** (steps - s) * params[s] for s in range(1, steps + 1)
    )
    found = jax.tree.leaves(load_denoiser(tmp_path, step=steps).params)[0]
    np.testing.assert_allclose(found, classic, atol=1e-6)
    from diffusion.interop.safetensors import load_params

    gamma = gamma_of_width(width)
    power = params[0]
    for step in range(1, steps + 1):
        decay = (1 - 1 / step) ** (gamma + 1)
        power = decay * power + (1 - decay) * params[step]
    file = tmp_path / "ema_snapshots" / f"{width}-{steps}.safetensors"
    np.testing.assert_allclose(jax.tree.leaves(load_params(file))[0], power, atol=1e-6)


def test_suggested_noise_levels_follow_the_images():
    found = suggest_noise(digits.data)
    assert found.sigma_data == pytest.approx(split_of(digits.data).sigma_data)
    assert found.sigma_min == pytest.approx(1 / 127.5 / np.sqrt(12))
    # The squared shift of the prior, 64 pixels of mean square sigma_data^2.
    assert 64 * found.sigma_data**2 / (2 * found.sigma_max**2) == pytest.approx(0.06)
    # Digits are large structures of high contrast: learnt at larger sigma than EDM's.
    assert found.p_mean > -1.2
    assert 0.5 < found.p_std < 3
    text = format_suggestion(found)
    assert f"--noise.p-mean {found.p_mean:.2f} --noise.p-std" in text
    # A gain that is a bump in log sigma is found where it is.
    from diffusion.training.noise_suggestion import _SIGMAS

    bump = 1 - 0.6 * np.exp(-0.5 * ((np.log(_SIGMAS) + 0.7) / 0.9) ** 2)
    np.testing.assert_allclose(_moments(bump), (-0.7, 0.9), atol=1e-3)
    assert _moments(np.ones(len(_SIGMAS))) == (-1.2, 1.2)


def test_rows_say_how_fast_and_where(tiny_run, tiny_config):
    rows = read_metrics(tiny_run)
    for row in rows:
        assert row["images"] == row["step"] * tiny_config.training.batch_size
        assert row["images_per_second"] > 0
        assert row["skipped_steps"] == 0
        assert "device_memory_bytes" in row


@pytest.mark.slow
def test_tensorboard_gets_the_same_scalars(tiny_config, tmp_path, monkeypatch):
    train(with_training(tiny_config, tensorboard=True, num_steps=10), tmp_path)
    (path,) = (tmp_path / "tensorboard").iterdir()
    written = {
        (value.tag, event.step): value.simple_value
        for event in tensorboard_events(path)
        for value in event.summary.value
    }
    row = read_metrics(tmp_path)[-1]
    assert written["loss", 10] == pytest.approx(row["loss"], rel=1e-6)
    assert written["loss_per_bin/2", 10] == pytest.approx(
        row["loss_per_bin"][2], rel=1e-6
    )
    # Resumed: points beyond the restored step are asked to be purged.
    train(with_training(tiny_config, tensorboard=True, num_steps=20), tmp_path)
    newest = max(
        (tmp_path / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns
    )
    starts = [e.step for e in tensorboard_events(newest) if e.HasField("session_log")]
    assert starts == [11]
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"scorelab\[tensorboard\]"):
        train(with_training(tiny_config, tensorboard=True), tmp_path / "other")


def tensorboard_events(path):
    """Events of a TFRecord file: length (uint64), its crc, the event, its crc."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_a_checkpoint_carries_configuration_and_versions(tiny_run):
    path = next((tiny_run / "checkpoints" / "20").rglob("metadata"))
    meta = json.loads(path.read_text())
    assert (
        meta["config"] == json.loads((tiny_run / "config.json").read_text())["config"]
    )
    assert {"jax", "flax", "orbax-checkpoint"} <= set(meta["versions"])
    assert len(meta["data"]["digest"]) == 64


def test_float64_must_be_switched_on(tiny_config, tmp_path):
    with pytest.raises(InputError, match="JAX_ENABLE_X64=1"):
        train(with_training(tiny_config, dtype="float64"), tmp_path)
