"""Kernel regression on points of a mixture: the exact path, Gram matrices, Nystrom.

The data are those of the prototype: three Gaussians (standard deviation .25, radius
1.5) in four dimensions, noised over times .05 to 2, labels the clean samples; the test
error is the root mean square distance from the exact posterior mean at fresh triples.
"""

import time
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array
from numpy.typing import NDArray

from analysis.kernels.diffusion_regression import dsm_triples, lift
from analysis.kernels.gram import gram
from analysis.kernels.nystrom import (
    choose_landmarks,
    decompose_features,
    nystrom_map,
    nystrom_stream,
)
from analysis.kernels.posterior import posterior_mean
from analysis.kernels.regression import FlowModel, decompose, fit, predict
from analysis.kernels.relu_ntk import relu_ntk
from benchmarks.measure import assert_same, relative_error, seconds_of
from diffusion.closed_form import MixtureDenoiser

_D, _TIMES = 4, (0.05, 2.0)
_STOPS = (30.0, 300.0, 3000.0)
_MORE_STOPS = (*_STOPS, 30_000.0, 300_000.0)
_BLOCK = 4096


class Points(NamedTuple):
    """Lifted inputs z, labels y and posterior means f, float64."""

    z: NDArray[np.float64]
    y: NDArray[np.float64]
    f: NDArray[np.float64]


def measure_exact(tiny: bool) -> dict[str, Any]:
    """Time Gram, decomposition, labels and predictions at 100 times, and the peers'."""
    n = 512 if tiny else 4096
    train, test = points(0, n), points(1, 1000)
    stops = np.geomspace(1, 1e5, 100)

    def ours() -> Any:
        with jax.enable_x64(True):
            model = fit(decompose(np.asarray(gram(relu_ntk, train.z))), train.y)
            rows = gram(relu_ntk, test.z, train.z)
            return np.asarray(predict(model, rows, stops))

    def peer(eigh: Any) -> Any:
        mu, vectors = eigh(numpy_kernel(train.z, train.z))
        coef = vectors.T @ train.y
        projected = numpy_kernel(test.z, train.z) @ vectors
        kept = np.maximum(mu, 1e-300)
        gains = -np.expm1(-stops[:, None] * kept / n) / kept
        return np.stack([projected @ (g[:, None] * coef) for g in gains])

    calls = {
        "ours": ours,
        "numpy": lambda: peer(np.linalg.eigh),
        "scipy": lambda: peer(_scipy_eigh),
    }
    found, seconds = {}, dict.fromkeys(calls, float("inf"))
    for _ in range(2 if tiny else 5):  # in turn; of ours the first compiles
        for name, call in calls.items():
            started = time.perf_counter()
            found[name] = call()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    # The peers' angle of a point with itself is off by the root of rounding, 1e-8.
    error = assert_same(found["ours"], found["numpy"], 1e-6, "predictions")
    assert_same(found["scipy"], found["numpy"], 1e-6, "the peers' predictions")
    quickest = min(seconds["numpy"], seconds["scipy"])
    return {
        "shape": {"n": n, "q": 1000, "stop_times": len(stops)},
        "seconds": seconds,
        "quickest_peer_over_ours": quickest / seconds["ours"],
        "relative_difference": error,
        "seconds_of_steps": _steps(train.z),
    }


def _steps(z: NDArray[np.float64]) -> dict[str, float]:
    """Time the two expensive steps, once each."""
    with jax.enable_x64(True):
        rows = jnp.asarray(z)
        K = np.asarray(gram(relu_ntk, rows))
        steps = seconds_of({"gram": lambda: gram(relu_ntk, rows)}, 3)
    steps |= seconds_of({"gram_numpy": lambda: numpy_kernel(z, z)}, 1)
    for name, eigh in (("numpy", np.linalg.eigh), ("scipy", _scipy_eigh)):
        started = time.perf_counter()
        eigh(K)
        steps[f"eigh_{name}"] = time.perf_counter() - started
    return steps


def _scipy_eigh(K: NDArray[np.float64]) -> Any:
    return scipy.linalg.eigh(K, driver="evd", check_finite=False)


