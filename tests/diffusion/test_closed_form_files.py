"""Closed forms on disk: what is refused, published tables, and the command."""

import io
import json
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import InputError
from diffusion import fit_closed_form
from diffusion.closed_form import (
    Provenance,
    fit_gaussian,
    fit_mixture,
    load_closed_form,
    load_gaussian,
    load_published_pca,
    save_closed_form,
)
from diffusion.command_line import exit_on_error
from diffusion.data import data_digest, open_dataset

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_the_command_fits_every_kind[--kind empirical --max-images 50-empirical]",
    "test_the_command_fits_every_kind[--kind gaussian --rank 3-gaussian]",
    "test_the_command_fits_every_kind[--third-cumulant 2-edgeworth]",
)

EVENT = (3, 2, 2)


def images(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *EVENT)).astype(np.uint8)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "g.npz"
    save_closed_form(path, fit_gaussian(images(), rank=4), Provenance(60, "ab" * 32))
    return path


def rewrite(path, **changes) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, **changes})


def provenance(**changes) -> np.ndarray:
    values = {**Provenance(60, "ab" * 32)._asdict(), **changes}
    return np.asarray(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"format": np.asarray("other 7")}, {}, "its format is 'other 7'"),
        ({"kind": np.asarray("spline")}, {}, "its kind is 'spline'"),
        ({"variances": np.full(4, -1.0)}, {}, "negative variance, -1 in variances"),
        ({"variances": np.ones(3)}, {}, "make no gaussian: shapes"),
        ({"mean": np.full(EVENT, np.nan)}, {}, "NaN or infinite values in mean"),
        ({"basis": np.ones((12, 4))}, {}, "not orthonormal"),
        ({"basis": np.array([None] * 4)}, {}, "allow_pickle"),
        (
            {"provenance": provenance(value_range=(0, 1))},
            {},
            r"pixels in \[0, 1\]; this project's lie in \[-1, 1\]",
        ),
        ({}, {"event_shape": (8, 8, 1)}, r"shape \(3, 2, 2\), but \(8, 8, 1\)"),
        ({}, {"data_digest": "cd" * 32}, "other images .sha256 abababababab"),
    ],
)
def test_what_does_not_match_is_refused_in_one_line(written, changes, options, says):
    rewrite(written, **changes)
    with pytest.raises(InputError, match=says) as caught:
        load_closed_form(written, **options)
    assert "\n" not in str(caught.value)


