"""Every archive against what was written into it, and each way to be refused."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import InputError
from configs.schema import DataConfig
from diffusion.data import (
    data_digest,
    open_archive,
    open_dataset,
    split_of,
)
from diffusion.data.limits import reading

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (11, 6, 5, 3), np.uint8)
GREY = COLOUR[..., :1]
LABELS = np.array([3, 0, 0, 1, 2, 9, 1, 1, 0, 4, 2])
NAMES = [f"{i // 4:05d}/img{i:08d}.png" for i in range(11)]
PAIRS = list(zip(NAMES, LABELS.tolist(), strict=True))


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return saved(image, kind, **options)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_zip(path: Path, members: dict[str, bytes | str], method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, members: dict[str, bytes | str]) -> Path:
    for name, content in members.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def edm_members(images: np.ndarray = COLOUR) -> dict[str, bytes | str]:
    members: dict[str, bytes | str] = dict(
        zip(NAMES, map(encoded, images), strict=True)
    )
    return members | {"dataset.json": json.dumps({"labels": PAIRS[::-1]})}


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return sizes + array.astype(np.uint8).tobytes()


def archive(kind: str, folder: Path) -> tuple[Path, np.ndarray]:
    """Write the same labelled images as one kind of archive; what must come out."""
    folder.mkdir(exist_ok=True)
    if kind == "zip":
        return write_zip(folder / "a.zip", edm_members()), COLOUR
    if kind == "deflated zip":
        path = folder / "a.ZIP"
        return write_zip(path, edm_members(), zipfile.ZIP_DEFLATED), COLOUR
    if kind == "grey zip":
        return write_zip(folder / "a.zip", edm_members(GREY)), GREY
    if kind == "folder":
        return write_folder(folder / "a", edm_members()), COLOUR
    if kind in ("npz", "deflated npz"):
        save = np.savez if kind == "npz" else np.savez_compressed
        save(folder / "a.npz", images=COLOUR, labels=LABELS.astype(np.uint8))
        return folder / "a.npz", COLOUR
    if kind == "float npz":
        floats = (COLOUR / 127.5 - 1).astype(">f4")
        np.savez(folder / "a.npz", images=floats, labels=LABELS)
        return folder / "a.npz", floats.astype(np.float32)
    ending = ".gz" if kind == "idx.gz" else ""
    pack = gzip.compress if kind == "idx.gz" else bytes
    path = folder / f"t10k-images-idx3-ubyte{ending}"
    path.write_bytes(pack(idx(GREY[..., 0])))
    labels = folder / f"t10k-labels-idx1-ubyte{ending}"
    labels.write_bytes(pack(idx(LABELS)))
    return path, GREY


KINDS = (
    "zip",
    "deflated zip",
    "grey zip",
    "folder",
    "npz",
    "deflated npz",
    "float npz",
    "idx",
    "idx.gz",
)


def refusal(path: str | Path) -> str:
    """Return the line with which opening and reading an archive ends."""
    with pytest.raises(InputError) as caught:
        for _ in open_archive(path).batches(4):
            pass
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_every_archive_gives_the_images_and_labels_written(kind, tmp_path):
    path, expected = archive(kind, tmp_path)
    source = open_archive(path)
    assert (source.name, source.num_images) == (str(path), 11)
    assert source.event_shape == expected.shape[1:]
    assert source.dtype == expected.dtype
    assert source.has_labels
    data = source.read()
    np.testing.assert_array_equal(data.images, expected, strict=True)
    np.testing.assert_array_equal(data.labels, LABELS.astype(np.int64), strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_batches_of_any_size_join_to_the_whole_in_every_pass(kind, size, tmp_path):
    path, expected = archive(kind, tmp_path)
    source = open_archive(path)
    for _ in range(2):
        batches = list(source.batches(size))
        assert [len(b.images) for b in batches[:-1]] == [size] * (10 // size)
        images = np.concatenate([b.images for b in batches])
        np.testing.assert_array_equal(images, expected, strict=True)
        labels = np.concatenate([b.labels for b in batches])
        np.testing.assert_array_equal(labels, LABELS)
        assert all(b.images.dtype == source.dtype for b in batches)
        for batch in batches:  # Batches belong to the caller.
            batch.images[:] = 0
            batch.labels[:] = 0


@pytest.mark.parametrize("kind", KINDS)
def test_reading_some_images_gives_the_first(kind, tmp_path):
    path, expected = archive(kind, tmp_path)
    data = open_archive(path).read(max_images=7)
    np.testing.assert_array_equal(data.images, expected[:7], strict=True)
    np.testing.assert_array_equal(data.labels, LABELS[:7])


def test_large_sources_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.data.image_source._READ_BYTES", 200)
    source = open_archive(archive("npz", tmp_path)[0])
    np.testing.assert_array_equal(source.read().images, COLOUR)
    np.testing.assert_array_equal(source.read(5).images, COLOUR[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_pass_leaves_no_file_open(kind, tmp_path):
    source = open_archive(archive(kind, tmp_path)[0])
    before = sorted(os.listdir("/proc/self/fd"))
    batches = source.batches(2)
    next(batches)
    batches.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    source.read(max_images=1)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_files_are_closed_even_while_something_refers_to_them(tmp_path, monkeypatch):
    opened, passes = [], []

    class Recorded(zipfile.ZipFile):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append(self)

    monkeypatch.setattr(zipfile, "ZipFile", Recorded)
    for kind in ("zip", "npz"):
        with monkeypatch.context() as patch:
            patch.setattr(zipfile, "ZipFile", Recorded.__base__)
            path, _ = archive(kind, tmp_path)
        source = open_archive(path)

        def blocks(size, source=source):
            passes.append(source.blocks(size))
            return passes[-1]

        batches = dataclasses.replace(source, blocks=blocks).batches(2)
        next(batches)
        batches.close()
    assert [generator.gi_frame for generator in passes] == [None, None]
    assert len(opened) >= 4
    assert all(file.fp is None for file in opened)


def test_jpeg_webp_and_bmp_are_decoded_as_pillow_does(tmp_path):
    files = {
        "b.jpg": encoded(COLOUR[0], "JPEG"),
        "a.JPEG": encoded(COLOUR[1], "JPEG", quality=50),
        "c.webp": encoded(COLOUR[2], "WEBP"),
        "d.bmp": encoded(COLOUR[3], "BMP"),
    }
    expected = [np.asarray(Image.open(io.BytesIO(files[n]))) for n in sorted(files)]
    found = open_archive(write_zip(tmp_path / "a.zip", files)).read().images
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_modes_become_grey_or_rgb(mode, tmp_path):
    image = Image.fromarray(COLOUR[0]).convert(mode)
    kind, name = ("JPEG", "a.jpg") if mode == "CMYK" else ("PNG", "a.png")
    path = write_folder(tmp_path / "a", {name: saved(image, kind)})
    target = "L" if mode in ("1", "L") else "RGB"
    expected = np.asarray(Image.open(path / name).convert(target))
    found = open_archive(path).read().images[0]
    np.testing.assert_array_equal(found, expected.reshape(6, 5, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_images_with_alpha_are_refused(mode, tmp_path):
    options = {"P": {"transparency": 0}, "RGB": {"transparency": (0, 0, 0)}}
    image = saved(Image.fromarray(COLOUR[0]).convert(mode), **options.get(mode, {}))
    for name in ("a.png", "c.png"):  # the first image, and another one
        files = {"b.png": PNG, name: image}
        message = refusal(write_folder(tmp_path / name, files))
        assert f"'{name}' in " in message
        assert f"alpha channel ({mode}); only grey and RGB images are read" in message


def test_zip_members_come_in_sorted_order_and_other_files_are_passed_over(tmp_path):
    members = edm_members()
    shuffled = {n: members[n] for n in ["dataset.json", *reversed(NAMES)]}
    noise = {"README.txt": "x", "__MACOSX/._a.png": b"x", ".hidden/a.png": b"x"}
    data = open_archive(write_zip(tmp_path / "a.zip", shuffled | noise)).read()
    np.testing.assert_array_equal(data.images, COLOUR)
    np.testing.assert_array_equal(data.labels, LABELS)


@pytest.mark.parametrize("write", [write_zip, write_folder])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"labels": dict(PAIRS)}, LABELS),
        ({"labels": [*PAIRS, ("extra.png", 7)]}, LABELS),
        ({"labels": None}, np.full(11, -1)),
        ({}, np.full(11, -1)),
    ],
)
def test_dataset_json_may_be_pairs_a_dict_or_null(
    write, labels, expected, tmp_path, capsys
):
    members = edm_members() | {"dataset.json": json.dumps(labels)}
    source = open_archive(write(tmp_path / "a.zip", members))
    assert source.has_labels == (expected[0] >= 0)
    np.testing.assert_array_equal(source.read().labels, expected)
    told = capsys.readouterr().err
    if "extra.png" in json.dumps(labels):
        assert "labels 1 images that are not there, such as 'extra.png'; " in told
    assert len(told.splitlines()) == ("extra.png" in json.dumps(labels))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dog/1.png", "cat/x/2.png", "dog/0.png"], [0, 1, 1]),
        (["dog/1.png", "cat/2.png", "3.png"], [-1, -1, -1]),
        (["00000/img00000000.png", "00001/img00001000.png"], [-1, -1]),
    ],
)
def test_sub_folders_are_classes_where_every_image_is_in_one(names, expected, tmp_path):
    members = {n: encoded(COLOUR[i]) for i, n in enumerate(names)}
    source = open_archive(write_folder(tmp_path / "a", members))
    assert source.has_labels == (expected[0] >= 0)
    data = source.read()
    np.testing.assert_array_equal(data.labels, expected)
    order = np.argsort(names)
    np.testing.assert_array_equal(data.images, COLOUR[: len(names)][order])


@pytest.mark.parametrize("kind", ["npz", "idx"])
def test_arrays_without_labels_give_minus_one(kind, tmp_path):
    path = tmp_path / "a.npz"
    if kind == "npz":
        np.savez(path, images=GREY)
    else:
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(idx(GREY[..., 0]))
    source = open_archive(path)
    assert not source.has_labels
    labels = source.read().labels
    np.testing.assert_array_equal(labels, np.full(11, -1, np.int64), strict=True)


def test_idx_labels_may_be_uncompressed_beside_compressed_images(tmp_path):
    path, _ = archive("idx.gz", tmp_path)
    compressed = tmp_path / "t10k-labels-idx1-ubyte.gz"
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    compressed.unlink()
    np.testing.assert_array_equal(open_archive(path).read().labels, LABELS)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_npz_is_streamed_in_the_memory_of_its_batches(method, tmp_path):
    images = np.zeros((1700, 64, 64, 3), np.uint8)
    images[:, ::2] = np.arange(1700).reshape(-1, 1, 1, 1) % 251
    (np.savez if method == zipfile.ZIP_STORED else np.savez_compressed)(
        tmp_path / "a.npz", images=images
    )
    expected = hashlib.sha256(images.tobytes()).hexdigest()
    assert images.nbytes > 20e6
    del images
    tracemalloc.start()
    try:
        assert data_digest(open_archive(tmp_path / "a.npz"), 64) == expected
        assert tracemalloc.get_traced_memory()[1] < 3e6  # A batch has .8 MB.
    finally:
        tracemalloc.stop()


# Refusals: what was given, what is allowed, what to do next, in one line.


def break_json(text: str):
    return lambda folder: write_zip(
        folder / "a.zip", edm_members() | {"dataset.json": text}
    )


def one_label(label) -> str:
    pairs = [[n, 0] for n in NAMES]
    pairs[3] = [NAMES[3], label]
    return json.dumps({"labels": pairs})


JSON_ERRORS = {
    "not json": (break_json("{'labels'"), "JSONDecodeError"),
    "not utf-8": (break_json(b"\xff\xfe{"), "cannot be read"),
    "too deep": (break_json("[" * 100_000), "RecursionError"),
    "a list": (break_json("[]"), '{"labels": [[name, class], ...]}'),
    "number": (break_json('{"labels": 3}'), "must be a list"),
    "no pair": (break_json('{"labels": [["a", 1, 2]]}'), "must be [name, class]"),
    "twice": (break_json('{"labels": [["a", 1], ["a", 1]]}'), "occurs twice"),
    "missing": (
        break_json('{"labels": [["a", 1]]}'),
        f"no label for image '{NAMES[0]}",
    ),
    "negative": (break_json(one_label(-1)), "with -1; labels must be integers"),
    "vector": (break_json(one_label([0, 1])), "with [0, 1]; labels must be integers"),
    "float": (break_json(one_label(1.0)), "with 1.0; labels must be integers"),
    "bool": (break_json(one_label(True)), "with True; labels must be integers"),
    "huge": (break_json(one_label(2**70)), "labels must be integers"),
}


@pytest.mark.parametrize("case", JSON_ERRORS)
def test_wrong_labels_are_refused(case, tmp_path):
    write, expected = JSON_ERRORS[case]
    message = refusal(write(tmp_path))
    assert expected in message
    assert "dataset.json" in message


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header announces a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def png_16_bit_colour() -> bytes:
    png = bytearray(encoded(COLOUR[0]))
    png[24] = 16
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


PNG = encoded(COLOUR[0])
DAMAGED_IMAGES = {
    "empty": (b"", "is no readable PNG, JPEG, WebP or BMP"),
    "text": (b"hello", "is no readable PNG, JPEG, WebP or BMP"),
    "gif inside": (encoded(COLOUR[0], "GIF"), "is no readable PNG, JPEG, WebP or BMP"),
    "truncated": (PNG[: len(PNG) // 2], "cannot be read"),
    "bad data": (PNG[:60] + bytes(40) + PNG[100:], "cannot be read"),
    "other size": (encoded(COLOUR[0, :, :4]), "has shape (6, 4, 3)"),
    "turned": (encoded(COLOUR[0].swapaxes(0, 1)), "has shape (5, 6, 3)"),
    "grey": (encoded(GREY[0]), "has shape (6, 5, 1)"),
    "large": (png_header(5000, 5000), "5000 x 5000 pixels; at most 16777216"),
    "warned of": (png_header(10_000, 10_000), "10000 x 10000 pixels; at most"),
    "absurd": (png_header(60_000, 60_000), "far too many pixels; at most 16777216"),
    "16-bit grey": (
        saved(Image.fromarray(np.zeros((6, 5), np.uint16))),
        "only 8 bits per channel",
    ),
    "16-bit colour": (png_16_bit_colour(), "16-bit pixels; only 8 bits per channel"),
}


@pytest.mark.parametrize("write", [write_zip, write_folder])
@pytest.mark.parametrize("case", DAMAGED_IMAGES)
def test_a_damaged_image_is_named(case, write, tmp_path):
    data, expected = DAMAGED_IMAGES[case]
    path = write(tmp_path / "a.zip", edm_members() | {NAMES[7]: data})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = refusal(path)
    assert f"'{NAMES[7]}' in '{path}'" in message
    assert expected in message


def test_a_huge_header_in_the_first_image_is_refused_at_opening(tmp_path):
    files = {"a.png": png_header(12_000, 12_000)}
    path = write_zip(tmp_path / "a.zip", files)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="12000 x 12000 pixels"):
            open_archive(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def encrypted(folder: Path) -> Path:
    path = write_zip(folder / "a.zip", edm_members())
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    return path


def duplicated(folder: Path) -> Path:
    path = write_zip(folder / "a.zip", edm_members())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr(NAMES[2], PNG)
    return path


def truncated(folder: Path) -> Path:
    path = write_zip(folder / "a.zip", edm_members())
    path.write_bytes(path.read_bytes()[:-200])
    return path


def flipped(folder: Path) -> Path:
    path = write_zip(folder / "a.zip", edm_members(), zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[data.index(NAMES[5].encode()) + 60] ^= 0xFF
    path.write_bytes(data)
    return path


def bomb(folder: Path) -> Path:
    members = edm_members() | {NAMES[4]: bytes(17 * 2**20)}
    return write_zip(folder / "a.zip", members, zipfile.ZIP_DEFLATED)


def large_member(folder: Path) -> Path:
    members = edm_members() | {NAMES[4]: bytes(2**26 + 1)}
    return write_zip(folder / "a.zip", members, zipfile.ZIP_DEFLATED)


def lying_directory(folder: Path) -> Path:
    """Claim 10 bytes for a member that becomes 40 MB."""
    members = {NAMES[0]: bytes(40_000_000)}
    path = write_zip(folder / "a.zip", members, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    return path


def overstated(folder: Path) -> Path:
    path = write_zip(folder / "a.zip", edm_members())
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 24] = struct.pack("<I", 2**30)
    path.write_bytes(data)
    return path


def wrapped(folder: Path) -> Path:
    members = {f"mine/{name}": data for name, data in edm_members().items()}
    return write_zip(folder / "a.zip", members)


ZIP_ERRORS = {
    "encrypted": (encrypted, f"'{NAMES[0]}' in ", "without a password"),
    "duplicate": (duplicated, f"'{NAMES[2]}' in ", "occurs twice"),
    "truncated": (truncated, "a.zip'", "BadZipFile"),
    "flipped": (flipped, f"'{NAMES[5]}' in ", "cannot be read"),
    "bomb": (bomb, f"'{NAMES[4]}' in ", "times, as zip bombs are; at most 500"),
    "large": (large_member, f"'{NAMES[4]}' in ", "at most 67108864 are allowed"),
    "lying": (lying_directory, f"'{NAMES[0]}' in ", "cannot be read"),
    "overstated": (overstated, f"'{NAMES[0]}' in ", "is said to take 1073741824"),
    "wrapped": (wrapped, "'mine/dataset.json' in ", "to the top"),
    "bzip2": (
        lambda f: write_zip(f / "a.zip", edm_members(), zipfile.ZIP_BZIP2),
        f"'{NAMES[0]}' in ",
        "method 12",
    ),
    "empty": (lambda f: write_zip(f / "a.zip", {}), "a.zip'", "holds no image"),
    "no image": (
        lambda f: write_zip(f / "a.zip", {"a.txt": "x"}),
        "a.zip'",
        "holds no image",
    ),
    "another kind": (
        lambda f: write_zip(f / "a.zip", edm_members() | {"b.gif": b"x"}),
        "'b.gif' in ",
        "images must be .png",
    ),
    "line feed in a name": (
        lambda f: write_zip(f / "a.zip", {"a\nb.png": b"x"}),
        r"'a\nb.png' in ",
        "is no readable",
    ),
}


@pytest.mark.parametrize("case", ZIP_ERRORS)
def test_a_zip_is_refused_with_its_member_named(case, tmp_path):
    write, named, expected = ZIP_ERRORS[case]
    message = refusal(write(tmp_path))
    assert named in message
    assert expected in message


def test_a_lying_directory_costs_no_memory(tmp_path):
    path = lying_directory(tmp_path)
    tracemalloc.start()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_too_many_members_or_files_are_refused(tmp_path, monkeypatch):
    for module in ("limits", "zip_members", "image_files"):
        monkeypatch.setattr(f"diffusion.data.{module}.MAX_IMAGES", 10)
    path = write_zip(tmp_path / "a.zip", edm_members())
    assert "has 12 members; at most 10" in refusal(path)
    assert "more than 10 files" in refusal(write_folder(tmp_path / "a", edm_members()))
    assert "holds 11 images; at most 10" in refusal(archive("idx", tmp_path)[0])


def npz(**arrays):
    def write(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return write


def raw_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz_of(data: bytes, **options):
    return lambda folder: write_zip(folder / "a.npz", {"images.npy": data}, **options)


def with_value(value: float) -> np.ndarray:
    floats = np.zeros((11, 4, 4, 1), np.float32)
    floats[6, 1, 2] = value
    return floats


NPY = raw_npy(COLOUR)
PROMISE = NPY.replace(b"'shape': (11,", b"'shape': (99,")
NPZ_ERRORS = {
    "other names": (npz(x_train=COLOUR), "no array 'images' but 'x_train.npy'"),
    "object": (npz(images=np.array([None] * 11)), "pickles are never loaded"),
    "fortran": (npz(images=np.asfortranarray(COLOUR)), "Fortran order"),
    "promise": (npz_of(PROMISE), "header promises"),
    "too long": (npz_of(NPY + b"x"), "header promises"),
    "negative": (
        npz_of(NPY.replace(b"(11, 6,", b"(-1, 6,")),
        "has shape (-1, 6, 5, 3)",
    ),
    "no npy": (npz_of(b"hello"), "cannot be read"),
    "empty member": (npz_of(b""), "cannot be read"),
    "version 3": (npz_of(NPY[:6] + b"\3" + NPY[7:]), "version (3, 0)"),
    "long header": (npz_of(NPY[:6] + b"\2\0\0\0\0\x10" + bytes(99)), "cannot be read"),
    "code in header": (npz_of(NPY.replace(b"False", b"exit(")), "cannot be read"),
    "scalar": (npz(images=np.uint8(3)), "must have one row per image"),
    "one axis": (npz(images=np.zeros(11)), "it must be (N, height, width, channels)"),
    "no image": (npz(images=COLOUR[:0]), "holds no image"),
    "no pixel": (npz(images=COLOUR[:, :0]), "it must be (N, height, width, channels)"),
    "wide": (npz(images=np.zeros((1, 2**24 + 1), np.uint8)), "at most 16777216 values"),
    "int64": (npz(images=COLOUR.astype(np.int64)), "has type int64; it must be one of"),
    "complex": (npz(images=COLOUR * 1j), "has type complex128"),
    "nan": (npz(images=with_value(np.nan)), "image 6 has values that are NaN"),
    "infinite": (npz(images=with_value(-np.inf)), "image 6 has values that are NaN"),
    "bomb": (
        npz_of(raw_npy(np.zeros((17, 2**20), np.uint8)), method=zipfile.ZIP_DEFLATED),
        "as zip bombs are",
    ),
    "fewer labels": (npz(images=COLOUR, labels=LABELS[:9]), "has shape (9,)"),
    "one-hot": (npz(images=COLOUR, labels=np.eye(11, dtype=int)), "(11,) integers"),
    "float labels": (npz(images=COLOUR, labels=LABELS * 1.0), "(11,) integers"),
    "below zero": (npz(images=COLOUR, labels=LABELS - 3), "has the label -3"),
    "object labels": (
        npz(images=COLOUR, labels=LABELS.astype(object)),
        "pickles are never loaded",
    ),
}


@pytest.mark.parametrize("case", NPZ_ERRORS)
def test_an_npz_is_refused(case, tmp_path):
    write, expected = NPZ_ERRORS[case]
    message = refusal(write(tmp_path))
    assert expected in message
    assert "a.npz'" in message


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("member", ["images", "labels"])
def test_no_pickle_is_ever_loaded(member, tmp_path):
    trap = np.empty(11, object)
    trap[:] = [Trap(tmp_path / "sprung")] * 11
    np.savez(tmp_path / "a.npz", **{"images": COLOUR, member: trap})
    assert "pickles are never loaded" in refusal(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung"))).close()
    assert (tmp_path / "sprung").exists()  # The trap does work.


@pytest.mark.parametrize("kind", ["npz", "deflated npz"])
def test_flipped_bytes_of_an_npz_fail_its_checksum(kind, tmp_path):
    path, _ = archive(kind, tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "'images.npy' in" in refusal(path)


def break_idx(change, target="images-idx3"):
    def write(folder: Path) -> Path:
        path, _ = archive("idx", folder)
        file = Path(str(path).replace("images-idx3", target))
        file.write_bytes(change(file.read_bytes()))
        return path

    return write


def break_gz(change, target="images-idx3", inside=True):
    def write(folder: Path) -> Path:
        path, _ = archive("idx.gz", folder)
        file = Path(str(path).replace("images-idx3", target))
        data = file.read_bytes()
        if inside:
            data = gzip.compress(change(gzip.decompress(data)))
        file.write_bytes(data if inside else change(data))
        return path

    return write


def flip_checksum(data: bytes) -> bytes:
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


HUGE = struct.pack(">4I", 0x803, 2**24, 28, 28)
IDX_ERRORS = {
    "magic": (break_idx(lambda d: b"\0\0\x0d\3" + d[4:]), "begins with 0x00000d03"),
    "short header": (break_idx(lambda d: d[:9]), "cannot be read"),
    "cut": (break_idx(lambda d: d[:-5]), "which cannot be the 346"),
    "long": (break_idx(lambda d: d + b"x"), "which cannot be the 346"),
    "labels cut": (break_idx(lambda d: d[:-1], "labels-idx1"), "ends before"),
    "labels long": (break_idx(lambda d: d + b"x", "labels-idx1"), "goes on after"),
    "labels magic": (
        break_idx(lambda d: b"\0\0\x08\3" + d[4:], "labels-idx1"),
        "idx labels begin with 0x00000801",
    ),
    "labels count": (
        break_idx(lambda d: idx(LABELS[:10]), "labels-idx1"),
        "has 10 labels",
    ),
    "no images": (break_idx(lambda d: idx(GREY[:0, ..., 0])), "holds no image"),
    "no pixels": (
        break_idx(lambda d: idx(GREY[:, :0, :, 0])),
        "has shape (11, 0, 5, 1)",
    ),
    "gz cut inside": (break_gz(lambda d: d[:-5]), "ends before the values"),
    "gz long inside": (break_gz(lambda d: d + b"x"), "goes on after the 11 images"),
    "gz cut": (break_gz(lambda d: d[:-40], inside=False), "EOFError"),
    "gz without end": (break_gz(lambda d: d[:-4], inside=False), "EOFError"),
    "gz checksum": (break_gz(flip_checksum, inside=False), "CRC check failed"),
    "gz no gzip": (break_gz(lambda d: b"hello", inside=False), "BadGzipFile"),
    "gz empty": (break_gz(lambda d: b"", inside=False), "cannot be read"),
    "gz promise": (
        break_gz(lambda d: HUGE + d[16:]),
        "which cannot be the 13153337360",
    ),
    "gz labels cut": (
        break_gz(lambda d: d[:-9], "labels-idx1", inside=False),
        "labels-idx1-ubyte.gz' cannot be read (EOFError",
    ),
}


@pytest.mark.parametrize("case", IDX_ERRORS)
def test_an_idx_file_is_refused(case, tmp_path):
    write, expected = IDX_ERRORS[case]
    assert expected in refusal(write(tmp_path))


def test_the_last_batch_of_a_stream_that_is_too_long_is_withheld(tmp_path):
    batches = open_archive(break_gz(lambda d: d + b"x")(tmp_path)).batches(4)
    assert [len(next(batches).images) for _ in range(2)] == [4, 4]
    with pytest.raises(InputError, match="goes on after"):
        next(batches)


def test_folders_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refusal(tmp_path / "empty")
    path = write_folder(tmp_path / "a", edm_members())
    (path / NAMES[3]).unlink()
    os.mkfifo(path / NAMES[3])
    assert f"'{NAMES[3]}' in '{path}' is no file" in refusal(path)
    (path / NAMES[3]).unlink()
    source = open_archive(path)
    (path / NAMES[4]).unlink()
    with pytest.raises(InputError, match=f"'{NAMES[4]}' in"):
        source.read()
    with open(path / NAMES[4], "wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(InputError, match="more than the 67108864 bytes"):
        source.read()


def test_a_failure_of_many_lines_is_told_in_one():
    with pytest.raises(InputError, match=r"^it cannot be read \(ValueError: b c\); "):
        with reading("it"):
            raise ValueError("b\n\tc")


def test_what_is_no_archive_is_refused(tmp_path):
    assert "there is no file or folder" in refusal(tmp_path / "a.zip")
    (tmp_path / "a.tar").write_bytes(b"")
    assert "its name must end in .zip, .npz" in refusal(tmp_path / "a.tar")
    (tmp_path / "a.zip").write_bytes(b"")
    assert "cannot be read" in refusal(tmp_path / "a.zip")
    assert "there is no file" in refusal("a\0b\n.zip")


def test_a_change_between_passes_is_noticed(tmp_path):
    path = write_zip(tmp_path / "a.zip", edm_members())
    source = open_archive(path)
    write_zip(path, {"x" + n: d for n, d in edm_members().items()})
    with pytest.raises(InputError, match="cannot be read"):
        source.read()
    path.unlink()
    with pytest.raises(InputError, match="FileNotFoundError"):
        source.read()


def test_numbers_of_images_below_one_are_refused(tmp_path):
    source = open_archive(archive("npz", tmp_path)[0])
    with pytest.raises(InputError, match="batch_size is 0; it must be at least 1"):
        source.batches(0)
    with pytest.raises(InputError, match="max_images is 0; it must be at least 1"):
        source.read(0)


# Data sets by name.


@pytest.mark.parametrize("name", ["digits", "mixture2d"])
def test_a_preset_is_its_training_images(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name, edm_members())
    source, split = (
        open_dataset(name),
        split_of(DataConfig(name)),
    )
    assert source.name == name
    for found, expected in zip(source.read(), split.training, strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert data_digest(source) == data_digest(source, 7) == split.digest
    for path in (f"./{name}", Path(name), tmp_path / name):
        np.testing.assert_array_equal(open_dataset(path).read().images, COLOUR)


def test_a_batch_of_a_preset_belongs_to_the_caller():
    source = open_dataset("digits")
    next(source.batches(8)).images[:] = 0
    assert data_digest(source) == split_of(DataConfig("digits")).digest


def test_the_digest_is_that_of_the_bytes_in_order(tmp_path):
    expected = hashlib.sha256(COLOUR.tobytes()).hexdigest()
    digests = set()
    for kind in ("zip", "folder", "npz"):
        source = open_archive(archive(kind, tmp_path / kind.replace(" ", ""))[0])
        digests |= {data_digest(source), data_digest(source, 3)}
    assert digests == {expected}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("digts", "unknown data set 'digts'; did you mean 'digits'? It may also be"),
        (
            "qqqq",
            "mixture2d. It may also be the path of an image",
        ),
        ("./digits", "there is no file or folder './digits'"),
        ("cifar.zip", "there is no file or folder 'cifar.zip'"),
    ],
)
def test_unknown_data_sets_are_refused(given, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        open_dataset(given)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
