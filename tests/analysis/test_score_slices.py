"""A plane through score fields that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.score_slices import score_slice, slice_rows
from analysis.study_plots import plot_score_slice
from configs import InputError
from diffusion.closed_form import EmpiricalDenoiser, isotropic_gaussian

RNG = np.random.default_rng(0)
ANCHORS = RNG.normal(size=(3, 2, 2, 1))
SIGMA, VARIANCE = 0.7, 0.4


def slice_of(model, anchors, **options):
    with jax.enable_x64(True):
        return score_slice({"model": model}, anchors, SIGMA, **options)


def gaussian(mean):
    with jax.enable_x64(True):
        return isotropic_gaussian(jnp.asarray(mean), VARIANCE)


def test_arrows_of_an_isotropic_gaussian_point_at_the_mean():
    """The mean lies off the plane by a known height, which is all that is off it."""
    flat = ANCHORS.reshape(3, 4)
    normal = np.linalg.svd(flat[1:] - flat[0])[2][-1]
    height, weights = 0.9, np.array([0.5, 0.2, 0.3])
    mean = weights @ flat + height * normal
    found = slice_of(gaussian(mean.reshape(2, 2, 1)), ANCHORS, num_points=7)
    u, v = np.meshgrid(found.across, found.up)
    target = weights @ found.anchors
    toward = target - np.stack([u, v], axis=-1)
    total = VARIANCE + SIGMA**2
    np.testing.assert_allclose(found.vectors[0], toward / total, rtol=1e-9, atol=1e-12)
    squared = np.sum(toward**2, axis=-1) + height**2
    np.testing.assert_allclose(found.magnitude[0], np.sqrt(squared) / total, rtol=1e-9)
    np.testing.assert_allclose(found.out_of_plane[0], height**2 / squared, rtol=1e-9)
    back = found.origin + found.anchors @ found.frame
    np.testing.assert_allclose(back, flat, rtol=1e-9)
    np.testing.assert_allclose(found.frame @ found.frame.T, np.eye(2), atol=1e-12)


def test_turning_everything_leaves_the_slice_as_it_is():
    points = RNG.normal(size=(9, 4))
    turn = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    flat = ANCHORS.reshape(3, 4)
    with jax.enable_x64(True):
        models = [EmpiricalDenoiser(jnp.asarray(p)) for p in (points, points @ turn)]
    a, b = (
        slice_of(model, anchors, num_points=5, batch_size=7)
        for model, anchors in zip(models, (flat, flat @ turn), strict=True)
    )
    np.testing.assert_allclose(a.across, b.across, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(a.vectors, b.vectors, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(a.magnitude, b.magnitude, rtol=1e-8)


def test_data_of_two_dimensions_are_the_plane_themselves():
    anchors = np.array([[1.0, 0.0], [3.0, 1.0], [2.0, 2.0]])
    found = slice_of(gaussian(np.zeros(2)), anchors, num_points=3, margin=0.5)
    np.testing.assert_array_equal(found.anchors, anchors)
    np.testing.assert_allclose(found.across, [0, 2, 4])
    np.testing.assert_allclose(found.up, [-1, 1, 3])
    np.testing.assert_allclose(found.out_of_plane, 0, atol=1e-12)
    x = np.array([4.0, -1.0])  # row 0, column 2
    expected = -x / (VARIANCE + SIGMA**2)
    np.testing.assert_allclose(found.vectors[0, 0, 2], expected, rtol=1e-9)


def test_rows_and_figure_have_every_model():
    models = {"a": isotropic_gaussian(jnp.zeros(4), VARIANCE)}
    models["b"] = isotropic_gaussian(jnp.ones(4), VARIANCE)
    found = score_slice(models, ANCHORS.reshape(3, 4), SIGMA, num_points=3)
    rows = slice_rows(found)
    assert len(rows) == 2 * 9
    assert rows[-1]["score_up"] == found.vectors[1, 2, 2, 1]
    titles = [axes.get_title().split(" ")[0] for axes in plot_score_slice(found).axes]
    assert titles[:2] == ["a", "b"]


def test_anchors_on_a_line_are_refused():
    model = gaussian(np.zeros(3))
    line = np.outer([1.0, 2.0, 4.0], [1.0, 1.0, 0.0])
    with pytest.raises(InputError, match="on a line"):
        slice_of(model, line)
    with pytest.raises(InputError, match="three finite samples"):
        slice_of(model, line[:2])
    with pytest.raises(InputError, match="num_points 1"):
        slice_of(model, np.eye(3), num_points=1)
