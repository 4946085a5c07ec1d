"""EDM's augmentation: its laws, its condition, and where pixels go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.augmentation import EDMPipe

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_geometry_of_the_pipe[changes0-wanted0]",
    "test_geometry_of_the_pipe[changes1-wanted1]",
    "test_geometry_of_the_pipe[changes4-wanted4]",
    "test_geometry_of_the_pipe[changes5-wanted5]",
)

SHAPE = (8, 8, 3)


@pytest.mark.parametrize(("probability", "share"), [(0.12, 0.564), (0.15, 0.483)])
def test_so_many_images_are_at_most_mirrored(probability, share):
    """T22: (1 - p/2)(1 - p)^4, within four standard errors; nine numbers in order."""
    pipe, count = EDMPipe(probability), 40_000

    @jax.jit
    def conditions(keys):
        def one(key):
            params = pipe.sample(key, SHAPE)
            return pipe.encode(params), params

        return jax.vmap(one)(keys)

    found, params = conditions(jax.random.split(jax.random.key(7), count))
    found = np.asarray(found)
    untouched = float((found[:, 1:] == 0).all(axis=1).mean())
    exact = (1 - probability / 2) * (1 - probability) ** 4
    assert exact == pytest.approx(share, abs=6e-4)
    error = np.sqrt(exact * (1 - exact) / count)
    assert untouched == pytest.approx(exact, abs=4 * error)
    assert found[:, 0].mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(count))
    half = probability / 2
    assert found[:, 1].mean() == pytest.approx(half, abs=4 * np.sqrt(half / count))
    # Order and laws: mirrorings, scale, rotation, stretch, shift.
    angle = np.asarray(params.angle, np.float64)
    np.testing.assert_array_equal(found[:, 2], params.scale)
    np.testing.assert_allclose(found[:, 3], np.cos(angle) - 1, atol=1e-6)
    np.testing.assert_allclose(found[:, 4], np.sin(angle), atol=1e-6)
    axis, stretch = np.asarray(params.axis), np.asarray(params.stretch)
    np.testing.assert_allclose(found[:, 5], stretch * np.cos(axis), atol=1e-6)
    np.testing.assert_allclose(found[:, 6], stretch * np.sin(axis), atol=1e-6)
    np.testing.assert_array_equal(found[:, 7:], params.shift)
    for column, std in ((2, 1), (7, 1), (8, 1)):
        drawn = found[found[:, column] != 0, column]
        assert len(drawn) / count == pytest.approx(probability, rel=0.1)
        assert drawn.std() == pytest.approx(std, rel=0.06)
    turned = angle[angle != 0]
    assert turned.std() == pytest.approx(2 * np.pi / np.sqrt(12), rel=0.05)
    drawn = stretch != 0
    assert (axis[drawn] == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert stretch[drawn].std() == pytest.approx(1, rel=0.06)
    assert stretch[drawn].mean() == pytest.approx(0, abs=0.06)


def blob(row: float, column: float, long: float = 2.0, angle: float = 0.0):
    """Return a smooth spot on (24, 20) pixels, longer along an angle from the right."""
    down, right = np.mgrid[:24, :20].astype(np.float64)
    down, right = down - row, right - column
    along = right * np.cos(angle) - down * np.sin(angle)
    across = right * np.sin(angle) + down * np.cos(angle)
    spot = np.exp(-((along / long) ** 2 + (across / 2.0) ** 2) / 2)
    return jnp.asarray(spot[..., None], jnp.float32)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, blob(9, 8)),
        ({"mirrored": [True, False]}, blob(9, 11)),
        ({"mirrored": [False, True]}, blob(14, 8)),
        ({"shift": [0.8, 0.0]}, blob(9, 10)),  # right by .8 x 20/8 pixels
        ({"shift": [0.0, 0.5]}, blob(10.5, 8)),  # down by .5 x 24/8 pixels
        # About the centre (11.5, 9.5), counter-clockwise: up becomes left.
        ({"angle": np.pi / 2}, blob(13, 7)),
        ({"angle": np.pi}, blob(14, 11)),
    ],
)
def test_geometry_of_the_pipe(changes, wanted):
    """A smooth spot is where it should be, on an image that is not square."""
    found = EDMPipe().apply(drawn_operations(**changes), blob(9, 8))
    np.testing.assert_allclose(found, wanted, atol=0.03)


def drawn_operations(**changes):
    params = EDMPipe(0.0).sample(jax.random.key(0), (24, 20, 1))
    params = params._replace(mirrored=jnp.zeros(2, bool))
    return params._replace(**{k: jnp.asarray(v) for k, v in changes.items()})


def test_scale_and_stretch_of_the_pipe():
    centre = (11.5, 9.5)
    params = drawn_operations(scale=jnp.float32(2.0))  # 2^.4
    found = np.asarray(EDMPipe().apply(params, blob(*centre)), np.float64)[..., 0]
    assert found.sum() == pytest.approx(2**0.8 * float(blob(*centre).sum()), rel=0.02)
    for axis, w in ((0.0, 2.0), (0.7, 2.0), (0.0, -2.0), (0.7, -2.0)):
        params = drawn_operations(stretch=jnp.float32(w), axis=jnp.float32(axis))
        found = np.asarray(EDMPipe().apply(params, blob(*centre)), np.float64)[..., 0]
        down, right = np.mgrid[:24, :20] - np.asarray(centre)[:, None, None]
        offsets = (right, -down)
        cross = [[(found * a * b).sum() for b in offsets] for a in offsets]
        values, vectors = np.linalg.eigh(np.array(cross) / found.sum())
        # Standard deviation 2 x 2^(w/5) along the axis and 2 x 2^(-w/5) across.
        np.testing.assert_allclose(
            np.sqrt(values), [2 * 2**-0.4, 2 * 2**0.4], rtol=0.08
        )
        longest = axis if w > 0 else axis + np.pi / 2
        assert abs(vectors[:, 1] @ [np.cos(longest), np.sin(longest)]) > 0.99


def test_shifts_by_whole_pixels_lose_nothing_and_edges_are_reflected():
    """The filters are orthonormal: T is exact, and outside lies the mirror image."""
    x = jax.random.normal(jax.random.key(8), (8, 8, 2))
    params = (
        EDMPipe(0.0)
        .sample(jax.random.key(0), x.shape)
        ._replace(mirrored=jnp.zeros(2, bool), shift=jnp.asarray([3.0, -2.0]))
    )
    found = EDMPipe().apply(params, x)
    wide = np.pad(np.asarray(x), ((7, 7), (7, 7), (0, 0)), mode="reflect")
    np.testing.assert_allclose(found, wide[9:17, 4:12], atol=1e-5)
