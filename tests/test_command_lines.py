"""Command lines: one line of error and status 2, and what they do when all is well."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import InputError
from configs.presets import load_preset, preset_names
from configs.schema import ExperimentConfig
from diffusion import train as train_entry
from diffusion.command_line import exit_on_error, parse_options, split_positional

ROOT = Path(__file__).resolve().parent.parent


def errors_of(main, arguments: list[str], monkeypatch, capsys) -> str:
    """Run an entry module's main as the command line does; return its error line."""
    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    with pytest.raises(SystemExit) as stop:
        exit_on_error(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("digts", "unknown preset 'digts'; did you mean 'digits'?"),
        ("", "the preset comes first"),
        ("--workdir x", "the preset comes first, but '--workdir' was given"),
        ("digits --optim.learning-rat 1", "did you mean '--optim.learning-rate'?"),
        (
            "digits --optim.learning-rate abc",
            "--optim.learning-rate: could not convert",
        ),
        ("digits --optim.learning-rate -1", "it must be a finite number > 0"),
        ("digits --network.dtype float33", "did you mean 'float32'?"),
        ("digits --training.num-steps 1.5", "--training.num-steps: invalid literal"),
        ("digits --data.held-out-fraction 1", "in [0, 1)"),
        ("digits --workdir", "Missing value for argument '--workdir'"),
        ("digits extra", "unexpected argument 'extra'"),
        ("cifar10:con --dry-run", "unknown variant of cifar10 'con'; did you mean"),
        ("cifar10", "the images of cifar10 are not in data/packed/cifar10; prepare"),
        ("digits --training.accumulation 3", "a divisor of training.batch_size = 64"),
        ("digits --data.placement here", "unknown data.placement 'here'"),
        ("digits --data.max-images 2000", "there are only 1438 training samples"),
        ("digits --ema.power-widths .3", "different numbers in (0, 0.28)"),
        ("digits --mesh.fsdp 3", "it must divide the number of devices, 1"),
        ("digits --process-id 1", "--process-id go together"),
        (
            "digits --data.name digit",
            "unknown data set 'digit'; did you mean 'digits'?",
        ),
    ],
)
def test_training_mistakes_get_one_line(arguments, says, monkeypatch, capsys):
    line = errors_of(train_entry.main, arguments.split(), monkeypatch, capsys)
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "the workdir comes first"),
        ("{run} --sampler.solver hune", "unknown solver 'hune'; did you mean 'heun'?"),
        ("{run} --sampler.schedule karas", "did you mean 'karras'?"),
        ("{run} --sampler.teleport 90", "sampler.teleport is 90.0"),
        ("{run} --sampler.sigma-min 0", "sampler.sigma_min is 0.0; it must be > 0"),
        ("{run} --num-samples 0", "it must be >= 1"),
        ("{run} --sampler.teleport atuo", "teleport is 'atuo'; it must be"),
        ("{run} --sampler.tuned 6", "tune the run first: python -m samplers.tune"),
        ("{run} --sampler.variant bh1 --sampler.solver dpm_solver_pp", "midpoint"),
        ("{run} --format zop", "unknown format 'zop'; did you mean 'zip'?"),
        ("{run} --class-label 1", "this model is told no classes"),
        (
            "{run} --sampler.solver unipc --sampler.nfe 1",
            "unipc takes at least 2 calls",
        ),
        ("{run} --step 3", "no checkpoint of step 3"),
        ("{run} --sampler.teleport 9 --sampler.gaussian none.npz", "no Gaussian at"),
        ("{run} --outdir {run}", "exists already"),
        ("nowhere", "no checkpoint in nowhere; train one with"),
    ],
)
def test_sampling_mistakes_get_one_line(arguments, says, tiny_run, monkeypatch, capsys):
    from samplers import generate

    words = arguments.format(run=tiny_run).split()
    assert says in errors_of(generate.main, words, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "the kind of data set comes first"),
        ("foldr --source x", "did you mean 'folder'?"),
        ("folder", "folder needs --source PATH"),
        ("folder --source /no/such/place", "there is no file or folder"),
        ("folder --source {run} --crop centre", "did you mean 'center'?"),
        ("folder --source {run} --image-size 0 4", "two integers > 0"),
        ("folder --source {run} --held-out-fraction 1", "in [0, 1)"),
        ("folder --source {run}/checkpoints", "holds no image"),
        ("tfds:mine --data-dir {run}", "no TFDS data set"),
    ],
)
def test_preparing_mistakes_get_one_line(
    arguments, says, tiny_run, monkeypatch, capsys
):
    from diffusion import prepare_data

    words = arguments.format(run=tiny_run).split()
    assert says in errors_of(prepare_data.main, words, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "the workdir comes first"),
        ("nowhere", "nowhere holds no run"),
        ("{run} --width 0.3", "width is 0.3; it must be in (0, 0.28)"),
        ("{run} --out {run}", "holds a run already"),
        ("{run}", "has no snapshots of power-function averages; train with"),
    ],
)
def test_reconstruction_mistakes_get_one_line(
    arguments, says, tiny_run, monkeypatch, capsys
):
    from diffusion import posthoc_ema

    words = arguments.format(run=tiny_run).split()
    assert says in errors_of(posthoc_ema.main, words, monkeypatch, capsys)


