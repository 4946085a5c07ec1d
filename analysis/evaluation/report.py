"""An evaluation as a table on the terminal and as ``evaluation.json``."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from analysis.evaluation.choice import Request
from analysis.evaluation.evaluating import Evaluation, evaluate_samples
from analysis.evaluation.numbers import Row
from configs.errors import InputError
from diffusion.atomic import write_json
from diffusion.training.locking import lock_workdir

__all__ = ["evaluation_record", "evaluation_table", "write_evaluation"]

_HEADER = ("metric", "value", "interval", "floor", "n", "reference", "of what")


def write_evaluation(
    request: Request, *, out: str | Path | None = None, cache: str | Path | None = None
) -> Evaluation:
    """Evaluate, print the table, and write ``evaluation.json``.

    An interrupted evaluation keeps the features that it has; the same command goes on.

    Args:
        request: What to evaluate.
        out: File to write; None is ``evaluation.json`` beside the samples.
        cache: Folder in which features are kept for other evaluations; None for one
            beside `out` that is deleted at the end.

    Returns:
        The evaluation.

    Raises:
        InputError: See `evaluate_samples`; or if another process uses the folder.
        OSError: If something cannot be written.
    """
    path = Path(out) if out is not None else _beside(request.samples[0])
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file with --out")
    # Samples in one folder share evaluation.json, but not what is begun.
    name = f"{path.stem}-{Path(request.samples[0]).name}.partial"
    folder = Path(cache) if cache is not None else path.with_name(name)
    with _locked(folder):
        evaluation = evaluate_samples(request, folder)
        print(evaluation_table(evaluation))
        write_json(path, evaluation_record(evaluation))
        if cache is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"evaluation: {path}")
    return evaluation


def evaluation_table(evaluation: Evaluation) -> str:
    """Return the numbers as lines of text, and what was left out."""
    table = [_HEADER, *(_cells(row) for row in evaluation.rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in table
    ]
    lines += [
        f"{name}: {about['path']}, {about['count']} members, sha256 "
        f"{(about['sha256'] or 'not stated')[:16]}"
        for name, about in evaluation.sets.items()
    ]
    weights = {row.settings.get("weights") for row in evaluation.rows} - {None}
    resizes = {row.settings.get("resize") for row in evaluation.rows} - {None}
    if weights:
        lines.append(
            f"weights: sha256 {', '.join(sorted(map(str, weights)))[:16]}; resize: "
            f"{', '.join(sorted(map(str, resizes)))}"
        )
    reasons: dict[str, list[str]] = {}
    for name, reason in evaluation.left_out.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        lines.append(f"left out: {', '.join(names)}: {reason}")
    return "\n".join(line.rstrip() for line in lines)


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as plain values.

    Every number stands beside its interval, the number of members on both sides, the
    resize, the digests of weights and of the sets it depends on, and its settings.
    """
    request, sets = evaluation.request, evaluation.sets
    limits = request.limits
    shared = {
        "confidence": limits.confidence,
        "num_resamples": limits.num_resamples,
        "seed": request.seed,
    }
    return {
        "sets": {name: dict(about) for name, about in sets.items()},
        "protocol": request.protocol,
        "metrics": [
            {**_numbers(row), **shared, **_digests(row, sets), **row.settings}
            for row in evaluation.rows
        ],
        "left_out": dict(evaluation.left_out),
        "versions": {name: version(name) for name in ("numpy", "jax")},
    }


def _numbers(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row._asdict().items() if k not in ("settings", "sets")}


def _digests(row: Row, sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{name}_sha256": sets[name]["sha256"] for name in row.sets}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder of features.

    One that is made here and has nothing in it does not outlive a refusal; one that was
    there before is another's to delete.
    """
    is_ours = not folder.exists()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_workdir(folder))
        except InputError:
            raise InputError(
                f"{folder} is in use by another evaluation; wait for it, or choose "
                "another --cache or --out"
            ) from None
        try:
            yield
        finally:
            names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
            if is_ours and names == [".lock"]:
                shutil.rmtree(folder, ignore_errors=True)


def _cells(row: Row) -> tuple[str, ...]:
    floor = row.settings.get("floor")
    return (
        row.metric,
        f"{row.value:.5g}",
        f"[{row.low:.4g}, {row.high:.4g}]",
        "" if floor is None else f"[{floor[0]:.4g}, {floor[1]:.4g}]",
        str(row.num_samples),
        "" if row.num_reference is None else str(row.num_reference),
        str(row.settings.get("space", "")),
    )


def _beside(samples: str) -> Path:
    """Return evaluation.json beside the samples; inside the folder of a generation."""
    path = Path(samples)
    if (path / "record.json").is_file():
        return path / "evaluation.json"
    return path.parent / "evaluation.json"
