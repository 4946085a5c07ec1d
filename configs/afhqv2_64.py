"""Animal faces at 64x64 pixels (DDPM++).

Command:   python -m diffusion.prepare_data afhqv2_64 --source FOLDER
           python -m diffusion.train afhqv2_64
Data:      AFHQv2's 15,803 training images of 512x512 pixels, brought to 64x64
Hardware:  8 V100, about 4 days, in the reference implementation
Expected:  not yet run here; the authors report FID 1.96 with
           79 network calls per image
           (arXiv 2206.00364, table 2)

Hyper-parameters are EDM's (arXiv 2206.00364, table 7), and so is the augmentation: its
pipe with p = .15, which mirrors half of the images and says so in the condition.

Variants:  afhqv2_64:ve         NCSN++ instead of DDPM++ (called "VE" in EDM's tables)
           afhqv2_64:small_gpu  bfloat16 and batches in 8 parts, for 16 GiB; not yet run
"""

import dataclasses

from configs import ffhq64
from configs.schema import ExperimentConfig

__all__ = ["config", "variants"]


def _with_animals(faces: ExperimentConfig) -> ExperimentConfig:
    """Return an experiment on faces with the images and dropout of this one."""
    return dataclasses.replace(
        faces,
        data=dataclasses.replace(faces.data, name="afhqv2_64"),
        network=dataclasses.replace(faces.network, dropout=0.25),
    )


config = _with_animals(ffhq64.config)
variants = {name: _with_animals(faces) for name, faces in ffhq64.variants.items()}
