"""Large buffers of the host, kept by the process between steps.

On CPUs XLA takes the memory of a step anew each time.  The C library returns blocks of
that size to the system at once, which then hands out zeroed pages again, one page fault
per 4 KiB: 350,000 of them and 12 % of the time in a step that needs 1.4 GB.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Parameters of mallopt (glibc's malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let the process reuse freed memory instead of returning it to the system.

    To be called at the start of a command that will compute on the CPU, before it makes
    threads.  The process then keeps the most memory that it ever needed until it ends.

    Returns:
        Whether the C library took the setting; False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # One arena, in one piece, that never shrinks.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
