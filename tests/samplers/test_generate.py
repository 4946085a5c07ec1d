"""The command that draws samples: what an image depends on, and going on."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers.model
from configs import GenerationConfig, InputError, SamplerConfig
from configs.errors import InputWarning
from configs.solver_table import SOLVERS, solver_table
from diffusion.closed_form import (
    GaussianDenoiser,
    MixtureDenoiser,
    Provenance,
    fit_class_mixture,
    fit_gaussian,
    fit_mixture,
    save_closed_form,
)
from diffusion.command_line import exit_on_error
from diffusion.data import load_builtin
from diffusion.data.archives import open_archive
from samplers import Prior, Teleport, generation
from samplers.building import BUILDERS, build_sampler
from samplers.drawing import Drawing, draw_blocks, draw_classes
from samplers.generation import generate_samples
from samplers.model import Model

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_an_image_is_the_same_whatever_the_number[prefix]",
    "test_an_image_is_the_same_whatever_the_number[prior]",
    "test_an_image_is_the_same_whatever_the_number[teleport]",
    "test_blocks_do_not_pile_up_on_the_device",
)

ROOT = Path(__file__).resolve().parents[2]
EVENT = (2, 2, 1)
CLASSES = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassPoints:
    """A denoiser that is told classes: class k is the point k + 1, none is 0."""

    spread: float = 0.0
    labels: jax.Array | None = None

    def __call__(self, x, sigma):
        labels = jnp.zeros((1, CLASSES)) if self.labels is None else self.labels
        point = (labels @ jnp.arange(1.0, 1.0 + CLASSES)).reshape(-1, 1, 1, 1)
        gain = self.spread**2 / (
            self.spread**2 + jnp.reshape(sigma, (-1, 1, 1, 1)) ** 2
        )
        return point + gain * (x - point)


@pytest.fixture
def class_model(monkeypatch):
    """Let every path be the model of `ClassPoints`, "weak" one without classes."""
    gaussian = GaussianDenoiser(
        jnp.full(EVENT, 2.0), jnp.zeros((4, 0)), jnp.zeros(0), 1.0
    )

    def load(path, *, step=None, condition=()):
        classes = 0 if str(path) == "weak" else CLASSES
        return Model(ClassPoints(), EVENT, gaussian, num_classes=classes)

    monkeypatch.setattr(samplers.model, "load_model", load)


def settings(**changes):
    sampler = SamplerConfig(solver="euler", num_points=3)
    values = {"num_samples": 5, "block_size": 2, "format": ("npy",), **changes}
    return GenerationConfig(**{"sampler": sampler, **values})


def drawn(tmp_path, name="x", path="model", **changes):
    generate_samples(path, tmp_path / name, settings(**changes))
    folder = tmp_path / name
    record = json.loads((folder / "record.json").read_text())
    samples = np.load(folder / "samples.npy")
    labels = folder / "labels.npy"
    return samples, np.load(labels) if labels.exists() else None, record


def test_images_are_of_the_class_that_the_files_name(class_model, tmp_path):
    samples, labels, record = drawn(tmp_path, num_samples=40, block_size=16)
    np.testing.assert_allclose(samples[:, 0, 0, 0], 1 + labels, rtol=1e-6)
    assert set(labels) == {0, 1, 2}
    assert record["class_label"] == "random"
    samples, labels, _ = drawn(tmp_path, "one", class_label="2")
    np.testing.assert_array_equal(labels, 2)
    np.testing.assert_allclose(samples, 3.0, rtol=1e-6)
    _, labels, record = drawn(tmp_path, "balanced", class_label="balanced")
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1])


def test_classes_depend_on_seed_and_number_alone():
    key = jax.random.key(3)
    all_at_once = draw_classes("random", 10, key, 0, 500)
    np.testing.assert_array_equal(
        all_at_once[123:130], draw_classes("random", 10, key, 123, 7)
    )
    counts = np.bincount(all_at_once, minlength=10)
    assert np.abs(counts - 50).max() < 4.5 * np.sqrt(500 * 0.1 * 0.9)


def test_guidance_leads_away_from_the_network_without_classes(class_model, tmp_path):
    # D = U + w (C - U) with U = 0 and C = class: the last call decides.
    samples, labels, record = drawn(tmp_path, guidance=2.5)
    np.testing.assert_allclose(samples[:, 0, 0, 0], 2.5 * (1 + labels), rtol=1e-6)
    assert record["networks"] == 2
    plain = drawn(tmp_path, "plain")[0]
    one = drawn(tmp_path, "one", guidance=1.0)[0]
    np.testing.assert_array_equal(one, plain)
    outside = drawn(tmp_path, "above", guidance=2.5, guidance_interval=(1.0, 5.0))[0]
    np.testing.assert_array_equal(outside, plain)
    # A guide that is told the same classes agrees with the network: no effect.
    told = drawn(tmp_path, "told", guidance=2.5, guide="other")[0]
    np.testing.assert_allclose(told, plain, rtol=1e-6)
    weak = drawn(tmp_path, "weak", guidance=2.5, guide="weak")[0]
    np.testing.assert_array_equal(weak, samples)


def test_each_class_is_teleported_by_its_own_gaussian(class_model, tmp_path):
    means = (1.0 + jnp.arange(3.0)).reshape(3, 1, 1, 1) * jnp.ones((1, *EVENT))
    mixture = MixtureDenoiser(
        jnp.zeros(3), means, jnp.zeros((3, 4, 0)), jnp.zeros((3, 0)), jnp.zeros(3)
    )
    path = tmp_path / "classes.npz"
    save_closed_form(path, mixture, Provenance())
    sampler = SamplerConfig(teleport=1e-3, sigma_min=1e-3, class_gaussians=str(path))
    model = samplers.model.load_model("model")
    built = build_sampler(sampler, model)
    noise = jax.random.normal(jax.random.key(0), (3, *EVENT))
    x = built.start_of(jnp.asarray([2, 0, 1]))(noise, built.sigmas[0])
    expected = np.array([3.0, 1.0, 2.0]).reshape(3, 1, 1, 1) * np.ones((3, *EVENT))
    np.testing.assert_allclose(x, expected, atol=1e-2)
    samples, labels, _ = drawn(tmp_path, sampler=sampler)
    np.testing.assert_allclose(samples[:, 0, 0, 0], 1 + labels, atol=1e-5)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Closed forms of digits on disk."""
    folder = tmp_path_factory.mktemp("forms")
    data = load_builtin("digits")
    images = data.images[:100]
    digest = Provenance(100, "a" * 64)
    save_closed_form(folder / "mixture.npz", fit_mixture(images, 2, rank=2), digest)
    gaussian = fit_gaussian(images, rank=5)
    save_closed_form(folder / "gaussian.npz", gaussian, digest)
    save_closed_form(folder / "elsewhere.npz", gaussian, Provenance(100, "b" * 64))
    unit = fit_gaussian((images / 255.0).astype(np.float64), rank=5)
    save_closed_form(folder / "unit.npz", unit, Provenance())
    save_closed_form(folder / "told_unit.npz", unit, Provenance(value_range=(0.0, 1.0)))
    classes = fit_class_mixture(data.images, data.labels, rank=2)
    save_closed_form(folder / "classes.npz", classes, Provenance())
    return folder


