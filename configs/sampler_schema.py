"""How samples are drawn: solver, grid and start, and what `samplers.generate` writes.

Which options a solver takes stands in `configs.solver_table`.
"""

import itertools
import math
from dataclasses import dataclass, field, fields
from typing import Literal

from configs.errors import (
    InputError,
    choice_error,
    is_positive,
    require,
    require_choice,
)
from configs.solver_table import SOLVERS, SolverEntry

__all__ = [
    "FORMATS",
    "SCHEDULES",
    "GenerationConfig",
    "SamplerConfig",
]


SCHEDULES = ("karras", "log_linear", "vp_uniform")
SKIP_MODES = ("same-tail", "re-spread")
FORMATS = ("folder", "zip", "npz", "npy")


@dataclass(frozen=True)
class SamplerConfig:
    """How noise becomes images."""

    solver: str = "heun"
    """Solver: euler, heun, stochastic_heun, dpm_solver_pp, unipc, dpm_solver_v3 or
    residual_exponential; see --list-solvers."""
    order: int | None = None
    """Order of dpm_solver_pp, unipc, dpm_solver_v3 or residual_exponential; None takes
    the solver's own."""
    variant: str | None = None
    """dpm_solver_pp: midpoint or taylor (order 2), published or corrected (order 3);
    unipc: bh1 or bh2; None takes the first, of unipc bh2."""
    singlestep: bool = False
    """dpm_solver_pp: points inside each step in the place of history."""
    lower_order_final: bool = True
    """Multistep solvers: let the order fall to 1 towards the end."""
    corrector: str | None = None
    """unipc: on or off; dpm_solver_v3: on, off or half; None takes on."""
    pseudo_order: bool = False
    """dpm_solver_v3: predict with divided differences, steadier at few calls."""
    pseudo_corrector: bool = False
    """dpm_solver_v3: correct with one order more, by divided differences."""
    statistics: str | None = None
    """dpm_solver_v3: file of estimate_statistics; residual_exponential: one of
    estimate_statistics --gains; None takes the workdir's model_statistics.npz or
    gains.npz, or else the closed form of the Gaussian."""
    rank: int = 128
    """residual_exponential: principal directions that are treated one by one."""
    churn: float = 0.0
    """stochastic_heun: how much noise is put in, EDM's S_churn."""
    churn_min: float = 0.0
    """stochastic_heun: no noise below this sigma, S_min."""
    churn_max: float | None = None
    """stochastic_heun: no noise above this sigma, S_max; None sets no limit."""
    churn_noise: float = 1.0
    """stochastic_heun: factor of the noise, S_noise."""
    schedule: str = "karras"
    """Noise grid: karras, log_linear, or vp_uniform (uniform in the VP process's
    time)."""
    num_points: int = 18
    """Points of the grid from sigma_max to sigma_min."""
    nfe: int | None = None
    """Network calls per image, the skip allowed for; sets num_points."""
    sigma_min: float = 0.002
    """Last point of the grid, in data units."""
    sigma_max: float = 80.0
    """First point of the grid, in data units."""
    rho: float = 7.0
    """Exponent of the karras grid."""
    sigmas: tuple[float, ...] | None = None
    """The grid itself, decreasing, in the place of schedule, points and ends."""
    tuned: int | None = None
    """Take the sampler that samplers.tune has found for so many network calls; all
    else of the sampler is left out."""
    teleport: float | Literal["auto"] | None = None
    """Start at or below this sigma, moved there by a closed form of the training
    images; auto predicts the best, or that none is; None starts at sigma_max."""
    skip_mode: str = "same-tail"
    """After a teleport: same-tail keeps the grid's points at or below it; re-spread
    puts all num_points between it and sigma_min."""
    moment_matched: bool = False
    """Draw the start from the noised Gaussian itself, its mean included."""
    gaussian: str | None = None
    """File with the Gaussian; None uses workdir/gaussian.npz."""
    class_gaussians: str | None = None
    """File with a mixture, one component for each class in order: teleport each image
    by its own class."""
    prefix: str | None = None
    """File with a mixture or an empirical model: teleport by its flow, integrated
    without the network."""
    other_data: bool = False
    """Accept closed forms that were fitted to other images than the network's, and
    statistics of another checkpoint."""

    def __post_init__(self) -> None:
        """Check names, ranges, and that all that is set has an effect."""
        if self.tuned is not None:
            self._check_tuned(self.tuned)
        require_choice("solver", self.solver, SOLVERS)
        require_choice("schedule", self.schedule, SCHEDULES)
        require_choice("sampler.skip_mode", self.skip_mode, SKIP_MODES)
        self._check_solver()
        self._check_grid()
        self._check_start()

    @property
    def ends(self) -> tuple[float, float]:
        """First and last point of the whole grid."""
        if self.sigmas is not None:
            return self.sigmas[0], self.sigmas[-1]
        return self.sigma_max, self.sigma_min

    def _check_tuned(self, calls: int) -> None:
        require(calls >= 2, "sampler.tuned", calls, ">= 2 network calls")
        for item in fields(self):
            if item.name not in ("tuned", "other_data") and self.changed(item.name):
                raise InputError(
                    f"sampler.{item.name} has no effect beside sampler.tuned, which is "
                    "the whole sampler; leave one of them out"
                )

    def _check_solver(self) -> None:
        entry = SOLVERS[self.solver]
        for name in {name for other in SOLVERS.values() for name in other.options}:
            if name not in entry.options and self.changed(name):
                raise _no_such_option(self, name)
        require(
            self.order is None or self.order in entry.orders,
            "sampler.order",
            self.order,
            f"one of {', '.join(map(str, entry.orders))} with {self.solver}, or None",
        )
        if self.corrector is not None:
            require_choice("sampler.corrector", self.corrector, entry.correctors)
        if self.corrector == "off" and self.pseudo_corrector:
            raise InputError(
                "sampler.pseudo_corrector is set, but sampler.corrector is off; leave "
                "one of them out"
            )
        require(self.rank >= 0, "sampler.rank", self.rank, ">= 0")
        self._check_variant(entry)
        if self.solver == "stochastic_heun":
            self._check_churn()

    def _check_variant(self, entry: SolverEntry) -> None:
        """Check the variant, and what order 1 or inner points leave no use for."""
        order = self.order or (2 if self.solver == "dpm_solver_pp" else 3)
        if self.variant is not None:
            allowed = entry.variants.get(order, ())
            if self.singlestep and order == 3:
                allowed = allowed[:1]
            if not allowed:
                raise InputError(
                    f"sampler.variant is {self.variant!r}, but {self.solver} of order "
                    f"{order} has none; leave it out"
                )
            require_choice("sampler.variant", self.variant, allowed)
        if self.singlestep and not self.lower_order_final:
            raise InputError(
                "sampler.lower_order_final has no effect beside sampler.singlestep, "
                "whose steps all have the full order; leave it out"
            )
        if self.order == 1 and self.solver != "unipc":
            for name in ("lower_order_final", "pseudo_order", "pseudo_corrector"):
                if self.changed(name):
                    raise InputError(
                        f"sampler.{name} has no effect with sampler.order 1; leave it "
                        "out"
                    )

    def _check_churn(self) -> None:
        require(
            is_positive(self.churn),
            "sampler.churn",
            self.churn,
            "> 0 with stochastic_heun, such as 30 (without noise it is heun)",
        )
        high = math.inf if self.churn_max is None else self.churn_max
        require(
            0 <= self.churn_min < high,
            "sampler.churn_min",
            self.churn_min,
            f"in [0, {high})",
        )
        require(
            is_positive(self.churn_noise),
            "sampler.churn_noise",
            self.churn_noise,
            "> 0",
        )

    def _check_grid(self) -> None:
        require(self.num_points > 0, "sampler.num_points", self.num_points, "> 0")
        require(
            self.nfe is None or self.nfe > 0, "sampler.nfe", self.nfe, "> 0 or None"
        )
        require(is_positive(self.sigma_min), "sampler.sigma_min", self.sigma_min, "> 0")
        require(
            math.isfinite(self.sigma_max) and self.sigma_max > self.sigma_min,
            "sampler.sigma_max",
            self.sigma_max,
            f"above sigma_min = {self.sigma_min}",
        )
        require(is_positive(self.rho), "sampler.rho", self.rho, "> 0")
        if self.schedule != "karras" and self.changed("rho"):
            raise InputError(
                f"sampler.rho is {self.rho}, but the grid is {self.schedule}; rho "
                "belongs to karras: leave it out"
            )
        if self.nfe is not None and self.changed("num_points"):
            raise InputError(
                "sampler.nfe and sampler.num_points say the same thing twice; leave "
                "one of them out"
            )
        if self.sigmas is not None:
            self._check_own_grid(self.sigmas)

    def _check_own_grid(self, sigmas: tuple[float, ...]) -> None:
        decreasing = all(a > b for a, b in itertools.pairwise(sigmas))
        require(
            len(sigmas) > 0 and all(map(is_positive, sigmas)) and decreasing,
            "sampler.sigmas",
            sigmas,
            "finite, > 0 and decreasing",
        )
        for name in ("schedule", "num_points", "nfe", "sigma_min", "sigma_max", "rho"):
            if self.changed(name):
                raise InputError(
                    f"sampler.{name} has no effect beside sampler.sigmas, which is the "
                    "whole grid; leave one of them out"
                )

    def _check_start(self) -> None:
        highest, lowest = self.ends
        require(
            self.teleport in (None, "auto")
            or (
                not isinstance(self.teleport, str)
                and lowest <= self.teleport <= highest
            ),
            "sampler.teleport",
            self.teleport,
            f"in [{lowest}, {highest}], auto or None",
        )
        if self.teleport is None:
            for name in ("class_gaussians", "prefix", "skip_mode"):
                if self.changed(name):
                    raise InputError(
                        f"sampler.{name} is set, but nothing is skipped; add "
                        "--sampler.teleport SIGMA or leave it out"
                    )
        if self.skip_mode == "re-spread":
            require(
                self.sigmas is None,
                "sampler.skip_mode",
                "re-spread",
                "same-tail here: "
                "sampler.sigmas is the whole grid and is not spread again",
            )
            require(
                self.teleport == "auto"
                or (isinstance(self.teleport, float | int) and self.teleport > lowest),
                "sampler.teleport",
                self.teleport,
                f"above sigma_min = {lowest} with re-spread",
            )
        given = [
            name
            for name in ("moment_matched", "class_gaussians", "prefix")
            if self.changed(name)
        ]
        if self.teleport == "auto" and self.solver == "stochastic_heun":
            raise InputError(
                "sampler.teleport is auto, which predicts deterministic solvers; give "
                "a noise level, or leave out the churn with sampler.solver heun"
            )
        if self.teleport == "auto" and given:
            raise InputError(
                f"sampler.teleport is auto, which knows the workdir's Gaussian alone; "
                f"leave out sampler.{given[0]} or give a noise level"
            )
        if len(given) > 1:
            raise InputError(
                f"sampler.{given[0]} and sampler.{given[1]} are two starts; choose one"
            )
        used = self.teleport is not None and given in ([], ["moment_matched"])
        solved = "statistics" in SOLVERS[self.solver].options
        used = used or self.moment_matched or (solved and self.statistics is None)
        if self.gaussian is not None and not used:
            raise InputError(
                "sampler.gaussian is set, but nothing uses it; add --sampler.teleport "
                "SIGMA or leave it out"
            )

    def changed(self, name: str) -> bool:
        """Tell whether a field has another value than its default."""
        return getattr(self, name) != _DEFAULTS[name]


