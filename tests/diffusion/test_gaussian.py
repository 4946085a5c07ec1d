"""The closed-form Gaussian against NumPy float64 references and a numerical ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion import score
from diffusion.closed_form import (
    GaussianDenoiser,
    fit_gaussian,
    isotropic_gaussian,
    load_gaussian,
    save_gaussian,
)
from samplers import Teleport, teleport

EVENT = (3, 2, 1)
DIMENSION = 6


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def parts(rank: int, residual: float):
    rng = np.random.default_rng(rank)
    basis = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0][:, :rank]
    variances = np.sort(rng.uniform(0.05, 2, rank))[::-1].copy()
    return rng.normal(size=EVENT), basis, variances, residual


def covariance(basis, variances, residual) -> np.ndarray:
    inside = basis @ basis.T
    return basis @ np.diag(variances) @ basis.T + residual * (
        np.eye(DIMENSION) - inside
    )


def gaussian(rank: int = 4, residual: float = 0.3) -> GaussianDenoiser:
    mean, basis, variances, v = parts(rank, residual)
    return GaussianDenoiser(*(jnp.asarray(a) for a in (mean, basis, variances, v)))


def samples(n: int = 5, scale: float = 3.0) -> np.ndarray:
    return scale * np.random.default_rng(1).normal(size=(n, *EVENT))


def reference_denoiser(x, sigma, mean, basis, variances, residual) -> np.ndarray:
    """mean + S (S + sigma^2 I)^-1 (x - mean), by a dense solve."""
    s = covariance(basis, variances, residual)
    gain = np.linalg.solve(s + sigma**2 * np.eye(DIMENSION), s).T
    z = (x - mean).reshape(len(x), -1)
    return mean + (z @ gain.T).reshape(x.shape)


CASES = [(6, 0.0), (4, 0.0), (4, 0.3), (1, 0.05), (0, 0.7)]


@pytest.mark.parametrize(("rank", "residual"), CASES)
@pytest.mark.parametrize("sigma", [1e-3, 0.4, 80.0])
def test_denoiser_is_the_wiener_filter(rank, residual, sigma):
    x = samples()
    expected = reference_denoiser(x, sigma, *parts(rank, residual))
    np.testing.assert_allclose(
        gaussian(rank, residual)(x, sigma), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("rank", "residual"), CASES)
def test_flow_equals_the_formula(rank, residual):
    mean, basis, variances, v = parts(rank, residual)
    x, a, b = samples(), 17.0, 0.13
    z = (x - mean).reshape(len(x), -1)
    c = z @ basis
    off = z - c @ basis.T
    along = c * np.sqrt((b**2 + variances) / (a**2 + variances))
    moved = along @ basis.T + off * np.sqrt((b**2 + v) / (a**2 + v))
    np.testing.assert_allclose(
        gaussian(rank, residual).flow(x, a, b),
        mean + moved.reshape(x.shape),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize(("rank", "residual"), [(6, 0.0), (4, 0.0), (4, 0.3)])
def test_flow_agrees_with_runge_kutta(rank, residual):
    # dx/dlog(sigma) = x - D(x, sigma) with D from the dense reference.
    mean, basis, variances, v = parts(rank, residual)
    s = covariance(basis, variances, v)
    values, vectors = np.linalg.eigh(s)
    values = np.maximum(values, 0)
    start, stop, steps = 40.0, 0.02, 4000
    h = np.log(stop / start) / steps

    def slope(z, sigma):
        c = z @ vectors
        return (c * (sigma**2 / (values + sigma**2))) @ vectors.T

    x = samples(scale=start)
    z, t = (x - mean).reshape(len(x), -1), np.log(start)
    for _ in range(steps):
        k1 = slope(z, np.exp(t))
        k2 = slope(z + h / 2 * k1, np.exp(t + h / 2))
        k3 = slope(z + h / 2 * k2, np.exp(t + h / 2))
        k4 = slope(z + h * k3, np.exp(t + h))
        z, t = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), t + h
    found = gaussian(rank, residual).flow(x, start, stop)
    np.testing.assert_allclose(found, mean + z.reshape(x.shape), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("rank", "residual"), CASES)
def test_flow_there_and_back_is_the_identity(rank, residual):
    x, g = samples(), gaussian(rank, residual)
    back = g.flow(g.flow(x, 80.0, 0.5), 0.5, 80.0)
    np.testing.assert_allclose(back, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rank", "residual"), CASES)
def test_score_is_the_gradient_of_the_log_density(rank, residual):
    x, g = jnp.asarray(samples()), gaussian(rank, residual)
    sigma = jnp.asarray([0.3, 0.5, 1.0, 4.0, 70.0])
    gradient = jax.grad(lambda y: g.log_density(y, sigma).sum())(x)
    np.testing.assert_allclose(score(g, x, sigma), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("rank", "residual"), CASES)
def test_log_density_equals_scipy(rank, residual):
    stats = pytest.importorskip("scipy.stats")
    mean, basis, variances, v = parts(rank, residual)
    total = covariance(basis, variances, v) + 0.6**2 * np.eye(DIMENSION)
    x = samples()
    expected = stats.multivariate_normal(mean.ravel(), total).logpdf(
        x.reshape(len(x), -1)
    )
    found = gaussian(rank, residual).log_density(x, 0.6)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_low_rank_with_equal_rest_equals_full():
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]
    mean, variances = rng.normal(size=EVENT), np.array([2.0, 1.0, *[0.2] * 4])
    full = GaussianDenoiser(*map(jnp.asarray, (mean, basis, variances)))
    low = GaussianDenoiser(*map(jnp.asarray, (mean, basis[:, :2], variances[:2], 0.2)))
    x = samples()
    for a, b in [
        (full(x, 0.7), low(x, 0.7)),
        (full.flow(x, 80.0, 0.7), low.flow(x, 80.0, 0.7)),
        (full.log_density(x, 0.7), low.log_density(x, 0.7)),
        (full.mean_variance(), low.mean_variance()),
    ]:
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_teleport_equals_the_formula_with_a_mean():
    mean, basis, variances, v = parts(4, 0.3)
    assert np.abs(mean).min() > 0.01
    noise, s, sigma_max = samples(scale=1.0), 8.4, 80.0
    z = (sigma_max * noise - mean).reshape(len(noise), -1)
    c = z @ basis
    moved = (c * np.sqrt((s**2 + variances) / (sigma_max**2 + variances))) @ basis.T
    moved += (z - c @ basis.T) * np.sqrt((s**2 + v) / (sigma_max**2 + v))
    expected = mean + moved.reshape(noise.shape)
    g = gaussian(4, 0.3)
    for found in (Teleport(g)(jnp.asarray(noise), s), teleport(noise, g, 80.0, s)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_sample_has_the_moments_of_the_noised_gaussian():
    mean, basis, variances, v = parts(4, 0.3)
    n, sigma = 40_000, 0.5
    x = np.asarray(gaussian(4, 0.3).sample(jax.random.key(0), n, sigma))
    rows = x.reshape(n, -1)
    expected = covariance(basis, variances, v) + sigma**2 * np.eye(DIMENSION)
    # Five standard errors of a variance estimate of at most 2.3.
    assert np.abs(np.cov(rows.T) - expected).max() < 5 * 2.3 * np.sqrt(2 / n)
    assert np.abs(rows.mean(0) - mean.ravel()).max() < 5 * np.sqrt(2.3 / n)


def test_samples_do_not_depend_on_how_many_are_drawn():
    g, key = gaussian(), jax.random.key(4)
    np.testing.assert_array_equal(g.sample(key, 3), g.sample(key, 7)[:3])


@pytest.mark.parametrize("rank", [None, 4])
def test_fit_recovers_the_biased_moments(rank):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(50, *EVENT)) @ np.eye(1) + rng.normal(size=EVENT)
    g = fit_gaussian(images, rank)
    rows = images.reshape(50, -1)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(rows.T, bias=True)))[::-1]
    np.testing.assert_allclose(g.mean, images.mean(0), rtol=1e-12)
    np.testing.assert_allclose(g.variances, eigenvalues[:rank], rtol=1e-9)
    rest = 0.0 if rank is None else eigenvalues[rank:].mean()
    np.testing.assert_allclose(g.residual_variance, rest, rtol=1e-9)
    full = fit_gaussian(images)
    found = (full.basis * full.variances) @ full.basis.T
    np.testing.assert_allclose(found, np.cov(rows.T, bias=True), atol=1e-12)


def test_fit_in_blocks_equals_fit_at_once(monkeypatch):
    import diffusion.closed_form.moments as module

    images = np.random.default_rng(0).normal(size=(50, *EVENT)) + 1e3
    whole = fit_gaussian(images)
    monkeypatch.setattr(module, "_FLOAT_BLOCK_ELEMENTS", 7 * DIMENSION)
    parts_of_it = fit_gaussian(images)
    np.testing.assert_allclose(parts_of_it.variances, whole.variances, rtol=1e-9)


def test_uint8_pixels_become_data_units():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 2, 2, 1), dtype=np.uint8)
    a, b = fit_gaussian(pixels), fit_gaussian(pixels / 127.5 - 1)
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-14)
    np.testing.assert_allclose(a.variances, b.variances, atol=1e-14)


def test_isotropic_knows_mean_and_variance_alone():
    mean = np.random.default_rng(0).normal(size=EVENT)
    x = samples()
    known = isotropic_gaussian(mean, 0.5)
    np.testing.assert_allclose(known(x, 2.0), mean + (x - mean) * 0.5 / 4.5)
    only_mean = isotropic_gaussian(mean, 0.0)
    np.testing.assert_allclose(only_mean(x, 2.0), np.broadcast_to(mean, x.shape))


def test_file_round_trip(tmp_path):
    g = gaussian()
    save_gaussian(tmp_path / "g.npz", g, num_images=3, data_digest="ab")
    loaded = load_gaussian(tmp_path / "g.npz")
    for name in ("mean", "basis", "variances", "residual_variance"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(g, name))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((0, 2, 2, 1)), "at least one"),
        (np.full((3, 2), np.nan), "NaN or infinite"),
        (np.array([[1.0, 2.0], [np.inf, 0.0]]), "image 1 holds NaN or infinite"),
        (np.zeros((3, 2), np.int32), "dtype int32"),
        (np.zeros(3), "shape"),
    ],
)
def test_bad_images_get_one_line(images, says):
    with pytest.raises(InputError, match=says) as caught:
        fit_gaussian(images)
    assert "\n" not in str(caught.value)


def test_bad_calls_get_one_line(tmp_path):
    g, x = gaussian(), jnp.asarray(samples())
    for call, says in [
        (lambda: g(x[:, :2], 1.0), "shape"),
        (lambda: g(x, 0.0), "> 0"),
        (lambda: g(x, -1.0), "> 0"),
        (lambda: g(x, jnp.nan), "finite"),
        (lambda: g(x, jnp.ones(3)), r"\(5,\)"),
        (lambda: g(x.astype(jnp.int32), 1.0), "dtype"),
        (lambda: fit_gaussian(samples(), rank=7), r"\[1, 6\]"),
        (lambda: Teleport(g)(x, 90.0), "above sigma_max"),
        (lambda: load_gaussian(tmp_path / "none.npz"), "no Gaussian"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a closed form"):
        load_gaussian(tmp_path / "g.npz")
