"""The Gaussian over training: where it explains most, and when a network departs."""

import jax
import numpy as np
import pytest

from analysis.gaussian_first import (
    compare_over_training,
    departures,
    stack_comparisons,
)
from analysis.score_comparison import Comparison, Summary, compare_denoisers
from analysis.training_plots import plot_gaussian_first
from configs import InputError
from diffusion.closed_form import load_gaussian
from diffusion.data import split_of
from diffusion.training import load_denoiser
from diffusion.training.loading import checkpoint_steps
from diffusion.training.record import read_record

SIGMAS = np.array([0.2, 5.0])
SIZE = 64  # images per step
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def comparison(tiny_run):
    gaussian = load_gaussian(tiny_run / "gaussian.npz")
    images = split_of(read_record(tiny_run).config.data).held_out.images[:16]
    candidates = {"Gaussian": gaussian, "isotropic": gaussian.isotropic()}
    found = compare_over_training(
        tiny_run, candidates, images, SIGMAS, KEY, mean=gaussian.mean, batch_size=16
    )
    return found, candidates, images


def test_each_checkpoint_is_compared_as_on_its_own(comparison, tiny_run):
    found, candidates, images = comparison
    assert list(found.steps) == checkpoint_steps(tiny_run)
    size = read_record(tiny_run).config.training.batch_size
    assert list(found.num_images) == [size * step for step in found.steps]
    last = compare_denoisers(
        load_denoiser(tiny_run, step=int(found.steps[-1])),
        candidates,
        images,
        SIGMAS,
        KEY,
        mean=candidates["Gaussian"].mean,
        batch_size=16,
    )
    np.testing.assert_allclose(found.score.mean[-1], last.score.mean, rtol=1e-6)
    assert found.skipped == ()


def test_a_minimum_by_chance_is_no_departure(tmp_path):
    """Of many equal checkpoints one always lies lowest."""
    rng, called = np.random.default_rng(0), 0
    for _ in range(100):
        found = rows({step: (0.5, 0.5) for step in range(0, 300, 10)})
        found[0] = found[0]._replace(
            score_unexplained=found[0].score_unexplained + 1
        )  # it falls
        for step in range(10, 300, 10):
            noise = 0.1 * rng.normal(size=(1, 2, 9))
            found[step] = found[step]._replace(
                score_unexplained=found[step].score_unexplained + noise
            )
        pair = departures(stack_comparisons(tmp_path, found), "Gaussian")
        called += sum(one.departs for one in pair)
    assert called < 0.15 * 200  # 5 per cent were the halves not so small


def rows(values, difference=0.0):
    """Comparisons of one candidate whose average unexplained fractions are the values.

    Two of its nine probes lie off by one, alike at all steps, and by the difference,
    with a sign of its own at each step.
    """
    found = {}
    spread = np.array([1.0, -1.0] + [0.0] * 7)
    for number, (step, fractions) in enumerate(sorted(values.items())):
        off = spread + difference * np.roll(spread, 2 * (number % 3) + 2)
        unexplained = np.array(fractions)[None, :, None] + off
        summary = Summary(1 - unexplained.mean(-1), np.ones((1, 2)))
        found[step] = Comparison(
            *(("Gaussian",), SIGMAS, 9, summary, summary, summary),
            score_unexplained=unexplained,
        )
    return found


def test_a_fall_to_a_minimum_and_a_rise_is_a_departure(tmp_path):
    """Probes differ by far more than checkpoints do, but alike at all checkpoints."""
    values = {0: (1.0, 1.0), 30: (0.2, 0.5), 10: (0.4, 0.7), 90: (0.3, 0.4)}
    stacked = stack_comparisons(tmp_path, rows(values, 0.02))
    stacked = stacked._replace(num_images=SIZE * stacked.steps)
    found = departures(stacked, "Gaussian")
    assert [one.step for one in found] == [30, 90]
    assert [one.departs for one in found] == [True, False]  # the second only falls
    assert [one.departs_at for one in found] == [90 * SIZE, None]
    np.testing.assert_allclose([one.least for one in found], [0.2, 0.4])
    np.testing.assert_allclose([one.last for one in found], [0.3, 0.4])


def test_a_rise_counts_from_where_it_stays(tmp_path):
    """At 30 it is above for once; at 50 and after it stays so."""
    falls = {0: 1.0, 10: 0.5, 20: 0.2, 30: 0.4, 40: 0.2, 50: 0.3, 60: 0.4}
    returns = {**falls, 60: 0.2}
    pairs = {step: (falls[step], returns[step]) for step in falls}
    stacked = stack_comparisons(tmp_path, rows(pairs, 0.02))
    stacked = stacked._replace(num_images=SIZE * stacked.steps)
    stays, comes_back = departures(stacked, "Gaussian")
    assert (stays.departs, stays.departs_at) == (True, 50 * SIZE)
    assert (comes_back.departs, comes_back.departs_at) == (False, None)
    for one in (stays, comes_back):
        assert one.num_images == SIZE * one.step
        assert one.least == pytest.approx(falls[one.step])


def test_a_rise_from_the_beginning_is_no_departure(tmp_path):
    """The network was never on its way to the Gaussian."""
    found = departures(
        stack_comparisons(tmp_path, rows({0: (0.2, 0.2), 10: (0.5, 0.5)})), "Gaussian"
    )
    assert [(one.departs, one.departs_at) for one in found] == [(False, None)] * 2


def test_a_rise_within_the_noise_is_no_departure(tmp_path):
    values = {0: (2.0, 2.0), 10: (0.2, 0.2), 20: (0.3, 0.3)}
    noisy = stack_comparisons(tmp_path, rows(values, difference=0.5))
    assert not any(one.departs for one in departures(noisy, "Gaussian"))


def test_what_cannot_be_compared_is_one_line(comparison, tmp_path):
    found, candidates, images = comparison
    with pytest.raises(InputError, match="there is no candidate mixture"):
        departures(found, "mixture")
    with pytest.raises(InputError, match=r"no run|no checkpoint"):
        compare_over_training(
            tmp_path, candidates, images, SIGMAS, KEY, mean=np.zeros(64)
        )
    other = rows({0: (1.0, 1.0)})
    other |= {10: other[0]._replace(sigmas=np.array([1.0, 2.0]))}
    with pytest.raises(InputError, match="all must be the same"):
        stack_comparisons(tmp_path, other)


def test_the_figure_has_a_panel_for_each_candidate(comparison):
    figure = plot_gaussian_first(comparison[0], sigmas=(0.2,))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Gaussian", "isotropic"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]  # a line, its minimum
