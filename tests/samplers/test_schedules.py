"""Noise grids against the published formula and numbers."""

import doctest

import numpy as np
import pytest

from configs import InputError
from samplers import karras, log_linear, schedules, skip_above


def test_the_printed_examples_are_what_is_printed():
    result = doctest.testmod(schedules)
    assert result.attempted > 2
    assert result.failed == 0


def test_karras_is_the_published_formula():
    i = np.arange(18)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = karras(18)
    np.testing.assert_allclose(grid, published, rtol=1e-12)
    assert grid.dtype == np.float64
    assert (grid[0], grid[-1]) == (80.0, 0.002)
    # The seventh point, where CIFAR-10 samplers are teleported to.
    assert grid[6] == pytest.approx(8.401, abs=5e-4)


def test_log_linear_has_equal_ratios():
    grid = log_linear(9, 0.01, 50.0)
    ratios = grid[1:] / grid[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-12)
    assert (grid[0], grid[-1]) == (50.0, 0.01)


def test_the_tail_of_a_karras_grid_is_a_karras_grid():
    grid = karras(18)
    np.testing.assert_allclose(grid[6:], karras(12, 0.002, grid[6]), rtol=1e-10)


def test_skip_above_keeps_what_is_at_or_below():
    grid = karras(18)
    np.testing.assert_array_equal(skip_above(grid, grid[6]), grid[6:])
    np.testing.assert_array_equal(skip_above(grid, 8.5), grid[6:])
    np.testing.assert_array_equal(skip_above(grid, 80.0), grid)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: karras(0), "num_points is 0"),
        (lambda: karras(5, 0.0), "0 < sigma_min"),
        (lambda: karras(5, 2.0, 1.0), "0 < sigma_min"),
        (lambda: karras(5, rho=0.0), "rho"),
        (lambda: log_linear(5, -1.0), "0 < sigma_min"),
        (lambda: skip_above(karras(5), 81.0), "within the grid"),
        (lambda: skip_above(karras(5), 0.001), "within the grid"),
        (lambda: skip_above([1.0, 2.0], 1.0), "must decrease"),
    ],
)
def test_bad_arguments_get_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_rho_bends_the_grid():
    ends = np.linspace(80 ** (1 / 3), 0.01 ** (1 / 3), 6)
    found = karras(6, sigma_min=0.01, sigma_max=80.0, rho=3.0)
    np.testing.assert_allclose(found, ends**3, rtol=1e-12)
