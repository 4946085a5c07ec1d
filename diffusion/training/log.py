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

from configs.errors import InputError
from diffusion.atomic import write_atomically

__all__ = ["MetricsLog", "finite_or_none", "read_metrics"]

_END = "only_because_of_the_end"


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
        restored_step: Rows beyond this step are dropped, and that of an end that
            training now goes beyond.
        tensorboard: Whether to write the scalars to ``workdir/tensorboard`` as well.

    Raises:
        InputError: If tensorboardX is asked for and not installed.
        OSError: If the file cannot be written.
    """

    def __init__(
        self,
        workdir: str | Path,
        restored_step: int,
        *,
        tensorboard: bool = False,
    ) -> None:
        """See the class."""
        self._writer = _summary_writer(workdir, restored_step) if tensorboard else None
        self.path = Path(workdir) / "metrics.jsonl"
        rows = [
            row
            for row in read_metrics(workdir)
            if row["step"] <= restored_step and not row.get(_END)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.path, lambda file: file.write(text.encode()))

    def write(self, row: dict[str, Any], *, kept: bool = True) -> None:
        """Append one row; NaN and infinities are not allowed in it.

        Args:
            row: Names and values.
            kept: False for a row that is there only because training ends.
        """
        row = row if kept else row | {_END: True}
        with open(self.path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._writer is not None:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()


def _summary_writer(workdir: str | Path, restored_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError(
            "training.tensorboard needs tensorboardX; install it with pip install "
            "'scorelab[tensorboard]', or leave it out: metrics.jsonl has the same rows"
        ) from None
    # Points beyond the restored step are purged, as rows of metrics.jsonl are dropped.
    return SummaryWriter(
        str(Path(workdir) / "tensorboard"), purge_step=restored_step + 1
    )


def _scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield names and values of a row; those of a bin are numbered."""
    for name, value in row.items():
        values = {name: value}
        if isinstance(value, list):
            values = {f"{name}/{index}": item for index, item in enumerate(value)}
        for key, item in values.items():
            if item is not None and not key.startswith(("sigma_bin_edges", _END)):
                yield key, item