def test_comparing_mistakes_get_one_line(tmp_path, monkeypatch, capsys):
    from analysis import compare

    for words, says in [
        ([], "the workdir comes first"),
        ([str(tmp_path)], "no checkpoint in"),
        ([str(tmp_path), "--sigmas", "0"], "each must be finite and > 0"),
    ]:
        assert says in errors_of(compare.main, words, monkeypatch, capsys)


def test_a_read_only_disk_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["digits", "--workdir", str(tmp_path / "file" / "run")]
    assert "error: " in errors_of(train_entry.main, words, monkeypatch, capsys)


def test_options_change_just_their_field():
    default = load_preset("digits")
    changed = parse_options(
        default,
        ["--optim.learning-rate", "2e-3", "--network.channel-mult", "1", "2"],
        program="p",
        description="d",
    )
    assert changed.optim.learning_rate == 2e-3
    assert changed.network.channel_mult == (1, 2)
    assert changed.training == default.training


def test_help_lists_fields_with_their_documentation(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(
            load_preset("digits"), ["--help"], program="p", description="what it does"
        )
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--optim.learning-rate" in text
    assert "Peak learning rate" in text
    assert "what it does" in text


def test_every_preset_loads():
    assert {"digits", "mixture2d"} <= set(preset_names())
    for name in preset_names():
        assert isinstance(load_preset(name), ExperimentConfig)


def test_the_positional_argument_may_be_asked_for_help():
    assert split_positional(["--help"], "the preset", "e") == (None, ["--help"])
    with pytest.raises(InputError, match="comes first"):
        split_positional(["--seed", "1"], "the preset", "e")


def test_interruption_is_said_and_has_its_own_status(capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        exit_on_error(interrupted)
    assert stop.value.code == 130
    assert "the same command again goes on" in capsys.readouterr().err


def test_generate_writes_images_and_a_record(tiny_run, tmp_path, monkeypatch, capsys):
    from samplers import generate

    def draw(name: str, *options: str) -> Path:
        words = [str(tiny_run), "--outdir", str(tmp_path / name), *options]
        monkeypatch.setattr(sys, "argv", ["prog", *words])
        exit_on_error(generate.main)
        return tmp_path / name

    options = ("--sampler.num-points", "6", "--block-size", "4")
    options += ("--format", "folder", "npy")
    five = draw("five", *options, "--num-samples", "5")
    record = json.loads((five / "record.json").read_text())
    assert record["nfe"] == 11
    assert len(record["sigmas"]) == 6
    assert record["sampler"]["solver"] == "heun"
    samples = np.load(five / "samples.npy")
    assert samples.shape == (5, 8, 8, 1)
    images = five / "images" / "00000"
    assert sorted(p.name for p in images.iterdir()) == [
        f"img{i:08d}.png" for i in range(5)
    ]
    assert (five / "grid.png").is_file()
    pixels = np.asarray(Image.open(images / "img00000003.png"), np.float64)
    expected = np.clip(np.round((samples[3, :, :, 0] + 1) * 127.5), 0, 255)
    np.testing.assert_array_equal(pixels, expected)
    # Image i is bitwise the same whatever the number asked for.
    two = np.load(draw("two", *options, "--num-samples", "2") / "samples.npy")
    np.testing.assert_array_equal(two, samples[:2])
    short = draw("short", *options, "--num-samples", "2", "--sampler.teleport", "9")
    record = json.loads((short / "record.json").read_text())
    assert record["sigmas"][0] <= 9
    assert record["nfe"] == 2 * len(record["sigmas"]) - 1 < 11
    assert "network calls each" in capsys.readouterr().out


def test_a_wrong_preset_does_not_wait_for_the_libraries():
    program = (
        "import sys; sys.argv = ['p', 'digts']\n"
        "from diffusion.train import main\n"
        "try: main()\n"
        "except ValueError: pass\n"
        "assert 'optax' not in sys.modules and 'orbax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def closed_forms(tmp_path_factory):
    """A Gaussian and a mixture of digits, and a Gaussian of other shapes, on disk."""
    from diffusion.closed_form import (
        Provenance,
        fit_gaussian,
        fit_mixture,
        save_closed_form,
    )
    from diffusion.data import load_builtin

    folder = tmp_path_factory.mktemp("forms")
    images = load_builtin("digits").images[:200]
    models = {
        "gaussian": fit_gaussian(images, rank=5),
        "mixture": fit_mixture(images, 3, rank=2, num_passes=2),
        "other": fit_gaussian(
            np.ones((3, 4, 4, 1)) * np.arange(3)[:, None, None, None]
        ),
    }
    for name, model in models.items():
        save_closed_form(folder / f"{name}.npz", model, Provenance())
    return folder


def call(main, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, words)])
    exit_on_error(main)


def test_closed_forms_are_sampled_like_networks(closed_forms, monkeypatch):
    from samplers import generate

    common = ("--num-samples", 3, "--sampler.num-points", 4, "--format", "npy")
    call(generate.main, monkeypatch, closed_forms / "mixture.npz", *common)
    outdir = closed_forms / "mixture" / "samples" / "heun-karras-4-seed0"
    samples = np.load(outdir / "samples.npy")
    assert samples.shape == (3, 8, 8, 1)
    assert json.loads((outdir / "record.json").read_text())["nfe"] == 7
    teleport = ("--sampler.teleport", 8.5)
    call(generate.main, monkeypatch, closed_forms / "gaussian.npz", *common, *teleport)
    (outdir,) = (closed_forms / "gaussian" / "samples").iterdir()
    assert json.loads((outdir / "record.json").read_text())["nfe"] < 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("mixture.npz --sampler.teleport 8", "teleporting needs a Gaussian"),
        ("mixture.npz --step 3", "has no steps"),
        (
            "mixture.npz --sampler.teleport 8 --sampler.gaussian {forms}/other.npz",
            "is over samples of shape (4, 4, 1), but (8, 8, 1) is needed",
        ),
        (
            "mixture.npz --sampler.teleport 8 --sampler.gaussian {forms}/mixture.npz",
            "kind mixture, but a Gaussian is needed",
        ),
    ],
)
def test_closed_form_mistakes_get_one_line(
    arguments, says, closed_forms, monkeypatch, capsys
):
    from samplers import generate

    words = arguments.format(forms=closed_forms).split()
    words[0] = str(closed_forms / words[0])
    assert says in errors_of(generate.main, words, monkeypatch, capsys)


@pytest.mark.slow
def test_closed_forms_join_the_comparison(
    closed_forms, tiny_run, tmp_path, monkeypatch, capsys
):
    from analysis import compare

    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    mixture = closed_forms / "mixture.npz"
    less = ("--parts", "scores", "--models", "gaussian", "--num-probes", 4)
    words = (workdir, "--sigmas", 1.0, "--candidates", mixture, *less)
    call(compare.main, monkeypatch, *words)
    table = (workdir / "comparison" / "comparison.csv").read_text()
    assert "\ntraining,mixture,1.0," in table
    capsys.readouterr()
    words = [str(workdir), "--candidates", str(closed_forms / "other.npz")]
    line = errors_of(compare.main, words, monkeypatch, capsys)
    assert "is over samples of shape (4, 4, 1)" in line
