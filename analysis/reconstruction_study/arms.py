"""The auto-encoders of a study: perceptrons and networks of the paper's time, kept.

What is trained is written to the disk with what it was trained from, and read from
there by the parts of the study and by later calls.
"""

import dataclasses
import enum
import json
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.autoencoder.network import AutoencoderDenoiser, AutoencoderNetwork, Layer
from analysis.autoencoder.training import (
    AutoencoderSettings,
    sigma_schedule,
    train_autoencoder,
)
from analysis.reconstruction_study.settings import StudySettings
from diffusion.atomic import write_atomically
from diffusion.progress import Progress
from diffusion.versions import versions

__all__ = ["Arm", "Trained", "arm_settings", "train_arm"]

_CHUNK = 250
_MOST_EXACT, _PROBES = 16, 4  # elements with an exact Jacobian; probes of others


class Arm(enum.Enum):
    """Auto-encoders by what they are."""

    RESIDUAL = "perceptron, residual"
    SCHEDULE = "perceptron, residual, falling noise"
    CONTRACTIVE = "perceptron, residual, contractive"
    DIRECT = "perceptron, direct"
    TANH_RESIDUAL = "one layer of tanh, residual"
    TANH_DIRECT = "one layer of tanh, direct"


class Trained(NamedTuple):
    """A trained auto-encoder.

    Attributes:
        denoiser: At its noise level.
        seconds: That its training took, compilation included.
        steps: Of training.
        loss: Training loss over sigma^2 at the end.
    """

    denoiser: AutoencoderDenoiser
    seconds: float
    steps: int
    loss: float


def arm_settings(
    arm: Arm, sigma: float, settings: StudySettings, *, dimension: int, squash: float
) -> AutoencoderSettings:
    """Return how an auto-encoder is trained.

    Args:
        arm: Which.
        sigma: Its noise level, data units.
        settings: Of the study.
        dimension: Elements of a sample.
        squash: c of the direct tanh network's output c tanh(.).
    """
    if arm in (Arm.TANH_DIRECT, Arm.TANH_RESIDUAL):
        direct = arm is Arm.TANH_DIRECT
        return AutoencoderSettings(
            (sigma,),
            hidden=(settings.tanh_width,),
            activation="tanh",
            optimizer="lbfgs",
            num_steps=settings.tanh_steps,
            replicas=settings.replicas,
            form="direct" if direct else "residual",
            squash=squash if direct else None,
            # On the spiral 1, as in the experiments, and half the way between arms.
            scale=squash / (2 if direct else 20),
        )
    schedule = arm is Arm.SCHEDULE
    return AutoencoderSettings(
        sigma_schedule(sigma) if schedule else (sigma,),
        hidden=settings.hidden,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        form="direct" if arm is Arm.DIRECT else "residual",
        objective="contraction" if arm is Arm.CONTRACTIVE else "denoising",
        probes=None if dimension <= _MOST_EXACT else _PROBES,
    )


def train_arm(
    arm: Arm,
    settings: AutoencoderSettings,
    clean: NDArray[np.float32],
    key: Array,
    *,
    folder: Path,
    digest: str,
    seed: int,
) -> Trained:
    """Return an auto-encoder, as an earlier call left it or trained now.

    Args:
        arm: Which; names its file and its bar.
        settings: How it is trained.
        clean: (N, *event) samples.
        key: A `jax.random.key`.
        folder: Where it is kept.
        digest: Of the data.
        seed: That the samples and the key come from.

    Raises:
        InputError: If the training fails.
        OSError: If it cannot be written.
    """
    sigma = settings.sigmas[-1]
    path = folder / f"{arm.name.lower()}_{sigma:g}.npz"
    about = {
        "settings": dataclasses.asdict(settings),
        "digest": digest,
        "samples": len(clean),
        "seed": seed,
        "versions": versions(),
    }
    text = json.dumps(about, sort_keys=True)
    kept = _read(path, text)
    if kept is not None:
        return kept
    progress = Progress(settings.num_steps, label=f"{arm.value}, sigma {sigma:g}")
    started = time.perf_counter()

    def tell(done: int, loss: float) -> None:
        progress.advance(done - progress.done, note=f"loss/sigma^2 {loss:.4g}")

    found = train_autoencoder(
        settings, jnp.asarray(clean), key, chunk=_CHUNK, progress=tell
    )
    seconds = time.perf_counter() - started
    progress.close()
    trained = Trained(
        found.denoiser, seconds, settings.num_steps, float(found.losses[-1])
    )
    _write(path, trained, text)
    return trained


def _write(path: Path, trained: Trained, about: str) -> None:
    denoiser = trained.denoiser
    arrays: dict[str, Any] = {"about": about, "sigma": np.asarray(denoiser.sigma)}
    arrays["network"] = json.dumps(dataclasses.asdict(denoiser.network))
    arrays["figures"] = np.array([trained.seconds, trained.steps, trained.loss])
    for index, layer in enumerate(denoiser.params):
        arrays[f"weight_{index}"] = np.asarray(layer.weight)
        arrays[f"bias_{index}"] = np.asarray(layer.bias)
    write_atomically(path, lambda file: np.savez(file, **arrays))


def _read(path: Path, about: str) -> Trained | None:
    """Return what was kept, if it was trained from the same and is whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["about"]) != about:
                return None
            values = json.loads(str(file["network"]))
            count = len(values["hidden"]) + 1
            params = tuple(
                Layer(jnp.asarray(file[f"weight_{i}"]), jnp.asarray(file[f"bias_{i}"]))
                for i in range(count)
            )
            seconds, steps, loss = file["figures"].tolist()
            sigma = jnp.asarray(file["sigma"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    values |= {"event": tuple(values["event"]), "hidden": tuple(values["hidden"])}
    network = AutoencoderNetwork(**values)
    return Trained(
        AutoencoderDenoiser(params, sigma, network), seconds, int(steps), loss
    )
