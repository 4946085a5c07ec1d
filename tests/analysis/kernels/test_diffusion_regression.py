"""The score as a regression: the truth of it, its sample, its words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from analysis.kernels.diffusion_regression import (
    convert_prediction,
    dsm_triples,
    f_from_score,
    keep_mask,
    lift,
    ou,
    project_ball,
    score_from_f,
    tail_loss_bound,
    time_of_sigma,
    time_weights,
    to_ve,
    truncation_radius,
    weighted_errors,
)
from analysis.kernels.posterior import (
    bayes_floor,
    posterior_covariance,
    posterior_mean,
)
from configs.errors import InputError, InputWarning
from diffusion.closed_form import (
    EmpiricalDenoiser,
    MixtureDenoiser,
    isotropic_gaussian,
)
from diffusion.denoiser import score

KEY = jax.random.key(11)
T_RANGE = (0.05, 2.0)
STD = np.array([0.25, 0.4, 0.1])
WEIGHTS = np.array([0.5, 0.3, 0.2])


def means(d=2):
    return 1.5 * np.random.default_rng(3).normal(size=(3, d)) / np.sqrt(d)


def mixture(d=2, dtype=None):
    """Isotropic components of three widths, as a denoiser."""
    shapes = (np.log(WEIGHTS), means(d), np.zeros((3, d, 0)), np.zeros((3, 0)), STD**2)
    return MixtureDenoiser(*(jnp.asarray(v, dtype) for v in shapes))


def noisy(n=40, d=2, dtype: type = np.float64):
    rng = np.random.default_rng(5)
    t = rng.uniform(*T_RANGE, n)
    return (1.3 * rng.normal(size=(n, d))).astype(dtype), t.astype(dtype)


def test_tweedie_the_score_is_the_gradient_of_the_log_density():
    """T1: the density is written here, at x_t, and differentiated by JAX."""

    def log_density(x, t):
        alpha, variance = jnp.exp(-t / 2), jnp.exp(-t) * STD**2 - jnp.expm1(-t)
        square = jnp.sum((x - alpha * means()) ** 2, axis=1)
        logits = jnp.log(WEIGHTS) - jnp.log(variance) - square / (2 * variance)
        return jax.nn.logsumexp(logits)

    with jax.enable_x64(True):
        xt, t = map(jnp.asarray, noisy())
        wanted = jax.vmap(jax.grad(log_density))(xt, t)
        found = score_from_f(posterior_mean(mixture(), xt, t), xt, t)
        assert np.abs(found - wanted).max() < 1e-12


def test_slopes_of_the_posterior_mean_are_its_moments():
    """T2: df/dx = (alpha/h) Cov; df/dt by Cov and Cov(X, |X|^2); against autodiff."""
    points = np.random.default_rng(0).normal(size=(9, 3))
    xt, t = noisy(6, 3)
    with jax.enable_x64(True):
        data = EmpiricalDenoiser(jnp.asarray(points))

        def f(x, t):
            return posterior_mean(data, x[None], t[None])[0]

        by_x = np.asarray(jax.jit(jax.vmap(jax.jacfwd(f, 0)))(xt, t))
        by_t = np.asarray(jax.jit(jax.vmap(jax.jacfwd(f, 1)))(xt, t))
        covariance = np.asarray(posterior_covariance(data, xt, t))
    alpha, h = np.exp(-t / 2)[:, None], -np.expm1(-t)[:, None]
    distance = np.sum((xt[:, None] - alpha[..., None] * points) ** 2, axis=2)
    p = softmax(-distance / (2 * h), axis=1)
    mean, size = p @ points, np.sum(points**2, axis=1)
    second = np.einsum("qi,ij,ik->qjk", p, points, points)
    wanted = second - np.einsum("qj,qk->qjk", mean, mean)
    with_size = (p * size) @ points - mean * (p @ size)[:, None]
    slope = -alpha * (1 + alpha**2) / (2 * h**2) * np.einsum("qjk,qk->qj", wanted, xt)
    slope += alpha**2 / (2 * h**2) * with_size
    assert np.abs(covariance - wanted).max() < 1e-10
    assert np.abs(by_x - (alpha / h)[..., None] * wanted).max() < 1e-10
    assert np.abs(by_t - slope).max() < 1e-10 * np.abs(slope).max()


def test_posterior_moments_of_a_mixture_are_those_of_bayes_rule():
    xt, t = noisy(20)
    with jax.enable_x64(True):
        f = np.asarray(posterior_mean(mixture(), xt, t))
        covariance = np.asarray(posterior_covariance(mixture(), xt, t))
    alpha, h = np.exp(-t / 2)[:, None], -np.expm1(-t)[:, None]
    v = alpha**2 * STD**2 + h
    gap = xt[:, None] - alpha[..., None] * means()
    logits = np.log(WEIGHTS) - np.log(v) - np.sum(gap**2, axis=2) / (2 * v)
    p = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    each = means() + (alpha * STD**2 / v)[..., None] * gap
    mean = np.einsum("qk,qkd->qd", p, each)
    within = np.sum(p * STD**2 * h / v, axis=1)[:, None, None] * np.eye(2)
    between = np.einsum("qk,qkd,qke->qde", p, each, each)
    between -= np.einsum("qd,qe->qde", mean, mean)
    np.testing.assert_allclose(f, mean, atol=1e-13)
    np.testing.assert_allclose(covariance, within + between, atol=1e-13)


def test_weighted_denoising_loss_is_the_regression_loss():
    """T3: lambda |s - (alpha x0 - x)/h|^2 with lambda = h^2/alpha^2 is |f - x0|^2."""
    with jax.enable_x64(True):
        x0 = mixture().sample(KEY, 50)
        xt, t, y, _ = dsm_triples(KEY, x0, 50, T_RANGE)
        f = jnp.sin(3 * xt) + t[:, None]
        s = np.asarray(score_from_f(f, xt, t, 1.2))
        projected = np.asarray(project_ball(f, 1.2))
        xt, t, y = (np.asarray(v) for v in (xt, t, y))
    alpha, h = np.exp(-t / 2), -np.expm1(-t)
    target = (alpha[:, None] * y - xt) / h[:, None]
    loss = np.mean(h**2 / alpha**2 * np.sum((s - target) ** 2, axis=1))
    regression = np.mean(np.sum((projected - y) ** 2, axis=1))
    assert abs(loss - regression) < 1e-12


@pytest.mark.parametrize("delta", [0.3, 1e-1, 1e-2])
def test_truncation_radius_is_passed_with_small_probability(delta):
    """T16, and the tail of the loss within its bound.

    In 50 dimensions most of the radius is sqrt(d): without it every input is beyond.
    """
    directions = np.random.default_rng(0).normal(size=(5000, 50))
    x0 = 1.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    triples = dsm_triples(KEY, jnp.asarray(x0, jnp.float32), 5000, (0.01, 4.0))
    kept = np.asarray(keep_mask(triples.xt, truncation_radius(1.5, 50, delta)))
    wrong = np.asarray(project_ball(-3 * triples.xt, 1.5))
    square = np.sum((wrong - np.asarray(triples.y)) ** 2, axis=1)
    assert np.mean(~kept) <= delta
    assert np.mean(~kept * square) <= tail_loss_bound(1.5, delta)
    near = np.asarray(
        keep_mask(triples.xt, truncation_radius(1.5, 50, delta) - 50**0.5)
    )
    assert np.mean(~near) > delta


def test_bayes_floor_is_the_loss_of_the_posterior_mean():
    triples = dsm_triples(KEY, mixture().sample(KEY, 4000), 4000, T_RANGE)
    floor = bayes_floor(mixture(), triples.xt, triples.t)
    f = posterior_mean(mixture(), triples.xt, triples.t)
    losses = np.sum(np.square(np.asarray(f) - np.asarray(triples.y)), axis=1)
    error = np.hypot(losses.std() / np.sqrt(4000), floor.standard_error)
    assert abs(floor.value - losses.mean()) < 4 * error
    assert error < 0.05 * floor.value


def test_bayes_floor_of_a_gaussian_is_its_posterior_variance():
    xt, t = noisy(30, dtype=np.float32)
    v, alpha2, h = 0.6, np.exp(-t), -np.expm1(-t)
    floor = bayes_floor(isotropic_gaussian(jnp.zeros(2), v), xt, t)
    assert floor.value == pytest.approx(np.mean(2 * v * h / (alpha2 * v + h)), rel=1e-5)


def test_triples_are_a_sample_of_the_process():
    n = 20_000
    triples = dsm_triples(KEY, mixture().sample(KEY, n), n, T_RANGE)
    xt, t, y, group = map(np.asarray, triples)
    alpha, h = np.exp(-t / 2), -np.expm1(-t)
    noise = (xt - alpha[:, None] * y) / np.sqrt(h)[:, None]
    assert np.abs(noise.mean(axis=0)).max() < 4 / np.sqrt(n)
    assert np.abs(noise.var(axis=0) - 1).max() < 4 * np.sqrt(2 / n)
    assert abs(np.corrcoef(noise[:, 0], t)[0, 1]) < 4 / np.sqrt(n)
    assert T_RANGE[0] <= t.min() and t.max() <= T_RANGE[1]
    assert abs(t.mean() - np.mean(T_RANGE)) < 4 * np.ptp(T_RANGE) / np.sqrt(12 * n)
    assert sorted(group.tolist()) == list(range(n))


def test_draws_share_a_clean_sample_and_nothing_else():
    x0 = mixture().sample(KEY, 10)
    xt, t, y, group = map(np.asarray, dsm_triples(KEY, x0, 40, T_RANGE, draws=4))
    assert group.dtype == np.int32
    assert (np.bincount(group) == 4).all()
    np.testing.assert_array_equal(y, np.asarray(x0)[group])
    assert len(np.unique(t)) == 40 and len(np.unique(xt[:, 0])) == 40


def test_a_smaller_sample_is_the_beginning_of_a_larger_and_keys_tell_them_apart():
    x0 = mixture().sample(KEY, 30)
    small = dsm_triples(KEY, x0, 8, T_RANGE, draws=2)
    large = dsm_triples(KEY, x0, 20, T_RANGE, draws=2)
    for a, b in zip(small, large, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b)[:8])
    other = dsm_triples(jax.random.key(12), x0, 8, T_RANGE, draws=2)
    assert np.abs(np.asarray(other.xt) - np.asarray(small.xt)).min() > 0


@pytest.mark.parametrize("times", ["uniform", "log_uniform", "importance"])
def test_time_weights_undo_the_law_of_times(times):
    """The weighted mean of t^2 under every law is that under uniform times."""
    x0 = jnp.zeros((20_000, 1))
    t = dsm_triples(KEY, x0, 20_000, (0.2, 2.0), times=times, beta=1.7).t
    terms = np.asarray(time_weights(t, (0.2, 2.0), times, beta=1.7) * t**2)
    wanted = (2.0**3 - 0.2**3) / 3 / 1.8
    error = terms.std() / np.sqrt(len(terms))
    assert abs(terms.mean() - wanted) < 4 * error
    assert error < 0.05 * wanted


def test_importance_times_make_the_regression_loss_the_score_loss():
    """Their weight times (alpha/h)^2 does not depend on t."""
    t = jnp.linspace(0.1, 2.0, 9)
    alpha, h = ou(t)
    product = time_weights(t, (0.1, 2.0), "importance") * (alpha / h) ** 2
    np.testing.assert_allclose(product, product[0], rtol=1e-5)


def test_house_frame_and_back():
    t = jnp.asarray([1e-4, 0.05, 0.7, 5.0])
    xt = jnp.ones((4, 2))
    x, sigma = to_ve(xt, *ou(t, beta=1.5))
    np.testing.assert_allclose(time_of_sigma(sigma, beta=1.5), t, rtol=1e-5)
    np.testing.assert_allclose(sigma, np.sqrt(np.expm1(1.5 * t)), rtol=1e-5)
    np.testing.assert_allclose(x / np.sqrt(1 + sigma[:, None] ** 2), xt, rtol=1e-6)


def test_the_house_score_is_alpha_times_that_of_the_process():
    with jax.enable_x64(True):
        xt, t = noisy()
        alpha, h = ou(t)
        x, sigma = to_ve(xt, alpha, h)
        there = score_from_f(posterior_mean(mixture(), xt, t), xt, t)
        here = score(mixture(), x, sigma)
    np.testing.assert_allclose(here, alpha[:, None] * there, atol=1e-12)


@pytest.mark.parametrize("source", ["f", "score", "noise", "velocity"])
@pytest.mark.parametrize("target", ["f", "score", "noise", "velocity"])
def test_four_words_for_one_prediction(source, target):
    """Against their definitions from x0 and the noise, which x_t is made of."""
    rng = np.random.default_rng(1)
    x0, noise = rng.normal(size=(2, 8, 3))
    t = rng.uniform(0.05, 2, 8)
    alpha, h = np.exp(-t / 2)[:, None], -np.expm1(-t)[:, None]
    xt = alpha * x0 + np.sqrt(h) * noise
    words = {
        "f": x0,
        "score": -noise / np.sqrt(h),
        "noise": noise,
        "velocity": alpha * noise - np.sqrt(h) * x0,
    }
    with jax.enable_x64(True):
        found = convert_prediction(words[source], xt, t, source=source, target=target)
    np.testing.assert_allclose(found, words[target], atol=1e-12)


def test_f_from_score_inverts_score_from_f():
    with jax.enable_x64(True):
        xt, t = noisy()
        f = np.tanh(xt)
        back = f_from_score(score_from_f(f, xt, t, beta=2.0), xt, t, beta=2.0)
    np.testing.assert_allclose(back, f, atol=1e-13)


def test_projection_is_the_nearest_point_of_the_ball_with_finite_slopes():
    f = np.array([[0.0, 0.0], [0.3, 0.4], [3.0, 4.0], [-0.6, 0.8]], np.float32)
    wanted = f * np.minimum(1, 1 / np.maximum(np.linalg.norm(f, axis=1), 1e-9))[:, None]
    np.testing.assert_allclose(project_ball(f, 1.0), wanted, rtol=1e-6)
    np.testing.assert_array_equal(project_ball(f, None), f)
    slopes = jax.vmap(jax.jacfwd(lambda v: project_ball(v, 1.0)))(jnp.asarray(f))
    np.testing.assert_array_equal(slopes[:2], np.stack([np.eye(2)] * 2))
    unit = np.array([0.6, 0.8])
    np.testing.assert_allclose(
        slopes[2], (np.eye(2) - np.outer(unit, unit)) / 5, atol=1e-6
    )


def test_errors_under_three_weightings():
    xt, t = noisy(200)
    f, f_star = np.sin(xt), np.zeros_like(xt)
    with jax.enable_x64(True):
        found = weighted_errors(f, f_star, t)
        scores = [score_from_f(v, xt, t) for v in (f, f_star)]
        noises = [
            convert_prediction(v, xt, t, source="f", target="noise")
            for v in (f, f_star)
        ]
    for error, (a, b) in zip(found, [(f, f_star), scores, noises], strict=True):
        wanted = np.sqrt(np.mean(np.sum(np.square(a - b), axis=1)))
        assert error == pytest.approx(wanted, rel=1e-12)


def test_lift_adds_the_time_and_a_constant():
    x, t = jnp.asarray([[2.0, 4.0]]), jnp.asarray([0.3])
    np.testing.assert_allclose(lift(x, t, 0.1), [[2, 4, 0.2, 1]], rtol=1e-6)
    scaled = lift(x, t, 0.1, bias=3, scale=(1.0, 2.0), clock="log")
    np.testing.assert_allclose(scaled, [[2, 2, np.log(3), 3]], rtol=1e-6)
    with pytest.warns(InputWarning, match="linear along rays"):
        assert lift(x, t, 0.1, bias=0).shape == (1, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ou(0.1, beta=0.0), "beta"),
        (lambda: dsm_triples(KEY, jnp.zeros((4, 2)), 5, T_RANGE), "at most 4"),
        (lambda: dsm_triples(KEY, jnp.zeros((4, 2)), 3, T_RANGE, draws=2), "multiple"),
        (lambda: dsm_triples(KEY, jnp.zeros((4, 2)), 4, (0.0, 1.0)), "T0"),
        (lambda: dsm_triples(KEY, jnp.zeros((4, 2, 1)), 4, T_RANGE), "reshape"),
        (lambda: dsm_triples(KEY, jnp.full((4, 2), jnp.nan), 4, T_RANGE), "row 0"),
        (
            lambda: dsm_triples(KEY, jnp.zeros((4, 2)), 4, T_RANGE, times="unifrom"),
            "did you mean 'uniform'",
        ),
        (lambda: lift(jnp.zeros(3), 0.1, 0.1), "give"),
        (lambda: lift(jnp.zeros((3, 1)), 0.1, 0.1, bias=-1.0), "bias"),
        (lambda: truncation_radius(1.0, 2, 1.5), "delta"),
        (
            lambda: weighted_errors(jnp.zeros((3, 2)), jnp.zeros((2, 2)), 0.1),
            "f_star",
        ),
        (
            lambda: convert_prediction(
                jnp.ones((1, 1)), jnp.ones((1, 1)), 0.1, source="f", target="eps"
            ),
            "unknown prediction",
        ),
    ],
)
def test_bad_input_gets_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
