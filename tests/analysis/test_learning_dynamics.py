"""Losses per noise level over training, and whether denoisers follow transforms."""

import dataclasses
import shutil
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.learning_dynamics import (
    equivariance_error,
    losses_over_training,
    weighted_losses,
)
from configs import InputError
from configs.mixture2d import config as toy
from configs.network_schema import MLPConfig
from configs.schema import EMAConfig, OptimConfig
from diffusion.closed_form import GaussianDenoiser, isotropic_gaussian
from diffusion.data import split_of
from diffusion.neural import NeuralDenoiser
from diffusion.preconditioning import EDMPreconditioning
from diffusion.training import load_denoiser, train
from diffusion.training.loading import checkpoint_steps
from tests.diffusion.runs import truncate, with_training

SIGMAS = np.array([0.05, 0.4, 3.0])
VARIANCES = np.array([2.0, 0.5, 0.1])
MEAN = np.array([0.3, -0.2, 0.1])
KEY = jax.random.key(7)


def gaussian_images(n):
    rng = np.random.default_rng(0)
    return (MEAN + np.sqrt(VARIANCES) * rng.normal(size=(n, 3))).astype(np.float32)


def gaussian():
    return GaussianDenoiser(
        jnp.asarray(MEAN, jnp.float32), jnp.eye(3), jnp.asarray(VARIANCES, jnp.float32)
    )


def noise_of(key, level, index, shape):
    key = jax.random.fold_in(jax.random.fold_in(key, level), index)
    return np.float64(jax.random.normal(key, shape, jnp.float32))


def test_a_gaussians_loss_is_its_posterior_variance():
    """E|D - x0|^2 / D is the mean of v s^2 / (v + s^2) over directions."""
    found = weighted_losses(
        gaussian(), gaussian_images(4000), SIGMAS, KEY, sigma_data=0.5
    )
    s2 = SIGMAS[:, None] ** 2
    weight = (SIGMAS**2 + 0.25) / (SIGMAS * 0.5) ** 2
    wanted = weight * (VARIANCES * s2 / (VARIANCES + s2)).mean(axis=1)
    assert (np.abs(found.mean - wanted) < 4 * found.standard_error).all()
    assert (found.standard_error < 0.03 * wanted).all()
    assert found.mean.dtype == found.per_image.dtype == np.float64


def test_losses_equal_a_float64_reference_on_the_same_noise():
    images = gaussian_images(10)
    found = weighted_losses(
        gaussian(), images, SIGMAS, KEY, sigma_data=0.7, batch_size=4
    )
    wanted = np.empty((3, 10))
    for level, sigma in enumerate(SIGMAS):
        for i, x0 in enumerate(np.float64(images)):
            x = x0 + sigma * noise_of(KEY, level, i, (3,))
            denoised = MEAN + VARIANCES / (VARIANCES + sigma**2) * (x - MEAN)
            weight = (sigma**2 + 0.7**2) / (0.7 * sigma) ** 2
            wanted[level, i] = weight * np.mean((denoised - x0) ** 2)
    np.testing.assert_allclose(found.per_image, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.mean, wanted.mean(axis=1), rtol=1e-4)
    deviation = wanted.std(axis=1, ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(found.standard_error, deviation, rtol=1e-4)


def test_the_noise_of_an_image_depends_on_nothing_but_its_index():
    images = gaussian_images(10)
    whole, blocks, fewer = (
        weighted_losses(
            gaussian(), images[:n], SIGMAS, KEY, sigma_data=0.5, batch_size=size
        ).per_image
        for n, size in ((10, 256), (10, 3), (4, 3))
    )
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)
    np.testing.assert_allclose(fewer, whole[:, :4], rtol=1e-5)


def test_one_program_is_compiled_for_all_blocks_and_levels():
    traces = []

    def half(x, sigma):
        traces.append(x.shape)
        return x / 2

    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), dtype=np.uint8)
    found = weighted_losses(half, images, SIGMAS, KEY, sigma_data=0.5, batch_size=4)
    assert traces == [(4, 4, 4, 1)]
    floats = images / np.float32(127.5) - 1
    same = weighted_losses(half, floats, SIGMAS, KEY, sigma_data=0.5)
    np.testing.assert_allclose(found.per_image, same.per_image, rtol=1e-4)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """Twenty steps on the points of three Gaussians, with three checkpoints."""
    config = with_training(
        dataclasses.replace(
            toy,
            network=MLPConfig(width=8, num_layers=1),
            # Twenty steps are to change the parameters, and their average later.
            optim=OptimConfig(learning_rate=0.1, warmup_images=0),
            ema=EMAConfig(half_life_images=100, ramp_fraction=None),
        ),
        batch_size=16,
        num_steps=20,
        log_every_steps=10,
        evaluation_images=16,
        checkpoint_every_steps=10,
        checkpoint_every_seconds=1000.0,
    )
    workdir = tmp_path_factory.mktemp("toy")
    train(config, workdir)
    split = split_of(config.data)
    return workdir, {
        "training": split.training.images[:30],
        "held_out": split.held_out.images[:50],
    }


