"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

__all__ = ["Progress"]


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
        self._started = self._last_line = time.monotonic()
        self._first = done
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
        line = f"{self.label}: {self.done}/{self.total} {self.unit}s{self._left()}"
        print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)

    def _left(self) -> str:
        """Return the time left at the pace so far, when there is any."""
        done, left = self.done - self._first, self.total - self.done
        if done <= 0 or left <= 0:
            return ""
        seconds = round((time.monotonic() - self._started) * left / done)
        hours, minutes = divmod(seconds // 60, 60)
        return f"  {hours}:{minutes:02}:{seconds % 60:02} left"

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
