"""Training with augmentation: every preset, mode and refusal."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest

from configs.errors import InputError, InputWarning
from configs.network_schema import MLPConfig
from configs.presets import load_preset, variant_names
from configs.schema import (
    AugmentationConfig,
    DataConfig,
    GenerationConfig,
    PreconditioningConfig,
    SamplerConfig,
)
from diffusion import train as train_entry
from diffusion.command_line import exit_on_error
from diffusion.training import load_denoiser, train
from diffusion.training.building import build_problem
from diffusion.training.log import read_metrics
from samplers.generation import generate_samples

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_another_augmentation_is_another_run",
    "test_the_identity_takes_over_in_training_too",
    "test_what_is_switched_off_may_change",
)


def tiny(config, images_path, **changes):
    """Return a preset at reduced width on images of a file."""
    network = dataclasses.replace(
        config.network,
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attention_resolutions=(),
        dtype="float32",
    )
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, name=str(images_path), image_shape=None, held_out_fraction=0.5
        ),
        network=network,
        training=dataclasses.replace(
            config.training,
            num_steps=2,
            batch_size=4,
            log_every_steps=1,
            accumulation=1,
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def images_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
    np.savez(path, images=images)
    return path


AUGMENTED = [
    f"{preset}:{variant}" if variant else preset
    for preset in ("cifar10", "ffhq64", "afhqv2_64", "cifar10_scoreaug")
    for variant in ("", *variant_names(preset))
    if "cond" not in variant
]


@pytest.mark.slow
@pytest.mark.parametrize("name", AUGMENTED)
def test_augmented_presets_train(name, images_path, tmp_path):
    config = tiny(load_preset(name), images_path)
    train(config, tmp_path / "run")
    row = read_metrics(tmp_path / "run")[-1]
    assert np.isfinite(row["loss"])
    told = load_denoiser(tmp_path / "run").params["map_augment"]["kernel"]
    assert told.shape[0] == config.network.augment_dim
    families = build_problem(config, (16, 16, 3)).augmentation.families
    assert tuple(row["loss_per_transform"]) == families


MODES = [
    AugmentationConfig(
        mode=mode,
        transforms=("scoreaug-linear",),
        nla_transforms=("edm-nla:.3",),
        combination=combination,
        noisy_side=side,
        sigma_label=label,
        loss_normalization=normalization,
        condition=condition,
    )
    for (mode, combination), (side, label, normalization, condition) in zip(
        itertools.product(("score", "nla", "nla+score"), ("sequential", "either")),
        [
            ("joint", "nominal", "gain", True),
            ("split", "effective", "visible", True),
            ("joint", "nominal", "none", True),
            ("joint", "nominal", "none", False),
            ("clean", "nominal", "none", True),
            ("split", "effective", "gain", False),
        ],
        strict=True,
    )
]


@pytest.mark.filterwarnings("ignore::configs.errors.InputWarning")
@pytest.mark.parametrize(
    "augmentation",
    [
        pytest.param(mode, id=str(number), marks=pytest.mark.slow if number else ())
        for number, mode in enumerate(MODES)
    ],
)
def test_every_mode_takes_real_steps(augmentation, tmp_path):
    size = {"score": 11, "nla": 11, "nla+score": 20}[augmentation.mode]
    config = load_preset("glyphs")
    config = dataclasses.replace(
        config,
        augmentation=augmentation,
        network=MLPConfig(width=8, num_layers=1, augment_dim=size),
        training=dataclasses.replace(
            config.training,
            num_steps=2,
            batch_size=8,
            log_every_steps=1,
            evaluation_images=16,
        ),
    )
    train(config, tmp_path)
    rows = read_metrics(tmp_path)
    assert len(rows) == 2
    assert all(np.isfinite(row["loss"]) for row in rows)
    # The condition's input is trained if and only if the network is told.
    start, end = (
        load_denoiser(tmp_path, step=step, ema=False).params["map_augment"]["kernel"]
        for step in (0, 2)
    )
    assert np.array_equal(start, end) != augmentation.condition


def glyph_run(**augmentation):
    config = load_preset("glyphs")
    return dataclasses.replace(
        config,
        network=MLPConfig(width=8, num_layers=1, augment_dim=3),
        augmentation=AugmentationConfig(
            mode="score", transforms=("rot90",), **augmentation
        ),
        optim=dataclasses.replace(config.optim, learning_rate=0.02, warmup_images=0),
        training=dataclasses.replace(
            config.training, num_steps=4, batch_size=8, evaluation_images=8
        ),
    )


@pytest.mark.slow
def test_transformed_images_are_drawn_with_a_condition(tmp_path):
    run = tmp_path / "run"
    train(glyph_run(), run)
    plain = SamplerConfig(num_points=3)

    def draw(workdir, name, condition, sampler=plain):
        config = GenerationConfig(
            sampler, num_samples=4, condition=condition, format=("npy",)
        )
        generate_samples(workdir, tmp_path / name, config)

    for name, condition in (("a", ()), ("b", (0.0, 0.0, 0.0)), ("c", (0.0, 1.0, 0.0))):
        draw(run, name, condition)
    found = [np.load(tmp_path / name / "samples.npy") for name in "abc"]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0
    record = json.loads((tmp_path / "c" / "record.json").read_text())
    assert record["condition"] == [0.0, 1.0, 0.0]
    for condition, message in (
        ((1.0,), "--condition has 1 numbers; this network takes 3"),
        ((1.0, 0.0, np.nan), "takes 3 finite ones"),
    ):
        with pytest.raises(InputError, match=message):
            draw(run, "d", condition)
    blind = tmp_path / "blind"
    with pytest.warns(InputWarning, match="Rot90 without condition"):
        train(glyph_run(condition=False), blind)
    with pytest.raises(InputError, match="trained without being told"):
        draw(blind, "d", (1.0, 0.0, 0.0))
    with pytest.raises(InputError, match=r"leave out --sampler.teleport"):
        draw(run, "d", (1.0, 0.0, 0.0), dataclasses.replace(plain, teleport=5.0))


def test_the_identity_takes_over_in_training_too(tmp_path):
    config = glyph_run(identity_probability=0.0, identity_anneal_images=(0, 16))
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, log_every_steps=2)
    )
    train(config, tmp_path)
    first, second = (row["loss_per_transform"] for row in read_metrics(tmp_path))
    assert first["Rot90"] is not None
    assert second == {"identity": second["identity"], "Rot90": None}


def test_what_is_switched_off_may_change(tmp_path):
    config = glyph_run(identity_probability=0.5)
    off = dataclasses.replace(config.augmentation, mode="none")
    train(dataclasses.replace(config, augmentation=off), tmp_path)
    other = dataclasses.replace(off, identity_probability=0.1)
    train(dataclasses.replace(config, augmentation=other), tmp_path)


def test_another_augmentation_is_another_run(tmp_path):
    run = tmp_path / "run"
    train(glyph_run(), run)
    with pytest.raises(
        InputError, match=r"augmentation.identity_probability None -> 0.5"
    ):
        train(glyph_run(identity_probability=0.5), run)
    other = dataclasses.replace(glyph_run(), augmentation=AugmentationConfig())
    with pytest.raises(InputError, match=r"augmentation.mode 'score' -> 'none'"):
        train(other, run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": MLPConfig(augment_dim=2)},
            "condition has 3 numbers, but network.augment_dim is 2; set "
            "--network.augment-dim 3",
        ),
        (
            {"preconditioning": PreconditioningConfig("gaussian")},
            "preconditioning gaussian is of images as they are",
        ),
        (
            {"network": load_preset("cifar10").network},
            "condition has 3 numbers, but network.augment_dim is 9",
        ),
        ({"data": DataConfig("mixture2d")}, r"acts on images \(H, W, C\)|square"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes, message, tmp_path
):
    config = dataclasses.replace(glyph_run(), **changes)
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_switching_the_mirroring_off_is_said(monkeypatch, capsys):
    def warned(*arguments):
        missing = ("--data.name", "no-such-images.npz")
        monkeypatch.setattr(sys, "argv", ["prog", *arguments, *missing])
        with pytest.raises(SystemExit):
            exit_on_error(train_entry.main)
        return [
            line
            for line in capsys.readouterr().err.splitlines()
            if not line.startswith("error: ")
        ]

    (said,) = warned("cifar10", "--augmentation.mode", "none")
    assert said.startswith("warning: cifar10 mirrors half of the images, and with")
    options = ("--augmentation.mode", "none", "--data.horizontal-flip", "True")
    assert warned("cifar10", *options) == []
    assert warned("cifar10", "--augmentation.mode", "score") == []


def test_leaks_are_warned_of_in_a_line(monkeypatch, capsys):
    options = (
        "glyphs --dry-run --augmentation.mode score --augmentation.transforms rot90"
    )
    options += " --augmentation.condition False"
    monkeypatch.setattr(sys, "argv", ["prog", *options.split()])
    exit_on_error(train_entry.main)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: Rot90 without condition")
