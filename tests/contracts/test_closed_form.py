"""What every closed-form denoiser promises beyond being one; add yours to `MODELS`.

Each model is compared with a dense float64 computation of the same distribution: a list
of Gaussians with weights, means and covariance matrices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

from diffusion import score
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    Provenance,
    fit_gaussian,
    isotropic_gaussian,
    load_closed_form,
    save_closed_form,
)

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "[empirical_bytes]",
    "[gaussian_no_residual]",
    "[mixture_full]",
    "[mixture_no_residual]",
    "test_a_mixture_of_one_is_the_gaussian",
    "test_samples_have_the_moments_of_the_distribution[mixture_isotropic]",
)

EVENT = (2, 3, 1)
D = 6
SIGMAS = (0.002, 0.02, 0.1, 0.5, 1.0, 5.0, 20.0, 80.0)


class Truth(NamedTuple):
    """A mixture with dense covariances, float64."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pieces(k: int, rank: int, residual: float):
    bases = np.linalg.qr(rng(1).normal(size=(k, D, D)))[0][:, :, :rank]
    variances = -np.sort(-rng(2).uniform(0.2, 2, (k, rank)))
    residuals = residual * rng(3).uniform(0.5, 1.5, k)
    weights = rng(4).dirichlet(np.ones(k))
    means = 0.7 * rng(5).normal(size=(k, D))
    return weights, means, bases, variances, residuals


def dense(weights, means, bases, variances, residuals) -> Truth:
    inside = np.einsum("kdr,ker->kde", bases, bases)
    covariances = np.einsum("kdr,kr,ker->kde", bases, variances, bases)
    covariances += residuals[:, None, None] * (np.eye(D) - inside)
    return Truth(weights, means, covariances)


def gaussian(rank: int, residual: float):
    weights, means, bases, variances, residuals = pieces(1, rank, residual)
    parts = means[0].reshape(EVENT), bases[0], variances[0], residuals[0]
    model = GaussianDenoiser(*(jnp.asarray(a) for a in parts))
    return model, dense(weights, means, bases, variances, residuals)


def isotropic(variance: float):
    mean = rng(5).normal(size=D)
    model = isotropic_gaussian(jnp.asarray(mean.reshape(EVENT)), variance)
    return model, Truth(np.ones(1), mean[None], variance * np.eye(D)[None])


def mixture(rank: int, residual: float, k: int = 4):
    weights, means, bases, variances, residuals = pieces(k, rank, residual)
    model = MixtureDenoiser(
        *(
            jnp.asarray(a)
            for a in (
                np.log(weights) + 3.0,  # need not be normalised
                means.reshape(k, *EVENT),
                bases,
                variances,
                residuals,
            )
        )
    )
    return model, dense(weights, means, bases, variances, residuals)


def empirical(as_bytes: bool):
    pixels = rng(6).integers(0, 256, (40, D)).astype(np.uint8)
    points = pixels / 127.5 - 1
    given = pixels if as_bytes else points
    truth = Truth(np.full(40, 1 / 40), points, np.zeros((40, D, D)))
    return EmpiricalDenoiser(jnp.asarray(given.reshape(-1, *EVENT))), truth


MODELS = {
    "gaussian_full": lambda: gaussian(6, 0.0),
    "gaussian_low_rank": lambda: gaussian(3, 0.3),
    "gaussian_no_residual": lambda: gaussian(3, 0.0),
    "isotropic": lambda: isotropic(0.4),
    "mean_only": lambda: isotropic(0.0),
    "mixture_isotropic": lambda: mixture(0, 0.3),
    "mixture_low_rank": lambda: mixture(2, 0.2),
    "mixture_no_residual": lambda: mixture(2, 0.0),
    "mixture_full": lambda: mixture(6, 0.1),
    "mixture_of_one": lambda: mixture(2, 0.2, k=1),
    "empirical": lambda: empirical(False),
    "empirical_bytes": lambda: empirical(True),
}


def truth_of(name: str) -> Truth:
    with jax.enable_x64(True):
        return MODELS[name]()[1]


def noised(truth: Truth, sigma: float, n: int = 6) -> np.ndarray:
    """Samples of the distribution with noise, (n, *EVENT) float64."""
    which = rng(7).choice(len(truth.weights), n, p=truth.weights)
    values, vectors = np.linalg.eigh(truth.covariances[which])
    white = rng(8).normal(size=(n, D))
    inside = np.einsum("nde,ne->nd", vectors, np.sqrt(np.maximum(values, 0)) * white)
    x = truth.means[which] + inside + sigma * rng(9).normal(size=(n, D))
    return x.reshape(n, *EVENT)


