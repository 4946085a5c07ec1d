"""A foreign checkpoint as a workdir like those that training makes.

``params`` and ``ema_params`` are both the imported weights, at step 0; the record names
the file by its sha256.  With images at hand, their Gaussian is fitted too, so that
teleportation and `analysis.compare` work.
"""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp

from configs.errors import InputError
from configs.schema import DataConfig, ExperimentConfig
from diffusion.closed_form import save_gaussian
from diffusion.data import split_of
from diffusion.interop import ImportedModel, load_edm, load_unet2d
from diffusion.training.building import fit_training_gaussian
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.record import Record, claim_workdir, read_record
from diffusion.training.state import create_state
from diffusion.training.step import build_optimizer

__all__ = ["import_checkpoint"]


def import_checkpoint(
    path: str | Path, workdir: str | Path, *, data: str | None = None
) -> ImportedModel:
    """Read a checkpoint of another project and write a workdir.

    Args:
        path: An EDM snapshot (``.pkl``), or a folder of diffusers' ``UNet2DModel``.
        workdir: Where to write; must not hold a run.
        data: The images it was trained on, as a preset or an archive; None leaves out
            what needs them.

    Returns:
        The model that was read.

    Raises:
        InputError: If the file is not understood, the images do not fit, or the workdir
            is taken.
        OSError: If something cannot be written.
    """
    path, workdir = Path(path), Path(workdir)
    if read_record(workdir) is not None or (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} holds a run already; choose another --workdir")
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    folder = path.is_dir() or path.suffix == ".safetensors"
    model = load_unet2d(path) if folder else load_edm(path)
    config = ExperimentConfig(
        data=DataConfig(
            name=data or "none", held_out_fraction=0.0, image_shape=model.event_shape
        ),
        network=model.network,
        preconditioning=model.preconditioning,
    )
    record = Record(
        config=config,
        event_shape=model.event_shape,
        sigma_data=model.preconditioning.sigma_data or 1.0,
        data_digest=f"imported from {_digest(path)}",
        num_training=0,
        num_held_out=0,
    )
    if data is not None:
        split = split_of(config.data)
        images = split.training.images
        record = record._replace(data_digest=split.digest, num_training=len(images))
    workdir.mkdir(parents=True, exist_ok=True)
    if data is not None:
        save_gaussian(
            workdir / "gaussian.npz",
            fit_training_gaussian(images),
            num_images=len(images),
            data_digest=split.digest,
        )
    claim_workdir(workdir, record)
    _save(model, config, workdir)
    return model


def _save(model: ImportedModel, config: ExperimentConfig, workdir: Path) -> None:
    params = jax.tree.map(jnp.asarray, model.params)
    optimizer = build_optimizer(config.optim, config.training.batch_size)
    num_bins = len(config.training.sigma_bin_edges) + 1
    checkpoints = Checkpoints(workdir, config.training.checkpoint_every_steps)
    try:
        state = create_state(params, optimizer, num_bins)
        checkpoints.save(state, {"seconds": 0.0, "origin": "an imported checkpoint"})
        checkpoints.wait()
    finally:
        checkpoints.close()


def _digest(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's safetensors file."""
    if path.is_dir():
        path = next(iter(sorted(path.rglob("*.safetensors"))))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
