"""What an archive may ask of the machine, and how a failure to read it is told.

Archives come from anywhere.  Sizes are compared with the limits below before anything
is decoded, and whatever a parser raises on damaged bytes becomes one line.
"""

import contextlib
from collections.abc import Iterator

from configs.errors import InputError

__all__ = [
    "MAX_COMPRESSION_RATIO",
    "MAX_DEFLATE_RATIO",
    "MAX_IMAGES",
    "MAX_IMAGE_BYTES",
    "MAX_JSON_BYTES",
    "MAX_PIXELS",
    "SMALL_MEMBER_BYTES",
    "UnreadableError",
    "check_count",
    "place",
    "reading",
]

MAX_IMAGES = 2**24
"""Images, or members, of an archive: ImageNet-21k has 14.2 million; all names and
labels are kept in memory."""
MAX_PIXELS = 2**24
"""Pixels of an image file, or values of one sample of an array: 4096 x 4096, four times
the largest images that diffusion models are trained on."""
MAX_IMAGE_BYTES = 2**26
"""Size of one image file: one of `MAX_PIXELS` without compression takes 48 MiB."""
MAX_JSON_BYTES = 2**28
"""Size of dataset.json: ImageNet's 1.28 million labels take 44 MB, and parsing needs
about ten times as much memory."""
MAX_COMPRESSION_RATIO = 500
"""Bytes that one compressed byte of a zip member may become: black-and-white drawings
reach about 120, a bomb made of zeros 1029."""
SMALL_MEMBER_BYTES = 2**24
"""Members up to this size may be compressed at any ratio: they do no harm, and small
blank images are legitimate."""
MAX_DEFLATE_RATIO = 1032
"""The most that deflate can reach: 258 bytes from 2 bits."""


class UnreadableError(InputError):
    """Bytes that are damaged, as against data that are refused for what they are."""


def place(archive: str, member: str) -> str:
    """Return how messages name a member; odd characters are escaped."""
    return f"{member!r} in {archive!r}"


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn any failure of a parser inside the block into one line.

    Args:
        where: What is being read, as the message is to name it.

    Yields:
        Nothing.

    Raises:
        UnreadableError: If anything is raised inside; an `InputError` passes unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # On damaged bytes, parsers raise nearly anything.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnreadableError(
            f"{where} cannot be read ({reason}); it must be complete and undamaged: "
            "copy or make it again"
        ) from error


def check_count(count: int, where: str) -> None:
    """Refuse more images than `MAX_IMAGES`, or none.

    Args:
        count: Images found or announced.
        where: Name of the archive for the message.

    Raises:
        InputError: If the count is out of range.
    """
    if count < 1:
        raise InputError(f"{where} holds no image; it needs at least one")
    if count > MAX_IMAGES:
        raise InputError(
            f"{where} holds {count} images; at most {MAX_IMAGES} are allowed: "
            "divide it into several"
        )
