"""The command that measures statistics and gains on a run, and whose they are."""

import dataclasses
import hashlib
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError, SamplerConfig
from configs.digits import config
from configs.network_schema import MLPConfig
from diffusion.closed_form import GaussianDenoiser, load_closed_form
from diffusion.data import split_of
from diffusion.denoiser import as_pytree
from diffusion.guidance import Guided
from diffusion.training import train
from samplers import estimate_model_statistics, load_model_statistics, statistics_run
from samplers.building import build_sampler
from samplers.coordinates import Coordinates
from samplers.effective_variances import (
    EffectiveVariances,
    load_effective_variances,
    read_about,
    save_effective_variances,
)
from samplers.model import Model, digest_of, load_model
from samplers.model_statistics import (
    TabulatedStatistics,
    read_statistics_about,
    save_model_statistics,
)
from samplers.statistics_run import estimate_for_workdir, estimate_gains_for_workdir
from tests.diffusion.runs import with_training

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_a_killed_estimation_goes_on_to_the_same_file",)

SIZES = dict(
    num_levels=4, num_samples=20, batch_size=16, sigma_range=(0.01, 50.0), seed=0
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    small = dataclasses.replace(config, network=MLPConfig(width=16, num_layers=1))
    train(with_training(small, num_steps=4, log_every_steps=4), path)
    return path


def test_a_killed_estimation_goes_on_to_the_same_file(workdir, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole.npz", tmp_path / "broken.npz"
    estimate_for_workdir(workdir, whole, **SIZES)
    run = statistics_run
    monkeypatch.setattr(run, "_SECONDS_BETWEEN_SAVES", 0.0)
    write, count = run._write_partial, [0]

    def dying(*arguments):
        write(*arguments)
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "_write_partial", dying)
    with pytest.raises(KeyboardInterrupt):
        estimate_for_workdir(workdir, broken, **SIZES)
    assert not broken.exists()
    with pytest.raises(InputError, match="begun with seed 0, now 1"):
        estimate_for_workdir(workdir, broken, **{**SIZES, "seed": 1})
    partial = tmp_path / ".broken.npz.partial.npz"
    whole_bytes = partial.read_bytes()
    partial.write_bytes(whole_bytes[:100])
    with pytest.raises(InputError, match="is damaged"):
        estimate_for_workdir(workdir, broken, **SIZES)
    partial.write_bytes(whole_bytes)
    estimate_for_workdir(workdir, broken, **SIZES)
    assert count[0] == 8, "finished levels are not done again"
    one, other = load_model_statistics(whole), load_model_statistics(broken)
    assert isinstance(one, TabulatedStatistics)
    for name in ("gains", "scalings", "biases"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(InputError, match="exists already"):
        estimate_for_workdir(workdir, whole, **SIZES)
    assert [p.name for p in tmp_path.glob(".*")] == []


GAINS = dict(
    num_levels=3, num_images=20, batch_size=16, sigma_range=(0.1, 10.0), seed=0
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByClass:
    """The denoiser of one Gaussian per class: `means` and `variances`."""

    means: jax.Array
    variances: jax.Array
    labels: jax.Array | None = None

    def __call__(self, x, sigma):
        labels = jnp.ones((1, len(self.means))) / len(self.means)
        labels = labels if self.labels is None else self.labels
        rows = (len(labels),) + (1,) * (x.ndim - 1)
        mean = jnp.tensordot(labels, self.means, 1)
        variance = (labels @ self.variances).reshape(rows)
        return mean + variance / (variance + sigma**2) * (x - mean)


@pytest.mark.slow
def test_statistics_of_a_model_that_is_told_classes_are_those_of_its_own_images():
    """D = w_k x for images c_k: in closed form with a_k = l_k - l and l = E l_k,

    f = a_k x and f' = (l_k' - l' - a_k l_k) x.
    """
    v, c, sigmas = np.array([0.04, 1.0]), np.array([0.0, 3.0]), np.geomspace(2, 0.2, 12)
    classes = np.arange(300) % 2
    images = np.ones((300, 4), np.float32) * c[classes, None].astype(np.float32)
    model = ByClass(jnp.zeros((2, 4)), jnp.asarray(v, jnp.float32))
    calls = []

    def denoiser_of(numbers):
        calls.append(len(numbers))
        labels = jax.nn.one_hot(jnp.asarray(classes[numbers]), 2)
        return dataclasses.replace(model, labels=labels)

    found = estimate_model_statistics(
        model,
        images,
        sigmas,
        jax.random.key(0),
        num_samples=4000,
        batch_size=1024,
        denoiser_of=denoiser_of,
    ).statistics
    assert set(calls) == {1024}
    s2 = sigmas[:, None] ** 2
    own, own_slope = s2 / (v + s2), -2 * v * s2 / (v + s2) ** 2  # l_k, l_k', (N, 2)
    l = found.gains.mean(axis=1)  # noqa: E741
    np.testing.assert_allclose(l, own.mean(axis=1), atol=0.04)
    # The rest for this very l, as finite differences make its errors larger.
    slope = np.gradient(l, -np.log(sigmas))
    a = own - l[:, None]
    g = own_slope - slope[:, None] - a * own
    f, f_change, power = (a * c).mean(1), (g * c).mean(1), c**2 + s2
    s = ((a * g * power).mean(1) - f * f_change) / ((a**2 * power).mean(1) - f**2)
    for name, wanted in {"scalings": s, "biases": f_change - s * f}.items():
        mean = getattr(found, name).mean(axis=1)
        atol = 0.1 * np.abs(wanted).max()
        np.testing.assert_allclose(mean, wanted, atol=atol, err_msg=name)


@pytest.fixture
def class_run(workdir, tmp_path, monkeypatch):
    """A run on digits whose network is `ByClass` with the mean image of each class."""
    run = tmp_path / "classes"
    shutil.copytree(workdir, run)
    data = split_of(config.data).training
    images = data.images / 127.5 - 1
    means = np.stack([images[data.labels == k].mean(axis=0) for k in range(10)])
    variances = jnp.full(10, 0.1, jnp.float32)
    network = ByClass(jnp.asarray(means, jnp.float32), variances)
    real = load_model

    def load(path, **kwargs):
        found = real(path, **kwargs)
        return found._replace(denoiser=network, num_classes=10)

    monkeypatch.setattr(statistics_run, "load_model", load)
    return run, images, means[data.labels]


def test_gains_of_a_run_that_is_told_classes_are_those_of_its_own_images(
    class_run, tmp_path
):
    """y = l (x - m_k): its regression on x has the slope l (1 - Cov(m, x0)/Var x)."""
    run, images, means = class_run
    sizes = {**GAINS, "num_images": 2000, "sigma_range": (0.3, 3.0)}
    estimate_gains_for_workdir(run, tmp_path / "gains.npz", **sizes, rank=8)
    found = load_effective_variances(tmp_path / "gains.npz")
    basis = np.asarray(found.coordinates.basis, np.float64)
    assert basis.shape == (64, 8)
    x, m = (v.reshape(len(v), -1) @ basis for v in (images, means))
    x, m = x - x.mean(axis=0), m - m.mean(axis=0)
    for sigma, log_variance in zip(found.sigmas, found.log_variances, strict=True):
        between, whole = np.mean(x * m, axis=0), np.mean(x * x, axis=0) + sigma**2
        l = sigma**2 / (0.1 + sigma**2)  # noqa: E741
        wanted = 1 - l * (1 - between / whole)
        gains = 1 / (1 + sigma**2 * np.exp(-np.asarray(log_variance)))
        np.testing.assert_allclose(gains[:-1], wanted, atol=0.05)
        if sigma < 0.5:
            assert np.abs(1 - l - wanted).min() > 0.1, "what classes at random give"


def test_what_is_written_names_checkpoint_images_and_settings(
    workdir, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    estimate_for_workdir(run, run / "model_statistics.npz", **SIZES)
    estimate_gains_for_workdir(run, run / "gains.npz", **GAINS)
    said = capsys.readouterr().out.splitlines()[-1]
    error = said.split("rms standard error ")[1].split(":")[0]
    assert 1e-6 < float(error) < 1, "nothing of the complement, which is empty here"
    model = load_model(run)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model.denoiser):
        digest.update(np.asarray(leaf).tobytes())
    gaussian = load_closed_form(run / "gaussian.npz").denoiser
    for about in (
        read_statistics_about(run / "model_statistics.npz"),
        read_about(run / "gains.npz"),
    ):
        assert about["model_sha256"] == model.digest == digest.hexdigest()
        assert about["data_digest"] == model.data_digest
        assert about["seed"] == 0
        assert (
            about["num_levels"] == len(about["sigma_range"]) + about["num_levels"] - 2
        )
    assert about["gaussian_sha256"] == digest_of(gaussian)
    assert about["num_images"] == 20
    with pytest.raises(InputError, match="exists already"):
        estimate_gains_for_workdir(run, run / "gains.npz", **GAINS)
    # And the solvers take them from the workdir.
    v3 = build_sampler(
        SamplerConfig(solver="dpm_solver_v3", sigma_min=0.01, sigma_max=50.0), model
    )
    assert isinstance(v3.solver.statistics, TabulatedStatistics)
    ours = SamplerConfig(solver="residual_exponential", num_points=5)
    assert isinstance(build_sampler(ours, model).solver.gaussian, EffectiveVariances)
    named = dataclasses.replace(ours, gaussian=str(run / "gaussian.npz"), rank=9)
    solver = build_sampler(named, model).solver
    assert isinstance(solver.gaussian, GaussianDenoiser)
    assert solver.rank == 9
    with pytest.raises(InputError, match="holds gains in 64 directions; leave it out"):
        build_sampler(dataclasses.replace(ours, rank=9), model)


def test_the_digest_is_of_parameters_and_not_of_what_the_model_is_told():
    network = ByClass(jnp.zeros((2, 4)), jnp.ones(2))
    model = Model(network, (4,), None, num_classes=2)
    told = model.with_classes(jnp.asarray([0, 1, 1]))
    assert model._replace(denoiser=told).digest == model.digest
    other = dataclasses.replace(network, variances=2 * jnp.ones(2))
    assert Model(other, (4,), None).digest != model.digest
    guided = Guided(network, other, 2.0)
    assert model._replace(denoiser=guided).digest != model.digest


def gains_file(path, shape=(8, 8, 1), **about):
    size = int(np.prod(shape))
    frame = Coordinates(jnp.zeros(shape), jnp.eye(size, 3))
    table = EffectiveVariances(frame, np.array([10.0, 0.1]), np.zeros((2, 4)))
    save_effective_variances(path, table, about=about)


def statistics_file(path, shape=(8, 8, 1), **about):
    table = np.zeros((2, int(np.prod(shape))))
    found = TabulatedStatistics(
        Coordinates(jnp.zeros(shape)), np.array([100.0, 0.001]), 1 + table, table, table
    )
    save_model_statistics(path, found, about=about)


@pytest.mark.parametrize(
    ("solver", "write", "own", "command"),
    [
        (
            "dpm_solver_v3",
            statistics_file,
            "statistics",
            "estimate_statistics WORKDIR ",
        ),
        ("residual_exponential", gains_file, "gains", "WORKDIR --gains again"),
    ],
)
def test_what_another_checkpoint_was_measured_for_is_refused(
    solver, write, own, command, workdir, tmp_path
):
    model = load_model(workdir)
    path = tmp_path / "file.npz"
    config = SamplerConfig(solver=solver, num_points=4, statistics=str(path))

    def refusal(config=config, model=model):
        with pytest.raises(InputError) as caught:
            build_sampler(config, model)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(InputError, match=r"them with .*estimate_statistics WORKDIR"):
        build_sampler(config, model)
    write(path, model_sha256="b" * 64)
    says = refusal()
    assert "on another checkpoint (sha256 bbbbbbbbbbbb...) than the model (" in says
    assert model.digest[:12] in says
    assert command in says
    default = SamplerConfig(solver=solver, num_points=4)
    assert "on another checkpoint" in refusal(default, model._replace(**{own: path}))
    build_sampler(dataclasses.replace(config, other_data=True), model)
    write(path, model_sha256=model.digest)
    build_sampler(config, model)
    guided = Guided(model.denoiser, as_pytree(lambda x, sigma: x), 2.0)
    build_sampler(config, model._replace(denoiser=guided))
    swapped = model._replace(
        denoiser=Guided(as_pytree(lambda x, sigma: x), model.denoiser, 2.0)
    )
    assert "on another checkpoint" in refusal(model=swapped)
    write(path)  # says nothing
    build_sampler(config, model)
    write(path, (4, 4, 1), model_sha256=model.digest)
    assert "of samples of shape (4, 4, 1), but (8, 8, 1) is needed" in refusal()


def test_images_that_are_not_those_of_training_are_refused(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    text = (run / "config.json").read_text()
    record = json.loads(text)
    found = record["data"]["digest"]
    (run / "config.json").write_text(text.replace(found, "c" * 64))
    with pytest.raises(InputError, match="now holds other images"):
        estimate_for_workdir(run, run / "model_statistics.npz", **SIZES)


@pytest.mark.slow
def test_the_command_measures_gains_and_generate_takes_them(
    workdir, tmp_path, monkeypatch, capsys
):
    from diffusion.command_line import exit_on_error
    from samplers import estimate_statistics, generate

    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    words = [str(run), "--gains", "--num-samples", "20", "--rank", "6"]
    monkeypatch.setattr(sys, "argv", ["prog", *words])
    exit_on_error(estimate_statistics.main)
    says = capsys.readouterr().out
    assert "gains at 20 noise levels in 6 directions, rms standard error" in says
    words = [str(run), "--sampler.solver", "residual_exponential", "--outdir"]
    words += [str(tmp_path / "x"), "--num-samples", "3", "--sampler.nfe", "5"]
    monkeypatch.setattr(sys, "argv", ["prog", *words])
    exit_on_error(generate.main)
    assert "3 samples, 5 network calls each" in capsys.readouterr().out
    record = json.loads((tmp_path / "x" / "record.json").read_text())
    assert record["sampler"]["solver"] == "residual_exponential"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rank", "5"], "statistics have none; add --gains"),
        (["--gains", "--rank", "-1"], "rank is -1; it must be >= 0"),
        (["--gains", "--num-levels", "1"], "num_levels is 1; it must be >= 2"),
        (["--sigma-min", "90"], "they must satisfy 0 < sigma_min < sigma_max"),
        (["--gian"], "unknown option '--gian'; did you mean '--gains'"),
        ([], "is no run; statistics are measured on one"),
    ],
)
def test_mistakes_in_the_command_are_one_line(
    words, says, tmp_path, monkeypatch, capsys
):
    from diffusion.command_line import exit_on_error
    from samplers import estimate_statistics

    monkeypatch.setattr(sys, "argv", ["prog", str(tmp_path), *words])
    with pytest.raises(SystemExit):
        exit_on_error(estimate_statistics.main)
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_network_that_is_told_classes_is_measured(tiny_config, tiny_unet, tmp_path):
    run = tmp_path / "run"
    network = dataclasses.replace(tiny_unet, label_dim=10)
    small = with_training(
        dataclasses.replace(tiny_config, network=network), num_steps=2, batch_size=4
    )
    train(small, run)
    sizes = {**SIZES, "num_levels": 2}
    estimate_for_workdir(run, run / "model_statistics.npz", **sizes)
    model = load_model(run)
    config = SamplerConfig(solver="dpm_solver_v3", sigma_min=0.01, sigma_max=50.0)
    statistics = build_sampler(config, model).solver.statistics
    assert isinstance(statistics, TabulatedStatistics)
    assert np.isfinite(statistics.gains).all()
