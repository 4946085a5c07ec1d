"""Line integrals of scores against exact differences of energy, rule by rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from analysis.autoencoder import energy_difference
from analysis.autoencoder.datasets import (
    ninja_star_energy,
    ninja_star_score,
    sample_spiral,
    spiral_denoiser,
    spiral_log_density,
)
from analysis.autoencoder.energy import (
    antisymmetry_defect,
    line_integral,
    loop_defect,
    quadrature,
    score_at,
)
from configs import InputError
from samplers import mala_sample, measure_acceptance, mh_sample

KEY = jax.random.key(0)
SIGMA = 0.01


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def highest_exact_degree(rule):
    """The last degree k with sum_j w_j u_j^k = 1 / (k + 1), in float64."""
    nodes, weights = quadrature(rule)
    for degree in range(40):
        if abs(weights @ nodes**degree - 1 / (degree + 1)) > 1e-13:
            return degree - 1
    return None


@pytest.mark.parametrize(
    ("rule", "degree"),
    [
        ("left", 0),
        ("trapezoid", 1),
        ("trapezoid-5", 1),
        ("mean-2", 1),
        ("mean-5", 1),
        ("mean-20", 1),
        ("simpson", 3),
        ("lobatto4", 5),
        *((f"gl{k}", 2 * k - 1) for k in range(1, 9)),
    ],
)
def test_rules_are_exact_to_their_degree_and_no_further(rule, degree):
    assert highest_exact_degree(rule) == degree


@pytest.mark.parametrize(
    ("rule", "order"),
    [("left", 2), ("trapezoid", 3), ("simpson", 5), ("gl2", 5), ("gl3", 7)],
)
def test_error_of_one_step_has_the_order_of_the_rule(rule, order):
    """E = exp(x): the error of a segment of length h falls as h^(degree + 2)."""
    lengths = np.array([0.4, 0.2, 0.1])
    nodes, weights = quadrature(rule)
    found = lengths * (np.exp(lengths[:, None] * nodes) @ weights)
    error = np.abs(found - np.expm1(lengths))
    slopes = np.diff(np.log(error)) / np.diff(np.log(lengths))
    np.testing.assert_allclose(slopes, order, atol=0.15)


def test_mean_of_k_points_is_off_by_one_over_k_where_the_trapezoid_rule_is_not():
    for count in (10, 20, 40):
        errors = []
        for family in ("mean", "trapezoid"):
            nodes, weights = quadrature(f"{family}-{count}")
            errors.append(abs(weights @ nodes**2 - 1 / 3))
        # sum u^2 / K = (2 K - 1) / (6 (K - 1)).
        assert errors[0] == pytest.approx(1 / (6 * (count - 1)), rel=1e-9)
        assert errors[1] == pytest.approx(1 / (6 * (count - 1) ** 2), rel=1e-9)


@pytest.fixture(scope="module")
def spiral():
    """Points of the noised spiral, moves of one sigma, exact differences, the score."""
    with jax.enable_x64(True):
        x = np.asarray(sample_spiral(KEY, 300, sigma=SIGMA))
        x_new = x + SIGMA * np.random.default_rng(0).normal(size=x.shape)
        log_density = spiral_log_density(np.concatenate([x, x_new]), SIGMA)
        return x, x_new, -log_density[300:] + log_density[:300], spiral_denoiser(SIGMA)


def test_three_nodes_give_the_spirals_energy_and_the_left_end_does_not(spiral):
    x, x_new, expected, denoiser = spiral
    score = score_at(denoiser, SIGMA)
    rms, acceptance = {}, {}
    for rule in ("left", "mean-5", "gl3"):
        found = np.asarray(energy_difference(score, x, x_new, rule=rule))
        rms[rule] = np.sqrt(np.mean((found - expected) ** 2))
        acceptance[rule] = np.minimum(1, np.exp(-found)).mean()
    truth = np.minimum(1, np.exp(-expected)).mean()
    # Measured: .85 (left), .0049 (mean-5), 1.8e-7 to 3e-5 (gl3).
    assert rms["gl3"] < 0.01 and rms["left"] > 0.5
    assert rms["gl3"] < 0.1 * rms["mean-5"]
    assert abs(acceptance["gl3"] - truth) < 1e-3
    # The left end accepts what it should refuse: .813 where the truth is .707.
    assert acceptance["left"] - truth > 0.05


def test_symmetric_rules_change_sign_with_their_ends(spiral):
    x, x_new, _, denoiser = spiral
    score = score_at(denoiser, SIGMA)
    for rule in ("simpson", "gl3", "lobatto4"):
        assert antisymmetry_defect(score, x, x_new, rule=rule).max() < 1e-12
    assert np.median(antisymmetry_defect(score, x, x_new, rule="left")) > 0.1


def test_loop_defect_is_zero_for_a_gradient_and_the_area_times_the_curl_otherwise():
    x = np.random.default_rng(1).normal(size=(40, 2))
    # Away from the cusp at the origin, where no rule converges fast.
    away = loop_defect(KEY, ninja_star_score, x + np.sign(x), 0.1, rule="gl5")
    assert away.max() < 1e-8

    def turning(x):
        return jnp.stack([-x[:, 1], x[:, 0]], axis=1)

    found = loop_defect(KEY, turning, x, 0.1, rule="gl2")
    second, third = np.asarray(0.1 * jax.random.normal(KEY, (2, 40, 2)))
    area = np.abs(second[:, 0] * third[:, 1] - second[:, 1] * third[:, 0]) / 2
    np.testing.assert_allclose(found, 2 * area, rtol=1e-9)


def test_energy_of_images_sums_over_the_whole_event_and_keeps_float32():
    rng = np.random.default_rng(2)
    x, x_new = rng.normal(size=(2, 3, 2, 2, 1)).astype(np.float32)
    found = energy_difference(lambda x: -(x**3), x, x_new, rule="gl2")
    expected = (x_new.astype(float) ** 4 - x.astype(float) ** 4).sum((1, 2, 3)) / 4
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def exact_star(x, x_new):
    return ninja_star_energy(x_new) - ninja_star_energy(x)


def star_marginal(coordinate):
    """Distribution function of a coordinate, by quadrature on a grid, in float64."""
    grid = np.linspace(-5, 5, 801)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    squared = a**2 + b**2
    energy = (np.sqrt(squared) - 2) ** 2 + (a**2 - b**2) ** 2 + np.log1p(squared) / 2
    density = np.exp(-energy).sum(axis=1 - coordinate)
    total = np.cumsum(density) - density / 2
    return lambda x: np.interp(x, grid, total / density.sum())


def test_integrated_energy_samples_the_star_as_the_exact_one_does():
    x0 = np.random.default_rng(3).choice([-1.1, 1.1], size=(2_000, 2))

    def run(seed, difference):
        return mh_sample(jax.random.key(seed), difference, x0, 0.9, 4, thinning=50)

    gl5 = line_integral(ninja_star_score, rule="gl5")
    exact, same_noise, integrated = run(0, exact_star), run(0, gl5), run(1, gl5)
    rates = [measure_acceptance(chain).mean for chain in (same_noise, exact)]
    # Measured: .3371 and .3367 (exact); .563 with the left end.
    assert abs(rates[0] / rates[1] - 1) < 0.01
    for coordinate in (0, 1):
        ends = [np.asarray(c.x[-1, :, coordinate]) for c in (exact, integrated)]
        assert stats.ks_2samp(*ends).pvalue > 1e-3
        for values in ends:
            assert stats.kstest(values, star_marginal(coordinate)).pvalue > 1e-3


@pytest.mark.parametrize("walk", [mh_sample, mala_sample])
@pytest.mark.parametrize(
    ("rule", "of_a_move"),
    [("trapezoid", 1), ("simpson", 2), ("lobatto4", 3), ("gl3", 3), ("left", 1)],
)
def test_the_score_at_a_state_is_evaluated_once(rule, of_a_move, walk):
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return ninja_star_score(x)

    x0 = np.random.default_rng(4).choice([-1.1, 1.1], size=(50, 2))
    integral = line_integral(counted, rule=rule)
    counts = []
    for moves in (5, 15):
        calls.clear()
        chain = walk(KEY, integral, x0, 0.7, moves)
        jax.effects_barrier()
        counts.append(len(calls))
    # A drift along the score needs it at the end, whether or not the rule does.
    extra = walk is mala_sample and not integral.uses_ends
    assert counts[1] - counts[0] == 10 * (of_a_move + extra)

    def forgetful(x, x_new):
        return energy_difference(ninja_star_score, x, x_new, rule=rule)

    options = {"score": ninja_star_score} if walk is mala_sample else {}
    expected = walk(KEY, forgetful, x0, 0.7, 15, **options)
    assert 0.05 < expected.accept.mean() < 0.95
    np.testing.assert_allclose(chain.x, expected.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quadrature("simson"), "unknown rule 'simson'; did you mean 'simpson'"),
        (lambda: line_integral(lambda x: x, rule="gl-3"), "did you mean 'gl3'"),
        (lambda: quadrature("mean-1"), "rule 'mean-1' has 1 nodes; mean-K takes 2 to"),
        (lambda: quadrature("gl0"), "glK takes 1 to 64"),
        (lambda: quadrature("gl65"), "glK takes 1 to 64"),
        (
            lambda: energy_difference(lambda x: x, np.zeros(2), np.zeros(2)),
            r"x has shape \(2,\)",
        ),
        (
            lambda: energy_difference(lambda x: x, np.zeros((1, 2)), np.zeros((2, 2))),
            "give two batches of one shape",
        ),
        (
            lambda: energy_difference(
                lambda x: x[:, 0], np.zeros((1, 2)), np.zeros((1, 2))
            ),
            r"the score of points \(1, 2\) has shape \(1,\)",
        ),
        (
            lambda: mala_sample(KEY, exact_star, np.ones((1, 2)), 0.1, 1),
            "mala_sample got no score",
        ),
        (lambda: score_at(lambda x, sigma: x, 0.0), "sigma contains 0.0"),
        (
            lambda: loop_defect(KEY, lambda x: x, np.zeros((1, 2)), 0.0),
            "size contains 0.0",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