def test_losses_over_training_are_those_of_each_checkpoint(toy_run, monkeypatch):
    workdir, images = toy_run
    traces = []
    call = NeuralDenoiser.__call__
    monkeypatch.setattr(
        NeuralDenoiser,
        "__call__",
        lambda self, x, sigma: traces.append(x.shape) or call(self, x, sigma),
    )
    found = losses_over_training(workdir, images, SIGMAS, KEY, batch_size=32)
    assert traces == [(32, 2)]
    assert found.steps.tolist() == checkpoint_steps(workdir) == [0, 10, 20]
    assert found.skipped == ()
    sigma_data = load_denoiser(workdir).preconditioning.sigma_data
    for row, step in ((1, 10), (2, 20)):
        denoiser = load_denoiser(workdir, step=step)
        for name, values in images.items():
            wanted = weighted_losses(
                denoiser, values, SIGMAS, KEY, sigma_data=sigma_data, batch_size=32
            )
            np.testing.assert_allclose(found.loss[name][row], wanted.mean, rtol=1e-4)
            np.testing.assert_allclose(
                found.standard_error[name][row], wanted.standard_error, rtol=1e-4
            )
    gain = found.loss["held_out"][2] / found.loss["held_out"][0] - 1
    assert (np.abs(gain) > 0.01).any()
    raw = losses_over_training(
        workdir, images, SIGMAS, KEY, ema=False, sigma_data=1.0, batch_size=32
    )
    other = load_denoiser(workdir, step=20, ema=False)
    wanted = weighted_losses(
        other, images["training"], SIGMAS, KEY, sigma_data=1.0, batch_size=32
    )
    np.testing.assert_allclose(raw.loss["training"][2], wanted.mean, rtol=1e-4)
    averaged = weighted_losses(
        denoiser, images["training"], SIGMAS, KEY, sigma_data=1.0, batch_size=32
    )
    assert (np.abs(averaged.mean / wanted.mean - 1) > 0.01).any()


def test_a_damaged_checkpoint_is_left_out_and_named(toy_run, tmp_path):
    workdir, images = toy_run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    whole = losses_over_training(workdir, images, SIGMAS, KEY)
    truncate(copy / "checkpoints" / "10" / "ema_params")
    found = losses_over_training(copy, images, SIGMAS, KEY)
    assert found.steps.tolist() == [0, 20]
    assert found.skipped == (10,)
    np.testing.assert_allclose(
        found.loss["held_out"], whole.loss["held_out"][[0, 2]], rtol=1e-6
    )
    for step in (0, 20):
        truncate(copy / "checkpoints" / str(step) / "ema_params")
    with pytest.raises(InputError, match="no intact checkpoint"):
        losses_over_training(copy, images, SIGMAS, KEY)


@dataclass(frozen=True)
class Turn:
    """Quarter turns, params () int32 in 0..3."""

    def apply(self, params, x):
        return jnp.stack([jnp.rot90(x, k) for k in range(4)])[params]

    def encode(self, params):
        return jax.nn.one_hot(params - 1, 3)


TURNS = jnp.arange(24) % 4
SHAPE = (2, 2, 1)


def square_images(n=24):
    return np.random.default_rng(1).normal(size=(n, *SHAPE)).astype(np.float32)


def test_an_isotropic_gaussian_follows_rotations_exactly():
    model = isotropic_gaussian(jnp.full(SHAPE, 0.3), 0.5)
    found = equivariance_error(
        model, Turn(), TURNS, square_images(), SIGMAS, KEY, conditioned=model
    )
    assert (found.error < 1e-6).all()
    assert found.error.shape == found.standard_error.shape == (3,)


