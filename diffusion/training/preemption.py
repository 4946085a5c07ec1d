"""Stopping when the machine or the user asks for it.

SIGTERM (schedulers, cloud machines) and SIGINT (Ctrl-C) set a flag that the training
loop looks at between steps.  Among several processes the signal may reach any of them;
all then learn of it at one step, which jax.distributed and orbax agree upon.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax

__all__ = ["watch_for_preemption"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def watch_for_preemption(
    reached: Callable[[int], bool],
) -> Iterator[Callable[[int], bool]]:
    """Within the block, turn signals into an answer instead of an end.

    A second signal acts as usual, for a user who does not want to wait.

    Args:
        reached: Whether all processes are to stop at a step; asked when there are
            several.

    Yields:
        A function from the step to whether to save and stop now.
    """
    if jax.process_count() > 1:
        yield reached
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals belong to the main thread
        return
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        for name, handler in before.items():
            signal.signal(name, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda step: asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
