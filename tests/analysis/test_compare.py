"""The comparison of a run with closed forms: pages, files, resuming, bad input."""

import csv
import dataclasses
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from analysis.compare import main
from analysis.comparison import run as comparison_run
from analysis.comparison.candidates import gaussian_candidates
from analysis.comparison.report import write_comparison
from analysis.comparison.run import ComparedRun, measure_scores
from analysis.comparison.scores import comparison_rows, direction_rows
from analysis.comparison.settings import ComparisonSettings
from analysis.section import Section, kept_section, write_csv
from configs import InputError
from diffusion.closed_form import fit_gaussian, isotropic_gaussian
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
    assert {"unexplained_score", "ranks", "directions_noise", "pixels_training"} <= {
        *figures
    }
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
    for name in (*parts, "rotation", "emergence"):
        assert f"All numbers: {name}.csv" in page
        assert len(table(folder / f"{name}.csv")) > 1
    steps = {int(row["step"]) for row in table(folder / "training.csv")}
    assert {10, 20} <= steps
    before = (folder / "comparison.csv").read_bytes()
    (folder / "comparison.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.csv")}
    monkeypatch.setattr("analysis.comparison.studies.compare_trajectories", None)
    write_comparison(workdir, settings)
    for name in parts:
        assert (folder / f"{name}.csv").stat().st_mtime_ns == kept[
            folder / f"{name}.csv"
        ]
    assert (folder / "comparison.csv").read_bytes() == before
    about = json.loads((folder / "comparison.json").read_text())
    assert about["settings"]["num_probes"] == 8
