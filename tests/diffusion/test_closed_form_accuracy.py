"""Float32 at image size: where naive forms of mixtures and data sets cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from configs import InputError
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    empirical,
    fit_gaussian,
)

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_chunks_do_not_change_the_result[1]",
    "test_chunks_do_not_change_the_result[4096]",
    "test_chunks_do_not_change_the_result[7]",
    "test_pairs_of_close_points_are_told_apart[0.002-False]",
    "test_pairs_of_close_points_are_told_apart[0.002-True]",
    "test_pairs_of_close_points_are_told_apart[0.02-False]",
    "test_pairs_of_close_points_are_told_apart[0.2-False]",
)

D = 3072


@jax.jit
def denoise(model, x, sigma):
    return model(x, sigma)


@pytest.mark.parametrize("as_one_chunk", [True, False])
@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.2])
def test_pairs_of_close_points_are_told_apart(sigma, as_one_chunk, monkeypatch):
    if not as_one_chunk:
        monkeypatch.setattr(empirical, "_CHUNK_ROWS", 37)
        jax.clear_caches()
    rng = np.random.default_rng(0)
    first = 0.5 * rng.normal(size=(100, D))
    apart = rng.normal(size=(100, D))
    apart *= 3 * sigma / np.linalg.norm(apart, axis=1, keepdims=True)
    points = np.concatenate([first, first + apart]).astype(np.float32)
    middle = (points[:40].astype(np.float64) + points[100:140]) / 2
    x = (middle + sigma * rng.normal(size=middle.shape)).astype(np.float32)
    wide = points.astype(np.float64)
    squared = np.stack([((row - wide) ** 2).sum(1) for row in x.astype(np.float64)])
    p = softmax(-squared / (2 * sigma**2), axis=1)
    assert 0.02 < np.median(p.min(axis=1, where=p > 1e-9, initial=1.0)) < 0.5
    found = np.asarray(denoise(EmpiricalDenoiser(jnp.asarray(points)), x, sigma))
    error = np.linalg.norm(found - p @ wide, axis=1)
    assert error.max() < 0.02 * sigma


def image_like_mixture() -> MixtureDenoiser:
    """K = 20, D = 3,072, rank 32: spectra and residuals like those of images."""
    rng = np.random.default_rng(1)
    k, rank = 20, 32
    spectrum = 220 * np.arange(1, rank + 1) ** -1.3
    variances = rng.uniform(0.7, 1.4, (k, 1)) * spectrum
    bases = np.linalg.qr(rng.normal(size=(k, D, rank)))[0]
    parts = (
        np.zeros(k),
        0.08 * rng.normal(size=(k, D)),
        bases,
        variances,
        rng.uniform(0.02, 0.08, k),
    )
    return MixtureDenoiser(*(jnp.asarray(a, jnp.float32) for a in parts))


def test_mixtures_of_images_keep_their_digits():
    model = image_like_mixture()
    names = ("means", "bases", "variances", "residual_variances")
    means, bases, lam, r = (np.asarray(getattr(model, n), np.float64) for n in names)
    rng = np.random.default_rng(2)
    clean = np.asarray(model.sample(jax.random.key(0), 12), np.float64)
    errors = []
    for sigma in (0.002, 0.02, 0.2, 1.0, 3.0, 5.0, 10.0, 20.0, 80.0):
        x = (clean + sigma * rng.normal(size=clean.shape)).astype(np.float32)
        logits, parts = [], []
        for k in range(len(lam)):
            z = x.astype(np.float64) - means[k]
            c = z @ bases[k]
            off = z - c @ bases[k].T
            v, t = lam[k] + sigma**2, r[k] + sigma**2
            distance = (off**2).sum(1) / t + (c**2 / v).sum(1)
            logits.append(distance + np.log(v).sum() + (D - 32) * np.log(t))
            parts.append(means[k] + off * (r[k] / t) + (c * lam[k] / v) @ bases[k].T)
        p = softmax(-0.5 * np.asarray(logits), axis=0)
        expected = np.einsum("kb,kbd->bd", p, np.asarray(parts))
        error = np.linalg.norm(np.asarray(denoise(model, x, sigma)) - expected, axis=1)
        errors.append(error / np.linalg.norm(expected, axis=1))
    assert np.median(errors) < 1e-5
    assert np.max(errors) < 1e-4


def scratch_bytes(model, event, batch=256) -> int:
    x = jax.ShapeDtypeStruct((batch, *event), jnp.float32)
    sigma = jax.ShapeDtypeStruct((), jnp.float32)
    compiled = denoise.lower(model, x, sigma).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_a_large_mixture_needs_less_than_2_gib_beyond_its_parameters():
    shapes = ((200,), (200, 32, 32, 3), (200, D, 256), (200, 256), (200,))
    model = MixtureDenoiser(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    assert scratch_bytes(model, (32, 32, 3)) < 2**31 / 4


def test_the_whole_training_set_needs_no_matrix_of_all_its_points():
    points = jax.ShapeDtypeStruct((50_000, 32, 32, 3), jnp.uint8)
    scratch = scratch_bytes(EmpiricalDenoiser(points), (32, 32, 3))
    # 256 x 50,000 logits alone would take 51 MB per copy, the points 614 MB.
    assert scratch < 60e6


@pytest.mark.parametrize("rows", [1, 7, 50, 4096])
def test_chunks_do_not_change_the_result(rows, monkeypatch):
    rng = np.random.default_rng(3)
    points = rng.integers(0, 256, (50, 3, 3, 1)).astype(np.uint8)
    x = rng.normal(size=(6, 3, 3, 1)).astype(np.float32)
    expected = EmpiricalDenoiser(jnp.asarray(points / 127.5 - 1, jnp.float32))(x, 0.7)
    monkeypatch.setattr(empirical, "_CHUNK_ROWS", rows)
    found = EmpiricalDenoiser(jnp.asarray(points))(x, 0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 60])
def test_nearest_equals_brute_force(k):
    rng = np.random.default_rng(4)
    points = rng.normal(size=(60, 40)).astype(np.float32)
    # Far from the origin and close together: products in float32 order them wrongly.
    points[50:] = 300 + 1e-3 * points[50:]
    points[7] = points[8]
    x = np.concatenate([points[:5] + 0.1, points[50:55]])
    found = EmpiricalDenoiser(jnp.asarray(points)).nearest(x, k)
    wide = points.astype(np.float64)
    distances = np.sqrt(((x[:, None].astype(np.float64) - wide) ** 2).sum(2))
    expected = np.sort(distances, axis=1)[:, :k]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-5, atol=1e-6)
    at_index = np.take_along_axis(distances, np.asarray(found.indices), axis=1)
    np.testing.assert_allclose(at_index, expected, rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == k for row in found.indices.tolist())


def skewed_clouds(count: int = 60):
    """Sets of 40 points in three dimensions with chi-square-like coordinates."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        cloud = rng.normal(size=(40, 3)) ** 2 @ rng.normal(size=(3, 3))
        yield cloud - cloud.mean(axis=0), rng


