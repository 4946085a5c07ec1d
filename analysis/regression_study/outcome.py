"""What a part of the study hands to the page and to the record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from analysis.regression_study.problem import Study
from analysis.section import Section

__all__ = ["Advance", "Outcome", "PartMaker", "verdict"]

Advance = Callable[[str], None]
"""Told what has been done, once for each unit of work."""


class Outcome(NamedTuple):
    """A part of the study.

    Attributes:
        section: What the page says.
        figures: Plain values for the record: what was measured, in a few numbers.
    """

    section: Section
    figures: dict[str, Any]


PartMaker = Callable[[Study, Path, Advance], Outcome]
"""Makes a part: given the study, the page's folder, in which tables and figures are
written, and what to tell of progress.  Called under ``jax.enable_x64(True)``."""


def verdict(claim: str, measured: str, met: bool) -> str:
    """Return a sentence on a target that a measurement meets or misses."""
    return f"Target: {claim}. Measured: {measured}. It is {'met' if met else 'missed'}."