def reference(truth: Truth, x: np.ndarray, sigma: float):
    """Posterior mean (n, D), posterior covariance (n, D, D), log density (n,)."""
    z = x.reshape(len(x), 1, D) - truth.means
    total = truth.covariances + sigma**2 * np.eye(D)
    solved = np.linalg.solve(total[None], z[..., None])[..., 0]
    distance = (z * solved).sum(axis=2)
    logits = np.log(truth.weights) - 0.5 * (distance + np.linalg.slogdet(total)[1])
    p = softmax(logits, axis=1)
    means = truth.means + np.einsum("kde,nke->nkd", truth.covariances, solved)
    mean = np.einsum("nk,nkd->nd", p, means)
    within = truth.covariances - truth.covariances @ np.linalg.solve(
        total, truth.covariances
    )
    spread = means - mean[:, None]
    covariance = np.einsum("nk,kde->nde", p, within)
    covariance += np.einsum("nk,nkd,nke->nde", p, spread, spread)
    log_density = logsumexp(logits, axis=1) - D / 2 * np.log(2 * np.pi)
    return mean, covariance, log_density


def test_the_reference_itself_agrees_with_scipy():
    truth = truth_of("mixture_low_rank")
    x = noised(truth, 0.5)
    parts = [
        np.log(w) + multivariate_normal(m, c + 0.25 * np.eye(D)).logpdf(x.reshape(6, D))
        for w, m, c in zip(*truth, strict=True)
    ]
    expected = logsumexp(parts, axis=0)
    np.testing.assert_allclose(reference(truth, x, 0.5)[2], expected, rtol=1e-12)


@pytest.fixture(params=sorted(MODELS))
def name(request):
    return request.param


def test_float64_posterior_mean_and_density(name):
    with jax.enable_x64(True):
        model, truth = MODELS[name]()
        call = jax.jit(lambda m, x, s: (m(x, s), m.log_density(x, s)))
        for sigma in (0.05, 0.7, 30.0):
            x = noised(truth, sigma)
            mean, _, log_density = reference(truth, x, sigma)
            found, density = call(model, jnp.asarray(x), sigma)
            np.testing.assert_allclose(
                found.reshape(6, D), mean, rtol=1e-8, atol=1e-8, err_msg=str(sigma)
            )
            np.testing.assert_allclose(density, log_density, rtol=1e-8, atol=1e-8)


def test_tweedie_is_the_gradient_of_the_log_density(name):
    with jax.enable_x64(True):
        model, truth = MODELS[name]()
        gradient = jax.jit(jax.grad(lambda x, s: jnp.sum(model.log_density(x, s))))
        slope = jax.jit(lambda x, s: score(model, x, s))
        for sigma in (0.1, 0.7, 10.0):
            x = jnp.asarray(noised(truth, sigma))
            found = slope(x, sigma)
            np.testing.assert_allclose(found, gradient(x, sigma), rtol=1e-7, atol=1e-7)


def test_second_order_tweedie_is_the_posterior_covariance(name):
    with jax.enable_x64(True):
        model, truth = MODELS[name]()

        @jax.jit
        def jacobian(x, sigma):
            one = lambda flat: model(flat.reshape(1, *EVENT), sigma).ravel()  # noqa: E731
            return jax.jacobian(one)(x)

        for sigma in (0.3, 2.0):
            x = noised(truth, sigma, n=2)
            covariance = reference(truth, x, sigma)[1]
            for i in range(2):
                found = jacobian(jnp.asarray(x[i].ravel()), sigma) * sigma**2
                np.testing.assert_allclose(found, covariance[i], rtol=1e-7, atol=1e-8)


def test_float32_agrees_with_float64(name):
    with jax.enable_x64(True):
        model, truth = MODELS[name]()
    narrow = jax.tree.map(
        lambda a: np.asarray(a) if a.dtype == np.uint8 else np.asarray(a, np.float32),
        model,
    )
    wide_truth = truth
    call = jax.jit(lambda m, x, s: m(x, s))
    for sigma in SIGMAS:
        x = noised(wide_truth, sigma, n=16).astype(np.float32)
        expected = reference(wide_truth, x.astype(np.float64), sigma)[0]
        found = np.asarray(call(narrow, x, np.float32(sigma)), np.float64)
        error = np.linalg.norm(found.reshape(16, D) - expected)
        assert error < 1e-5 * np.linalg.norm(expected), f"sigma {sigma}: {error}"


def test_no_noise_projects_onto_the_support(name):
    with jax.enable_x64(True):
        model, truth = MODELS[name]()
        x = jnp.asarray(noised(truth, 0.0))  # on the support itself
        found = jax.jit(lambda m, x: m(x, 1e-7))(model, x)
        np.testing.assert_allclose(found, x, atol=1e-5)


