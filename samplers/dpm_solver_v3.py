"""DPM-Solver-v3: a model's own linear part exactly, the rest by polynomials.

With u = log(1/sigma), x - D = l x + f and g = e^(-int s) f - int e^(-int s) b, all
integrals from the step's start (arXiv 2310.13268, in this house's frame),

    x(t) = A (x(s) - int E B - int E g),
    A = e^(-int_s^t l),   E(r) = e^(int_s^r (l + s)),   B(r) = int_s^r e^(-int s) b,

and g, which varies far less than D, is replaced by the Taylor polynomial whose
derivatives come from g at the last points.  l = 1, s = b = 0 is DPM-Solver++.  A
corrector does the same with the output at the step's end, where the denoiser has been
called at the predicted point; that call is not repeated, and f is kept.

The state holds the predicted x; a step first corrects it and goes on from there, so the
last point of a grid is not corrected.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError, choice_error
from diffusion.closed_form import GaussianDenoiser
from diffusion.denoiser import Denoiser
from samplers.coordinates import Split
from samplers.exponential import multistep_orders, quadrature
from samplers.model_statistics import (
    LinearPart,
    ModelStatistics,
    check_statistics,
    gaussian_statistics,
)

__all__ = ["DPMSolverV3"]

_ORDERS = (1, 2, 3)
_CORRECTORS = ("on", "off", "half")
_HALF_TIME_SIGMA = 3.41  # noise level at half the time of the VP process
_ROWS = 64  # points of a quadrature held at once


class V3Plan(NamedTuple):
    """Per step, coordinate by coordinate; outputs are f, the newest first.

    Attributes:
        sigma_next: (S,) noise level arrived at.
        gain: (S, C) 1 - l at the level left.
        predictor: (S, 1 + p, C) factors of x and of the outputs.
        predictor_bias: (S, C).
        kept: (S,) 1 where the point left is not corrected, else 0.
        corrector: (S, 2 + p, C) factors of x one point before and of the outputs.
        corrector_bias: (S, C).
    """

    sigma_next: NDArray[np.float64]
    gain: NDArray[np.float64]
    predictor: NDArray[np.float64]
    predictor_bias: NDArray[np.float64]
    kept: NDArray[np.float64]
    corrector: NDArray[np.float64]
    corrector_bias: NDArray[np.float64]


class V3State(NamedTuple):
    """What a step hands to the next; from `here` on split, measured from the origin.

    Attributes:
        x: (B, *event), predicted.
        denoised: D there.
        here: x.
        before: Corrected x one point before.
        history: f at earlier points, the newest first.
    """

    x: Array
    denoised: Array
    here: Split
    before: Split
    history: tuple[Split, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DPMSolverV3:
    """DPM-Solver-v3 of order 1 to 3, multistep, one call per grid point.

    With a basis a step costs two products with it, 2 D R multiply-adds per sample,
    beside the denoiser's call.

    Args:
        statistics: A table or measured gains; or the Gaussian of the training images,
            all of whose directions are treated one by one.
        order: 1, 2 or 3.
        pseudo_order: Predict with divided differences in place of derivatives, steadier
            at 5 calls and fewer.
        corrector: "on", "off", or "half": only at noise levels up to 3.41, which is
            half the time of the VP process (for strong guidance).
        pseudo_corrector: Correct with one order more, by divided differences.
        lower_order_final: Let the order fall to 1 towards the end.

    Raises:
        InputError: If the statistics, the order or the corrector are not of these.
    """

    statistics: GaussianDenoiser | ModelStatistics
    order: int = field(default=3, metadata={"static": True})
    pseudo_order: bool = field(default=False, metadata={"static": True})
    corrector: str = field(default="on", metadata={"static": True})
    pseudo_corrector: bool = field(default=False, metadata={"static": True})
    lower_order_final: bool = field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        """Check the settings."""
        check_statistics(self.statistics)
        if self.order not in _ORDERS:
            raise InputError(f"order is {self.order}; DPM-Solver-v3 has orders 1, 2, 3")
        if self.corrector not in _CORRECTORS:
            raise choice_error("corrector", self.corrector, _CORRECTORS)

    def plan(self, sigmas: NDArray[np.float64]) -> V3Plan:
        """Return the factors of every step.

        Raises:
            InputError: If the grid leaves the noise levels of the statistics.
        """
        statistics = self._statistics()
        part, size = statistics.linear_part(), statistics.coordinates.size
        u = -np.log(sigmas)
        steps = len(u) - 1
        predictor = np.zeros((steps, 1 + self.order, size))
        corrector = np.zeros((steps, 2 + self.order, size))
        predictor_bias, corrector_bias = np.zeros((2, steps, size))
        kept = np.ones(steps)
        orders = multistep_orders(
            steps, self.order, lower_order_final=self.lower_order_final
        )
        for i, order in enumerate(orders):
            past = u[i::-1][:order]
            integrals = _integrate_step(part, u[i], u[i + 1], self.order + 1)
            step = _Step(part, u[i], integrals)
            predictor[i, : 1 + order], predictor_bias[i] = step.factors(
                past, pseudo=self.pseudo_order
            )
            if i + 1 < steps and order > 1 and self._corrects(sigmas[i + 1]):
                used = past if self.pseudo_corrector else past[: order - 1]
                # The step's start first: divided differences are taken from there.
                points = np.insert(used, 1, u[i + 1])
                factors, corrector_bias[i + 1] = step.factors(
                    points, pseudo=self.pseudo_corrector
                )
                # (x, f at s, f at t, older) -> (x, f at t, f at s, older)
                factors[[1, 2]] = factors[[2, 1]]
                corrector[i + 1, : 1 + len(points)] = factors
                kept[i + 1] = 0.0
        gain = 1 - part.gains(u[:-1])
        return V3Plan(
            sigmas[1:], gain, predictor, predictor_bias, kept, corrector, corrector_bias
        )

    def init(
        self, denoiser: Denoiser, x: Array, sigma: Array, keys: Array | None = None
    ) -> V3State:
        """Return the state at the first grid point."""
        here = self._statistics().coordinates.split(x)
        nothing = jax.tree.map(jnp.zeros_like, here)
        history = (nothing,) * self.order
        return V3State(x, denoiser(x, sigma), here, nothing, history)

    def step(self, denoiser: Denoiser, state: V3State, coefficients: V3Plan) -> V3State:
        """Return the state at the next grid point."""
        frame = self._statistics().coordinates
        c = jax.tree.map(jnp.asarray, coefficients)
        minus = jnp.stack([c.gain, -jnp.ones_like(c.gain)])
        f = frame.combine(minus, [state.here, frame.split(state.denoised)])
        outputs = [f, *state.history]
        here = state.here
        if self.corrector != "off":
            kept = jnp.full_like(c.gain, c.kept)
            factors = jnp.concatenate([kept[None], c.corrector])
            here = frame.combine(factors, [here, state.before, *outputs])
            here = frame.shift(here, c.corrector_bias)
        moved = frame.combine(c.predictor, [here, *outputs[:-1]])
        moved = frame.shift(moved, c.predictor_bias)
        x = frame.join(moved).astype(state.x.dtype)
        moved = moved._replace(whole=frame.flat(x), shadow=moved.inside)
        there, here, *history = jax.tree.map(
            lambda new, old: new.astype(old.dtype),
            [moved, here, *outputs[:-1]],
            [state.here, state.before, *state.history],
        )
        return V3State(x, denoiser(x, c.sigma_next), there, here, tuple(history))

    def nfe(self, num_points: int) -> int:
        """Return n: one call at every grid point."""
        return num_points

    def _corrects(self, sigma: float) -> bool:
        if self.corrector == "half":
            return sigma <= _HALF_TIME_SIGMA
        return self.corrector == "on"

    def _statistics(self) -> ModelStatistics:
        """Return the linear part and its coordinates; a Gaussian's is whole."""
        if isinstance(self.statistics, GaussianDenoiser):
            return gaussian_statistics(self.statistics)
        return self.statistics


