"""Closed-form kernels against Monte Carlo, another library and 80-bit references."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.kernels.angles import angle
from analysis.kernels.relu_ntk import arc_cosine, relu_ntk, sphere_eigenvalues
from configs.errors import InputError

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_derivative_at_coincident_points_is_that_without_the_kink[2-1]",
    "test_derivative_elsewhere_is_that_of_finite_differences[40-3-both]",
    "test_kernel_is_accurate_for_parallel_points_too[4-3-both]",
    "test_kernel_is_accurate_for_parallel_points_too[40-1-first]",
    "test_kernel_is_accurate_for_parallel_points_too[40-2-first]",
    "test_kernel_is_accurate_for_parallel_points_too[40-3-both]",
)

GOLDEN = Path(__file__).with_name("golden_neural_tangents.npz")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def reference_angle(u, v):
    """Return Kahan's angle of each pair in extended precision, (n, q)."""
    u, v = (x.astype(np.longdouble) for x in (u, v))
    u, v = (x / np.sqrt(np.sum(x**2, axis=1, keepdims=True)) for x in (u, v))
    apart = np.sqrt(np.sum((u[:, None] - v) ** 2, axis=2))
    along = np.sqrt(np.sum((u[:, None] + v) ** 2, axis=2))
    return 2 * np.arctan2(apart, along)


def reference_kernel(u, v, depth=1, layers="first"):
    """Return the recursion over layers in extended precision, (n, q)."""
    theta = reference_angle(u, v)
    u, v = (x.astype(np.longdouble) for x in (u, v))
    pi = np.longdouble(np.pi) + np.longdouble(1.2246467991473532e-16)
    power = np.sqrt(np.sum(u**2, axis=1))[:, None] * np.sqrt(np.sum(v**2, axis=1))
    kernel = u @ v.T
    for _ in range(depth):
        cosine = (np.sin(theta) + (pi - theta) * np.cos(theta)) / pi
        kernel = kernel * (pi - theta) / (2 * pi)
        power = power / 2
        if layers == "both":
            kernel = kernel + power * cosine
        gap = theta - np.sin(theta) + (pi - theta) * 2 * np.sin(theta / 2) ** 2
        theta = 2 * np.arcsin(np.sqrt(gap / (2 * pi)))  # cos theta = 1 - gap / pi
    return kernel


def crowded_points(rng, p, dtype=np.float64):
    """Return points of which many are parallel, opposite or nearly so."""
    x = rng.normal(size=(90, p))
    x[10:30] = x[5] + np.geomspace(1e-7, 0.2, 20)[:, None] * x[10:30]
    x[30:40] = -2 * x[6] + 1e-3 * x[30:40]
    x[40], x[41] = 3 * x[7], -x[8]
    x[50:] = rng.normal(size=p) + 0.05 * x[50:]
    return x.astype(dtype)


@pytest.mark.parametrize("layers", ["first", "both"])
def test_kernel_is_the_mean_over_a_million_neurons(layers, x64):
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 3, 4))
    weights = rng.normal(size=(1_000_000, 4))
    on_u, on_v = weights @ u.T, weights @ v.T
    found = np.asarray(relu_ntk(u, v, layers=layers))
    for i in range(3):
        for j in range(3):
            active = (on_u[:, i] > 0) & (on_v[:, j] > 0)
            terms = active * (u[i] @ v[j])
            if layers == "both":
                terms = terms + active * on_u[:, i] * on_v[:, j]
            error = terms.std() / 1000
            assert abs(terms.mean() - found[i, j]) < 5 * error


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_kernels_equal_those_of_neural_tangents(depth, x64):
    golden = np.load(GOLDEN)
    left, right = golden["left"], golden["right"]
    for name, b in ((f"ntk{depth}", right), (f"ntk{depth}_square", None)):
        found = relu_ntk(left, b, depth=depth, layers="both")
        np.testing.assert_allclose(found, golden[name], rtol=0, atol=1e-6)
    if depth == 1:
        np.testing.assert_allclose(arc_cosine(left, right), golden["nngp1"], atol=1e-6)


def test_golden_numbers_name_their_versions():
    versions = dict(entry.split() for entry in np.load(GOLDEN)["versions"])
    assert versions["neural-tangents"] == "0.6.5"
    assert versions["jax"] == "0.5.3"


