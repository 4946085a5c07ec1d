"""Members of a zip file, checked before they are read and never extracted.

Only the methods "stored" and "deflate" are accepted: they are what EDM and NumPy write,
and Python reads them in bounded memory even where the directory lies about sizes.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterator

from configs.errors import InputError
from diffusion.data.limits import (
    MAX_COMPRESSION_RATIO,
    MAX_IMAGES,
    SMALL_MEMBER_BYTES,
    place,
    reading,
)

__all__ = ["check_member", "list_members", "open_zip", "read_member"]

_ENCRYPTED = 0x1


@contextlib.contextmanager
def open_zip(path: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip file and close it at the end of the block.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        InputError: If it is no complete zip file.
    """
    with reading(repr(path)):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


def list_members(archive: zipfile.ZipFile, path: str) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name, in the order of the archive.

    Args:
        archive: The open zip file.
        path: Its name for messages.

    Returns:
        Every member that is not a folder.

    Raises:
        InputError: If there are too many, a name occurs twice, or a member is said to
            take more bytes than the file has.
    """
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MAX_IMAGES:
        raise InputError(
            f"{path!r} has {len(infos)} members; at most {MAX_IMAGES} are allowed: "
            "divide it into several"
        )
    file_bytes = os.path.getsize(path)
    members = {}
    for info in infos:
        if info.filename in members:
            raise InputError(
                f"{place(path, info.filename)} occurs twice; names must differ: "
                "make the archive again"
            )
        if info.compress_size > file_bytes:
            raise InputError(
                f"{place(path, info.filename)} is said to take {info.compress_size} "
                f"bytes, the whole file has {file_bytes}; copy or make it again"
            )
        members[info.filename] = info
    return members


def check_member(info: zipfile.ZipInfo, path: str, max_bytes: int | None) -> None:
    """Refuse a member that cannot be read safely, from the directory alone.

    Args:
        info: The member.
        path: Name of the archive for messages.
        max_bytes: Largest size after decompression; None for a streamed member.

    Raises:
        InputError: If it is encrypted, compressed by another method than deflate, too
            large, or compressed more than images are.
    """
    where = place(path, info.filename)
    if info.flag_bits & _ENCRYPTED:
        raise InputError(
            f"{where} is encrypted; members must be readable without a password: "
            "make the archive again without one"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{where} is compressed by method {info.compress_type}; it must be stored "
            "or deflated: make the archive again"
        )
    if max_bytes is not None and info.file_size > max_bytes:
        raise InputError(
            f"{where} has {info.file_size} bytes; at most {max_bytes} are allowed: "
            "store smaller files"
        )
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > SMALL_MEMBER_BYTES and ratio > MAX_COMPRESSION_RATIO:
        raise InputError(
            f"{where} is compressed {ratio:.0f} times, as zip bombs are; at most "
            f"{MAX_COMPRESSION_RATIO} times is allowed: store it uncompressed"
        )


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> bytes:
    """Return the bytes of a member that `check_member` has let pass.

    Args:
        archive: The open zip file.
        info: The member.
        path: Name of the archive for messages.

    Returns:
        All its bytes.

    Raises:
        InputError: If they are incomplete or their checksum is wrong.
    """
    with reading(place(path, info.filename)), archive.open(info) as stream:
        # Asking for a number of bytes bounds the memory; read() alone would not.
        data = stream.read(info.file_size)
        if len(data) != info.file_size:
            raise EOFError(f"{len(data)} of {info.file_size} bytes")
    return data
