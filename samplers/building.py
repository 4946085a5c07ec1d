"""From `SamplerConfig` to what `sample` takes: solver, grid and start.

A teleport of mode "same-tail" keeps the points of the whole grid at or below sigma_skip
and starts at the first of them; "re-spread" starts at sigma_skip itself and spreads all
its points from there down.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError, choice_error, require
from configs.sampler_schema import SamplerConfig
from configs.solver_table import SOLVERS
from diffusion.closed_form import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.dpm_solver_v3 import DPMSolverV3
from samplers.euler import Euler
from samplers.heun import Heun
from samplers.model import Model
from samplers.model_files import (
    read_affine_part,
    read_closed_form,
    read_gaussian,
    read_statistics,
)
from samplers.residual_exponential import ResidualExponential
from samplers.schedules import (
    check_grid,
    karras,
    log_linear,
    skip_above,
    vp_uniform,
)
from samplers.solver import Solver
from samplers.start import (
    AnalyticPrefix,
    ClassTeleport,
    MomentMatched,
    Prior,
    Start,
    Teleport,
)
from samplers.stochastic_heun import StochasticHeun
from samplers.unipc import UniPC

__all__ = ["BUILDERS", "Sampler", "build_grid", "build_sampler"]

_MOST_POINTS = 10_000  # of the search for a grid with a number of calls


class Sampler(NamedTuple):
    """What `sample` needs beside a denoiser.

    Attributes:
        solver: How to move along the grid.
        sigmas: (L,) the grid, after any skip.
        start: How noise becomes x at its first point; of a `ClassTeleport` the labels
            are put in block by block.
    """

    solver: Solver
    sigmas: NDArray[np.float64]
    start: Start

    def start_of(self, classes: ArrayLike) -> Start:
        """Return the start of a block of samples of these classes, (B,)."""
        if isinstance(self.start, ClassTeleport):
            return dataclasses.replace(self.start, labels=classes)
        return self.start


def build_sampler(config: SamplerConfig, model: Model) -> Sampler:
    """Return the sampler of a configuration.

    A schedule that leaves the noise levels that the model knows is brought into them; a
    grid that was given point by point is refused.

    Args:
        config: The settings.
        model: What to sample from.

    Raises:
        InputError: If a setting is unknown, a grid or a number of calls cannot be had,
            or a closed form is asked for and missing, or of other samples or data.
    """
    if config.solver not in BUILDERS:
        raise choice_error("solver", config.solver, BUILDERS)
    if config.teleport == "auto" or config.tuned is not None:
        raise InputError(
            "teleport auto and tuned samplers belong to a workdir; resolve them first "
            "(samplers.automatic_skip.resolve_skip, samplers.tuned_files.load_tuned)"
        )
    solver = BUILDERS[config.solver](config, model)
    start = _start(config, model, _ends(config, model)[0])
    return Sampler(solver, build_grid(config, model, solver), start)


def build_grid(
    config: SamplerConfig, model: Model, solver: Solver
) -> NDArray[np.float64]:
    """Return the grid of a configuration, after any skip; no file is read.

    Args:
        config: The settings.
        model: Its noise levels count.
        solver: Its calls count, where the settings fix their number.

    Raises:
        InputError: If a grid or a number of calls cannot be had.
    """
    ends = _ends(config, model)
    num_points = config.num_points
    if config.nfe is not None:
        num_points = _points_of(config, solver, ends)
    return _grid(config, ends, num_points)


def _ends(config: SamplerConfig, model: Model) -> tuple[float, float]:
    """Return first and last point of the whole grid, inside what the model knows."""
    lowest, highest = model.sigma_range
    first, last = config.ends
    if config.sigmas is None:
        first, last = min(first, highest), max(last, lowest)
    outside = not lowest <= last <= first <= highest
    if outside or (config.sigmas is None and last == first):
        raise InputError(
            f"the grid from {config.ends[0]:g} to {config.ends[1]:g} lies outside "
            f"the noise levels {lowest:g} to {highest:g} that the model knows"
        )
    return first, last


def _grid(
    config: SamplerConfig, ends: tuple[float, float], num_points: int
) -> NDArray[np.float64]:
    """Return the points that are left after a skip."""
    skip = config.teleport
    assert not isinstance(skip, str), "auto is resolved"
    if config.sigmas is not None:
        whole = check_grid(config.sigmas)
        return whole if skip is None else skip_above(whole, skip)
    if skip is None:
        return _spread(config, num_points, ends)
    if config.skip_mode == "same-tail":
        return skip_above(_spread(config, num_points, ends), skip)
    if not ends[1] < skip <= ends[0]:
        raise InputError(
            f"sigma_skip is {skip}; it must lie within the grid, in ({ends[1]:g}, "
            f"{ends[0]:g}]"
        )
    return _spread(config, num_points, (skip, ends[1]))


def _spread(
    config: SamplerConfig, num_points: int, ends: tuple[float, float]
) -> NDArray[np.float64]:
    highest, lowest = ends
    if config.schedule == "karras":
        return karras(num_points, lowest, highest, config.rho)
    if config.schedule == "vp_uniform":
        return vp_uniform(num_points, lowest, highest)
    return log_linear(num_points, lowest, highest)


def _points_of(config: SamplerConfig, solver: Solver, ends: tuple[float, float]) -> int:
    """Return the points of the grid with which an image costs `config.nfe` calls."""
    wanted, least = config.nfe, solver.nfe(2)
    assert wanted is not None
    if wanted < least:
        raise InputError(
            f"sampler.nfe is {wanted}, but {config.solver} takes at least {least} "
            f"calls, one step and the last move; set --sampler.nfe {least} or more"
        )
    below = least
    require(wanted <= _MOST_POINTS, "sampler.nfe", wanted, f"<= {_MOST_POINTS}")
    for num_points in range(2, wanted * 10):
        grid = num_points
        if config.teleport is not None and config.skip_mode == "same-tail":
            grid = len(_grid(config, ends, num_points))
        calls = solver.nfe(grid)
        if calls == wanted:
            return num_points
        if calls > wanted:
            raise InputError(
                f"sampler.nfe is {wanted}, but {config.solver} on this grid takes "
                f"{below} or {calls} calls; choose one of these"
            )
        below = calls
    raise InputError(
        f"sampler.nfe is {wanted}, but so few points of the grid lie at or below "
        f"{config.teleport:g} that it is not reached; set --sampler.skip-mode re-spread"
    )


def _start(config: SamplerConfig, model: Model, sigma_max: float) -> Start:
    if config.moment_matched:
        return MomentMatched(read_gaussian(config, model))
    if config.teleport is None:
        return Prior()
    if config.class_gaussians is not None:
        classes = read_closed_form(
            config.class_gaussians, (MixtureDenoiser,), config, model
        )
        if model.num_classes != len(classes.means):
            raise InputError(
                f"{config.class_gaussians} holds {len(classes.means)} Gaussians, but "
                f"the model is told {model.num_classes} classes; one for each is needed"
            )
        return ClassTeleport(classes, jnp.zeros(1, jnp.int32), sigma_max)
    if config.prefix is not None:
        kinds = (MixtureDenoiser, EmpiricalDenoiser, GaussianDenoiser)
        return AnalyticPrefix(
            read_closed_form(config.prefix, kinds, config, model), sigma_max
        )
    return Teleport(read_gaussian(config, model), sigma_max)


def _build_dpm_solver_pp(config: SamplerConfig, model: Model) -> Solver:
    return DPMSolverPP(
        config.order or DPMSolverPP.order,
        config.variant,
        config.singlestep,
        config.lower_order_final,
    )


def _build_unipc(config: SamplerConfig, model: Model) -> Solver:
    return UniPC(
        config.order or UniPC.order,
        config.variant or UniPC.variant,
        config.corrector != "off",
        config.lower_order_final,
    )


def _build_dpm_solver_v3(config: SamplerConfig, model: Model) -> Solver:
    return DPMSolverV3(
        read_statistics(config, model),
        order=config.order or 3,
        pseudo_order=config.pseudo_order,
        corrector=config.corrector or "on",
        pseudo_corrector=config.pseudo_corrector,
        lower_order_final=config.lower_order_final,
    )


def _build_residual_exponential(config: SamplerConfig, model: Model) -> Solver:
    return ResidualExponential(
        read_affine_part(config, model),
        config.order or ResidualExponential.order,
        config.rank,
        config.lower_order_final,
    )


def _build_stochastic_heun(config: SamplerConfig, model: Model) -> Solver:
    return StochasticHeun(
        config.churn,
        config.churn_min,
        np.inf if config.churn_max is None else config.churn_max,
        config.churn_noise,
    )


BUILDERS: dict[str, Callable[[SamplerConfig, Model], Solver]] = {
    "euler": lambda config, model: Euler(),
    "heun": lambda config, model: Heun(),
    "stochastic_heun": _build_stochastic_heun,
    "dpm_solver_pp": _build_dpm_solver_pp,
    "unipc": _build_unipc,
    "dpm_solver_v3": _build_dpm_solver_v3,
    "residual_exponential": _build_residual_exponential,
}
"""How the solvers of `configs.solver_table.SOLVERS` are made, by the same names."""

assert BUILDERS.keys() == SOLVERS.keys()
