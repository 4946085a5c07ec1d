"""From a workdir to the denoiser that it has learned."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from configs.errors import InputError
from diffusion.adapters import VPNoiseDenoiser, linear_beta_schedule
from diffusion.neural import Network, NeuralDenoiser
from diffusion.training.building import build_run_network, load_preconditioning
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.record import read_record
from diffusion.training.state import init_params, network_params

__all__ = ["checkpoint_steps", "load_denoiser"]


def load_denoiser(
    workdir: str | Path, *, step: int | None = None, ema: bool = True
) -> NeuralDenoiser | VPNoiseDenoiser:
    """Return the denoiser that a run has learned so far.

    Works on the workdir of a running, finished or killed run.

    Args:
        workdir: The folder that `train` wrote.
        step: Checkpoint to load; None for the newest intact one.
        ema: Whether to take the averaged parameters (the ones to sample with).

    Returns:
        A pytree of arrays that is a `Denoiser`.

    Raises:
        InputError: If the workdir holds no run, no checkpoint or no intact one.
    """
    record = read_record(workdir)
    if record is None or not (Path(workdir) / "checkpoints").is_dir():
        raise _missing(workdir)
    network = build_run_network(record.config, record.event_shape)
    discrete = record.config.preconditioning.name == "ddpm"
    preconditioning = None if discrete else load_preconditioning(record, workdir)
    checkpoints = Checkpoints(workdir)
    name = "ema_params" if ema else "params"
    shapes = jax.eval_shape(
        functools.partial(init_params, record.config, network), jax.random.key(0)
    )
    try:
        found = checkpoints.restore({name: shapes}, step)
    finally:
        checkpoints.close()
    if found is None:
        raise _missing(workdir)
    params = network_params(found[0][name])
    if preconditioning is None:
        model = jax.tree_util.Partial(_PredictedNoise(network), params)
        return VPNoiseDenoiser(model, linear_beta_schedule())
    return NeuralDenoiser(params, network, preconditioning)


def checkpoint_steps(workdir: str | Path) -> list[int]:
    """Return the steps of a run's checkpoints, ascending; damaged ones are among them.

    Args:
        workdir: The folder that `train` wrote.

    Returns:
        At least one step; `load_denoiser` takes each, or says why it cannot.

    Raises:
        InputError: If the workdir holds no run or no checkpoint.
    """
    if read_record(workdir) is None or not (Path(workdir) / "checkpoints").is_dir():
        raise _missing(workdir)
    checkpoints = Checkpoints(workdir)
    try:
        steps = checkpoints.steps()
    finally:
        checkpoints.close()
    if not steps:
        raise _missing(workdir)
    return steps


def _missing(workdir: str | Path) -> InputError:
    return InputError(
        f"no checkpoint in {workdir}; train one with "
        f"python -m diffusion.train PRESET --workdir {workdir}"
    )


@dataclass(frozen=True)
class _PredictedNoise:
    """The call of a network that predicts noise; hashable."""

    network: Network

    def __call__(self, params: dict[str, Any], x: jax.Array, time: jax.Array) -> Any:
        return self.network.apply(params, x, time)