def test_infinite_noise_leaves_the_mean(name):
    with jax.enable_x64(True):
        model, truth = MODELS[name]()
        x = 1e7 * rng().normal(size=(3, *EVENT))
        mean = (truth.weights @ truth.means).reshape(EVENT)
        found = jax.jit(lambda m, x: m(x, 1e7))(model, x)
        np.testing.assert_allclose(found, np.broadcast_to(mean, x.shape), atol=1e-5)


def test_sigma_for_all_equals_a_sigma_for_each_and_vmap(name):
    with jax.enable_x64(True):
        model, truth = MODELS[name]()
        x = jnp.asarray(noised(truth, 0.5))
        sigma = jnp.asarray([0.1, 0.5, 1.0, 3.0, 10.0, 80.0])
        call = jax.jit(lambda m, a, s: (m(a, s), m.log_density(a, s)))
        each = call(model, x, sigma)
        for i in range(6):
            alone = call(model, x[i : i + 1], sigma[i])
            for many, one in zip(each, alone, strict=True):
                np.testing.assert_allclose(many[i], one[0], rtol=1e-9, atol=1e-9)
        mapped = jax.jit(jax.vmap(lambda a, s: model(a[None], s)[0]))(x, sigma)
        np.testing.assert_allclose(mapped, each[0], rtol=1e-9, atol=1e-9)


def test_gradients_are_finite_in_float32(name):
    model, truth = MODELS[name]()

    @jax.jit
    @jax.value_and_grad
    def total(arguments):
        x, sigma = arguments
        return jnp.sum(model(x, sigma) ** 2) + jnp.sum(model.log_density(x, sigma))

    for sigma in (0.002, 1.0, 80.0):
        x = jnp.asarray(noised(truth, sigma), jnp.float32)
        _, gradients = total((x, jnp.float32(sigma)))
        assert all(np.isfinite(g).all() for g in gradients), sigma


def test_a_file_holds_it_bit_for_bit(name, tmp_path):
    model, _ = MODELS[name]()
    settings = {"kind": name, "rank": None}
    provenance = Provenance(40, "ab" * 32, settings=settings)
    save_closed_form(tmp_path / "m.npz", model, provenance)
    found = load_closed_form(tmp_path / "m.npz", event_shape=EVENT)
    assert type(found.denoiser) is type(model)
    for a, b in zip(
        jax.tree.leaves(found.denoiser), jax.tree.leaves(model), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert found.provenance._replace(versions={}) == provenance
    assert "jax" in found.provenance.versions


def test_samples_have_the_moments_of_the_distribution(name):
    model, truth = MODELS[name]()
    n, sigma = 20_000, 0.3
    x = np.asarray(jax.jit(lambda k: model.sample(k, n, sigma))(jax.random.key(0)))
    rows = x.reshape(n, D).astype(np.float64)
    mean = truth.weights @ truth.means
    spread = truth.means - mean
    total = np.einsum("k,kde->de", truth.weights, truth.covariances)
    total += np.einsum("k,kd,ke->de", truth.weights, spread, spread)
    total += sigma**2 * np.eye(D)
    error = np.sqrt(np.diag(total) / n)
    assert (np.abs(rows.mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(np.cov(rows.T), total, atol=0.12)
    few = model.sample(jax.random.key(0), 5, sigma)
    np.testing.assert_allclose(few, x[:5], rtol=1e-5, atol=1e-5)


def test_a_full_fit_is_a_low_rank_fit_of_all_directions():
    images = rng().normal(size=(30, *EVENT))
    with jax.enable_x64(True):
        full, low = fit_gaussian(images), fit_gaussian(images, rank=D)
        x = rng(1).normal(size=(4, *EVENT))
        np.testing.assert_allclose(full(x, 0.3), low(x, 0.3), rtol=1e-12)


def test_a_mixture_of_tiny_components_is_the_empirical_denoiser():
    with jax.enable_x64(True):
        points, truth = empirical(False)
        tiny = MixtureDenoiser(
            jnp.zeros(40),
            points.points,
            jnp.zeros((40, D, 0)),
            jnp.zeros((40, 0)),
            jnp.full(40, 1e-12),
        )
        for sigma in (0.05, 0.5, 5.0):
            x = jnp.asarray(noised(truth, sigma))
            call = jax.jit(lambda a, b, x, s: (a(x, s), b(x, s)))
            found, expected = call(tiny, points, x, sigma)
            np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_mixture_of_one_is_the_gaussian():
    with jax.enable_x64(True):
        one, truth = mixture(2, 0.2, k=1)
        alone = GaussianDenoiser(
            one.means[0], one.bases[0], one.variances[0], one.residual_variances[0]
        )
        x = jnp.asarray(noised(truth, 0.5))
        np.testing.assert_allclose(one(x, 0.5), alone(x, 0.5), rtol=1e-11)
        np.testing.assert_allclose(
            one.log_density(x, 0.5), alone.log_density(x, 0.5), rtol=1e-11
        )
