"""What tuning leaves in a workdir: ``tuned-6.json``, and what is done of it so far.

The result is written whole or not at all, and names the checkpoint that it was found
for (`samplers.model.Model.digest`); others are refused.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from configs.errors import InputError
from configs.sampler_schema import SamplerConfig
from configs.schema import from_dict, to_dict
from diffusion.atomic import write_json
from diffusion.versions import versions
from samplers.model import Model, load_model
from samplers.tuning import Trial, describe

__all__ = [
    "PartialTuning",
    "finite",
    "load_tuned",
    "open_partial_tuning",
    "print_table",
    "read_finished",
    "result_of",
    "tuned_path",
]

_FORMAT = "scorelab tuned sampler 1"


class PartialTuning(NamedTuple):
    """What is done of a tuning.

    Attributes:
        path: Where it is kept.
        settings: What decides on the result.
        predicted: Errors of all starts and grids, by solver; None for infinite ones.
        verified: Errors by sampler.
    """

    path: Path
    settings: dict[str, Any]
    predicted: dict[str, list[float | None]]
    verified: dict[str, float | None]

    def save(self) -> None:
        """Write it."""
        write_json(self.path, {n: v for n, v in self._asdict().items() if n != "path"})


def load_tuned(
    workdir: str | Path,
    calls: int,
    *,
    model: Model | None = None,
    other_data: bool = False,
) -> SamplerConfig:
    """Return the sampler that `tune` has chosen for a run.

    Args:
        workdir: The run.
        calls: Network calls per image that it was tuned for.
        model: The run's model, if it is loaded already; else its newest checkpoint.
        other_data: Accept one that was tuned on another checkpoint.

    Raises:
        InputError: If there is none, it is damaged, or of another checkpoint.
    """
    path = tuned_path(Path(workdir), calls)
    command = f"python -m samplers.tune {workdir} --calls {calls}"
    if not path.is_file():
        raise InputError(f"there is no {path}; tune the run first: {command}")
    values = _read_json(path)
    model = load_model(workdir) if model is None else model
    try:
        digest = str(values["model_sha256"])
        config = from_dict(SamplerConfig, values["sampler"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); delete it: {command}"
        ) from None
    if values.get("calls") != calls:
        raise InputError(
            f"{path} was tuned for {values.get('calls')} calls, not {calls}; delete "
            f"it: {command}"
        )
    if not (other_data or model.is_measured_by(digest)):
        raise InputError(
            f"{path} was tuned on another checkpoint (sha256 {digest[:12]}... instead "
            f"of {model.digest[:12]}...); name that one with --step, or delete the "
            f"file and tune again: {command}"
        )
    named = {n: getattr(config, n) for n in ("gaussian", "statistics")}
    files = {n: str(Path(workdir) / v) for n, v in named.items() if v is not None}
    return dataclasses.replace(config, **files, other_data=other_data)


def tuned_path(workdir: Path, calls: int) -> Path:
    """Return where the result of a run lies."""
    return workdir / f"tuned-{calls}.json"


def result_of(
    trials: Sequence[Trial],
    num_best: int,
    settings: dict[str, Any],
    surrogate: dict[str, Any],
) -> dict[str, Any]:
    """Return what is written: the best in order of their errors, and the plain ones.

    Args:
        trials: The best, then the plain ones.
        num_best: How many are the best.
        settings: What decides on the result.
        surrogate: Its description.
    """
    best = sorted(trials[:num_best], key=_error)
    chosen = best[0]
    return {
        "format": _FORMAT,
        "calls": settings["calls"],
        "sampler": to_dict(chosen.config),
        "predicted": finite(chosen.predicted),
        "verified": finite(chosen.verified),
        "best": [_row(trial) for trial in best],
        "plain": [_row(trial) for trial in trials[num_best:]],
        "model_sha256": settings["model_sha256"],
        "surrogate": surrogate,
        "settings": settings,
        "backend": jax.default_backend(),
        "versions": versions(),
    }


def _error(trial: Trial) -> float:
    return trial.predicted if trial.verified is None else trial.verified


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "name": describe(trial.config),
        "predicted": finite(trial.predicted),
        "verified": finite(trial.verified),
        "sampler": to_dict(trial.config),
    }


def print_table(result: dict[str, Any]) -> None:
    """Print names, predicted and verified errors: choice, runners-up, plain solvers."""
    rows = [("choice", result["best"][0])]
    rows += [("", row) for row in result["best"][1:]]
    rows += [("plain", row) for row in result["plain"]]
    width = max(len(row["name"]) for _, row in rows)
    print(f"{'':8}{'':{width}}  predicted  verified")
    for kind, row in rows:
        numbers = [
            f"{'-' if row[name] is None else format(row[name], '.4f'):>9}"
            for name in ("predicted", "verified")
        ]
        print(f"{kind:8}{row['name']:{width}}  {numbers[0]} {numbers[1]}")


def read_finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result that lies there, if it is of these settings."""
    if not out.is_file():
        return None
    found = _read_json(out)
    return found if found.get("settings") == settings else None


def open_partial_tuning(out: Path, settings: dict[str, Any]) -> PartialTuning:
    """Return what an interrupted call has done; of other settings it is done anew."""
    path = out.with_name(f".{out.stem}.partial.json")
    if path.is_file():
        found = _read_json(path)
        if found.get("settings") == settings:
            return PartialTuning(path, settings, found["predicted"], found["verified"])
        print(f"{path} is of other settings: tuning begins anew", flush=True)
    return PartialTuning(path, settings, {}, {})


def finite(value: float | None) -> float | None:
    """Return a number as JSON can hold it: None in the place of infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it") from None
