"""Configurations: ranges, and the way to JSON and back."""

import dataclasses
import json

import pytest

from configs import ExperimentConfig, InputError, SamplerConfig
from configs.errors import choice_error
from configs.network_schema import MLPConfig, SongUNetConfig
from configs.presets import load_preset, preset_names
from configs.schema import (
    DataConfig,
    EMAConfig,
    NoiseConfig,
    OptimConfig,
    PreconditioningConfig,
    TrainingConfig,
    differing_fields,
    from_dict,
    to_dict,
)


@pytest.mark.parametrize("name", preset_names())
def test_json_and_back_is_the_identity(name):
    config = load_preset(name)
    text = json.dumps(to_dict(config))
    assert from_dict(ExperimentConfig, json.loads(text)) == config


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: DataConfig(held_out_fraction=1.0), "data.held_out_fraction"),
        (lambda: DataConfig(split_seed=-1), "data.split_seed"),
        (lambda: SongUNetConfig(model_channels=6), "network.model_channels"),
        (lambda: SongUNetConfig(channel_mult=()), "network.channel_mult"),
        (lambda: SongUNetConfig(dropout=1.0), "network.dropout"),
        (lambda: SongUNetConfig(dtype="float16"), "network.dtype"),
        (lambda: SongUNetConfig(noise_embedding_scale=0.0), "noise_embedding_scale"),
        (lambda: MLPConfig(width=3), "network.width"),
        (lambda: MLPConfig(num_layers=0), "network.num_layers"),
        (lambda: PreconditioningConfig(name="edn"), "preconditioning"),
        (lambda: PreconditioningConfig(sigma_data=0.0), "sigma_data"),
        (lambda: NoiseConfig(p_std=0.0), "noise.p_std"),
        (lambda: NoiseConfig(p_mean=float("nan")), "noise.p_mean"),
        (lambda: OptimConfig(learning_rate=float("inf")), "optim.learning_rate"),
        (lambda: OptimConfig(beta2=1.0), "optim.beta2"),
        (lambda: OptimConfig(clip_norm=0.0), "optim.clip_norm"),
        (lambda: EMAConfig(half_life_images=0), "ema.half_life_images"),
        (lambda: TrainingConfig(num_steps=0), "training.num_steps"),
        (lambda: TrainingConfig(sigma_bin_edges=(1.0, 0.5)), "sigma_bin_edges"),
        (lambda: TrainingConfig(checkpoint_every_seconds=0.0), "checkpoint_every"),
        (lambda: ExperimentConfig(seed=-1), "seed"),
        (lambda: SamplerConfig(solver="hune"), "did you mean 'heun'"),
        (lambda: SamplerConfig(sigma_max=0.001), "sampler.sigma_max"),
        (lambda: SamplerConfig(teleport=100.0), "sampler.teleport"),
        (lambda: SamplerConfig(num_points=0), "sampler.num_points"),
    ],
)
def test_values_out_of_range_are_named(build, field):
    with pytest.raises(InputError, match=field) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_preset("digits").seed = 3


def test_differing_fields_are_named_with_both_values():
    first = load_preset("digits")
    second = dataclasses.replace(first, seed=3, network=MLPConfig())
    fields = differing_fields(first, second)
    assert fields["seed"] == (0, 3)
    assert fields["network.type"] == ("SongUNetConfig", "MLPConfig")
    assert differing_fields(first, first) == {}


def test_unknown_fields_in_json_are_named():
    values = to_dict(load_preset("digits"))
    values["optim"]["learning_rat"] = 1.0
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        from_dict(ExperimentConfig, values)


def test_a_name_far_from_all_lists_what_there_is():
    assert str(choice_error("solver", "xyz", ["heun", "euler"])) == (
        "unknown solver 'xyz'; choose from euler, heun"
    )
