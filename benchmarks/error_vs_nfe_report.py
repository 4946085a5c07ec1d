"""What the table of errors says: the best of each kind, and the table itself, short."""

import math
from collections.abc import Callable
from typing import Any

from benchmarks.error_vs_nfe_table import OURS, Choice, Table, start_name

UNIT = 1e-5
"""Errors in the written table are whole numbers of this."""

PLAIN = (
    ("Euler", "log-uniform"),
    ("Heun", "Karras 7"),
    ("DPM++ 2M midpoint", "log-uniform"),
    ("DPM++ 3M published", "log-uniform"),
    ("UniPC-3 bh1", "log-uniform"),
)
"""What is used without a search: no skip, last sigma .002."""

Kind = Callable[[Choice], bool]

KINDS: dict[str, Kind] = {
    "published": lambda c: c.solver not in OURS and c.family != "prefix",
    "published, no skip": lambda c: c.solver not in OURS and c.family == "none",
    "published, teleport": lambda c: c.solver not in OURS and c.family == "teleport",
    "any solver, no skip": lambda c: c.family == "none",
    "any solver, teleport": lambda c: c.family == "teleport",
    "any solver, prefix": lambda c: c.family == "prefix",
    "all": lambda c: True,
}


def best_of(table: Table, kind: Kind) -> list[tuple[Choice, float]]:
    """Return the combination of least error among some, one per number of calls."""
    best: dict[int, tuple[Choice, float]] = {}
    for choice, rms in table.choices():
        if kind(choice) and rms < best.get(choice.calls, (choice, float("inf")))[1]:
            best[choice.calls] = choice, rms
    return [best[calls] for calls in table.grids.calls if calls in best]


def plain(table: Table) -> dict[str, list[float]]:
    """Return the errors of what is used without a search, by calls."""
    last = table.grids.last_sigmas[0]
    return {
        f"{solver}, {schedule}": [
            rms
            for choice, rms in table.choices()
            if (choice.solver, choice.family, choice.schedule, choice.last_sigma)
            == (solver, "none", schedule, last)
        ]
        for solver, schedule in PLAIN
        if schedule in table.grids.schedules and solver in table.solvers
    }


def rows_to_judge(table: Table) -> list[tuple[Choice, float]]:
    """Return what is judged by distances between distributions, each row once.

    By calls: the best published solver from every start, the best of all solvers in
    every family, and two that are used without a search.
    """
    kinds: list[Kind] = [
        lambda c, s=start: (c.family, c.sigma_skip) == s and c.solver not in OURS
        for start in table.starts
    ]
    kinds += [lambda c, f=f: c.family == f for f in ("none", "teleport", "prefix")]
    last = table.grids.last_sigmas[0]
    kinds += [
        lambda c, row=(solver, "none", schedule, last): (
            row == (c.solver, c.family, c.schedule, c.last_sigma)
        )
        for solver, schedule in PLAIN
        if solver in ("Heun", "DPM++ 2M midpoint")
    ]
    return list(dict.fromkeys(row for kind in kinds for row in best_of(table, kind)))


def describe(row: tuple[Choice, float]) -> dict[str, Any]:
    """Return a row as it is written."""
    choice, rms = row
    return {"rms": rms, **choice._asdict()}


def summarise(table: Table) -> dict[str, Any]:
    """Return the best combinations of each kind, by calls."""
    by_start = {
        start_name(*start): [
            rms
            for _, rms in best_of(
                table,
                lambda c, s=start: (
                    (c.family, c.sigma_skip) == s and c.solver not in OURS
                ),
            )
        ]
        for start in table.starts
    }
    by_solver = {
        solver: {
            family: [
                rms
                for _, rms in best_of(
                    table,
                    lambda c, s=solver, f=family: c.solver == s and c.family == f,
                )
            ]
            for family in ("none", "teleport", "prefix")
        }
        for solver in table.solvers
    }
    return {
        "calls": list(table.grids.calls),
        "best": {
            name: [describe(row) for row in best_of(table, kind)]
            for name, kind in KINDS.items()
        },
        "least_rms_of_published_solvers_by_start": by_start,
        "least_rms_by_solver_and_start": by_solver,
        "plain_rms": plain(table),
    }


def write_compactly(table: Table) -> dict[str, Any]:
    """Return the whole table: one string per solver, start and schedule."""
    texts: dict[str, dict[str, list[str]]] = {}
    for i, solver in enumerate(table.solvers):
        texts[solver] = {
            start_name(*start): [
                " ".join(_whole(rms) for rms in row.ravel().tolist())
                for row in table.rms[i, j]
            ]
            for j, start in enumerate(table.starts)
        }
    return {
        "unit": UNIT,
        "order": "solver, start, schedule (one string each), last sigma x calls",
        "schedules": list(table.grids.schedules),
        "last_sigmas": list(table.grids.last_sigmas),
        "calls": list(table.grids.calls),
        "rms": texts,
    }


def _whole(rms: float) -> str:
    """Return an error in units; one that has diverged is a dash."""
    return str(round(rms / UNIT)) if math.isfinite(rms) else "-"
