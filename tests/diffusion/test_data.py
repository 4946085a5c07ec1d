"""Built-in data, its split, and batches as a function of seed and step."""

import numpy as np
import pytest

from configs import InputError
from configs.errors import InputWarning
from configs.schema import DataConfig
from diffusion.closed_form import fit_gaussian
from diffusion.data import (
    Batches,
    Dataset,
    Split,
    check_labels,
    load_builtin,
    split_of,
    to_data_units,
)


def test_digits_are_the_published_images():
    from sklearn.datasets import load_digits

    digits = load_builtin("digits")
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    published = load_digits().images
    restored = digits.images[..., 0] * (16 / 255)
    assert np.abs(restored - published).max() < 0.5 * 16 / 255
    np.testing.assert_array_equal(digits.labels, load_digits().target)


def test_mixture2d_is_three_equal_gaussians_on_a_circle():
    data = load_builtin("mixture2d")
    assert data.images.shape == (10_000, 2)
    for label in range(3):
        points = data.images[data.labels == label]
        angle = 2 * np.pi * label / 3
        centre = 1.5 * np.array([np.cos(angle), np.sin(angle)])
        error = 5 * 0.25 / np.sqrt(len(points))
        np.testing.assert_allclose(points.mean(0), centre, atol=error)
        np.testing.assert_allclose(np.cov(points.T), 0.0625 * np.eye(2), atol=0.008)
        assert len(points) == pytest.approx(10_000 / 3, abs=250)


def test_the_split_is_disjoint_complete_and_a_fifth():
    split, data = (
        split_of(DataConfig("digits")),
        load_builtin("digits"),
    )
    assert (len(split.training.images), len(split.held_out.images)) == (1438, 359)
    both = np.concatenate([split.training.images, split.held_out.images])
    rows = {image.tobytes() for image in data.images}
    assert {image.tobytes() for image in both} == rows
    again, other = (
        split_of(DataConfig("digits")),
        split_of(DataConfig("digits", split_seed=1)),
    )
    assert again.digest == split.digest != other.digest


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="leaves none"):
        split_of(DataConfig("digits", held_out_fraction=0.9999))
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_builtin("digit")
    assert (
        len(
            split_of(
                DataConfig("digits", held_out_fraction=0.0, split_seed=0)
            ).held_out.images
        )
        == 0
    )


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 10), (4, 11)])
def test_each_epoch_holds_every_sample_once(count, size):
    batches = Batches(count, size, seed=0)
    stream = np.concatenate([batches.indices(step) for step in range(count)])
    for epoch in stream.reshape(-1, count):
        assert sorted(epoch) == list(range(count))
    assert not np.array_equal(stream[:count], stream[count : 2 * count])


def test_batches_depend_on_seed_and_step_alone():
    first, second = Batches(100, 7, seed=3), Batches(100, 7, seed=3)
    for step in (50, 2, 33):
        np.testing.assert_array_equal(first.indices(step), second.indices(step))
    assert not np.array_equal(first.indices(0), Batches(100, 7, seed=4).indices(0))
    with pytest.raises(InputError, match="at least 1"):
        Batches(0, 7, seed=0)


def test_pixels_become_data_units():
    found = np.asarray(to_data_units(np.array([0, 51, 255], np.uint8)))
    np.testing.assert_allclose(found, [-1, -0.6, 1], atol=1e-7)
    floats = np.array([0.5, 3.0], np.float32)
    np.testing.assert_array_equal(to_data_units(floats), floats)


def test_the_gaussian_of_digits_has_a_null_space():
    # Three pixels are blank in all training images; nothing may divide by zero there.
    split = split_of(DataConfig("digits"))
    gaussian = fit_gaussian(split.training.images)
    images = np.asarray(to_data_units(split.training.images[:4]))
    assert float(gaussian.variances[-1]) == pytest.approx(0, abs=1e-7)
    assert np.isfinite(gaussian.flow(images, 80.0, 0.002)).all()


@pytest.mark.parametrize(
    ("training", "held_out", "says"),
    [
        ([0, 1], [], None),
        ([0, 1], [1, 0], None),
        ([0, 2], [0], "the data have up to 2"),
        ([0, 1], [0, 2], "the held-out data have up to 2"),
        ([0, 1], [0, -1], "the held-out data have some without"),
    ],
)
def test_labels_out_of_range_are_refused_held_out_ones_too(training, held_out, says):
    def labelled(labels):
        return Dataset(np.zeros((len(labels), 2)), np.array(labels, np.int64))

    split = Split(labelled(training), labelled(held_out), "made", 1.0)
    check_labels(split, 0)
    if says is None:
        check_labels(split, 2)
    else:
        with pytest.raises(InputError, match=f"must be 0 to 1; {says}"):
            check_labels(split, 2)


def test_a_trained_network_may_be_told_no_class_where_the_data_have_none():
    def split(*labels):
        sets = (Dataset(np.zeros((len(v), 2)), np.array(v, np.int64)) for v in labels)
        return Split(*sets, "made", 1.0)

    with pytest.warns(InputWarning, match="it is told no class"):
        check_labels(split([-1, -1], [-1]), 2, or_none=True)
    for some in (split([-1, 0], [-1]), split([-1], [1]), split([0, 2], [])):
        with pytest.raises(InputError, match="must be 0 to 1"):
            check_labels(some, 2, or_none=True)
