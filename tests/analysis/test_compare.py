"""The comparison of a run with closed forms: pages, files, resuming, bad input."""

import csv
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from analysis.compare import main
from analysis.comparison import paths, studies
from analysis.comparison import run as comparison_run
from analysis.comparison.candidates import gaussian_candidates
from analysis.comparison.report import write_comparison
from analysis.comparison.run import (
    ComparedRun,
    measure_scores,
    measure_training,
    open_compared_run,
)
from analysis.comparison.scores import comparison_rows, direction_rows
from analysis.comparison.settings import ComparisonSettings
from analysis.section import Section, kept_section, write_csv
from configs import InputError
from diffusion.closed_form import (
    fit_class_mixture,
    fit_gaussian,
    isotropic_gaussian,
)
from diffusion.data import Dataset, Split
from samplers.model import Model

SETTINGS = ComparisonSettings(
    sigmas=(0.5, 5.0),
    parts=("scores",),
    models=("ranks", "gaussian", "empirical"),
    ranks=(8,),
    mixtures=(2,),
    mixture_rank=4,
    num_probes=8,
    num_trajectories=3,
)


@pytest.fixture
def workdir(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def compared(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    shutil.copytree(tiny_run, folder)
    write_comparison(folder, SETTINGS)
    return folder / "comparison"


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_is_self_contained_and_the_figures_are_images(compared):
    page = (compared / "comparison.html").read_text()
    figures = sorted(path.stem for path in (compared / "figures").glob("*.png"))
    assert page.count('src="data:image/png;base64,') == len(figures)
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert {"unexplained_score", "ranks"} <= {*figures}
    for kind in ("training", "held-out", "noise"):
        assert {f"directions_{kind}", f"pixels_{kind}"} <= {*figures}
    for name in figures:
        assert "<svg" in (compared / "figures" / f"{name}.svg").read_text()
        with Image.open(compared / "figures" / f"{name}.png") as image:
            assert np.asarray(image).std() > 5


def test_the_tables_hold_every_probe_candidate_and_level(compared):
    rows = table(compared / "comparison.csv")
    names = ["Gaussian rank 8", "Gaussian", "empirical"]
    assert [r["candidate"] for r in rows[::2]] == names * 3
    assert {r["probes"] for r in rows} == {"training", "held-out", "noise"}
    assert {float(r["sigma"]) for r in rows} == set(SETTINGS.sigmas)
    for row in rows:
        assert float(row["score"]) <= 1
        assert float(row["squared_error"]) >= 0
    directions = table(compared / "directions.csv")
    assert {int(r["direction"]) for r in directions} <= set(range(64))
    best = table(compared / "best.csv")
    assert sum(int(r["levels"]) for r in best) == 3 * len(SETTINGS.sigmas)


def test_a_second_call_is_done_whatever_the_batch_size(compared, capsys):
    before = (compared / "comparison.html").stat().st_mtime_ns
    write_comparison(compared.parent, SETTINGS)
    assert "done already" in capsys.readouterr().out
    write_comparison(compared.parent, dataclasses.replace(SETTINGS, batch_size=7))
    assert "done already" in capsys.readouterr().out
    assert (compared / "comparison.html").stat().st_mtime_ns == before


def test_a_number_of_the_table_is_the_one_that_is_measured(compared, tmp_path):
    run = open_compared_run(compared.parent, SETTINGS, tmp_path)
    found = measure_scores(run, SETTINGS, tmp_path).comparisons["held-out"]
    (row,) = (
        row
        for row in table(compared / "comparison.csv")
        if (row["probes"], row["candidate"], row["sigma"])
        == ("held-out", "Gaussian", "5.0")
    )
    place = found.names.index("Gaussian"), list(found.sigmas).index(5.0)
    assert float(row["score"]) == found.score.mean[place]
    error = found.score.standard_error[place]
    assert float(row["score_standard_error"]) == error


def test_the_page_says_what_made_it(compared):
    page = (compared / "comparison.html").read_text()
    assert "Checkpoint of step 20, 320 images seen;" in page
    about = json.loads((compared / "comparison.json").read_text())
    assert about["versions"]["jax"] == jax.__version__
    assert "jax&quot;: &quot;" + jax.__version__ in page
    assert {"comparison.html", "comparison.csv", "pixel_error.npz"} <= {*about["files"]}


def fake_study(monkeypatch, made, names=("one", "two")):
    """In the place of all parts: sections of a table each, written down when made."""

    def maker(name):
        def make(run, settings, folder):
            made.append(name)
            section = Section(name, folder)
            section.file(f"{name}.csv", [{"a": settings.seed}])
            return section

        return make

    makers = {name: maker(name) for name in names}
    monkeypatch.setattr(studies, "_makers", lambda run, settings: makers)
    return makers


FAKED = dataclasses.replace(SETTINGS, parts=("slices",), models=("gaussian",))


def test_an_interrupted_call_goes_on_with_the_next_section(workdir, monkeypatch):
    made = []
    makers: dict = fake_study(monkeypatch, made)
    second = makers["two"]

    def interrupted(*arguments):
        raise KeyboardInterrupt

    makers["two"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        write_comparison(workdir, FAKED)
    assert not (workdir / "comparison" / "comparison.html").exists()
    makers["two"] = second
    write_comparison(workdir, FAKED)
    assert made == ["one", "two"]
    page = (workdir / "comparison" / "comparison.html").read_text()
    assert "All numbers: one.csv" in page and "All numbers: two.csv" in page


@pytest.mark.parametrize("name", ["comparison.html", "one.csv"])
def test_what_is_missing_or_changed_is_made_again(workdir, monkeypatch, capsys, name):
    made, folder = [], workdir / "comparison"
    fake_study(monkeypatch, made)
    write_comparison(workdir, FAKED)
    whole = (folder / name).read_bytes()
    for damage in (Path.unlink, lambda path: path.write_bytes(b"another's")):
        damage(folder / name)
        capsys.readouterr()
        write_comparison(workdir, FAKED)
        assert "done already" not in capsys.readouterr().out
        assert (folder / name).read_bytes() == whole
    write_comparison(workdir, FAKED)
    assert "done already" in capsys.readouterr().out


def test_files_that_the_page_no_longer_names_are_deleted(workdir, monkeypatch):
    made, folder = [], workdir / "comparison"
    fake_study(monkeypatch, made, ("one", "two", "three"))
    write_comparison(workdir, FAKED)
    (folder / "notes.csv").write_text("the user's")
    (folder / "three.csv").write_text("changed by the user")
    fake_study(monkeypatch, made, ("two",))
    write_comparison(workdir, FAKED)
    left = {path.name for path in folder.glob("*.csv")}
    assert left == {"two.csv", "three.csv", "notes.csv"}
    fake_study(monkeypatch, made, ("one",))
    write_comparison(workdir, dataclasses.replace(FAKED, parts=("perturbation",)))
    assert {path.name for path in folder.glob("*.csv")} == left - {"two.csv"} | {
        "one.csv"
    }
    assert made == ["one", "two", "three", "one"]


def test_damaged_checkpoints_are_left_out(workdir, capsys):
    for path in (workdir / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    settings = dataclasses.replace(SETTINGS, models=("gaussian",), sigmas=(0.5,))
    run = open_compared_run(workdir, dataclasses.replace(settings, step=10), workdir)
    found = measure_training(run, settings, workdir / "partial")
    assert 20 in found.skipped and 10 in found.steps and 20 not in found.steps
    # The newest intact one is taken, and said to be.
    assert open_compared_run(workdir, settings, workdir).step == 10
    assert "warning: using the older step 10: " in capsys.readouterr().err


def test_an_interrupted_measurement_ends_with_the_same_bytes(tmp_path, monkeypatch):
    split = random_split(np.random.default_rng(6))
    gaussian = fit_gaussian(split.training.images)
    model = Model(gaussian.truncated(2), gaussian.mean.shape, None)
    run = compared_with(split, model, gaussian_candidates(gaussian), (0.5, 5.0))
    straight = measure_scores(run, SETTINGS, tmp_path / "straight")
    measure, levels = comparison_run._measure, []

    def interrupted(*arguments):
        levels.append(arguments[-1])
        if len(levels) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(comparison_run, "_measure", interrupted)
    place = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        measure_scores(run, SETTINGS, place)
    # A damaged file is measured again, a whole one is not.
    (place / "training_0.5.npz").write_bytes(b"no file of ours")
    resumed = measure_scores(run, SETTINGS, place)
    assert levels == [0.5, 5.0, 0.5, 0.5, 0.5, 5.0]
    for name, rows in (("all", comparison_rows), ("by direction", direction_rows)):
        write_csv(tmp_path / "a.csv", rows(straight))
        write_csv(tmp_path / "b.csv", rows(resumed))
        same = (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
        assert same, name
    # Of another network nothing is taken over.
    other = run._replace(about={"model": "another"})
    measure_scores(other, SETTINGS, place)
    assert len(levels) == 6 + 4


def test_a_section_whose_files_another_call_has_written_is_made_again(tmp_path):
    about, path = {"seed": 0}, tmp_path / "section.json"
    section = Section("Numbers", tmp_path)
    section.file("numbers.csv", [{"a": 1}])
    section.keep(path, about)
    assert kept_section(path, tmp_path, about) is not None
    assert kept_section(path, tmp_path, {"seed": 1}) is None
    write_csv(tmp_path / "numbers.csv", [{"a": 2}])
    assert kept_section(path, tmp_path, about) is None


def random_split(rng, labels=None):
    images = rng.normal(size=(60, 2, 3, 1)).astype(np.float32)
    labels = np.arange(60) % 3 if labels is None else labels
    return Split(Dataset(images, labels), Dataset(images[:0], labels[:0]), "made", 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToldClasses:
    """Answers with the class that it is told, everywhere."""

    labels: jax.Array | None = None

    def __call__(self, x, sigma):
        label = jnp.argmax(self.labels, axis=1).astype(x.dtype)
        return jnp.broadcast_to(label[:, None, None, None], x.shape)


def compared_with(split, model, models, sigmas=(1.0,)):
    gaussian = fit_gaussian(split.training.images)
    return ComparedRun(
        "no workdir", model, split, gaussian, models, np.asarray(sigmas), {}
    )


def test_a_network_that_is_told_classes_is_told_those_of_the_probes(tmp_path):
    split = random_split(np.random.default_rng(2))
    event = split.training.images.shape[1:]
    model = Model(ToldClasses(), event, None, num_classes=3)
    nothing = {"nothing": isotropic_gaussian(jnp.zeros(event), 0.0)}
    settings = dataclasses.replace(SETTINGS, num_probes=60, batch_size=16)
    study = measure_scores(compared_with(split, model, nothing), settings, tmp_path)
    assert list(study.comparisons) == ["training", "noise"]
    found = study.comparisons["training"].squared_error.mean
    np.testing.assert_allclose(found, np.mean(split.training.labels**2.0), rtol=1e-6)


@pytest.mark.slow
def test_trajectories_are_told_classes_as_often_as_there_are_images(tmp_path):
    """The network answers with its class; so do the classes' Gaussians, nearly."""
    rng = np.random.default_rng(7)
    labels = np.array([0, 2, 2, 2] * 15)
    split = random_split(rng, labels)
    images = labels[:, None, None, None] + 1e-4 * split.training.images
    images = images.astype(np.float32)
    split = split._replace(training=Dataset(images, labels))
    model = Model(ToldClasses(), images.shape[1:], None, (0.01, 80.0), num_classes=3)
    mixture = {"class mixture": fit_class_mixture(images, labels)}
    zero = {"Gaussian": isotropic_gaussian(jnp.zeros(model.event_shape), 0.0)}
    run = compared_with(split, model, {**zero, **mixture})
    settings = dataclasses.replace(SETTINGS, num_trajectories=40, batch_size=16)
    section = paths.trajectory_section(run, settings, tmp_path)
    (cells,) = (item["rows"] for item in section.items if "rows" in item)
    errors = {row[0]: float(row[1]) for row in cells}
    # |2 - 0|^2 for three of four.
    assert errors["Gaussian"] == pytest.approx(3, abs=4 * 4 * np.sqrt(0.1875 / 40))
    assert errors["Gaussian of the class"] < 1e-4
    assert errors["class mixture"] > 0.1  # it chooses a class of its own
    # The same classes in another section: 0 or 2 everywhere has this variance.
    paths.variance_section(run, settings, tmp_path)
    share = errors["Gaussian"] / 4
    variance = 4 * share * (1 - share) * images[0].size * 40 / 39
    largest = float(table(tmp_path / "variances.csv")[0]["measured"])
    assert largest == pytest.approx(variance, rel=1e-2)


def test_probes_lie_where_they_should(tmp_path):
    """Of an exact Gaussian |D - x|^2 tells how far the probes are from the mean."""
    rng = np.random.default_rng(3)
    split = random_split(rng)
    far = Dataset(split.training.images + 100, split.training.labels)
    split = split._replace(held_out=far)
    event = far.images.shape[1:]
    zero = isotropic_gaussian(jnp.zeros(event), 0.0)
    one = {"one": isotropic_gaussian(jnp.ones(event), 0.0)}
    run = compared_with(split, Model(zero, event, None), one, (0.5,))
    settings = dataclasses.replace(SETTINGS, num_probes=60)
    study = measure_scores(run, settings, tmp_path)
    # |s - s'|^2 / |s|^2 pooled is D / E|x|^2.
    power = {
        kind: 1 / float(1 - found.score_pooled.mean[0, 0])
        for kind, found in study.comparisons.items()
    }
    assert power["noise"] == pytest.approx(0.25, rel=0.3)
    assert power["training"] == pytest.approx(1.25, rel=0.3)
    assert power["held-out"] == pytest.approx(100**2, rel=0.1)


def test_levels_do_not_depend_on_those_beside_them(tmp_path):
    split = random_split(np.random.default_rng(4))
    gaussian = fit_gaussian(split.training.images)
    event = gaussian.mean.shape
    model = Model(gaussian, event, None)
    one = {"isotropic": gaussian.isotropic()}
    found = []
    for place, sigmas in (("a", (0.5, 1.0, 2.0)), ("b", (1.0,))):
        run = compared_with(split, model, one, sigmas)
        study = measure_scores(run, SETTINGS, tmp_path / place)
        found.append(study.comparisons["noise"].score.mean)
    assert found[0][0, 1] == found[1][0, 0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parts": ("score",)}, "unknown part 'score'; did you mean 'scores'"),
        ({"models": ("gauss",)}, "unknown model 'gauss'; did you mean 'gaussian'"),
        ({"num_probes": 1}, "num_probes is 1; it must be at least 2"),
        ({"sigmas": (0.0,)}, "must be finite and > 0"),
        ({"ranks": (0,)}, "ranks is"),
        ({"mixture_method": "kmean"}, "did you mean 'kmeans'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, says):
    with pytest.raises(InputError, match=re.escape(says)):
        dataclasses.replace(SETTINGS, **changes)


def test_a_workdir_without_checkpoints_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path), "--num-probes", "4"])
    with pytest.raises(InputError, match="no checkpoint in"):
        main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_part_has_its_section_and_is_made_once(workdir, monkeypatch):
    settings = dataclasses.replace(SETTINGS, parts=None, models=None)
    write_comparison(workdir, settings)
    folder = workdir / "comparison"
    page = (folder / "comparison.html").read_text()
    parts = ("training", "trajectories", "perturbation", "slices", "far_field")
    for name in (*parts, "rotation", "variances", "emergence"):
        assert f"All numbers: {name}.csv" in page
        assert len(table(folder / f"{name}.csv")) > 1
    steps = {int(row["step"]) for row in table(folder / "training.csv")}
    assert {10, 20} <= steps
    before = (folder / "comparison.csv").read_bytes()
    (folder / "comparison.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.csv")}
    monkeypatch.setattr("analysis.comparison.paths.compare_trajectories", None)
    write_comparison(workdir, settings)
    for name in parts:
        assert (folder / f"{name}.csv").stat().st_mtime_ns == kept[
            folder / f"{name}.csv"
        ]
    assert (folder / "comparison.csv").read_bytes() == before
    about = json.loads((folder / "comparison.json").read_text())
    assert about["settings"]["num_probes"] == 8
