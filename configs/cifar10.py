"""Unconditional CIFAR-10, the main experiment of EDM (DDPM++).

Command:   python -m diffusion.train cifar10 --data.name PATH
Data:      CIFAR-10's 50,000 training images of 32x32 pixels, as an archive
Hardware:  8 V100, about 2 days, in the reference implementation
Expected:  not yet run here; the authors report FID 1.97 with
           35 network calls per image
           (arXiv 2206.00364, table 2)

Hyper-parameters are EDM's (arXiv 2206.00364, table 7).  Its augmentation is not part of
this preset yet: the network has the nine inputs of the condition, and they are zero.
"""

from configs.network_schema import SongUNetConfig
from configs.schema import (
    DataConfig,
    EMAConfig,
    ExperimentConfig,
    OptimConfig,
    PreconditioningConfig,
    TrainingConfig,
)

__all__ = ["config"]

config = ExperimentConfig(
    data=DataConfig(
        name="cifar10",
        image_shape=(32, 32, 3),
        held_out_fraction=0.0,
        horizontal_flip=True,
    ),
    network=SongUNetConfig(dropout=0.13, augment_dim=9),
    preconditioning=PreconditioningConfig(sigma_data=0.5),
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
