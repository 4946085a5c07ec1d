"""The published experiments: what they would take, and that each one runs."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import InputError
from configs.network_schema import MLPConfig
from configs.presets import load_preset, preset_names, variant_names
from configs.schema import DataConfig, ExperimentConfig
from diffusion.networks.cost import count_flops, saved_bytes
from diffusion.networks.functional import build_network
from diffusion.training import load_denoiser, train
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.dry_run import describe_experiment
from samplers import Heun, karras, sample

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {
    "cifar10": 55_733_891,
    "ffhq64": 61_805_571,
    "afhqv2_64": 61_805_571,
    "imagenet64": 295_899_267,
}


def dry_run(name):
    return subprocess.run(
        [sys.executable, "-m", "diffusion.train", name, "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_a_dry_run_counts_the_built_network(name, tmp_path):
    text = dry_run(name)
    assert re.search(rf"^parameters: {COUNTS[name]:,}$", text, re.MULTILINE)
    for word in ("network: ", "FLOPs per image: ", "memory: ", "steps: "):
        assert word in text
    assert not (ROOT / "runs" / name).exists()


def test_a_dry_run_follows_the_options():
    config = ExperimentConfig(
        data=DataConfig("/no/such/file.zip", image_shape=(2, 2, 1)),
        network=MLPConfig(width=4, num_layers=1),
    )
    assert "parameters: 120\n" in describe_experiment(config)
    shapeless = dataclasses.replace(config, data=DataConfig("/no/such/file.zip"))
    with pytest.raises(InputError, match=r"--data\.image-shape"):
        describe_experiment(shapeless)


def test_flops_and_memory_of_known_functions():
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert count_flops(jnp.dot, a, b) == 2 * 3 * 5 * 7
    looped = lambda a, b: jax.lax.fori_loop(0, 4, lambda i, s: s + a @ b, 0.0 * (a @ b))  # noqa: E731
    assert count_flops(jax.jit(looped), a, b) == 5 * 2 * 3 * 5 * 7
    conv = lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME")  # noqa: E731
    image, kernel = jnp.zeros((2, 3, 8, 8)), jnp.zeros((4, 3, 3, 3))
    assert count_flops(conv, image, kernel) == 2 * (2 * 4 * 8 * 8) * 3 * 9
    assert saved_bytes(jnp.sin, jnp.zeros(10)) == 40


@pytest.mark.parametrize("name", ["cifar10", "ffhq64", "imagenet64"])
def test_presets_without_their_images_say_what_to_do(name, tmp_path):
    with pytest.raises(InputError, match=r"--data\.name PATH"):
        train(load_preset(name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_published_preset_is_tried():
    others = {"digits", "glyphs", "mixture2d", "cifar10_5k", "cifar10_scoreaug"}
    assert set(preset_names()) == {*COUNTS, *others}


@pytest.mark.slow
def test_variants_are_the_published_architectures():
    counts = {
        "cifar10:cond": 55_733_891 + 128 * 10 + 128,
        "cifar10:ve": 56_397_827,
        "cifar10:small_gpu": 55_733_891,
        "imagenet64:small_gpu": 295_899_267,
    }
    for name, count in counts.items():
        config = load_preset(name)
        network = build_network(config.network, config.data.image_shape)
        assert network.num_parameters() == count, name
    for preset in preset_names():
        for variant in variant_names(preset):
            assert load_preset(f"{preset}:{variant}") != load_preset(preset)
    with pytest.raises(InputError, match="did you mean 'cond'"):
        load_preset("cifar10:con")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ffhq64", "afhqv2_64"])
def test_the_road_from_a_folder_to_samples(name, tmp_path):
    """Two hundred images of 128x96, three of 1024x1024; every step by its command."""
    source = tmp_path / "images"
    source.mkdir()
    rng = np.random.default_rng(0)
    for number in range(203):
        size = (96, 128) if number < 200 else (1024, 1024)
        coarse = rng.integers(0, 256, (8, 6, 3), np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        image.save(source / f"{number:04}.png")

    def command(line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *line.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    data, run = tmp_path / "data", tmp_path / "run"
    printed = command(
        f"diffusion.prepare_data {name} --source {source} --data-dir {data}"
    )
    assert "203 training and 0 held-out images of 64x64x3" in printed
    assert (data / name / "1.0.0" / "dataset_info.json").is_file()
    command(
        f"diffusion.train {name} --data.data-dir {data} --workdir {run} "
        "--network.model-channels 8 --network.num-blocks 1 --training.batch-size 4 "
        "--training.num-steps 2"
    )
    command(
        f"samplers.generate {run} --num-samples 2 --sampler.num-points 2 "
        f"--format npy --outdir {tmp_path / 'samples'}"
    )
    samples = np.load(tmp_path / "samples" / "samples.npy")
    assert samples.shape == (2, 64, 64, 3)
    assert np.isfinite(samples).all()


@pytest.mark.slow  # in the fast suite test_augmented_presets_train goes this way
@pytest.mark.parametrize("name", COUNTS)
def test_presets_train_save_restore_and_sample(name, tmp_path):
    config = load_preset(name)
    shape = config.data.image_shape
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *shape), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(6) * 100)
    mult = (1,) * len(config.network.channel_mult)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, name=str(tmp_path / "images.npz")),
        network=dataclasses.replace(
            config.network, model_channels=8, channel_mult=mult, num_blocks=1
        ),
        training=dataclasses.replace(config.training, num_steps=2, batch_size=2),
    )
    train(config, tmp_path / "run")
    found = Checkpoints(tmp_path / "run")
    assert found.steps()[-1] == 2
    found.close()
    denoiser = load_denoiser(tmp_path / "run")
    solution = sample(
        denoiser, jax.random.key(0), (1, *shape), karras(2), solver=Heun()
    )
    assert solution.x.shape == (1, *shape)
    assert np.isfinite(solution.x).all()
