"""Training with augmentation: what is learned, what leaks, and that every way runs."""

import dataclasses
import itertools
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.errors import InputError, InputWarning
from configs.network_schema import MLPConfig
from configs.presets import load_preset, variant_names
from configs.schema import (
    AugmentationConfig,
    DataConfig,
    PreconditioningConfig,
    SamplerConfig,
)
from diffusion import train as train_entry
from diffusion.augmentation import (
    Brightness,
    Flip,
    OneOf,
    PatchMask,
    Rot90,
    ScoreAugmentation,
    Translate,
)
from diffusion.command_line import exit_on_error
from diffusion.loss import denoising_loss
from diffusion.networks import build_network
from diffusion.neural import NeuralDenoiser
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training import load_denoiser, train
from diffusion.training.building import build_problem
from diffusion.training.log import read_metrics
from samplers import Heun, karras, sample
from samplers.generation import generate_samples

# --- one step of everything


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "cifar10_scoreaug" else pytest.mark.slow)
        for name in AUGMENTED
    ],
)
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
@pytest.mark.parametrize("augmentation", MODES, ids=range(len(MODES)))
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


# --- the command line


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


def test_transformed_images_are_drawn_with_a_condition(tmp_path):
    run = tmp_path / "run"
    train(glyph_run(), run)
    plain = SamplerConfig(num_points=3)
    for name, condition in (("a", ()), ("b", (0.0, 0.0, 0.0)), ("c", (0.0, 1.0, 0.0))):
        generate_samples(
            run, tmp_path / name, plain, num_samples=4, seed=0, condition=condition
        )
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
            generate_samples(
                run, tmp_path / "d", plain, num_samples=1, seed=0, condition=condition
            )
    blind = tmp_path / "blind"
    with pytest.warns(InputWarning, match="Rot90 without condition"):
        train(glyph_run(condition=False), blind)
    with pytest.raises(InputError, match="trained without being told"):
        generate_samples(
            blind, tmp_path / "d", plain, num_samples=1, seed=0, condition=(1.0, 0, 0)
        )
    with pytest.raises(InputError, match=r"leave out --sampler.teleport"):
        generate_samples(
            run,
            tmp_path / "d",
            dataclasses.replace(plain, teleport=5.0),
            num_samples=1,
            seed=0,
            condition=(1.0, 0.0, 0.0),
        )


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


# --- what is learned


def fit(augment, clean, sigmas, steps, *, width=64, layers=2, seed=0, size=None):
    """Train a perceptron on a few images in one compiled loop; return the denoiser."""
    shape = clean.shape[1:]
    size = augment.condition_size(shape) if size is None else size
    network = build_network(
        MLPConfig(
            width=width, num_layers=layers, augment_dim=size, adaptive_scale=True
        ),
        shape,
    )
    rule = EDMPreconditioning(float(np.sqrt(np.square(clean).mean())))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    params = network.init(jax.random.key(seed))
    clean = jnp.asarray(clean, jnp.float32)
    batch_size = 256

    def loss(params, key):
        pick, level, draw, own = jax.random.split(key, 4)
        images = clean[jax.random.randint(pick, (batch_size,), 0, len(clean))]
        low, high = np.log(sigmas)
        sigma = jnp.exp(
            jax.random.uniform(level, (batch_size,), minval=low, maxval=high)
        )
        noise = jax.random.normal(draw, images.shape) * sigma[:, None, None, None]
        batch = augment(jax.random.split(own, batch_size), images, noise, sigma)
        model = NeuralDenoiser(params, network, rule, condition=batch.condition)
        weight = rule.loss_weight(batch.sigma)
        return denoising_loss(
            model, batch.noisy, batch.target, batch.sigma, weight=weight
        ).mean()

    @jax.jit
    def run(params):
        def step(carry, number):
            params, state, average = carry
            gradient = jax.grad(loss)(
                params, jax.random.fold_in(jax.random.key(9), number)
            )
            updates, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, updates)
            average = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, average, params)
            return (params, state, average), None

        start = (params, optimizer.init(params), params)
        return jax.lax.scan(step, start, jnp.arange(steps))[0][2]

    return NeuralDenoiser(run(params), network, rule)


@pytest.mark.slow  # only training shows it; half a minute
def test_a_trained_network_is_the_posterior_mean_of_transformed_spikes():
    """T13: within 2 % of the enumerated optimum, and so is its slice at zero."""
    clean = np.array([[1.0, 0.4, -0.7, 0.2], [-0.6, -1.0, 0.5, 0.9]])
    clean = clean.reshape(2, 2, 2, 1)
    # A patch of one pixel: which pixels are hidden, the condition does not tell.
    transform = OneOf((Brightness(2.0), PatchMask(1, 0.6), Flip()))
    augment = ScoreAugmentation(transform, identity_probability=0.3)
    sigmas = (0.3, 3.0)
    model = fit(augment, clean, sigmas, 6000, width=128, layers=3)
    count = 2000
    pick = np.random.default_rng(1).integers(0, 2, count)
    images = jnp.asarray(clean[pick], jnp.float32)
    keys = jax.random.split(jax.random.key(2), count)
    for sigma in (0.4, 1.0, 2.0):
        noise = sigma * jax.random.normal(jax.random.key(3), images.shape)
        for given in (augment, dataclasses.replace(augment, identity_probability=1.0)):
            draw = given.draw(keys, images.shape[1:])
            batch = given.apply(draw, images, noise, sigma)
            told = dataclasses.replace(model, condition=batch.condition)
            found = np.asarray(told(batch.noisy, sigma), np.float64)
            wanted = enumerated(clean, transform, draw, batch.noisy, sigma)
            error = np.square(found - wanted).sum() / np.square(wanted).sum()
            assert error < 0.02, (sigma, error)


