"""One writer per workdir.

The lock is the kernel's and dies with its process, however that ends; the file that
carries it says nothing by being there.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from configs.errors import InputError

__all__ = ["lock_workdir"]


@contextlib.contextmanager
def lock_workdir(workdir: str | Path) -> Iterator[None]:
    """Hold a workdir for the length of the block.

    Args:
        workdir: The run's folder; made if it is missing.

    Yields:
        Nothing.

    Raises:
        InputError: If another process holds it.
        OSError: If the folder cannot be made.
    """
    path = Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"{workdir} is in use by another process ({holder}); wait for it, stop "
                "it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
