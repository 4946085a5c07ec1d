"""Preparing images: sizes, splits, interruptions, damage, TFDS, packed sets."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import InputError
from configs.preparation_schema import PreparationConfig
from configs.schema import DataConfig
from diffusion.data import open_dataset, open_packed, split_of
from diffusion.data.cifar10_archive import read_cifar10_archive
from diffusion.data.packed import read_manifest
from diffusion.data.prepare import prepare_data
from diffusion.data.resizing import resize_image
from diffusion.prepare_data import main

RNG = np.random.default_rng(0)


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth random image: noise would hide errors of a filter."""
    y, x = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
    phases = RNG.uniform(0, 6, channels)
    waves = [np.sin(5 * y + p) + np.cos(7 * x - p) for p in phases]
    pixels = (
        np.stack(waves, axis=2) * 60 + 128 + RNG.integers(-9, 9, (height, width, 1))
    )
    return pixels.clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Forty images of two classes, 24 x 16 pixels."""
    place = tmp_path_factory.mktemp("images")
    for number in range(40):
        name = ("cat", "dog")[number % 2]
        save(place / name / f"{number:03}.png", picture(24, 16))
    return place


def pixels_of(folder: Path) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    )


def test_a_folder_is_packed_as_it_is(folder, tmp_path, capsys):
    options = PreparationConfig(
        source=str(folder), data_dir=str(tmp_path), name="pets", held_out_fraction=0.25
    )
    place = prepare_data("folder", options)
    split = open_packed(place)
    assert isinstance(split.training.images, np.memmap)
    assert split.training.images.shape == (30, 24, 16, 3)
    both = np.concatenate([split.training.images, split.held_out.images])
    pixels = pixels_of(folder)
    assert {i.tobytes() for i in both} == {i.tobytes() for i in pixels}
    first_class = {i.tobytes() for i in pixels[:20]}  # sorted: cat/..., dog/...
    for image, label in zip(*split.training, strict=True):
        assert (image.tobytes() in first_class) == (label == 0)
    x = split.training.images / 127.5 - 1
    assert split.sigma_data == pytest.approx(np.sqrt((x**2).mean()), rel=1e-12)
    digest = hashlib.sha256(split.training.images.tobytes()).hexdigest()
    assert split.digest == digest == read_manifest(place).digests["training_images"]
    # Training finds it by name, and everything that takes images by path.
    again = split_of(DataConfig(name="pets", data_dir=str(tmp_path)))
    assert again.digest == split.digest
    assert open_dataset(place).num_images == 30
    capsys.readouterr()
    prepare_data("folder", options)
    assert "packed already" in capsys.readouterr().out


def test_another_set_of_the_same_name_is_refused(folder, tmp_path):
    options = {"source": str(folder), "data_dir": str(tmp_path), "name": "pets"}
    prepare_data("folder", PreparationConfig(**options))
    with pytest.raises(InputError, match=r"max_images None -> 7.*another --name"):
        prepare_data("folder", PreparationConfig(**options, max_images=7))


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("change", ["pixels", "class folder", "labels", "nothing"])
def test_a_changed_source_is_not_taken_for_packed(kind, change, tmp_path, capsys):
    names = ("cat/0.bmp", "cat/1.bmp", "dog/2.bmp")
    pictures = dict(zip(names, [picture(8, 8) for _ in names], strict=True))
    labels = [[name, 0] for name in names]
    source = tmp_path / {"folder": "pets", "zip": "pets.zip"}[kind]

    def pack() -> Path:
        tree = tmp_path / "pets"
        shutil.rmtree(tree, ignore_errors=True)
        for name, pixels in pictures.items():
            save(tree / name, pixels)
        if change == "labels":
            (tree / "dataset.json").write_text(json.dumps({"labels": labels}))
        for path in tree.rglob("*.*"):
            os.utime(path, ns=(0, (changed and path.name == "1.bmp") * 10**9))
        if kind == "zip":
            with zipfile.ZipFile(source, "w") as file:
                for path in sorted(tree.rglob("*.*")):
                    name = path.relative_to(tree).as_posix()
                    file.writestr(zipfile.ZipInfo(name), path.read_bytes())
        options = PreparationConfig(source=str(source), data_dir=str(tmp_path))
        return prepare_data(kind, options)

    changed = False
    pack()
    if change == "pixels":
        pictures["cat/1.bmp"] = 255 - pictures["cat/1.bmp"]
        changed = True
    elif change == "class folder":
        pictures["dog/1.bmp"] = pictures.pop("cat/1.bmp")
    elif change == "labels":
        labels[1] = [names[1], 1]
    if change == "nothing":
        pack()
        assert "packed already" in capsys.readouterr().out
        return
    with pytest.raises(InputError, match="its images or labels have changed"):
        pack()


@pytest.mark.parametrize("kind", ["npz", "idx"])
def test_changed_arrays_are_not_taken_for_packed(kind, tmp_path):
    images = RNG.integers(0, 256, (5, 6, 6, 1), dtype=np.uint8)
    path = tmp_path / ("a.npz" if kind == "npz" else "a-images-idx3-ubyte")
    options = PreparationConfig(source=str(path), data_dir=str(tmp_path), name="a")
    for second, pixels in enumerate((images, 255 - images)):
        if kind == "npz":
            np.savez(path, images=pixels)
        else:
            path.write_bytes(struct.pack(">4I", 0x803, 5, 6, 6) + pixels.tobytes())
            os.utime(path, ns=(0, second))
        if second == 0:
            prepare_data(kind, options)
    with pytest.raises(InputError, match="its images or labels have changed"):
        prepare_data(kind, options)


def test_subsets_are_nested_and_share_what_is_held_out(folder, tmp_path):
    found = {}
    for count in (5, 12):
        place = prepare_data(
            "folder",
            PreparationConfig(
                source=str(folder),
                data_dir=str(tmp_path),
                name=f"pets{count}",
                held_out_fraction=0.25,
                max_images=count,
            ),
        )
        found[count] = open_packed(place)
        assert len(found[count].training.images) == count
    few, many = (
        {i.tobytes() for i in found[count].training.images} for count in (5, 12)
    )
    assert few < many
    np.testing.assert_array_equal(found[5].held_out.images, found[12].held_out.images)
    data = DataConfig(name="pets12", data_dir=str(tmp_path), max_images=4)
    fewer = split_of(data)
    assert len(fewer.training.images) == 4
    assert fewer.digest != found[12].digest
    with pytest.raises(InputError, match="max_images is 31"):
        prepare_data(
            "folder",
            PreparationConfig(
                source=str(folder),
                data_dir=str(tmp_path),
                name="too-many",
                held_out_fraction=0.25,
                max_images=31,
            ),
        )


def test_images_of_any_size_become_one(tmp_path):
    source = tmp_path / "images"
    for number, size in enumerate([(128, 96), (1024, 1024), (64, 64), (96, 200)]):
        save(source / f"{number}.png", picture(*size))
    with pytest.raises(InputError, match=r"give one size, --image-size 128 96"):
        prepare_data(
            "folder", PreparationConfig(source=str(source), data_dir=str(tmp_path))
        )
    place = prepare_data(
        "ffhq64", PreparationConfig(source=str(source), data_dir=str(tmp_path))
    )
    images = open_packed(place).training.images
    assert images.shape == (4, 64, 64, 3)
    np.testing.assert_array_equal(images[2], np.asarray(Image.open(source / "2.png")))
    # EDM: the centred square, then Lanczos.
    big = Image.open(source / "0.png").crop((0, 16, 96, 112))
    wanted = big.resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images[0], np.asarray(wanted))


def test_crops_have_the_size_and_centre_that_they_say():
    image = Image.fromarray(picture(128, 256))
    pixels = np.asarray(image).astype(float)
    # ADM: halved by the box filter, the mean of 2 x 2 pixels, then the centre.
    adm = np.asarray(resize_image(image, 64, 64, "adm"))
    halved = pixels.reshape(64, 2, 128, 2, 3).mean(axis=(1, 3))[:, 32:96]
    assert np.abs(adm - halved).max() <= 1  # PIL rounds after rows and after columns
    # Lanczos of a centred part; without crop the aspect changes.
    square = image.crop((64, 0, 192, 128)).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(
        np.asarray(resize_image(image, 64, 64, "center")), np.asarray(square)
    )
    whole = image.resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(
        np.asarray(resize_image(image, 64, 64, "none")), np.asarray(whole)
    )
    for crop in ("none", "center", "adm"):
        assert resize_image(image, 48, 32, crop).size == (32, 48)
        assert resize_image(image, 300, 500, crop).size == (500, 300)
    # Zeros on all sides, and nothing else.
    padded = np.asarray(resize_image(image, 130, 260, "pad"))
    wanted = np.pad(np.asarray(image), [(1, 1), (2, 2), (0, 0)])
    np.testing.assert_array_equal(padded, wanted)
    with pytest.raises(
        InputError, match="128x256 pixels and cannot be padded to 128x2"
    ):
        resize_image(image, 128, 255, "pad")
    with pytest.raises(InputError, match="did you mean 'center'"):
        resize_image(image, 8, 8, "centre")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["none", "center", "adm", "pad"])
def test_arrays_are_resized_as_image_files_are(crop, channels, tmp_path):
    size = (40, 30) if crop == "pad" else (8, 12)
    images = np.stack([picture(36, 28, channels) for _ in range(5)])
    for number, pixels in enumerate(images):
        save(tmp_path / "files" / f"{number}.png", pixels)
    np.savez(tmp_path / "arrays.npz", images=images)
    found = []
    for kind, source in (("folder", "files"), ("npz", "arrays.npz")):
        options = PreparationConfig(
            source=str(tmp_path / source),
            data_dir=str(tmp_path),
            image_size=size,
            crop=crop,
        )
        found.append(open_packed(prepare_data(kind, options)).training.images)
        if crop == "pad":
            small = {**vars(options), "image_size": (40, 24), "name": "small"}
            with pytest.raises(InputError, match=r"(arrays\.npz|0\.png).* has 36x28 p"):
                prepare_data(kind, PreparationConfig(**small))
    assert found[0].shape == (5, *size, channels)
    np.testing.assert_array_equal(found[0], found[1])


def test_an_interrupted_preparation_goes_on(folder, tmp_path, monkeypatch):
    options = PreparationConfig(
        source=str(folder), data_dir=str(tmp_path), image_size=(8, 8), name="small"
    )
    whole = prepare_data(
        "folder",
        PreparationConfig(**{**vars(options), "name": "whole"}),
    )
    import diffusion.data.staging as staging

    monkeypatch.setattr(staging, "_SECONDS_BETWEEN_NOTES", 0.0)
    monkeypatch.setattr(staging, "_CHUNK", 1)
    read, count = staging._pixels, 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == 25:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(staging, "_pixels", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_data("folder", options)
    assert not (tmp_path / "packed" / "small").exists()
    done = json.loads((tmp_path / "packed/.small.stages/images.json").read_text())
    assert 0 < done["done"] <= 25
    count = 100
    place = prepare_data("folder", options)
    assert count - 100 == 40 - done["done"]  # nothing was decoded twice
    assert read_manifest(place).digests == read_manifest(whole).digests
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == ["small", "whole"]


def test_corrupt_images_are_named_and_left_out_or_repaired(tmp_path, capsys):
    source = tmp_path / "images"
    for number in range(6):
        save(source / f"{number}.png", picture(8, 8))
    good = (source / "2.png").read_bytes()
    (source / "2.png").write_bytes(good[: len(good) // 2])
    (source / "4.png").write_bytes(b"no image")
    options = {"source": str(source), "data_dir": str(tmp_path)}
    with pytest.raises(InputError, match=r"2 images cannot be read: 2\.png, 4\.png"):
        prepare_data("folder", PreparationConfig(**options))
    (source / "2.png").write_bytes(good)
    place = prepare_data(
        "folder", PreparationConfig(**options, on_corrupt="skip", name="five")
    )
    assert "4.png" in capsys.readouterr().err
    manifest = read_manifest(place)
    assert manifest.skipped == ("4.png",)
    assert manifest.counts["training"] == 5
    (source / "4.png").write_bytes(good)
    place = prepare_data("folder", PreparationConfig(**options))  # goes on where it was
    assert read_manifest(place).counts["training"] == 6


def test_what_was_read_is_kept_when_corrupt_images_are_to_be_skipped(
    tmp_path, monkeypatch
):
    source = tmp_path / "images"
    for number in range(6):
        save(source / f"{number}.png", picture(8, 8))
    (source / "4.png").write_bytes(b"no image")
    options = {"source": str(source), "data_dir": str(tmp_path)}
    with pytest.raises(InputError, match=r"cannot be read: 4\.png"):
        prepare_data("folder", PreparationConfig(**options))
    repainted = picture(8, 8)
    save(source / "1.png", repainted)
    os.utime(source / "1.png", ns=(0, 0))
    import diffusion.data.staging as staging

    read, decoded = staging._pixels, []

    def counted(files, read_member, name, *arguments):
        decoded.append(name)
        return read(files, read_member, name, *arguments)

    monkeypatch.setattr(staging, "_pixels", counted)
    place = prepare_data("folder", PreparationConfig(**options, on_corrupt="skip"))
    assert decoded == ["1.png", "4.png"]  # the one that changed and the corrupt one
    images = open_packed(place).training.images
    assert len(images) == 5
    np.testing.assert_array_equal(images[1], repainted)


def test_the_first_image_of_a_zip_may_be_the_corrupt_one(tmp_path):
    path, pixels = tmp_path / "a.zip", [picture(8, 8) for _ in range(3)]
    with zipfile.ZipFile(path, "w") as file:
        for number, image in enumerate(pixels):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "png")
            file.writestr(f"{number}.png", stream.getvalue())
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1  # the checksum of the member no longer fits
    path.write_bytes(data)
    options = {"source": str(path), "data_dir": str(tmp_path)}
    with pytest.raises(InputError, match=r"1 images cannot be read: 0\.png"):
        prepare_data("zip", PreparationConfig(**options))
    place = prepare_data("zip", PreparationConfig(**options, on_corrupt="skip"))
    assert read_manifest(place).skipped == ("0.png",)
    np.testing.assert_array_equal(open_packed(place).training.images, pixels[1:])


def test_images_of_other_kinds_are_one_line_each(tmp_path):
    def refused(name: str, image: Image.Image, text: str, **changes) -> None:
        source = tmp_path / name
        save(source / "0.png", picture(8, 8))
        image.save(source / "1.png")
        with pytest.raises(InputError, match=text) as caught:
            prepare_data(
                "folder",
                PreparationConfig(
                    source=str(source), data_dir=str(tmp_path), **changes
                ),
            )
        assert "\n" not in str(caught.value)

    grey = Image.fromarray(picture(8, 8, 1)[..., 0])
    refused("grey", grey, "is grey, the first image in colour")
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 500)
    refused("deep", deep, "16-bit|I;16")
    refused("size", Image.fromarray(picture(9, 8)), r"--image-size 8 8")
    alpha = Image.fromarray(picture(8, 8)).convert("RGBA")
    refused("alpha", alpha, r"1\.png.* has an alpha channel \(RGBA\).*-alpha remove")


def test_zips_with_labels_and_a_held_out_archive(tmp_path):
    def archive(name: str, count: int) -> str:
        labels = []
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for number in range(count):
                stream = io.BytesIO()
                Image.fromarray(picture(8, 8)).save(stream, "png")
                member = f"00000/img{number:08}.png"
                file.writestr(member, stream.getvalue())
                labels.append([member, number % 3])
            file.writestr("dataset.json", json.dumps({"labels": labels}))
        return str(tmp_path / name)

    options = PreparationConfig(
        source=archive("a.zip", 9),
        held_out_source=archive("b.zip", 4),
        data_dir=str(tmp_path),
    )
    split = open_packed(prepare_data("zip", options))
    assert (len(split.training.images), len(split.held_out.images)) == (9, 4)
    np.testing.assert_array_equal(split.training.labels, np.arange(9) % 3)
    other = tmp_path / "other"
    save(other / "0.png", picture(9, 8))
    changed = {**vars(options), "held_out_source": str(other), "name": "c"}
    with pytest.raises(InputError, match=r"held-out images have shape \(9, 8, 3\)"):
        prepare_data("zip", PreparationConfig(**changed))
    with pytest.raises(InputError, match="is a file of another kind, not npz"):
        prepare_data("npz", options)


def test_names_that_point_outside_an_archive_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        stream = io.BytesIO()
        Image.fromarray(picture(8, 8)).save(stream, "png")
        file.writestr("../../evil.png", stream.getvalue())
    with pytest.raises(InputError, match="points outside the archive"):
        prepare_data("zip", PreparationConfig(source=str(path), data_dir=str(tmp_path)))


def test_damaged_packed_sets_are_one_line(folder, tmp_path):
    place = prepare_data(
        "folder",
        PreparationConfig(source=str(folder), data_dir=str(tmp_path), name="pets"),
    )
    data = DataConfig(name="pets", data_dir=str(tmp_path))
    images = place / "training_images.npy"
    good = images.read_bytes()
    images.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    with pytest.raises(InputError, match="does not have the digest"):
        split_of(data)
    images.write_bytes(good[:-100])
    with pytest.raises(InputError, match="prepare the data again"):
        split_of(data)
    images.unlink()
    with pytest.raises(InputError, match="prepare the data again"):
        split_of(data)
    (place / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        split_of(data)


@pytest.mark.parametrize("name", ["a/b", "/a", "..", ".a", "", "a\\b", "a\0b"])
def test_a_name_that_is_no_folder_is_one_line(name, folder, tmp_path):
    options = {"source": str(folder), "data_dir": str(tmp_path)}
    with pytest.raises(InputError, match="without slashes and no dot in front") as e:
        prepare_data("folder", PreparationConfig(**options, name=name))
    assert repr(name) in str(e.value)


def test_the_folder_one_is_in_gives_the_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    place = prepare_data(
        "folder", PreparationConfig(source=".", data_dir=str(tmp_path))
    )
    assert place.name == folder.name


def test_all_corrupt_images_are_listed_before_the_error(tmp_path, capsys):
    source = tmp_path / "images"
    save(source / "00.png", picture(8, 8))
    for number in range(1, 15):
        (source / f"{number:02}.png").write_bytes(b"no image")
    options = PreparationConfig(source=str(source), data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"14 images cannot .* 10.png and 4 more; rep"):
        prepare_data("folder", options)
    error = capsys.readouterr().err
    for number in range(1, 15):
        assert f"warning: {number:02}.png: " in error


def test_missing_data_says_how_to_prepare_them(tmp_path):
    with pytest.raises(InputError, match=r"prepare_data cifar10 --source PATH"):
        split_of(DataConfig(name="cifar10", data_dir=str(tmp_path)))
    with pytest.raises(InputError, match="there is no file or folder 'nowhere'"):
        prepare_data("folder", PreparationConfig(source="nowhere"))
    with pytest.raises(InputError, match="ffhq64 needs --source PATH"):
        prepare_data("ffhq64", PreparationConfig())
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        prepare_data("cifar", PreparationConfig())


def test_offline_it_is_said_at_once_what_to_fetch(tmp_path, monkeypatch):
    def unreachable(*arguments):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", unreachable)
    for name, text in (
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("mnist", "t10k-labels-idx1-ubyte.gz"),
    ):
        with pytest.raises(InputError, match=rf"{text}.* --source PATH"):
            prepare_data(name, PreparationConfig(data_dir=str(tmp_path)))


def test_a_silent_name_server_does_not_hold_up_the_refusal(monkeypatch):
    from diffusion.data import prepare_tfds

    answered = threading.Event()

    def silent(*arguments):
        answered.wait(60)
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", silent)
    monkeypatch.setattr(prepare_tfds, "_SECONDS_TO_CONNECT", 0.05)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"www.cs.toronto.edu cannot be reached"):
        prepare_tfds._require_host("cifar10")
    assert time.monotonic() - started < 10
    answered.set()


def test_behind_a_proxy_one_counts_as_online(monkeypatch):
    from diffusion.data import prepare_tfds

    def unreachable(*arguments):
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "")
    prepare_tfds._require_host("cifar10")
    monkeypatch.setenv("no_proxy", "toronto.edu")
    with pytest.raises(InputError, match="cannot be reached"):
        prepare_tfds._require_host("cifar10")


CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


def cifar_archive(path: Path, version: str, per_batch: int = 7) -> dict[str, list]:
    """Write an archive of the official layout; return its images by split."""
    found: dict[str, list] = {"train": [], "test": []}
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    members = {}
    rng = np.random.default_rng(1)
    for name in names:
        labels = rng.integers(0, 10, per_batch).astype(np.uint8)
        planes = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        split = "test" if name == "test_batch" else "train"
        found[split] += list(zip(planes.reshape(-1, 3, 32, 32), labels, strict=True))
        if version == "binary":
            rows = np.concatenate([labels[:, None], planes], axis=1)
            members[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
        else:
            batch = {b"data": planes, b"labels": [int(label) for label in labels]}
            members[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    if version == "binary":
        text = "\n".join(CLASSES.split()) + "\n\n"
        members["cifar-10-batches-bin/batches.meta.txt"] = text.encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return found


@pytest.mark.parametrize("version", ["binary", "python"])
def test_official_cifar10_becomes_the_official_tfds_directory(version, tmp_path):
    path = tmp_path / f"cifar-10-{version}.tar.gz"
    images = cifar_archive(path, version)
    options = PreparationConfig(source=str(path), data_dir=str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"sha256 .* not one of the two official"):
        prepare_data("cifar10", options)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    options = PreparationConfig(**{**vars(options), "source_sha256": digest})
    split = open_packed(prepare_data("cifar10", options))
    assert (len(split.training.images), len(split.held_out.images)) == (35, 7)
    # Any TFDS user reads it, by name and without TensorFlow.
    program = (
        "import sys, json, numpy as np, tensorflow_datasets as tfds\n"
        "b = tfds.builder('cifar10', data_dir=sys.argv[1])\n"
        "assert str(b.version) == '3.0.2', b.version\n"
        "out = {s: [[e['id'].decode(), int(e['label']), e['image'].tolist()]\n"
        "       for e in b.as_data_source(s)] for s in ('train', 'test')}\n"
        "assert b.info.features['label'].names[3] == 'cat'\n"
        "assert 'tensorflow' not in sys.modules\n"
        "print(json.dumps(out))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=True,
    )
    records = json.loads(result.stdout)
    for name, part in (("train", split.training), ("test", split.held_out)):
        assert len(records[name]) == len(images[name])
        for place, (key, label, pixels) in enumerate(records[name]):
            planes, wanted = images[name][int(key.removeprefix(f"{name}_"))]
            assert label == wanted == part.labels[place]
            np.testing.assert_array_equal(
                np.asarray(pixels, np.uint8), planes.transpose(1, 2, 0)
            )
            np.testing.assert_array_equal(part.images[place], pixels)


def test_the_command_packs_a_subset_of_the_official_archive(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "cifar-10-binary.tar.gz"
    images = cifar_archive(path, "binary")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    command = f"prepare_data cifar10_5k --source {path} --source-sha256 {digest} "
    command += f"--max-images 12 --data-dir {tmp_path / 'data'}"
    monkeypatch.setattr(sys, "argv", command.split())
    main()
    split = open_packed(tmp_path / "data/packed/cifar10_5k")
    assert (len(split.training.images), len(split.held_out.images)) == (12, 7)
    for part, name in ((split.training, "train"), (split.held_out, "test")):
        given = {(p.transpose(1, 2, 0).tobytes(), int(x)) for p, x in images[name]}
        assert {(i.tobytes(), int(x)) for i, x in zip(*part, strict=True)} <= given
    assert "12 training and 7 held-out images" in capsys.readouterr().out


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (tarfile.TarInfo("../data_batch_1.bin"), "points outside the archive"),
        (tarfile.TarInfo("a/../../data_batch_1.bin"), "points outside the archive"),
        (tarfile.TarInfo("..\\data_batch_1.bin"), "points outside the archive"),
        (tarfile.TarInfo("/tmp/data_batch_1.bin"), "points outside the archive"),
        (link("data_batch_1.bin", "/etc/passwd", tarfile.SYMTYPE), "is a link"),
        (link("a/test_batch.bin", "../../secret", tarfile.LNKTYPE), "is a link"),
        (link("a", "/tmp", tarfile.SYMTYPE), "is a link"),
        (link("test_batch.bin", "", tarfile.FIFOTYPE), "is a link or a device"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_members_that_lead_out_of_a_tar_archive_are_refused(member, text, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member, io.BytesIO())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=text) as caught:
        read_cifar10_archive(path, digest)
    assert repr(member.name) in str(caught.value)


def test_tfds_images_of_16_bits_are_refused(folder, tmp_path):
    options = {"source": str(folder), "data_dir": str(tmp_path), "name": "pets"}
    prepare_data("folder", PreparationConfig(**options, write_tfds=True))
    features = tmp_path / "pets/1.0.0/features.json"
    text = features.read_text()
    assert text.count('"dtype": "uint8"') == 1
    features.write_text(text.replace('"dtype": "uint8"', '"dtype": "uint16"'))
    with pytest.raises(InputError, match=r"have uint16 values; only 8 bits"):
        prepare_data(
            "tfds:pets", PreparationConfig(data_dir=str(tmp_path), name="again")
        )


def test_another_tfds_directory_of_the_same_name_is_noticed(folder, tmp_path):
    for place, source in (("a", folder / "cat"), ("b", folder / "dog")):
        options = {"source": str(source), "data_dir": str(tmp_path / place)}
        prepare_data(
            "folder", PreparationConfig(**options, name="pets", write_tfds=True)
        )
    options = {"data_dir": str(tmp_path), "name": "pets"}
    for _ in range(2):
        source = str(tmp_path / "a/pets")
        prepare_data("tfds:pets", PreparationConfig(source=source, **options))
    with pytest.raises(InputError, match="its images or labels have changed"):
        source = str(tmp_path / "b/pets")
        prepare_data("tfds:pets", PreparationConfig(source=source, **options))


def test_tfds_directories_are_packed_by_name(folder, tmp_path):
    place = prepare_data(
        "folder",
        PreparationConfig(
            source=str(folder), data_dir=str(tmp_path), name="pets", write_tfds=True
        ),
    )
    again = prepare_data(
        "tfds:pets", PreparationConfig(data_dir=str(tmp_path), name="again")
    )
    first, second = open_packed(place), open_packed(again)
    assert {i.tobytes() for i in first.training.images} == {
        i.tobytes() for i in second.training.images
    }
    pairs = [
        {(i.tobytes(), int(x)) for i, x in zip(*split.training, strict=True)}
        for split in (first, second)
    ]
    assert pairs[0] == pairs[1]
    with pytest.raises(InputError, match="no TFDS data set"):
        prepare_data("tfds:nothing", PreparationConfig(data_dir=str(tmp_path)))


def test_mnist_comes_from_its_four_files(tmp_path):
    source = tmp_path / "files"
    source.mkdir()
    rng = np.random.default_rng(0)
    kept = {}
    for part, count in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        kept[part] = images
        head = struct.pack(">4I", 0x803, count, 28, 28)
        with gzip.open(source / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + images.tobytes())
        with gzip.open(source / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2I", 0x801, count) + labels.tobytes())
    place = prepare_data(
        "mnist", PreparationConfig(source=str(source), data_dir=str(tmp_path))
    )
    split = open_packed(place)
    assert split.training.images.shape == (12, 28, 28, 1)
    assert {i.tobytes() for i in split.held_out.images} == {
        i.tobytes() for i in kept["t10k"]
    }
    options = PreparationConfig(
        source=str(source), data_dir=str(tmp_path), image_size=(32, 32), name="mnist32"
    )
    padded = open_packed(prepare_data("mnist", options))
    assert padded.training.images.shape == (12, 32, 32, 1)
    for part in ("training", "held_out"):
        wanted = np.pad(getattr(split, part).images, [(0, 0), (2, 2), (2, 2), (0, 0)])
        np.testing.assert_array_equal(getattr(padded, part).images, wanted)
    with gzip.open(source / "t10k-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">2I", 0x801, 5) + bytes(5))
    with pytest.raises(InputError, match=r"was written from 'files [0-9a-f]{16}'"):
        prepare_data(
            "mnist", PreparationConfig(source=str(source), data_dir=str(tmp_path))
        )
    single = prepare_data(
        "idx",
        PreparationConfig(
            source=str(source / "train-images-idx3-ubyte.gz"), data_dir=str(tmp_path)
        ),
    )
    np.testing.assert_array_equal(
        open_packed(single).training.images[..., 0], kept["train"]
    )


def test_floats_and_bombs_are_refused(tmp_path):
    path = tmp_path / "floats.npz"
    np.savez(path, images=np.zeros((3, 4, 4, 3), np.float32))
    with pytest.raises(InputError, match="of type uint8"):
        prepare_data("npz", PreparationConfig(source=str(path), data_dir=str(tmp_path)))
    bomb = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(bomb, "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = 2**27
        archive.addfile(info, io.BytesIO(bytes(2**27)))
    digest = hashlib.sha256(bomb.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="more than CIFAR-10 holds"):
        prepare_data(
            "cifar10",
            PreparationConfig(
                source=str(bomb), data_dir=str(tmp_path), source_sha256=digest
            ),
        )


def test_the_command_ends_with_what_to_do_next(folder, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            *"-m diffusion.prepare_data folder --name pets --source".split(),
            str(folder),
            "--data-dir",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ},
    )
    assert result.returncode == 0, result.stderr
    assert "packed" in result.stdout
    assert f"--data.name pets --data.data-dir {tmp_path}" in result.stdout
    assert "40/40 images" in result.stderr