_DEFAULTS = {item.name: item.default for item in fields(SamplerConfig)}


@dataclass(frozen=True)
class GenerationConfig:
    """What is drawn, how, and what is written."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    num_samples: int = 64
    """Samples to draw; sample i depends on the seed and on i alone."""
    seed: int = 0
    """Seed of noise and classes."""
    block_size: int = 256
    """Samples computed at once, over all devices; rounded up to a multiple of them."""
    step: int | None = None
    """Checkpoint to use; None for the newest."""
    condition: tuple[float, ...] = ()
    """Augmentation condition, for transformed images; none for images as they are."""
    class_label: str | None = None
    """Networks that are told classes: a class's number, random, or balanced (sample i
    is of class i modulo their number); None draws at random."""
    guidance: float | None = None
    """Weight of guidance: 1 is none, above 1 strengthens the class, or what the network
    does better than its guide."""
    guidance_interval: tuple[float, float] | None = None
    """Guide at lowest < sigma <= highest only; None guides everywhere."""
    guide: str | None = None
    """Workdir of a weaker network to guide away from (auto-guidance); None takes the
    same network without classes."""
    guide_step: int | None = None
    """Checkpoint of the guide; None for its newest."""
    format: tuple[str, ...] = ()
    """What to write, one or more: folder (PNG files) or zip (the same in one file),
    npz (uint8 images), npy (floats in data units); none for folder, or npy where the
    samples are no images."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_samples", "block_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must be in [0, 2**32)")
        for name in self.format:
            require_choice("format", name, FORMATS)
        if len(set(self.format)) < len(self.format):
            raise InputError(f"format {' '.join(self.format)} names one kind twice")
        label = self.class_label
        if label is not None and label not in ("random", "balanced"):
            if not label.isdecimal():
                raise choice_error("class_label", label, ("random", "balanced", "0"))
        self._check_guidance()

    def _check_guidance(self) -> None:
        weight, interval = self.guidance, self.guidance_interval
        if weight is None:
            for name in ("guidance_interval", "guide", "guide_step"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{name} is set, but there is no guidance; add --guidance "
                        "WEIGHT or leave it out"
                    )
        elif not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"guidance is {weight}; it must be a finite number >= 0")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise InputError(
                f"guidance_interval is {interval}; give 0 <= lowest < highest"
            )
        if self.guide is None and self.guide_step is not None:
            raise InputError("guide_step needs --guide WORKDIR; add it or leave it out")


def _no_such_option(config: SamplerConfig, name: str) -> InputError:
    takers = [other for other, entry in SOLVERS.items() if name in entry.options]
    return InputError(
        f"sampler.{name} is {getattr(config, name)!r}, but {config.solver} takes no "
        f"{name}; it belongs to {', '.join(takers)}: leave it out"
    )