@pytest.mark.parametrize("layers", ["first", "both"])
@pytest.mark.parametrize("depth", [1, 3])
def test_kernel_is_symmetric_positive_and_homogeneous(depth, layers, x64):
    x = np.random.default_rng(1).normal(size=(30, 5))
    kernel = np.asarray(relu_ntk(x, depth=depth, layers=layers))
    assert (kernel == kernel.T).all()
    assert np.linalg.eigvalsh(kernel)[0] > 0
    factor = (depth + 1 if layers == "both" else 1) / 2**depth
    np.testing.assert_allclose(np.diag(kernel), factor * np.sum(x**2, 1), rtol=1e-14)
    other = relu_ntk(3.0 * x, x, depth=depth, layers=layers)
    np.testing.assert_allclose(other, 3 * kernel, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth, layers", [(1, "first"), (2, "first"), (3, "both")])
@pytest.mark.parametrize("p", [4, 40])
def test_kernel_is_accurate_for_parallel_points_too(p, depth, layers, x64):
    x = crowded_points(np.random.default_rng(2), p)
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6)):
        a = x.astype(dtype)
        expected = reference_kernel(a, a, depth, layers)
        found = relu_ntk(a, a.copy(), depth=depth, layers=layers)
        error = np.abs(np.asarray(found) - expected).max()
        assert found.dtype == dtype and error < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [3, 40])
def test_both_methods_give_the_angle_to_full_precision(p, dtype, x64):
    x = crowded_points(np.random.default_rng(3), p, dtype)
    expected = reference_angle(x, x)
    for method in ("atan2", "kahan"):
        found = angle(x, x.copy(), method=method)
        assert found.dtype == dtype
        error = np.abs(np.asarray(found) - expected)
        # Away from the close pairs a float32 product is good to 2e-6.
        assert error.max() < (2e-6 if dtype == np.float32 else 1e-14)
        assert error[10:20, 5].max() < (5e-7 if dtype == np.float32 else 1e-15)


def test_angles_of_points_with_themselves_are_exactly_zero():
    x = np.random.default_rng(3).normal(size=(50, 40)).astype(np.float32)
    assert (np.diag(angle(x)) == 0).all()


def test_single_precision_diagonal_is_accurate_where_an_arccos_is_not():
    x = np.random.default_rng(4).normal(size=(300, 4)).astype(np.float32)
    exact = np.sum(x.astype(np.float64) ** 2, axis=1) / 2
    for method in ("kahan", "atan2"):
        # Two arrays: nothing tells the kernel that they are equal.
        diagonal = np.diag(relu_ntk(x, x.copy(), angle=method))
        assert np.abs(diagonal - exact).max() < 2e-6
    norm = np.linalg.norm(x, axis=1)
    cosine = np.sum(x * x, axis=1, dtype=np.float32) / (norm * norm)
    shuffled = np.einsum("ij,ij->i", x / norm[:, None], x / norm[:, None])
    theta = np.arccos(np.clip(np.minimum(cosine, shuffled), -1, 1))
    naive = norm**2 * cosine * (math.pi - theta) / (2 * math.pi)
    assert np.abs(naive - exact).max() > 1e-4


@pytest.mark.parametrize("p, depth", [(2, 1), (40, 2)])
def test_derivative_at_coincident_points_is_that_without_the_kink(p, depth, x64):
    x = np.random.default_rng(5).normal(size=(2, p))
    x[1] = -2 * x[0]

    def slope(u):
        found = relu_ntk(u, x, depth=depth, layers="both")
        return found[0, 0] + 0 * found[0, 1]  # not a number, if either is none

    expected = (depth + 1) / 2**depth * x[0]
    point = jnp.asarray(x[:1])
    np.testing.assert_allclose(jax.grad(slope)(point)[0], expected, rtol=1e-12)
    if p == 2:
        # A compiled derivative may be finite by luck: here it is not compiled.
        with jax.disable_jit():
            found = jax.grad(slope)(point)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_derivative_of_the_diagonal_is_that_of_squared_norms(x64):
    x = np.random.default_rng(5).normal(size=(3, 40))
    slope = jax.grad(lambda u: jnp.trace(relu_ntk(u, layers="both")))(jnp.asarray(x))
    np.testing.assert_allclose(slope, 2 * x, rtol=1e-12)


