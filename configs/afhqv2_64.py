"""Animal faces at 64x64 pixels (DDPM++).

Command:   python -m diffusion.train afhqv2_64 --data.name PATH
Data:      AFHQv2's 15,803 images, brought to 64x64 pixels, as an archive
Hardware:  8 V100, about 4 days, in the reference implementation
Expected:  not yet run here; the authors report FID 1.96 with
           79 network calls per image
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
        name="afhqv2_64",
        image_shape=(64, 64, 3),
        held_out_fraction=0.0,
        horizontal_flip=True,
    ),
    network=SongUNetConfig(channel_mult=(1, 2, 2, 2), dropout=0.25, augment_dim=9),
    preconditioning=PreconditioningConfig(sigma_data=0.5),
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
