"""Distances between sets of samples, against closed forms and scipy."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from analysis.metrics import (
    Slicing,
    frechet_distance,
    frechet_in_basis,
    resample_counts,
    sliced_wasserstein,
    sliced_wasserstein_levels,
    sliced_wasserstein_resamples,
)
from analysis.metrics.pyramid import count_levels, laplacian_pyramid
from configs.errors import InputError


def covariance_of(rng, dimension, rank=None):
    factor = rng.normal(size=(dimension, rank or dimension))
    return factor @ factor.T / dimension


def test_frechet_distance_in_one_dimension_is_that_of_means_and_deviations():
    found = frechet_distance([1.0], [[4.0]], [-2.0], [[0.25]])
    assert found == pytest.approx(3.0**2 + (2 - 0.5) ** 2, rel=1e-14)


def test_frechet_distance_of_commuting_covariances_is_that_of_deviations():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    a, b = rng.uniform(0, 3, size=(2, 7))
    a[0] = b[1] = 0
    mean_a, mean_b = rng.normal(size=(2, 7))
    found = frechet_distance(mean_a, basis * a @ basis.T, mean_b, basis * b @ basis.T)
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((a**0.5 - b**0.5) ** 2)
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_equals_scipys_matrix_root_and_is_symmetric():
    rng = np.random.default_rng(1)
    a, b = covariance_of(rng, 20), covariance_of(rng, 20)
    mean_a, mean_b = rng.normal(size=(2, 20))
    root = np.real(np.asarray(scipy.linalg.sqrtm(a @ b)))
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("rank", [3, 40])
def test_frechet_distance_from_itself_is_zero_even_where_singular(rank):
    rng = np.random.default_rng(2)
    a, mean = covariance_of(rng, 40, rank), rng.normal(size=40)
    assert frechet_distance(mean, a, mean, a) <= 1e-9 * np.trace(a)
    rounded = a.astype(np.float32)
    # Rounding moves eigenvalues of 0 to a little below; the distance stays real.
    assert frechet_distance(mean, rounded, mean, a) <= 1e-5 * np.trace(a)


def test_frechet_distance_refuses_what_is_no_covariance():
    eye, mean = np.eye(2), np.zeros(2)
    broken = np.array([[1.0, 1.0], [0.0, 1.0]])
    for arguments, words in (
        ((mean, np.eye(3), mean, eye), r"covariance_a has shape \(3, 3\)"),
        ((mean, eye, np.zeros(3), eye), "the means have shapes"),
        ((mean, eye, mean, broken), "covariance_b is not symmetric"),
        ((mean, eye * np.nan, mean, eye), "covariance_a holds a number"),
        ((mean + np.inf, eye, mean, eye), "mean_a holds a number"),
        ((mean, -eye, mean, eye), "covariance_a has the eigenvalue -1"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            frechet_distance(*arguments)
        assert "\n" not in str(caught.value)


def test_frechet_in_basis_sees_a_shift_in_it_and_none_across_it():
    rng = np.random.default_rng(3)
    images = rng.normal(size=(50, 2, 3, 1))
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    for direction, expected in ((0, 4.0), (5, 0.0)):
        moved = images + 2 * basis[:, direction].reshape(2, 3, 1)
        found = frechet_in_basis(moved, images, basis[:, :3])
        assert found == pytest.approx(expected, abs=1e-12)
    with pytest.raises(InputError, match="samples have shape"):
        frechet_in_basis(images[:1], images, basis)


def test_frechet_in_basis_compares_unbiased_deviations():
    rng = np.random.default_rng(13)
    a, b = rng.normal(size=(5, 1)), 3 * rng.normal(size=(4, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_in_basis(a, b, np.ones((1, 1))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_sliced_wasserstein_of_numbers_equals_the_distance_of_quantiles(order):
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=60), 1.5 * rng.normal(size=84) + 0.3
    found = sliced_wasserstein(a[:, None], b[:, None], order=order)
    if order == 1:
        expected = scipy.stats.wasserstein_distance(a, b)
    else:
        # 420 is a multiple of both: repeated values have the same quantiles.
        gaps = np.sort(np.repeat(a, 7)) - np.sort(np.repeat(b, 5))
        expected = np.sqrt(np.mean(gaps**2))
    assert found == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_dimension():
    rng = np.random.default_rng(5)
    x, delta = rng.normal(size=(500, 8)), rng.normal(size=8)
    found = sliced_wasserstein(x + delta, x, num_directions=20_000)
    # E (theta . delta)^2 = |delta|^2 / d; its relative error is 1 % at 20,000.
    assert found == pytest.approx(np.linalg.norm(delta) / 8**0.5, rel=0.02)


def test_sliced_wasserstein_of_wider_gaussians_is_the_difference_of_deviations():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(20_000, 3)), 2 * rng.normal(size=(15_000, 3))
    found = sliced_wasserstein(b, a, num_directions=64)
    assert found == pytest.approx(1.0, rel=0.03)


def images_of(rng, count, size=32):
    coarse = rng.normal(size=(count, size // 8, size // 8, 3))
    smooth = np.kron(coarse, np.ones((1, 8, 8, 1)))
    return smooth + 0.2 * rng.normal(size=smooth.shape)


FEW: dict[str, Any] = {"patches_per_image": 8, "num_directions": 32}
SLICING = Slicing(**FEW)


def test_sliced_wasserstein_of_a_set_with_itself_is_zero():
    rng = np.random.default_rng(7)
    images, vectors = images_of(rng, 70), rng.normal(size=(9, 4))
    assert sliced_wasserstein(images, images, **FEW) == 0
    assert sliced_wasserstein(vectors, vectors) == 0
    pixels = rng.integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)
    as_floats = (pixels / 127.5 - 1).astype(np.float32)
    assert sliced_wasserstein(pixels, as_floats, **FEW) < 1e-6


def test_pyramid_localises_a_change_of_texture_at_the_finest_level():
    rng = np.random.default_rng(8)
    images, others = images_of(rng, 200), images_of(rng, 200)
    board = 0.5 * (-1) ** np.add.outer(np.arange(32), np.arange(32))[..., None]
    fine = sliced_wasserstein_levels(others + board, images, slicing=SLICING)
    floor = sliced_wasserstein_levels(others, images, slicing=SLICING)
    assert len(fine) == 2
    assert fine[0] > 5 * floor[0]
    assert fine[1] < 1.2 * floor[1]


def test_normalisation_by_the_reference_sees_brightness_the_published_does_not():
    images = images_of(np.random.default_rng(9), 40)
    brighter = images + 0.5
    assert sliced_wasserstein_levels(brighter, images, slicing=SLICING)[1] > 0.3
    published = replace(SLICING, normalisation="each")
    levels = sliced_wasserstein_levels(brighter, images, slicing=published)
    assert levels.max() < 1e-4


def test_sliced_wasserstein_is_a_function_of_the_seed():
    a, b = np.random.default_rng(10).normal(size=(2, 30, 16, 16, 1))
    distances = [sliced_wasserstein(a, b, seed=s, **FEW) for s in (0, 0, 1)]
    assert distances[0] == distances[1] != distances[2]


def test_sliced_wasserstein_in_chunks_equals_that_in_one_piece(monkeypatch):
    rng = np.random.default_rng(11)
    a, b = images_of(rng, 70), images_of(rng, 90)
    whole = sliced_wasserstein_levels(a, b, slicing=SLICING)
    monkeypatch.setattr("analysis.metrics.wasserstein._PROJECTIONS_AT_ONCE", 5000)
    parts = sliced_wasserstein_levels(a, b, slicing=SLICING)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


@pytest.mark.parametrize("count", [2000, 1999])
def test_memory_of_projections_is_bounded_also_of_sets_of_unequal_size(
    monkeypatch, count
):
    """24 bytes a number of float64 are 12 of float32: 384 MiB at 2^25 of them."""
    numbers = 2**18
    monkeypatch.setattr("analysis.metrics.wasserstein._PROJECTIONS_AT_ONCE", numbers)
    rng = np.random.default_rng(12)
    a, b = rng.normal(size=(2000, 2)), rng.normal(size=(count, 2))
    tracemalloc.start()
    sliced_wasserstein(a, b, num_directions=400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * numbers


def test_resampled_distance_is_that_of_the_repeated_members():
    rng = np.random.default_rng(14)
    a, b = images_of(rng, 9, 16), images_of(rng, 12, 16)
    slicing = Slicing(num_directions=8, patches_per_image=1, patch_size=16)
    counts = resample_counts(9, num_resamples=3), resample_counts(12, num_resamples=3)
    found = sliced_wasserstein_resamples(a, b, *counts, slicing=slicing)
    # The whole image is the one patch, and scaling by the reference is undone.
    vectors = [x.transpose(0, 3, 1, 2).reshape(len(x), 3, -1) for x in (a, b)]
    mean = vectors[1].mean(axis=(0, 2), keepdims=True)
    deviation = vectors[1].std(axis=(0, 2), keepdims=True)
    rows = [((v - mean) / deviation).reshape(len(v), -1) for v in vectors]
    expected = [
        sliced_wasserstein(
            np.repeat(rows[0], i, axis=0),
            np.repeat(rows[1], j, axis=0),
            num_directions=8,
        )
        for i, j in zip(*counts, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sliced_wasserstein_of_one_distribution_is_at_the_floor_and_a_shift_above():
    rng = np.random.default_rng(15)
    reference, others = rng.normal(size=(300, 5)), rng.normal(size=(200, 5))
    slicing = Slicing(num_directions=32)
    floor = sliced_wasserstein_resamples(
        reference,
        reference,
        resample_counts(300, size=200, seed=1),
        resample_counts(300, size=300, seed=2),
        slicing=slicing,
    )
    low, high = np.percentile(floor, (0.5, 99.5))
    distances = [
        sliced_wasserstein(others + shift, reference, num_directions=32)
        for shift in (0.0, 0.2, 0.4, 0.8)
    ]
    assert low <= distances[0] <= high
    assert high < distances[1] < distances[2] < distances[3]


def test_levels_of_a_pyramid_add_up_to_the_image_and_a_constant_is_all_in_the_last():
    rng = np.random.default_rng(12)
    images = rng.normal(size=(2, 16, 24, 1))
    levels = laplacian_pyramid(images, 3)
    assert [level.shape[1:3] for level in levels] == [(16, 24), (8, 12), (4, 6)]
    flat = laplacian_pyramid(np.ones((1, 16, 16, 1)), 2)
    np.testing.assert_allclose(flat[0], 0, atol=1e-6)
    np.testing.assert_allclose(flat[1], 1, atol=1e-6)
    # Burt & Adelson: expand the coarser level and add, down to the image.
    total = levels[-1]
    for level in levels[-2::-1]:
        total = level + expanded(total)
    np.testing.assert_allclose(total, images, atol=1e-6)


def expanded(images):
    """Twice the size, by the explicit sum over the five weights."""
    n, height, width, channels = images.shape
    spread = np.zeros((n, 2 * height, 2 * width, channels))
    spread[:, ::2, ::2] = images
    weights = np.array([1, 4, 6, 4, 1]) / 8
    for axis in (1, 2):
        size = spread.shape[axis]
        result = np.zeros_like(spread)
        for shift, weight in zip(range(-2, 3), weights, strict=True):
            at = np.abs(np.arange(size) + shift)
            at = np.where(at >= size, 2 * size - 2 - at, at)
            result += weight * np.take(spread, at, axis=axis)
        spread = result
    return spread


def test_images_are_halved_while_they_stay_even_and_large_enough():
    assert [count_levels(n, n, 16) for n in (8, 16, 31, 32, 64, 96)] == [
        1, 1, 1, 2, 3, 3,
    ]  # fmt: skip


def test_sliced_wasserstein_names_what_does_not_fit():
    x, images = np.zeros((4, 3)), np.zeros((4, 8, 8, 1))
    broken = images.copy()
    broken[2, 0, 0, 0] = np.nan
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ((x, np.zeros((4, 2))), {}, "all but the number must be equal"),
        ((x, images), {}, "all but the number must be equal"),
        ((x[0], x[0]), {}, "give images"),
        ((x, x), {"order": 3}, "order is 3"),
        ((x, x), {"num_directions": 0}, "num_directions is 0"),
        ((x * np.nan, x), {}, "samples hold a number that is not finite"),
        ((x[:0], x), {}, "at least one vector"),
        ((broken, images), {}, "not finite"),
        ((images, images), {"normalisation": "none"}, "unknown normalisation"),
        ((images, images), {"patches_per_image": 0}, "patches_per_image is 0"),
        ((images.astype(int), images), {}, "uint8 or floats"),
    ]
    for arguments, options, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            sliced_wasserstein(*arguments, **options)
        assert "\n" not in str(caught.value)
