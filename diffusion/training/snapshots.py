"""Snapshots of the power-function averages, kept for `diffusion.posthoc_ema`.

``workdir/ema_snapshots/WIDTH-STEP.safetensors`` holds one average of all parameters in
float32; a run that is resumed writes the same files again.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion.interop.safetensors import save_params
from diffusion.training.mesh import host_value, is_main_host
from diffusion.training.state import TrainState

__all__ = ["Snapshot", "list_snapshots", "save_snapshots"]

_FOLDER = "ema_snapshots"
_NAME = re.compile(r"([\d.e-]+)-(\d+)\.safetensors")


class Snapshot(NamedTuple):
    """One file.

    Attributes:
        path: Where it is.
        width: Relative width of the average.
        step: Optimizer steps taken.
    """

    path: Path
    width: float
    step: int


def save_snapshots(workdir: str | Path, state: TrainState) -> None:
    """Write one file for each power-function average of a state.

    Raises:
        OSError: If the disk is full or read-only.
    """
    folder = Path(workdir) / _FOLDER
    for width, average in state.power_emas.items():
        values: Any = jax.tree.map(host_value, average)
        if is_main_host():
            folder.mkdir(exist_ok=True)
            save_params(folder / f"{width}-{int(state.step)}.safetensors", values)


def list_snapshots(workdir: str | Path) -> list[Snapshot]:
    """Return the snapshots of a workdir by step and width."""
    found = []
    for path in (Path(workdir) / _FOLDER).glob("*.safetensors"):
        if match := _NAME.fullmatch(path.name):
            found.append(Snapshot(path, float(match[1]), int(match[2])))
    return sorted(found, key=lambda snapshot: (snapshot.step, snapshot.width))
