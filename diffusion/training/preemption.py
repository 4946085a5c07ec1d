"""Stopping when the machine or the user asks for it.

SIGTERM (schedulers, cloud machines) and SIGINT (Ctrl-C) set a flag that the training
loop looks at between steps.  Among several processes the signal may reach any of them;
all then learn of it at one step, which jax.distributed and orbax agree upon.  They
watch SIGTERM only, so SIGINT is passed on as that.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

__all__ = ["watch_for_preemption"]


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[], bool]]:
    """Within the block, turn signals into an answer instead of an end.

    A second signal acts as usual, for a user who does not want to wait.

    Yields:
        A function that returns whether a signal has come.  With several processes it
        says nothing: theirs is the answer of `Checkpoints.reached_preemption`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals belong to the main thread
        return
    several = jax.process_count() > 1
    watched = [signal.SIGINT] if several else [signal.SIGTERM, signal.SIGINT]
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in watched}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        _set_handlers(before)
        if several:
            # To the handler that jax.distributed has put below Python's.
            os.kill(os.getpid(), signal.SIGTERM)

    _set_handlers(dict.fromkeys(watched, note))
    try:
        yield lambda: asked.is_set() and not several
    finally:
        _set_handlers(before)


def _set_handlers(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
