"""The trace of a tangent kernel by random signs: no bias, honest errors, one answer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.kernels import probed_ntk
from analysis.kernels.empirical_ntk import traced_empirical_ntk
from analysis.kernels.probed_ntk import estimate_traced_ntk
from configs.errors import InputError
from diffusion.networks import build_network


def apply(params, x):
    first, second = params
    return jnp.tanh(x @ first) @ second


def reference(params, a, b):
    """Return the kernel from the formulas of its derivatives, (n, q, d, d)."""
    first, second = params
    active = [np.tanh(x @ first) for x in (a, b)]
    slopes = [1 - one**2 for one in active]
    of_first = np.einsum("nr,qr,rk,rl->nqkl", *slopes, second, second)
    of_second = (active[0] @ active[1].T)[:, :, None, None] * np.eye(second.shape[1])
    return (a @ b.T)[:, :, None, None] * of_first + of_second


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = [rng.normal(size=(4, 6)), rng.normal(size=(6, 3))]
    return params, rng.normal(size=(7, 4)), rng.normal(size=(5, 4))


def test_standard_error_of_two_probes_has_no_bias(problem):
    params, a, b = problem
    kernel = reference(params, a[:2], b[:2])
    off_diagonal = kernel * (1 - np.eye(3))
    expected = np.sum(off_diagonal**2)  # of the four variances, each over two probes
    with jax.enable_x64(True):
        errors = [
            estimate_traced_ntk(
                apply, params, a[:2], b[:2], jax.random.key(seed), num_probes=2
            ).standard_error
            for seed in range(100)
        ]
    found = np.mean([np.sum(np.asarray(error) ** 2) for error in errors])
    assert found == pytest.approx(expected, rel=0.4)


def test_standard_error_is_that_of_random_signs(problem):
    """The variance of v.S v is twice the sum of squares off the diagonal of S."""
    params, a, b = problem
    kernel = reference(params, a, b)
    symmetric = (kernel + kernel.transpose(0, 1, 3, 2)) / 2
    off_diagonal = symmetric * (1 - np.eye(3))
    variance = 2 * np.sum(off_diagonal**2, axis=(2, 3))
    with jax.enable_x64(True):
        found = estimate_traced_ntk(
            apply, params, a, b, jax.random.key(0), num_probes=4000
        )
    error = np.sqrt(variance / 4000)
    np.testing.assert_allclose(found.standard_error, error, rtol=0.1, atol=1e-12)
    distance = np.abs(np.asarray(found.mean) - np.trace(kernel, axis1=2, axis2=3))
    assert (distance <= 5 * error + 1e-12).all()


def test_both_kinds_of_probes_agree_and_seeds_are_reproducible(problem):
    params, a, _ = problem
    with jax.enable_x64(True):
        estimate: Any = estimate_traced_ntk
        found = [
            estimate(
                apply, params, a, None, jax.random.key(seed), method=method, block=3
            )
            for seed, method in ((1, "gradients"), (1, "vjp_jvp"), (2, "gradients"))
        ]
        again = estimate_traced_ntk(apply, params, a, None, jax.random.key(1), block=3)
    for one, other in zip(found[0], found[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)
    assert (again.mean == found[0].mean).all()
    assert (again.mean != found[2].mean).any()
    assert np.linalg.eigvalsh(again.mean)[0] > -1e-10


@pytest.mark.slow
def test_trace_of_a_unet_is_estimated_within_its_standard_error(tiny_unet):
    network = build_network(tiny_unet, (8, 8, 1))
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape),
        network.init(jax.random.key(0)),
    )

    def output(params, x):
        return network.apply(params, x, jnp.zeros(len(x)))

    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    exact = traced_empirical_ntk(output, params, x)
    for method in ("gradients", "vjp_jvp"):
        found = estimate_traced_ntk(
            output, params, x, None, jax.random.key(2), num_probes=64, method=method
        )
        assert (np.abs(found.mean - exact) < 5 * found.standard_error).all()
        assert (found.standard_error < 0.5 * np.abs(exact).max()).all()


@pytest.mark.parametrize("method", ["gradients", "vjp_jvp"])
@pytest.mark.parametrize("block", [3, 16])
def test_a_call_for_each_gradient_gives_what_one_program_gives(
    method, block, problem, monkeypatch
):
    params, a, b = problem
    options = {"num_probes": 3, "method": method, "block": block}
    with jax.enable_x64(True):
        key = jax.random.key(0)
        for other in (None, b):
            one_program = estimate_traced_ntk(apply, params, a, other, key, **options)
            monkeypatch.setattr(probed_ntk, "_LARGE", 0)
            found = estimate_traced_ntk(apply, params, a, other, key, **options)
            monkeypatch.undo()
            for one, expected in zip(found, one_program, strict=True):
                np.testing.assert_allclose(one, expected, rtol=1e-11, atol=1e-11)
            if other is None:
                assert (found.mean == found.mean.T).all()


def test_large_networks_get_a_call_for_each_gradient_unless_they_are_traced(
    problem, monkeypatch
):
    params, a, _ = problem
    calls = []
    real = probed_ntk._one_by_one

    def counted(*arguments):
        calls.append(1)
        return real(*arguments)

    def estimate(params, x):
        found = estimate_traced_ntk(apply, params, x, None, jax.random.key(0))
        return found.mean

    monkeypatch.setattr(probed_ntk, "_one_by_one", counted)
    small = estimate(params, a)
    monkeypatch.setattr(probed_ntk, "_LARGE", 42)
    traced = jax.jit(estimate)(params, a)
    assert not calls
    np.testing.assert_allclose(traced, small, rtol=1e-5, atol=1e-5)
    estimate(params, a)
    assert calls == [1]


def test_bad_input_gets_one_line(problem):
    params, a, b = problem
    estimate: Any = estimate_traced_ntk
    for options, words in (
        ({"num_probes": 1}, "num_probes is 1"),
        ({"method": "gradient"}, "unknown method 'gradient'; did you mean"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            estimate(apply, params, a, b, jax.random.key(0), **options)
        assert "\n" not in str(caught.value)
