"""Tuning without the network: start, solver and grid chosen on a closed form.

At few calls it matters as much where sampling starts, how the grid is spread and where
it ends as which solver moves along it, and what is best depends mostly on the data.  So
every combination is tried on a surrogate (`samplers.surrogate`), whose exact solutions
are known:

    predicted = rms(x(combination) - x(exact)),  over samples and dimensions.

That costs no network call.  The best of them, of several solvers, are then verified: on
a few images, against a fine solution of the network itself from the same noise.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from configs.sampler_schema import SamplerConfig
from samplers.building import build_sampler
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.frame import cast
from samplers.model import Model
from samplers.sampling import sample
from samplers.schedules import log_linear
from samplers.search import num_points, rms_error, solve, solve_exactly
from samplers.surrogate import Surrogate

__all__ = [
    "FORMS",
    "Reference",
    "Search",
    "SearchSpace",
    "Trial",
    "calls_of_verification",
    "describe",
    "fine_solution",
    "list_candidates",
    "plain_samplers",
    "predict_errors",
    "prepare_search",
    "shortlist",
    "verify",
]

_FALLING: dict[str, dict[str, Any]] = {
    "heun": {"solver": "heun"},
    **{
        f"dpm_solver_pp {order} {variant}": {
            "solver": "dpm_solver_pp",
            "order": order,
            "variant": variant,
        }
        for order, variant in (
            (2, "midpoint"),
            (2, "taylor"),
            (3, "published"),
            (3, "corrected"),
        )
    },
    **{
        f"unipc {order} {variant}": {
            "solver": "unipc",
            "order": order,
            "variant": variant,
        }
        for order, variant in itertools.product((2, 3), ("bh1", "bh2"))
    },
    **{
        f"dpm_solver_v3 {order}": {"solver": "dpm_solver_v3", "order": order}
        for order in (2, 3)
    },
    **{
        f"residual_exponential {order}": {
            "solver": "residual_exponential",
            "order": order,
        }
        for order in (1, 2, 3)
    },
}
FORMS = _FALLING | {
    f"{name}, order kept": {**form, "lower_order_final": False}
    for name, form in _FALLING.items()
    if form.get("order", 1) > 1
}
"""Solvers that are searched, as fields of `SamplerConfig`, by name.

