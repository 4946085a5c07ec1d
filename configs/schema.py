"""The fields of an experiment, with unit, default and allowed range.

A configuration is a tree of frozen dataclasses.  Each one checks its own ranges when it
is made, so an experiment that exists is one that can run.  `to_dict` and `from_dict`
carry it through ``workdir/config.json`` and back without loss.
"""

import dataclasses
import itertools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from configs.errors import InputError, choice_error

__all__ = [
    "DataConfig",
    "EMAConfig",
    "ExperimentConfig",
    "MLPConfig",
    "NetworkConfig",
    "NoiseConfig",
    "OptimConfig",
    "PreconditioningConfig",
    "SamplerConfig",
    "SongUNetConfig",
    "TrainingConfig",
    "differing_fields",
    "from_dict",
    "to_dict",
]

SOLVERS = ("euler", "heun")
SCHEDULES = ("karras", "log_linear")
PRECONDITIONINGS = ("edm",)
DTYPES = ("float32", "bfloat16")


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value!r}; it must be {allowed}")


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise choice_error(name, value, allowed)


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@dataclass(frozen=True)
class DataConfig:
    """Which images, and which of them are held out."""

    name: str = "digits"
    """Built-in data set: digits or mixture2d."""
    held_out_fraction: float = 0.2
    """Share of the images that training never sees, in [0, 1)."""
    split_seed: int = 0
    """Seed of the random split into training and held-out images."""
    horizontal_flip: bool = False
    """Mirror each training image with probability one half."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(
            0 <= self.held_out_fraction < 1,
            "data.held_out_fraction",
            self.held_out_fraction,
            "in [0, 1)",
        )
        _require(self.split_seed >= 0, "data.split_seed", self.split_seed, ">= 0")


@dataclass(frozen=True)
class SongUNetConfig:
    """The DDPM++ U-Net (arXiv 2011.13456 as used in arXiv 2206.00364)."""

    model_channels: int = 128
    """Channels at full resolution; a multiple of 4."""
    channel_mult: tuple[int, ...] = (2, 2, 2)
    """Channel multiplier of each resolution, finest first."""
    num_blocks: int = 4
    """Residual blocks per resolution in the encoder (one more in the decoder)."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image heights at which blocks carry self-attention."""
    noise_embedding_scale: float = 1.0
    """c_noise is multiplied by this before its sines and cosines; 1 as published."""
    adaptive_scale: bool = False
    """Let the noise level scale and shift features, as in ADM; False as published."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training, in [0, 1)."""
    label_dim: int = 0
    """Number of classes; 0 for an unconditional network."""
    condition_dim: int = 0
    """Length of the augmentation condition; 0 for none."""
    dtype: str = "float32"
    """Type of the network's arithmetic: float32 or bfloat16."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        c, mult = self.model_channels, self.channel_mult
        _require(c > 0 and c % 4 == 0, "network.model_channels", c, "a multiple of 4")
        _require(
            bool(mult) and all(m > 0 for m in mult),
            "network.channel_mult",
            mult,
            "one or more positive integers",
        )
        _require(self.num_blocks > 0, "network.num_blocks", self.num_blocks, "> 0")
        _require(
            _positive(self.noise_embedding_scale),
            "network.noise_embedding_scale",
            self.noise_embedding_scale,
            "a finite number > 0",
        )
        _require(0 <= self.dropout < 1, "network.dropout", self.dropout, "in [0, 1)")
        _require(self.label_dim >= 0, "network.label_dim", self.label_dim, ">= 0")
        _require(
            self.condition_dim >= 0, "network.condition_dim", self.condition_dim, ">= 0"
        )
        _require_choice("network.dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class MLPConfig:
    """A residual perceptron for points and other small vectors."""

    width: int = 128
    """Hidden units per layer; even."""
    num_layers: int = 4
    """Hidden layers."""
    dtype: str = "float32"
    """Type of the network's arithmetic: float32 or bfloat16."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(
            self.width >= 4 and self.width % 2 == 0,
            "network.width",
            self.width,
            "even and at least 4",
        )
        _require(self.num_layers > 0, "network.num_layers", self.num_layers, "> 0")
        _require_choice("network.dtype", self.dtype, DTYPES)


NetworkConfig = SongUNetConfig | MLPConfig


@dataclass(frozen=True)
class PreconditioningConfig:
    """How the network's output becomes a denoiser."""

    name: str = "edm"
    """Preconditioning: edm."""
    sigma_data: float | None = None
    """Standard deviation of the data; None measures it on the training images."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_choice("preconditioning", self.name, PRECONDITIONINGS)
        _require(
            self.sigma_data is None or _positive(self.sigma_data),
            "preconditioning.sigma_data",
            self.sigma_data,
            "> 0, or None to measure it",
        )


@dataclass(frozen=True)
class NoiseConfig:
    """The law of sigma in training: log sigma is normal."""

    p_mean: float = -1.2
    """Mean of log sigma."""
    p_std: float = 1.2
    """Standard deviation of log sigma."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(math.isfinite(self.p_mean), "noise.p_mean", self.p_mean, "finite")
        _require(_positive(self.p_std), "noise.p_std", self.p_std, "> 0")


