"""CIFAR-10 with Score Augmentation in the place of EDM's augmentation.

Command:   python -m diffusion.prepare_data cifar10 --source cifar-10-binary.tar.gz
           python -m diffusion.train cifar10_scoreaug
Data:      as cifar10
Hardware:  as cifar10
Expected:  not yet run here; the authors report FID 2.35 where EDM with its own
           augmentation has 2.07 and without any 4.05 (arXiv 2508.07926, table 1); their
           tables differ by .1 for the same setting

One of brightness, translation, cutout and a turn by 90 degrees, or nothing, each as
likely, is done to the noisy image, and the network predicts the clean image after the
same.  Half of the images are mirrored besides, which EDM leaves to its augmentation: a
comparison with other numbers must say how they mirror.  The paper's ranges are not
known; those here are options (`configs.augmentation_schema`).

Variants:  cifar10_scoreaug:nobright   without brightness, which in the authors'
                                       ablation is better
           cifar10_scoreaug:both       EDM's augmentation on the clean image, then Score
                                       Augmentation on the noisy one
           cifar10_scoreaug:small_gpu  bfloat16 and batches in 8 parts, for 8 GiB
           cifar10_scoreaug:cpu        the network and data of cifar10_5k:cpu
"""

import dataclasses

from configs import cifar10, cifar10_5k
from configs.schema import AugmentationConfig, ExperimentConfig

__all__ = ["config", "variants"]


def _augmented(
    base: ExperimentConfig, augmentation: AugmentationConfig, size: int
) -> ExperimentConfig:
    """Return `base` with an augmentation whose condition has `size` numbers."""
    return dataclasses.replace(
        base,
        data=dataclasses.replace(
            base.data, horizontal_flip=augmentation.mode != "nla+score"
        ),
        network=dataclasses.replace(base.network, augment_dim=size),
        augmentation=augmentation,
    )


_linear = AugmentationConfig(mode="score", transforms=("scoreaug-linear",))

config = _augmented(cifar10.config, _linear, 11)

variants = {
    "nobright": _augmented(
        cifar10.config,
        AugmentationConfig(mode="score", transforms=("scoreaug-nobright",)),
        9,
    ),
    "both": _augmented(
        cifar10.config,
        AugmentationConfig(
            mode="nla+score",
            transforms=("scoreaug-linear",),
            nla_transforms=("edm-nla:.12",),
        ),
        20,
    ),
    "small_gpu": _augmented(cifar10.variants["small_gpu"], _linear, 11),
    "cpu": _augmented(cifar10_5k.variants["cpu"], _linear, 11),
}