def test_the_third_cumulant_explains_what_the_gaussian_misses():
    """Median gains at sigma / R = 1, 2, 3, 5, 10: 3.8, 7, 10, 16, 37."""
    gains: dict[float, list[float]] = {r: [] for r in (1, 2, 3, 5, 10)}
    with jax.enable_x64(True):
        for cloud, rng in skewed_clouds():
            gaussian = fit_gaussian(cloud)
            corrected = gaussian.with_third_cumulant(cloud, rank=3)
            exact = EmpiricalDenoiser(jnp.asarray(cloud))
            radius = np.linalg.norm(cloud, axis=1).max()
            for ratio, found in gains.items():
                x = jnp.asarray(ratio * radius * rng.normal(size=(64, 3)))
                a, b, c = (
                    denoise(m, x, ratio * radius) for m in (exact, gaussian, corrected)
                )
                found.append(float(jnp.linalg.norm(b - a) / jnp.linalg.norm(c - a)))
    medians = [np.median(found) for found in gains.values()]
    assert (np.array(medians) > [2.5, 5, 7, 11, 25]).all(), medians


def test_the_correction_is_the_gradient_of_its_density_and_the_formula():
    rng = np.random.default_rng(5)
    images = rng.normal(size=(50, 4)) ** 2 @ rng.normal(size=(4, 4))
    with jax.enable_x64(True):
        gaussian = fit_gaussian(images)
        model = gaussian.with_third_cumulant(images, rank=4)
        sigma = 2 * float(model.lowest_sigma())
        x = jnp.asarray(images.mean(0) + sigma * rng.normal(size=(5, 4)))
        gradient = jax.grad(lambda y: model.log_density(y, sigma).sum())(x)
        found = (model(x, sigma) - x) / sigma**2
        np.testing.assert_allclose(found, gradient, rtol=1e-9, atol=1e-12)
        # 1/2 P K3[(P z)(P z)^T - P], densely.
        z = images - images.mean(0)
        p = np.linalg.inv(z.T @ z / 50 + sigma**2 * np.eye(4))
        k3 = np.einsum("ni,nj,nk->ijk", z, z, z) / 50
        q = (np.asarray(x) - images.mean(0)) @ p
        pair = np.einsum("bi,bj->bij", q, q) - p
        expected = 0.5 * np.einsum("kij,bij->bk", k3, pair) @ p
        plain = (gaussian(x, sigma) - x) / sigma**2
        np.testing.assert_allclose(found - plain, expected, rtol=1e-8, atol=1e-13)


