"""What a run writes down: ``metrics.jsonl``, and progress on standard error.

Rows are appended whole.  After a restart the rows beyond the restored step are dropped,
so the file reads as if the run had never stopped.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion.atomic import write_atomically

__all__ = ["MetricsLog", "Progress", "finite_or_none", "read_metrics"]


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Return the rows of ``workdir/metrics.jsonl``; a torn last line is left out."""
    path = Path(workdir) / "metrics.jsonl"
    return list(_rows(path)) if path.is_file() else []


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return
        yield row


def finite_or_none(value: float) -> float | None:
    """Return the number, or None where JSON has no word for it."""
    return float(value) if math.isfinite(value) else None


class MetricsLog:
    """The file ``workdir/metrics.jsonl``, open for appending.

    Args:
        workdir: The run's folder.
        restored_step: Rows beyond this step are dropped.
        every: Steps between two rows; the row of an end that training now goes beyond
            is dropped too.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, workdir: str | Path, restored_step: int, every: int) -> None:
        """See the class."""
        self.path = Path(workdir) / "metrics.jsonl"
        rows = [
            row
            for row in read_metrics(workdir)
            if row["step"] <= restored_step and row["step"] % every == 0
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.path, lambda file: file.write(text.encode()))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; NaN and infinities are not allowed in it."""
        with open(self.path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Progress:
    """A bar on a terminal, plain lines elsewhere.

    Args:
        total: Number of units.
        done: Units done before.
        label: What is being done.
        unit: What a unit is called.
        seconds_between_lines: How often a plain line is printed.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        label: str,
        unit: str = "step",
        seconds_between_lines: float = 10.0,
    ) -> None:
        """See the class."""
        self.total, self.done, self.label, self.unit = total, done, label, unit
        self._interval = seconds_between_lines
        self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=label, unit=unit)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done; `note` stands behind the bar or the line."""
        self.done += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif note or self.done >= self.total:
            now = time.monotonic()
            if self.done >= self.total or now - self._last_line >= self._interval:
                self._last_line = now
                self._print(note)

    def _print(self, note: str) -> None:
        line = f"{self.label}: {self.done}/{self.total} {self.unit}s  {note}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
