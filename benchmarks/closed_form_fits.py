"""Fits at data-set scale: moments, EM, and the denoising loss of a Gaussian."""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import scratch_mib
from diffusion.closed_form import (
    GaussianDenoiser,
    MixtureDenoiser,
    accumulate_moments,
    fit_gaussian,
    fit_mixture,
    merge,
    principal_components,
    run_em,
)

_PUBLISHED_LOSS = 154.0  # arXiv 2412.09726, CIFAR-10, K = 1, full rank


def measure_moments(images: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure moments and exact PCA, and their distance from NumPy in float64."""
    batches = [images[i : i + 1000] for i in range(0, len(images), 1000)]
    started = time.perf_counter()
    moments = accumulate_moments(batches)
    between = time.perf_counter()
    principal_components(moments)
    ended = time.perf_counter()
    mean, scatter = _numpy_moments(images)
    shards = [accumulate_moments([part]) for part in np.array_split(images, 4)]
    merged = merge(merge(shards[0], shards[1]), merge(shards[2], shards[3]))

    def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.abs(a - b).max() / np.abs(b).max())

    return {
        "shape": {"N": len(images), "D": int(np.prod(images.shape[1:]))},
        "seconds_moments": between - started,
        "seconds_pca": ended - between,
        "seconds": ended - started,
        "relative_difference_from_numpy_float64": {
            "mean": distance(moments.mean.ravel(), mean),
            "covariance": distance(moments.scatter, scatter),
        },
        "relative_difference_of_four_merged_shards": {
            "mean": distance(merged.mean, moments.mean),
            "covariance": distance(merged.scatter, moments.scatter),
        },
        "scratch_mib": scratch_mib(lambda: accumulate_moments(batches).scatter),
    }


def _numpy_moments(
    images: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two passes in float64."""
    rows = images.reshape(len(images), -1)
    mean = np.mean(rows, axis=0, dtype=np.float64) / 127.5 - 1
    scatter = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), 5000):
        block = rows[start : start + 5000] / 127.5 - 1 - mean
        scatter += block.T @ block
    return mean, scatter


def measure_denoising_loss(
    images: NDArray[np.uint8], lossless: NDArray[np.uint8]
) -> dict[str, Any]:
    """Measure E |sigma score + n|^2 of one Gaussian, in closed form and by sampling.

    sigma^2 = (10^(2 t) - 1) / (2 log 10) with t uniform on (1e-5, 1).
    """
    figures: dict[str, Any] = {"published": _PUBLISHED_LOSS}
    for name, data in (("jpeg", images), ("lossless", lossless)):
        gaussian = fit_gaussian(data)
        lam = np.asarray(gaussian.variances, np.float64)
        t = np.linspace(1e-5, 1, 4001)
        curve = [(lam / (lam + _variance(u))).sum() for u in t]
        mean, error = _sampled_loss(gaussian, data)
        figures[name] = {
            "closed_form": float(np.trapezoid(curve, t)),
            "monte_carlo": mean,
            "standard_error": error,
        }
        difference = mean - figures[name]["closed_form"]
        assert abs(difference) < 4 * error, f"{name}: off by {difference:.3f}"
    return figures


def _variance(t: Any) -> Any:
    return (10 ** (2 * t) - 1) / (2 * np.log(10))


def _sampled_loss(
    gaussian: GaussianDenoiser, images: NDArray[np.uint8]
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    denoise = jax.jit(lambda g, x, sigma: g(x, sigma))
    losses = []
    for _ in range(40):
        clean = images[rng.integers(0, len(images), 1024)] / 127.5 - 1
        # Strata of t: the same mean with a smaller error.
        t = 1e-5 + (1 - 1e-5) * (np.arange(1024) + rng.random(1024)) / 1024
        sigma = np.sqrt(_variance(t))
        level = sigma.reshape(-1, 1, 1, 1)
        noise = rng.normal(size=clean.shape)
        x = (clean + level * noise).astype(np.float32)
        denoised = np.asarray(denoise(gaussian, x, sigma.astype(np.float32)))
        losses.append((((denoised - x) / level + noise) ** 2).sum() / 1024)
    return float(np.mean(losses)), float(np.std(losses, ddof=1) / np.sqrt(len(losses)))


def _held_out(mixture: MixtureDenoiser, images: NDArray[np.uint8]) -> float:
    density = jax.jit(lambda m, x: m.assign(x).log_density)
    parts = [
        np.asarray(
            density(mixture, jnp.asarray(images[i : i + 500] / 127.5 - 1, jnp.float32)),
            np.float64,
        )
        for i in range(0, len(images), 500)
    ]
    return float(np.concatenate(parts).mean())


def measure_held_out(
    images: NDArray[np.uint8], test: NDArray[np.uint8]
) -> dict[str, Any]:
    """Measure held-out log-likelihood of EM and of k-means, K = 20, rank 32.

    Also that EM stopped after two passes and gone on with ends bitwise equal.
    """
    key = jax.random.key(0)
    settings: dict[str, Any] = {"rank": 32, "key": key}
    clusters = fit_mixture(images, 20, method="kmeans", **settings)
    whole = run_em(images, clusters, num_passes=12, tolerance=1e-4, key=key)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "em.npz"
        common: dict[str, Any] = {
            "tolerance": 0.0,
            "key": key,
            "checkpoint": checkpoint,
        }
        run_em(images, clusters, num_passes=2, **common)
        resumed = run_em(images, None, num_passes=4, **common)
        common["checkpoint"] = None
        straight = run_em(images, clusters, num_passes=4, **common)
    pairs = zip(
        jax.tree.leaves(resumed.mixture), jax.tree.leaves(straight.mixture), strict=True
    )
    assert all(np.array_equal(a, b) for a, b in pairs), "not bitwise equal"
    return {
        "shape": {"K": 20, "R": 32, "N": len(images), "held_out": len(test)},
        "log_likelihood_held_out": {
            "k-means + cluster covariance": _held_out(clusters, test),
            "em": _held_out(whole.mixture, test),
        },
        "log_likelihood_training_by_pass": whole.log_likelihoods.tolist(),
        "converged": whole.converged,
        "resumed_is_bitwise_equal": True,
    }


def measure_em(images: NDArray[np.uint8], test: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure the seconds of EM, K = 50, rank 64, from the images on."""
    key = jax.random.key(0)
    started = time.perf_counter()
    clusters = fit_mixture(images, 50, rank=64, method="kmeans", key=key)
    between = time.perf_counter()
    result = run_em(images, clusters, num_passes=20, tolerance=1e-4, key=key)
    ended = time.perf_counter()
    passes = len(result.log_likelihoods) - 1
    return {
        "shape": {"K": 50, "R": 64, "N": len(images)},
        "seconds_kmeans": between - started,
        "seconds_em": ended - between,
        "seconds": ended - started,
        "passes": passes,
        "converged": result.converged,
        "log_likelihood_training_by_pass": result.log_likelihoods.tolist(),
        "log_likelihood_held_out": {
            "k-means + cluster covariance": _held_out(clusters, test),
            "em": _held_out(result.mixture, test),
        },
    }
