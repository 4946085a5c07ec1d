"""Files in the making, and a journal that says how much of each is whole.

All files only ever grow.  Once the data of a block are on the disk, the journal is
written anew (in one step) with their sizes; a process that was killed at any moment is
continued by cutting every file back to its size in the journal.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from configs.errors import InputError
from diffusion.atomic import write_json
from diffusion.training.locking import lock_workdir

__all__ = ["PartialFiles", "open_partial_files"]

JOURNAL = "journal.json"


class PartialFiles:
    """Growing files of one folder.

    Args:
        folder: Where they lie; made by `open_partial_files`.
        settings: What is being made, ready for JSON.
        done: Samples that are whole.
        sizes: Bytes of each file that are whole.
        notes: Further values that grow with the files, ready for JSON.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        done: int,
        sizes: dict[str, int],
        notes: dict[str, Any],
    ) -> None:
        """See the class."""
        self.folder, self.settings, self.done = folder, settings, done
        self.sizes, self.notes = sizes, notes
        self._open: dict[str, BinaryIO] = {}

    def path(self, name: str) -> Path:
        """Return where a file lies."""
        return self.folder / name

    def append(self, name: str, data: bytes) -> None:
        """Add bytes to a file.

        Raises:
            InputError: If an earlier process has written it and it has lost data since.
            OSError: If the disk is full or read-only.
        """
        if name not in self._open:
            self._open[name] = self._reopen(name)
        self._open[name].write(data)
        self.sizes[name] += len(data)

    def _reopen(self, name: str) -> BinaryIO:
        """Open a file where its whole part ends."""
        path, size = self.path(name), self.sizes.setdefault(name, 0)
        if size and (not path.is_file() or path.stat().st_size < size):
            raise InputError(
                f"{path} has lost data that its journal names; delete "
                f"{self.folder.parent} or choose another --outdir"
            )
        file = open(path, "r+b" if size else "w+b")
        file.truncate(size)
        file.seek(size)
        return file

    def commit(self, done: int) -> None:
        """Say that so many samples are whole, after their data are on the disk.

        Raises:
            OSError: If the disk is full or read-only.
        """
        self.flush()
        self.done = done
        journal = {
            "settings": self.settings,
            "done": done,
            "sizes": self.sizes,
            "notes": self.notes,
        }
        write_json(self.path(JOURNAL), journal)

    def flush(self) -> None:
        """Bring what was appended to the disk."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()


@contextlib.contextmanager
def open_partial_files(
    folder: Path, settings: dict[str, Any]
) -> Iterator[PartialFiles]:
    """Begin files in a folder, or go on with them, for the length of the block.

    Args:
        folder: Made if it is missing.
        settings: What is being made; what an earlier process has begun is handed out
            with its own settings, for the caller to compare.

    Yields:
        The files.

    Raises:
        InputError: If another process writes them, or the journal is damaged.
        OSError: If something cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_workdir(folder))
        except InputError as error:
            raise InputError(
                f"{folder.parent} is being written by another process; wait for it, "
                "stop it, or choose another --outdir"
            ) from error
        files = _read(folder) or PartialFiles(folder, settings, 0, {}, {})
        stack.callback(files.close)
        yield files


def _read(folder: Path) -> PartialFiles | None:
    path = folder / JOURNAL
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        return PartialFiles(
            folder,
            dict(values["settings"]),
            int(values["done"]),
            {str(name): int(size) for name, size in values["sizes"].items()},
            dict(values["notes"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete {folder.parent} or choose another "
            "--outdir"
        ) from error
