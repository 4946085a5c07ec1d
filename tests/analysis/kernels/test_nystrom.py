"""Nystrom's features against the exact kernel, NumPy float64, and other devices."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.kernels import nystrom
from analysis.kernels.filters import Descent
from analysis.kernels.nystrom import (
    choose_landmarks,
    decompose_features,
    nystrom_features,
    nystrom_map,
    nystrom_stream,
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
from analysis.kernels.stop_curves import gcv, noise_level, sure
from configs.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
N, M = 30, 12
TIMES = np.array([3.0, 300.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kernel(a, b):
    """First-layer ReLU tangent kernel, by its formula; nan at a point of nought."""
    lengths = jnp.linalg.norm(a, axis=1)[:, None] * jnp.linalg.norm(b, axis=1)
    theta = jnp.arccos(jnp.clip(a @ b.T / lengths, -1, 1))
    return a @ b.T * (jnp.pi - theta) / (2 * jnp.pi)


def smooth(a, b):
    """A Gaussian kernel, of hopeless condition."""
    return jnp.exp(-jnp.sum((a[:, None] - b) ** 2, axis=-1) / 50)


def problem(seed=0, n=N):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3))
    return z, rng.normal(size=(7, 3)), rng.normal(size=(n, 2))


def test_with_all_points_as_landmarks_it_is_the_exact_fit():
    z, x, y = problem()
    exact = fit(decompose(np.asarray(kernel(z, z))), y)
    phi = nystrom_map(kernel, z)
    model = fit(decompose_features(phi(z)), y)
    np.testing.assert_allclose(
        predict(model, phi(x), TIMES), predict(exact, kernel(x, z), TIMES), atol=1e-6
    )
    for curve in (dof, rkhs_norm, train_residual, gcv):
        np.testing.assert_allclose(curve(model, TIMES), curve(exact, TIMES), rtol=1e-6)
    np.testing.assert_allclose(residuals(model, TIMES), residuals(exact, TIMES), 1e-6)


def test_features_are_those_of_the_projection_on_the_landmarks():
    z, x, _ = problem(1)
    phi = nystrom_map(kernel, z[:M])
    middle = np.linalg.inv(np.asarray(kernel(z[:M], z[:M])))
    expected = np.asarray(kernel(x, z[:M])) @ middle @ np.asarray(kernel(z[:M], z))
    np.testing.assert_allclose(phi(x) @ phi(z).T, expected, atol=1e-10)
    # An arccos of 1 is good to the root of a rounding only.
    np.testing.assert_allclose(phi(z, block=4), phi(z), atol=1e-6)


def test_the_fit_equals_every_step_of_descent_on_the_features():
    z, x, y = problem(2)
    phi, spectrum = nystrom_features(kernel, z, z[:M])
    phi, theta = np.asarray(phi), np.zeros((phi.shape[1], 2))
    for _ in range(300):
        theta = theta - 1 / N * phi.T @ (phi @ theta - y)
    model = fit(spectrum, y)
    rows = np.asarray(nystrom_map(kernel, z[:M])(x))
    found = predict(model, rows, 300, filter=Descent(1.0))
    np.testing.assert_allclose(found, rows @ theta, atol=1e-10)
    left = y - phi @ theta
    np.testing.assert_allclose(
        residuals(model, 300, filter=Descent(1.0)), left, atol=1e-10
    )
    squared = train_residual(model, 300, filter=Descent(1.0))
    assert float(squared) == pytest.approx((left**2).sum() / N, rel=1e-10)
    norm = rkhs_norm(model, 300, filter=Descent(1.0))
    assert float(norm) == pytest.approx(np.linalg.norm(theta), rel=1e-10)


def test_degrees_of_freedom_and_variance_are_traces_of_the_smoother():
    z, _, y = problem(3)
    phi, spectrum = nystrom_features(kernel, z, z[:M])
    phi = np.asarray(phi)
    mu, q = np.linalg.eigh(phi.T @ phi / N)
    middle = q @ np.diag((1 - np.exp(-20 * mu)) / mu) @ q.T / N
    smoother = phi @ middle @ phi.T
    assert float(dof(spectrum, 20.0)) == pytest.approx(np.trace(smoother), rel=1e-10)
    noise = np.random.default_rng(0).uniform(0.5, 2, size=N)
    found = bias_variance(spectrum, y, noise, 20.0)
    variance = np.trace(smoother @ np.diag(noise) @ smoother.T) / N
    assert float(found.variance) == pytest.approx(variance, rel=1e-10)
    bias = np.mean((y - smoother @ y) ** 2)
    assert float(found.bias) == pytest.approx(bias, rel=1e-10)


@pytest.mark.parametrize(
    ("k", "on_mesh"), [(kernel, False), (smooth, False), (kernel, True)]
)
def test_a_stream_of_uneven_blocks_is_the_fit_of_all_points(k, on_mesh):
    z, x, y = problem(4)
    phi = nystrom_map(k, z[:M])
    whole = fit(decompose_features(phi(z)), y)
    seen = []

    def blocks():
        for start, stop in ((0, 11), (11, 12), (12, 30)):
            seen.append(stop - start)
            yield z[start:stop], y[start:stop]

    mesh = jax.make_mesh((1,), ("data",)) if on_mesh else None
    stream = nystrom_stream(phi, blocks(), rows=8, mesh=mesh)
    assert seen == [11, 1, 18]
    assert stream.target is None and stream.spectrum.features is None
    np.testing.assert_allclose(
        predict(stream, phi(x), TIMES), predict(whole, phi(x), TIMES), atol=1e-8
    )
    for curve in (dof, train_residual, gcv, noise_level):
        np.testing.assert_allclose(curve(stream, TIMES), curve(whole, TIMES), 1e-7)
    np.testing.assert_allclose(sure(stream, TIMES, 0.5), sure(whole, TIMES, 0.5), 1e-7)


def test_kernels_are_whitened_late_only_where_the_condition_allows():
    z, x, y = problem(5)
    good, bad = nystrom_map(kernel, z[:M]), nystrom_map(smooth, z)
    assert nystrom._condition(good) < 1e6 < nystrom._condition(bad)
    expected = np.linalg.cond(np.asarray(kernel(z[:M], z[:M])))
    assert nystrom._condition(good) == pytest.approx(expected, rel=1e-6)
    whole = fit(decompose_features(bad(z)), y)
    stream = nystrom_stream(bad, [(z, y)])
    np.testing.assert_allclose(
        predict(stream, bad(x), 1e4), predict(whole, bad(x), 1e4), atol=1e-5
    )


def test_a_stream_holds_no_more_than_a_block_and_the_one_before():
    n, rows = 40_000, 500
    rng = np.random.default_rng(6)
    phi = nystrom_map(kernel, rng.normal(size=(M, 3)))
    alive, second, labels = [], 0, 0

    def blocks():
        nonlocal second, labels
        for _ in range(n // rows):
            z = rng.normal(size=(rows, 3))
            alive.append(weakref.ref(z))
            assert sum(ref() is not None for ref in alive) <= 2
            features = np.asarray(phi(z))
            second = second + features.T @ features / n
            labels = labels + features.T @ z[:, :1] / n
            yield z, z[:, :1]

    model = nystrom_stream(phi, blocks(), rows=rows)
    assert model.spectrum.n == n
    assert max(np.size(leaf) for leaf in jax.tree.leaves(model)) <= M * M
    rows = np.asarray(phi(rng.normal(size=(5, 3))))
    expected = rows @ np.linalg.solve(second, labels)
    np.testing.assert_allclose(predict(model, rows, np.inf), expected, atol=1e-9)


@pytest.mark.slow
def test_256_landmarks_are_within_five_per_cent_of_2048_points():
    rng = np.random.default_rng(7)
    z, y = lifted(rng, 2048)
    x, _ = lifted(rng, 500)
    exact = fit(decompose(np.asarray(kernel(z, z))), y)
    phi = nystrom_map(kernel, choose_landmarks(jax.random.key(0), z, 256))
    model = fit(decompose_features(phi(z)), y)
    truth = predict(exact, kernel(x, z), 300.0)
    gap = jnp.linalg.norm(predict(model, phi(x), 300.0) - truth)
    assert float(gap / jnp.linalg.norm(truth)) < 0.05


def lifted(rng, n, d=4):
    """A mixture on a sphere, noised for a random time, and its lift (x, t - t0, 1)."""
    centres = rng.normal(size=(3, d))
    centres *= 1.5 / np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(rng.integers(1000))
    start = centres[rng.integers(3, size=n)] + 0.25 * rng.normal(size=(n, d))
    t = rng.uniform(0.05, 2, size=(n, 1))
    alpha = np.exp(-t / 2)
    x = alpha * start + np.sqrt(1 - alpha**2) * rng.normal(size=(n, d))
    return np.hstack([x, t - 0.05, np.ones((n, 1))]), start


def test_a_stream_is_float64_and_leaves_the_setting_of_its_source():
    z, x, y = problem(9)
    with jax.enable_x64(False):
        seen = []

        def blocks():
            seen.append(jnp.zeros(1).dtype)
            yield z, y

        phi = nystrom_map(kernel, z[:M])
        stream = nystrom_stream(phi, blocks())
        kept = nystrom_features(kernel, z, z[:M]).spectrum
    assert seen == [jnp.float32]
    for spectrum in (stream.spectrum, kept):
        assert spectrum.evals.dtype == spectrum.evecs.dtype == np.float64
    whole = fit(decompose_features(phi(z)), y)
    for model in (stream, fit(kept, y)):
        np.testing.assert_allclose(
            predict(model, phi(x), TIMES), predict(whole, phi(x), TIMES), atol=1e-9
        )


def test_landmarks_are_drawn_without_replacement():
    z = np.arange(40.0).reshape(20, 2)
    chosen = choose_landmarks(jax.random.key(1), z, 20)
    np.testing.assert_array_equal(chosen, z)
    few = choose_landmarks(jax.random.key(2), z, 5)
    again = choose_landmarks(jax.random.key(2), z, 5)
    np.testing.assert_array_equal(few, again)
    assert len(np.unique(few[:, 0])) == 5


def test_bad_input_is_refused_in_one_line():
    z, _, y = problem(8)
    phi = nystrom_map(kernel, z[:M])
    stream = nystrom_stream(phi, [(z, y)])
    for call, words in (
        (lambda: nystrom_stream(phi, []), "there are no points"),
        (lambda: nystrom_stream(phi, [(z, y[1:])]), r"y has shape \(29, 2\)"),
        (lambda: nystrom_stream(phi, [(z, y), (z, y[:, 0])]), "1 outputs; .* block 2"),
        (lambda: nystrom_stream(phi, [(z[:, :2], y)]), r"points of shape \(2,\)"),
        (lambda: nystrom_stream(phi, [(z * np.nan, y)]), "30 of 30 rows of inputs"),
        (lambda: nystrom_stream(phi, [(z, y / 0)]), "30 of 30 rows of y"),
        (lambda: nystrom_stream(phi, [(z, y)], rows=0), "rows is 0"),
        (lambda: nystrom_map(kernel, z / 0), "landmarks are not finite"),
        (lambda: choose_landmarks(jax.random.key(0), z, 31), r"in \[1, 30\]"),
        (lambda: residuals(stream, 1.0), "keeps no labels"),
        (lambda: fit(stream.spectrum, y), "takes the labels in the same pass"),
        (lambda: decompose_features(np.ones(3)), r"phi has shape \(3,\)"),
    ):
        with np.errstate(all="ignore"), pytest.raises(InputError, match=words) as found:
            call()
        assert "\n" not in str(found.value)


_ON_FOUR_DEVICES = """
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from analysis.kernels.nystrom import decompose_features, nystrom_map, nystrom_stream
from diffusion.training.mesh import make_placement

