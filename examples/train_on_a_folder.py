"""From a folder of images to a trained network, interrupted on the way.

Run: python examples/train_on_a_folder.py
"""

import contextlib
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from configs.digits import config as digits
from configs.network_schema import MLPConfig
from configs.preparation_schema import PreparationConfig
from configs.schema import DataConfig
from diffusion.data import load_builtin
from diffusion.data.prepare import prepare_data
from diffusion.training import load_denoiser, train
from diffusion.training.log import read_metrics
from samplers import karras, sample


def main() -> None:
    """Write images, pack them, train in two parts, sample."""
    with tempfile.TemporaryDirectory() as folder:
        photos, data_dir = Path(folder) / "photos", str(Path(folder) / "data")
        photos.mkdir()
        for number, image in enumerate(load_builtin("digits").images[:400]):
            large = Image.fromarray(image[..., 0]).resize((24, 16))
            large.save(photos / f"{number:03}.png")
        packed = prepare_data(
            "folder",
            PreparationConfig(
                source=str(photos),
                data_dir=data_dir,
                image_size=(8, 8),
                held_out_fraction=0.1,
            ),
        )
        print("packed:", sorted(path.name for path in packed.iterdir()))

        config = replace(
            digits,
            data=DataConfig(name="photos", data_dir=data_dir),
            network=MLPConfig(width=32, num_layers=1),
            optim=replace(digits.optim, warmup_images=0),
        )
        workdir = Path(folder) / "run"
        for num_steps in (100, 200):  # the second call goes on where the first ended
            training = replace(digits.training, num_steps=num_steps, batch_size=32)
            with contextlib.redirect_stderr(io.StringIO()):
                train(replace(config, training=training), workdir)
        losses = [round(row["ema_loss_held_out"], 3) for row in read_metrics(workdir)]
        print("held-out loss after 100 and 200 steps:", *losses)

        model = load_denoiser(workdir)
        samples = sample(model, jax.random.key(0), (4, 8, 8, 1), karras(8))
        print(
            "samples:", samples.x.shape, "finite:", bool(np.isfinite(samples.x).all())
        )


if __name__ == "__main__":
    main()
