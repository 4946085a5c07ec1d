"""The command that estimates statistics for DPM-Solver-v3 on a run."""

import numpy as np
import pytest

from configs import InputError
from samplers import load_model_statistics
from samplers.model_statistics import TabulatedStatistics
from samplers.statistics_run import estimate_for_workdir
from tests.diffusion.runs import with_training

SIZES = dict(
    num_levels=4, num_samples=20, batch_size=16, sigma_range=(0.01, 50.0), seed=0
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    import dataclasses

    from configs.digits import config
    from configs.network_schema import MLPConfig
    from diffusion.training import train

    path = tmp_path_factory.mktemp("run")
    small = dataclasses.replace(config, network=MLPConfig(width=16, num_layers=1))
    train(with_training(small, num_steps=4, log_every_steps=4), path)
    return path


def test_a_killed_estimation_goes_on_to_the_same_file(workdir, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole.npz", tmp_path / "broken.npz"
    estimate_for_workdir(workdir, whole, **SIZES)
    import samplers.statistics_run as run

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
