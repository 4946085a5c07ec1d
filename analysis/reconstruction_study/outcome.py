"""What a part of the study hands to the page and to the record."""

from collections.abc import Callable
from typing import Any, NamedTuple

from analysis.reconstruction_study.problem import Study
from analysis.section import Section

__all__ = ["Outcome", "PartMaker"]


class Outcome(NamedTuple):
    """A part of the study.

    Attributes:
        section: What the page says.
        figures: Plain values for the record: what was measured, in a few numbers.
    """

    section: Section
    figures: dict[str, Any]


PartMaker = Callable[[Study], Outcome]
"""Makes a part; tables and figures are written in the study's folder."""
