"""Log-likelihoods against densities in closed form, and bits per dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from configs import InputError
from diffusion.closed_form import GaussianDenoiser, MixtureDenoiser
from samplers.likelihood import bits_per_dimension, dequantise, log_likelihood

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_an_image_has_its_likelihood_in_any_batch",
    "test_exact_divergence_gives_the_density_in_closed_form[mixture]",
    "test_float32_is_good_to_four_digits",
    "test_hutchinson_is_within_three_standard_errors[gaussian]",
    "test_images_keep_their_shape_and_jit_gives_the_same",
    "test_one_probe_has_no_standard_error_of_its_own",
    "test_without_a_gaussian_it_is_the_density_of_what_the_prior_start_makes",
)

D = 3
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
MEAN = np.array([0.3, -0.2, 0.1])
VARIANCES = np.array([1.2, 0.3, 0.05])
SHIFT = np.array([0.6, 0.4, -0.5])


def gaussian() -> GaussianDenoiser:
    return GaussianDenoiser(*(jnp.asarray(a) for a in (MEAN, ROTATION, VARIANCES)))


def mixture() -> MixtureDenoiser:
    """Two Gaussians of one covariance at MEAN +- SHIFT, as likely."""
    parts = (
        np.zeros(2),
        np.stack([MEAN + SHIFT, MEAN - SHIFT]),
        np.stack([ROTATION, ROTATION]),
        np.stack([VARIANCES, VARIANCES]),
        np.zeros(2),
    )
    return MixtureDenoiser(*(jnp.asarray(p) for p in parts))


def gaussian_of_mixture() -> GaussianDenoiser:
    covariance = ROTATION @ np.diag(VARIANCES) @ ROTATION.T + np.outer(SHIFT, SHIFT)
    variances, basis = np.linalg.eigh(covariance)
    return GaussianDenoiser(*(jnp.asarray(a) for a in (MEAN, basis, variances)))


def true_log_density(x, sigma: float, shifts) -> np.ndarray:
    covariance = ROTATION @ np.diag(VARIANCES + sigma**2) @ ROTATION.T
    each = [
        multivariate_normal(MEAN + shift, covariance).logpdf(np.asarray(x))
        for shift in shifts
    ]
    return logsumexp(each, axis=0) - np.log(len(shifts))


CASES = {
    "gaussian": (gaussian, gaussian, [np.zeros(D)]),
    "mixture": (mixture, gaussian_of_mixture, [SHIFT, -SHIFT]),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]


def test_exact_divergence_gives_the_density_in_closed_form(case):
    model, single, shifts = case
    with jax.enable_x64(True):
        x = model().sample(jax.random.key(0), 12, 0.002)
        found = log_likelihood(model(), x, gaussian=single(), divergence="exact")
    true = true_log_density(x, 0.002, shifts)
    np.testing.assert_allclose(found.log_density, true, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.standard_error, 0)


def test_hutchinson_is_within_three_standard_errors(case):
    model, single, shifts = case
    with jax.enable_x64(True):
        x = model().sample(jax.random.key(0), 12, 0.002)
        found = log_likelihood(
            model(), x, gaussian=single(), key=jax.random.key(1), num_probes=64
        )
    off = np.asarray(found.log_density) - true_log_density(x, 0.002, shifts)
    off /= np.asarray(found.standard_error)
    assert np.abs(off).max() < 3
    assert 0.4 < np.sqrt(np.mean(off**2)) < 1.6


def test_float32_is_good_to_four_digits():
    x = mixture().sample(jax.random.key(0), 12, 0.002)
    found = log_likelihood(
        mixture(), x, gaussian=gaussian_of_mixture(), divergence="exact"
    )
    true = true_log_density(x, 0.002, [SHIFT, -SHIFT])
    assert found.log_density.dtype == jnp.float32
    np.testing.assert_allclose(found.log_density, true, rtol=1e-3, atol=1e-3)


def test_above_sigma_skip_the_gaussian_answers_in_fewer_calls():
    with jax.enable_x64(True):
        x = gaussian().sample(jax.random.key(0), 4, 0.002)
        settings = dict(gaussian=gaussian(), divergence="exact")
        whole = log_likelihood(gaussian(), x, **settings)
        skipped = log_likelihood(gaussian(), x, sigma_skip=2.0, **settings)
        end = gaussian().flow(x, 0.002, 2.0)
    np.testing.assert_allclose(skipped.log_density, whole.log_density, rtol=1e-6)
    np.testing.assert_allclose(skipped.x_end, end, rtol=1e-5)
    assert skipped.nfe < whole.nfe


def test_without_a_gaussian_it_is_the_density_of_what_the_prior_start_makes():
    """The flow carries N(0, sigma_max^2 I) to a Gaussian, whose density is known."""
    sigma_min, sigma_max = 0.01, 3.0
    gains = np.sqrt((sigma_min**2 + VARIANCES) / (sigma_max**2 + VARIANCES))
    matrix = ROTATION @ np.diag(gains) @ ROTATION.T
    model = multivariate_normal(MEAN - matrix @ MEAN, sigma_max**2 * matrix @ matrix.T)
    with jax.enable_x64(True):
        x = gaussian().sample(jax.random.key(0), 6, sigma_min)
        found = log_likelihood(
            gaussian(), x, divergence="exact", sigma_min=sigma_min, sigma_max=sigma_max
        )
    np.testing.assert_allclose(found.log_density, model.logpdf(x), rtol=1e-6)


def test_an_image_has_its_likelihood_in_any_batch():
    x = mixture().sample(jax.random.key(0), 5, 0.01)
    settings = dict(key=jax.random.key(1), sigma_min=0.01, num_probes=2)
    whole = log_likelihood(mixture(), x, **settings)
    alone = log_likelihood(mixture(), x[3:4], first_index=3, **settings)
    np.testing.assert_allclose(
        alone.log_density[0], whole.log_density[3], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        alone.standard_error[0], whole.standard_error[3], rtol=1e-3
    )


def test_one_probe_has_no_standard_error_of_its_own():
    x = mixture().sample(jax.random.key(0), 2, 0.01)
    found = log_likelihood(mixture(), x, key=jax.random.key(1))
    assert bool(jnp.isnan(found.standard_error).all())
    assert bool(jnp.isfinite(found.log_density).all())


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_declared_nfe_equals_counted_nfe(divergence):
    calls = []

    def counted(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return gaussian()(x, sigma)

    found = log_likelihood(
        counted,
        jnp.ones((2, D)),
        key=jax.random.key(0),
        num_probes=3,
        sigma_min=0.5,
        sigma_max=5.0,
        divergence=divergence,
    )
    jax.block_until_ready(found.log_density)
    jax.effects_barrier()
    assert len(calls) == found.nfe > 7


def test_images_keep_their_shape_and_jit_gives_the_same():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 1)), jnp.float32)
    model = GaussianDenoiser(jnp.zeros((2, 3, 1)), jnp.eye(6), jnp.ones(6))

    def call(model, x):
        return log_likelihood(model, x, divergence="exact", sigma_min=0.1)

    found = call(model, x)
    assert found.x_end.shape == x.shape
    jitted = jax.jit(call)(model, x)
    np.testing.assert_allclose(jitted.log_density, found.log_density, rtol=1e-5)


def test_bits_of_uniform_pixels_are_eight():
    """Uniform density on [-1 - 1/255, 1 + 1/255]^D: 256 cells of width 1/127.5."""
    dimension = 12
    log_density = np.full(5, -dimension * np.log(256 / 127.5))
    bits = bits_per_dimension(log_density, dimension)
    assert float(bits.value) == pytest.approx(8, abs=1e-5)
    assert float(bits.standard_error) == pytest.approx(0, abs=1e-6)
    few = bits_per_dimension(
        np.full(5, -dimension * np.log(4 / 1.5)), dimension, levels=4
    )
    assert float(few.value) == pytest.approx(2, abs=1e-5)


def test_bits_have_the_standard_error_of_a_mean_over_images():
    log_density = np.random.default_rng(0).normal(-50, 9, 40)
    bits = bits_per_dimension(log_density, 10)
    each = -log_density / (10 * np.log(2)) + np.log2(127.5)
    assert float(bits.value) == pytest.approx(each.mean(), rel=1e-5)
    assert float(bits.standard_error) == pytest.approx(
        each.std(ddof=1) / np.sqrt(40), rel=1e-4
    )
    assert bool(jnp.isnan(bits_per_dimension(log_density[:1], 10).standard_error))


def test_dequantised_pixels_fill_their_cells_and_do_not_depend_on_the_batch():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    key = jax.random.key(0)
    x = np.asarray(dequantise(key, images), np.float64)
    off = (x + 1) * 127.5 - images
    assert np.abs(off).max() <= 0.5 + 1e-4
    assert off.std() == pytest.approx(np.sqrt(1 / 12), rel=0.05)
    np.testing.assert_array_equal(x[2:3], dequantise(key, images[2:3], first_index=2))


def _breaks(x, sigma):
    return jnp.where((sigma[:, None] > 1) & (x[:, :1] > 0), jnp.nan, 0.5 * x)


X = np.array([[-1.0, 0, 0], [1.0, 0, 0]], np.float32)
EXACT = dict(divergence="exact")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: log_likelihood(gaussian(), X), "needs a key"),
        (
            lambda: log_likelihood(gaussian(), X, key=jax.random.key(0), num_probes=0),
            "num_probes is 0",
        ),
        (
            lambda: log_likelihood(gaussian(), X, divergence="exakt"),
            "did you mean 'exact'",
        ),
        (lambda: log_likelihood(gaussian(), X, sigma_skip=5.0, **EXACT), "no Gaussian"),
        (
            lambda: log_likelihood(
                gaussian(), X, gaussian=gaussian(), sigma_skip=90.0, **EXACT
            ),
            "sigma_skip 90",
        ),
        (lambda: log_likelihood(gaussian(), X, sigma_min=0.0, **EXACT), "sigma_min"),
        (lambda: log_likelihood(gaussian(), X[:, :2], **EXACT), "shape"),
        (lambda: log_likelihood(gaussian(), X[0], **EXACT), "shape"),
        (
            lambda: log_likelihood(_breaks, X, **EXACT),
            r"sample 1 stopped at sigma = 1 .*NaN",
        ),
        (
            lambda: log_likelihood(gaussian(), X, max_steps=2, **EXACT),
            "raise max_steps",
        ),
        (lambda: bits_per_dimension(np.zeros((2, 2)), 4), r"give \(B,\)"),
        (lambda: bits_per_dimension(np.zeros(2), 0), "dimension is 0"),
        (lambda: dequantise(jax.random.key(0), X), "uint8"),
    ],
)
def test_bad_input_gets_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
