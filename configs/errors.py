"""The one exception that means: the input is at fault, not the program.

Every check of user input raises `InputError` with a single line that says what was
given, what is allowed and what to do next.  Entry modules print that line behind
``error:`` and exit with status 2; library callers see an ordinary `ValueError`.  What
can be done but is probably not meant is an `InputWarning`.
"""

import difflib
import math
from collections.abc import Iterable

__all__ = [
    "InputError",
    "InputWarning",
    "choice_error",
    "is_positive",
    "require",
    "require_choice",
]


class InputError(ValueError):
    """A mistake in what the caller gave; its text is one line that teaches."""


class InputWarning(UserWarning):
    """What the caller asked for can be done, but is probably not what was meant."""


def choice_error(kind: str, given: object, allowed: Iterable[str]) -> InputError:
    """Return the error for a name that is not among the allowed ones.

    Args:
        kind: What the name stands for, such as ``"solver"``.
        given: What the user wrote, a name or not.
        allowed: Every name that would have been accepted.

    Returns:
        An `InputError` such as ``unknown solver 'hune'; did you mean 'heun'?``; where
        nothing is close, it lists what is allowed.
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(names)}"
    return InputError(f"unknown {kind} '{given}'; {hint}")


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ``InputError("NAME is VALUE; it must be ALLOWED")`` unless it holds."""
    if not condition:
        raise InputError(f"{name} is {value!r}; it must be {allowed}")


def require_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise `choice_error` unless the value is among the allowed ones."""
    if value not in allowed:
        raise choice_error(name, value, allowed)


def is_positive(value: float) -> bool:
    """Return whether the number is finite and above 0."""
    return math.isfinite(value) and value > 0