def test_damaged_compressed_and_missing_files_are_one_line(written, tmp_path):
    content = written.read_bytes()
    for bad in (b"", content[:-40], content[: len(content) // 2], b"no"):
        written.write_bytes(bad)
        with pytest.raises(InputError, match="damaged"):
            load_closed_form(written)
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("format.npy", b"0" * 10_000)
    with pytest.raises(InputError, match="compressed"):
        load_closed_form(written)
    with pytest.raises(InputError, match="there is no file"):
        load_closed_form(tmp_path / "none.npz")


def test_a_mixture_is_no_gaussian(tmp_path):
    path = tmp_path / "m.npz"
    save_closed_form(path, fit_mixture(images(), 2, rank=1, num_passes=1), Provenance())
    with pytest.raises(InputError, match="kind mixture, but a Gaussian is needed"):
        load_gaussian(path)


def test_gaussians_of_earlier_workdirs_are_read(tmp_path):
    gaussian = fit_gaussian(images(), rank=3)
    np.savez(
        tmp_path / "old.npz",
        format=np.asarray("scorelab gaussian 1"),
        num_images=np.asarray(60),
        data_digest=np.asarray("ab"),
        **{
            name: np.asarray(getattr(gaussian, name))
            for name in ("mean", "basis", "variances", "residual_variance")
        },
    )
    found = load_closed_form(tmp_path / "old.npz", data_digest="ab")
    np.testing.assert_array_equal(found.denoiser.basis, gaussian.basis)
    assert found.provenance.num_images == 60


def published(path, pixels: np.ndarray, **changes) -> None:
    """A table as published: pixels in [0, 1], channel first, ascending, unbiased."""
    rows = (pixels / 255).transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    arrays = {"eigval": values, "eigvec": vectors, "imgmean": rows.mean(0), **changes}
    np.savez(path, **{k: v.astype(np.float32) for k, v in arrays.items()})


def test_a_published_table_is_the_gaussian_of_the_same_images(tmp_path):
    pixels = images()
    published(tmp_path / "pca.npz", pixels)
    found = load_published_pca(tmp_path / "pca.npz", EVENT)
    rows = (pixels / 127.5 - 1).reshape(60, -1)
    dense = (found.basis * found.variances) @ found.basis.T
    np.testing.assert_allclose(found.mean.ravel(), rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(dense, np.cov(rows.T), atol=1e-5)
    assert (np.diff(found.variances) <= 0).all()
    low = load_published_pca(tmp_path / "pca.npz", EVENT, rank=5)
    np.testing.assert_allclose(low.residual_variance, found.variances[5:].mean(), 1e-5)


def test_wrong_tables_are_one_line(tmp_path):
    path = tmp_path / "pca.npz"
    cases = [
        ({"imgmean": np.full(12, 127.0)}, EVENT, r"pixels in \[0, 1\]"),
        ({"eigval": np.full(12, -1.0)}, EVENT, "negative variance"),
        ({}, (4, 4, 1), "but images of"),
    ]
    for changes, event, says in cases:
        published(path, images(), **changes)
        with pytest.raises(InputError, match=says):
            load_published_pca(path, event)
    np.savez(path, S=np.ones(3), V=np.eye(3))
    with pytest.raises(InputError, match="has the keys S, V; a published table has"):
        load_published_pca(path, EVENT)
    with pytest.raises(InputError, match="there is no file"):
        load_published_pca(tmp_path / "pca.pt", EVENT)


@pytest.fixture
def archive(tmp_path):
    """A small zip in EDM's layout."""
    path = tmp_path / "data.zip"
    labels = []
    with zipfile.ZipFile(path, "w") as file:
        for i, pixels in enumerate(images()[..., :1].repeat(3, axis=3)):
            name, buffer = f"00000/img{i:08d}.png", io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="png")
            file.writestr(name, buffer.getvalue())
            labels.append([name, i % 2])
        file.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, words)])
    exit_on_error(fit_closed_form.main)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("--kind gaussian --rank 3", "gaussian"),
        ("--streaming-pca True --rank 3", "gaussian"),
        ("--third-cumulant 2", "edgeworth"),
        ("--kind mixture --num-components 2 --rank 1", "mixture"),
        ("--kind mixture --method kmeans --num-components 2 --rank 1", "mixture"),
        ("--kind mixture --method classes --rank 1", "mixture"),
        ("--kind empirical --max-images 50", "empirical"),
    ],
)
def test_the_command_fits_every_kind(
    archive, tmp_path, options, kind, monkeypatch, capsys
):
    out = tmp_path / "out.npz"
    run(monkeypatch, archive, *options.split(), "--out", out)
    found = load_closed_form(out, event_shape=(3, 2, 3))
    assert found.kind == kind
    limited = "max-images" in options
    assert found.provenance.num_images == (50 if limited else 60)
    if not limited:
        assert found.provenance.data_digest == data_digest(open_dataset(archive))
    x = jnp.ones((2, 3, 2, 3))
    assert np.isfinite(found.denoiser(x, 1.0)).all()
    assert [p.name for p in tmp_path.iterdir() if "em.npz" in p.name] == []
    before = out.read_bytes()
    run(monkeypatch, archive, *options.split(), "--out", out)
    assert "done already" in capsys.readouterr().out
    assert out.read_bytes() == before


def test_a_gaussian_from_files_equals_one_from_memory(archive, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    run(monkeypatch, archive, "--out", out)
    expected = fit_gaussian(open_dataset(archive).read().images)
    found = load_gaussian(out)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--kind gausian", "did you mean 'gaussian'?"),
        ("--kind mixture --method emm", "did you mean 'em'?"),
        ("--rank 0", "rank is 0; it must be at least 1"),
        ("--rank 19", "rank is 19; it must be in [1, 18]"),
        ("--streaming-pca True", "needs --rank"),
        ("--third-cumulant 65", "at most 64"),
        ("--kind mixture --num-components 61", "there are 60 images"),
        ("--tolerance nan", "tolerance is nan"),
        ("--out {taken} --rank 2", "another model (it differs in rank)"),
    ],
)
def test_mistakes_get_one_line(archive, tmp_path, options, says, monkeypatch, capsys):
    taken = tmp_path / "taken.npz"
    if "{taken}" in options:
        run(monkeypatch, archive, "--rank", 1, "--out", taken)
        capsys.readouterr()
    words = options.format(taken=taken).split()
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out.npz")]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, archive, *words)
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert error[-1].startswith("error: ")
    assert says in error[-1]
