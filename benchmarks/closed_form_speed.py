"""How fast closed-form denoisers are evaluated, against peers that compute the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.mixture import GaussianMixture

from benchmarks.measure import (
    assert_same,
    matmul_gflops,
    relative_error,
    scratch_mib,
    seconds_of,
)
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    fit_gaussian,
)
from samplers import teleport

_EXACT = "donot_use_mm_for_euclid_dist"
_DDPMPP_64_GFLOP = 84.0  # one call of the 64x64 DDPM++ for one image


@jax.jit
def _denoise(denoiser: Any, x: Array, sigma: Array) -> Array:
    return denoiser(x, sigma)


def _noisy(images: NDArray[np.uint8], count: int, sigma: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    chosen = images[rng.choice(len(images), count, replace=False)] / 127.5 - 1
    return (chosen + sigma * rng.normal(size=chosen.shape)).astype(np.float32)


def measure_empirical(images: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure N = 50,000, D = 3,072, B = 256."""
    batch, sigma = 256, 3.0
    x = _noisy(images, batch, sigma)
    flat = (images / 127.5 - 1).astype(np.float32).reshape(len(images), -1)
    rows = torch.from_numpy(flat)
    query = torch.from_numpy(x.reshape(batch, -1))
    event = x.shape[1:]

    def peer(mode: str) -> torch.Tensor:
        distances = torch.cdist(query, rows, compute_mode=mode)
        return torch.softmax(-(distances**2) / (2 * sigma**2), dim=1) @ rows

    def scikit_learn() -> NDArray[np.float32]:
        squared = euclidean_distances(x.reshape(batch, -1), flat, squared=True)
        return softmax(-squared / (2 * sigma**2), axis=1) @ flat

    pixels = EmpiricalDenoiser(jnp.asarray(images))
    floats = EmpiricalDenoiser(jnp.asarray(flat.reshape(-1, *event)))
    level = jnp.float32(sigma)
    calls = {
        "ours": lambda: _denoise(floats, x, level),
        "ours_uint8": lambda: _denoise(pixels, x, level),
        "torch_cdist": lambda: peer("use_mm_for_euclid_dist"),
        "scikit_learn": scikit_learn,
    }
    exact = {"torch_differences": lambda: peer(_EXACT)}
    reference = peer(_EXACT).numpy().reshape(x.shape)
    errors = {
        name: assert_same(np.asarray(call()).reshape(x.shape), reference, 1e-3, name)
        for name, call in calls.items()
    }
    seconds = seconds_of(calls) | seconds_of(exact, repeats=1)
    scratch = {name: scratch_mib(call) for name, call in (calls | exact).items()}
    gflop, ceiling = 4 * batch * len(flat) * flat.shape[1] / 1e9, matmul_gflops()
    return {
        "shape": {"N": len(flat), "D": flat.shape[1], "B": batch, "sigma": sigma},
        "seconds": seconds,
        "matmul_gflops": ceiling,
        "fraction_of_matmul": {
            name: gflop / value / ceiling for name, value in seconds.items()
        },
        "times_as_fast_as_cdist": seconds["torch_cdist"] / seconds["ours"],
        "times_as_fast_as_differences": seconds["torch_differences"] / seconds["ours"],
        "scratch_mib": scratch,
        "relative_difference_from_torch_differences": errors,
    }


def measure_small_sigma() -> dict[str, Any]:
    """Measure max |D - float64| / sigma on pairs of points 3 sigma apart, D = 3,072."""
    figures: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    dimension, pairs = 3072, 200
    for sigma in (0.002, 0.02, 0.2):
        first = rng.normal(size=(pairs, dimension)) * 0.5
        apart = rng.normal(size=(pairs, dimension))
        apart *= 3 * sigma / np.linalg.norm(apart, axis=1, keepdims=True)
        points = np.concatenate([first, first + apart]).astype(np.float32)
        middle = (points[:64].astype(np.float64) + points[pairs : pairs + 64]) / 2
        x = (middle + sigma * rng.normal(size=middle.shape)).astype(np.float32)
        reference = _reference(points, x, sigma)
        rows, query = torch.from_numpy(points), torch.from_numpy(x)
        found = {"ours": _denoise(EmpiricalDenoiser(jnp.asarray(points)), x, sigma)}
        for name, mode in (
            ("cdist", "use_mm_for_euclid_dist"),
            ("differences", _EXACT),
        ):
            distances = torch.cdist(query, rows, compute_mode=mode)
            weights = torch.softmax(-(distances**2) / (2 * sigma**2), dim=1)
            found[f"torch_{name}"] = (weights @ rows).numpy()
        figures[f"sigma {sigma}"] = {
            name: float(np.linalg.norm(np.asarray(d) - reference, axis=1).max() / sigma)
            for name, d in found.items()
        }
    return figures


