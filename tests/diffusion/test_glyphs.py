"""Drawn glyphs: fixed, all different, dark around the ink, unlike when turned."""

import hashlib

import numpy as np
import pytest

from configs.presets import load_preset
from diffusion.data import load_builtin, split_of, to_data_units
from diffusion.data.glyphs import GLYPHS, draw_glyphs


@pytest.fixture(scope="module")
def glyphs():
    return load_builtin("glyphs")


def test_glyphs_are_these_bytes(glyphs):
    assert glyphs.images.shape == (2176, 12, 12, 1)
    assert glyphs.images.dtype == np.uint8
    digest = hashlib.sha256(glyphs.images.tobytes()).hexdigest()
    assert digest.startswith("96b38510f2e64e75")


def test_a_seed_decides_the_drawing():
    labels = np.arange(40) % len(GLYPHS)
    first, again = (draw_glyphs(np.random.default_rng(1), labels) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (draw_glyphs(np.random.default_rng(2), labels) != first).any()


def test_no_two_glyphs_are_equal(glyphs):
    assert len({image.tobytes() for image in glyphs.images}) == 2176


def test_the_background_is_exactly_minus_one(glyphs):
    pixels = np.asarray(to_data_units(glyphs.images)).reshape(2176, -1)
    np.testing.assert_array_equal(np.median(pixels, axis=1), -1)
    np.testing.assert_array_equal(pixels.min(axis=1), -1)
    assert pixels.max(axis=1).min() > 0  # the faintest strokes are bright


def test_every_class_is_a_quarter(glyphs):
    counts = np.bincount(glyphs.labels)
    np.testing.assert_allclose(counts, 2176 / len(GLYPHS), atol=5 * np.sqrt(2176 / 4))


@pytest.mark.parametrize(("glyph", "bar"), [("L", 1), ("7", 0)])
def test_glyphs_stand_upright(glyphs, glyph, bar):
    """The fullest row is the bar: below in an L, above in a 7."""
    ink = glyphs.images[glyphs.labels == GLYPHS.index(glyph), ..., 0].sum(axis=2)
    for rows in ink:
        first, last = np.nonzero(rows)[0][[0, -1]]
        place = (rows.argmax() - first) / (last - first)
        assert abs(place - bar) < 0.35


def test_turned_glyphs_are_unlike_upright_ones(glyphs):
    """Each glyph's nearest other one, turned or not, is an upright one."""
    images = glyphs.images[..., 0] / 255.0
    flat = images.reshape(len(images), -1)

    def nearest(others):
        """Return the distance to the nearest other image, of any class and its own."""
        others = others.reshape(flat.shape)
        squares = np.sum(flat**2, axis=1)[:, None] + np.sum(others**2, axis=1)
        squares -= 2 * flat @ others.T
        np.fill_diagonal(squares, np.inf)
        same = glyphs.labels[:, None] == glyphs.labels
        return [
            np.sqrt(np.min(s, axis=1))
            for s in (squares, np.where(same, squares, np.inf))
        ]

    upright, upright_same = nearest(images)
    for quarters in (1, 2, 3):
        turned, turned_same = nearest(np.rot90(images, quarters, axes=(1, 2)))
        assert np.all(upright < turned)
        assert 2 * upright.mean() < turned.mean()
        assert 2 * upright_same.mean() < turned_same.mean()


def test_the_preset_trains_on_128_and_holds_out_2048():
    split = split_of(load_preset("glyphs").data)
    assert len(split.training.images) == 128
    assert len(split.held_out.images) == 2048
    assert set(split.training.labels) == set(range(len(GLYPHS)))
    assert split.sigma_data == pytest.approx(0.9, abs=0.05)