Multistep ones of order 2 and 3 twice: their order falls to 1 towards the end, or is
kept.
"""

_FINE_POINTS = 100
_RANK = 128


class SearchSpace(NamedTuple):
    """What is combined with what.

    Attributes:
        forms: Names out of `FORMS`.
        teleports: Where a teleport leads to, data units; no teleport is tried too.
        rhos: Of Karras grids; the grid that is uniform in log sigma is tried too.
        last_sigmas: Where the grid ends, data units.
    """

    forms: tuple[str, ...] = tuple(FORMS)
    teleports: tuple[float, ...] = (40.0, 20.0, 10.0, 5.0, 2.5)
    rhos: tuple[float, ...] = (2.0, 3.0, 5.0, 7.0, 10.0)
    last_sigmas: tuple[float, ...] = (0.002, 0.02, 0.05, 0.1, 0.2)


class Search(NamedTuple):
    """A surrogate as a model to sample from, with its exact solutions.

    Attributes:
        model: The surrogate, with the noise levels of the network.
        noise: (B, *event), white.
        exact: (B, *event), solutions from sigma_max * noise.
        weights: See `Surrogate.weights`.
    """

    model: Model
    noise: NDArray[np.float64]
    exact: NDArray[np.float64]
    weights: NDArray[np.float64]


class Trial(NamedTuple):
    """A sampler and its errors, rms over samples and dimensions, data units.

    Attributes:
        form: Name of its solver in `FORMS`.
        config: The sampler.
        predicted: On the surrogate.
        verified: On the network; None where it was not tried.
    """

    form: str
    config: SamplerConfig
    predicted: float
    verified: float | None = None


class Reference(NamedTuple):
    """Fine solutions of a model.

    Attributes:
        x: (n, *event).
        key: What their noise comes from.
        classes: (n,), without effect where the model is told none.
    """

    x: NDArray[Any]
    key: Array
    classes: Array


def prepare_search(
    surrogate: Surrogate,
    sigma_range: tuple[float, float],
    *,
    measure_gains: bool,
    seed: int = 0,
    num_samples: int = 64,
    gain_images: int = 512,
) -> Search:
    """Solve the surrogate exactly and give it what the network has.

    Args:
        surrogate: Closed form and Gaussian.
        sigma_range: Lowest and highest noise level of the network.
        measure_gains: Whether the residual integrator takes gains measured on the
            model, or those of the Gaussian.
        seed: Of noise, and of the images that gains are measured on.
        num_samples: Samples that errors are measured on.
        gain_images: Images per noise level that gains are measured on.
    """
    defaults = SamplerConfig()
    lowest = max(sigma_range[0], defaults.sigma_min)
    highest = min(sigma_range[1], defaults.sigma_max)
    if measure_gains:
        gains = surrogate.measured_gains(
            (lowest, highest), rank=_RANK, num_images=gain_images, seed=seed + 1
        )
    else:
        gains = surrogate.gaussian_gains(_RANK)
    noise = surrogate.noise(seed, num_samples)
    model = Model(
        cast(surrogate.denoiser, jnp.float32),
        surrogate.event_shape,
        surrogate.gaussian,
        (lowest, highest),
        gains=gains,
    )
    exact = solve_exactly(surrogate.denoiser, noise, highest)
    return Search(model, noise, exact, surrogate.weights)


def list_candidates(
    form: str, calls: int, space: SearchSpace, model: Model
) -> list[SamplerConfig]:
    """Return every start and grid for one solver, as far as the model's sigmas reach.

    Args:
        form: Name in `FORMS`.
        calls: Network calls per image; of Heun, at most that many.
        space: What is combined.
        model: Its noise levels count, and what solvers need of it.

    Returns:
        None at all where the solver takes more calls.
    """
    nfe = _nfe(form, calls, model)
    if nfe is None:
        return []
    lowest, highest = model.sigma_range
    lasts = dict.fromkeys(max(last, lowest) for last in space.last_sigmas)
    grids: list[dict[str, Any]] = [{"schedule": "log_linear"}]
    grids += [{"schedule": "karras", "rho": rho} for rho in space.rhos]
    starts: list[dict[str, Any]] = [{}]
    starts += [
        {"teleport": skip, "skip_mode": "re-spread"}
        for skip in space.teleports
        if max(lasts) < skip < highest
    ]
    return [
        SamplerConfig(**FORMS[form], **start, **grid, sigma_min=last, nfe=nfe)
        for start, grid, last in itertools.product(starts, grids, lasts)
    ]


def predict_errors(
    search: Search, configs: Sequence[SamplerConfig]
) -> NDArray[np.float64]:
    """Return the errors of samplers on the surrogate.

    Args:
        search: The surrogate and its solutions.
        configs: Samplers of one solver and one number of calls.

    Returns:
        (G,) rms errors; infinite where one has diverged.
    """
    begun: dict[object, NDArray[np.float32]] = {}
    grids, x = [], []
    noise = jnp.asarray(search.noise, jnp.float32)
    sampler = None
    for config in configs:
        # The surrogate's Gaussian is the run's, in other coordinates.
        own = dataclasses.replace(config, gaussian=None)
        sampler = build_sampler(own, search.model)
        if config.teleport not in begun:
            first = sampler.start(noise, sampler.sigmas[0])
            begun[config.teleport] = np.asarray(first)
        grids.append(sampler.sigmas)
        x.append(begun[config.teleport])
    if sampler is None:
        return np.zeros(0)
    found = solve(sampler.solver, search.model.denoiser, np.stack(x), grids)
    errors = rms_error(found, search.exact, search.weights)
    return np.where(np.isfinite(errors), errors, math.inf)


def shortlist(trials: Sequence[Trial], *, count: int, per_form: int) -> list[Trial]:
    """Return the trials of least predicted error, at most `per_form` of one solver."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: t.predicted):
        same = sum(other.form == trial.form for other in kept)
        if same < per_form and len(kept) < count and math.isfinite(trial.predicted):
            kept.append(trial)
    return kept