EVERY_START = {
    "prior": {},
    "teleport": {"teleport": 5.0},
    "re-spread": {"teleport": 5.0, "skip_mode": "re-spread"},
    "moment matched": {"moment_matched": True},
    "prefix": {"teleport": 5.0, "prefix": "mixture.npz"},
}


@pytest.mark.parametrize("start", EVERY_START)
def test_an_image_is_the_same_whatever_the_number(start, forms, tmp_path):
    values = dict(EVERY_START[start])
    if "prefix" in values:
        values["prefix"] = str(forms / values["prefix"])
    sampler = SamplerConfig(num_points=4, **values)
    path = forms / "gaussian.npz"
    nine = drawn(tmp_path, "nine", path, sampler=sampler, num_samples=9, block_size=4)
    two = drawn(tmp_path, "two", path, sampler=sampler, num_samples=2, block_size=4)
    np.testing.assert_array_equal(two[0], nine[0][:2])
    assert np.isfinite(nine[0]).all()


def contents(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "record.json"
    }
    record = json.loads((folder / "record.json").read_text())
    del record["seconds_with_compilation"]
    return {**found, "record": record}


class KilledError(BaseException):
    pass


def test_interrupted_and_run_again_the_files_are_the_same(forms, tmp_path, monkeypatch):
    config = settings(num_samples=7, format=("folder", "zip", "npz", "npy"))
    path = forms / "mixture.npz"
    generate_samples(path, tmp_path / "whole", config)
    add, drawn_blocks = generation.SampleFiles.add, []
    for survived in (1, 0, 2):

        def dying(files, block, left=[survived]):  # noqa: B006, counts down
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            drawn_blocks.append(block.first)
            add(files, block)

        monkeypatch.setattr(generation.SampleFiles, "add", dying)
        with pytest.raises(KilledError):
            generate_samples(path, tmp_path / "killed", config)
        assert not (tmp_path / "killed" / "record.json").exists()
        monkeypatch.undo()
    assert drawn_blocks == [0, 2, 4]
    generate_samples(path, tmp_path / "killed", config)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_complete_folder_is_left_alone(forms, tmp_path, capsys, monkeypatch):
    path = forms / "gaussian.npz"
    drawn(tmp_path, "x", path)
    before = contents(tmp_path / "x")
    monkeypatch.setattr(generation, "draw_blocks", None)
    generate_samples(path, tmp_path / "x", settings())
    assert "complete already" in capsys.readouterr().out
    assert contents(tmp_path / "x") == before
    for changes, says in (
        ({"seed": 1}, r"seed 0 -> 1"),
        ({"num_samples": 6}, r"num_samples 5 -> 6"),
        ({"sampler": SamplerConfig(num_points=3)}, r"sampler.solver 'euler' -> 'heun'"),
        ({"format": ("npz",)}, r"format \['npy'\] -> \['npz'\]"),
    ):
        with pytest.raises(InputError, match=says):
            generate_samples(path, tmp_path / "x", settings(**changes))
    with pytest.raises(InputError, match="another checkpoint or closed form"):
        generate_samples(forms / "mixture.npz", tmp_path / "x", settings())


