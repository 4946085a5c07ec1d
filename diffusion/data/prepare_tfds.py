"""TFDS directories without TensorFlow: written and read as array_record.

tensorflow-datasets encodes arrays, extracts archives and writes tfrecords by
TensorFlow; PIL images, Python's own archives and array_record need none.  The official
CIFAR-10 and MNIST are the official classes with their reading replaced: name, version,
ids and order of the records are those that TensorFlow would have written.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import threading
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from configs.errors import InputError
from diffusion.data.archives import open_archive
from diffusion.data.cifar10_archive import read_cifar10_archive
from diffusion.data.image_source import ImageSource
from diffusion.data.packed import open_packed, read_manifest
from diffusion.progress import Progress

__all__ = ["export_tfds", "has_split", "open_tfds", "prepare_official"]

_FORMAT = "array_record"
_BATCH = 500
_SECONDS_TO_CONNECT = 5.0
_MANUAL = "Give the archive with --source."
_HOSTS = {"cifar10": "www.cs.toronto.edu", "mnist": "storage.googleapis.com"}
_WHAT_TO_FETCH = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz (162 MB)",
    "mnist": "the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into one folder",
}


class _Cifar10(cifar.Cifar10, skip_registration=True):
    """The official builder, reading the tar archive itself."""

    name = "cifar10"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _MANUAL
    source: str | None = None
    sha256: str | None = None

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = self.source or str(dl_manager.download(self._cifar_info.url))
        batches = read_cifar10_archive(source, self.sha256)
        features: Any = self.info.features
        features["label"].names = batches.class_names
        return {
            "train": _cifar_records("train_", *batches.train),
            "test": _cifar_records("test_", *batches.test),
        }


def _cifar_records(
    prefix: str, images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        yield (
            index,
            {
                "id": f"{prefix}{index:05d}",
                "image": Image.fromarray(pixels),
                "label": int(label),
            },
        )


class _Mnist(mnist.MNIST, skip_registration=True):
    """The official builder, reading the idx files of a folder itself."""

    name = "mnist"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _MANUAL
    source: str | None = None

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = self.source
        if folder is None:
            names = [
                f"{part}-{kind}-ubyte.gz"
                for part in ("train", "t10k")
                for kind in ("images-idx3", "labels-idx1")
            ]
            found = dl_manager.download({name: self.URL + name for name in names})
            folder = os.path.join(os.path.dirname(str(found[names[0]])), "mnist-idx")
            os.makedirs(folder, exist_ok=True)
            for name in names:
                shutil.copyfile(str(found[name]), os.path.join(folder, name))
        return {
            split: _mnist_records(os.path.join(folder, f"{file}-images-idx3-ubyte.gz"))
            for split, file in (("train", "train"), ("test", "t10k"))
        }


def _mnist_records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    data = open_archive(path).read()
    if data.labels.min() < 0:
        raise InputError(f"there is no file of labels beside {path!r}; add it")
    for index, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
        yield (
            index,
            {"image": Image.fromarray(pixels[..., 0]), "label": int(label)},
        )


def prepare_official(
    name: str, source: str | None, data_dir: str | Path, sha256: str | None = None
) -> Path:
    """Write the official TFDS directory of CIFAR-10 or MNIST, unless it is there.

    Args:
        name: ``"cifar10"`` or ``"mnist"``.
        source: The tar archive, or the folder of the idx files; None downloads.
        data_dir: TFDS's data_dir.
        sha256: cifar10: expected digest of `source`; None for the official ones.

    Returns:
        The directory of the version.

    Raises:
        InputError: If the source is refused, or nothing can be downloaded.
    """
    classes: dict[str, Any] = {"cifar10": _Cifar10, "mnist": _Mnist}
    builder = classes[name](data_dir=os.fspath(data_dir), file_format=_FORMAT)
    builder.source = source
    if name == "cifar10":
        builder.sha256 = sha256
    place = Path(builder.data_dir)
    if (place / "dataset_info.json").is_file():
        _check_same_source(place, source)
        return place
    if source is None:
        _require_host(name)
    _download_and_prepare(builder)
    if source is not None:
        (place / "source.txt").write_text(_source_name(source) + "\n")
    return place


def _source_name(source: str) -> str:
    """Return base name and digest of an archive, or of the idx files in a folder."""
    path, digest = Path(source), hashlib.sha256()
    for part in [path] if path.is_file() else sorted(path.glob("*-ubyte.gz")):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{os.path.basename(os.path.abspath(source))} {digest.hexdigest()[:16]}"


def _check_same_source(place: Path, source: str | None) -> None:
    """Refuse a directory that was written from another archive than the one given."""
    noted = place / "source.txt"
    if source is None or not noted.is_file():
        return
    if noted.read_text().strip() != _source_name(source):
        raise InputError(
            f"{place} was written from {noted.read_text().strip()!r} (name, digest), "
            f"not from {_source_name(source)!r}; delete it, or choose another "
            "--data-dir"
        )


def _require_host(name: str) -> None:
    """Say at once what to fetch without a network; TFDS would try for minutes."""
    host, reached = _HOSTS[name], threading.Event()
    if {"https", "all"} & urllib.request.getproxies().keys():
        if not urllib.request.proxy_bypass(host):
            return  # Only the proxy knows.

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, 443), _SECONDS_TO_CONNECT).close()
            reached.set()

    # In a thread, for the time that a name server takes has no limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_CONNECT)
    if not reached.is_set():
        raise InputError(
            f"{host} cannot be reached, so {name} cannot be downloaded; fetch "
            f"{_WHAT_TO_FETCH[name]} and name it with --source PATH"
        )


def _download_and_prepare(builder: Any) -> None:
    parent = Path(builder.data_dir).parent
    for left in parent.glob("*.incomplete*"):  # of a call that was killed
        shutil.rmtree(left, ignore_errors=True)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(parent))
    )


def has_split(directory: str | Path, split: str) -> bool:
    """Return whether a TFDS directory has a split of that name; see `open_tfds`."""
    return split in _builder(directory).info.splits


def open_tfds(directory: str | Path, split: str) -> ImageSource:
    """Open one split of a TFDS directory as a source.

    Args:
        directory: A version's directory, or one above it with a single version.
        split: Such as ``"train"``.

    Returns:
        Images (H, W, C) uint8 in the directory's order, with labels if there are any.

    Raises:
        InputError: If it is no TFDS directory of array_record files with one image
            feature of a fixed shape and 8 bits, or has no such split.
    """
    builder = _builder(directory)
    place = Path(builder.data_dir)
    if split not in builder.info.splits:
        raise InputError(
            f"{place} has no split {split!r}; it has "
            f"{', '.join(sorted(builder.info.splits))}"
        )
    features = builder.info.features
    image, label = _feature_names(features, place)
    count = builder.info.splits[split].num_examples
    shape = features[image].shape
    if None in shape:
        raise InputError(
            f"the images of {place} are of several sizes; export them to a folder and "
            "prepare that with --image-size"
        )

    dtype = np.dtype(features[image].np_dtype)
    if dtype != np.uint8:
        raise InputError(
            f"the images of {place} have {dtype} values; only 8 bits per channel "
            "(uint8) are read: write the data set again with 8 bits"
        )

    def blocks(block_size: int) -> Generator[np.ndarray, None, None]:
        data = builder.as_data_source(split)
        for start in range(0, count, block_size):
            rows = range(start, min(start + block_size, count))
            examples = [
                example
                for first in range(rows.start, rows.stop, _BATCH)
                for example in data.__getitems__(
                    list(range(first, min(first + _BATCH, rows.stop)))
                )
            ]
            yield np.stack([example[image] for example in examples])

    labels = None if label is None else _labels(builder, split, image, label)
    return ImageSource(
        name=f"tfds:{builder.info.full_name}:{split}",
        num_images=count,
        event_shape=tuple(shape),
        dtype=dtype,
        labels=labels,
        blocks=blocks,
        # Bytes of the encoded images: the same whenever the same set is written again.
        version=f"{builder.info.full_name} {builder.info.splits[split].num_bytes}",
    )


def _builder(directory: str | Path) -> Any:
    """Return the read-only builder of a directory that can be read here."""
    place = _version_directory(Path(directory))
    try:
        builder = tfds.builder_from_directory(str(place))
    except Exception as error:  # TFDS raises nearly anything on damaged files.
        raise InputError(f"{place} is no TFDS directory: {error}") from error
    _require_array_record(builder, place)
    return builder


def _version_directory(place: Path) -> Path:
    if (place / "dataset_info.json").is_file():
        return place
    found = sorted(path.parent for path in place.glob("**/dataset_info.json"))
    if len(found) != 1:
        what = "no" if not found else f"{len(found)} versions of a"
        raise InputError(
            f"{place} holds {what} TFDS data set; give the directory with "
            "dataset_info.json, --source PATH"
        )
    return found[0]


def _require_array_record(builder: Any, place: Path) -> None:
    found = builder.info.file_format
    name = getattr(found, "value", str(found))
    if name != _FORMAT:
        raise InputError(
            f"{place} holds {name} files, which cannot be read one by one without "
            f"TensorFlow; write it again with file_format='{_FORMAT}'"
        )


def _feature_names(features: Any, place: Path) -> tuple[str, str | None]:
    images = [n for n, f in features.items() if isinstance(f, tfds.features.Image)]
    if len(images) != 1:
        raise InputError(f"{place} has {len(images)} image features; one is needed")
    labels = [n for n, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    return images[0], labels[0] if len(labels) == 1 else None


def _labels(builder: Any, split: str, image: str, label: str) -> np.ndarray:
    """Return all labels, without decoding an image."""
    decode: Any = tfds.decode
    data = builder.as_data_source(split, decoders={image: decode.SkipDecoding()})
    found = [
        int(example[label])
        for first in range(0, len(data), _BATCH)
        for example in data.__getitems__(
            list(range(first, min(first + _BATCH, len(data))))
        )
    ]
    return np.asarray(found, np.int64)


def export_tfds(folder: str | Path, data_dir: str | Path) -> Path:
    """Write a packed set as a TFDS directory that any TFDS user can read.

    Args:
        folder: The packed set.
        data_dir: TFDS's data_dir; the set's name is its name there, version 1.0.0, with
            splits ``train`` and, if images are held out, ``test``.

    Returns:
        The directory of the version; one that is there already is left as it is.
    """
    manifest = read_manifest(folder)
    made = type(
        "Packed",
        (_PackedBuilder,),
        {"name": manifest.name, "folder": str(folder), "__doc__": "Packed images."},
        skip_registration=True,
    )
    builder = made(data_dir=os.fspath(data_dir), file_format=_FORMAT)
    place = Path(builder.data_dir)
    if not (place / "dataset_info.json").is_file():
        _download_and_prepare(builder)
    return place


class _PackedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of a packed set; subclasses name it."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = _MANUAL
    folder = ""

    def _info(self) -> Any:
        manifest = read_manifest(self.folder)
        features: dict[str, Any] = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(
                shape=manifest.event_shape, encoding_format="png"
            ),
        }
        if manifest.num_classes:
            features["label"] = tfds.features.ClassLabel(
                num_classes=manifest.num_classes
            )
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        split = open_packed(self.folder)
        found = {"train": self._generate_examples("train", split.training)}
        if len(split.held_out.images):
            found["test"] = self._generate_examples("test", split.held_out)
        return found

    def _generate_examples(
        self, prefix: str, data: Any
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        features: Any = self.info.features
        progress = Progress(len(data.images), label=f"TFDS {prefix}", unit="image")
        with contextlib.closing(progress):
            for index, pixels in enumerate(data.images):
                grey = pixels[..., 0] if pixels.shape[2] == 1 else pixels
                record = {
                    "id": f"{prefix}_{index:08d}",
                    "image": Image.fromarray(np.asarray(grey)),
                }
                if "label" in features:
                    record["label"] = int(data.labels[index])
                yield index, record
                progress.advance()
