"""CIFAR-10 with a tenth of its images: the limited-data regime.

Command:   python -m diffusion.prepare_data cifar10_5k --source PATH
           python -m diffusion.train cifar10_5k
Data:      an npz of about 5,000 images, a tenth of them held out; or, from the official
           tar archive with --max-images 5000, a random subset with the test images held
           out
Hardware:  as cifar10
Expected:  not yet run

The recipe is that of `configs.cifar10`, so that the number of images is all that
differs; with so few, held-out loss turns long before training loss.

Variants:  cifar10_5k:small_gpu  bfloat16 and batches in 8 parts, for 8 GiB; not yet run
           cifar10_5k:cpu        a 16-channel network on two CPU cores for 20 minutes;
                                 figures in docs/training.md
"""

import dataclasses

from configs import cifar10
from configs.network_schema import SongUNetConfig
from configs.schema import EMAConfig, ExperimentConfig, OptimConfig, TrainingConfig

__all__ = ["config", "variants"]

config = dataclasses.replace(
    cifar10.config,
    data=dataclasses.replace(
        cifar10.config.data, name="cifar10_5k", held_out_fraction=0.1
    ),
)

variants = {
    "small_gpu": dataclasses.replace(cifar10.variants["small_gpu"], data=config.data),
    "cpu": ExperimentConfig(
        data=dataclasses.replace(config.data, horizontal_flip=True),
        network=SongUNetConfig(
            model_channels=16,
            channel_mult=(1, 2, 2),
            num_blocks=2,
            attention_resolutions=(8,),
        ),
        optim=OptimConfig(
            learning_rate=2e-3, warmup_images=6_400, decay_images=100_000
        ),
        ema=EMAConfig(half_life_images=20_000, ramp_fraction=0.25),
        training=TrainingConfig(
            num_steps=3_500,
            batch_size=32,
            log_every_steps=250,
            checkpoint_every_steps=500,
        ),
    ),
}
