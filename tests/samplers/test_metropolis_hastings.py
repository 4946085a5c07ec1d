"""Metropolis-Hastings against exact laws: balance, acceptance, temperature, correction.

The targets are on the line, so that starts are drawn from the exact law by its inverse
distribution function in NumPy; then the pairs (start, next state) of independent chains
are exchangeable if, and only if, the move keeps detailed balance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import InputError
from diffusion.closed_form import isotropic_gaussian
from samplers import (
    Chain,
    langevin_recon,
    mala_sample,
    measure_acceptance,
    mh_sample,
)

KEY = jax.random.key(3)
GRID = np.linspace(-6, 6, 24_001)
CELLS = np.array([-np.inf, -2, -1.2, -0.6, 0, 0.5, 1, 1.6, np.inf])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def log_p(x, numpy=jnp):
    """Two bumps of unequal height and width, on the line, not normalised."""
    left = numpy.log(0.3) - (x + 1.2) ** 2 / (2 * 0.5**2) - numpy.log(0.5)
    right = numpy.log(0.7) - (x - 0.8) ** 2 / (2 * 0.7**2) - numpy.log(0.7)
    return numpy.logaddexp(left, right)


def exact(x, x_new):
    return (log_p(x) - log_p(x_new))[:, 0]


def bumps_score(x):
    return jax.grad(lambda z: jnp.sum(log_p(z)))(x)


def cell_shares(temperature):
    p = np.exp(log_p(GRID, np) / temperature)
    share, _ = np.histogram(GRID, CELLS, weights=p / p.sum())
    return share


def exact_starts(temperature, count, seed):
    p = np.exp(log_p(GRID, np) / temperature)
    u = np.random.default_rng(seed).uniform(size=count)
    return np.interp(u, np.cumsum(p) / p.sum(), GRID)[:, None]


def balance_p_value(x, x_new):
    """Chi-square of the moves i -> j against those j -> i, over all pairs of cells."""
    i, j = (np.digitize(v[:, 0], CELLS[1:-1]) for v in (x, x_new))
    flows = np.zeros((8, 8))
    np.add.at(flows, (i, j), 1)
    total = (flows + flows.T)[np.triu_indices(8, 1)]
    difference = (flows - flows.T)[np.triu_indices(8, 1)]
    used = total >= 10
    assert used.sum() >= 15
    return stats.chi2.sf(np.sum(difference[used] ** 2 / total[used]), used.sum())


def histogram_p_value(x, temperature):
    found, _ = np.histogram(x, CELLS)
    return stats.chisquare(found, cell_shares(temperature) * len(x)).pvalue


TEMPERATURES = np.repeat([1.0, 2.5], 50_000)
STARTS = np.concatenate([exact_starts(t, 50_000, i) for i, t in enumerate([1.0, 2.5])])
HALVES = (slice(0, 50_000), slice(50_000, None))


def p_values(chain):
    """Balance and histogram of both temperatures."""
    x = np.asarray(chain.x[0])
    found = []
    for half in HALVES:
        found.append(balance_p_value(STARTS[half], x[half]))
        found.append(histogram_p_value(x[half], TEMPERATURES[half][0]))
    return np.array(found)


@pytest.mark.parametrize("kick_share", [0.0, 0.3])
def test_exact_energy_keeps_detailed_balance_at_every_temperature(kick_share):
    chain = mh_sample(
        KEY, exact, STARTS, 0.9, 1, TEMPERATURES, kick_share=kick_share, kick_scale=4.0
    )
    # Measured: .0099 to .92; with T left out, below 1e-138.
    assert np.all(p_values(chain) > 1e-5)
    assert 0.3 < measure_acceptance(chain).mean < 0.9


def test_energy_from_the_left_ends_slope_breaks_detailed_balance():
    def left(x, x_new):
        return -jnp.sum(bumps_score(x) * (x_new - x), axis=1)

    chain = mh_sample(KEY, left, STARTS, 0.9, 1, TEMPERATURES)
    # Measured: at most 1e-147.
    assert np.all(p_values(chain) < 1e-50)


def test_langevin_moves_keep_detailed_balance_by_their_correction():
    chain = mala_sample(KEY, exact, STARTS, 0.9, 1, TEMPERATURES, score=bumps_score)
    # Measured: .092 to .86, and .30 to .91 below.
    assert np.all(p_values(chain) > 1e-5)
    # The correction does the work: the wrong drift is corrected for as well.
    wrong = mala_sample(
        KEY, exact, STARTS, 0.9, 1, TEMPERATURES, score=lambda x: 1 - 0.5 * x
    )
    assert np.all(p_values(wrong) > 1e-5)
    assert measure_acceptance(chain).mean > measure_acceptance(wrong).mean


def test_acceptance_on_a_gaussian_is_the_closed_form():
    steps = np.repeat([0.5, 2.0, 6.0], 10_000)
    x0 = np.random.default_rng(0).normal(size=(30_000, 1))
    chain = mh_sample(KEY, lambda x, y: jnp.sum(y**2 - x**2, 1) / 2, x0, steps, 4)
    for part, step in zip(
        np.split(np.asarray(chain.accept), 3, 1), (0.5, 2, 6), strict=True
    ):
        found = measure_acceptance(Chain(chain.x, part))
        expected = 2 / np.pi * np.arctan(2 / step)
        assert abs(found.mean - expected) < 4 * found.standard_error
        assert found.standard_error < 0.004


@pytest.mark.slow
def test_langevin_acceptance_on_a_gaussian_is_the_mean_over_its_moves():
    step = 1.3
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(2, 200_000))
    new = x - step**2 / 2 * x + step * z
    back = x - new + step**2 / 2 * new
    log_ratio = (x**2 - new**2) / 2 + (z**2 - back**2 / step**2) / 2
    expected = np.minimum(1, np.exp(log_ratio)).mean()
    chain = mala_sample(
        KEY,
        lambda x, y: jnp.sum(y**2 - x**2, 1) / 2,
        x[:20_000, None],
        step,
        4,
        score=lambda x: -x,
    )
    found = measure_acceptance(chain)
    assert abs(found.mean - expected) < 4 * found.standard_error + 0.003


def test_a_chain_depends_on_neither_the_number_of_chains_nor_the_thinning():
    x0 = STARTS[:6]
    every = mh_sample(KEY, exact, x0[:2], 0.9, 6)
    thinned = mh_sample(KEY, exact, x0, 0.9, 2, thinning=3)
    np.testing.assert_array_equal(thinned.x[:, :2], every.x[2::3])
    shares = np.asarray(every.accept).reshape(2, 3, 2).mean(1)
    np.testing.assert_allclose(thinned.accept[:, :2], shares, atol=1e-7)
    moved = np.diff(np.concatenate([x0[None, :2], every.x]), axis=0)[..., 0] != 0
    np.testing.assert_array_equal(moved, np.asarray(every.accept) == 1)
    assert 0 < shares.mean() < 1


def test_walking_back_has_the_stationary_variance_of_its_recursion():
    variance, sigma = 1.5, 1.0
    gaussian = isotropic_gaussian(jnp.zeros(1), variance)
    x0 = np.full((20_000, 1), 4.0)
    chain = langevin_recon(
        KEY, lambda x: gaussian(x, jnp.asarray(sigma)), x0, sigma, 1, thinning=12
    )
    expected = variance / (1 + sigma**2 / (2 * variance))
    assert abs(np.var(chain.x[0]) / expected - 1) < 0.04
    assert abs(np.mean(chain.x[0])) < 0.05
    assert np.all(chain.accept == 1)


def test_acceptance_tells_chains_that_are_stuck():
    chain = Chain(jnp.zeros((3, 2, 1)), jnp.array([[0, 1], [0, 0.5], [0, 1]]))
    found = measure_acceptance(chain, burn_in=1)
    assert (found.mean, found.stuck) == (0.375, 0.5)
    np.testing.assert_allclose(found.per_chain, [0, 0.75])
    assert found.standard_error == pytest.approx(0.375)


def flat_inside(x, x_new):
    """The unit interval: energy 0 inside, infinite outside."""

    def energy(x):
        return jnp.where(jnp.abs(x[:, 0]) < 1, 0.0, jnp.inf)

    return energy(x_new) - energy(x)


def mh(x0=((0.5,),), step=1.0, n=2, temperature=1.0, difference=flat_inside, **options):
    return mh_sample(KEY, difference, jnp.asarray(x0), step, n, temperature, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mh(step=0.0), "step contains 0.0"),
        (lambda: mh(step=np.ones(3)), r"step has shape \(3,\)"),
        (lambda: mh(temperature=-1.0), "temperature contains -1.0"),
        (lambda: mh(n=0), "n is 0; it must be an integer >= 1"),
        (lambda: mh(thinning=0), "thinning is 0"),
        (lambda: mh(x0=(0.5,)), r"x0 has shape \(1,\)|give a batch"),
        (lambda: mh(x0=((1,),)), "dtype int"),
        (lambda: mh(kick_share=1.5), "kick_share is 1.5"),
        (lambda: mh(kick_scale=0.0), "kick_scale is 0.0"),
        (lambda: mh(x0=((0.5,), (2.0,))), "chain 1 starts at a point of zero density"),
        (
            lambda: mh(
                difference=lambda x, y: jnp.zeros(1),
                log_density=lambda x: jnp.full(1, -jnp.inf),
            ),
            "chain 0 starts at a point of zero density",
        ),
        (lambda: mh(difference=lambda x, y: x - y), r"shape \(1, 1\)"),
        (
            lambda: mala_sample(
                KEY, flat_inside, jnp.zeros((1, 1)), 1.0, 1, score=lambda x: x[:, 0]
            ),
            r"the score of x0 \(1, 1\) has shape \(1,\)",
        ),
        (
            lambda: langevin_recon(KEY, lambda x: x[0], jnp.zeros((1, 1)), 1.0, 1),
            r"the reconstruction of x0 \(1, 1\) has shape \(1,\)",
        ),
        (lambda: langevin_recon(KEY, lambda x: x, jnp.zeros((1, 1)), 0.0, 1), "sigma"),
        (
            lambda: measure_acceptance(
                Chain(jnp.zeros(0), jnp.ones((2, 1))), burn_in=2
            ),
            "burn_in is 2",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_walk_never_leaves_the_support_of_its_target():
    chain = mh(x0=np.zeros((50, 1)), step=3.0, n=10)
    assert np.all(np.abs(chain.x) < 1)
    assert measure_acceptance(chain).mean < 0.5
