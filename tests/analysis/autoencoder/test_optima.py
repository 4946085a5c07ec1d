"""The best auto-encoders of known densities: exact slopes, and orders in sigma."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.autoencoder.optima import (
    dae_expansion,
    dae_optimum_1d,
    optimum_expansion,
    rcae_expansion,
    rcae_optimum_1d,
    rcae_optimum_2d,
)
from configs.errors import InputError

SIGMAS = (0.3, 0.2, 0.1, 0.05, 0.025)
# weights, means, standard deviations
MIXTURE = np.array([0.4, 0.6]), np.array([-0.8, 0.7]), np.array([0.35, 0.5])


def mixture(points):
    """Log density of the 1-D mixture, up to a constant, (n, 1) -> (n,)."""
    weights, means, deviations = MIXTURE
    logits = np.log(weights / deviations) - (points - means) ** 2 / deviations**2 / 2
    return jax.nn.logsumexp(logits, axis=1)


def mixture_posterior_mean(x, sigma):
    """E[x0 | x], float64, by components."""
    weights, means, deviations = MIXTURE
    total = deviations**2 + sigma**2
    logits = np.log(weights) - (x[:, None] - means) ** 2 / total / 2
    logits -= np.log(total) / 2
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gain = deviations**2 / total
    return (p * (means + gain * (x[:, None] - means))).sum(axis=1)


def density(x):
    weights, means, deviations = MIXTURE
    bells = np.exp(-((x[:, None] - means) ** 2) / deviations**2 / 2)
    return bells @ (weights / deviations)


GRID = np.linspace(-4, 4, 4001)
STEP = GRID[1] - GRID[0]
CHOSEN = np.arange(1000, 3001, 20)
X = GRID[CHOSEN]


@functools.cache
def optima():
    """At the chosen points, both optima for every sigma, and the expansion's terms."""
    found = {
        sigma: (
            dae_optimum_1d(X, mixture, sigma),
            rcae_optimum_1d(GRID, mixture, sigma)[CHOSEN],
        )
        for sigma in SIGMAS
    }
    with jax.enable_x64(True):
        terms = jax.jit(optimum_expansion, static_argnums=0)(
            mixture, jnp.asarray(X[:, None])
        )
        return found, type(terms)(*(np.asarray(term)[:, 0] for term in terms))


def test_both_optima_of_a_gaussian_are_the_wiener_filter():
    variance, sigma = 0.3, 0.4
    grid = np.linspace(-4, 4, 8001)
    middle = np.abs(grid) < 1
    slope = variance / (variance + sigma**2)

    def logp(points):
        return -(points[:, 0] ** 2) / (2 * variance)

    exact = slope * grid[middle]
    contraction = rcae_optimum_1d(grid, logp, sigma)[middle]
    assert abs(np.polyfit(grid[middle], contraction, 1)[0] - slope) < 1e-6
    np.testing.assert_allclose(contraction, exact, atol=1e-6)
    denoising = dae_optimum_1d(grid[middle][::20], logp, sigma)
    np.testing.assert_allclose(denoising, exact[::20], atol=1e-12)


