"""Streaming moments and principal components against NumPy in float64."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import (
    accumulate_moments,
    class_moments,
    covariance,
    fit_class_mixture,
    fit_gaussian_streaming,
    merge,
    principal_components,
)
from diffusion.data import Dataset

EVENT = (4, 3, 2)
D = 24


def pixels(n: int = 3000) -> np.ndarray:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) * 25 + 200
    return np.clip(mixed, 0, 255).astype(np.uint8).reshape(n, *EVENT)


def numpy_moments(images: np.ndarray):
    rows = images.reshape(len(images), -1).astype(np.float64)
    if images.dtype == np.uint8:
        rows = rows / 127.5 - 1
    mean = rows.mean(axis=0)
    return mean, (rows - mean).T @ (rows - mean)


def assert_equal_moments(moments, images, tolerance):
    mean, scatter = numpy_moments(images)
    assert moments.count == len(images)
    np.testing.assert_allclose(
        moments.mean.ravel(), mean, rtol=tolerance, atol=tolerance
    )
    largest = np.abs(scatter).max()
    np.testing.assert_allclose(moments.scatter, scatter, atol=tolerance * largest)


@pytest.mark.parametrize("size", [1, 700, 1024, 3000])
def test_bytes_are_summed_exactly_whatever_the_batches(size):
    images = pixels()
    if size == 1:
        images = images[:50]
    parts = (images[i : i + size] for i in range(0, len(images), size))
    moments = accumulate_moments(parts)
    assert_equal_moments(moments, images, 1e-12)
    whole = accumulate_moments([images])
    np.testing.assert_array_equal(moments.scatter, whole.scatter)


def test_extreme_bytes_are_summed_exactly():
    images = np.zeros((5000, 2), np.uint8)
    images[::2] = 255
    assert_equal_moments(accumulate_moments([images]), images, 1e-14)


def test_floats_with_a_large_mean_do_not_cancel():
    rng = np.random.default_rng(1)
    images = (1e3 + 1e-2 * rng.normal(size=(4000, *EVENT))).astype(np.float32)
    moments = accumulate_moments(np.array_split(images, 7))
    assert_equal_moments(moments, images, 1e-9)


def test_four_shards_merge_to_one_pass():
    for images in (pixels(), np.random.default_rng(2).normal(5, 1, (999, *EVENT))):
        a, b, c, d = (accumulate_moments([s]) for s in np.array_split(images, 4))
        merged, whole = merge(merge(a, b), merge(c, d)), accumulate_moments([images])
        assert merged.count == whole.count
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-13)
        largest = np.abs(whole.scatter).max()
        np.testing.assert_allclose(merged.scatter, whole.scatter, atol=1e-12 * largest)


def test_biased_and_unbiased_covariance():
    images = pixels(40)
    moments = accumulate_moments([images])
    rows = images.reshape(40, -1) / 127.5 - 1
    np.testing.assert_allclose(
        covariance(moments), np.cov(rows.T, bias=True), atol=1e-12
    )
    np.testing.assert_allclose(
        covariance(moments, unbiased=True), np.cov(rows.T), atol=1e-12
    )
    with pytest.raises(InputError, match="at least 2 images"):
        covariance(accumulate_moments([images[:1]]), unbiased=True)


def test_principal_components_equal_a_dense_eigendecomposition():
    with jax.enable_x64(True):
        moments = accumulate_moments([pixels()])
        found = principal_components(moments, rank=5, unbiased=True)
        values = np.linalg.eigvalsh(covariance(moments, unbiased=True))[::-1]
        np.testing.assert_allclose(found.variances, values[:5], rtol=1e-10)
        np.testing.assert_allclose(found.residual_variance, values[5:].mean())
        error = covariance(moments, unbiased=True) @ found.basis
        np.testing.assert_allclose(error, found.basis * found.variances, atol=1e-10)


def test_class_moments_and_class_mixture_equal_brute_force():
    images = pixels(600)
    labels = np.random.default_rng(3).integers(0, 3, 600) * 2
    parts = [Dataset(images[i::4], labels[i::4]) for i in range(4)]
    found = class_moments(parts)
    mixture = fit_class_mixture(images, labels, rank=D)
    assert sorted(found) == [0, 2, 4]
    for k, label in enumerate((0, 2, 4)):
        chosen = images[labels == label]
        assert_equal_moments(found[label], chosen, 1e-12)
        mean, scatter = numpy_moments(chosen)
        weight = np.exp(mixture.log_weights[k])
        np.testing.assert_allclose(weight, len(chosen) / 600, rtol=1e-5)
        np.testing.assert_allclose(mixture.means[k].ravel(), mean, atol=1e-5)
        dense = (mixture.bases[k] * mixture.variances[k]) @ mixture.bases[k].T
        np.testing.assert_allclose(dense, scatter / len(chosen), atol=1e-4)


NAN = np.zeros((5, 2, 2))
NAN[3, 0, 1] = np.nan


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: accumulate_moments([]), "no images"),
        (lambda: accumulate_moments([NAN[:0]]), "at least one"),
        (lambda: accumulate_moments([NAN[:2], NAN[2:]]), "image 3 holds NaN"),
        (lambda: accumulate_moments([NAN[:2], pixels(2)]), "all must be alike"),
        (lambda: accumulate_moments([np.zeros((2, 2), np.int32)]), "dtype int32"),
        (
            lambda: merge(
                accumulate_moments([NAN[:2]]), accumulate_moments([pixels(2)])
            ),
            "cannot be merged",
        ),
        (
            lambda: principal_components(accumulate_moments([pixels(9)]), 25),
            r"rank is 25; it must be in \[1, 24\]",
        ),
        (
            lambda: class_moments([Dataset(pixels(2), np.array([0, -1]))]),
            "a label >= 0 for each",
        ),
        (lambda: fit_gaussian_streaming(iter([pixels(9)]), 2), "only once"),
        (lambda: fit_gaussian_streaming([], 2), "no images"),
        (lambda: fit_gaussian_streaming([NAN], 2), "NaN"),
        (lambda: fit_gaussian_streaming([pixels(9)], 99), "rank is 99"),
    ],
)
def test_bad_input_is_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_streaming_components_capture_what_exact_ones_do():
    rng = np.random.default_rng(4)
    n, dimension, rank = 1500, 300, 20
    scales = np.arange(1, dimension + 1) ** -0.8
    images = (rng.normal(size=(n, dimension)) * scales) @ np.linalg.qr(
        rng.normal(size=(dimension, dimension))
    )[0]
    images = (images + 3).astype(np.float32)
    found = fit_gaussian_streaming(
        lambda: iter(np.array_split(images, 5)), rank, oversampling=20, num_passes=4
    )
    rows = images.astype(np.float64)
    dense = np.cov(rows.T, bias=True)
    exact = np.linalg.eigvalsh(dense)[::-1]
    basis = np.asarray(found.basis, np.float64)
    captured = np.trace(basis.T @ dense @ basis)
    assert captured >= 0.999 * exact[:rank].sum()
    np.testing.assert_allclose(found.variances[:10], exact[:10], rtol=1e-3)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-5)
    total = rank * np.mean(found.variances) + (dimension - rank) * np.mean(
        found.residual_variance
    )
    np.testing.assert_allclose(total, exact.sum(), rtol=1e-5)


def _generated(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents (B, 1728) and images (B, 64, 64, 3) of one batch.

    Images are combinations of orthonormal cosine waves, so their covariance has the
    eigenvalues of the latents' covariance.
    """
    size, waves = 64, 24
    k = np.arange(size)
    cosines = np.cos(np.pi * (k + 0.5) * np.arange(waves)[:, None] / size)
    cosines *= np.sqrt(2 / size)
    cosines[0] /= np.sqrt(2)
    fx, fy = np.meshgrid(np.arange(waves), np.arange(waves))
    amplitude = 20 / (1 + fx**2 + fy**2)[..., None] ** 0.75 * np.array([1, 0.3, 0.1])
    white = np.random.default_rng(index).normal(size=(1000, waves, waves, 3))
    latent = (white * amplitude + 0.3).astype(np.float32)
    half = np.tensordot(latent, cosines.astype(np.float32), axes=(1, 0))
    images = np.tensordot(half, cosines.astype(np.float32), axes=(1, 0))
    return latent.reshape(1000, -1), images.transpose(0, 2, 3, 1)


