"""Arms and seeds of an augmentation study, their measures and their table."""

import dataclasses
import json
import math
import sys

import jax
import numpy as np
import pytest
from scipy import stats

from analysis.augmentation_arms import ARMS, build_arm, experiment_of
from analysis.augmentation_report import Interval, seed_interval, study_rows
from analysis.augmentation_runs import SIGMAS, Settings, measure_run, run_study
from analysis.augmentation_study import main
from configs.errors import InputError, InputWarning
from configs.network_schema import DDPMUNetConfig, MLPConfig
from configs.presets import load_preset
from configs.schema import AugmentationConfig, DataConfig
from diffusion.command_line import exit_on_error
from diffusion.data import split_of
from diffusion.training import load_denoiser

OPTIONS = (
    "glyphs --arms none score=rot90 --seeds 0 --num-samples 12 --num-points 3 "
    "--background True --training.num-steps 4 --training.batch-size 8 "
    "--training.checkpoint-every-steps 2 --training.log-every-steps 2 "
    "--training.evaluation-images 8 --network.width 8 --network.num-layers 1 "
    "--data.max-images 16"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study of two arms and a seed, by its command."""
    folder = tmp_path_factory.mktemp("study")
    run(f"{OPTIONS} --workdir {folder}")
    return folder


def run(options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prog", *options.split()])
        exit_on_error(main)


@pytest.mark.slow
def test_a_study_writes_its_table_figure_and_page(study):
    table = (study / "study.csv").read_text().splitlines()
    assert len(table) == 3
    assert table[0].startswith("arm,seeds,training,held_out,best_held_out,best_step")
    assert [line.split(",")[0] for line in table[1:]] == ["none", "score=rot90"]
    assert "clear leak rot90" in table[0] and "background" in table[0]
    assert (study / "study.png").stat().st_size > 10_000
    page = (study / "study.html").read_text()
    assert "2 arms, 1 seeds, 4 steps of 8 images each, on glyphs" in page
    values = json.loads((study / "study.json").read_text())
    runs = values["runs"]["none"] + values["runs"]["score=rot90"]
    assert [one["steps"] for one in runs] == [[2, 4]] * 2
    assert np.shape(runs[0]["held_out"]) == (2, len(SIGMAS))
    # A network that has hardly been trained has about one at every level.
    np.testing.assert_allclose(runs[0]["held_out"][0], 1, atol=0.25)
    assert set(runs[1]["equivariance"]) == {"rot90"}
    assert runs[0]["equivariance"] == {}


@pytest.mark.slow
def test_arms_of_a_seed_start_alike(study):
    none, score = (
        load_denoiser(study / f"{arm}-seed0", step=0, ema=False).params
        for arm in ("none", "score=rot90")
    )
    del none["map_augment"], score["map_augment"]
    assert jax.tree.all(jax.tree.map(np.array_equal, none, score))


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped(study):
    """Nothing is measured again; a run that was stopped is not measured at all."""
    before = {path: path.stat().st_mtime_ns for path in study.glob("*/measures.json")}
    assert len(before) == 2
    run(f"{OPTIONS} --workdir {study}")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    record = study / "none-seed0" / "config.json"
    text = record.read_text()
    record.write_text(text.replace('"num_steps": 4', '"num_steps": 6'))
    base = experiment()
    with pytest.raises(InputError, match="stopped at step 4 of 6; run the same"):
        measure_run(record.parent, split_of(base.data), Settings(()), base.augmentation)
    record.write_text(text)


def experiment():
    base = load_preset("glyphs")
    return dataclasses.replace(base, network=MLPConfig(width=8, num_layers=1))


def test_arms_are_named_by_mode_condition_and_transforms():
    base = AugmentationConfig(transforms=("flip", "cutout"), weights=(1.0, 2.0))
    for name, (mode, condition) in ARMS.items():
        arm = build_arm(name, base).augmentation
        assert (arm.mode, arm.condition) == (mode, condition)
        assert arm.transforms == arm.nla_transforms == ("flip", "cutout")
        assert arm.weights == (1.0, 2.0)
    other = build_arm("score-blind=rot90,flip", base).augmentation
    assert (other.transforms, other.weights) == (("rot90", "flip"), None)
    with pytest.raises(InputError, match="unknown arm 'scor'; did you mean 'score'"):
        build_arm("scor", base)


def test_every_arm_has_an_input_for_the_condition():
    base = experiment()
    sizes = {"none": 1, "score": 8, "score-blind": 8, "both": 16}
    for name, size in sizes.items():
        found = experiment_of(build_arm(name, base.augmentation), base, (12, 12, 1), 3)
        assert found.network.augment_dim == size
        assert found.seed == 3
    with pytest.raises(InputError, match="DDPMUNet has no input for a condition"):
        experiment_of(
            build_arm("none", base.augmentation),
            dataclasses.replace(base, network=DDPMUNetConfig()),
            (12, 12, 1),
            0,
        )


def test_what_a_study_cannot_do_is_refused(tmp_path):
    base = experiment()
    arms = [build_arm("none", base.augmentation)]
    alone = dataclasses.replace(base, data=DataConfig("glyphs", held_out_fraction=0.0))
    with pytest.raises(InputError, match="0 images are held out; a study needs"):
        run_study(arms, alone, [0], tmp_path, Settings(()))
    arms.append(build_arm("score=rot45", base.augmentation))
    with pytest.raises(InputError, match="did you mean 'rot90'"):
        run_study(arms, base, [0], tmp_path, Settings(()))
    assert not list(tmp_path.iterdir())


def test_arms_that_mirror_beside_others_are_warned_of(tmp_path, monkeypatch):
    base = experiment()
    arms = [build_arm(name, base.augmentation) for name in ("none", "score=flip")]

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.augmentation_runs.train", stop)
    with (
        pytest.warns(InputWarning, match="score=flip mirror images .* and none do not"),
        pytest.raises(KeyboardInterrupt),
    ):
        run_study(arms, base, [0], tmp_path, Settings(()))


def test_intervals_over_seeds_are_students():
    values = np.array([0.9, 1.1, 1.3])
    found = seed_interval(values)
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    np.testing.assert_allclose(found, (1.1, low, high))
    logs = seed_interval(values, logarithmic=True)
    assert logs.mean == pytest.approx(stats.gmean(values))
    assert logs.low < logs.mean < logs.high
    assert logs.mean**2 == pytest.approx(logs.low * logs.high)
    single = seed_interval([2.0])
    assert single.mean == 2 and math.isnan(single.low)


def test_rows_compare_arms_within_a_seed():
    def measured(*curve, memorised=0.0):
        share = [memorised, 0.0, 1.0]
        return {
            "steps": [0, 5, 10],
            "sigmas": [0.1, 1.0],
            "training": [[c, c] for c in curve],
            "held_out": [[c - 0.1, c + 0.1] for c in curve],
            "samples": [{"memorised": share, "copy_rate": share, "leaks": {}}],
        }

    runs = {
        "none": [measured(1, 0.5, 0.8, memorised=0.2), measured(1, 0.6, 1.0)],
        "score": [measured(1, 0.5, 0.4), measured(1, 0.55, 0.5)],
    }
    none, score = study_rows(runs)
    assert none["held_out"].mean == pytest.approx(0.9)
    assert none["best_held_out"].mean == pytest.approx(0.55)
    assert none["best_step"] == [5, 5]
    assert none["memorised"].mean == pytest.approx(0.1)
    assert none["ratio_to_last"] == pytest.approx(Interval(1, 1, 1))
    # .4/.8 and .5/1; .4/.5 and .5/.6
    assert score["ratio_to_last"] == pytest.approx(Interval(0.5, 0.5, 0.5))
    assert score["ratio_to_best"].mean == pytest.approx(math.sqrt(0.8 * 0.5 / 0.6))
    assert "ratio_to_last" not in study_rows({"score": runs["score"]})[0]