def plain_samplers(calls: int, model: Model) -> dict[str, SamplerConfig]:
    """Return what is used without a search, by form; Heun where it takes so few."""
    grids: dict[str, dict[str, Any]] = {
        "heun": {"schedule": "karras"},
        "dpm_solver_pp 2 midpoint": {"schedule": "log_linear"},
        "unipc 3 bh2": {"schedule": "log_linear"},
    }
    last = max(model.sigma_range[0], SamplerConfig().sigma_min)
    nfes = {form: _nfe(form, calls, model) for form in grids}
    return {
        form: SamplerConfig(**FORMS[form], **grid, sigma_min=last, nfe=nfes[form])
        for form, grid in grids.items()
        if nfes[form] is not None
    }


def fine_solution(model: Model, key: Array, num_images: int) -> Reference:
    """Solve a model on 100 levels, uniform in log sigma, over all that it knows.

    Args:
        model: The network.
        key: A `jax.random.key`.
        num_images: Images; 100 calls each.

    Raises:
        InputError: If it is not finite.
    """
    defaults = SamplerConfig()
    grid = log_linear(
        _FINE_POINTS,
        max(model.sigma_range[0], defaults.sigma_min),
        min(model.sigma_range[1], defaults.sigma_max),
    )
    solver = DPMSolverPP(order=3, variant="corrected", lower_order_final=False)
    classes = jnp.arange(num_images) % max(model.num_classes, 1)
    found = sample(
        model.with_classes(classes),
        key,
        (num_images, *model.event_shape),
        grid,
        solver=solver,
    )
    x = np.asarray(found.x)
    if not np.isfinite(x).all():
        raise InputError(
            "the model's fine solution is not finite; the checkpoint is broken: choose "
            "another with --step"
        )
    return Reference(x, key, classes)


def verify(model: Model, config: SamplerConfig, reference: Reference) -> float:
    """Return the rms error of a sampler against fine solutions from the same noise.

    Args:
        model: The network.
        config: The sampler.
        reference: Of the same network.

    Returns:
        Data units; infinite where the sampler has diverged.
    """
    sampler = build_sampler(config, model)
    found = sample(
        model.with_classes(reference.classes),
        reference.key,
        reference.x.shape,
        sampler.sigmas,
        solver=sampler.solver,
        start=sampler.start_of(reference.classes),
    )
    weights = np.ones(reference.x[0].size)
    exact = reference.x.astype(np.float64)
    error = float(rms_error(np.asarray(found.x), exact, weights))
    return error if math.isfinite(error) else math.inf


def describe(config: SamplerConfig) -> str:
    """Return solver, start and grid in a few words."""
    parts = [config.solver]
    parts += [str(v) for v in (config.order, config.variant) if v is not None]
    solver = " ".join(parts)
    if not config.lower_order_final:
        solver += ", order kept"
    skip = config.teleport
    start = "no skip" if skip is None else f"from {skip}".removesuffix(".0")
    grid = config.schedule.replace("_", "-")
    if config.schedule == "karras":
        grid += f" {config.rho:g}"
    return f"{solver}, {start}, {grid} to {config.sigma_min:g}"


def calls_of_verification(
    configs: Sequence[SamplerConfig], num_images: int
) -> tuple[int, int]:
    """Return the network calls of the fine solutions, and of all samplers together."""
    nfes = [config.nfe or 0 for config in configs]
    return num_images * _FINE_POINTS, num_images * sum(nfes)


def _nfe(form: str, calls: int, model: Model) -> int | None:
    """Return the calls, at most so many, that a solver can spend; None if it cannot."""
    solver = build_sampler(SamplerConfig(**FORMS[form], num_points=2), model).solver
    points = num_points(solver, calls)
    return solver.nfe(points) if points >= 2 else None