def test_a_gaussian_follows_a_rotation_when_its_covariance_is_rotated():
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    mean = rng.normal(size=SHAPE)
    variances = np.array([3.0, 1.0, 0.3, 0.01])

    def model(turned):
        images = np.rot90(basis.reshape(2, 2, 4), turned).reshape(4, 4)
        return GaussianDenoiser(
            *(
                jnp.asarray(v, jnp.float32)
                for v in (np.rot90(mean, turned), images, variances)
            )
        )

    images, turns = square_images(), jnp.ones(24, jnp.int32)
    right, wrong = (
        equivariance_error(
            model(0), Turn(), turns, images, SIGMAS, KEY, conditioned=model(k)
        )
        for k in (1, 0)
    )
    assert (right.error < 1e-5).all()
    assert (wrong.error > 0.1).all()
    # The same in float64: D x = mean + U v/(v + s^2) U^T (x - mean).
    for level, sigma in enumerate(SIGMAS):

        def denoise(x, sigma=sigma):
            z = (x - mean).reshape(-1, 4)
            z = z @ (basis * variances / (variances + sigma**2)) @ basis.T
            return mean + z.reshape(-1, *SHAPE)

        noise = [noise_of(KEY, level, i, SHAPE) for i in range(24)]
        x = images + sigma * np.stack(noise)
        target = np.rot90(denoise(x), 1, axes=(1, 2))
        gap = denoise(np.rot90(x, 1, axes=(1, 2))) - target
        wanted = np.sqrt((gap**2).sum() / (target**2).sum())
        assert wrong.error[level] == pytest.approx(wanted, rel=1e-4)


def test_the_error_of_equivariance_has_the_standard_error_that_it_says():
    model = GaussianDenoiser(
        jnp.zeros(SHAPE), jnp.eye(4), jnp.asarray([3.0, 1.0, 0.3, 0.01])
    )
    found = []
    for seed in range(100):
        key = jax.random.key(seed)
        images = jax.random.normal(key, (24, *SHAPE))
        found.append(
            equivariance_error(
                model, Turn(), TURNS, images, [0.4], key, conditioned=model
            )
        )
    spread = np.std([f.error[0] for f in found])
    said = np.mean([f.standard_error[0] for f in found])
    assert 0.75 < said / spread < 1.25


@dataclass(frozen=True)
class Told:
    """A network that answers with c_in x, plus the first entry of its condition."""

    def init(self, key):
        return {}

    def apply(self, params, x, c_noise, labels=None, condition=None, dropout_key=None):
        return x if condition is None else x + condition[:, :1, None, None]


def test_a_network_is_told_the_encoding_of_each_image():
    """The skip and c_in x follow rotations, so all that is left is the condition."""
    denoiser = NeuralDenoiser({}, Told(), EDMPreconditioning(0.5))
    images, sigma = square_images(), 0.4
    found = equivariance_error(denoiser, Turn(), TURNS, images, [sigma], KEY)
    unaware = equivariance_error(
        denoiser, Turn(), TURNS, images, [sigma], KEY, conditioned=denoiser
    )
    assert unaware.error[0] < 1e-6
    x = images + sigma * np.stack([noise_of(KEY, 0, i, SHAPE) for i in range(24)])
    total = np.sqrt(sigma**2 + 0.25)
    c_out = 0.5 * sigma / total
    denoised = (0.25 / total**2 + c_out / total) * x
    # Six of 24 images are turned once, and their four pixels are off by c_out.
    wanted = np.sqrt(24 * c_out**2 / (denoised**2).sum())
    assert found.error[0] == pytest.approx(wanted, rel=1e-4)


def test_bad_calls_get_one_line(tmp_path, toy_run):
    model, images = gaussian(), gaussian_images(4)
    square = isotropic_gaussian(jnp.zeros(SHAPE), 0.0)
    turn, few = Turn(), jnp.ones(4, jnp.int32)
    workdir, sets = toy_run
    for call, says in [
        (lambda: weighted_losses(model, images, [], KEY, sigma_data=1.0), "at least"),
        (lambda: weighted_losses(model, images, [0.0], KEY, sigma_data=1.0), "> 0"),
        (
            lambda: weighted_losses(model, images[:0], [1.0], KEY, sigma_data=1.0),
            "at least one",
        ),
        (
            lambda: weighted_losses(
                model, images.astype(int), [1.0], KEY, sigma_data=1.0
            ),
            "dtype",
        ),
        (
            lambda: weighted_losses(model, images, [1.0], KEY, sigma_data=0.0),
            "sigma_data",
        ),
        (
            lambda: weighted_losses(
                model, images, [1.0], KEY, sigma_data=1.0, batch_size=0
            ),
            "batch_size",
        ),
        (lambda: losses_over_training(workdir, {}, SIGMAS, KEY), "by name"),
        (lambda: losses_over_training(tmp_path, sets, SIGMAS, KEY), "no checkpoint in"),
        (lambda: checkpoint_steps(tmp_path), "no checkpoint in"),
        (
            lambda: equivariance_error(square, turn, few, square_images(4), [1.0], KEY),
            "takes no condition",
        ),
        (
            lambda: equivariance_error(
                square, turn, few, square_images(4), [1.0], KEY, conditioned=square
            ),
            "all zero",
        ),
    ]:
        with pytest.raises(InputError, match=says):
            call()
