"""The Gaussian in other frames, along its trajectory, and as a start for samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers import MomentMatched, teleport

D = 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model(residual: float = 0.2) -> GaussianDenoiser:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0][:, :3]
    parts = rng.normal(size=D), basis, np.array([3.0, 1.0, 0.5]), residual
    return GaussianDenoiser(*(jnp.asarray(a) for a in parts))


def covariance(g: GaussianDenoiser) -> np.ndarray:
    basis = np.asarray(g.basis)
    rest = float(g.residual_variance) * (np.eye(D) - basis @ basis.T)
    return (basis * np.asarray(g.variances)) @ basis.T + rest


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [
        (np.array([0.1, 0.9]), np.sqrt(1 - np.array([0.1, 0.9]) ** 2)),  # VP
        (np.array([0.05, 0.7]), np.array([0.95, 0.3])),  # flow matching
    ],
)
def test_flow_in_any_frame_equals_the_dense_map(alpha, sigma):
    g, x = model(), np.random.default_rng(1).normal(size=(4, D))
    s = covariance(g)
    at = [a**2 * s + b**2 * np.eye(D) for a, b in zip(alpha, sigma, strict=True)]
    moved = (x - alpha[0] * np.asarray(g.mean)) @ np.linalg.inv(root(at[0]))
    expected = alpha[1] * np.asarray(g.mean) + moved @ root(at[1])
    found = g.flow(x, *sigma, alpha_from=alpha[0], alpha_to=alpha[1])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    back = g.flow(found, *sigma[::-1], alpha_from=alpha[1], alpha_to=alpha[0])
    np.testing.assert_allclose(back, x, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="alpha contains 0"):
        g.flow(x, 1.0, 1.0, alpha_to=0.0)


@pytest.mark.parametrize("residual", [0.2, 0.0])
def test_the_denoiser_trajectory_follows_the_flow(residual):
    g, x = model(residual), 30 * np.random.default_rng(2).normal(size=(4, D))
    for sigma in (40.0, 2.0, 0.01):
        expected = g(g.flow(x, 40.0, sigma), sigma)
        found = g.denoiser_trajectory(x, 40.0, sigma)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)
    end = g.denoiser_trajectory(x, 40.0, 0.0)
    np.testing.assert_allclose(end, g.flow(x, 40.0, 1e-9), atol=1e-7)


def test_the_moment_matched_start_is_the_limit_of_the_teleport():
    g, noise = model(), np.random.default_rng(3).normal(size=(4, D))
    start = MomentMatched(g)(noise, 2.0)
    dense = np.asarray(g.mean) + noise @ root(covariance(g) + 4 * np.eye(D))
    np.testing.assert_allclose(start, dense, rtol=1e-12, atol=1e-12)
    far = teleport(noise, g, 1e9, 2.0)
    np.testing.assert_allclose(far, start, rtol=1e-7, atol=1e-7)


def test_teleport_can_be_compiled():
    g, noise = model(), np.random.default_rng(3).normal(size=(4, D))
    compiled = jax.jit(lambda n, g: teleport(n, g, 80.0, 8.4))(noise, g)
    np.testing.assert_allclose(compiled, teleport(noise, g, 80.0, 8.4), rtol=1e-12)


def test_less_and_less_is_kept_of_the_covariance():
    g = model()
    values = np.sort(np.linalg.eigvalsh(covariance(g)))[::-1]
    one = g.truncated(1)
    kept = np.sort(np.linalg.eigvalsh(covariance(one)))[::-1]
    np.testing.assert_allclose(kept, [values[0], *[values[1:].mean()] * 4])
    np.testing.assert_allclose(g.isotropic().residual_variance, values.mean())
    x = np.ones((2, D))
    np.testing.assert_allclose(g.mean_only()(x, 0.3), np.stack([g.mean] * 2))
    for rank in (-1, 4):
        with pytest.raises(InputError, match=r"ranks in \[0, 3\]"):
            g.truncated(rank)
