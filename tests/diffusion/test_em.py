"""EM and k-means for mixtures: likelihoods, resuming, and scikit-learn as oracle."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from configs import InputError
from diffusion.closed_form import MixtureDenoiser, fit_mixture, run_em
from diffusion.closed_form.image_rows import ImageRows
from diffusion.closed_form.kmeans import fit_kmeans

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_minibatches_come_close_to_whole_passes",)

D, K = 6, 3


def points(n: int = 900, seed: int = 0) -> np.ndarray:
    """Three overlapping Gaussians."""
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(9).normal(size=(K, D, D)) * 0.5
    means = np.random.default_rng(8).normal(size=(K, D)) * 1.2
    which = rng.integers(0, K, n)
    white = rng.normal(size=(n, D))
    x = means[which] + np.einsum("nde,ne->nd", maps[which], white)
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def start():
    return fit_mixture(points(), K, method="kmeans", key=jax.random.key(1))


def assert_same(a: MixtureDenoiser, b: MixtureDenoiser) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_em_and_scikit_learn_reach_the_same_likelihood(start):
    data = points().astype(np.float64)
    weights = np.exp(np.asarray(start.log_weights, np.float64))
    bases, variances = (
        np.asarray(a, np.float64) for a in (start.bases, start.variances)
    )
    covariances = np.einsum("kdr,kr,ker->kde", bases, variances, bases)
    peer = GaussianMixture(
        K,
        weights_init=weights / weights.sum(),
        means_init=np.asarray(start.means, np.float64),
        precisions_init=np.linalg.inv(covariances),
        tol=1e-9,
        max_iter=2000,
    ).fit(data)
    ours = run_em(points(), start, num_passes=1000, tolerance=1e-9)
    assert abs(ours.log_likelihoods[-1] - peer.score(data)) < 0.01
    first = start.log_density(points(), 0.0)
    assert ours.log_likelihoods[-1] > float(jnp.mean(first)) + 0.01


@pytest.mark.parametrize("rank", [0, 2, D])
def test_the_likelihood_never_falls(rank):
    first = fit_mixture(points(), K, rank=rank, method="kmeans")
    found = run_em(points(), first, num_passes=15, tolerance=0.0)
    likelihoods = found.log_likelihoods
    assert (np.diff(likelihoods) > -1e-6 * np.abs(likelihoods[:-1])).all()
    assert likelihoods[-1] > likelihoods[0]
    # The figures are those of the density itself.
    density = np.asarray(found.mixture.log_density(points(), 0.0), np.float64)
    np.testing.assert_allclose(likelihoods[-1], density.mean(), rtol=1e-6)


def test_em_beats_cluster_covariances_on_held_out_data(start):
    fitted = fit_mixture(points(), K, key=jax.random.key(1), tolerance=1e-6)
    held_out = points(2000, seed=5)
    density = [float(jnp.mean(m.log_density(held_out, 0.0))) for m in (start, fitted)]
    assert density[1] > density[0] + 0.01


def test_kmeans_gives_weight_mean_and_covariance_of_its_clusters(start):
    key = jax.random.split(jax.random.key(1), 3)[0]
    clusters = fit_kmeans(ImageRows(points()), K, key)
    squared = ((points()[:, None] - np.asarray(clusters.centres)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(clusters.labels, squared.argmin(axis=1))
    np.testing.assert_allclose(clusters.inertia, squared.min(axis=1).sum(), rtol=1e-4)
    for k in range(K):
        rows = points()[clusters.labels == k].astype(np.float64)
        np.testing.assert_allclose(clusters.centres[k], rows.mean(0), atol=1e-4)
        np.testing.assert_allclose(start.means[k], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(np.exp(start.log_weights[k]), len(rows) / 900, 1e-5)
        dense = (start.bases[k] * start.variances[k]) @ start.bases[k].T
        np.testing.assert_allclose(dense, np.cov(rows.T, bias=True), atol=1e-4)


def test_a_low_rank_mixture_is_found_in_many_dimensions():
    """Above the size up to which covariances are formed: subspace iteration."""
    rng = np.random.default_rng(0)
    dimension, rank, n = 600, 3, 500
    bases = np.linalg.qr(rng.normal(size=(2, dimension, rank)))[0]
    means = rng.normal(size=(2, dimension)) * 0.2
    scales = np.array([3.0, 2.0, 1.0])
    which = rng.integers(0, 2, n)
    x = means[which] + 0.1 * rng.normal(size=(n, dimension))
    x += np.einsum("ndr,nr->nd", bases[which], scales * rng.normal(size=(n, rank)))
    first = fit_mixture(x.astype(np.float32), 2, rank=rank, method="kmeans")
    found = run_em(x.astype(np.float32), first, num_passes=30, tolerance=1e-7)
    assert (np.diff(found.log_likelihoods) > -1e-6 * 600).all()
    for k in range(2):
        overlaps = [
            np.linalg.svd(np.asarray(found.mixture.bases[k]).T @ basis)[1].min()
            for basis in bases
        ]
        assert max(overlaps) > 0.98  # what 250 noisy samples can tell
        np.testing.assert_allclose(
            np.asarray(found.mixture.variances[k]), scales**2, rtol=0.25
        )
        np.testing.assert_allclose(
            float(found.mixture.residual_variances[k]), 0.01, rtol=0.05
        )


def test_few_images_of_many_values_stay_finite():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    found = run_em(
        images, fit_mixture(images, 3, rank=4, method="kmeans"), num_passes=4
    )
    assert np.isfinite(found.log_likelihoods).all()
    assert (np.diff(found.log_likelihoods) > -1e-6 * 3072).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.mixture))


@pytest.mark.parametrize(
    "batch_size", [None, pytest.param(200, marks=pytest.mark.slow)]
)
def test_resumed_em_is_bitwise_equal(start, tmp_path, batch_size):
    common = {
        "key": jax.random.key(4),
        "tolerance": 0.0,
        "batch_size": batch_size,
    }
    straight = run_em(points(), start, num_passes=5, **common)
    path = tmp_path / "em.npz"
    run_em(points(), start, num_passes=2, checkpoint=path, **common)
    resumed = run_em(points(), None, num_passes=5, checkpoint=path, **common)
    assert_same(resumed.mixture, straight.mixture)
    np.testing.assert_array_equal(resumed.log_likelihoods, straight.log_likelihoods)


KILLED = """
import sys, jax
from tests.diffusion.test_em import points
from diffusion.closed_form import fit_mixture
passes, path = int(sys.argv[1]), sys.argv[2]
fit_mixture(points(), 3, rank=2, num_passes=passes, tolerance=0., checkpoint=path)
"""


@pytest.mark.slow
def test_killed_em_goes_on_where_it_was(tmp_path):
    root, path = Path(__file__).resolve().parents[2], tmp_path / "em.npz"
    command = [sys.executable, "-c", KILLED, "1000000", str(path)]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    while not path.exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    passes = len(np.load(path)["history"]) + 3
    common = {"rank": 2, "num_passes": passes, "tolerance": 0.0}
    resumed = fit_mixture(points(), 3, checkpoint=path, **common)
    assert_same(resumed, fit_mixture(points(), 3, **common))


def test_minibatches_come_close_to_whole_passes(start):
    whole = run_em(points(), start, num_passes=100, tolerance=1e-6)
    parts = run_em(points(), start, num_passes=12, tolerance=0.0, batch_size=150)
    gain = whole.log_likelihoods[-1] - whole.log_likelihoods[0]
    assert parts.log_likelihoods[-1] > whole.log_likelihoods[-1] - 0.4 * gain


def test_dead_components_are_seeded_anew(start):
    far = start.means.at[0].set(1e3)
    lost = MixtureDenoiser(
        start.log_weights, far, start.bases, start.variances, start.residual_variances
    )
    found = run_em(points(), lost, num_passes=40, tolerance=1e-7)
    weights = np.exp(np.asarray(found.mixture.log_weights))
    assert weights.min() > 0.02
    assert np.abs(found.mixture.means).max() < 10
    best = run_em(points(), start, num_passes=40, tolerance=1e-7)
    assert found.log_likelihoods[-1] > best.log_likelihoods[-1] - 0.1


def test_the_key_decides_everything():
    fits = [
        fit_mixture(points(), K, rank=1, key=jax.random.key(seed), num_passes=3)
        for seed in (0, 0, 1)
    ]
    assert_same(fits[0], fits[1])
    assert np.abs(fits[0].means - fits[2].means).max() > 1e-3


def with_nan() -> np.ndarray:
    bad = points()
    bad[7, 0] = np.nan
    return bad


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda _: fit_mixture(points(4), 5), "5 components were asked for"),
        (lambda _: fit_mixture(with_nan(), 2), "image 7 holds NaN"),
        (lambda _: fit_mixture(points(), 2, rank=D + 1), r"rank is 7; .* \[0, 6\]"),
        (lambda _: fit_mixture(points(), 2, method="kmean"), "did you mean 'kmeans'"),
        (
            lambda _: fit_mixture(np.zeros((9, 4)), 1, variance_floor=0.0),
            "is singular",
        ),
        (lambda _: fit_mixture(points(), 2, num_passes=0), "at least 1"),
        (lambda _: run_em(points(), None), "a mixture to start from"),
        (
            lambda path: fit_mixture(points(800), K, num_passes=2, checkpoint=path),
            r"differs in data\)",
        ),
        (
            lambda path: fit_mixture(points(), 2, num_passes=2, checkpoint=path),
            r"differs in num_components\)",
        ),
        (
            lambda path: fit_mixture(
                points(), K, checkpoint=path.with_name("broken.npz")
            ),
            "is damaged",
        ),
    ],
)
def test_bad_input_is_one_line(call, says, tmp_path):
    path = tmp_path / "em.npz"
    if "differs" in says:
        fit_mixture(points(), K, num_passes=1, checkpoint=path)
    path.with_name("broken.npz").write_bytes(b"PK no")
    with pytest.raises(InputError, match=says) as caught:
        call(path)
    assert "\n" not in str(caught.value)
