"""The command that evaluates samples: its numbers, its records and its refusals."""

import functools
import io
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from analysis import evaluate as entry
from analysis.evaluation import evaluating, numbers
from analysis.evaluation import features as feature_files
from analysis.evaluation.choice import Limits
from analysis.evaluation.features import Extractor
from analysis.metrics import (
    feature_statistics,
    frechet_of_features,
    kernel_distance,
    precision_recall,
    save_statistics,
)
from analysis.metrics.frechet import frechet_in_basis
from analysis.metrics.inception import (
    Inception,
    inception_features,
    inception_shapes,
    save_inception,
)
from diffusion.command_line import exit_on_error
from diffusion.data import data_digest, open_dataset
from diffusion.training.locking import lock_workdir


def images_of(seed, count, size=8, channels=1):
    """Smooth images with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 190, size=(count, size // 4, size // 4, channels))
    smooth = np.kron(coarse, np.ones((1, 4, 4, 1)))
    noisy = smooth + rng.normal(size=smooth.shape, scale=10)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def write_zip(path, images):
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image.squeeze(-1)).save(buffer, format="png")
            archive.writestr(f"00000/img{i:08d}.png", buffer.getvalue())
    return str(path)


FAST = ["--num-resamples", "40", "--num-directions", "5", "--sliced-directions", "8"]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments), *FAST])
    exit_on_error(entry.main)
    return capsys.readouterr().out


def error_of(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments), *FAST])
    with pytest.raises(SystemExit) as stop:
        exit_on_error(entry.main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    return error


def numbers_of(path):
    record = json.loads(path.read_text())
    return {row["metric"]: row for row in record["metrics"]}, record


class Found(NamedTuple):
    features: np.ndarray
    logits: np.ndarray


def fake_extractor(digest="w" * 64):
    """Random projections in the place of the Inception network."""
    calls = []

    def extract(images):
        calls.append(len(images))
        rows = images.reshape(len(images), -1) / 127.5 - 1
        weights = np.random.default_rng(1).normal(size=(rows.shape[1], 16))
        values = (rows @ weights).astype(np.float32)
        return Found(values[:, :12], values[:, 12:])

    return Extractor(extract, digest, "none at all", (12, 4)), calls


@pytest.fixture
def inception(monkeypatch):
    extractor, calls = fake_extractor()
    monkeypatch.setattr(evaluating, "load_extractor", lambda path: extractor)
    return calls


def test_neighbours_are_looked_for_of_so_many_images_at_most():
    data, held_out, samples = (images_of(seed, 30) for seed in (0, 1, 2))
    limits = Limits(neighbour_images=9)
    found = numbers.pixel_memorization(samples, data, held_out, limits, 0)
    sizes = {row.metric: (row.num_samples, row.num_reference) for row in found}
    # Each number says of how many it was made.
    assert sizes["memorised"] == sizes["memorised_held_out"] == (9, 30)
    assert sizes["copy_rate"] == (9, 30)


def test_an_evaluation_without_weights_records_what_each_number_depends_on(
    tmp_path, monkeypatch, capsys
):
    data, held_out = images_of(0, 60), images_of(1, 60)
    copies = np.concatenate([data[:10], images_of(2, 30)])
    samples = write_zip(tmp_path / "samples.zip", copies)
    reference = write_npz(tmp_path / "data.npz", images=data)
    held = write_npz(tmp_path / "held.npz", images=held_out)
    printed = run(
        *(monkeypatch, capsys, samples, "--reference", reference),
        *("--held-out", held, "--metrics", "memorization", "sliced_wasserstein"),
        *("pca_frechet", "pca_kernel", "pca_precision_recall", "pca_density_coverage"),
    )
    rows, record = numbers_of(tmp_path / "evaluation.json")
    assert rows["memorised"]["value"] == 10 / 40
    assert rows["memorised_held_out"]["value"] == 0
    assert rows["memorised_held_out"]["high"] < 0.1
    assert set(rows) == {
        *("memorised", "memorised_held_out", "copy_rate", "sliced_wasserstein"),
        *("pca_frechet_distance", "pca_kernel_distance", "pca_precision"),
        *("pca_recall", "pca_density", "pca_coverage"),
    }
    # The principal directions, by an independent decomposition.
    flat = data.reshape(60, -1) / 127.5 - 1
    basis = np.linalg.svd(flat - flat.mean(axis=0))[2][:5].T
    expected = frechet_in_basis(copies.reshape(40, -1) / 127.5 - 1, flat, basis)
    assert rows["pca_frechet_distance"]["value"] == pytest.approx(expected, rel=1e-5)
    for name, row in rows.items():
        assert name in printed
        assert row["low"] <= row["value"] <= row["high"]
        # Held-out images stand in the place of samples there.
        assert row["num_samples"] == (60 if name == "memorised_held_out" else 40)
        assert row["num_reference"] == 60
        assert row["resize"] is None and row["weights"] is None
    # The digests beside a number are those of the sets that it depends on.
    digests = {
        f"{name}_sha256": data_digest(open_dataset(path))
        for name, path in zip(
            ("samples", "reference", "held_out"),
            (samples, reference, held),
            strict=True,
        )
    }
    lacking = {"memorised_held_out": "samples", "copy_rate": ""}
    for name, row in rows.items():
        without = f"{lacking.get(name, 'held_out')}_sha256"
        expected = {key: value for key, value in digests.items() if key != without}
        assert {k: v for k, v in row.items() if k.endswith("sha256")} == expected
    assert record["sets"]["held_out"]["count"] == 60
    assert not [*tmp_path.glob("*.partial")]


def test_samples_of_the_datas_own_distribution_are_within_the_floors(
    tmp_path, monkeypatch, capsys
):
    samples = write_npz(tmp_path / "samples.npz", images=images_of(22, 80))
    moved = write_npz(tmp_path / "moved.npz", images=images_of(22, 80) // 2)
    reference = write_npz(tmp_path / "data.npz", images=images_of(23, 80))
    metrics = ("--metrics", "pca_frechet", "sliced_wasserstein", "--confidence", ".99")
    for path, is_data in ((samples, True), (moved, False)):
        run(monkeypatch, capsys, path, "--reference", reference, *metrics)
        for row in numbers_of(tmp_path / "evaluation.json")[0].values():
            assert 0 < row["floor"][0] < row["floor"][1]
            inside = row["floor"][0] <= row["value"] <= row["floor"][1]
            assert inside == is_data
            assert row["confidence"] == 0.99


def test_without_weights_the_rest_is_computed_and_the_command_says_what_to_fetch(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "samples"
    folder.mkdir()
    for i, image in enumerate(images_of(3, 12)):
        Image.fromarray(image.squeeze(-1)).save(folder / f"{i}.png")
    data = write_npz(tmp_path / "data.npz", images=images_of(4, 12))
    printed = run(monkeypatch, capsys, folder, "--reference", data)
    (line,) = [text for text in printed.splitlines() if text.startswith("left out")]
    for words in (
        "fid, kid, precision_recall, density_coverage, inception_score",
        "weights-inception-2015-12-05-6726825d.pth",
        "python -m analysis.import_inception",
        "--inception inception.npz",
    ):
        assert words in line
    rows, record = numbers_of(tmp_path / "evaluation.json")
    assert "pca_coverage" in rows and "memorised" in rows
    assert set(record["left_out"]) == {
        *("fid", "kid", "precision_recall", "density_coverage", "inception_score")
    }


def test_inception_metrics_are_those_of_its_features(
    tmp_path, monkeypatch, capsys, inception
):
    a, b = images_of(5, 20), images_of(6, 30)
    samples = write_npz(tmp_path / "samples.npz", images=a / np.float32(127.5) - 1)
    reference = write_npz(tmp_path / "data.npz", images=b)
    stored = tmp_path / "reference.npz"
    arguments = [
        *(samples, "--reference", reference, "--inception", "weights.npz"),
        *("--reference-statistics", stored, "--metrics"),
    ]
    run(
        *(monkeypatch, capsys, *arguments, "fid", "kid", "precision_recall"),
        *("density_coverage", "inception_score"),
    )
    rows, record = numbers_of(tmp_path / "evaluation.json")
    extract = fake_extractor()[0].extract
    x, y = (extract(s).features for s in (a, b))
    assert rows["fid"]["value"] == pytest.approx(frechet_of_features(x, y), rel=1e-5)
    assert rows["kid"]["value"] == pytest.approx(kernel_distance(x, y), rel=1e-9)
    found = rows["precision"]["value"], rows["recall"]["value"]
    assert found == precision_recall(x, y)
    assert rows["inception_score"]["num_reference"] is None
    assert "reference_sha256" not in rows["inception_score"]
    assert rows["fid"]["weights"] == "w" * 64
    assert rows["fid"]["resize"] == "none at all"
    assert record["sets"]["samples"]["quantised"] is True
    assert inception == [20, 30]
    # The stored statistics spare the reference, and belong to its images alone.
    before = rows["fid"]["value"]
    run(monkeypatch, capsys, *arguments, "fid")
    assert inception == [20, 30, 20]
    after = numbers_of(tmp_path / "evaluation.json")[0]["fid"]["value"]
    assert after == pytest.approx(before, rel=1e-5)
    write_npz(tmp_path / "data.npz", images=b[::-1])
    error = error_of(monkeypatch, capsys, *arguments, "fid")
    assert "holds statistics of other images or weights" in error


@pytest.mark.slow
def test_the_network_itself_is_asked_and_its_digest_told(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)

    def random(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: random(part) for name, part in shape.items()}
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        deviation = np.sqrt(2 / np.prod(shape[:-1]))
        return rng.normal(size=shape, scale=deviation).astype(np.float32)

    network = Inception(random(inception_shapes()), "d" * 64)
    save_inception(tmp_path / "inception.npz", network)
    a, b = images_of(20, 10), images_of(21, 11)
    samples = write_npz(tmp_path / "samples.npz", images=a)
    reference = write_npz(tmp_path / "data.npz", images=b)
    run(
        *(monkeypatch, capsys, samples, "--reference", reference),
        *("--inception", tmp_path / "inception.npz", "--metrics", "fid"),
    )
    rows, _ = numbers_of(tmp_path / "evaluation.json")
    x, y = (inception_features(network, images).features for images in (a, b))
    assert rows["fid"]["value"] == pytest.approx(frechet_of_features(x, y), rel=1e-5)
    assert rows["fid"]["weights"] == "d" * 64
    assert rows["fid"]["resize"] == "TF1 bilinear to 299x299"


def test_the_example_of_the_guide_runs(capsys):
    guide = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.count("=") == 4


def test_an_interrupted_extraction_goes_on_and_a_cache_is_kept(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(feature_files, "_CHUNK", 8)
    extractor, calls = fake_extractor()

    def stumbles(images):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return extractor.extract(images)

    samples = write_npz(tmp_path / "samples.npz", images=images_of(7, 20))
    reference = write_npz(tmp_path / "data.npz", images=images_of(8, 12))
    arguments = (
        *(samples, "--reference", reference, "--inception", "weights.npz"),
        *("--metrics", "fid", "--cache", tmp_path / "cache"),
    )
    broken = extractor._replace(extract=stumbles)
    monkeypatch.setattr(evaluating, "load_extractor", lambda path: broken)
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, *arguments)
    assert calls == [8, 8]
    monkeypatch.setattr(evaluating, "load_extractor", lambda path: extractor)
    run(monkeypatch, capsys, *arguments)
    assert calls == [8, 8, 4, 8, 4]
    first = (tmp_path / "evaluation.json").read_text()
    run(monkeypatch, capsys, *arguments)
    assert calls == [8, 8, 4, 8, 4]
    assert (tmp_path / "evaluation.json").read_text() == first
    # A damaged file: the line names what to delete, and that is enough.
    damaged = next((tmp_path / "cache").glob("features-*.npy"))
    damaged.write_bytes(b"")
    error = error_of(monkeypatch, capsys, *arguments)
    assert f"{damaged} is damaged; delete {damaged.name}, logits-" in error
    for name in error.partition("delete ")[2].partition(" in ")[0].split(", "):
        (tmp_path / "cache" / name).unlink()
    run(monkeypatch, capsys, *arguments)
    assert (tmp_path / "evaluation.json").read_text() == first


def test_two_evaluations_do_not_share_what_they_have_begun(
    tmp_path, monkeypatch, capsys
):
    images = images_of(24, 8)
    samples = [write_npz(tmp_path / f"{name}.npz", images=images) for name in "ab"]
    arguments = ("--reference", samples[0], "--metrics", "pca_frechet")
    with lock_workdir(tmp_path / "evaluation-a.npz.partial"):
        error = error_of(monkeypatch, capsys, samples[0], *arguments)
        assert "in use by another evaluation" in error and "--cache or --out" in error
        run(monkeypatch, capsys, samples[1], *arguments)
        run(monkeypatch, capsys, samples[0], *arguments, "--out", tmp_path / "o.json")
    with lock_workdir(tmp_path / "cache"):
        cached = (*arguments, "--cache", tmp_path / "cache")
        error = error_of(monkeypatch, capsys, samples[1], *cached)
        assert "in use by another evaluation" in error
    run(monkeypatch, capsys, samples[1], *cached)


def test_statistics_of_other_weights_or_samples_of_another_range_are_refused_early(
    tmp_path, monkeypatch, capsys, inception
):
    images = images_of(25, 8)
    samples = write_npz(tmp_path / "samples.npz", images=images)
    unit = write_npz(tmp_path / "unit.npz", images=images / np.float32(255))
    x = fake_extractor()[0].extract(images).features
    for name, width, weights in (
        *(("same", 12, "w"), ("others", 12, "v"), ("narrow", 11, "w")),
    ):
        statistics = feature_statistics(x[:, :width])
        path = tmp_path / f"{name}.npz"
        save_statistics(path, statistics, weights_digest=weights * 64)
    asked = ("--inception", "weights.npz", "--metrics", "fid")
    for path, name, words in (
        (samples, "others", "was made with the weights vvvv"),
        (samples, "narrow", "a mean of 11 numbers, the samples have 12 features"),
        (unit, "same", "give 2 x - 1 of [0, 1]"),
    ):
        given = (path, "--reference", tmp_path / f"{name}.npz", *asked)
        assert words in error_of(monkeypatch, capsys, *given)
    assert inception == []
    run(monkeypatch, capsys, samples, "--reference", tmp_path / "same.npz", *asked)


def test_a_reference_of_fewer_images_than_features_needs_no_covariance(
    tmp_path, monkeypatch, capsys, inception
):
    a, b = images_of(26, 20), images_of(27, 9)
    samples = write_npz(tmp_path / "samples.npz", images=a)
    reference = write_npz(tmp_path / "data.npz", images=b)
    monkeypatch.setattr("analysis.evaluation.tasks.feature_statistics", None)
    run(
        *(monkeypatch, capsys, samples, "--reference", reference),
        *("--inception", "weights.npz", "--metrics", "fid"),
    )
    row = numbers_of(tmp_path / "evaluation.json")[0]["fid"]
    x, y = (fake_extractor()[0].extract(s).features for s in (a, b))
    assert row["value"] == pytest.approx(frechet_of_features(x, y), rel=1e-5)
    assert row["num_reference"] == 9


def test_the_interval_of_a_kernel_distance_of_large_sets_is_that_of_other_sets(
    monkeypatch,
):
    """In blocks of 100; the interval is two deviations of other draws of both sets."""
    for name in ("kernel_distance_blocks", "kernel_distance_deviations"):
        whole = getattr(numbers, name)
        small = functools.partial(whole, block_size=100)
        monkeypatch.setattr(numbers, name, small)
    values, widths = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = 1.3 * rng.normal(size=(200, 4)), rng.normal(size=(220, 4))
        limits = Limits(num_resamples=100, confidence=0.68)
        (row,) = numbers.feature_kernel("kid", x, y, limits, seed)
        values.append(row.value)
        widths.append(row.high - row.low)
    assert np.mean(widths) == pytest.approx(2 * np.std(values), rel=0.3)


def test_edms_protocol_is_three_fids_their_minimum_and_mean(
    tmp_path, monkeypatch, capsys, inception
):
    for module in ("tasks", "evaluating"):
        monkeypatch.setattr(f"analysis.evaluation.{module}.EDM_IMAGES", 6)
    a, b = images_of(9, 18), images_of(10, 25)
    samples = [
        write_npz(tmp_path / f"{i}.npz", images=part)
        for i, part in enumerate(np.split(a, 3))
    ]
    y = feature_statistics(fake_extractor()[0].extract(b).features)
    np.savez(tmp_path / "edm.npz", mu=y.mean, sigma=y.covariance)
    arguments = (
        *("--reference", tmp_path / "edm.npz", "--inception", "weights.npz"),
        *("--protocol", "edm"),
    )
    run(monkeypatch, capsys, samples[0], "--more-samples", *samples[1:], *arguments)
    rows, _ = numbers_of(tmp_path / "evaluation.json")
    x = fake_extractor()[0].extract(a).features
    expected = [frechet_of_features(part, y) for part in np.split(x, 3)]
    found = [rows[f"fid_{i}"]["value"] for i in range(3)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert rows["fid_1"]["images"] == [6, 11]
    assert rows["fid_1"]["weights_of_reference"] == "not stated"
    assert rows["fid_minimum"]["value"] == min(found)
    assert rows["fid_mean"]["value"] == pytest.approx(np.mean(found))
    assert rows["fid_mean"]["weights_of_reference"] == "not stated"
    assert rows["fid_mean"]["images"] == [0, 17]
    error = error_of(monkeypatch, capsys, samples[0], *arguments)
    assert "there are 6 images in" in error and "--num-samples 18" in error


def test_features_of_another_network_are_compared_as_they_are(
    tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(30, 6)), rng.normal(size=(40, 6)) + 1
    samples = write_npz(tmp_path / "dino.npz", features=x)
    reference = write_npz(tmp_path / "data.npz", features=y)
    run(monkeypatch, capsys, samples, "--reference", reference)
    rows, record = numbers_of(tmp_path / "evaluation.json")
    assert rows["frechet_distance"]["value"] == frechet_of_features(x, y)
    assert rows["kernel_distance"]["value"] == kernel_distance(x, y)
    assert "inception_score" in record["left_out"]
    save_statistics(tmp_path / "stats.npz", feature_statistics(y))
    statistics = tmp_path / "stats.npz"
    run(monkeypatch, capsys, samples, "--reference", statistics)
    again, _ = numbers_of(tmp_path / "evaluation.json")
    assert set(again) == {"frechet_distance"}
    assert again["frechet_distance"]["num_reference"] == 40
    value = again["frechet_distance"]["value"]
    assert value == pytest.approx(rows["frechet_distance"]["value"], rel=1e-9)


def test_a_subset_is_a_function_of_the_seed_and_large_sets_lie_in_files(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("analysis.evaluation.inputs._IN_MEMORY", 0)
    samples = write_npz(tmp_path / "samples.npz", images=images_of(12, 30))
    arguments = (
        *(samples, "--reference", samples, "--max-images", 20),
        *("--metrics", "pca_frechet", "--out", tmp_path / "numbers.json"),
    )
    values = []
    for seed in (0, 0, 1):
        run(monkeypatch, capsys, *arguments, "--seed", seed)
        rows, record = numbers_of(tmp_path / "numbers.json")
        assert record["sets"]["samples"]["of"] == 30
        assert rows["pca_frechet_distance"]["num_samples"] == 20
        values.append(rows["pca_frechet_distance"]["value"])
    assert values[0] == values[1] != values[2]
    assert not [*tmp_path.glob("*.partial")]


def test_the_folder_of_a_generation_is_its_images(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "heun"
    folder.mkdir()
    (folder / "record.json").write_text("{}")
    Image.new("L", (100, 100)).save(folder / "grid.png")
    write_zip(folder / "images.zip", images_of(13, 8))
    data = write_npz(tmp_path / "data.npz", images=images_of(14, 8))
    run(
        *(monkeypatch, capsys, folder, "--reference", data, "--metrics"),
        "sliced_wasserstein",
    )
    rows, _ = numbers_of(folder / "evaluation.json")
    assert rows["sliced_wasserstein"]["num_samples"] == 8


def test_mistakes_get_one_line(tmp_path, monkeypatch, capsys):
    good = write_npz(tmp_path / "good.npz", images=images_of(15, 12))
    few = write_npz(tmp_path / "few.npz", images=images_of(15, 3))
    large = write_npz(tmp_path / "large.npz", images=images_of(15, 12, size=16))
    floats = images_of(15, 12).astype(np.float32)
    bytes_range = write_npz(tmp_path / "bytes.npz", images=floats)
    unit_range = write_npz(tmp_path / "unit.npz", images=floats / 255)
    overshoot = write_npz(tmp_path / "over.npz", images=1.1 * floats / 255 - 0.05)
    broken = write_npz(tmp_path / "nan.npz", images=floats * np.nan)
    vectors = write_npz(tmp_path / "vectors.npz", images=np.zeros((9, 2), np.float32))
    features = write_npz(tmp_path / "features.npz", features=np.ones((9, 4)))
    nan = write_npz(tmp_path / "nans.npz", features=np.full((9, 4), np.nan))
    statistics = write_npz(tmp_path / "s.npz", mu=np.zeros(4), sigma=np.eye(4))
    other_statistics = write_npz(tmp_path / "o.npz", mu=np.zeros(5), sigma=np.eye(5))
    none = str(tmp_path / "none.npz")
    for arguments, words in (
        ((), "SAMPLES comes first, but '--num-resamples' was given"),
        ((good,), "no reference was given; name the data with --reference"),
        ((none, "--reference", good), "there is no file or folder"),
        ((good, "--reference", none), "there is no file or folder"),
        ((good, "--reference", "digts"), "did you mean 'digits'?"),
        ((good, "--reference", large), "samples have shape (8, 8, 1) and the refer"),
        ((good, "--reference", good, "--held-out", large), "the held-out images (16"),
        ((bytes_range, "--reference", good), "floats must be in [-1, 1], pixels 0"),
        ((unit_range, "--reference", good), "give 2 x - 1 of [0, 1]"),
        ((overshoot, "--reference", good), "give 2 x - 1 of [0, 1]"),
        ((broken, "--reference", good), "values that are NaN or infinite"),
        ((vectors, "--reference", vectors), "all must be images (H, W, C)"),
        ((nan, "--reference", features), "9 of 9 samples hold a number that is not"),
        ((few, "--reference", good), "pca_precision_recall needs at least 4 samples"),
        ((good, "--reference", few), "at least 4 members of the reference"),
        ((good, "--reference", features), "give both as images, or both as features"),
        ((statistics, "--reference", good), "only the reference may be mu and sigma"),
        ((features, "--reference", statistics, "--metrics", "kid"), "only mu and sig"),
        ((good, "--reference", good, "--metrics", "fdi"), "did you mean 'fid'?"),
        ((good, "--reference", good, "--metrics", "fid"), "fid cannot be computed: it"),
        ((good, "--reference", statistics), "nothing can be computed: it needs the im"),
        (
            (good, "--reference", good, "--inception", none, "--metrics", "fid"),
            "there are no Inception weights at",
        ),
        (
            (good, "--reference", good, "--max-images", "13"),
            "there are only 12 samples",
        ),
        ((good, "--reference", good, "--max-images", "0"), "max_images is 0"),
        ((good, "--reference", good, "--protocol", "emd"), "did you mean 'edm'?"),
        (
            (good, "--reference", good, "--protocol", "edm", "--metrics", "kid"),
            "it is about fid",
        ),
        (
            (features, "--reference", other_statistics),
            "has a mean of 5 numbers, the samples have 4",
        ),
        (
            (features, "--reference", features, "--protocol", "edm"),
            "--protocol edm was given with features",
        ),
        (
            (good, "--reference", good, "--more-samples", features),
            "several samples must all be images",
        ),
        ((good, "--reference", good, "--confidence", "1"), "confidence is 1.0"),
        ((good, "--reference", good, "--out", tmp_path), "is a folder; name a file"),
    ):
        assert words in error_of(monkeypatch, capsys, *arguments), arguments
    assert not (tmp_path / "evaluation.json").exists()