def measure_gram(tiny: bool) -> dict[str, Any]:
    """Compare the Gram matrix of images with the product of the same shapes.

    Symmetric, half of the products are left out: it can be quicker than the product.
    """
    n, p = (256, 3072) if tiny else (4096, 3072)
    figures: dict[str, Any] = {"shape": {"n": n, "p": p}}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            a, b = (_noisy_images(key, n, p, dtype) for key in range(2))
            product = jax.jit(lambda x, y: jnp.matmul(x, y.T, precision="highest"))
            few = np.asarray(gram(relu_ntk, a[:200], b[:100]))
            assert_same(few, numpy_kernel(a[:200], b[:100]), 1e-5, "kernel of images")
            seconds = seconds_of(
                {
                    "product": lambda a=a, b=b, f=product: f(a, b),
                    "of_two_sets": lambda a=a, b=b: gram(relu_ntk, a, b),
                    "symmetric": lambda a=a: gram(relu_ntk, a),
                },
                3,
            )
        figures[dtype] = {
            "seconds": seconds,
            "product_gflops": 2 * n * n * p / seconds["product"] / 1e9,
            "share_of_product": {
                name: seconds["product"] / seconds[name]
                for name in ("of_two_sets", "symmetric")
            },
        }
    figures["nanoseconds_per_entry"] = _small_dimensions(512 if tiny else 4096)
    return figures


def _small_dimensions(n: int) -> dict[str, float]:
    """Time an entry where elementwise work rules."""
    found = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            for p in (4, 6, 64):
                a, b = (jnp.asarray(_normal(k, n, p), dtype) for k in range(2))
                call = {"": lambda a=a, b=b: gram(relu_ntk, a, b)}
                seconds = seconds_of(call, 3)[""]
                found[f"p={p} {dtype}"] = seconds / n**2 * 1e9
    return found


def measure_nystrom(tiny: bool) -> dict[str, Any]:
    """Fit with the features held; its memory is that of the part."""
    n, landmarks = (1024, 64) if tiny else (50_000, 2048)
    train, test = points(0, n), points(1, 1000)
    started = time.perf_counter()
    model, rows = _with_features(train, test, landmarks)
    errors = _errors(model, rows, test)
    return {
        "shape": {"n": n, "M": landmarks},
        "seconds": time.perf_counter() - started,
        "test_error": errors,
    }


def measure_stream(tiny: bool) -> dict[str, Any]:
    """Fit very many points that are drawn block by block, and held by nobody."""
    sizes = (512, 2048) if tiny else (50_000, 1_000_000)
    landmarks = 64 if tiny else 2048
    test = points(1, 1000)
    chosen = points(2, landmarks).z
    figures: dict[str, Any] = {"M": landmarks}
    features = nystrom_map(relu_ntk, chosen)
    for n in sizes:
        started = time.perf_counter()
        model = nystrom_stream(features, _blocks(n), rows=_BLOCK)
        assert model.spectrum.n == n
        seconds = time.perf_counter() - started
        with jax.enable_x64(True):
            rows = features(test.z)
        rank = rows.shape[1]
        figures[f"n={n}"] = {
            "seconds": seconds,
            "test_error": _errors(model, rows, test),
            "mib_of_sums": 8 * (landmarks**2 + landmarks * _D) / 2**20,
            "mib_of_a_block": 8 * _BLOCK * (2 * landmarks + 2 * _D + 3) / 2**20,
            "mib_if_features_were_held": 8 * n * rank / 2**20,
        }
    first, last = (figures[f"n={n}"]["test_error"] for n in sizes)
    figures["error_falls_by"] = {s: first[s] / last[s] for s in first}
    return figures


def measure_accuracy(tiny: bool) -> dict[str, Any]:
    """Compare predictions of Nystrom with those of the exact path."""
    n = 512 if tiny else 8192
    train, test = points(0, n), points(1, 1000)
    started = time.perf_counter()
    with jax.enable_x64(True):
        spectrum = decompose(np.asarray(gram(relu_ntk, train.z)))
        exact = fit(spectrum, train.y)
        rows = gram(relu_ntk, test.z, train.z)
        truth = np.asarray(predict(exact, rows, np.asarray(_STOPS)))
    figures = {
        "n": n,
        "exact_seconds": time.perf_counter() - started,
        "exact_test_error": _errors(exact, rows, test),
    }
    for landmarks in (64, 128) if tiny else (512, 2048):
        started = time.perf_counter()
        model, rows = _with_features(train, test, landmarks)
        with jax.enable_x64(True):
            found = np.asarray(predict(model, rows, np.asarray(_STOPS)))
        figures[f"M={landmarks}"] = {
            "seconds": time.perf_counter() - started,
            "relative_difference": {
                f"s={s:g}": relative_error(a, b)
                for s, a, b in zip(_STOPS, found, truth, strict=True)
            },
            "test_error": _errors(model, rows, test),
        }
    return figures