def test_going_on_with_other_settings_or_elsewhere(forms, tmp_path, monkeypatch):
    path = forms / "gaussian.npz"
    monkeypatch.setattr(generation.SampleFiles, "finish", lambda files: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drawn(tmp_path, "x", path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"block_size 2 -> 3"):
        drawn(tmp_path, "x", path, block_size=3)
    monkeypatch.setattr(generation, "_context", lambda: {"devices": "8 x TPU"})
    with pytest.warns(InputWarning, match="begun elsewhere .devices '1 x cpu' -> '8 x"):
        drawn(tmp_path, "x", path)


def test_blocks_do_not_pile_up_on_the_device(forms, tmp_path, monkeypatch):
    add, held = generation.SampleFiles.add, []

    def measured(files, block):
        add(files, block)
        held.append(sum(array.nbytes for array in jax.live_arrays()))

    monkeypatch.setattr(generation.SampleFiles, "add", measured)
    path, most = forms / "gaussian.npz", {}
    for count in (8, 48):
        gc.collect()
        drawn(tmp_path, str(count), path, num_samples=count, block_size=2)
        most[count] = max(held)
        held.clear()
    assert most[48] <= most[8]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Breaking:
    """Not finite for samples with a large first value, at low noise."""

    below: float

    def __call__(self, x, sigma):
        sick = (x[:, :1, :1, :1] > 0.8 * sigma) & (sigma < self.below)
        return jnp.where(sick, jnp.nan, 0.0 * x)


def test_a_sample_that_is_not_finite_is_named_with_its_noise_level():
    model = Model(Breaking(5.0), EVENT, None)
    sampler = build_sampler(SamplerConfig(solver="euler", num_points=18), model)
    noise = next(
        draw_blocks(Drawing(Model(_Keep(), EVENT, None), sampler, 0, 4, None), 0, 40)
    )
    assert np.isfinite(noise.samples).all()
    drawing = Drawing(model, sampler, 0, 4, None)
    with pytest.raises(InputError) as caught:
        list(draw_blocks(drawing, 0, 40))
    text = str(caught.value)
    # Independently: the noise of sample i, which shrinks with sigma and keeps its sign.
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(40)]
    first = [
        float(jax.random.normal(jax.random.split(k)[0], EVENT)[0, 0, 0]) for k in keys
    ]
    index = int(np.argmax(np.asarray(first) > 0.8))
    sigmas = sampler.sigmas
    point = int(np.argmax(sigmas < 5.0))
    assert f"sample {index} is not finite" in text
    assert f"sigma = {sigmas[point]:.4g}, point {point + 1} of 18" in text


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Keep:
    def __call__(self, x, sigma):
        return x