def weights(model):  # of the features, after endless training
    spectrum = model.spectrum
    return spectrum.evecs @ (np.asarray(spectrum.scale)[:, None] * model.coef)

assert jax.device_count() == 4
rng = np.random.default_rng(0)
z, y = rng.normal(size=(101, 3)), rng.normal(size=(101, 2))
phi = nystrom_map(lambda a, b: jnp.exp(a @ b.T), z[:10])
mesh = make_placement(1, 64).mesh
one = nystrom_stream(phi, [(z, y)], rows=64)
four = nystrom_stream(phi, [(z, y)], rows=64, mesh=mesh)
np.testing.assert_allclose(four.spectrum.evals, one.spectrum.evals, rtol=1e-9)
np.testing.assert_allclose(weights(four), weights(one), rtol=1e-7)
with jax.enable_x64(True):
    # Features with divided rows: the sums over them are taken where they lie.
    values = rng.normal(size=(64, 5))
    rows = jax.device_put(values, NamedSharding(mesh, P(("data", "fsdp"))))
    assert len(rows.sharding.device_set) == 4
    spread, alone = decompose_features(rows), decompose_features(values)
    np.testing.assert_allclose(spread.evals, alone.evals, rtol=1e-12)
try:
    nystrom_stream(phi, [(z, y)], rows=63, mesh=mesh)
except ValueError as error:
    print(error)
"""


def test_four_devices_give_the_fit_of_one():
    result = subprocess.run(
        [sys.executable, "-c", _ON_FOUR_DEVICES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
            + " --xla_force_host_platform_device_count=4",
        },
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "rows is 63; it must be a multiple of the number of devices, 4" in (
        result.stdout
    )
