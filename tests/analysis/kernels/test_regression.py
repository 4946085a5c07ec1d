"""Kernel regression against brute force in NumPy float64."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.kernels.checks import check_data, check_exact_size
from analysis.kernels.conjugate_gradient import ridge_conjugate_gradient
from analysis.kernels.filters import (
    Descent,
    IteratedRidge,
    flow,
    gd,
    iterated_ridge,
    ridge,
)
from analysis.kernels.regression import (
    bias_variance,
    decompose,
    dof,
    fit,
    predict,
    residuals,
    rkhs_norm,
    train_residual,
)
from analysis.kernels.varying_noise import (
    estimate_time_noise,
    isotonic,
    weight_problem,
)
from configs.errors import InputError, InputWarning

N, Q, OUTPUTS = 12, 5, 2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kernel(a, b):
    """First-layer ReLU tangent kernel, by its formula."""
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    theta = np.arccos(np.clip(a @ b.T / lengths, -1, 1))
    return a @ b.T * (np.pi - theta) / (2 * np.pi)


def problem(seed=0, n=N):
    rng = np.random.default_rng(seed)
    z, x = rng.normal(size=(n, 3)), rng.normal(size=(Q, 3))
    y, u0 = rng.normal(size=(2, n, OUTPUTS))
    return kernel(z, z), kernel(x, z), y, u0, rng.normal(size=(Q, OUTPUTS))


def descent(K, y, eta, steps):
    """Coefficients after each number of steps, one step after the other."""
    gamma, path = np.zeros_like(y), []
    for _ in range(steps):
        gamma = gamma - eta / len(K) * (K @ gamma - y)
        path.append(gamma)
    return np.stack(path)


@pytest.mark.parametrize("rate", [0.9, 1.7])
def test_gradient_descent_filter_equals_every_step_of_descent(rate):
    K, Kxt, y, u0, f0 = problem()
    # Beyond rate 1 the largest eigenvalues alternate in sign.
    eta = rate / (np.linalg.eigvalsh(K)[-1] / N)
    path = descent(K, y - u0, eta, 500)
    taus = np.arange(1, 501)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        model = fit(decompose(K), y, u0)
        found = predict(model, Kxt, taus, f0=f0, filter=Descent(eta))
        left = residuals(model, taus, filter=Descent(eta))
        squared = train_residual(model, taus, filter=Descent(eta))
        norm = rkhs_norm(model, taus, filter=Descent(eta))
    np.testing.assert_allclose(found, f0 + Kxt @ path, atol=1e-10)
    expected = y - u0 - K @ path
    np.testing.assert_allclose(left, expected, atol=1e-10)
    np.testing.assert_allclose(squared, (expected**2).sum((1, 2)) / N, atol=1e-10)
    rkhs = np.sqrt(np.einsum("tid,ij,tjd->t", path, K, path))
    np.testing.assert_allclose(norm, rkhs, atol=1e-10)


def test_power_has_the_sign_of_repeated_products_between_one_and_two():
    rates = np.array([0.0, 1e-9, 0.5, 1.0, 1.3, 1.99])
    with pytest.warns(InputWarning, match="oscillates"):
        for tau in (0, 1, 2, 7, 100, 10**9 + 1):
            power = np.prod(np.repeat((1 - rates)[None], min(tau, 100), axis=0), axis=0)
            if tau > 100:
                # 1e-9 for a billion steps: exp(-1 - 1e-9); the others have decayed.
                power = np.array([1, np.exp(-(1 + 1e-9)), 0, 0, 0, 0])
            np.testing.assert_allclose(gd(rates, 1.0, tau), 1 - power, atol=1e-12)


def test_flow_is_the_limit_of_small_steps():
    K, Kxt, y, *_ = problem(1)
    model = fit(decompose(K), y)
    limit = predict(model, Kxt, 40.0)
    gaps = [
        np.abs(predict(model, Kxt, steps, filter=Descent(40.0 / steps)) - limit).max()
        for steps in (10**3, 10**4, 10**5)
    ]
    assert gaps[2] < 1e-4
    # Of first order in the step.
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.05)


def test_endless_training_interpolates():
    K, Kxt, y, u0, f0 = problem(2)
    model = fit(decompose(K), y, u0)
    exact = f0 + Kxt @ np.linalg.solve(K, y - u0)
    for found in (
        predict(model, Kxt, np.inf, f0=f0),
        predict(model, Kxt, 10**9, f0=f0, filter=Descent(1.0)),
        predict(model, Kxt, 1e-14, f0=f0, filter=ridge),
    ):
        np.testing.assert_allclose(found, exact, atol=1e-8)
    assert float(dof(model, np.inf)) == pytest.approx(N)
    np.testing.assert_allclose(residuals(model, np.inf), 0, atol=1e-12)


def test_prediction_at_the_training_points_is_the_training_path():
    K, _, y, u0, _ = problem(3)
    model, times = fit(decompose(K), y, u0), np.array([0.0, 0.3, 7.0, 1e4])
    found = predict(model, K, times, f0=u0)
    np.testing.assert_allclose(found, y - residuals(model, times), atol=1e-12)
    np.testing.assert_allclose(found[0], u0, atol=1e-14)
    # A single time, and labels without an axis.
    np.testing.assert_allclose(predict(model, K, 7.0, f0=u0), found[2], atol=1e-14)
    flat = fit(decompose(K), y[:, 0], u0[:, 0])
    np.testing.assert_allclose(
        predict(flat, K, 7.0, f0=u0[:, 0]), found[2, :, :1], atol=1e-13
    )


def test_ridge_and_iterated_ridge_equal_linear_solves():
    K, Kxt, y, *_ = problem(4)
    lam = 0.03
    inverse = np.linalg.inv(K + N * lam * np.eye(N))
    once = inverse @ y
    twice = once + inverse @ (y - K @ once)
    model = fit(decompose(K), y)
    found = predict(model, Kxt, [lam, 1.0], filter=ridge)
    np.testing.assert_allclose(found[0], Kxt @ once, atol=1e-12)
    found = predict(model, Kxt, lam, filter=IteratedRidge(2))
    np.testing.assert_allclose(found, Kxt @ twice, atol=1e-12)
    assert float(iterated_ridge(0.3, 0.1, 3)) == pytest.approx(1 - 0.25**3)
    smoother = K @ inverse
    assert float(dof(model, lam, filter=ridge)) == pytest.approx(np.trace(smoother))


def test_filters_keep_their_digits_where_they_are_small():
    for fitted in (flow(1e-30, 2.0), gd(1e-30, 0.5, 4), ridge(1e-30, 0.5)):
        assert float(fitted) == pytest.approx(2e-30, rel=1e-14)


def test_times_beyond_one_batch_give_the_same_as_one_by_one():
    K, Kxt, y, *_ = problem(5)
    model, times = fit(decompose(K), y), np.logspace(-1, 4, 70)
    together = predict(model, Kxt, times)
    assert together.shape == (70, Q, OUTPUTS)
    alone = [predict(model, Kxt, s) for s in times[[0, 33, 69]]]
    np.testing.assert_allclose(together[jnp.array([0, 33, 69])], alone, atol=1e-13)


def test_bias_and_variance_are_those_of_the_smoother():
    K, _, f, *_ = problem(6)
    rng = np.random.default_rng(7)
    noise = rng.uniform(0.1, 2, size=N)
    mu, vectors = np.linalg.eigh(K / N)
    times = np.array([0.5, 20.0])
    spectrum = decompose(K)
    same = bias_variance(spectrum, f, 0.7, times)
    differing = bias_variance(spectrum, f, noise, times)
    for i, s in enumerate(times):
        smoother = vectors @ np.diag(1 - np.exp(-s * mu)) @ vectors.T
        bias = np.mean((smoother @ f - f) ** 2)
        assert float(same.bias[i]) == pytest.approx(bias, rel=1e-10)
        variance = 0.7 * np.trace(smoother @ smoother.T) / N
        assert float(same.variance[i]) == pytest.approx(variance, rel=1e-10)
        variance = np.trace(smoother @ np.diag(noise) @ smoother.T) / N
        assert float(differing.variance[i]) == pytest.approx(variance, rel=1e-10)


def test_the_norm_of_the_flow_is_bounded_by_the_root_of_the_time():
    K, _, y, *_ = problem(8)
    times = np.logspace(-2, 6, 50)
    squared = np.asarray(rkhs_norm(fit(decompose(K), y), times)) ** 2
    # max (1 - e^-x)^2 / x = .4073 at x = 1.2564.
    assert (squared <= 0.4074 * times * (y**2).sum() / N).all()
    assert (np.diff(squared) >= 0).all()


def test_order_of_the_data_does_not_matter():
    K, Kxt, y, u0, f0 = problem(9)
    order = np.random.default_rng(1).permutation(N)
    times = [1.0, 100.0]
    model = fit(decompose(K), y, u0)
    shuffled = fit(decompose(K[np.ix_(order, order)]), y[order], u0[order])
    np.testing.assert_allclose(
        predict(shuffled, Kxt[:, order], times, f0=f0),
        predict(model, Kxt, times, f0=f0),
        atol=1e-11,
    )
    np.testing.assert_allclose(
        residuals(shuffled, times), residuals(model, times)[:, order], atol=1e-11
    )


def test_numpy_and_jax_matrices_have_the_same_spectrum():
    K, Kxt, y, *_ = problem(10)
    ours, theirs = decompose(K), decompose(jnp.asarray(K))
    assert isinstance(ours.evecs, np.ndarray) and isinstance(theirs.evecs, jax.Array)
    np.testing.assert_allclose(ours.evals, theirs.evals, atol=1e-14)
    assert (np.diff(ours.evals) <= 0).all()
    rotated = ours.evecs @ np.diag(ours.evals * N) @ ours.evecs.T
    np.testing.assert_allclose(rotated, K, atol=1e-13)
    traced = jax.jit(lambda K: predict(fit(decompose(K), y), Kxt, 3.0))(jnp.asarray(K))
    np.testing.assert_allclose(traced, predict(fit(ours, y), Kxt, 3.0), atol=1e-12)


def test_single_precision_is_used_where_it_is_set():
    K, Kxt, y, *_ = problem(19)
    exact = predict(fit(decompose(K), y), Kxt, 50.0)
    with jax.enable_x64(False):
        for matrix in (K, jnp.asarray(K)):
            found = predict(fit(decompose(matrix), y), Kxt, 50.0)
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, exact, atol=1e-4)


def test_repeated_inputs_are_fitted_by_the_mean_of_their_labels():
    rng = np.random.default_rng(11)
    z, y = rng.normal(size=(N, 3)), rng.normal(size=(N, 1))
    z[1] = z[0]
    with pytest.warns(InputWarning, match="1 of 12 inputs repeat an earlier one"):
        check_data(z, y)
    K = kernel(z, z)
    fitted = predict(fit(decompose(K), y), K, np.inf)
    np.testing.assert_allclose(fitted[:2], y[:2].mean(), atol=1e-6)
    y[1] = y[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_data(z, y)


def test_missing_eigenvalues_have_no_say_elsewhere():
    rng = np.random.default_rng(18)
    z, y = rng.normal(size=(N, 3)), rng.normal(size=(N, 1))
    z[3:6] = z[2]
    K, Kxt = kernel(z, z), kernel(rng.normal(size=(Q, 3)), z)
    exact = Kxt @ np.linalg.pinv(K, rcond=1e-12) @ y
    found = predict(fit(decompose(K), y), Kxt, np.inf)
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize("held", [True, False])
def test_conjugate_gradients_solve_the_ridge_equations(held):
    K, _, y, *_ = problem(12)
    y[3] = 0  # a label of nought must not spoil relative errors
    product = jax.tree_util.Partial(jnp.matmul, jnp.asarray(K))
    found = ridge_conjugate_gradient(K if held else product, y, 0.01)
    exact = np.linalg.solve(K + N * 0.01 * np.eye(N), y)
    np.testing.assert_allclose(found.alpha, exact, rtol=1e-8)
    assert 0 < int(found.num_steps) <= 2 * N
    assert float(found.residual) < 1e-10
    nought = ridge_conjugate_gradient(K, np.zeros(N), 0.01)
    np.testing.assert_array_equal(nought.alpha, 0)


def test_conjugate_gradients_say_when_steps_do_not_suffice():
    K, _, y, *_ = problem(13)
    with pytest.raises(InputError, match=r"in 2 steps, not 1\.0e-10; take more steps"):
        ridge_conjugate_gradient(K, y, 1e-8, max_steps=2)


def test_isotonic_regression_satisfies_the_conditions_of_the_optimum():
    rng = np.random.default_rng(14)
    values, weights = rng.normal(size=30), rng.uniform(0, 2, size=30)
    weights[[0, 7, 29]] = 0
    found = isotonic(values, weights)
    assert (np.diff(found) >= 0).all()
    # KKT: partial sums of weighted residuals are >= 0, and 0 where the fit rises.
    sums = np.cumsum(weights * (values - found))
    assert sums.min() > -1e-12 and abs(sums[-1]) < 1e-12
    rising = np.diff(found) > 0
    np.testing.assert_allclose(sums[:-1][rising], 0, atol=1e-12)


def test_noise_over_time_is_found_from_residuals():
    rng = np.random.default_rng(15)
    t = rng.uniform(0, 2, size=20_000)
    errors = np.sqrt(0.1 + t)[:, None] * rng.normal(size=(len(t), 3)) * 0.9**0.5
    found = estimate_time_noise(errors, t, df=0.1 * len(t), bins=10)
    assert (np.diff(found.variance) >= 0).all()
    middle = (found.edges[1:] + found.edges[:-1]) / 2
    np.testing.assert_allclose(found.variance, 0.1 + middle, rtol=0.06)
    np.testing.assert_allclose(found.per_point, 0.1 + t, atol=0.2)


def test_weighted_problem_is_descent_on_weighted_residuals():
    K, Kxt, y, *_ = problem(16)
    variance = np.random.default_rng(2).uniform(0.2, 3, size=N)
    weights = 1 / variance
    weights /= weights.mean()
    gamma = np.zeros_like(y)
    for _ in range(200):
        gamma = gamma - 0.5 / N * weights[:, None] * (K @ gamma - y)
    matrix, labels, roots = weight_problem(K, y, variance)
    model = fit(decompose(matrix), labels)
    found = predict(model, Kxt * roots, 200, filter=Descent(0.5))
    np.testing.assert_allclose(found, Kxt @ gamma, atol=1e-11)


def test_bad_input_is_refused_in_one_line():
    K, Kxt, y, *_ = problem(17)
    mu = decompose(K).evals
    broken, model = K.copy(), fit(decompose(K), y)
    broken[2, 3] = np.nan
    for call, words in (
        (lambda: gd(mu, 2.1 / mu[0], 3), r"diverges from 2 / mu_1 = .* take at most"),
        (
            lambda: predict(model, Kxt, 3, filter=Descent(2.1 / float(mu[0]))),
            "eta is .* diverges",
        ),
        (lambda: gd(mu, 0.1, 2.5), "tau contains 2.5"),
        (lambda: ridge(mu, 0.0), "lam is 0.0"),
        (lambda: Descent(-1.0), "eta is -1.0"),
        (lambda: decompose(broken), "1 of 12 rows of K are not finite, row 2"),
        (lambda: decompose(K[:3]), r"K has shape \(3, 12\)"),
        (lambda: decompose(-K), "has none below 0"),
        (lambda: fit(decompose(K), y[:3]), r"y has shape \(3, 2\)"),
        (lambda: fit(decompose(K), y * np.inf), "12 of 12 rows of y"),
        (lambda: predict(model, Kxt[:, :4], 1.0), r"Kxt has shape \(5, 4\)"),
        (lambda: check_data(K * np.nan, y), "12 of 12 rows of inputs"),
        (lambda: check_data(K, y[1:]), "labels"),
        (
            lambda: check_exact_size(50_000),
            r"at most 20000 points and 50000 were given \(it needs 74.5 GiB.*"
            r"Nystrom, which needs 0.9 GiB with 2048 landmarks",
        ),
        (lambda: ridge_conjugate_gradient(K, y, -1.0), "lam is -1.0"),
        (lambda: weight_problem(K, y, np.zeros(N)), "the lowest variance is 0.0"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