def _reference(
    points: NDArray[np.float32], x: NDArray[np.float32], sigma: float
) -> NDArray[np.float64]:
    y = points.astype(np.float64)
    squared = np.stack([((row - y) ** 2).sum(axis=1) for row in x.astype(np.float64)])
    return softmax(-squared / (2 * sigma**2), axis=1) @ y


def measure_mixture(images: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure K = 100 of rank 128, and K = 4 of full rank against scikit-learn."""
    batch, components, rank, sigma = 256, 100, 128, 1.0
    x = _noisy(images, batch, sigma)
    event = x.shape[1:]
    rng = np.random.default_rng(2)
    dimension = x[0].size
    means = 0.2 * rng.normal(size=(components, *event))
    columns = rng.normal(size=(components, dimension, rank))
    large = MixtureDenoiser(
        jnp.zeros(components),
        jnp.asarray(means, jnp.float32),
        jnp.asarray(np.linalg.qr(columns)[0], jnp.float32),
        jnp.asarray(np.sort(rng.uniform(0.1, 9, (components, rank)))[:, ::-1].copy()),
        jnp.full(components, 0.02),
    )
    _check_mixture(large, x, sigma)
    level = jnp.float32(sigma)
    call = {"ours": lambda: _denoise(large, x, level)}
    seconds, scratch = seconds_of(call)["ours"], scratch_mib(call["ours"])
    gflop, ceiling = 4 * batch * components * dimension * rank / 1e9, matmul_gflops()
    return {
        "shape": {"K": components, "R": rank, "D": dimension, "B": batch},
        "seconds": seconds,
        "matmul_gflops": ceiling,
        "fraction_of_matmul": gflop / seconds / ceiling,
        "scratch_mib": scratch,
        "against_scikit_learn": _full_rank_peer(x),
    }


def _check_mixture(
    mixture: MixtureDenoiser, x: NDArray[np.float32], sigma: float
) -> None:
    """Assert that a few samples agree with NumPy in float64."""
    few = x[:4].reshape(4, -1).astype(np.float64)
    bases, lam = np.asarray(mixture.bases, np.float64), np.asarray(mixture.variances)
    means = np.asarray(mixture.means, np.float64).reshape(len(lam), -1)
    r = np.asarray(mixture.residual_variances, np.float64)
    logits, parts = [], []
    for k in range(len(lam)):
        z = few - means[k]
        c = z @ bases[k]
        v, t = lam[k] + sigma**2, r[k] + sigma**2
        off = z - c @ bases[k].T
        squared = (off**2).sum(axis=1) / t + (c**2 / v).sum(axis=1)
        rest = len(means[k]) - lam.shape[1]
        logits.append(-0.5 * (squared + np.log(v).sum() + rest * np.log(t)))
        parts.append(means[k] + off * (r[k] / t) + (c * lam[k] / v) @ bases[k].T)
    p = np.exp(np.asarray(logits) - logsumexp(logits, axis=0))
    expected = np.einsum("kb,kbd->bd", p, np.asarray(parts))
    found = np.asarray(_denoise(mixture, x[:4], jnp.float32(sigma))).reshape(4, -1)
    assert_same(found, expected, 1e-4, "mixture")


def _full_rank_peer(x: NDArray[np.float32]) -> dict[str, Any]:
    """Compare responsibilities of 4 full Gaussians, D = 512, with scikit-learn's."""
    components, dimension = 4, 512
    data = x.reshape(len(x), -1)[:, :dimension]
    rng = np.random.default_rng(3)
    means = data[:components] * 0.9
    vectors = np.linalg.qr(rng.normal(size=(components, dimension, dimension)))[0]
    variances = rng.uniform(0.5, 2, (components, dimension))
    peer = GaussianMixture(components)
    covariances = np.einsum("kdr,kr,ker->kde", vectors, variances, vectors)
    peer.weights_, peer.means_ = np.full(components, 1 / components), means
    peer.covariances_ = covariances
    peer.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances))
    ours = MixtureDenoiser(
        jnp.zeros(components),
        *(jnp.asarray(a, jnp.float32) for a in (means, vectors, variances)),
        jnp.zeros(components),
    )
    density = jax.jit(lambda m, rows: m.log_density(rows, 0.0))
    assert_same(density(ours, data), peer.score_samples(data), 1e-5, "log density")
    seconds = seconds_of(
        {
            "ours": lambda: density(ours, data),
            "scikit_learn": lambda: peer.score_samples(data),
        }
    )
    return {
        "shape": {"K": components, "D": dimension, "B": len(data), "rank": "full"},
        "seconds": seconds,
        "times_as_fast": seconds["scikit_learn"] / seconds["ours"],
    }