class _StepIntegrals(NamedTuple):
    """Of one step: A, int E B, and int E (r - u_s)^k / k! for each k, all (., C)."""

    decay: NDArray[np.float64]
    bias: NDArray[np.float64]
    powers: NDArray[np.float64]


class _Step(NamedTuple):
    """What moves x from u_s to the end of its step."""

    part: LinearPart
    u: float
    integrals: _StepIntegrals

    def factors(
        self, points: NDArray[np.float64], *, pseudo: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return factors of x and of f at `points`, (1 + K, C), and the bias, (C,)."""
        here = self.part.integrals(np.array([self.u]))
        there = self.part.integrals(points)
        # g_j = growth_j f_j - shift_j
        growth = np.exp(here.scaling - there.scaling)
        shift = np.exp(here.scaling) * (there.bias - here.bias)
        taylor = _taylor(points - self.u, pseudo=pseudo)
        decay, bias, powers = self.integrals
        weights = -decay * np.einsum("kj,kc->jc", taylor, powers[: len(points)])
        return (
            np.concatenate([decay[None], weights * growth]),
            -decay * bias - np.sum(weights * shift, axis=0),
        )


def _taylor(nodes: NDArray[np.float64], *, pseudo: bool) -> NDArray[np.float64]:
    """Return M (K, K): derivative k at 0 is sum_j M[k, j] g_j.

    Of the polynomial through the nodes; or, `pseudo`, k! times the divided difference
    through the first k + 1 of them (Neville's scheme), of lower order but steadier.
    """
    count = len(nodes)
    factorials = np.array([math.factorial(k) for k in range(count)], float)
    if not pseudo:
        vandermonde = nodes[:, None] ** np.arange(count) / factorials
        return np.linalg.inv(vandermonde).astype(np.float64)
    differences = np.eye(count)
    rows = [differences[0]]
    for k in range(1, count):
        gaps = nodes[k:] - nodes[:-k]
        differences = np.diff(differences, axis=0) / gaps[:, None]
        rows.append(differences[0])
    return factorials[:, None] * np.array(rows)


def _integrate_step(
    part: LinearPart, start: float, end: float, count: int
) -> _StepIntegrals:
    """Integrate over one step, piece by piece between the breakpoints."""
    here = part.integrals(np.array([start]))
    whole = part.integrals(np.array([end]))
    size = here.linear.shape[1]
    bias, powers = np.zeros(size), np.zeros((count, size))
    points, masses = quadrature(part.breakpoints(), start, end)
    for first in range(0, len(points), _ROWS):
        r, mass = points[first : first + _ROWS], masses[first : first + _ROWS]
        at = part.integrals(r)
        growth = at.linear - here.linear + at.scaling - here.scaling
        weighted = mass[:, None] * np.exp(growth)
        bias += np.sum(weighted * (at.bias - here.bias), axis=0)
        for k in range(count):
            powers[k] += ((r - start) ** k / math.factorial(k)) @ weighted
    bias *= np.exp(here.scaling[0])
    return _StepIntegrals(np.exp(here.linear - whole.linear)[0], bias, powers)
