"""What a run writes down: ``metrics.jsonl``.

Rows are appended whole.  After a restart the rows beyond the restored step are dropped,
so the file reads as if the run had never stopped.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion.atomic import write_atomically

__all__ = ["MetricsLog", "finite_or_none", "read_metrics"]


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
