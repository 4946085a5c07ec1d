"""A power-function average of any width, after training.

Every snapshot of the run is an average of the parameters with a known profile over the
steps; the combination whose profile is nearest to the wanted one is taken
(`diffusion.training.power_ema`), one snapshot in memory at a time.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import InputError
from diffusion.interop.safetensors import load_params
from diffusion.training.building import PRECONDITIONING_FILE
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.power_ema import Profile, combination, gamma_of_width
from diffusion.training.record import read_record
from diffusion.training.snapshots import Snapshot, list_snapshots
from diffusion.training.state import create_state
from diffusion.training.step import build_optimizer

__all__ = ["reconstruct_average", "reconstruct_workdir"]

_COPIED = ("config.json", "gaussian.npz", PRECONDITIONING_FILE)


def reconstruct_average(
    workdir: str | Path, width: float, step: int | None = None
) -> tuple[dict[str, Any], int]:
    """Return the average of a relative width at a step of a run.

    Args:
        workdir: A run with ``ema.power_widths``.
        width: sigma_rel, in (0, .28).
        step: Where to take it, at or after some snapshot; None for the last snapshot.

    Returns:
        Nested dict of float32 arrays, and the step.

    Raises:
        InputError: If there are no snapshots up to that step, or one is damaged.
    """
    gamma = gamma_of_width(width)
    snapshots = list_snapshots(workdir)
    if not snapshots:
        raise InputError(
            f"{workdir} has no snapshots of power-function averages; train with "
            "--ema.power-widths 0.05 0.1"
        )
    last = snapshots[-1].step if step is None else step
    used = [snapshot for snapshot in snapshots if snapshot.step <= last]
    if not used:
        raise InputError(
            f"the first snapshot in {workdir} is of step {snapshots[0].step}, after "
            f"step {last}; choose a later step"
        )
    profiles = [Profile(s.step, gamma_of_width(s.width)) for s in used]
    weights = combination(profiles, Profile(last, gamma))
    return _weighted_sum(used, weights), last


def _weighted_sum(snapshots: list[Snapshot], weights: np.ndarray) -> dict[str, Any]:
    total: Any = None
    for snapshot, weight in zip(snapshots, weights, strict=True):
        params = load_params(snapshot.path)
        part = jax.tree.map(lambda a, x=weight: np.float64(x) * a, params)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), total)


def reconstruct_workdir(
    workdir: str | Path, width: float, out: str | Path, step: int | None = None
) -> int:
    """Write a workdir whose averaged parameters have another width.

    Args:
        workdir: The run.
        width: sigma_rel, in (0, .28).
        out: Folder to write; must not hold a run.
        step: Where to take the average; None for the last snapshot.

    Returns:
        The step.

    Raises:
        InputError: If the run has no snapshots, or `out` is taken.
        OSError: If something cannot be written.
    """
    workdir, out = Path(workdir), Path(out)
    record = read_record(workdir)
    if record is None:
        raise InputError(f"{workdir} holds no run; give the workdir of one")
    if read_record(out) is not None or (out / "checkpoints").is_dir():
        raise InputError(f"{out} holds a run already; choose another --out")
    params, step = reconstruct_average(workdir, width, step)
    out.mkdir(parents=True, exist_ok=True)
    training = record.config.training
    optimizer = build_optimizer(record.config.optim, training.batch_size)
    state = create_state(
        params,
        optimizer,
        len(training.sigma_bin_edges) + 1,
        power_widths=record.config.ema.power_widths,
    )
    checkpoints = Checkpoints(out, training.checkpoint_every_steps)
    origin = f"an average of width {width:g} reconstructed from {workdir.name}"
    try:
        checkpoints.save(
            state._replace(step=jnp.int32(step)), {"seconds": 0.0, "origin": origin}
        )
        checkpoints.wait()
    finally:
        checkpoints.close()
    for name in _COPIED:
        if (workdir / name).is_file():
            shutil.copyfile(workdir / name, out / name)
    return step
