"""The solvers that have a name, and which options each of them takes.

The check of a configuration, ``--list-solvers`` and the error for an unknown name all
read this one table.
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["SOLVERS", "SolverEntry", "solver_table"]


class SolverEntry(NamedTuple):
    """One solver that has a name.

    Attributes:
        about: One line for ``--list-solvers``.
        options: Fields of `SamplerConfig` that it takes and others may not.
        orders: Orders that may be asked for; empty where there is no choice.
        correctors: Values of `corrector` that it knows.
        variants: Values of `variant` that it knows, by order.
    """

    about: str
    options: tuple[str, ...] = ()
    orders: tuple[int, ...] = ()
    correctors: tuple[str, ...] = ()
    variants: Mapping[int, tuple[str, ...]] = {}


_CHURN = ("churn", "churn_min", "churn_max", "churn_noise")
SOLVERS = {
    "euler": SolverEntry("order 1, which is DDIM; n calls on n points"),
    "heun": SolverEntry("order 2, EDM's; 2n - 1 calls"),
    "stochastic_heun": SolverEntry("heun between injections of noise; 2n - 1", _CHURN),
    "dpm_solver_pp": SolverEntry(
        "DPM-Solver++, order 2; n calls, or order (n - 1) + 1 with singlestep",
        ("order", "variant", "singlestep", "lower_order_final"),
        (1, 2, 3),
        variants={2: ("midpoint", "taylor"), 3: ("published", "corrected")},
    ),
    "unipc": SolverEntry(
        "predictor and corrector, order 3; n calls",
        ("order", "variant", "corrector", "lower_order_final"),
        (1, 2, 3, 4),
        ("on", "off"),
        dict.fromkeys((1, 2, 3, 4), ("bh1", "bh2")),
    ),
    "dpm_solver_v3": SolverEntry(
        "DPM-Solver-v3, order 3; n calls; with statistics of the model",
        (
            "order",
            "pseudo_order",
            "corrector",
            "pseudo_corrector",
            "lower_order_final",
            "statistics",
        ),
        (1, 2, 3),
        ("on", "off", "half"),
    ),
    "residual_exponential": SolverEntry(
        "the Gaussian's part exactly, order 2 for the rest; n calls; best with gains",
        ("order", "lower_order_final", "statistics", "rank"),
        (1, 2, 3),
    ),
}


def solver_table() -> str:
    """Return the solvers, one line each, with the options that belong to them."""
    lines = []
    for name, entry in SOLVERS.items():
        lines.append(f"{name:20} {entry.about}")
        if entry.options:
            options = (f"--sampler.{o.replace('_', '-')}" for o in entry.options)
            lines.append(f"{'':20} {' '.join(options)}")
    return "\n".join(lines)