def _with_features(
    train: Points, test: Points, landmarks: int
) -> tuple[FlowModel, Array]:
    """Return the fit of Nystrom and the features of the test points."""
    chosen = choose_landmarks(jax.random.key(3), train.z, landmarks)
    features = nystrom_map(relu_ntk, chosen)
    with jax.enable_x64(True):
        phi = np.asarray(features(train.z))
        return fit(decompose_features(phi), train.y), features(test.z)


def _errors(model: FlowModel, rows: Any, test: Points) -> dict[str, float]:
    with jax.enable_x64(True):
        found = np.asarray(predict(model, rows, np.asarray(_MORE_STOPS)))
    squares = np.sum((found - test.f) ** 2, axis=2).mean(axis=1)
    values = np.sqrt(squares).tolist()
    return {f"s={s:g}": v for s, v in zip(_MORE_STOPS, values, strict=True)}


def points(seed: int, n: int) -> Points:
    """Draw lifted triples with their exact posterior means."""
    with jax.enable_x64(True):
        return Points(*(np.asarray(v) for v in _draw(jax.random.key(seed), n, True)))


def _blocks(n: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield n points in blocks, each from a key of its own."""
    for number, start in enumerate(range(0, n, _BLOCK)):
        with jax.enable_x64(True):
            key = jax.random.fold_in(jax.random.key(5), number)
            z, y, _ = _draw(key, _BLOCK, False)
            # Whole blocks are drawn, so that nothing is compiled for the last one.
            block = np.asarray(z)[: n - start], np.asarray(y)[: n - start]
        yield block


def _draw(key: Array, n: int, with_means: bool) -> tuple[Array, Array, Any]:
    clean_key, triples_key = jax.random.split(key)
    mixture = _mixture()
    clean = mixture.sample(clean_key, n)
    xt, t, y, _ = dsm_triples(triples_key, clean, n, _TIMES)
    f = posterior_mean(mixture, xt, t) if with_means else 0
    return lift(xt, t, _TIMES[0]), y, f


def _mixture() -> MixtureDenoiser:
    means = np.asarray(_centres())
    nothing = np.zeros((3, _D, 0)), np.zeros((3, 0))
    arrays = (np.zeros(3), means, *nothing, np.full(3, 0.25**2))
    return MixtureDenoiser(*(jnp.asarray(v) for v in arrays))


@cache
def _centres() -> NDArray[np.float64]:
    """Return three points on a sphere, far from each other: those of a triangle."""
    angles = 2 * np.pi * np.arange(3) / 3
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return 1.5 * np.pad(circle, ((0, 0), (0, _D - 2)))


def numpy_kernel(a: Any, b: Any) -> NDArray[np.float64]:
    """Return u.v (pi - theta) / (2 pi), theta = 2 atan2(sqrt(1-c), sqrt(1+c))."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    inner = a @ b.T
    c = np.clip(inner / lengths, -1, 1)
    theta = 2 * np.arctan2(np.sqrt(1 - c), np.sqrt(1 + c))
    return inner * (np.pi - theta) / (2 * np.pi)


def _noisy_images(seed: int, n: int, p: int, dtype: str) -> Array:
    """Return smooth random fields in noise, with the cosines that images have."""
    rng = np.random.default_rng(seed)
    modes = np.random.default_rng(9).normal(size=(64, p)) / np.arange(1, 65)[:, None]
    fields = 0.5 * rng.normal(size=(n, 64)) @ modes
    sigma = np.exp(rng.uniform(np.log(0.05), np.log(2), size=(n, 1)))
    return jnp.asarray(fields + sigma * rng.normal(size=(n, p)), dtype)


def _normal(seed: int, n: int, p: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(n, p))
