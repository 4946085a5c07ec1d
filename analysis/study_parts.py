"""Parts of a study: each made once, kept on the disk, and taken up by the next call.

A part is a section of the page and a few figures for ``record.json``.  Both are kept
in the page's folder together with what they were made from, so that another call with
other settings makes anew just the parts that depend on them.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from analysis.section import Section, kept_section
from diffusion.atomic import read_json, write_json

__all__ = [
    "Advance",
    "MadePart",
    "Outcome",
    "folder_name",
    "is_complete",
    "kept_part",
    "make_part",
    "verdict",
    "write_record",
]

Advance = Callable[[str], None]
"""Told what has been done, once for each unit of work."""


class Outcome(NamedTuple):
    """What the maker of a part returns.

    Attributes:
        section: What the page says.
        figures: Plain values for the record: what was measured, in a few numbers.
    """

    section: Section
    figures: dict[str, Any]


class MadePart(NamedTuple):
    """A part that is on the disk.

    Attributes:
        section: What the page says.
        figures: Plain values, None for numbers that do not exist.
        seconds: What making it took.
    """

    section: Section
    figures: Mapping[str, Any]
    seconds: float


def verdict(claim: str, measured: str, met: bool) -> str:
    """Return a sentence on a target that a measurement meets or misses."""
    return f"Target: {claim}. Measured: {measured}. It is {'met' if met else 'missed'}."


def make_part(
    folder: Path, name: str, about: Mapping[str, Any], make: Callable[[], Outcome]
) -> MadePart:
    """Make a part and keep it.

    Args:
        folder: The page's folder.
        name: The part's.
        about: Plain values: what it is made from.
        make: Makes it.

    Raises:
        OSError: If something cannot be written.
    """
    started = time.perf_counter()
    section, measured = make()
    figures = _without_nan(measured)
    seconds = time.perf_counter() - started
    path, beside = _paths(folder, name)
    write_json(beside, {"about": about, "figures": figures, "seconds": seconds})
    section.keep(path, about)
    return MadePart(section, figures, seconds)


def kept_part(folder: Path, name: str, about: Mapping[str, Any]) -> MadePart | None:
    """Return a part of an earlier call, if it was made from the same and is whole.

    Args:
        folder: The page's folder.
        name: The part's.
        about: What it must have been made from.
    """
    path, beside = _paths(folder, name)
    section, found = kept_section(path, folder, about), read_json(beside)
    if section is None or found.get("about") != _plain(about):
        return None
    return MadePart(section, found["figures"], float(found["seconds"]))


def is_complete(folder: Path, about: Mapping[str, Any]) -> bool:
    """Tell whether page and record of a study are there, made from what is given."""
    found = read_json(folder / "record.json").get("about")
    return (folder / "study.html").is_file() and found == _plain(about)


def write_record(
    folder: Path, about: Mapping[str, Any], made: Mapping[str, MadePart]
) -> None:
    """Write ``record.json``: what a study was made from, its seconds and figures.

    Raises:
        OSError: If it cannot be written.
    """
    values = {
        "about": about,
        "backend": jax.default_backend(),
        "seconds": {name: part.seconds for name, part in made.items()},
        "figures": {name: part.figures for name, part in made.items()},
    }
    write_json(folder / "record.json", values)


def folder_name(name: str) -> str:
    """Return what a folder is called after a data set, a run or a file."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-") or "data"


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return where the section is kept, and where its figures for the record."""
    partial = folder / "partial"
    return partial / f"section_{name}.json", partial / f"figures_{name}.json"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from JSON."""
    return json.loads(json.dumps(values))


def _without_nan(value: Any) -> Any:
    """Return plain values with None for numbers that do not exist."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