@dataclass(frozen=True)
class OptimConfig:
    """Adam and its learning rate."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_images: int = 10_000_000
    """Images over which the learning rate rises linearly from 0; 0 for none."""
    decay_images: int | None = None
    """Beyond this many images the rate falls as 1/sqrt(images); None keeps it."""
    beta1: float = 0.9
    """Adam's decay of the first moment, in [0, 1)."""
    beta2: float = 0.999
    """Adam's decay of the second moment, in [0, 1)."""
    epsilon: float = 1e-8
    """Adam's denominator offset."""
    clip_norm: float | None = None
    """Largest global gradient norm per image; None clips nothing."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        rate = self.learning_rate
        _require(_positive(rate), "optim.learning_rate", rate, "a finite number > 0")
        _require(
            self.warmup_images >= 0, "optim.warmup_images", self.warmup_images, ">= 0"
        )
        _require(
            self.decay_images is None or self.decay_images > 0,
            "optim.decay_images",
            self.decay_images,
            "> 0 or None",
        )
        _require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "in [0, 1)")
        _require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "in [0, 1)")
        _require(_positive(self.epsilon), "optim.epsilon", self.epsilon, "> 0")
        _require(
            self.clip_norm is None or _positive(self.clip_norm),
            "optim.clip_norm",
            self.clip_norm,
            "> 0 or None",
        )


@dataclass(frozen=True)
class EMAConfig:
    """The exponential moving average of the parameters."""

    half_life_images: int = 500_000
    """Images after which a parameter's weight in the average has halved."""
    ramp_fraction: float | None = 0.05
    """The half-life is at most this share of the images seen; None for no ramp."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(
            self.half_life_images > 0,
            "ema.half_life_images",
            self.half_life_images,
            "> 0",
        )
        _require(
            self.ramp_fraction is None or _positive(self.ramp_fraction),
            "ema.ramp_fraction",
            self.ramp_fraction,
            "> 0 or None",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, how often to log and to save."""

    num_steps: int = 1000
    """Optimizer steps in all; raise it to train a finished run further."""
    batch_size: int = 128
    """Images per step."""
    log_every_steps: int = 50
    """Steps between two rows of metrics.jsonl."""
    sigma_bin_edges: tuple[float, ...] = (0.05, 0.2, 1.0, 5.0, 20.0)
    """Losses are reported per bin of sigma between these edges."""
    evaluation_images: int = 512
    """Most images of either side of the split that a loss is evaluated on."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints that are kept for good."""
    checkpoint_every_seconds: float = 300.0
    """A checkpoint is also written once this much time has passed since the last."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in (
            "num_steps",
            "batch_size",
            "log_every_steps",
            "evaluation_images",
            "checkpoint_every_steps",
        ):
            value = getattr(self, name)
            _require(value > 0, f"training.{name}", value, "> 0")
        _require(
            self.checkpoint_every_seconds > 0,
            "training.checkpoint_every_seconds",
            self.checkpoint_every_seconds,
            "> 0",
        )
        edges = self.sigma_bin_edges
        increasing = all(a < b for a, b in itertools.pairwise(edges))
        _require(
            bool(edges) and all(map(_positive, edges)) and increasing,
            "training.sigma_bin_edges",
            edges,
            "positive and increasing",
        )


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that `diffusion.training.train` needs to know."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=SongUNetConfig)
    preconditioning: PreconditioningConfig = field(
        default_factory=PreconditioningConfig
    )
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    """Seed of initialisation, batches and noise."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2**32)")


@dataclass(frozen=True)
class SamplerConfig:
    """How noise becomes images."""

    solver: str = "heun"
    """Solver: euler or heun."""
    schedule: str = "karras"
    """Noise grid: karras or log_linear."""
    num_points: int = 18
    """Points of the grid from sigma_max to sigma_min."""
    sigma_min: float = 0.002
    """Last point of the grid, in data units."""
    sigma_max: float = 80.0
    """First point of the grid, in data units."""
    rho: float = 7.0
    """Exponent of the karras grid."""
    teleport: float | None = None
    """Start at the first grid point at or below this sigma, moved there by the Gaussian
    of the training images; None starts at sigma_max."""
    gaussian: str | None = None
    """File with the Gaussian to teleport with; None uses workdir/gaussian.npz."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_choice("solver", self.solver, SOLVERS)
        _require_choice("schedule", self.schedule, SCHEDULES)
        _require(self.num_points > 0, "sampler.num_points", self.num_points, "> 0")
        _require(_positive(self.sigma_min), "sampler.sigma_min", self.sigma_min, "> 0")
        _require(
            math.isfinite(self.sigma_max) and self.sigma_max > self.sigma_min,
            "sampler.sigma_max",
            self.sigma_max,
            f"above sigma_min = {self.sigma_min}",
        )
        _require(_positive(self.rho), "sampler.rho", self.rho, "> 0")
        _require(
            self.teleport is None or self.sigma_min <= self.teleport <= self.sigma_max,
            "sampler.teleport",
            self.teleport,
            f"in [{self.sigma_min}, {self.sigma_max}] or None",
        )


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