def enumerated(clean, transform, draw, noisy, sigma):
    """Return E[T x0 | T y] over the spikes, float64; T is known, hidden pixels too."""
    apply = jax.vmap(transform.apply)
    count = len(noisy)
    moved, shown = [], None
    for spike in (*clean, np.ones_like(clean[0])):
        images = jnp.broadcast_to(
            jnp.asarray(spike, jnp.float32), (count, *spike.shape)
        )
        active = np.asarray(draw.score.active)[:, None, None, None]
        moved.append(np.where(active, apply(draw.score.params, images), images))
    shown = moved.pop().astype(np.float64)  # the gain of each pixel, 0 where hidden
    points = np.stack(moved, axis=1).astype(np.float64)
    rest = np.asarray(noisy, np.float64)[:, None] - points
    deviation = np.where(shown > 0, shown, 1.0)[:, None] * sigma
    logits = -0.5 * (np.square(rest / deviation) * (shown[:, None] > 0)).sum((2, 3, 4))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkhwc->nhwc", weights, points)


def letters(count=8):
    """Return a few upright, asymmetric 6x6 images of -1 and 1."""
    images = np.full((count, 6, 6, 1), -1.0)
    for number, image in enumerate(images):
        image[1:5, 1 + number % 2] = 1.0
        image[4 - number // 4, 1 : 4 + number % 3] = 1.0
    return images


def drawn_from(model, count=300):
    found = sample(
        model,
        jax.random.key(5),
        (count, 6, 6, 1),
        karras(18, 0.01, 20.0),
        solver=Heun(),
    )
    return np.asarray(found.x)


def leaks(samples, clean, moved, closer=1.0):
    """Return the share whose nearest moved image is closer, by a factor, than clean."""
    flat = samples.reshape(len(samples), 1, -1)
    near, far = (
        np.square(flat - other.reshape(1, -1, 36)).sum(axis=-1).min(axis=1)
        for other in (clean, moved)
    )
    return float((far < closer**2 * near).mean())


@pytest.mark.slow  # only training shows it; a minute
def test_turns_leak_without_the_condition_and_much_less_with_it():
    """T14: at least a fifth without, less than half of that with."""
    clean = letters()
    moved = np.concatenate([np.rot90(clean, k, (1, 2)) for k in (1, 2, 3)])
    found = {}
    for condition in (True, False):
        make = partial(ScoreAugmentation, Rot90(), condition=condition)
        if condition:
            augment = make()
        else:
            with pytest.warns(UserWarning, match="Rot90 without condition"):
                augment = make()
        model = fit(augment, clean, (0.02, 20.0), 2500, size=3)
        found[condition] = leaks(drawn_from(model), clean, moved)
    assert found[False] > 0.2
    assert found[True] < 0.5 * found[False]


@pytest.mark.slow  # only training shows it; half a minute
@pytest.mark.filterwarnings("ignore::configs.errors.InputWarning")
@pytest.mark.parametrize(
    # Weaker and stronger letters resemble each other, so those must be much closer.
    ("transform", "closer"),
    [(Brightness(2.0), 0.4), (Translate(0.2), 1.0)],
)
def test_what_noise_shows_leaks_less_from_the_noisy_side(transform, closer):
    """T14: without condition Score Augmentation leaks much less than the clean side.

    Cutouts, whose optima are in test_augmentation_theory.py, are hardly ever drawn by
    either network at this size.
    """
    clean = letters()
    keys = jax.random.split(jax.random.key(7), 60)
    params = jax.vmap(lambda key: transform.sample(key, clean.shape[1:]))(keys)
    told = np.asarray(jax.vmap(transform.encode)(params))
    # Draws that are far enough from the identity to be told from it.
    strong = np.abs(told[:, 1:]).max(axis=1) > 0.4
    images = jnp.asarray(clean, jnp.float32)
    moved = jax.vmap(lambda p: jax.vmap(lambda x: transform.apply(p, x))(images))(
        params
    )
    moved = np.asarray(moved)[strong].reshape(-1, 6, 6, 1)
    found = {}
    for mode in ("score", "nla"):
        augment = ScoreAugmentation(transform, mode=mode, condition=False)
        model = fit(augment, clean, (0.02, 20.0), 2500, size=0)
        found[mode] = leaks(drawn_from(model), clean, moved, closer)
    assert found["nla"] > 0.2
    assert found["score"] < 0.5 * found["nla"], found
