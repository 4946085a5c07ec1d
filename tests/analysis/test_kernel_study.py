"""The kernel study: its data, its regressions, its sentences, its page."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from analysis import kernel_study
from analysis.kernels.coupling import CouplingSlopes
from analysis.metrics import energy_distance
from analysis.regression_study import report
from analysis.regression_study.data import load_data
from analysis.regression_study.learning_curve import (
    closed_form_errors,
    first_win,
    measure_learning_curve,
)
from analysis.regression_study.measurements import LearningCurve
from analysis.regression_study.problem import (
    Sample,
    Study,
    draw_mixture,
    mean_squares,
)
from analysis.regression_study.settings import StudySettings
from analysis.regression_study.stopping import measure_stops
from analysis.regression_study.wide_networks import _judge
from analysis.section import Section
from analysis.study_parts import Outcome
from configs.errors import InputWarning
from diffusion.command_line import exit_on_error

TABLE = "{files}/good.npz --target labels --num-points 40"


def run(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prog", *words.split()])
    exit_on_error(kernel_study.main)


def small(**changes):
    values = {"num_points": 40, "test_points": 30, "stop_seeds": 2} | changes
    return StudySettings(**values)


def silent(_: str) -> None:
    """Take what a part says of its progress."""


@pytest.fixture
def files(tmp_path):
    """Tables, good and bad, by name."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) * [1, 10, 0.1] + 5
    spoilt, twice = x.copy(), x.copy()
    spoilt[7, 1], twice[9] = np.nan, twice[3]
    np.savez(tmp_path / "good.npz", x=x, y=x @ [1.0, 2.0, 3.0] - 4)
    np.savez(tmp_path / "images.npz", images=x)
    np.savez(tmp_path / "flat.npz", x=x[:, 0])
    np.savez(tmp_path / "nan.npz", x=spoilt)
    np.savez(tmp_path / "short.npz", x=x, y=x[:50, 0])
    np.savez(tmp_path / "twice.npz", x=twice, y=np.arange(60.0))
    np.savez(tmp_path / "words.npz", x=np.array([["a", "b"]] * 60))
    (tmp_path / "broken.npz").write_text("no archive")
    lines = ["a,b,c", *(",".join(map(repr, row)) for row in x.tolist())]
    (tmp_path / "good.csv").write_text("\n".join(lines))
    (tmp_path / "words.csv").write_text("a,b\n1,2\n3,four\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "the data set comes first"),
        ("mixture2", "unknown data set 'mixture2'; did you mean 'mixture2d'?"),
        (
            "mixture2d --parts couplng",
            "unknown part 'couplng'; did you mean 'coupling'",
        ),
        ("mixture2d --method exakt", "did you mean 'exact'?"),
        ("mixture2d --method exact --num-points 30000", "use Nystrom, which needs"),
        ("mixture2d --target labels", "--target labels needs a file .npz with x and y"),
        ("mixture2d --data x.gz", "--data names the images of mnist"),
        ("mixture2d --widths 64 63", "give rising numbers"),
        ("mixture2d --widths 63 64", "neurons come in pairs"),
        ("mixture2d --t-range 2 1", "0 < first < last"),
        (f"{TABLE} --eta 300", "diverges from 2 / mu_1"),
        ("digits --num-points 5000", "there are 1438 training rows"),
        ("digits --sizes 64 2000", "at most 1438"),
        ("digits --widths 32 64", "widths begin at 32 for 64 outputs"),
        ("digits --parts decomposition", "decomposition needs a known truth"),
        ("mnist --data-dir {files}", "no images of mnist in"),
        ("{files}/none.npz", "there is no file"),
        ("{files}/images.npz", "has no array 'x' but images"),
        ("{files}/flat.npz", "has shape (60,); give (n, d)"),
        ("{files}/nan.npz", "1 of 60 rows of x are not finite, row 7 first"),
        ("{files}/short.npz", "has shape (50,); give (60,)"),
        ("{files}/words.npz", "x of"),
        ("{files}/broken.npz", "is no npz file of numbers"),
        ("{files}/words.csv", "is no table of numbers"),
        ("{files}/good.csv --target labels", "needs a file .npz with x and y"),
        ("{files}/images.npz --target labels", "has no array 'x'"),
        (
            "{files}/good.npz --target labels --parts samples --num-points 30",
            "needs a score",
        ),
    ],
)
def test_mistakes_get_one_line(words, says, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stop:
        run(words.format(files=files), monkeypatch)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error
    assert error.startswith("error: ") and len(error.splitlines()) == 1


def test_equal_inputs_with_different_labels_are_warned_of(files):
    with pytest.warns(InputWarning, match="1 of 60 inputs repeat an earlier one"):
        load_data(str(files / "twice.npz"), StudySettings())


def test_tables_are_standardised_by_their_training_rows(files):
    rows = load_data(str(files / "good.npz"), StudySettings())
    np.testing.assert_allclose(rows.clean.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(rows.clean.std(axis=0), 1, rtol=1e-12)
    assert rows.held_out.shape == (12, 3) and rows.labels is None
    table = load_data(str(files / "good.csv"), StudySettings())
    np.testing.assert_array_equal(table.clean, rows.clean)
    assert table.digest == rows.digest


def test_large_images_are_averaged_over_blocks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", images=pixels, labels=np.zeros(30, np.int64))
    data = load_data("mnist", StudySettings(data=str(tmp_path / "mnist.npz")))
    assert data.event == (14, 14, 1) and data.clean.shape == (24, 196)
    means = pixels[:, :2, :2, 0].mean(axis=(1, 2)) / 127.5 - 1
    first = np.concatenate([data.clean, data.held_out])[:, 0]
    np.testing.assert_allclose(np.sort(first), np.sort(means), atol=1e-6)


def test_a_mixture_is_drawn_with_its_moments():
    data = load_data("mixture2d", StudySettings())
    points = draw_mixture(data.truth, jax.random.key(0), 40_000)
    again = draw_mixture(data.truth, jax.random.key(0), 40_000)
    other = draw_mixture(data.truth, jax.random.key(1), 40_000)
    np.testing.assert_array_equal(points, again)
    assert not np.array_equal(points, other)
    # Of three points on a circle of radius r the covariance is r^2 / 2.
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.03)
    expected = (1.5**2 / 2 + 0.25**2) * np.eye(2)
    np.testing.assert_allclose(np.cov(points.T), expected, atol=0.03)
    assert np.mean(points[:, 0] > 0.75) == pytest.approx(1 / 3, abs=0.01)


def test_energy_distance_is_its_double_sum():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(20, 3)) + 1

    def mean(a, b, count):
        return sum(np.linalg.norm(u - v) for u in a for v in b) / count

    expected = 2 * mean(x, y, 600) - mean(x, x, 30 * 29) - mean(y, y, 20 * 19)
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-12)
    # Over many pairs of equal law the estimate is 0 on average.
    draws = [energy_distance(*rng.normal(size=(2, 40, 2))) for _ in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 200**0.5


def flow_regression(z, y, queries, s):
    """Return kernel gradient flow for a time, by its formulas, less nothing."""

    def kernel(a, b):
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        theta = np.arccos(np.clip(a @ b.T / lengths, -1, 1))
        return a @ b.T * (np.pi - theta) / (2 * np.pi)

    values, vectors = np.linalg.eigh(kernel(z, z))
    fitted = -np.expm1(-s * values / len(z)) / values
    mean = y.mean(axis=0)
    return mean + kernel(queries, z) @ vectors @ (
        fitted[:, None] * (vectors.T @ (y - mean))
    )


def test_regressions_are_kernel_gradient_flow_about_the_mean():
    data = load_data("mixture2d", StudySettings())
    rng = np.random.default_rng(0)
    z, queries = rng.normal(size=(40, 4)), rng.normal(size=(30, 4))
    y, target = rng.normal(size=(40, 2)) + 3, rng.normal(size=(30, 2))
    sample = Sample(z, y, None, z, np.zeros(40), z)
    s, found = np.array([1.0, 30.0, 1000.0]), []
    # All points as landmarks leave nothing out.
    for settings in (small(), small(method="nystrom", landmarks=40)):
        with jax.enable_x64(True):
            fitted = Study(data, settings).regress(sample)
            found.append(mean_squares(fitted, fitted.rows(queries), target, s))
    for time, exact, nystrom in zip(s, *found, strict=True):
        f = flow_regression(z, y, queries, time)
        expected = np.mean(np.sum((f - target) ** 2, axis=1))
        assert exact == pytest.approx(expected, rel=1e-6)
        assert nystrom == pytest.approx(expected, rel=1e-5)


def test_labels_of_a_table_are_regressed_on_its_rows(files):
    settings = small(target="labels")
    study = Study(load_data(str(files / "good.npz"), settings), settings)
    with jax.enable_x64(True):
        sample, rows = study.training, study.main_rows
        error = mean_squares(study.main, rows, study.test.target, study.main_stop)
    np.testing.assert_array_equal(sample.inputs[:, :3], sample.xt)
    np.testing.assert_array_equal(sample.inputs[:, 3], 1)
    # y is linear in x, which least squares finds exactly and the mean does not.
    others = closed_form_errors(study, sample)
    assert others["linear least squares"] < 1e-20
    assert error < 0.1 * others["mean"]


@pytest.mark.parametrize(
    "target", ["labels", pytest.param("score", marks=pytest.mark.slow)]
)
def test_no_stop_is_chosen_by_rows_that_errors_are_measured_on(target, files):
    settings = small(target=target)
    study = Study(load_data(str(files / "good.npz"), settings), settings)
    with jax.enable_x64(True):
        samples = [study.draw(role, 500) for role in ("test", "hold-out")]
    rows = [{tuple(row) for row in sample.clean} for sample in samples]
    assert [len(one) for one in rows] == [9, 3] and not rows[0] & rows[1]
    assert rows[0] | rows[1] == {tuple(row) for row in study.data.held_out}


def test_a_win_counts_from_where_no_larger_size_loses():
    size = np.array([64, 64, 128, 256, 512, 512])
    gcv = np.array([1.0, 3.0, 1.0, 1.6, 1.0, 1.1])
    ones = np.ones(6)
    curve = LearningCurve(size, ones, ones, ones > 0, ones, gcv, gcv, {})
    assert first_win(curve, np.full(6, 1.5), 1) == 512
    assert first_win(curve, np.full(6, 1.9), 1) == 128
    assert first_win(curve, np.full(6, 2.1), 1) == 64
    assert first_win(curve, np.full(6, 1.04), 1) is None
    assert first_win(curve, np.full(6, 9.0), 4) is None


@pytest.mark.parametrize(
    ("slope", "early", "late"),
    [((-0.48, -0.3), "met", "met"), ((-0.35, -0.4), "missed", "missed")],
)
def test_the_page_tells_what_was_measured(slope, early, late, tmp_path):
    section = Section("coupling", tmp_path)
    slope = np.array(slope)
    _judge(
        section, CouplingSlopes(np.array([10, 100]), slope, slope - 0.1, slope + 0.1)
    )
    first, second = (item["text"] for item in section.items)
    assert f"{slope[0]:.3f} after 10 steps" in first and first.endswith(f"is {early}.")
    assert f"{slope[1]:.3f} after 100 steps" in second
    assert second.endswith(f"is {late}.")


@pytest.fixture
def counted_parts(monkeypatch):
    """Parts that count how often they are made; the second may be told to fail."""
    calls = SimpleNamespace(made=[], fail=False)

    def part(name):
        def make(study, folder, advance):
            if name == "sizes" and calls.fail:
                raise KeyboardInterrupt
            calls.made.append(name)
            advance(name)
            section = Section(name, folder)
            section.file(f"{name}.csv", [{"seed": study.settings.seed}])
            return Outcome(section, {"number": 1.5})

        return report._Part(make, report._one, ("size_seeds",) * (name == "sizes"))

    chosen = ("spectrum", "sizes")
    monkeypatch.setattr(report, "_PARTS", {name: part(name) for name in chosen})
    return calls


def test_an_interrupted_study_goes_on_and_a_finished_one_rests(
    counted_parts, files, tmp_path, monkeypatch, capsys
):
    words = f"{TABLE} --parts spectrum sizes".format(files=files)
    words += f" --output {tmp_path}/out"
    counted_parts.fail = True
    with pytest.raises(SystemExit) as stop:
        run(words, monkeypatch)
    assert stop.value.code == 130 and not (tmp_path / "out" / "record.json").exists()
    counted_parts.fail = False
    run(words, monkeypatch)
    assert counted_parts.made == ["spectrum", "sizes"]
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["figures"] == {"spectrum": {"number": 1.5}, "sizes": {"number": 1.5}}
    assert record["about"]["settings"]["num_points"] == 40
    assert set(record["seconds"]) == {"spectrum", "sizes"}
    capsys.readouterr()
    run(words, monkeypatch)
    assert "done already" in capsys.readouterr().out
    # A table that is gone is made again, and what a setting does not touch is kept.
    (tmp_path / "out" / "spectrum.csv").unlink()
    run(words, monkeypatch)
    assert counted_parts.made.pop() == "spectrum" and len(counted_parts.made) == 2
    run(f"{words} --size-seeds 2", monkeypatch)
    assert counted_parts.made == ["spectrum", "sizes", "sizes"]
    run(f"{words} --size-seeds 2 --seed 1", monkeypatch)
    assert counted_parts.made[3:] == ["spectrum", "sizes"]


@pytest.mark.slow
def test_the_whole_command_writes_page_tables_figures_and_record(
    tmp_path, monkeypatch, capsys
):
    words = (
        f"mixture2d --output {tmp_path} --num-points 128 --test-points 500 "
        "--stop-seeds 2 --coupling-points 64 --widths 16 256 1024 --width-seeds 2 "
        "--steps 10 400 --sizes 64 128 256 600 --size-seeds 2 --largest-exact 512 "
        "--landmarks 128 --num-samples 400 --sampler-points 20"
    )
    run(words, monkeypatch)
    error = capsys.readouterr().err
    assert "warning: the predicted distance from the kernel is above 20%" in error
    record = json.loads((tmp_path / "record.json").read_text())
    figures, page = record["figures"], (tmp_path / "study.html").read_text()
    assert list(figures) == list(report.PARTS) and "Warning: the predicted" in page
    for name in report.PARTS:
        kept = json.loads((tmp_path / "partial" / f"section_{name}.json").read_text())
        for place in kept["files"]:
            assert (tmp_path / place).stat().st_size > 50
    assert page.count("<img") == 13 and page.count("Target: ") == 5
    # Terms of the error bound it, and the radius is the rule's stop.
    for row in figures["decomposition"]["rows"]:
        assert row["sum / error"] >= 1
    spectrum = figures["spectrum"]
    for c in ("1", "2e"):
        assert spectrum["radius"][c] ** -2 == pytest.approx(
            spectrum["stop"][c], rel=1e-8
        )
    # The flow of the exact score, begun at noised data, ends at noised data.
    samples = figures["samples"]
    assert abs(samples["others"]["exact score"]) < 0.02
    assert samples["rows"][0]["distance"] > 3 * samples["at_gcv"] > 0
    assert figures["homogeneity"]["error_ratio"] > 1.1
    bare, biased = figures["homogeneity"]["distance_from_a_line"]
    assert bare < 1e-8 < 0.01 < biased
    run(words, monkeypatch)
    assert "done already" in capsys.readouterr().out


@pytest.mark.slow
def test_stopping_rules_meet_their_targets_on_the_standard_mixture():
    study = Study(load_data("mixture2d", StudySettings()), StudySettings())
    with jax.enable_x64(True):
        found = measure_stops(study, silent)
    ratios = dict(zip(found.rules, found.ratios.T, strict=True))
    stops = dict(zip(found.rules, found.stops.T, strict=True))
    assert ratios["gcv"].max() <= 1.15 and ratios["gcv"].mean() < 1.05
    assert ratios["oracle"].max() == 1
    assert found.over_training.min() > 1.5
    assert (stops["rwy_2e"] < 0.5 * found.best_times).all()
    assert ratios["rwy_2e"].mean() > 1.2


@pytest.mark.slow
def test_kernel_regression_beats_the_gaussian_with_many_draws_of_noise():
    settings = StudySettings(
        sizes=(128, 1024),
        size_draws=(1, 16),
        size_seeds=1,
        landmarks=512,
        num_points=64,
    )
    study = Study(load_data("digits", settings), settings)
    with jax.enable_x64(True):
        found = measure_learning_curve(study, silent)
    gaussian = found.others["Gaussian"]
    assert first_win(found, gaussian, 16) == 1024
    assert first_win(found, gaussian, 1) is None
    assert (gaussian < found.others["isotropic"]).all()
