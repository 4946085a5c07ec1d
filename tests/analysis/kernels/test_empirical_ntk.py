"""Tangent kernels of finite networks: three ways, and their limit."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from analysis.kernels.empirical_ntk import (
    empirical_ntk,
    empirical_ntk_vector_product,
    traced_empirical_ntk,
)
from analysis.kernels.relu_ntk import relu_ntk
from configs.errors import InputError
from configs.network_schema import MLPConfig
from diffusion.networks import build_network
from diffusion.neural import NeuralDenoiser
from diffusion.preconditioning import EDMPreconditioning

METHODS = ("jacobian", "vp", "relu_mask")


class TwoLayers(NamedTuple):
    W: Any
    a: Any


def apply(params, z):
    """The two-layer network of which W alone is trained."""
    signs = jax.lax.stop_gradient(params.a)
    return jax.nn.relu(z @ params.W.T) @ signs / len(signs) ** 0.5


def two_layers(rng, m, p, d):
    return TwoLayers(rng.normal(size=(m, p)), rng.choice([-1.0, 1.0], size=(m, d)))


def reference(params, a, b):
    """Return the kernel neuron by neuron, (n, q, d, d)."""
    on_a, on_b = (a @ params.W.T > 0) * 1.0, (b @ params.W.T > 0) * 1.0
    mask = np.einsum("nr,qr,rk,rl->nqkl", on_a, on_b, params.a, params.a, optimize=True)
    return (a @ b.T)[:, :, None, None] * mask / len(params.W)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = two_layers(rng, 40, 4, 3)
    return params, rng.normal(size=(7, 4)), rng.normal(size=(5, 4))


@pytest.mark.parametrize("method", METHODS)
def test_three_methods_give_the_kernel(method, problem):
    params, a, b = problem
    with jax.enable_x64(True):
        for other in (b, None):
            expected = reference(params, a, a if other is None else other)
            found = empirical_ntk(apply, params, a, other, method=method, block=3)
            assert np.abs(found - expected).max() < 1e-11
            trace = traced_empirical_ntk(
                apply, params, a, other, method=method, block=3
            )
            expected = np.trace(expected, axis1=2, axis2=3)
            assert np.abs(trace - expected).max() < 1e-11


@pytest.mark.parametrize("method", ["jacobian", "vp"])
def test_kernel_that_is_not_symmetric_in_its_outputs(method):
    rng = np.random.default_rng(1)
    params = [rng.normal(size=shape) for shape in ((4, 6), (6, 6), (6, 3))]
    a, b, v = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)), rng.normal(size=(5, 3))

    def deep(params, x):
        w1, w2, w3 = params
        return jnp.tanh(jnp.tanh(x @ w1) @ w2) @ w3

    with jax.enable_x64(True):
        kernel = np.asarray(empirical_ntk(deep, params, a, b, method=method, block=3))
        moved = np.asarray(empirical_ntk_vector_product(deep, params, a, b, v))
        square = np.asarray(empirical_ntk(deep, params, a, method=method, block=3))
        both = np.asarray(empirical_ntk(deep, params, a, a.copy(), method=method))
    assert np.abs(kernel - kernel.transpose(0, 1, 3, 2)).max() > 0.1
    np.testing.assert_allclose(
        np.einsum("nqkl,ql->nk", kernel, v), moved, rtol=1e-11, atol=1e-11
    )
    np.testing.assert_allclose(square, both, rtol=1e-11, atol=1e-11)
    # The product itself: what the outputs do when the parameters move along J^T v.
    with jax.enable_x64(True):
        step = jax.grad(lambda p: jnp.vdot(deep(p, b), v))(params)
        ahead, behind = (
            deep([w + sign * 1e-6 * dw for w, dw in zip(params, step, strict=True)], a)
            for sign in (1, -1)
        )
    slope = (np.asarray(ahead) - np.asarray(behind)) / 2e-6
    np.testing.assert_allclose(moved, slope, rtol=1e-6, atol=1e-6)


def test_wide_network_has_the_closed_form_kernel_times_the_identity():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(12, 5))
    with jax.enable_x64(True):
        limit = np.asarray(relu_ntk(x))[:, :, None, None] * np.eye(2)
        errors = []
        for m in (1024, 4096):
            squares = []
            for _ in range(12):
                params = two_layers(rng, m, 5, 2)
                found = empirical_ntk(apply, params, x, method="relu_mask")
                squares.append(np.mean((np.asarray(found) - limit) ** 2))
            errors.append(np.sqrt(np.mean(squares)))
    assert errors[1] < 0.05 * np.abs(limit).max()
    assert 1.6 < errors[0] / errors[1] < 2.5  # four times as wide, half the error


@pytest.mark.parametrize("layers", ["first", "both"])
def test_deep_wide_network_has_the_closed_form_kernel(layers):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    m = 1024
    weights = [
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((m, 3), (m, m), (1, m))
    ]

    def deep(params, z):
        trained, (w2, w3) = params[0], params[1:]
        if layers == "first":
            w2, w3 = jax.lax.stop_gradient((w2, w3))
        hidden = jax.nn.relu(z @ trained.T) / m**0.5
        return jax.nn.relu(hidden @ w2.T) / m**0.5 @ w3.T

    found = traced_empirical_ntk(deep, weights, x)
    limit = np.asarray(relu_ntk(x, depth=2, layers=layers))
    assert np.abs(found - limit).max() < 0.12 * limit.max()


def test_kernel_of_one_of_our_networks_at_a_noise_level():
    network = build_network(MLPConfig(width=16, num_layers=1), (2, 2, 1))
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape),
        network.init(jax.random.key(0)),
    )
    denoiser = NeuralDenoiser(params, network, EDMPreconditioning(0.5))

    def denoised(params, x):
        return dataclasses.replace(denoiser, params=params)(x, 0.7)

    x = jax.random.normal(jax.random.key(1), (5, 2, 2, 1))
    full = np.asarray(empirical_ntk(denoised, params, x, x[:3], method="vp"))
    assert full.shape == (5, 3, 4, 4)
    # The parameters move along one column, and the outputs move as the kernel says.
    flat, unravel = ravel_pytree(params)
    output = jax.jit(denoised)
    gradient = jax.grad(lambda p: output(p, x[1:2]).reshape(-1)[2])(params)
    step = ravel_pytree(gradient)[0]
    size = 1e-3 / jnp.linalg.norm(step)
    ahead, behind = (output(unravel(flat + sign * size * step), x) for sign in (1, -1))
    moved = ((ahead - behind) / (2 * size)).reshape(5, 4)
    scale = np.abs(full).max()
    np.testing.assert_allclose(moved, full[:, 1, :, 2], rtol=0, atol=1e-2 * scale)


def test_bad_input_gets_one_line(problem):
    params, a, b = (jax.tree.map(jnp.float32, part) for part in problem)
    kernel: Any = empirical_ntk

    def doubled(params, z):
        return 2 * apply(params, z)

    for call, words in (
        (lambda: kernel(apply, params, a, b, method="jac"), "unknown method"),
        (lambda: kernel(apply, params, a, b[:, :2]), r"B has shape \(5, 2\)"),
        (
            lambda: kernel(doubled, params, a, b, method="relu_mask"),
            "apply computes something else: choose 'jacobian' or 'vp'",
        ),
        (
            lambda: kernel(apply, {"w": a}, a, b, method="relu_mask"),
            "params is a dict without them",
        ),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
