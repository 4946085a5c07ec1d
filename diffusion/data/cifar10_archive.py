"""CIFAR-10's official tar archives, read without unpacking them.

``cifar-10-binary.tar.gz`` holds batches of records, one byte of label and 3 x 32 x 32
bytes of pixels by channel; ``cifar-10-python.tar.gz`` the same in pickles, of which
only the arrays are taken (`diffusion.interop.restricted_unpickler`).
"""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.errors import InputError
from diffusion.data.limits import place, reading
from diffusion.interop.restricted_unpickler import untrusted_loads

__all__ = ["BINARY_SHA256", "CifarBatches", "read_cifar10_archive"]

BINARY_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
PYTHON_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_RECORD = 1 + 3 * 32 * 32
_MAX_MEMBER = 2**26  # the official batches take 31 MB
_MAX_MEMBERS = 64
_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


class CifarBatches(NamedTuple):
    """The images of an archive, in its order.

    Attributes:
        train: Images (N, 32, 32, 3) uint8 and labels (N,).
        test: The same of the test batch.
        class_names: Ten names.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    class_names: list[str]


def read_cifar10_archive(
    path: str | Path, expected_sha256: str | None = None
) -> CifarBatches:
    """Read CIFAR-10 from its tar archive.

    Args:
        path: The archive, binary or Python version.
        expected_sha256: The digest it must have; None for that of the official one.

    Returns:
        All images and labels.

    Raises:
        InputError: If the digest is another one, or the archive is not of that layout.
    """
    _check_digest(Path(path), expected_sha256)
    members = dict(_members(str(path)))
    parts = []
    for names in (_TRAIN, _TEST):
        batches = [_batch(members, name, str(path)) for name in names]
        images = np.concatenate([batch[0] for batch in batches])
        parts.append((images, np.concatenate([batch[1] for batch in batches])))
    names = members.get("batches.meta.txt", b"").decode(errors="replace").split()
    return CifarBatches(parts[0], parts[1], names or list(_CLASSES))


def _check_digest(path: Path, expected: str | None) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    allowed = (expected.lower(),) if expected else (BINARY_SHA256, PYTHON_SHA256)
    if found not in allowed:
        wanted = "that given" if expected else "one of the two official ones"
        raise InputError(
            f"{path} has the sha256 {found}, which is not {wanted} ({allowed[0]}); "
            "fetch the archive again, or, if you trust it, give its digest with "
            "--source-sha256"
        )


def _members(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield base name and bytes of the members that the layout knows."""
    wanted = {f"{name}{end}" for name in (*_TRAIN, *_TEST) for end in ("", ".bin")}
    wanted.add("batches.meta.txt")
    with reading(repr(path)), tarfile.open(path, "r|gz") as archive:
        for number, member in enumerate(archive):
            where = place(path, member.name)
            if number >= _MAX_MEMBERS or member.size > _MAX_MEMBER:
                raise InputError(
                    f"{where} is more than CIFAR-10 holds ({_MAX_MEMBERS} members of "
                    f"{_MAX_MEMBER} bytes at most); give the official archive"
                )
            parts = member.name.replace("\\", "/").split("/")
            if not parts[0] or ".." in parts:
                raise InputError(
                    f"{where} points outside the archive; give the official archive"
                )
            if not (member.isfile() or member.isdir()):
                raise InputError(
                    f"{where} is a link or a device, CIFAR-10 holds plain files only; "
                    "give the official archive"
                )
            if member.isfile() and parts[-1] in wanted:
                stream = archive.extractfile(member)
                assert stream is not None
                yield parts[-1], stream.read(member.size)


def _batch(
    members: dict[str, bytes], name: str, path: str
) -> tuple[np.ndarray, np.ndarray]:
    where = place(path, name)
    if f"{name}.bin" in members:
        raw = np.frombuffer(members[f"{name}.bin"], np.uint8)
        if raw.size == 0 or raw.size % _RECORD:
            raise InputError(
                f"{where} has {raw.size} bytes, no multiple of {_RECORD}; give the "
                "official archive"
            )
        records = raw.reshape(-1, _RECORD)
        return _images(records[:, 1:]), _labels(records[:, 0], where)
    if name in members:
        content = untrusted_loads(members[name])
        values = content if isinstance(content, dict) else {}
        pixels = values.get(b"data", values.get("data"))
        labels = values.get(b"labels", values.get("labels"))
        if isinstance(pixels, np.ndarray) and isinstance(labels, list):
            if pixels.dtype == np.uint8 and pixels.shape == (len(labels), _RECORD - 1):
                return _images(pixels), _labels(np.asarray(labels), where)
    raise InputError(
        f"{where} is missing or of another form; give the official archive"
    )


def _images(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _labels(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.min() < 0 or labels.max() > 9:
        raise InputError(f"{where} has the label {labels.max()}; CIFAR-10 has 0 to 9")
    return labels.astype(np.int64)
