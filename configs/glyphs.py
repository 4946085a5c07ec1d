"""Drawn 12x12 glyphs: a toy on which augmentation can be studied in minutes.

Command:   python -m diffusion.train glyphs
Data:      drawn grey images of F, P, L and 7, 128 for training and 2,048 held out
Hardware:  two CPU cores, about a minute if nothing else runs
Expected:  held-out loss lowest near step 1,000 (.51) and .56 at step 2,000, where
           training loss is .19; of the averaged parameters, seed 0

So few images are soon learned by heart.  What an augmentation does about it, and what
of it leaks into samples, shows in a short run.
"""

from configs.network_schema import MLPConfig
from configs.schema import (
    AugmentationConfig,
    DataConfig,
    EMAConfig,
    ExperimentConfig,
    NoiseConfig,
    OptimConfig,
    TrainingConfig,
)

__all__ = ["config"]

config = ExperimentConfig(
    data=DataConfig(name="glyphs", held_out_fraction=2048 / 2176, max_images=128),
    network=MLPConfig(width=384, num_layers=3, adaptive_scale=True),
    # Switched off; what an augmentation would draw from: shifts of two pixels, cutouts
    # of two to six, gains between 1/2 and 2.
    augmentation=AugmentationConfig(
        transforms=("translate:.167", "cutout:.167:.5", "brightness:2")
    ),
    noise=NoiseConfig(p_mean=-1.2, p_std=1.2),
    optim=OptimConfig(learning_rate=1e-3, warmup_images=38_400),
    # A decay of .999 per step of 128 images, which the ramp reaches at the end.
    ema=EMAConfig(half_life_images=88_700, ramp_fraction=0.35),
    training=TrainingConfig(
        num_steps=2000,
        batch_size=128,
        log_every_steps=250,
        evaluation_images=2048,
        checkpoint_every_steps=250,
        checkpoint_every_seconds=1e9,
    ),
)
