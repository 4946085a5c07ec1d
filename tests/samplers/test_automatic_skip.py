"""``--sampler.teleport auto`` and ``--sampler.tuned``: from a model to a sampler."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import GenerationConfig, InputError, SamplerConfig
from configs.errors import InputWarning
from diffusion.closed_form import (
    GaussianDenoiser,
    MixtureDenoiser,
    Provenance,
    fit_gaussian,
    load_closed_form,
    save_closed_form,
)
from samplers import automatic_skip
from samplers.automatic_skip import resolve_skip
from samplers.building import build_sampler
from samplers.generation import generate_samples
from samplers.model import Model, load_model
from samplers.skip import SKIP_SIGMAS
from samplers.skip_calibration import load_skip_calibration
from samplers.solver import integrate

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_an_untrained_network_is_not_teleported",)

EVENT = (4, 4, 1)
AUTO = SamplerConfig(
    solver="dpm_solver_pp",
    schedule="log_linear",
    nfe=6,
    teleport="auto",
    skip_mode="re-spread",
)


@pytest.fixture(scope="module")
def mixture():
    rng = np.random.default_rng(0)
    bases = np.linalg.qr(rng.normal(size=(3, 16, 4)))[0]
    scales = np.geomspace(1.0, 0.05, 16)
    return MixtureDenoiser(
        jnp.zeros(3),
        jnp.asarray(0.8 * rng.normal(size=(3, 16)) * scales, jnp.float32).reshape(
            3, *EVENT
        ),
        jnp.asarray(bases, jnp.float32),
        jnp.full((3, 4), 0.2),
        jnp.full(3, 0.002),
    )


@pytest.fixture(scope="module")
def images(mixture):
    return np.asarray(mixture.sample(jax.random.key(0), 2000))


def model_of(denoiser, gaussian):
    return Model(denoiser, EVENT, gaussian)


def test_auto_becomes_a_noise_level_that_is_printed(mixture, images, tmp_path, capsys):
    model = model_of(mixture, fit_gaussian(images))
    found = resolve_skip(AUTO, model, tmp_path / "none")
    text = capsys.readouterr().out
    assert isinstance(found.teleport, float)
    assert f"teleport to sigma = {found.teleport:g}; predicted error" in text
    assert "without a teleport" in text and "6 calls, 0 saved" in text
    sampler = build_sampler(found, model)
    assert sampler.sigmas[0] == found.teleport
    assert sampler.solver.nfe(len(sampler.sigmas)) == 6
    again = resolve_skip(found, model, tmp_path / "none")
    assert again is found  # nothing left to choose


@pytest.mark.slow
def test_a_grid_that_is_cut_saves_calls(images, tmp_path, capsys):
    gaussian = fit_gaussian(images)
    model = model_of(gaussian, gaussian)
    plain = SamplerConfig(solver="heun", num_points=14)
    found = resolve_skip(
        SamplerConfig(solver="heun", num_points=14, teleport="auto"), model, tmp_path
    )
    whole, cut = (build_sampler(config, model) for config in (plain, found))
    saved = 2 * (len(whole.sigmas) - len(cut.sigmas))
    assert saved > 0
    assert f", {saved} saved" in capsys.readouterr().out


def test_a_model_is_calibrated_once(mixture, images, tmp_path, monkeypatch):
    model = model_of(mixture, fit_gaussian(images))
    first = resolve_skip(AUTO, model, tmp_path)
    about = load_skip_calibration(tmp_path / "skip_calibration.npz").about
    assert about["model_sha256"] == model.digest
    monkeypatch.setattr(automatic_skip, "calibrate_skip", None)
    assert resolve_skip(AUTO, model, tmp_path) == first
    monkeypatch.undo()
    other = model_of(
        MixtureDenoiser(
            mixture.log_weights,
            mixture.means,
            mixture.bases,
            mixture.variances,
            mixture.residual_variances * 1.01,
        ),
        model.gaussian,
    )
    resolve_skip(AUTO, other, tmp_path)  # another model is measured anew
    about = load_skip_calibration(tmp_path / "skip_calibration.npz").about
    assert about["model_sha256"] == other.digest != model.digest


def test_statistics_of_shuffled_pixels_are_refused(mixture, images, tmp_path):
    order = np.random.default_rng(1).permutation(16)
    shuffled = images.reshape(-1, 16)[:, order].reshape(images.shape)
    model = model_of(mixture, fit_gaussian(shuffled))
    with pytest.raises(InputError, match="another data set") as caught:
        resolve_skip(AUTO, model, tmp_path)
    assert "\n" not in str(caught.value)


def test_auto_without_a_gaussian_gets_one_line(mixture, tmp_path):
    with pytest.raises(InputError, match="needs a Gaussian"):
        resolve_skip(AUTO, model_of(mixture, None), tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teleport": "auto", "prefix": "x.npz"}, "auto, which knows the workdir"),
        ({"teleport": "auto", "solver": "stochastic_heun", "churn": 9.0}, "churn"),
        ({"tuned": 6, "nfe": 6}, "no effect beside sampler.tuned"),
        ({"tuned": 1}, "sampler.tuned is 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, says):
    with pytest.raises(InputError, match=says) as caught:
        SamplerConfig(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_draws_with_auto_from_a_file(mixture, images, tmp_path):
    path = tmp_path / "model.npz"
    save_closed_form(path, mixture, Provenance(2000, "a"))
    gaussian = tmp_path / "gaussian.npz"
    save_closed_form(gaussian, fit_gaussian(images), Provenance(2000, "a"))
    config = GenerationConfig(
        SamplerConfig(**{**vars(AUTO), "gaussian": str(gaussian)}),
        num_samples=3,
        format=("npy",),
    )
    for _ in range(2):  # the second time it is complete, with the same choice
        generate_samples(path, tmp_path / "out", config)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["sampler"]["teleport"] == record["sigmas"][0]
    assert record["nfe"] == 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """What is no closed form, as far as anybody can see."""

    inner: GaussianDenoiser

    def __call__(self, x, sigma):
        return self.inner(x, sigma)


@pytest.mark.slow
def test_a_run_fits_its_mixture_once_and_predicts_without_images(
    tiny_run, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    model = load_model(workdir)
    gaussian = load_closed_form(workdir / "gaussian.npz").denoiser
    model = model._replace(denoiser=Network(gaussian))
    resolve_skip(AUTO, model, workdir)
    assert "fitting a mixture" in capsys.readouterr().out
    kept = load_closed_form(workdir / "mixture.npz", event_shape=model.event_shape)
    assert kept.provenance.data_digest == model.data_digest
    resolve_skip(AUTO, model, workdir)
    assert "fitting a mixture" not in capsys.readouterr().out
    (workdir / "mixture.npz").unlink()

    def gone(*_):
        raise InputError("no images")

    monkeypatch.setattr(automatic_skip, "read_training_images", gone)
    with pytest.warns(InputWarning, match="from the Gaussian alone"):
        resolve_skip(AUTO, model, workdir)


def test_an_untrained_network_is_not_teleported(tiny_run, tmp_path):
    """Its output is far from its images' Gaussian: one line, exit status 2."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    with pytest.raises(InputError, match="has hardly begun"):
        resolve_skip(AUTO, load_model(workdir), workdir)


@pytest.mark.slow
def test_on_a_gaussian_the_choice_has_the_least_error_there_is(images, tmp_path):
    gaussian = fit_gaussian(images)
    model = model_of(gaussian, gaussian)
    noise = jax.random.normal(jax.random.key(4), (64, *EVENT))
    exact = gaussian.denoiser_trajectory(80.0 * noise, 80.0, 0.0)

    def error(sigma_skip):
        config = dataclasses.replace(AUTO, teleport=sigma_skip)
        sampler = build_sampler(config, model)
        x = sampler.start(noise, sampler.sigmas[0])
        found = integrate(sampler.solver, gaussian, x, sampler.sigmas).x
        return float(jnp.sqrt(jnp.mean((found - exact) ** 2)))

    chosen = resolve_skip(AUTO, model, tmp_path).teleport
    assert error(chosen) <= 1.05 * min(error(skip) for skip in SKIP_SIGMAS)
