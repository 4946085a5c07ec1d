"""The auto-encoder study: its data, its references, its sentences, its page."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import autoencoder_study
from analysis.reconstruction_study import arms, problem, report
from analysis.reconstruction_study.angles import AngleStudy, _Rows, judge_angles
from analysis.reconstruction_study.arms import Arm
from analysis.reconstruction_study.chains import (
    EXACT,
    ChainRun,
    ChainStudy,
    judge_chains,
    measure_chains,
)
from analysis.reconstruction_study.data import load_data
from analysis.reconstruction_study.energies import (
    EnergyStudy,
    judge_energies,
    measure_energies,
)
from analysis.reconstruction_study.estimators import _explained, measure_estimators
from analysis.reconstruction_study.jacobians import measure_jacobians
from analysis.reconstruction_study.limit import measure_limit
from analysis.reconstruction_study.measures import Probes, band_probes, distance
from analysis.reconstruction_study.problem import Study
from analysis.reconstruction_study.settings import StudySettings
from analysis.section import Section
from analysis.study_parts import Outcome
from configs.errors import InputError
from diffusion.closed_form import GaussianDenoiser
from diffusion.command_line import exit_on_error

CHEAP = {"num_points": 64, "test_points": 400, "num_steps": 20, "hidden": (8,)}
CHEAP |= {"pairs": 40, "chains": 8, "moves": 40, "rules": ("left", "gl3")}


def run(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prog", *words.split()])
    exit_on_error(autoencoder_study.main)


def open_study(name, folder, **changes):
    settings = StudySettings(**(CHEAP | changes))
    return Study(load_data(name, settings), settings, folder)


@pytest.fixture(scope="module")
def bumps(tmp_path_factory):
    """A tiny study of two bumps."""
    return open_study("two-bumps", tmp_path_factory.mktemp("bumps"))


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "good.npz", x=rng.normal(size=(100, 3)))
    np.savez(tmp_path / "images.npz", images=rng.normal(size=(100, 3)))
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "the data set comes first"),
        ("spirl", "unknown data set 'spirl'; did you mean 'spiral'?"),
        ("folder", "It may also be the folder of a run"),
        ("none.npz", "there is no file"),
        ("images.npz", "has no array 'x' but images"),
        ("spiral --parts feilds", "unknown part 'feilds'; did you mean 'fields'?"),
        ("spiral --sigma 0", "sigma is 0.0; it must be finite and above 0"),
        ("spiral --sigma .0001", "sigma_min is 0.0001; it must be at least 0.001"),
        ("spiral --sigmas .1 0", "sigmas is (0.1, 0.0)"),
        ("spiral --rules left gauss", "unknown rule 'gauss'"),
        ("spiral --rule simson", "unknown rule 'simson'; did you mean 'simpson'?"),
        ("spiral --rules gl99", "gl99' has 99 nodes"),
        ("spiral --start inf 0", "a point of zero density"),
        ("two-bumps --start 1e25 0", "a point of zero density"),
        ("spiral --start 1 2 3", "--start has 3 numbers and a sample of spiral 2"),
        ("spiral --moves 3", "moves is 3; it must be at least 20"),
        ("spiral --hidden 0", "widths of at least 1"),
        ("digits --parts angles", "the part angles needs a known law"),
        ("good.npz --network folder", "folder"),
    ],
)
def test_mistakes_get_one_line(words, says, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stop:
        run(words, monkeypatch)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert not (files / "runs").exists()


@pytest.mark.parametrize(
    ("event", "sigmas", "says"),
    [
        (
            (3,),
            (0.01, 80.0),
            "for samples of shape \\(3,\\) and two-bumps has \\(2,\\)",
        ),
        ((2,), (1.5, 80.0), "sigma is 1 and the network knows 1.5 to 80"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    event, sigmas, says, tmp_path, monkeypatch
):
    model = SimpleNamespace(event_shape=event, sigma_range=sigmas)
    monkeypatch.setattr(problem, "checkpoint_steps", lambda path: [1])
    monkeypatch.setattr(problem, "load_model", lambda path: model)
    study = open_study("two-bumps", tmp_path, network="run")
    with pytest.raises(InputError, match=says):
        study.check()


def bump_law(x, variance):
    """Return log density and score of two bumps of a variance, by their formulas."""
    means = np.array([[-5.0, 0.0], [5.0, 0.0]])
    offsets = x[:, None] - means
    logits = -np.sum(offsets**2, axis=2) / (2 * variance)
    top = logits.max(axis=1)
    p = np.exp(logits - top[:, None])
    log_density = top + np.log(p.sum(axis=1) / 2) - np.log(2 * np.pi * variance)
    p /= p.sum(axis=1, keepdims=True)
    return log_density, -np.einsum("bk,bkd->bd", p, offsets) / variance


def test_the_reference_is_the_noised_law(bumps):
    x = np.random.default_rng(0).normal(size=(30, 2)) * 4
    log_density, score = bump_law(x, 2.0)
    reference = bumps.reference
    np.testing.assert_allclose(reference.log_density(x, 1.0), log_density, rtol=1e-12)
    np.testing.assert_allclose(reference.score(x, 1.0), score, rtol=1e-10, atol=1e-12)
    moved = x[::-1].copy()
    found = reference.energy_difference(1.0)(jnp.float32(x), jnp.float32(moved))
    np.testing.assert_allclose(found, log_density - log_density[::-1], atol=1e-4)


@pytest.mark.slow
def test_energies_of_the_exact_score_are_exact_and_the_left_end_is_not(bumps):
    found = measure_energies(bumps)
    x = np.asarray(bumps.noisy[:40], np.float64)
    white = np.asarray(jax.random.normal(bumps.key("pairs"), x.shape), np.float64)
    expected = bump_law(x, 2.0)[0] - bump_law(x + 2 * white, 2.0)[0]
    np.testing.assert_allclose(found.exact[1], expected, atol=1e-10)
    assert found.reference == "truth" and set(found.floor) == {"truth", "auto-encoder"}
    assert found.rms(found.floor["truth"])[0] < 1e-6
    assert found.rms(found.found["truth", "gl3"])[0] < 0.01
    assert found.rms(found.found["truth", "left"])[0] > 0.3
    assert found.antisymmetry["truth", "gl3"] < 1e-12
    assert found.antisymmetry["truth", "left"] > 0.1
    assert found.loops["truth"] < 1e-4
    # Of a proposal of one sigma, as chains accept; a rule that is exact accepts alike.
    moved = np.exp(-np.maximum(bump_law(x, 2.0)[0] - bump_law(x + white, 2.0)[0], 0))
    exact = found.acceptance["exact energy"]
    assert exact[2] == pytest.approx(moved.mean(), abs=1e-10)
    assert np.abs(found.acceptance["truth, gl3"][:4] - exact[:4]).max() < 0.002
    assert np.abs(found.acceptance["truth, left"][:4] - exact[:4]).max() > 0.05
    # The score on the way, not what the auto-encoder was trained on, is integrated.
    assert found.rms(found.floor["auto-encoder"])[0] > 0.1


def test_losses_and_bands_are_what_they_are_called(bumps):
    probes = band_probes(bumps)
    nearest = np.linalg.norm(
        probes.x[:50, None] - np.concatenate([bumps.clean, bumps.held_out]), axis=2
    ).min(axis=1)
    np.testing.assert_allclose(probes.distance[:50], nearest, rtol=1e-5)
    truth = bump_law(np.concatenate([bumps.noisy, probes.x]).astype(np.float64), 2.0)[1]
    rows = _Rows(bumps, probes, truth, truth)
    # x_0 given x is x / 2 about a bump, of variance 1/2 in each of two directions.
    assert rows.loss(truth) == pytest.approx(1.0, abs=0.12)
    assert rows.loss(0 * truth) == pytest.approx(2.0, abs=0.25)
    half = rows.of(truth / 2, 3.0)
    assert half["angle to truth"] < 1e-5 and half["seconds"] == 3
    assert half["rel L2 < 2"] == pytest.approx(0.5)
    turned = rows.of(truth @ [[0.0, 1.0], [-1.0, 0.0]], 0.0)
    assert turned["angle < 2"] == pytest.approx(90)
    assert turned["rel L2 < 2"] == pytest.approx(2**0.5)


def test_distances_from_the_spiral_are_normal_to_it(tmp_path):
    study = open_study("spiral", tmp_path)
    t = np.linspace(4, 14, 7)
    on_curve = 0.04 * t[:, None] * np.stack([np.sin(t), np.cos(t)], axis=1)
    assert study.data.tangents is not None
    tangent = study.data.tangents(on_curve)
    step = 1e-5
    later = (
        0.04
        * (t + step)[:, None]
        * np.stack([np.sin(t + step), np.cos(t + step)], axis=1)
    )
    along = (later - on_curve) / np.linalg.norm(later - on_curve, axis=1)[:, None]
    np.testing.assert_allclose(tangent, along, atol=1e-4)
    normal = tangent @ [[0.0, 1.0], [-1.0, 0.0]]
    np.testing.assert_allclose(distance(study, on_curve + 0.02 * normal), 2, rtol=2e-3)


def test_an_autoencoder_is_kept_and_trained_anew_for_other_settings(bumps, monkeypatch):
    first = bumps.trained(Arm.RESIDUAL)
    calls = []
    real = arms.train_autoencoder

    def train(*arguments, **options):
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(arms, "train_autoencoder", train)
    again = bumps.trained(Arm.RESIDUAL)
    assert not calls and again.seconds == first.seconds
    x = jnp.asarray(bumps.noisy)
    np.testing.assert_array_equal(again.denoiser(x, 1.0), first.denoiser(x, 1.0))
    open_study("two-bumps", bumps.folder, seed=1).trained(Arm.RESIDUAL)
    assert calls == [1]
    # What is damaged is trained again.
    path = bumps.folder / "partial" / "residual_1.npz"
    path.write_bytes(path.read_bytes()[:500])
    bumps.trained(Arm.RESIDUAL)
    assert calls == [1, 1]


def test_explained_noise_of_a_gaussian_is_its_formula(bumps):
    clean = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    exact = GaussianDenoiser(jnp.zeros(2), jnp.eye(2), jnp.ones(2), jnp.zeros(()))
    for sigma in (0.5, 2.0):
        found, error = _explained(bumps, exact, clean, sigma, 1)
        assert found == pytest.approx(sigma**2 / (1 + sigma**2), abs=4 * error)
        assert 0 < error < 0.02
    # Data units: another sample's noise would be worse than none.
    identity, _ = _explained(bumps, jax.tree_util.Partial(_same), clean, 1.0, 1)
    assert identity == 0


def _same(x, sigma):
    return x


def angle_study(**values):
    rows = {
        Arm.RESIDUAL.value: {"loss / sigma^2": values["loss"], "angle to truth": 4.0},
        Arm.TANH_DIRECT.value: {"angle to truth": values["old"]},
        Arm.TANH_RESIDUAL.value: {"angle to truth": 12.0},
    }
    probes = Probes(np.zeros((0, 2), np.float32), np.zeros(0), 0, 0.0)
    return AngleStudy(rows, probes, {}, 0.99, 2.0)


@pytest.mark.parametrize(
    ("loss", "old", "verdicts"),
    [(1.05, 60.0, "met met met met"), (1.2, 30.0, "missed met missed met")],
)
def test_the_spiral_is_judged_by_what_was_measured(loss, old, verdicts):
    sentences = judge_angles(angle_study(loss=loss, old=old))
    ends = [sentence.rstrip(".").split()[-1] for sentence in sentences]
    assert " ".join(ends) == verdicts
    assert f"Measured: {loss:.3f}" in sentences[0]
    assert f"Measured: {old:.1f}" in sentences[2]


@pytest.mark.parametrize("good", [True, False])
def test_rules_and_chains_are_judged_by_what_was_measured(good):
    exact = np.array([[1.0, 2.0, -1.0]] * 3)
    near, far = exact + 0.01, exact + np.array([0.5, -0.8, 1.5])
    first, second = (near, far) if good else (far, near)
    energies = EnergyStudy(
        exact,
        {("truth", "gl3"): first, ("truth", "left"): second},
        {"truth": exact, "auto-encoder": exact + 0.2},
        {},
        {},
        {},
        "truth",
    )
    word = " met." if good else " missed."
    assert all(sentence.endswith(word) for sentence in judge_energies(energies))
    assert len(judge_energies(energies)) == 2

    def chain(rule, acceptance):
        empty = np.zeros((0, 2))
        start = ("data", acceptance, 0.01, 0.0, 1.0, empty, empty[:, 0])
        return ChainRun(rule, rule, 3.0, *start)

    runs = [chain(EXACT, 0.4), chain("left", 0.6 if good else 0.41)]
    (sentence,) = judge_chains(
        ChainStudy(runs, np.zeros((0, 2), np.float32), 0.01, 0.0)
    )
    assert sentence.endswith(word)


@pytest.fixture
def counted_parts(monkeypatch):
    """Parts that count how often they are made; the second may be told to fail."""
    calls = SimpleNamespace(made=[], fail=False)

    def part(name):
        def make(study):
            if name == "energies" and calls.fail:
                raise KeyboardInterrupt
            calls.made.append(name)
            section = Section(name, study.folder)
            section.file(f"{name}.csv", [{"seed": study.settings.seed}])
            return Outcome(section, {"number": 1.5, "none": [float("nan")]})

        return report._Part(make, ("pairs",) * (name == "energies"))

    chosen = ("jacobian", "energies")
    monkeypatch.setattr(report, "_PARTS", {name: part(name) for name in chosen})
    return calls


def test_an_interrupted_study_goes_on_and_a_finished_one_rests(
    counted_parts, tmp_path, monkeypatch, capsys
):
    words = f"two-bumps --parts jacobian energies --output {tmp_path}/out"
    counted_parts.fail = True
    with pytest.raises(SystemExit) as stop:
        run(words, monkeypatch)
    assert stop.value.code == 130 and not (tmp_path / "out" / "record.json").exists()
    counted_parts.fail = False
    run(words, monkeypatch)
    assert counted_parts.made == ["jacobian", "energies"]
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["figures"]["energies"] == {"number": 1.5, "none": [None]}
    assert set(record["seconds"]) == {"jacobian", "energies"}
    capsys.readouterr()
    run(words, monkeypatch)
    assert "done already" in capsys.readouterr().out
    # A table that is gone is made again, and what a setting does not touch is kept.
    (tmp_path / "out" / "jacobian.csv").unlink()
    run(words, monkeypatch)
    assert counted_parts.made.pop() == "jacobian" and len(counted_parts.made) == 2
    run(f"{words} --pairs 7", monkeypatch)
    assert counted_parts.made == ["jacobian", "energies", "energies"]
    run(f"{words} --pairs 7 --seed 1", monkeypatch)
    assert counted_parts.made[3:] == ["jacobian", "energies"]


@pytest.mark.slow
def test_chains_of_the_exact_energy_reach_the_target_and_those_of_a_score_alike(
    tmp_path,
):
    study = open_study(
        "two-bumps", tmp_path, num_points=1000, num_steps=1500, hidden=(64, 64),
        chains=200, moves=400,
    )  # fmt: skip
    found = measure_chains(study)
    runs = {(r.energy, r.step): r for r in found.runs if r.start == "data"}
    exact, left = runs[EXACT, 3.0], runs["truth, left", 3.0]
    model = runs["auto-encoder, gl3", 3.0]
    assert exact.distance < 0.05 and exact.beyond < 0.01
    assert abs(model.acceptance - exact.acceptance) < 0.05
    assert abs(left.acceptance - exact.acceptance) > 0.1


@pytest.mark.slow
def test_both_optima_approach_the_score_as_predicted(tmp_path):
    found = measure_limit(open_study("two-bumps", tmp_path))
    means, deviations = np.array([-1.0, 0.8]), np.array([0.5, 0.6])
    x = np.linspace(-2, 2, 9)[:, None]
    for i, sigma in enumerate(found.sigmas):
        # Of a mixture the posterior mean is known.
        variance = deviations**2 + sigma**2
        p = np.array([0.4, 0.6]) * np.exp(-((x - means) ** 2) / (2 * variance))
        p /= np.sqrt(variance)
        p /= p.sum(axis=1, keepdims=True)
        shift = (p * (means - x) * sigma**2 / variance).sum(axis=1)
        at = np.interp(x[:, 0], found.grid, found.denoising[i])
        np.testing.assert_allclose(at, shift, rtol=1e-3, atol=1e-5 * sigma**2)
    assert (np.diff(found.ratio) > 0).all() and 0.9 < found.ratio[-1] < 1.02


@pytest.mark.slow
def test_estimators_are_ordered_by_what_they_know(tmp_path):
    study = open_study(
        "mixture10d", tmp_path, num_points=200, num_steps=1500, hidden=(64, 64),
        test_points=1000, sigmas=(0.1, 0.3),
    )  # fmt: skip
    found = measure_estimators(study)
    for i in range(2):
        share = {name: values[i] for name, values in found.explained.items()}
        best = max(share.values()) + 0.01
        assert share["truth"] <= best and share["truth"] > share["empirical"]
        assert share["truth"] > share["denoising auto-encoder"] > share["Gaussian"]
        assert found.training["empirical"][i] > found.explained["empirical"][i] + 0.02
        assert found.score["denoising auto-encoder"][i] > 0.8


@pytest.mark.slow
def test_the_spiral_study_reproduces_the_prototype(tmp_path, monkeypatch, capsys):
    words = (
        f"spiral --output {tmp_path} --num-steps 3000 --tanh-steps 600 --replicas 5 "
        "--pairs 200 --chains 60 --moves 100 --mode-starts 60 --mode-steps 100 "
        "--hidden 96 96 96"
    )
    run(words, monkeypatch)
    record = json.loads((tmp_path / "record.json").read_text())
    figures, page = record["figures"], (tmp_path / "study.html").read_text()
    assert list(figures) == list(report.PARTS)
    for name in report.PARTS:
        kept = json.loads((tmp_path / "partial" / f"section_{name}.json").read_text())
        for place in kept["files"]:
            assert (tmp_path / place).stat().st_size > 50
    rows = {row["score"]: row for row in figures["angles"]["rows"]}
    residual = rows[Arm.RESIDUAL.value]
    assert residual["loss / sigma^2"] < 1.1 and residual["angle to truth"] < 10
    assert rows[Arm.TANH_DIRECT.value]["angle to truth"] > 45
    assert rows[Arm.TANH_RESIDUAL.value]["angle to truth"] < 30
    assert 8 < rows["training points (KDE)"]["angle to truth"] < 25
    jacobian = {row["score"]: row for row in figures["jacobian"]["rows"]}
    assert jacobian["truth"]["tangent, median"] == pytest.approx(1, abs=0.02)
    assert abs(jacobian["truth"]["normal, median"]) < 0.01
    assert jacobian["auto-encoder"]["normal, median"] < 0.1
    assert page.count("<img") == 12 and " met." in page
    run(words, monkeypatch)
    assert "done already" in capsys.readouterr().out


@pytest.mark.slow
def test_images_are_studied_against_their_training_set(tmp_path):
    study = open_study("digits", tmp_path, num_steps=100, test_points=200, hidden=(32,))
    found = measure_jacobians(study)
    assert found.tangent["auto-encoder"].shape[1] == found.dimension
    assert found.dimension + found.normal["auto-encoder"].shape[1] == 64
    name = study.kde.name
    assert np.median(found.error[name]) < 1e-5
    assert np.median(found.asymmetry[name]) < 1e-3
