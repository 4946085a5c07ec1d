"""The fields of an experiment, with unit, default and allowed range.

A configuration is a tree of frozen dataclasses.  Each one checks its own ranges when it
is made, so an experiment that exists is one that can run.  `to_dict` and `from_dict`
carry it through ``workdir/config.json`` and back without loss.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from configs.augmentation_schema import AugmentationConfig
from configs.errors import (
    choice_error,
    is_positive,
    require,
    require_choice,
)
from configs.network_schema import NetworkConfig, SongUNetConfig
from configs.sampler_schema import GenerationConfig, SamplerConfig
from configs.training_schema import EMAConfig, MeshConfig, OptimConfig, TrainingConfig

__all__ = [
    "AugmentationConfig",
    "DataConfig",
    "EMAConfig",
    "ExperimentConfig",
    "GenerationConfig",
    "MeshConfig",
    "NoiseConfig",
    "OptimConfig",
    "PreconditioningConfig",
    "SamplerConfig",
    "TrainingConfig",
    "differing_fields",
    "from_dict",
    "to_dict",
]

PRECONDITIONINGS = ("edm", "vp", "ve", "iddpm", "gaussian", "ddpm")
NOISE_LAWS = ("log_normal", "vp", "ve")
PLACEMENTS = ("auto", "replicated", "sharded", "streamed")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and which of them are held out."""

    name: str = "digits"
    """Built-in data set (digits, glyphs or mixture2d), name of a set that prepare_data
    has packed, or path of a packed set or of an image archive."""
    data_dir: str = "data"
    """Folder that prepare_data has written to."""
    image_shape: tuple[int, ...] | None = None
    """Shape of one sample, such as 32 32 3; None takes what the data have."""
    held_out_fraction: float = 0.2
    """Share of the images that training never sees, in [0, 1); a packed set was split
    when it was prepared."""
    split_seed: int = 0
    """Seed of the random split into training and held-out images."""
    max_images: int | None = None
    """Train on so many images only, a random subset; None for all."""
    horizontal_flip: bool = False
    """Mirror each training image with probability one half."""
    placement: str = "auto"
    """Where the images lie in training: replicated (on every device), sharded (over the
    devices), streamed (on disk or in host memory); auto takes the first that fits."""
    device_budget_gib: float = 4.0
    """auto: device memory that images may take, GiB for each device."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            0 <= self.held_out_fraction < 1,
            "data.held_out_fraction",
            self.held_out_fraction,
            "in [0, 1)",
        )
        require(self.split_seed >= 0, "data.split_seed", self.split_seed, ">= 0")
        require(
            self.max_images is None or self.max_images > 0,
            "data.max_images",
            self.max_images,
            "> 0 or None",
        )
        require_choice("data.placement", self.placement, PLACEMENTS)
        require(
            is_positive(self.device_budget_gib),
            "data.device_budget_gib",
            self.device_budget_gib,
            "> 0",
        )
        shape = self.image_shape
        require(
            shape is None or (len(shape) > 0 and min(shape) > 0),
            "data.image_shape",
            shape,
            "one or more positive integers, or None",
        )


@dataclass(frozen=True)
class PreconditioningConfig:
    """How the network's output becomes a denoiser."""

    name: str = "edm"
    """edm, vp, ve, iddpm, gaussian (the closed form of the training images takes the
    place of a multiple of x), or ddpm (imported noise predictors; not for training)."""
    sigma_data: float | None = None
    """edm: standard deviation of the data; None measures it on the training images."""
    rank: int | None = 128
    """gaussian: principal directions kept; None keeps all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_choice("preconditioning", self.name, PRECONDITIONINGS)
        require(
            self.sigma_data is None or is_positive(self.sigma_data),
            "preconditioning.sigma_data",
            self.sigma_data,
            "> 0, or None to measure it",
        )
        require(
            self.rank is None or self.rank > 0,
            "preconditioning.rank",
            self.rank,
            "> 0 or None",
        )


@dataclass(frozen=True)
class NoiseConfig:
    """The law of sigma in training."""

    law: str = "log_normal"
    """log_normal (EDM), vp (uniform in the time of the VP process) or ve (log-uniform
    between .02 and 100)."""
    p_mean: float = -1.2
    """log_normal: mean of log sigma."""
    p_std: float = 1.2
    """log_normal: standard deviation of log sigma."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_choice("noise.law", self.law, NOISE_LAWS)
        require(math.isfinite(self.p_mean), "noise.p_mean", self.p_mean, "finite")
        require(is_positive(self.p_std), "noise.p_std", self.p_std, "> 0")


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that `diffusion.training.train` needs to know."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=SongUNetConfig)
    preconditioning: PreconditioningConfig = field(
        default_factory=PreconditioningConfig
    )
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0
    """Seed of initialisation, batches and noise."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2**32)")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain nested dicts, ready for JSON.

    A field whose type is a union of dataclasses carries the chosen class's name under
    ``"type"``.

    Args:
        config: Any dataclass of this module.

    Returns:
        Nested dicts of numbers, strings, booleans, lists and None.
    """
    result: dict[str, Any] = {}
    annotations = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            inner = to_dict(value)
            if isinstance(annotations[item.name], types.UnionType):
                inner = {"type": type(value).__name__, **inner}
            value = inner
        elif isinstance(value, tuple):
            value = list(value)
        result[item.name] = value
    return result


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Rebuild a configuration from `to_dict`'s result.

    Args:
        cls: The dataclass to build, such as `ExperimentConfig`.
        values: Nested dicts as written by `to_dict`.

    Returns:
        An instance of `cls`.

    Raises:
        InputError: If a name is unknown or a value is outside its range.
    """
    annotations = typing.get_type_hints(cls)
    names = {item.name for item in dataclasses.fields(cls)}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise choice_error(f"field of {cls.__name__}", name, names)
        if isinstance(value, dict):
            value = _nested(annotations[name], value)
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return cls(**arguments)


def _nested(annotation: Any, value: dict[str, Any]) -> Any:
    if not isinstance(annotation, types.UnionType):
        return from_dict(annotation, value)
    members = {member.__name__: member for member in typing.get_args(annotation)}
    chosen = str(value.get("type"))
    if chosen not in members:
        raise choice_error("type", chosen, members)
    rest = {key: item for key, item in value.items() if key != "type"}
    return from_dict(members[chosen], rest)


def differing_fields(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    """Return the leaves in which two configurations differ.

    Args:
        first: A configuration.
        second: Another one.

    Returns:
        ``{"optim.learning_rate": (0.001, 0.002), ...}``, empty when they are equal.
    """
    a, b = _flatten(to_dict(first)), _flatten(to_dict(second))
    return {
        name: (a.get(name), b.get(name))
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves.update(_flatten(value, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = value
    return leaves