def test_the_contractive_optimum_is_of_second_order_in_the_grid():
    errors = []
    for count in (101, 201, 401):
        grid = np.linspace(-6, 6, count)
        r = rcae_optimum_1d(grid, lambda p: -(p[:, 0] ** 2) / 2, 0.5)
        middle = np.abs(grid) < 1
        errors.append(np.abs(r - grid / 1.25)[middle].max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (np.abs(orders - 2) < 0.1).all(), orders


def test_the_contractive_optimum_in_the_plane_is_that_of_a_gaussian():
    precision = np.array([[2.0, 0.6], [0.6, 1.0]])
    shrink = np.linalg.inv(np.eye(2) + 0.3**2 * precision)

    def logp(points):
        return -jnp.einsum("ni,ij,nj->n", points, precision, points) / 2

    errors = []
    for count in (31, 61, 121):
        # Uneven in one direction, and not a square.
        axes = np.linspace(-5, 5, count), 6 * np.sinh(np.linspace(-1, 1, count + 10))
        r = rcae_optimum_2d(*axes, logp, 0.3)
        x = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        near = np.abs(x).max(axis=-1) < 1
        errors.append(np.abs(r - x @ shrink)[near].max())
    assert errors[-1] < 1e-3
    assert (np.abs(-np.diff(np.log2(errors)) - 2) < 0.25).all(), errors


def test_the_contractive_optimum_in_the_plane_of_a_product_is_that_of_its_factors():
    axes = np.linspace(-3, 3, 91), np.linspace(-4, 4, 70)

    def logp(points):
        x, y = np.asarray(points).T
        return np.log(density(x)) - y**2 / 2

    r = rcae_optimum_2d(*axes, logp, 0.4)
    first = rcae_optimum_1d(axes[0], mixture, 0.4)
    second = rcae_optimum_1d(axes[1], lambda p: -(p[:, 0] ** 2) / 2, 0.4)
    np.testing.assert_allclose(r[..., 0], np.tile(first[:, None], 70), atol=1e-10)
    np.testing.assert_allclose(r[..., 1], np.tile(second, (91, 1)), atol=1e-10)


@pytest.mark.slow
def test_an_uneven_grid_gives_the_same_contractive_optimum():
    uneven = 4 * np.sinh(np.linspace(-2, 2, 4001)) / np.sinh(2)
    r = np.interp(X, uneven, rcae_optimum_1d(uneven, mixture, 0.3))
    assert np.abs(r - optima()[0][0.3][1]).max() < 1e-5


def test_the_contractive_optimum_has_the_least_loss():
    sigma, p, between = 0.3, density(GRID), density((GRID[1:] + GRID[:-1]) / 2)

    def loss(r):
        error = np.sum(p * (r - GRID) ** 2) * STEP
        return error + sigma**2 * np.sum(between * np.diff(r) ** 2) / STEP

    best = rcae_optimum_1d(GRID, mixture, sigma)
    for move in (np.sin(GRID), np.cos(3 * GRID), GRID):
        for size in (-1e-3, 1e-3):
            assert loss(best + size * move) > loss(best)


def test_the_denoising_optimum_is_the_posterior_mean():
    for sigma, (r, _) in optima()[0].items():
        np.testing.assert_allclose(r, mixture_posterior_mean(X, sigma), atol=1e-12)


def test_the_gap_between_the_optima_is_half_the_slope_of_the_laplacian():
    found, terms = optima()
    gap = terms.contraction - terms.denoising
    third = np.log(density(GRID))
    for _ in range(3):
        third = np.gradient(third, GRID)
    np.testing.assert_allclose(gap, third[CHOSEN] / 2, atol=1e-3 * np.ptp(gap))
    ratios = [
        (rcae - dae) @ gap / (gap @ gap) / sigma**4
        for sigma, (dae, rcae) in found.items()
    ]
    assert (np.diff(ratios) > 0).all(), ratios
    assert 0.9 < ratios[-1] < 1.01, ratios


def test_what_the_expansions_leave_is_of_order_sigma_to_the_sixth():
    found, terms = optima()
    for which, fourth in enumerate((terms.denoising, terms.contraction)):
        left = []
        for sigma in (0.1, 0.05):
            expansion = X + sigma**2 * terms.score + sigma**4 * fourth
            left.append(np.linalg.norm(found[sigma][which] - expansion))
        assert 5.3 < np.log2(left[0] / left[1]) < 6.5, left


@pytest.mark.slow
def test_expansions_in_several_dimensions_are_those_of_a_gaussian():
    precision = np.array([[2.0, 0.6], [0.6, 1.0]])
    x, sigma = np.random.default_rng(0).normal(size=(5, 2)), 0.05

    def logp(points):
        return -jnp.einsum("ni,ij,nj->n", points, precision, points) / 2

    expected = x @ np.linalg.inv(np.eye(2) + sigma**2 * precision)
    with jax.enable_x64(True):
        for expansion in (dae_expansion, rcae_expansion):
            found = jax.jit(expansion, static_argnums=0)(logp, jnp.asarray(x), sigma)
            # sigma^6 precision^3
            np.testing.assert_allclose(found, expected, atol=3e-7)
            assert np.abs(np.asarray(found) - expected).max() > 1e-9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((GRID, mixture, 0.0), "sigma is 0"),
        ((GRID, mixture, np.inf), "finite number"),
        ((GRID[::-1], mixture, 0.1), "increasing"),
        ((GRID, lambda p: p, 0.1), "one value per point"),
        ((GRID, lambda p: p[:, 0] * np.nan, 0.1), "must be finite"),
    ],
)
def test_bad_input_gets_one_line(arguments, says):
    for optimum in (rcae_optimum_1d, dae_optimum_1d):
        with pytest.raises(InputError, match=says) as caught:
            optimum(*arguments)
        assert "\n" not in str(caught.value)


def test_no_mass_and_a_coarse_grid_get_one_line():
    def box(points):
        return jnp.where(jnp.abs(points[:, 0]) < 1, 0.0, -jnp.inf)

    with pytest.raises(InputError, match="9 sigma"):
        dae_optimum_1d(GRID, box, 0.1)
    with pytest.raises(InputError, match="finer"):
        rcae_optimum_1d([-100.0, 0.0, 100.0], lambda p: -(p[:, 0] ** 2), 1.0)
    with pytest.raises(InputError, match="finite on the grid"):
        rcae_optimum_2d(GRID[::500], GRID[::500], lambda p: box(p[:, 1:]), 1.0)