@pytest.mark.parametrize("p, depth, layers", [(4, 1, "first"), (40, 3, "both")])
def test_derivative_elsewhere_is_that_of_finite_differences(p, depth, layers, x64):
    u, v, step = np.random.default_rng(6).normal(size=(3, 5, p))
    u[0] = v[0] + 1e-2 * u[0]

    def value(u):
        return relu_ntk(u, v, depth=depth, layers=layers)

    kernel, slope = jax.jvp(value, (jnp.asarray(u),), (jnp.asarray(step),))
    h = 1e-6
    ahead, behind = (reference_kernel(u + t * step, v, depth, layers) for t in (h, -h))
    expected = ((ahead - behind) / (2 * h)).astype(float)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8)
    reverse = jax.grad(lambda u: jnp.vdot(value(u), kernel))(jnp.asarray(u))
    np.testing.assert_allclose(
        np.vdot(reverse, step), np.vdot(slope, kernel), rtol=1e-11
    )


def test_zero_points_have_a_zero_kernel_and_a_finite_derivative(x64):
    x = np.random.default_rng(7).normal(size=(4, 40))
    x[2] = 0
    method: Any
    for b, method in ((None, "atan2"), (x.copy(), "kahan")):
        kernel = np.asarray(relu_ntk(x, b, layers="both", angle=method))
        assert (kernel[2] == 0).all() and (kernel[:, 2] == 0).all()
    slope = jax.grad(lambda u: relu_ntk(u, x, layers="both").sum())(jnp.asarray(x))
    assert np.isfinite(slope).all() and (np.asarray(slope)[2] == 0).all()


def test_kernel_is_unchanged_by_a_common_rotation(x64):
    rng = np.random.default_rng(8)
    rotation, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    u, v = rng.normal(size=(2, 6, 40))
    turned = relu_ntk(u @ rotation, v @ rotation, depth=2, layers="both")
    kernel = relu_ntk(u, v, depth=2, layers="both")
    np.testing.assert_allclose(turned, kernel, rtol=1e-12, atol=1e-12)


def test_kernel_can_be_mapped_over_sets_of_points(x64):
    sets = np.stack([crowded_points(np.random.default_rng(9), 40)[:45]] * 2)
    sets[1] *= -1
    found = jax.vmap(lambda x: relu_ntk(x, x + 0.0))(sets)
    np.testing.assert_allclose(found[1], relu_ntk(sets[1], sets[1].copy()), atol=1e-12)


def test_sphere_eigenvalues_of_the_first_layer_kernel():
    found = sphere_eigenvalues(relu_ntk, 3, np.arange(100))
    assert found[0] == pytest.approx(1 / 16, abs=1e-14)
    assert found[1] == pytest.approx(1 / 12, abs=1e-14)
    assert found[[2, 4, 6]] == pytest.approx([0.0273, 2.3e-3, 6.6e-4], rel=0.02)
    assert np.abs(found[3::2]).max() < 1e-10
    even = np.arange(20, 100, 2)
    slope = np.polyfit(np.log(even), np.log(found[even]), 1)[0]
    assert slope == pytest.approx(-3, abs=0.2)


@pytest.mark.parametrize("p", [2, 3, 6])
def test_sphere_eigenvalues_and_multiplicities_sum_to_the_trace(p):
    """Sum of mu_k times the dimension of degree k is k(u, u), by Mercer's theorem."""
    degrees = np.arange(61)
    found = sphere_eigenvalues(lambda a, b: (a @ b.T) ** 4 + 2, p, degrees)
    count = [
        math.comb(k + p - 1, p - 1) - (math.comb(k + p - 3, p - 1) if k > 1 else 0)
        for k in degrees
    ]
    assert found @ np.array(count, float) == pytest.approx(3.0, rel=1e-11)
    assert np.abs(found[[1, 3]]).max() < 1e-14


def test_bad_input_gets_one_line():
    x = np.ones((3, 4), np.float32)
    kernel: Any = relu_ntk
    angles: Any = angle
    for call, words in (
        (lambda: kernel(x, depth=0), "depth is 0; it must be a whole number"),
        (lambda: kernel(x, depth=1.5), "depth is 1.5"),
        (lambda: kernel(x, layers="bth"), "did you mean 'both'"),
        (lambda: kernel(x, angle="kahn"), "did you mean 'kahan'"),
        (lambda: kernel(x, x[:, :3]), r"the second points have shape \(3, 3\)"),
        (lambda: kernel(x[0]), r"the first points have shape \(4,\)"),
        (lambda: kernel(x.astype(np.uint8)), "dtype uint8"),
        (lambda: arc_cosine(x, order=2), "order is 2"),
        (lambda: angles(x, method="acos"), "unknown angle method 'acos'"),
        (lambda: sphere_eigenvalues(relu_ntk, 1, [0]), "p is 1"),
        (lambda: sphere_eigenvalues(relu_ntk, 3, [-1]), "degrees is"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