def test_every_named_solver_is_built_and_listed(forms):
    assert BUILDERS.keys() == SOLVERS.keys()
    model = samplers.model.load_model(forms / "gaussian.npz")
    for name in SOLVERS:
        churn = {"churn": 10.0} if name == "stochastic_heun" else {}
        config = SamplerConfig(solver=name, num_points=5, **churn)
        sampler = build_sampler(config, model)
        assert name in solver_table()
        block = next(draw_blocks(Drawing(model, sampler, 0, 2, None), 0, 2))
        assert np.isfinite(block.samples).all()


def test_options_reach_the_solver(forms):
    model = samplers.model.load_model(forms / "gaussian.npz")

    def built(**values):
        return build_sampler(SamplerConfig(**values), model).solver

    v3 = built(solver="dpm_solver_v3", pseudo_corrector=True, pseudo_order=True)
    assert v3.pseudo_corrector
    assert v3.pseudo_order
    assert not built(solver="dpm_solver_v3").pseudo_corrector
    ours = built(
        solver="residual_exponential", order=3, rank=2, lower_order_final=False
    )
    assert (ours.order, ours.rank, ours.lower_order_final) == (3, 2, False)
    assert built(solver="residual_exponential").order == 2


def test_number_of_calls_decides_on_the_grid(forms):
    model = samplers.model.load_model(forms / "gaussian.npz")

    def built(**values):
        sampler = build_sampler(SamplerConfig(**values), model)
        return sampler, sampler.solver.nfe(len(sampler.sigmas))

    assert built(solver="heun", nfe=11)[1] == 11
    single = {"solver": "dpm_solver_pp", "order": 3, "singlestep": True}
    assert built(**single, nfe=10)[1] == 10
    tail, calls = built(solver="euler", nfe=6, teleport=5.0)
    assert calls == 6 == len(tail.sigmas)
    assert tail.sigmas[0] <= 5.0
    spread, calls = built(solver="euler", nfe=6, teleport=5.0, skip_mode="re-spread")
    assert calls == 6
    assert spread.sigmas[0] == 5.0
    assert isinstance(spread.start, Teleport)
    own = built(solver="euler", sigmas=(9.0, 1.0, 0.1))[0]
    np.testing.assert_array_equal(own.sigmas, [9.0, 1.0, 0.1])
    assert isinstance(own.start, Prior)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"solver": "hune"}, "unknown solver 'hune'; did you mean 'heun'"),
        (
            {"variant": "bh1"},
            "heun takes no variant; it belongs to dpm_solver_pp, unipc",
        ),
        ({"churn": 3.0}, "heun takes no churn"),
        ({"order": 3}, "heun takes no order"),
        ({"rank": 5}, "heun takes no rank; it belongs to residual_exponential"),
        ({"solver": "residual_exponential", "rank": -1}, "sampler.rank is -1"),
        ({"solver": "residual_exponential", "order": 4}, "one of 1, 2, 3 with res"),
        ({"pseudo_corrector": True}, "it belongs to dpm_solver_v3"),
        (
            {"solver": "dpm_solver_v3", "pseudo_corrector": True, "corrector": "off"},
            "pseudo_corrector is set, but sampler.corrector is off",
        ),
        (
            {"solver": "dpm_solver_v3", "statistics": "s.npz", "gaussian": "g.npz"},
            "nothing uses it",
        ),
        ({"lower_order_final": False}, "heun takes no lower_order_final"),
        ({"solver": "unipc", "order": 5}, "one of 1, 2, 3, 4 with unipc"),
        ({"solver": "unipc", "corrector": "half"}, "unknown sampler.corrector 'half'"),
        ({"solver": "unipc", "variant": "bh3"}, "did you mean 'bh"),
        ({"solver": "stochastic_heun"}, "sampler.churn is 0.0; it must be > 0"),
        ({"schedule": "log_linear", "rho": 5.0}, "rho belongs to karras"),
        ({"nfe": 9, "num_points": 5}, "leave one of them out"),
        ({"sigmas": (1.0, 2.0)}, "sampler.sigmas is (1.0, 2.0)"),
        ({"sigmas": (2.0, 1.0), "rho": 5.0}, "sampler.rho has no effect"),
        ({"sigmas": (2.0, 1.0), "teleport": 3.0}, "in [1.0, 2.0]"),
        ({"teleport": 100.0}, "sampler.teleport is 100.0; it must be in [0.002, 80.0]"),
        ({"skip_mode": "re-spread"}, "nothing is skipped; add --sampler.teleport"),
        ({"gaussian": "g.npz"}, "nothing uses it"),
        (
            {"teleport": 5.0, "prefix": "a", "moment_matched": True},
            "are two starts; choose one",
        ),
    ],
)
def test_settings_without_sense_are_one_line(values, says):
    with pytest.raises(InputError) as caught:
        SamplerConfig(**values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"gaussian": "elsewhere.npz"}, "was fitted to other images (sha256 bbbbbbbbb"),
        ({"gaussian": "unit.npz"}, "seems to be fitted to pixels in [0, 1]"),
        ({"gaussian": "told_unit.npz"}, "was fitted to pixels in [0, 1]"),
        ({"gaussian": "mixture.npz"}, "kind mixture, but a Gaussian is needed"),
        ({"gaussian": "nothing.npz"}, "no Gaussian at"),
        ({"prefix": "nothing.npz"}, "there is no file"),
        (
            {"class_gaussians": "classes.npz"},
            "holds 10 Gaussians, but the model is told 0",
        ),
        ({"nfe": 2}, "heun takes at least 3 calls"),
        (
            {"nfe": 10, "skip_mode": "re-spread"},
            "takes 9 or 11 calls; choose one of these",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(values, says, forms):
    files = ("gaussian", "prefix", "class_gaussians")
    values = {k: str(forms / v) if k in files else v for k, v in values.items()}
    model = samplers.model.load_model(forms / "gaussian.npz")
    with pytest.raises(InputError) as caught:
        build_sampler(SamplerConfig(teleport=5.0, **values), model)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_of_other_images_can_be_insisted_on(forms):
    model = samplers.model.load_model(forms / "gaussian.npz")
    path = str(forms / "elsewhere.npz")
    config = SamplerConfig(teleport=5.0, gaussian=path, other_data=True)
    assert isinstance(build_sampler(config, model).start, Teleport)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"class_label": "cat"}, "unknown class_label 'cat'"),
        ({"class_label": "7"}, "the model is told 3 classes, 0 to 2"),
        ({"guide": "other"}, "there is no guidance; add --guidance"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": 2.0, "guidance_interval": (2.0, 1.0)}, "0 <= lowest < highest"),
        ({"guidance": 2.0, "guide_step": 3}, "needs --guide WORKDIR"),
        ({"path": "weak", "class_label": "1"}, "told no classes; leave out"),
        ({"path": "weak", "guidance": 2.0}, "nothing to guide away from"),
        (
            {"path": "weak", "guidance": 2.0, "guide": "x"},
            "must be told as many, or none",
        ),
        ({"format": ("tar",)}, "unknown format 'tar'"),
        ({"format": ("zip", "zip")}, "names one kind twice"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_classes_and_guidance_without_sense_are_one_line(
    values, says, class_model, tmp_path
):
    with pytest.raises(InputError) as caught:
        drawn(tmp_path, **values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_list_solvers_needs_no_workdir(monkeypatch, capsys):
    from samplers import generate

    monkeypatch.setattr(sys, "argv", ["prog", "--list-solvers"])
    exit_on_error(generate.main)
    text = capsys.readouterr().out
    names = ("unipc", "dpm_solver_v3", "residual_exponential", "--sampler.churn-max")
    for name in (*names, "--sampler.rank", "--sampler.pseudo-corrector"):
        assert name in text


KILLING = """
import os, signal, sys
left = [int(sys.argv.pop(1))]
real = os.fsync
def fsync(descriptor):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
from diffusion.command_line import exit_on_error
from samplers.generate import main
exit_on_error(main)
"""


def command(program, *arguments, flags=""):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_killed_processes_leave_what_the_next_one_goes_on_with(forms, tmp_path):
    words = (forms / "mixture.npz", "--num-samples", 20, "--block-size", 4)
    words += ("--sampler.num-points", 4, "--format", "folder", "zip", "npz", "npy")
    # A block makes about 15 such calls: each process but the first gets one further.
    codes = [
        command(KILLING, calls, *words, "--outdir", tmp_path / "killed").returncode
        for calls in (5, 20, 20, 20)
    ]
    assert codes == [-signal.SIGKILL] * 4
    assert not (tmp_path / "killed" / "record.json").exists()
    for name in ("killed", "whole"):
        done = command(KILLING, 10**6, *words, "--outdir", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert open_archive(tmp_path / "killed" / "images.zip").num_images == 20


@pytest.mark.slow
def test_four_devices_draw_the_images_of_one(forms, tiny_run, tmp_path):
    program = "from samplers.generate import main; main()"
    for path in (tiny_run, forms / "mixture.npz"):
        found = {}
        for count in (1, 4):
            outdir = tmp_path / f"{path.stem}{count}"
            done = command(
                program,
                *(path, "--outdir", outdir, "--num-samples", 10, "--block-size", 6),
                *("--format", "npy", "--sampler.num-points", 5),
                *("--sampler.teleport", 20, "--sampler.gaussian"),
                tiny_run / "gaussian.npz",
                *("--sampler.other-data", "True"),
                flags=f"--xla_force_host_platform_device_count={count}",
            )
            assert done.returncode == 0, done.stderr
            found[count] = np.load(outdir / "samples.npy")
            record = json.loads((outdir / "record.json").read_text())
            assert record["devices"] == f"{count} x cpu"
        error = np.abs(found[4] - found[1]).max()
        assert error <= 1e-5 * np.abs(found[1]).max()


@pytest.mark.slow
def test_a_network_that_is_told_classes_is_sampled_with_them(
    tiny_config, tiny_unet, tmp_path
):
    from diffusion.training import train

    config = dataclasses.replace(
        tiny_config,
        network=dataclasses.replace(tiny_unet, label_dim=10),
        optim=dataclasses.replace(
            tiny_config.optim, learning_rate=0.03, warmup_images=0
        ),
        ema=dataclasses.replace(tiny_config.ema, half_life_images=1),
        training=dataclasses.replace(
            tiny_config.training, num_steps=4, batch_size=4, evaluation_images=4
        ),
    )
    train(config, tmp_path / "run")
    labels, samples = {}, {}
    for name, changes in {
        "balanced": {"class_label": "balanced"},
        "one": {"class_label": "1"},
        "random": {},
    }.items():
        samples[name], labels[name], _ = drawn(
            tmp_path, name, tmp_path / "run", **changes
        )
    np.testing.assert_array_equal(labels["balanced"], range(5))
    np.testing.assert_allclose(samples["one"][1], samples["balanced"][1], atol=1e-6)
    assert np.abs(samples["one"][2] - samples["balanced"][2]).max() > 1e-4
    with pytest.warns(InputWarning, match="has never been without classes"):
        guided, _, _ = drawn(
            tmp_path, "guided", tmp_path / "run", class_label="1", guidance=3.0
        )
    assert np.abs(guided - samples["one"]).max() > 1e-4
