"""The settings of each network architecture."""

from dataclasses import dataclass

from configs.errors import is_positive, require, require_choice

__all__ = [
    "DDPMUNetConfig",
    "DhariwalUNetConfig",
    "MLPConfig",
    "NetworkConfig",
    "SongUNetConfig",
]

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class SongUNetConfig:
    """The DDPM++ and NCSN++ U-Nets (arXiv 2011.13456 as used in arXiv 2206.00364)."""

    model_channels: int = 128
    """Channels at full resolution; a multiple of 4."""
    channel_mult: tuple[int, ...] = (2, 2, 2)
    """Channel multiplier of each resolution, finest first."""
    num_blocks: int = 4
    """Residual blocks per resolution in the encoder (one more in the decoder)."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image heights at which blocks carry self-attention."""
    encoder: str = "standard"
    """standard (DDPM++) or residual (NCSN++: the image is brought down beside it)."""
    embedding: str = "positional"
    """Of the noise level: positional (DDPM++) or fourier (NCSN++)."""
    noise_channel_mult: int = 1
    """Length of the noise embedding in model_channels; 1 for DDPM++, 2 for NCSN++."""
    noise_embedding_scale: float = 1.0
    """c_noise is multiplied by this before its sines and cosines; 1 as published."""
    resample_filter: tuple[int, ...] = (1, 1)
    """Filter of changes of resolution; 1 1 for DDPM++, 1 3 3 1 for NCSN++."""
    adaptive_scale: bool = False
    """Let the noise level scale and shift features, as in ADM; False as published."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training, in [0, 1)."""
    label_dim: int = 0
    """Number of classes; 0 for an unconditional network."""
    label_dropout: float = 0.0
    """Probability that a training image's label is zeroed, in [0, 1)."""
    augment_dim: int = 0
    """Length of the augmentation condition; 0 for none."""
    checkpoint_blocks: bool = False
    """Recompute each block in the gradient: less memory, a third more time."""
    dtype: str = "float32"
    """Type of the network's arithmetic: float32 or bfloat16."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_unet(self)
        require_choice("network.encoder", self.encoder, ("residual", "standard"))
        require_choice("network.embedding", self.embedding, ("fourier", "positional"))
        require(
            self.noise_channel_mult > 0,
            "network.noise_channel_mult",
            self.noise_channel_mult,
            "> 0",
        )
        require(
            is_positive(self.noise_embedding_scale),
            "network.noise_embedding_scale",
            self.noise_embedding_scale,
            "a finite number > 0",
        )
        taps = tuple(self.resample_filter)
        require(
            len(taps) > 0
            and len(taps) % 2 == 0
            and taps == taps[::-1]
            and min(taps) > 0,
            "network.resample_filter",
            taps,
            "a symmetric filter of an even number of positive integers",
        )


@dataclass(frozen=True)
class DhariwalUNetConfig:
    """The ADM U-Net (arXiv 2105.05233 as used in arXiv 2206.00364)."""

    model_channels: int = 192
    """Channels at full resolution; a multiple of 4."""
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Channel multiplier of each resolution, finest first."""
    num_blocks: int = 3
    """Residual blocks per resolution in the encoder (one more in the decoder)."""
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    """Image heights at which blocks carry self-attention."""
    channels_per_head: int = 64
    """Channels of one attention head."""
    dropout: float = 0.1
    """Probability that a feature is dropped in training, in [0, 1)."""
    label_dim: int = 0
    """Number of classes; 0 for an unconditional network."""
    label_dropout: float = 0.0
    """Probability that a training image's label is zeroed, in [0, 1)."""
    augment_dim: int = 0
    """Length of the augmentation condition; 0 for none."""
    checkpoint_blocks: bool = False
    """Recompute each block in the gradient: less memory, a third more time."""
    dtype: str = "float32"
    """Type of the network's arithmetic: float32 or bfloat16."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_unet(self)
        require(
            self.channels_per_head > 0,
            "network.channels_per_head",
            self.channels_per_head,
            "> 0",
        )


@dataclass(frozen=True)
class MLPConfig:
    """A residual perceptron for points and other small vectors."""

    width: int = 128
    """Hidden units per layer; even."""
    num_layers: int = 4
    """Hidden layers."""
    adaptive_scale: bool = False
    """Normalise what enters a layer, and let the noise level scale and shift its
    features instead of only shifting them."""
    augment_dim: int = 0
    """Length of the augmentation condition; 0 for none."""
    dtype: str = "float32"
    """Type of the network's arithmetic: float32 or bfloat16."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            self.width >= 4 and self.width % 2 == 0,
            "network.width",
            self.width,
            "even and at least 4",
        )
        require(self.num_layers > 0, "network.num_layers", self.num_layers, "> 0")
        require(self.augment_dim >= 0, "network.augment_dim", self.augment_dim, ">= 0")
        require_choice("network.dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class DDPMUNetConfig:
    """DDPM's U-Net (arXiv 2006.11239) in the layout of imported checkpoints."""

    block_channels: tuple[int, ...] = (128, 256, 256, 256)
    """Channels of each resolution, finest first."""
    num_blocks: int = 2
    """Residual blocks per resolution on the way down (one more on the way up)."""
    attention_down: tuple[bool, ...] = (False, True, False, False)
    """Which resolutions have attention on the way down, finest first."""
    attention_up: tuple[bool, ...] = (False, False, True, False)
    """Which have it on the way up, coarsest first."""
    channels_per_head: int | None = None
    """Channels of one attention head; None for a single head."""
    num_groups: int = 32
    """Groups of each norm."""
    epsilon: float = 1e-6
    """Added to the variance in each norm."""
    flip_sin_to_cos: bool = False
    """Cosines of the time come before its sines."""
    frequency_shift: float = 1.0
    """Frequencies are 10000**(-i / (n - shift)), i < n."""
    downsample_padding: int = 0
    """Padding of strided convolutions; 0 pads one row below and one column right."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training, in [0, 1)."""
    dtype: str = "float32"
    """Type of the network's arithmetic: float32 or bfloat16."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        c, groups = self.block_channels, self.num_groups
        require(groups > 0, "network.num_groups", groups, "> 0")
        require(
            bool(c) and all(n > 0 and n % groups == 0 for n in c),
            "network.block_channels",
            c,
            f"one or more multiples of num_groups = {groups}",
        )
        for name in ("attention_down", "attention_up"):
            value = getattr(self, name)
            require(len(value) == len(c), f"network.{name}", value, f"{len(c)} of them")
        require(self.num_blocks > 0, "network.num_blocks", self.num_blocks, "> 0")
        require(0 <= self.dropout < 1, "network.dropout", self.dropout, "in [0, 1)")
        require_choice("network.dtype", self.dtype, DTYPES)


NetworkConfig = SongUNetConfig | DhariwalUNetConfig | DDPMUNetConfig | MLPConfig


def _require_unet(config: SongUNetConfig | DhariwalUNetConfig) -> None:
    """Check what the U-Nets have in common."""
    c, mult = config.model_channels, config.channel_mult
    require(c > 0 and c % 4 == 0, "network.model_channels", c, "a multiple of 4")
    require(
        bool(mult) and all(m > 0 for m in mult),
        "network.channel_mult",
        mult,
        "one or more positive integers",
    )
    require(config.num_blocks > 0, "network.num_blocks", config.num_blocks, "> 0")
    for name in ("dropout", "label_dropout"):
        value = getattr(config, name)
        require(
            0 <= value < 1,
            f"network.{name}",
            value,
            "in [0, 1)",
        )
    for name in ("label_dim", "augment_dim"):
        value = getattr(config, name)
        require(value >= 0, f"network.{name}", value, ">= 0")
    require_choice("network.dtype", config.dtype, DTYPES)
