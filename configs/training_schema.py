"""How an experiment is trained: optimizer, averages, length, devices."""

import itertools
from dataclasses import dataclass

from configs.errors import is_positive, require, require_choice

__all__ = ["EMAConfig", "MeshConfig", "OptimConfig", "TrainingConfig"]

# The width of an average with exponent 0, the mean over all steps: sqrt(1/12).
MAX_POWER_WIDTH = 0.28


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
        require(is_positive(rate), "optim.learning_rate", rate, "a finite number > 0")
        require(
            self.warmup_images >= 0, "optim.warmup_images", self.warmup_images, ">= 0"
        )
        require(
            self.decay_images is None or self.decay_images > 0,
            "optim.decay_images",
            self.decay_images,
            "> 0 or None",
        )
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "in [0, 1)")
        require(is_positive(self.epsilon), "optim.epsilon", self.epsilon, "> 0")
        require(
            self.clip_norm is None or is_positive(self.clip_norm),
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
    power_widths: tuple[float, ...] = ()
    """Relative widths of further averages, of power-function form, from which others
    can be reconstructed after training (posthoc_ema); such as .05 .1."""
    snapshot_every_steps: int | None = None
    """Steps between two snapshots of those averages; None: checkpoint_every_steps."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            self.half_life_images > 0,
            "ema.half_life_images",
            self.half_life_images,
            "> 0",
        )
        require(
            self.ramp_fraction is None or is_positive(self.ramp_fraction),
            "ema.ramp_fraction",
            self.ramp_fraction,
            "> 0 or None",
        )
        widths = tuple(self.power_widths)
        require(
            all(0 < width < MAX_POWER_WIDTH for width in widths)
            and len(set(widths)) == len(widths),
            "ema.power_widths",
            widths,
            f"different numbers in (0, {MAX_POWER_WIDTH})",
        )
        require(
            self.snapshot_every_steps is None or self.snapshot_every_steps > 0,
            "ema.snapshot_every_steps",
            self.snapshot_every_steps,
            "> 0 or None",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, how often to log and to save."""

    num_steps: int = 1000
    """Optimizer steps in all; raise it to train a finished run further."""
    batch_size: int = 128
    """Images per step, over all devices."""
    accumulation: int = 1
    """Parts in which a batch's gradient is computed, one after the other: less memory,
    the same result."""
    steps_per_dispatch: int = 1
    """Steps that the device takes at a time without the host; pays for small networks.
    log_every_steps, checkpoint_every_steps and num_steps must be multiples of it."""
    max_skipped_steps: int = 10
    """A step whose gradient is not finite changes nothing; training stops when more
    than so many follow one another."""
    log_every_steps: int = 50
    """Steps between two rows of metrics.jsonl."""
    sigma_bin_edges: tuple[float, ...] = (0.05, 0.2, 1.0, 5.0, 20.0)
    """Losses are reported per bin of sigma between these edges."""
    uncertainty_weighting: bool = False
    """Divide the loss by a learned exp(u(sigma)) and add u (arXiv 2312.02696)."""
    evaluation_images: int = 512
    """Most images of either side of the split that a loss is evaluated on."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints that are kept for good."""
    checkpoint_every_seconds: float = 300.0
    """A checkpoint is also written once this much time has passed since the last."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept besides those kept for good."""
    tensorboard: bool = False
    """Write scalars to workdir/tensorboard too; needs tensorboardX."""
    dtype: str = "float32"
    """Type of parameters, images and noise: float32, or float64, which is for proofs
    and needs JAX_ENABLE_X64=1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in (
            "num_steps",
            "batch_size",
            "log_every_steps",
            "evaluation_images",
            "checkpoint_every_steps",
            "accumulation",
            "steps_per_dispatch",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            require(value > 0, f"training.{name}", value, "> 0")
        require(
            self.batch_size % self.accumulation == 0,
            "training.accumulation",
            self.accumulation,
            f"a divisor of training.batch_size = {self.batch_size}",
        )
        unit = self.steps_per_dispatch
        for name in ("log_every_steps", "checkpoint_every_steps", "num_steps"):
            value = getattr(self, name)
            require(
                value % unit == 0,
                f"training.{name}",
                value,
                f"a multiple of training.steps_per_dispatch = {unit}",
            )
        require(
            self.max_skipped_steps >= 0,
            "training.max_skipped_steps",
            self.max_skipped_steps,
            ">= 0",
        )
        require_choice("training.dtype", self.dtype, ("float32", "float64"))
        require(
            self.checkpoint_every_seconds > 0,
            "training.checkpoint_every_seconds",
            self.checkpoint_every_seconds,
            "> 0",
        )
        edges = self.sigma_bin_edges
        increasing = all(a < b for a, b in itertools.pairwise(edges))
        require(
            bool(edges) and all(map(is_positive, edges)) and increasing,
            "training.sigma_bin_edges",
            edges,
            "positive and increasing",
        )


@dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work; results do not depend on it."""

    fsdp: int = 1
    """Devices over which parameters and optimizer state are divided, for networks that
    do not fit on one; a divisor of the number of devices. Batches are divided over all
    devices in any case."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.fsdp > 0, "mesh.fsdp", self.fsdp, "> 0")
