"""Nearest neighbours, memorised samples, copies, leaks: constructed cases."""

import numpy as np
import pytest
from scipy.stats import binomtest

from analysis.memorization import (
    background_leak_rate,
    leak_rate,
    memorization,
    share_interval,
)
from analysis.neighbours import nearest_neighbours
from configs import InputError
from diffusion.data import to_data_units


def brute_force(queries, references):
    """All distances, (n, N), by differences in float64."""
    a, b = (
        np.float64(v).reshape(len(v), -1)
        if v.dtype != np.uint8
        else np.float64(v).reshape(len(v), -1) / 127.5 - 1
        for v in (queries, references)
    )
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))


@pytest.mark.parametrize("block_size", [7, 1024])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_neighbours_are_those_of_all_differences(dtype, block_size):
    rng = np.random.default_rng(0)
    if dtype == np.uint8:
        queries = rng.integers(0, 256, (23, 4, 3), dtype=dtype)
        references = rng.integers(0, 256, (50, 4, 3), dtype=dtype)
    else:
        queries = rng.normal(size=(23, 4, 3)).astype(dtype)
        references = rng.normal(size=(50, 4, 3)).astype(dtype)
    found = nearest_neighbours(queries, references, count=4, block_size=block_size)
    wanted = brute_force(queries, references)
    np.testing.assert_array_equal(found.indices, np.argsort(wanted, axis=1)[:, :4])
    np.testing.assert_allclose(
        found.distances, np.sort(wanted, axis=1)[:, :4], rtol=1e-6
    )
    assert found.distances.dtype == np.float64
    everything = nearest_neighbours(queries, references, count=50, block_size=7)
    np.testing.assert_array_equal(everything.indices, np.argsort(wanted, axis=1))


@pytest.mark.parametrize(
    ("num_twins", "offset", "count"),
    [
        # Squared distances of 1e-8 and more, where |a|^2 = 3,000 in float32 has steps
        # of 2e-4; and of 1e-14, which float64 cannot tell in |a|^2 either.
        (60, 1e-4, 5),
        (12, 1.2e-7, 12),
    ],
)
def test_near_duplicates_keep_their_order_in_float32(num_twins, offset, count):
    rng = np.random.default_rng(1)
    image = rng.choice([-1.0, 1.0], (32, 32, 3)).astype(np.float32)
    image[0, 0, 0] = 0.5
    steps = rng.permutation(num_twins)
    twins = np.repeat(image[None], num_twins, axis=0)
    twins[:, 0, 0, 0] += np.float32(offset) * steps.astype(np.float32)
    others = rng.choice([-1.0, 1.0], (100, 32, 32, 3)).astype(np.float32)
    references = np.concatenate([others, twins])
    found = nearest_neighbours(image[None], references, count=count, block_size=64)
    np.testing.assert_array_equal(found.indices[0], 100 + np.argsort(steps)[:count])
    wanted = np.sort(np.float64(twins[:, 0, 0, 0]) - 0.5)[:count]
    np.testing.assert_allclose(found.distances[0], wanted, rtol=1e-12)