def test_below_its_range_the_correction_is_left_out():
    images = np.random.default_rng(6).normal(size=(50, 4)) ** 2
    gaussian = fit_gaussian(images)
    model = gaussian.with_third_cumulant(images, rank=2)
    low = float(model.lowest_sigma())
    np.testing.assert_allclose(low, 1.5 * np.sqrt(gaussian.variances[0]), rtol=1e-6)
    x = jnp.ones((2, 4))
    levels = jnp.asarray([0.99 * low, 1.01 * low])
    same = np.asarray(model(x, levels) == gaussian(x, levels)).all(axis=1)
    assert same.tolist() == [True, False]
    for rank in (0, 5):
        with pytest.raises(InputError, match="needs one in"):
            gaussian.with_third_cumulant(images, rank=rank)
    with pytest.raises(InputError, match="fit both to the same"):
        gaussian.with_third_cumulant(images[:, :3])


def test_negative_variances_and_wrong_shapes_are_one_line():
    x = jnp.ones((2, 4))
    zero = jnp.zeros((4, 1)).at[0].set(1.0)
    bad = GaussianDenoiser(jnp.zeros(4), zero, jnp.asarray([-1.0]))
    mixed = MixtureDenoiser(
        jnp.zeros(1), jnp.zeros((1, 4)), zero[None], jnp.full((1, 1), -1.0), jnp.ones(1)
    )
    for model in (bad, mixed):
        with pytest.raises(InputError, match="variance is -1"):
            model(x, 1.0)
    wrong = MixtureDenoiser(
        jnp.zeros(2), jnp.zeros((1, 4)), zero[None], jnp.ones((1, 1)), jnp.ones(1)
    )
    with pytest.raises(InputError, match="log_weights"):
        wrong(x, 1.0)
    with pytest.raises(InputError, match="over events of shape"):
        EmpiricalDenoiser(jnp.zeros((3, 5)))(x, 1.0)
    with pytest.raises(InputError, match=r"k is 4; it must be in \[1, 3\]"):
        EmpiricalDenoiser(jnp.zeros((3, 4))).nearest(x, 4)
