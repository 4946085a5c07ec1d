"""The wide network, its linearised twin, its limit kernel, and the chain of errors."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import linregress
from scipy.stats import t as student

from analysis.kernels import two_layer_network
from analysis.kernels.coupling import (
    Target,
    coupling_curve,
    coupling_slopes,
    decompose_error,
    hilbert_target,
    virtual_labels,
)
from analysis.kernels.diffusion_regression import dsm_triples, lift
from analysis.kernels.filters import Descent
from analysis.kernels.posterior import posterior_mean
from analysis.kernels.power_law import fit_power_law
from analysis.kernels.regression import decompose, fit, predict, rkhs_norm
from analysis.kernels.relu_ntk import relu_ntk
from analysis.kernels.score_network import (
    Params,
    apply,
    gd_run,
    init,
    largest_step,
    linearized_run,
    movement,
)
from configs.errors import InputError
from diffusion.closed_form import MixtureDenoiser

KEY = jax.random.key(2)


def mixture() -> MixtureDenoiser:
    angles = 2 * np.pi * np.arange(3) / 3
    centres = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shapes = (np.zeros(3), centres, np.zeros((3, 2, 0)), np.zeros((3, 0)))
    log_weights, means, bases, variances = map(jnp.asarray, shapes)
    return MixtureDenoiser(log_weights, means, bases, variances, jnp.full(3, 0.25**2))


@functools.cache
def triples():
    with jax.enable_x64(True):
        x0 = mixture().sample(jax.random.key(0), 600)
        xt, t, y, _ = dsm_triples(jax.random.key(1), x0, 600, (0.05, 2.0))
        values = lift(xt, t, 0.05), y, posterior_mean(mixture(), xt, t)
        return tuple(np.asarray(v, np.float64) for v in values)


def problem(n, first=0):
    """Lifted inputs, labels and posterior means of the standard mixture, float64."""
    return tuple(values[first : first + n] for values in triples())


def points(n=12, p=4, d=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)), rng.normal(size=(n, d))


def drawn(m=32, p=4, d=2, antisym=True):
    with jax.enable_x64(True):
        return init(KEY, m, p, d, antisym, jnp.float64)


def test_outputs_are_those_of_the_formula():
    params, (z, _) = drawn(antisym=False), points()
    w, a = map(np.asarray, params)
    wanted = np.stack([np.maximum(w @ row, 0) @ a for row in z]) / np.sqrt(32)
    with jax.enable_x64(True):
        np.testing.assert_allclose(apply(params, z), wanted, atol=1e-13)


def test_a_start_is_normal_weights_and_signs():
    w, a = map(np.asarray, init(KEY, 4000, 5, 3, antisym=False))
    assert set(np.unique(a)) == {-1.0, 1.0}
    assert np.abs(a.mean(axis=0)).max() < 4 / np.sqrt(4000)
    assert np.abs(w.mean()) < 4 / np.sqrt(w.size)
    assert abs(w.var() - 1) < 4 * np.sqrt(2 / w.size)


def test_an_antisymmetric_start_is_zero_in_pairs():
    params, (z, _) = drawn(), points()
    w, a = map(np.asarray, params)
    np.testing.assert_array_equal(w[:16], w[16:])
    np.testing.assert_array_equal(a[:16], -a[16:])
    with jax.enable_x64(True):
        assert np.abs(apply(params, z)).max() < 1e-14
        assert np.abs(apply(drawn(antisym=False), z)).max() > 0.1


def test_the_explicit_step_is_that_of_autodiff(monkeypatch):
    """Seven steps against jax.grad; once with the neurons in chunks."""
    params, (z, y) = drawn(antisym=False), points()
    with jax.enable_x64(True):

        def loss(weights):
            return jnp.sum((apply(Params(weights, params.a), z) - y) ** 2) / (
                2 * len(z)
            )

        step, weights = jax.jit(jax.grad(loss)), params.W
        for _ in range(7):
            weights = weights - 0.3 * step(weights)
        run = gd_run(params, z, y, 0.3, [7])
        np.testing.assert_allclose(run.params.W, weights, atol=1e-13)
        assert float(run.diagnostics.loss[0]) == pytest.approx(float(loss(weights)))
        monkeypatch.setattr(two_layer_network, "_ACTIVATIONS", 12 * 8)
        chunked = gd_run(params, z[:11], y[:11], 0.3, [7])
        monkeypatch.undo()
        whole = gd_run(params, z[:11], y[:11], 0.3, [7], queries=z[:11])
    np.testing.assert_allclose(chunked.params.W, whole.params.W, atol=1e-14)
    np.testing.assert_allclose(chunked.outputs, whole.outputs, atol=1e-14)


def test_recording_does_not_change_the_run_and_sees_it_as_it_goes():
    params, (z, y) = drawn(), points()
    queries = points(5, seed=1)[0]
    with jax.enable_x64(True):
        often = gd_run(params, z, y, 0.5, [0, 1, 4, 9], queries=queries)
        for index, steps in ((1, 1), (2, 4), (3, 9)):
            once = gd_run(params, z, y, 0.5, [steps], queries=queries)
            np.testing.assert_allclose(
                often.outputs[index], once.outputs[0], atol=1e-13
            )
        np.testing.assert_allclose(often.outputs[0], apply(params, queries), atol=1e-14)
        each = movement(params, often.params, z)
    moved = np.asarray(often.params.W) - np.asarray(params.W)
    lengths = np.linalg.norm(moved, axis=1)
    found = often.diagnostics
    assert float(found.max_dw[3]) == pytest.approx(lengths.max())
    assert float(found.norm_dw[3]) == pytest.approx(np.linalg.norm(moved))
    np.testing.assert_allclose(each.distance, lengths, rtol=1e-6)
    assert float(found.flipped[3]) == pytest.approx(float(np.mean(each.flipped)))
    changed = (z @ np.asarray(params.W).T > 0) != (z @ np.asarray(often.params.W).T > 0)
    assert float(found.flipped[3]) == pytest.approx(changed.mean())
    assert changed.mean() > 0
    assert [float(v[0]) for v in found[1:]] == [0, 0, 0]


def own_kernel(params, z, queries):
    """J J^T of the start by autodiff, ((q d), (n d)) and ((n d), (n d))."""

    def rows(inputs):
        jacobian = jax.jacrev(lambda w: apply(Params(w, params.a), inputs))(params.W)
        return np.asarray(jacobian).reshape(inputs.shape[0] * params.a.shape[1], -1)

    return rows(queries) @ rows(z).T, rows(z) @ rows(z).T


def test_the_linearised_twin_follows_its_own_kernel():
    """T10: descent on the linearisation is (1 - (1 - eta K/n)^tau) on J J^T."""
    params, (z, y) = drawn(antisym=False), points()
    queries = points(5, seed=1)[0]
    with jax.enable_x64(True):
        run = linearized_run(params, z, y, 0.4, [1, 30, 200], queries=queries)
        cross, own = own_kernel(params, z, queries)
        first, start = (np.asarray(apply(params, v)) for v in (queries, z))
        start_outputs, change = jax.jvp(
            lambda w: apply(Params(w, params.a), queries),
            (params.W,),
            (run.params.W - params.W,),
        )
    values, vectors = np.linalg.eigh(own)
    c = vectors.T @ (y - start).ravel()
    for outputs, tau in zip(np.asarray(run.outputs), (1, 30, 200), strict=True):
        fitted = -np.expm1(tau * np.log1p(-0.4 / 12 * values))
        filtered = fitted / np.maximum(values, 1e-12)
        wanted = first + (cross @ (vectors @ (filtered * c))).reshape(first.shape)
        assert np.abs(outputs - wanted).max() < 1e-6 * np.abs(wanted).max()
    linear = np.asarray(start_outputs) + np.asarray(change)
    np.testing.assert_allclose(outputs, linear, atol=1e-12)


def test_the_network_leaves_its_linearisation():
    """So that the test above would fail on the network itself."""
    params, (z, y) = drawn(), points()
    with jax.enable_x64(True):
        net, twin = (run(params, z, y, 0.4, [200]) for run in (gd_run, linearized_run))
    assert np.abs(net.outputs - twin.outputs).max() > 1e-2


def test_largest_step_is_two_over_the_largest_eigenvalue():
    params, (z, y, _) = drawn(), problem(12)
    with jax.enable_x64(True):
        largest = np.linalg.eigvalsh(own_kernel(params, z, z)[1])[-1] / len(z)
        assert 2 / largest * (1 - 1e-12) <= largest_step(params, z) < 2.02 / largest
        # Above it the linearised network diverges.
        with pytest.raises(InputError, match="2/mu_1"):
            linearized_run(params, z, y, 2.1 / largest, [10])
        run = gd_run(params, z, y, 2.1 / largest, [200], allow_unstable=True)
    assert np.isfinite(run.outputs).all()


def test_rotated_inputs_and_weights_give_the_same_network():
    """T27: of the network, with the rotation in the first d coordinates."""
    params, (z, y) = drawn(), points()
    rotation = np.eye(4)
    rotation[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    with jax.enable_x64(True):
        plain = gd_run(params, z, y, 0.5, [20]).outputs
        turned = Params(params.W @ rotation.T, params.a)
        rotated = gd_run(turned, z @ rotation.T, y, 0.5, [20]).outputs
    np.testing.assert_allclose(rotated, plain, atol=1e-12)


def test_the_order_of_the_data_does_not_matter_and_seeds_do():
    """T27: permutations change nothing; the same key gives the same network."""
    (z, y), order = points(), np.random.default_rng(3).permutation(12)
    queries = points(5, seed=1)[0]
    with jax.enable_x64(True):
        plain = gd_run(drawn(), z, y, 0.5, [20], queries=queries).outputs
        mixed = gd_run(drawn(), z[order], y[order], 0.5, [20], queries=queries).outputs
        other = init(jax.random.key(3), 32, 4, 2, True, jnp.float64)
    np.testing.assert_allclose(mixed, plain, atol=1e-12)
    for a, b in zip(drawn(), drawn(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(np.asarray(other.W) - np.asarray(drawn().W)).min() > 0


def test_width_brings_the_network_to_its_kernel():
    """T9 in small: at a short time the distance falls as about m^(-1/2)."""
    (z, y, _), (queries, _, _) = problem(16), problem(60, 100)
    table = coupling_curve(KEY, (64, 1024), 4, (5,), z=z, y=y, queries=queries, eta=0.5)
    slope = float(coupling_slopes(table).slope[0])
    assert -0.6 <= slope <= -0.35
    assert coupling_slopes(table, "lin").slope[0] < slope
    # Against half the kernel the distance does not fall.
    half = lambda a, b=None: relu_ntk(a, b) / 2  # noqa: E731
    wrong = coupling_curve(
        KEY, (64, 1024), 2, (5,), z=z, y=y, queries=queries, eta=0.5, kernel=half
    )
    assert coupling_slopes(wrong).slope[0] > -0.25


@pytest.mark.slow
def test_coupling_falls_with_width_as_its_square_root():
    """T9."""
    (z, y, _), (queries, _, f_star) = problem(64), problem(500, 100)
    table = coupling_curve(
        KEY, (256, 1024, 4096), 4, (50,), z=z, y=y, queries=queries, f_star=f_star
    )
    assert -0.6 <= coupling_slopes(table).slope[0] <= -0.35
    means = [table.rel[table.width == m].mean() for m in (256, 1024, 4096)]
    assert means[0] > means[1] > means[2]
    assert (table.rel <= table.lin + table.initk + 1e-9).all()
    assert (table.rel * 1.5 < table.kernel_error).all()  # estimation dominates


def test_coupling_without_pairs_starts_from_the_networks_own_guess():
    """With f_0 of order 1 the kernel must start there, or nothing would agree."""
    (z, y, _), (queries, _, _) = problem(16), problem(20, 100)
    table = coupling_curve(
        KEY, (1024,), 1, (1, 5), z=z, y=y, queries=queries, eta=0.5, antisym=False
    )
    assert table.rel.max() < 0.25  # 20 without the guess
    assert table.tau.tolist() == [1, 5]
    assert np.isnan(table.net_error).all()


def test_label_mismatch_is_the_flow_of_the_difference():
    """T11: flow(y) - flow(y~) = flow(f_* - f_H), and the bound of its norm."""
    (z, y, f_star), (queries, _, _) = problem(24), problem(10, 100)
    f_hilbert = np.sin(z[:, :2])
    with jax.enable_x64(True):
        spectrum = decompose(np.asarray(relu_ntk(z)))
        cross = relu_ntk(queries, z)
        virtual = virtual_labels(y, f_star, f_hilbert)
        fits = [fit(spectrum, v) for v in (y, virtual, f_star - f_hilbert)]
        for s in (1.0, 100.0):
            a, b, difference = (np.asarray(predict(m, cross, s)) for m in fits)
            assert np.abs(a - b - difference).max() < 1e-12
            size = np.sqrt(np.mean(np.sum((f_star - f_hilbert) ** 2, axis=1)))
            assert 0 < float(rkhs_norm(fits[2], s)) <= np.sqrt(0.41 * s) * size


def test_four_terms_of_the_error_are_those_of_their_definitions():
    """Against a dense float64 computation with a matrix exponential by powers."""
    (z, y, f_star), (queries, _, truth) = problem(24), problem(10, 100)
    (far, _, f_far) = problem(60, 200)
    network = truth + 0.3
    steps, rho = 40, 1e-2
    with jax.enable_x64(True):
        names = {"k": (z, z), "kq": (queries, z), "ko": (far, far)}
        names |= {"kzo": (z, far), "kqo": (queries, far)}
        k, kq, ko, kzo, kqo = (np.asarray(relu_ntk(*v)) for v in names.values())
        projected = hilbert_target(fit(decompose(ko), f_far), kzo, kqo, rho)
        found = decompose_error(
            decompose(k),
            kq,
            y,
            Target(f_star, truth),
            projected.values,
            steps,
            filter=Descent(0.5),
            network=network,
        )
        without = decompose_error(
            decompose(k), kq, y, Target(f_star, truth), projected.values, 30.0
        )
    weights = np.linalg.solve(ko + 60 * rho * np.eye(60), f_far)
    assert projected.norm == pytest.approx(np.sqrt(np.sum(weights * (ko @ weights))))
    f_hilbert = Target(kzo @ weights, kqo @ weights)
    np.testing.assert_allclose(projected.values.query, f_hilbert.query, atol=1e-9)

    def descend(labels):
        gamma = np.zeros_like(labels)
        for _ in range(steps):
            gamma = gamma - 0.5 / 24 * (k @ gamma - labels)
        return kq @ gamma

    def rms(difference):
        return np.sqrt(np.mean(np.sum(difference**2, axis=1)))

    kernel, virtual = descend(y), descend(y + f_hilbert.train - f_star)
    chain = [network, kernel, virtual, f_hilbert.query, truth]
    wanted = [rms(a - b) for a, b in itertools.pairwise(chain)]
    np.testing.assert_allclose(found, [*wanted, rms(network - truth)], rtol=1e-7)
    assert found.total <= sum(found[:4])
    assert without.coupling == 0


def test_a_power_law_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x = np.repeat([1.0, 2, 4, 9], 2)
    y = 3 * x**-0.5 * np.exp(0.1 * rng.normal(size=8))
    for count in (8, 5, 4, 3):
        law = fit_power_law(x[-count:], y[-count:], confidence=0.9)
        line: Any = linregress(np.log(x[-count:]), np.log(y[-count:]))
        half = line.stderr * student.ppf(0.95, count - 2)
        assert law.exponent == pytest.approx(line.slope)
        assert law.high - law.exponent == pytest.approx(half, rel=2e-3)
        assert law.exponent - law.low == pytest.approx(half, rel=2e-3)
        assert law.factor == pytest.approx(np.exp(line.intercept))


Z, Y = points()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: init(KEY, 2, 4, 3), "at least 3 neurons"),
        (lambda: init(KEY, 33, 4, 3), "even"),
        (lambda: init(KEY, 32, 0, 3), "input"),
        (lambda: gd_run(init(KEY, 8, 4, 2), Z, Y, 100.0, [5]), "2/mu_1"),
        (lambda: gd_run(init(KEY, 8, 4, 2), Z, Y, 0.0, [5]), "eta"),
        (lambda: gd_run(init(KEY, 8, 4, 2), Z, Y, 0.1, [5, 5]), "increasing"),
        (lambda: gd_run(init(KEY, 8, 4, 2), Z, Y, 0.1, np.array([0.5])), "whole"),
        (lambda: gd_run(init(KEY, 8, 4, 2), Z, Y[:, :1], 0.1, [5]), "needs"),
        (lambda: gd_run(init(KEY, 8, 4, 2), Z, Y * np.nan, 0.1, [5]), "y holds NaN"),
        (
            lambda: coupling_curve(KEY, [4], 1, [0, 1], z=Z, y=Y, queries=Z),
            "at least 1 step",
        ),
        (
            lambda: coupling_curve(KEY, [4], 1, [1], z=Z, y=Y, queries=Z, eta=50.0),
            "diverges",
        ),
        (lambda: coupling_curve(KEY, [], 1, [1], z=Z, y=Y, queries=Z), "width"),
        (
            lambda: coupling_curve(KEY, [4], 1, [1], z=Z, y=Y[:, 0], queries=Z),
            "y\\[:, None\\]",
        ),
        (lambda: fit_power_law([2.0, 2.0], [1.0, 1.0]), "different x"),
    ],
)
def test_bad_input_gets_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
