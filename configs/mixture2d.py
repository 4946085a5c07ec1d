"""Three Gaussians in the plane: a toy whose score is known in closed form.

Command:   python -m diffusion.train mixture2d
Data:      points of three equal Gaussians of standard deviation .25 on a circle of
           radius 1.5
Hardware:  one CPU core
Expected:  not yet run at full length
"""

from configs.network_schema import MLPConfig
from configs.schema import (
    DataConfig,
    EMAConfig,
    ExperimentConfig,
    NoiseConfig,
    OptimConfig,
    TrainingConfig,
)

__all__ = ["config"]

config = ExperimentConfig(
    data=DataConfig(name="mixture2d", held_out_fraction=0.2),
    network=MLPConfig(width=128, num_layers=4),
    noise=NoiseConfig(p_mean=-0.5, p_std=1.6),
    optim=OptimConfig(learning_rate=1e-3, warmup_images=25_600, decay_images=512_000),
    ema=EMAConfig(half_life_images=100_000),
    training=TrainingConfig(
        num_steps=5000,
        batch_size=512,
        log_every_steps=250,
        checkpoint_every_steps=500,
        checkpoint_every_seconds=10.0,
    ),
)
