"""Faces at 64x64 pixels (DDPM++).

Command:   python -m diffusion.prepare_data ffhq64 --source FOLDER
           python -m diffusion.train ffhq64
Data:      FFHQ's 70,000 images of 1024x1024 pixels, brought to 64x64
Hardware:  8 V100, about 4 days, in the reference implementation
Expected:  not yet run here; the authors report FID 2.39 with
           79 network calls per image
           (arXiv 2206.00364, table 2)

Hyper-parameters are EDM's (arXiv 2206.00364, table 7), and so is the augmentation: its
pipe with p = .15, which mirrors half of the images and says so in the condition.

Variants:  ffhq64:ve         NCSN++ instead of DDPM++ (called "VE" in EDM's tables)
           ffhq64:small_gpu  bfloat16 and batches in 8 parts, for 16 GiB; not yet run
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
        name="ffhq64",
        image_shape=(64, 64, 3),
        held_out_fraction=0.0,
    ),
    network=SongUNetConfig(channel_mult=(1, 2, 2, 2), dropout=0.05, augment_dim=9),
    preconditioning=PreconditioningConfig(sigma_data=0.5),
    augmentation=AugmentationConfig(mode="nla", transforms=("edm-nla:.15",)),
    optim=OptimConfig(learning_rate=2e-4, warmup_images=10_000_000),
    ema=EMAConfig(half_life_images=500_000),
    training=TrainingConfig(
        num_steps=781_250,
        batch_size=256,
        log_every_steps=100,
        checkpoint_every_steps=9_765,
        checkpoint_every_seconds=1800.0,
    ),
)

variants = {
    "ve": dataclasses.replace(
        config,
        network=dataclasses.replace(
            config.network,
            encoder="residual",
            embedding="fourier",
            noise_channel_mult=2,
            resample_filter=(1, 3, 3, 1),
        ),
    ),
    "small_gpu": dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, dtype="bfloat16"),
        training=dataclasses.replace(config.training, accumulation=8),
    ),
}
