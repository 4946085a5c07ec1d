"""Class-conditional ImageNet at 64x64 pixels (ADM).

Command:   python -m diffusion.prepare_data imagenet64 --source FOLDER_OF_CLASSES
           python -m diffusion.train imagenet64
Data:      ImageNet's 1,281,167 training images, cropped to 64x64 pixels, with labels
Hardware:  32 A100-80GB, about 13 days, in the reference implementation
Expected:  not yet run here; the authors report FID 1.36 with
           511 network calls per image
           (arXiv 2206.00364, table 2)

Hyper-parameters are EDM's (arXiv 2206.00364, table 7).  The reference trains in
float16; this preset computes in bfloat16.

Variants:  imagenet64:small_gpu  batches in 256 parts, blocks recomputed, for 24 GiB;
           not yet run
"""

import dataclasses

from configs.network_schema import DhariwalUNetConfig
from configs.schema import (
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
        name="imagenet64",
        image_shape=(64, 64, 3),
        held_out_fraction=0.0,
        horizontal_flip=False,
    ),
    network=DhariwalUNetConfig(label_dim=1000, dtype="bfloat16"),
    preconditioning=PreconditioningConfig(sigma_data=0.5),
    optim=OptimConfig(learning_rate=1e-4, warmup_images=10_000_000),
    ema=EMAConfig(half_life_images=50_000_000),
    training=TrainingConfig(
        num_steps=610_352,
        batch_size=4096,
        log_every_steps=100,
        checkpoint_every_steps=2_441,
        checkpoint_every_seconds=1800.0,
    ),
)

variants = {
    "small_gpu": dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, checkpoint_blocks=True),
        training=dataclasses.replace(config.training, accumulation=256),
    ),
}
