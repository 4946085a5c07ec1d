"""Files of samples: what is in them, killed and continued, and the memory they take."""

import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from configs import InputError
from diffusion.data.archives import open_archive
from samplers import sample_files, stored_zip
from samplers.partial_files import open_partial_files
from samplers.sample_files import Block, SampleFiles, image_name
from samplers.stored_zip import end_of_directory, member_records

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_memory_does_not_grow_with_the_number_of_samples",)

FORMATS = ("folder", "zip", "npz", "npy")
SHAPE = (4, 3, 3)


def blocks(count, size, shape=SHAPE, first=0):
    for start in range(first, count, size):
        rng = np.random.default_rng(start)
        n = min(size, count - start)
        samples = rng.uniform(-1.2, 1.2, (n, *shape)).astype(np.float32)
        yield Block(start, samples, np.arange(start, start + n) % 10)


def write(outdir, count, size, formats=FORMATS, shape=SHAPE):
    """Write all samples, or what is missing of them; return their digest."""
    with open_partial_files(outdir / ".partial", {"count": count}) as partial:
        files = SampleFiles(outdir, partial, formats, (count, *shape), has_classes=True)
        if partial.done == 0:
            partial.commit(0)
        for block in blocks(count, size, shape, partial.done):
            files.add(block)
        files.finish()
        return files.digest


def contents(outdir) -> dict[str, bytes]:
    return {
        str(path.relative_to(outdir)): path.read_bytes()
        for path in sorted(outdir.rglob("*"))
        if path.is_file() and ".partial" not in path.parts
    }


def test_every_kind_holds_the_same_images_and_is_read_as_a_data_set(tmp_path):
    write(tmp_path, 7, 3)
    samples = np.concatenate([block.samples for block in blocks(7, 3)])
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), samples)
    expected = np.clip(np.round((samples + 1) * 127.5), 0, 255)
    for name in ("images", "images.zip", "images.npz"):
        source = open_archive(tmp_path / name)
        read = source.read()
        np.testing.assert_array_equal(read.images, expected, err_msg=name)
        assert read.images.dtype == np.uint8
        np.testing.assert_array_equal(read.labels, np.arange(7))
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), np.arange(7))
    found = json.loads((tmp_path / "images" / "dataset.json").read_text())
    assert found["labels"][6] == ["00000/img00000006.png", 6]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] > 3 * 3


def test_names_are_those_of_edm_data_sets_a_thousand_to_a_folder():
    assert image_name(999) == "00000/img00000999.png"
    assert image_name(1_234_567) == "01234/img01234567.png"


class KilledError(BaseException):
    pass


def kill_after(calls, monkeypatch):
    """Let the process die at some call that touches the disk."""
    left = [calls]
    for name, real in (("fsync", lambda descriptor: None), ("replace", os.replace)):

        def counted(*arguments, real=real):
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return real(*arguments)

        monkeypatch.setattr(os, name, counted)
    return left


def test_killed_anywhere_and_continued_gives_the_same_bytes(tmp_path):
    digest = write(tmp_path / "whole", 5, 2)
    whole = contents(tmp_path / "whole")
    assert {"images.zip", "images.npz", "samples.npy", "grid.png"} <= whole.keys()
    with pytest.MonkeyPatch.context() as patch:
        left = kill_after(10**6, patch)
        write(tmp_path / "counted", 5, 2)
        total = 10**6 - left[0]
    assert total > 60
    for calls in range(total):
        outdir = tmp_path / f"killed{calls}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
            kill_after(calls, patch)
            write(outdir, 5, 2)
        assert write(outdir, 5, 2) == digest
        assert contents(outdir) == whole, calls


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    with open_partial_files(tmp_path / ".partial", {}) as partial:
        files = SampleFiles(tmp_path, partial, ("zip",), (4, *SHAPE), has_classes=True)
        files.add(next(blocks(4, 2)))
    with open_partial_files(tmp_path / ".partial", {}) as partial:
        assert partial.done == 2


def test_two_processes_do_not_write_one_folder(tmp_path):
    with open_partial_files(tmp_path / ".partial", {}):
        with pytest.raises(InputError, match="being written by another process"):
            with open_partial_files(tmp_path / ".partial", {}):
                pass


@pytest.mark.parametrize("loss", ["shorter", "gone", "damaged"])
def test_lost_data_are_one_line(loss, tmp_path):
    with open_partial_files(tmp_path / ".partial", {}) as partial:
        files = SampleFiles(tmp_path, partial, ("npy",), (4, *SHAPE), has_classes=True)
        files.add(next(blocks(4, 2)))
    path = tmp_path / ".partial" / "samples.npy"
    if loss == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif loss == "gone":
        path.unlink()
    else:
        (tmp_path / ".partial" / "journal.json").write_text("{")
    with pytest.raises(InputError, match=r"damaged|has lost data") as caught:
        write(tmp_path, 4, 2)
    assert "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for module in (sample_files, stored_zip):
        monkeypatch.setattr(module, "_CHUNK", 2**14)  # pieces in which files are copied

    def peak(count, trial=0):
        tracemalloc.start()
        write(tmp_path / f"{count}-{trial}", count, 16, shape=(16, 16, 3))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(16)  # caches of Pillow and of zipfile
    # Threads that other tests left behind count too: the least of three.
    many, few = (min(peak(count, t) for t in range(3)) for count in (1024, 128))
    assert many < 1.2 * few


def test_points_are_no_images(tmp_path):
    with open_partial_files(tmp_path / ".partial", {}) as partial:
        with pytest.raises(InputError, match="choose --format npy or npz"):
            SampleFiles(tmp_path, partial, ("zip",), (4, 2), has_classes=False)
    write(tmp_path / "points", 5, 2, ("npy", "npz"), (2,))
    read = open_archive(tmp_path / "points" / "images.npz").read()
    points = np.load(tmp_path / "points" / "samples.npy")
    np.testing.assert_array_equal(read.images, points)


def test_a_zip_of_more_members_than_16_bits_count_is_read():
    file, directory = io.BytesIO(), io.BytesIO()
    count = 70_000
    for index in range(count):
        local, entry = member_records(f"{index}", 0, 0, file.tell())
        file.write(local)
        directory.write(entry)
    offset, size = file.tell(), directory.tell()
    file.write(directory.getvalue() + end_of_directory(count, size, offset))
    with zipfile.ZipFile(file) as archive:
        assert len(archive.namelist()) == count
        assert archive.read("69999") == b""


def test_a_member_beyond_4_gib_is_read(tmp_path):
    with open(tmp_path / "large.zip", "w+b") as file:
        offset = file.seek(5 * 2**30)  # a hole, which takes no room
        local, entry = member_records("a", 3, 0x352441C2, offset)
        file.write(local + b"abc")
        start = file.tell()
        file.write(entry + end_of_directory(1, len(entry), start))
    with zipfile.ZipFile(tmp_path / "large.zip") as archive:
        assert archive.read("a") == b"abc"
