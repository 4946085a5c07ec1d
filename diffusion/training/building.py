"""From a configuration to the parts of a training problem."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from configs.errors import InputError
from configs.schema import ExperimentConfig
from diffusion.augmentation import ScoreAugmentation, build_augmentation
from diffusion.closed_form import (
    GaussianDenoiser,
    accumulate_moments,
    fit_gaussian_streaming,
    load_gaussian,
    principal_components,
    save_gaussian,
)
from diffusion.data import Split
from diffusion.gaussian_preconditioning import GaussianPreconditioning
from diffusion.networks import build_network
from diffusion.networks.functional import ModuleNetwork
from diffusion.noise import LogNormal, LogUniform, NoiseLaw, VPUniform
from diffusion.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    Preconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from diffusion.training.noisy_batch import Problem
from diffusion.training.record import Record

__all__ = [
    "build_problem",
    "build_run_network",
    "fit_preconditioning",
    "fit_training_gaussian",
    "load_preconditioning",
    "num_classes",
]

PRECONDITIONING_FILE = "preconditioning.npz"
# A covariance of 12,288 x 12,288 (64x64 in colour) takes ten minutes and 9 GiB on two
# cores; of such images the leading directions are found without it.
_LARGEST_COVARIANCE = 4096
_RANK_OF_LARGE = 256
_BLOCK = 4096


def build_problem(config: ExperimentConfig, event_shape: tuple[int, ...]) -> Problem:
    """Return what is learned.

    Raises:
        InputError: If the network cannot take samples of this shape.
    """
    if config.preconditioning.name == "ddpm":
        raise InputError(
            "preconditioning ddpm is for imported networks, which are not trained "
            "here; choose vp, which is the same noise predictor at all levels"
        )
    network = build_run_network(config, event_shape)
    noise: NoiseLaw = LogNormal(config.noise.p_mean, config.noise.p_std)
    if config.noise.law == "vp":
        noise = VPUniform()
    elif config.noise.law == "ve":
        noise = LogUniform()
    inverse_square = config.noise.law in ("vp", "ve")
    return Problem(
        network,
        noise,
        inverse_square_weight=inverse_square,
        num_classes=num_classes(config),
        augmentation=_augmentation(config, event_shape),
        horizontal_flip=config.data.horizontal_flip,
    )


def _augmentation(
    config: ExperimentConfig, event_shape: tuple[int, ...]
) -> ScoreAugmentation | None:
    """Return the augmentation, once it is known to fit images and network."""
    augmentation = build_augmentation(config.augmentation)
    if augmentation is None:
        return None
    if config.preconditioning.name == "gaussian":
        raise InputError(
            "preconditioning gaussian is of images as they are, but augmentation.mode "
            f"is {config.augmentation.mode}; use preconditioning edm with augmentation"
        )
    needed = augmentation.condition_size(event_shape)
    given = getattr(config.network, "augment_dim", None)
    if given is None and needed:
        raise InputError(
            f"{type(config.network).__name__.removesuffix('Config')} has no input for "
            f"the condition of {needed} numbers; set --augmentation.condition False or "
            "choose another network"
        )
    if needed and given != needed:
        raise InputError(
            f"the augmentation's condition has {needed} numbers, but "
            f"network.augment_dim is {given}; set --network.augment-dim {needed} or "
            "--augmentation.condition False"
        )
    return augmentation


def num_classes(config: ExperimentConfig) -> int:
    """Return how many classes the network is told apart by; 0 for none."""
    return getattr(config.network, "label_dim", 0)


def build_run_network(
    config: ExperimentConfig, event_shape: tuple[int, ...]
) -> ModuleNetwork:
    """Return the network of an experiment; iDDPM's has a variance head besides."""
    factor = 2 if config.preconditioning.name == "iddpm" else 1
    return build_network(config.network, event_shape, output_factor=factor)


def fit_preconditioning(config: ExperimentConfig, split: Split, workdir: Path) -> None:
    """Write the Gaussian of a Gaussian preconditioning, unless it is there.

    It is fitted to what the network will see: with horizontal flips, to the training
    images and their mirror images.

    Raises:
        InputError: If all training images are equal, or the file is of other images.
        OSError: If it cannot be written.
    """
    path = workdir / PRECONDITIONING_FILE
    if config.preconditioning.name != "gaussian":
        return
    images = split.training.images
    if path.exists():
        load_gaussian(path, event_shape=images.shape[1:], data_digest=split.digest)
        return
    flip = config.data.horizontal_flip
    gaussian = fit_training_gaussian(
        images, flip=flip, rank=config.preconditioning.rank
    )
    if not float(gaussian.variances.sum()) > 0:
        raise InputError(
            "the training images are all equal, so a Gaussian leaves nothing to learn; "
            "use other data, or another preconditioning"
        )
    num_images = len(images) * (1 + flip)
    save_gaussian(path, gaussian, num_images=num_images, data_digest=split.digest)


def fit_training_gaussian(
    images: np.ndarray, *, flip: bool = False, rank: int | None = None
) -> GaussianDenoiser:
    """Return the Gaussian of training images, a block of them in memory at a time.

    Args:
        images: (N, *event), memory maps too.
        flip: Whether mirror images count as well, as with horizontal flips.
        rank: Principal directions kept; None keeps all, or 256 of images with more than
            4,096 values, whose covariance is never formed.

    Raises:
        InputError: If a value is not finite.
    """

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK]
            yield block
            if flip:
                yield block[:, :, ::-1]

    size = math.prod(images.shape[1:])
    if size > _LARGEST_COVARIANCE:
        return fit_gaussian_streaming(batches, min(rank or _RANK_OF_LARGE, size))
    kept = None if rank is None or rank >= size else rank
    return principal_components(accumulate_moments(batches()), kept)


def load_preconditioning(record: Record, workdir: str | Path) -> Preconditioning:
    """Return a run's preconditioning.

    Raises:
        InputError: If the Gaussian's file is missing, damaged or of other images.
    """
    name = record.config.preconditioning.name
    if name == "gaussian":
        gaussian = load_gaussian(
            Path(workdir) / PRECONDITIONING_FILE,
            event_shape=record.event_shape,
            data_digest=record.data_digest,
        )
        return GaussianPreconditioning(gaussian)
    simple = {
        "vp": VPPreconditioning(),
        "ve": VEPreconditioning(),
        "iddpm": IDDPMPreconditioning(),
    }
    return simple.get(name) or EDMPreconditioning(record.sigma_data)
