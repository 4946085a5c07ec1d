"""The demo on a tiny run: everything promised is there, and a second call is done."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from analysis.report import Report
from analysis.run_report import ReportSettings, run_demo
from analysis.teleportation import compare_starts
from configs import InputError
from samplers import karras

SETTINGS = ReportSettings(num_samples=6, num_points=8, skip_points=3, sigmas=(0.5, 5.0))
FIGURES = (
    "samples_plain",
    "samples_teleported",
    "samples_gaussian",
    "explained_variance",
    "losses",
    "loss_per_sigma",
)


@pytest.fixture(scope="module")
def demo(tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("demo")
    run_demo(tiny_config, workdir, SETTINGS)
    return workdir


def numbers(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from numbers(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from numbers(value)
    else:
        yield tree


def test_the_page_is_self_contained(demo):
    page = (demo / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(FIGURES)
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    for phrase in ("num_points", "learning_rate", "rms from plain", "network calls"):
        assert phrase in page


def test_the_figures_are_readable_images(demo):
    for name in FIGURES:
        with Image.open(demo / "figures" / f"{name}.png") as image:
            assert min(image.size) > 50
            assert np.asarray(image).std() > 5


def test_metrics_are_finite_or_null(demo):
    metrics = json.loads((demo / "metrics.json").read_text())
    for value in numbers(metrics):
        assert not isinstance(value, float) or math.isfinite(value)
    assert metrics["samplers"]["plain"]["nfe"] == 15
    assert metrics["samplers"]["teleported"]["nfe"] == 9
    assert metrics["sigma_skip"] == pytest.approx(karras(8)[3])
    assert set(metrics["comparison"]["denoised"]) == {
        "Gaussian",
        "isotropic",
        "mean-isotropic",
    }
    assert metrics["settings"]["experiment"]["data"]["name"] == "digits"


def test_the_samples_are_those_that_the_distances_are_of(demo):
    metrics = json.loads((demo / "metrics.json").read_text())
    samples = np.load(demo / "samples.npz")
    for name, key in (("teleported", "teleported_rms"), ("control", "control_rms")):
        assert samples[name].shape == (6, 8, 8, 1)
        distance = np.sqrt(np.mean((samples[name] - samples["plain"]) ** 2))
        assert distance == pytest.approx(metrics[key], rel=1e-4)


def test_a_second_call_says_that_it_is_done(demo, tiny_config, capsys):
    before = (demo / "report.html").stat().st_mtime_ns
    run_demo(tiny_config, demo, SETTINGS)
    assert "done already" in capsys.readouterr().out
    assert (demo / "report.html").stat().st_mtime_ns == before


def test_an_unfinished_report_is_written_again(demo, tiny_config, capsys):
    (demo / "metrics.json").unlink()
    run_demo(tiny_config, demo, SETTINGS)
    assert "report: " in capsys.readouterr().out
    assert (demo / "metrics.json").is_file()


def test_text_is_escaped(tmp_path):
    report = Report("a < b")
    report.paragraph("<script>")
    report.table(["x & y"], [["1 > 0"]])
    report.write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "a &lt; b" in page
    assert "x &amp; y" in page


def test_skipping_everything_is_refused():
    with pytest.raises(InputError, match="skip_points is 8"):
        compare_starts(None, None, None, (1, 2), karras(8), skip_points=8)
