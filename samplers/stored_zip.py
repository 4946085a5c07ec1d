"""A zip file that is written member by member, with its directory beside it.

Members are stored as they are, with one fixed date, so that the same members give the
same bytes.  The directory, which a zip file has at its end, grows in a file of its own
and is put there when all is done: nothing is kept in memory, however many members there
are, and both files can be continued after their last whole member.

    local header, name, data  |  ...  |  directory  |  end

Format: PKWARE's APPNOTE 6.3; sizes and counts beyond its first fields are in "zip64".
"""

import struct
import zlib
from typing import BinaryIO

from configs.errors import InputError

__all__ = ["copy_stream", "end_of_directory", "member_records"]

_CHUNK = 2**20
_MAX_32, _MAX_16 = 2**32 - 1, 2**16 - 1
_DATE, _TIME = 0x0021, 0  # 1 January 1980, the earliest there is
_VERSION, _VERSION_64 = 20, 45
_UNIX_FILE = (3 << 8) | _VERSION_64
_RW_R_R = 0o100644 << 16


def member_records(
    name: str, size: int, checksum: int, offset: int
) -> tuple[bytes, bytes]:
    """Return what stands before a member's data, and its entry of the directory.

    Args:
        name: ASCII, with slashes.
        size: Bytes of the data, below 4 GiB.
        checksum: CRC-32 of the data.
        offset: Where the first record will lie in the file.
    """
    if size > _MAX_32:
        raise InputError(f"{name} has {size} bytes; a member must be below 4 GiB")
    encoded = name.encode("ascii")
    wide = offset >= _MAX_32
    extra = struct.pack("<HHQ", 1, 8, offset) if wide else b""
    version = _VERSION_64 if wide else _VERSION
    common = struct.pack(
        "<HHHHIIIHH", *(0, 0, _TIME, _DATE), checksum, size, size, len(encoded), 0
    )
    local = b"PK\3\4" + struct.pack("<H", version) + common + encoded
    entry = (
        b"PK\1\2"
        + struct.pack("<HH", _UNIX_FILE, version)
        + common[:-2]
        + struct.pack("<HHHHII", len(extra), 0, 0, 0, _RW_R_R, min(offset, _MAX_32))
        + encoded
        + extra
    )
    return local, entry


def end_of_directory(count: int, size: int, offset: int) -> bytes:
    """Return what stands after the directory.

    Args:
        count: Members.
        size: Bytes of the directory.
        offset: Where it begins in the file.
    """
    records = b""
    if count >= _MAX_16 or size >= _MAX_32 or offset >= _MAX_32:
        records = b"PK\6\6" + struct.pack(
            "<QHHIIQQQQ",
            *(44, _UNIX_FILE, _VERSION_64, 0, 0, count, count, size, offset),
        )
        records += b"PK\6\7" + struct.pack("<IQI", 0, offset + size, 1)
    counts = (min(count, _MAX_16),) * 2
    records += b"PK\5\6" + struct.pack(
        "<HHHHIIH", 0, 0, *counts, min(size, _MAX_32), min(offset, _MAX_32), 0
    )
    return records


def copy_stream(source: BinaryIO, target: BinaryIO | None = None) -> tuple[int, int]:
    """Copy a file to its end in pieces; return its size and CRC-32.

    Args:
        source: Read from where it is.
        target: Written to; None only measures.
    """
    size = checksum = 0
    while piece := source.read(_CHUNK):
        checksum = zlib.crc32(piece, checksum)
        size += len(piece)
        if target is not None:
            target.write(piece)
    return size, checksum
