"""The search for fixed points against densities whose critical points are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from analysis.autoencoder.energy import score_at
from analysis.autoencoder.modes import reconstruction_of, spurious_mode_search
from configs import InputError
from diffusion.closed_form import EmpiricalDenoiser

SIGMA = 0.4
DATA = np.array([[-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]) + np.array([0.0, 0.5])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def critical(x):
    """Slope along the axis of the density of the data, (2, 1) copies at -1 and 1."""
    left, right = (
        c * np.exp(-((x - m) ** 2) / (2 * SIGMA**2)) * (m - x)
        for c, m in ((2, -1), (1, 1))
    )
    return left + right


@pytest.fixture(scope="module")
def found():
    """Starts around the data, some exactly on the saddle, with a trap far away.

    r is that of the data within 3 of the origin; beyond x_1 = 3 it draws to (5, 0.5),
    where no data are.
    """
    with jax.enable_x64(True):
        model = EmpiricalDenoiser(jnp.asarray(DATA))
        inner = reconstruction_of(score_at(model, SIGMA), SIGMA)

        def r(x):
            trap = x + 0.9 * (jnp.array([5.0, 0.5]) - x)
            return jnp.where(x[:, :1] > 3, trap, inner(x))

        saddle = optimize.brentq(critical, -0.5, 0.8, xtol=1e-15)
        rng = np.random.default_rng(0)
        starts = np.concatenate(
            [
                rng.uniform([-2, -1], [-0.5, 2], (20, 2)),
                rng.uniform([0.8, -1], [2, 2], (9, 2)),
                rng.uniform([3.5, 0], [6, 2], (5, 2)),
                [[saddle, 3.0]],
            ]
        )
        modes = spurious_mode_search(r, starts, 10, data=DATA, sigma=SIGMA)
        return saddle, modes


def test_modes_and_the_saddle_between_them_are_found_where_the_slope_is_zero(found):
    saddle, modes = found
    left = optimize.brentq(critical, -1.2, -0.8)
    right = optimize.brentq(critical, 0.8, 1.2)
    expected = [[left, 0.5], [right, 0.5], [5, 0.5], [saddle, 0.5]]
    np.testing.assert_allclose(modes.x, expected, atol=1e-3)
    assert modes.kind == ("mode", "mode", "mode", "saddle")
    assert modes.starts.tolist() == [20, 9, 5, 1]
    assert modes.unsettled == 0


def test_eigenvalues_are_the_hessian_times_the_squared_noise(found):
    _, modes = found

    for point, values in zip(modes.x, modes.eigenvalues, strict=True):
        p = np.exp(-((point - DATA) ** 2).sum(axis=1) / (2 * SIGMA**2))
        mean = p @ DATA / p.sum()
        covariance = (p * (DATA - mean).T) @ (DATA - mean) / p.sum()
        expected = np.linalg.eigvalsh(covariance / SIGMA**2 - np.eye(2))
        if point[0] > 3:
            expected = [-0.9, -0.9]
        np.testing.assert_allclose(values, expected, atol=1e-9)


def test_only_the_mode_without_data_is_spurious_among_modes(found):
    _, modes = found
    squared = ((modes.x[:, None] - DATA) ** 2).sum(-1) / (2 * SIGMA**2)
    expected = np.log(np.exp(-squared).mean(1) / (2 * np.pi * SIGMA**2))
    np.testing.assert_allclose(modes.log_density, expected, rtol=1e-9)
    # A mode of a sum of Gaussians is at least as dense as the lowest of its centres;
    # a saddle is not, and is no place that a chain settles at.
    assert modes.spurious.tolist() == [False, False, True, True]


def test_starts_that_still_move_are_counted_and_not_reported():
    drift = spurious_mode_search(
        lambda x: x + 1, np.zeros((4, 2)), 3, data=DATA, sigma=SIGMA
    )
    assert drift.unsettled == 4
    assert drift.x.shape == (0, 2) and drift.kind == ()


def test_a_ridge_is_called_flat_and_a_repeller_a_minimum():
    def ridge(x):
        return x * jnp.array([1.0, 0.2])

    flat = spurious_mode_search(ridge, np.ones((1, 2)), 20, data=DATA, sigma=SIGMA)
    assert flat.kind == ("flat",)

    def repeller(x):
        return 1.5 * x

    still = spurious_mode_search(repeller, np.zeros((1, 2)), 20, data=DATA, sigma=1.0)
    assert still.kind == ("minimum",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"sigma": 0.0}, "sigma contains 0.0"),
        ({"gain": -1.0}, "gain is -1.0"),
        ({"quantile": 2.0}, "quantile is 2.0"),
        ({"starts": np.zeros(2)}, r"x has shape \(2,\)"),
        ({"reconstruction": lambda x: x[:, 0]}, r"has shape \(1,\); give the same"),
    ],
)
def test_bad_input_is_one_line(change, message):
    arguments = {
        "reconstruction": lambda x: x,
        "starts": np.zeros((1, 2)),
        "steps": 1,
        "data": DATA,
        "sigma": SIGMA,
    } | change
    with pytest.raises(InputError, match=message) as caught:
        spurious_mode_search(**arguments)
    assert "\n" not in str(caught.value)