def test_an_image_is_at_distance_zero_from_its_form_in_data_units():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found = nearest_neighbours(to_data_units(pixels), pixels, count=1)
    assert (found.distances == 0).all()
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(5))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (1, 1)])
def test_share_intervals_are_wilsons(successes, trials, confidence):
    found = share_interval(successes, trials, confidence=confidence)
    wanted = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert found.value == successes / trials
    assert found.low == pytest.approx(wanted.low, abs=1e-12)
    assert found.high == pytest.approx(wanted.high, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_ratio_decides_what_is_memorised():
    """On a line with training images at 0 and 4: d1/d2 = 1/3 at 1 and at 3."""
    training = np.array([[0.0], [4.0]])
    samples = np.array([[-0.5], [0.9], [1.1], [2.0], [2.9], [3.1]])
    held_out = np.array([[0.95], [1.5], [2.5], [3.0]])
    found = memorization(samples, training, held_out)
    np.testing.assert_allclose(
        found.nearest_ratio, [0.5 / 4.5, 0.9 / 3.1, 1.1 / 2.9, 1, 1.1 / 2.9, 0.9 / 3.1]
    )
    assert (found.memorised.successes, found.memorised.trials) == (3, 6)
    # 3.0 is at the ratio exactly, or not by a rounding: left to either side.
    assert found.memorised_held_out.successes in (1, 2)
    assert memorization(samples, training, held_out, ratio=0.2).memorised.value == 1 / 6


def fresh(rng, n):
    """Images whose directions vary unequally, as those of photographs."""
    scale = np.linspace(1, 0.1, 48)
    return (scale * rng.normal(size=(n, 48))).reshape(n, 4, 4, 3).astype(np.float32)


def test_noisy_training_images_are_memorised_and_copies():
    rng = np.random.default_rng(0)
    training, held_out = fresh(rng, 100), fresh(rng, 120)
    samples = training[rng.integers(0, 100, 200)]
    samples = samples + 1e-3 * rng.normal(size=samples.shape).astype(np.float32)
    found = memorization(samples, training, held_out)
    assert found.memorised.value == 1
    assert found.copy_rate.value == 1
    assert found.memorised.low > 0.95
    assert found.copy_rate.low > found.copy_rate_expected.high
    assert found.memorised_held_out.value == 0
    assert found.num_references == 100


def test_fresh_draws_are_neither_memorised_nor_copies():
    rng = np.random.default_rng(0)
    training, held_out, samples = fresh(rng, 200), fresh(rng, 150), fresh(rng, 300)
    found = memorization(samples, training, held_out)
    assert found.memorised.value == 0
    assert found.memorised_held_out.value == 0
    expected = found.copy_rate_expected
    assert expected.low <= found.copy_rate.value <= expected.high
    assert 0.2 < expected.low < expected.value == 0.5 < expected.high < 0.8
    assert found.copy_rate.trials == 300


def test_the_range_of_the_copy_rate_holds_what_it_says():
    """Wilson's interval, which holds the references fixed, would not."""
    rng = np.random.default_rng(0)
    inside, inside_wilson = [], []
    for _ in range(300):
        training, held_out, samples = (rng.normal(size=(n, 6)) for n in (20, 20, 200))
        found = memorization(samples, training, held_out, confidence=0.9)
        expected, rate = found.copy_rate_expected, found.copy_rate
        inside.append(expected.low <= rate.value <= expected.high)
        inside_wilson.append(rate.low <= 0.5 <= rate.high)
    assert 0.85 < np.mean(inside) < 0.95
    assert np.mean(inside_wilson) < 0.7


def test_references_for_copies_are_equally_many():
    rng = np.random.default_rng(3)
    training, held_out, samples = fresh(rng, 900), fresh(rng, 90), fresh(rng, 200)
    for a, b in ((training, held_out), (held_out, training)):
        found = memorization(samples, a, b)
        # All of them against a tenth as many would give about .9 or .1.
        assert found.num_references == 90
        assert 0.3 < found.copy_rate.value < 0.7
    first, again, other = (
        memorization(samples, training, held_out, seed=seed).copy_rate.value
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_controls_are_bounded_and_the_copy_rate_is_not():
    rng = np.random.default_rng(4)
    training, held_out, samples = fresh(rng, 90), fresh(rng, 80), fresh(rng, 30)
    whole = memorization(samples, training, held_out)
    found = memorization(samples, training, held_out, max_controls=7)
    assert (whole.memorised_held_out.trials, found.memorised_held_out.trials) == (80, 7)
    assert found.copy_rate == whole.copy_rate
    assert found.num_references == whole.num_references == 80
    # Of copies in the place of held-out images every one is called memorised.
    copied = memorization(samples, training, training[:80], max_controls=7)
    assert copied.memorised_held_out.value == 1
    with pytest.raises(InputError, match="max_controls is 0"):
        memorization(samples, training, held_out, max_controls=0)


def test_ties_are_halves_and_twins_of_a_sample_are_memorised():
    rng = np.random.default_rng(0)
    images, samples = fresh(rng, 20), fresh(rng, 30)
    assert memorization(samples, images, images).copy_rate.value == 0.5
    twins = np.concatenate([images, images])
    found = memorization(images, twins, images)
    assert (found.nearest_ratio == 0).all()
    assert found.memorised.value == 1


def turned(images):
    """All images under the three rotations that are not the identity, (3, m, ...)."""
    return np.stack([np.rot90(images, k, axes=(1, 2)) for k in (1, 2, 3)])


def upright(rng, n):
    """Images that are bright at the top left, in no rotation alike."""
    ramp = np.linspace(1, -1, 8)[:, None] * 2 + np.linspace(1, -1, 8)
    noise = 0.3 * rng.normal(size=(n, 8, 8, 1))
    return (ramp[None, :, :, None] / 3 + noise).astype(np.float32)


def test_rotated_images_leak_and_upright_ones_do_not():
    rng = np.random.default_rng(0)
    references, control = upright(rng, 40), upright(rng, 25)
    leaking = np.rot90(upright(rng, 30), 1, axes=(1, 2))
    samples = np.concatenate([leaking, upright(rng, 10)])
    found = leak_rate(samples, references, turned(references), control=control)
    assert (found.share.successes, found.share.trials) == (30, 40)
    assert found.control is not None
    assert (found.control.successes, found.control.trials) == (0, 25)
    assert (found.margin[:30] > 0).all()
    assert (found.margin[30:] < 0).all()
    plain, moved = (
        brute_force(samples, np.reshape(images, (-1, 8, 8, 1))).min(axis=1)
        for images in (references, turned(references))
    )
    wanted = (plain - moved) / np.maximum(plain, moved)
    np.testing.assert_allclose(found.margin, wanted, rtol=1e-6)
    all_turned = leak_rate(leaking, references, turned(references))
    assert all_turned.share.value == 1
    assert all_turned.control is None


def test_images_that_a_transform_does_not_change_do_not_leak():
    rng = np.random.default_rng(0)
    references = np.broadcast_to(rng.normal(size=(10, 1, 1, 1)), (10, 6, 6, 1))
    samples = rng.normal(size=(20, 6, 6, 1))
    assert leak_rate(samples, references, turned(references)).share.value == 0
    same = leak_rate(references, references, turned(references))
    assert (same.margin == 0).all()


def test_gains_leak_through_the_background():
    rng = np.random.default_rng(0)
    images = np.full((10, 6, 6, 1), -1.0)
    images[:, 2:4, 2:4] = 0.8
    images += 0.05 * rng.normal(size=images.shape)
    assert background_leak_rate(images).value == 0
    gains = np.array([0.5, 0.7, 1, 1, 1, 1, 1.1, 0.9, 1.4, 2.0]).reshape(-1, 1, 1, 1)
    found = background_leak_rate((gains * images).astype(np.float32))
    assert (found.successes, found.trials) == (4, 10)
    assert background_leak_rate(gains * images, low=-1.6).successes == 3
    black = np.zeros((4, 6, 6, 1), np.uint8)
    assert background_leak_rate(black).value == 0
    assert background_leak_rate(black + np.uint8(100)).value == 1


def test_bad_calls_get_one_line():
    images, one = np.zeros((3, 2, 2, 1)), np.zeros((1, 2, 2, 1))
    other, broken = np.zeros((3, 2, 1, 1)), np.array([[0.0], [np.nan], [np.inf]])
    for call, says in [
        (lambda: nearest_neighbours(images, other), "event shape"),
        (lambda: nearest_neighbours(images[:0], images), "n >= 1"),
        (lambda: nearest_neighbours(images, images, count=4), r"\[1, 3\]"),
        (lambda: nearest_neighbours(images, images.astype(int)), "dtype"),
        (lambda: nearest_neighbours(broken, broken), "2 of 3 queries are not finite"),
        (lambda: memorization(images, images, other), "held_out has shape"),
        (lambda: memorization(images, one, images), "1 training image"),
        (lambda: memorization(images, images, images, ratio=1.0), "ratio"),
        (lambda: memorization(images, images, images, confidence=1.0), "confidence"),
        (lambda: leak_rate(images, images, images), "R copies"),
        (lambda: background_leak_rate(images, low=1, high=0), "above high"),
        (lambda: share_interval(3, 2), "successes"),
        (lambda: share_interval(0, 0), "trial"),
    ]:
        with pytest.raises(InputError, match=says):
            call()