def measure_gaussian(images: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure a Gaussian over D = 3,072 against the dense solve of each sigma."""
    sigma = 1.0
    gaussian = fit_gaussian(images[:10_000])
    x = _noisy(images, 256, sigma)
    basis, lam = np.asarray(gaussian.basis), np.asarray(gaussian.variances)
    covariance = torch.from_numpy((basis * lam) @ basis.T)
    mean = torch.from_numpy(np.array(gaussian.mean).ravel())
    query = torch.from_numpy(x.reshape(len(x), -1))
    identity = torch.eye(len(lam))

    def dense_inverse() -> torch.Tensor:
        precision = torch.linalg.inv(covariance + sigma**2 * identity)
        return mean + (query - mean) @ precision @ covariance

    level = jnp.float32(sigma)
    calls = {
        "ours": lambda: _denoise(gaussian, x, level),
        "ours_rank_128": lambda: _denoise(low, x, level),
        "torch_dense_inverse": dense_inverse,
    }
    low = gaussian.truncated(128)
    found = np.asarray(calls["ours"]()).reshape(len(x), -1)
    error = assert_same(found, dense_inverse().numpy(), 1e-3, "Gaussian")
    seconds = seconds_of(calls)
    truncated = np.asarray(calls["ours_rank_128"]()).reshape(len(x), -1)
    return {
        "shape": {"D": len(lam), "B": len(x)},
        "seconds": seconds,
        "times_as_fast_as_dense_inverse": seconds["torch_dense_inverse"]
        / seconds["ours"],
        "relative_difference": error,
        "relative_difference_of_rank_128": relative_error(truncated, found),
        "scratch_mib": {name: scratch_mib(call) for name, call in calls.items()},
    }


def measure_teleport() -> dict[str, Any]:
    """Measure teleporting 512 images at D = 12,288, rank 128."""
    count, rank, event = 512, 128, (64, 64, 3)
    rng = np.random.default_rng(4)
    dimension = int(np.prod(event))
    gaussian = GaussianDenoiser(
        jnp.zeros(event),
        jnp.asarray(np.linalg.qr(rng.normal(size=(dimension, rank)))[0], jnp.float32),
        jnp.asarray(900.0 / np.arange(1, rank + 1) ** 1.5, jnp.float32),
        jnp.float32(0.02),
    )
    noise = jnp.asarray(rng.normal(size=(count, *event)), jnp.float32)
    move = jax.jit(lambda n, g: teleport(n, g, 80.0, 8.4))
    z = np.asarray(noise[:4], np.float64).reshape(4, -1) * 80
    basis = np.asarray(gaussian.basis, np.float64)
    lam = np.asarray(gaussian.variances, np.float64)
    c = z @ basis
    gains = np.sqrt((8.4**2 + lam) / (80**2 + lam))
    rest = np.sqrt((8.4**2 + 0.02) / (80**2 + 0.02))
    expected = (z - c @ basis.T) * rest + (c * gains) @ basis.T
    assert_same(move(noise[:4], gaussian).reshape(4, -1), expected, 1e-5, "teleport")
    seconds = seconds_of({"ours": lambda: move(noise, gaussian)})["ours"]
    gflop = 4 * count * dimension * rank / 1e9
    ceiling = matmul_gflops()
    return {
        "shape": {"B": count, "D": dimension, "R": rank},
        "seconds": seconds,
        "fraction_of_matmul": gflop / seconds / ceiling,
        "share_of_the_flop_of_one_ddpmpp_call": gflop / (_DDPMPP_64_GFLOP * count),
        "share_of_the_time_of_one_ddpmpp_call_at_matmul_speed": seconds
        / (_DDPMPP_64_GFLOP * count / ceiling),
    }
