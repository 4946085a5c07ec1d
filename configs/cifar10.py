"""Unconditional CIFAR-10, the main experiment of EDM (DDPM++).

Command:   python -m diffusion.prepare_data cifar10 --source cifar-10-binary.tar.gz
           python -m diffusion.train cifar10
Data:      CIFAR-10's 50,000 training images of 32x32 pixels; the test images held out
Hardware:  8 V100, about 2 days, in the reference implementation
Expected:  not yet run here; the authors report FID 1.97 with
           35 network calls per image
           (arXiv 2206.00364, table 2)

Hyper-parameters are EDM's (arXiv 2206.00364, table 7), and so is the augmentation: its
pipe with p = .12, which mirrors half of the images and says so in the condition.

Variants:  cifar10:cond       class-conditional
           cifar10:ve         NCSN++ instead of DDPM++ (called "VE" in EDM's tables)
           cifar10:cond_ve    both
           cifar10:small_gpu  bfloat16 and batches in 8 parts, for 8 GiB; not yet run
"""

import dataclasses

from configs.network_schema import SongUNetConfig
from configs.schema import (
    AugmentationConfig,
    DataConfig,
    EMAConfig,
    ExperimentConfig,
    OptimConfig,
    PreconditioningConfig,
    TrainingConfig,
)

__all__ = ["config", "variants"]

config = ExperimentConfig(
    data=DataConfig(
        name="cifar10",
        image_shape=(32, 32, 3),
        held_out_fraction=0.0,
    ),
    network=SongUNetConfig(dropout=0.13, augment_dim=9),
    preconditioning=PreconditioningConfig(sigma_data=0.5),
    augmentation=AugmentationConfig(mode="nla", transforms=("edm-nla:.12",)),
    optim=OptimConfig(learning_rate=1e-3, warmup_images=10_000_000),
    ema=EMAConfig(half_life_images=500_000),
    training=TrainingConfig(
        num_steps=390_625,
        batch_size=512,
        log_every_steps=100,
        checkpoint_every_steps=4_882,
        checkpoint_every_seconds=1800.0,
    ),
)

_ncsnpp = dataclasses.replace(
    config.network,
    encoder="residual",
    embedding="fourier",
    noise_channel_mult=2,
    resample_filter=(1, 3, 3, 1),
)
variants = {
    "cond": dataclasses.replace(
        config, network=dataclasses.replace(config.network, label_dim=10)
    ),
    "ve": dataclasses.replace(config, network=_ncsnpp),
    "cond_ve": dataclasses.replace(
        config, network=dataclasses.replace(_ncsnpp, label_dim=10)
    ),
    "small_gpu": dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, dtype="bfloat16"),
        training=dataclasses.replace(config.training, accumulation=8),
    ),
}
