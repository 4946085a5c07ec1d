"""Command lines by tyro, with one-line errors.

Options are the fields of a frozen dataclass, ``--training.num-steps 200``.  A user's
mistake prints ``error: ...`` on standard error and exits with status 2, never a
traceback and never more than a line.
"""

import contextlib
import difflib
import io
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from configs.errors import InputError, InputWarning

__all__ = ["exit_on_error", "parse_options", "split_positional"]

T = TypeVar("T")


def exit_on_error(main: Callable[[], None]) -> None:
    """Run an entry module; turn a user's mistake into one line and status 2.

    An `InputWarning` is one line too, and changes nothing.

    Args:
        main: What to run.

    Raises:
        SystemExit: With status 2 for a mistake in the input or a file that cannot be
            read or written, 130 when interrupted.
    """
    shown = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any) -> None:
        if issubclass(category, InputWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            shown(message, category, *place)

    warnings.showwarning = show
    try:
        main()
    except (InputError, OSError) as error:
        text = " ".join(str(error).split())
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        warnings.showwarning = shown


def split_positional(
    arguments: list[str], name: str, example: str
) -> tuple[str | None, list[str]]:
    """Take the one positional argument off the front of a command line.

    Args:
        arguments: The command line without the program's name.
        name: What the argument is, for the error.
        example: A command line that would work, for the error.

    Returns:
        The argument, or None where only help was asked for; and the rest.

    Raises:
        InputError: If the first argument is not a positional one.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if "--help" in arguments or "-h" in arguments:
        return None, arguments
    given = f"'{arguments[0]}'" if arguments else "nothing"
    raise InputError(f"{name} comes first, but {given} was given; e.g. {example}")


def parse_options(
    default: T, arguments: list[str], *, program: str, description: str
) -> T:
    """Parse options into a copy of a frozen dataclass.

    Args:
        default: Values of the fields that are not given.
        arguments: Options such as ``["--optim.learning-rate", "2e-3"]``.
        program: How the command is called, for the help.
        description: What it does, for the help.

    Returns:
        A new instance of the type of `default`.

    Raises:
        InputError: If an option is unknown, a value cannot be read or a check of the
            dataclass fails.
        SystemExit: With status 0 after ``--help``.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            value, unknown = tyro.cli(
                type(default),
                default=default,
                args=arguments,
                prog=program,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _teach(stop, box.getvalue(), default, program) from None
    if unknown:
        raise _unknown_option(unknown[0], default, program)
    return value


def _teach(stop: SystemExit, box: str, default: object, program: str) -> InputError:
    """Return the error behind tyro's exit: our own check, or its box as one line."""
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__context__
    lines = [line.strip("│╭╰─╮╯ ") for line in box.splitlines()]
    kept = [line for line in lines if line and not line.startswith("For full helptext")]
    text = re.sub(r"^(Parsing|Value) error |^Missing argument ", "", " ".join(kept))
    text = re.sub(r"\.? Argument helptext:.*", "", text).rstrip(". ")
    # Where a value may be of several types, tyro tells each attempt.
    text = re.sub(
        r"Error parsing (\S+): no type matching (.+?) could be instantiated from "
        r"\['(.*?)'\].*",
        r"\1 is '\3'; it must be \2",
        text,
    )
    return InputError(f"{text}; see {program} --help")


def _unknown_option(given: str, default: object, program: str) -> InputError:
    name = given.split("=")[0]
    if not name.startswith("-"):
        return InputError(f"unexpected argument '{given}'; see {program} --help")
    close = difflib.get_close_matches(name, _option_names(default), n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'?" if close else f"see {program} --help"
    return InputError(f"unknown option '{name}'; {hint}")


def _option_names(default: object) -> list[str]:
    """Return every option that tyro's help lists."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(
            type(default),
            default=default,
            args=["--help"],
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
    return sorted(set(re.findall(r"--[\w.-]+", text.getvalue())))