def large_streaming_fit() -> None:
    """Run in its own process: 70,000 images of 12,288 values, rank 256."""
    batches, rank = 70, 256
    total, outer = np.zeros(1728), np.zeros((1728, 1728))
    for index in range(batches):
        latent = _generated(index)[0].astype(np.float64)
        total, outer = total + latent.sum(0), outer + latent.T @ latent
    mean = total / (1000 * batches)
    truth = outer / (1000 * batches) - np.outer(mean, mean)
    exact = np.linalg.eigvalsh(truth)[::-1]
    found = fit_gaussian_streaming(
        lambda: (_generated(index)[1] for index in range(batches)), rank
    )
    np.testing.assert_allclose(found.variances[:64], exact[:64], rtol=1e-3)
    # The variance that the basis captures, measured on the data.
    basis, centre = np.asarray(found.basis), np.asarray(found.mean).ravel()
    captured = 0.0
    for index in range(batches):
        rows = _generated(index)[1].reshape(1000, -1) - centre
        captured += float(np.sum((rows @ basis).astype(np.float64) ** 2))
    assert captured / (1000 * batches) >= 0.999 * exact[:rank].sum()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < 3, f"{peak:.2f} GiB"


@pytest.mark.slow
def test_streaming_components_of_ffhq_size_within_3_gib():
    program = "from tests.diffusion.test_moments import large_streaming_fit as f; f()"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", program]
    # Compiled as users compile it: what makes tests compile faster needs more memory.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    result = subprocess.run(
        command, cwd=root, capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


def test_images_as_jax_arrays_are_images_too():
    images = jnp.asarray(pixels(20))
    assert_equal_moments(accumulate_moments([images]), np.asarray(images), 1e-12)
