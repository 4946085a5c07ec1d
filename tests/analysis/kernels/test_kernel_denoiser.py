"""A kernel regression in the house frame: the same predictor, and samples of it."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.kernels.diffusion_regression import dsm_triples, lift, weighted_errors
from analysis.kernels.filters import Descent, flow
from analysis.kernels.kernel_denoiser import (
    Lifting,
    ScoreNetworkDenoiser,
    dual_coefficients,
    fit_kernel_denoiser,
    kernel_denoiser,
)
from analysis.kernels.nystrom import decompose_features, nystrom_map
from analysis.kernels.posterior import posterior_mean
from analysis.kernels.regression import decompose, fit, predict
from analysis.kernels.relu_ntk import relu_ntk
from analysis.kernels.score_network import apply, gd_run, init
from configs.errors import InputError, InputWarning
from diffusion.closed_form import MixtureDenoiser, fit_gaussian
from samplers import Heun, integrate, log_linear

KEY = jax.random.key(4)
S = 100.0


def mixture():
    angles = 2 * np.pi * np.arange(3) / 3
    centres = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shapes = (np.zeros(3), centres, np.zeros((3, 2, 0)), np.zeros((3, 0)))
    arrays = [jnp.asarray(v, jnp.float32) for v in (*shapes, np.full(3, 0.25**2))]
    return MixtureDenoiser(*arrays)


@functools.cache
def sample_of_triples():
    clean = mixture().sample(KEY, 1024)
    return dsm_triples(jax.random.key(5), clean, 1024, (0.05, 2.0))


def triples(n=128, first=0):
    return type(sample_of_triples())(
        *(v[first : first + n] for v in sample_of_triples())
    )


def kernel(a, b):
    """u.v (pi - theta) / (2 pi), float64 NumPy."""
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    theta = np.arccos(np.clip(a @ b.T / lengths, -1, 1))
    return a @ b.T * (np.pi - theta) / (2 * np.pi)


def wide(values) -> Any:
    return tuple(np.asarray(v, np.float64) for v in values)


def reference(data, s, xt, t, bias=1.0):
    """The flow's prediction at (x_t, t), dense and in float64."""

    def lifted(x, t):
        columns = [x, (t - 0.05)[:, None], np.full((len(x), 1), bias)]
        return np.concatenate(columns[: 3 if bias else 2], axis=1)

    x, times, y, _ = wide(data)
    z, n, mean = lifted(x, times), len(y), y.mean(axis=0)
    gram = kernel(z, z)
    np.fill_diagonal(gram, np.sum(z**2, axis=1) / 2)
    values, vectors = np.linalg.eigh(gram)
    gains = -np.expm1(-s * values / n) / values
    weights = vectors @ (gains[:, None] * (vectors.T @ (y - mean)))
    return mean + kernel(lifted(*wide((xt, t))), z) @ weights


def test_a_call_in_the_house_frame_is_the_prediction_at_its_time():
    queries = triples(20, 200)
    wanted = reference(triples(), S, queries.xt, queries.t)
    found = fit_kernel_denoiser(triples(), S, lifting=Lifting())
    np.testing.assert_allclose(
        posterior_mean(found, queries.xt, queries.t), wanted, atol=2e-4
    )
    with jax.enable_x64(True):
        data = triples()._replace(xt=jnp.asarray(np.float64(triples().xt)))
        found = fit_kernel_denoiser(data, S, lifting=Lifting())
        values = posterior_mean(found, *wide((queries.xt, queries.t)))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_projection_holds_predictions_in_the_ball():
    plain, held = (
        fit_kernel_denoiser(triples(), 1e4, lifting=Lifting(), radius=radius)
        for radius in (None, 1.0)
    )
    x = 3 * jax.random.normal(KEY, (20, 2))
    free, found = np.asarray(plain(x, 0.7)), np.asarray(held(x, 0.7))
    lengths = np.linalg.norm(free, axis=1)
    assert (lengths > 1).any() and (lengths < 1).any()
    wanted = free / np.maximum(lengths, 1)[:, None]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_time_is_held_at_the_ends_of_training():
    """Beyond T the input shrinks by the true alpha and t stays T."""
    found = fit_kernel_denoiser(triples(), S, lifting=Lifting())
    low, high = Lifting().sigma_range()
    assert np.log1p(np.square([low, high])) == pytest.approx([0.05, 2.0])
    x = jax.random.normal(KEY, (20, 2))
    for sigma, held in ((20.0, high), (1e-3, low)):
        same = x * np.sqrt((1 + held**2) / (1 + sigma**2)).astype(np.float32)
        np.testing.assert_allclose(found(x, sigma), found(same, held), atol=1e-4)


def test_rotated_data_make_a_rotated_denoiser_and_order_does_not_matter():
    """T27: the kernel is isotropic in x when the scale is shared."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    order = np.random.default_rng(0).permutation(128)
    with jax.enable_x64(True):
        data = triples()._replace(
            **dict(zip(("xt", "t", "y"), wide(triples()[:3]), strict=True))
        )
        turned = data._replace(xt=data.xt @ turn.T, y=data.y @ turn.T)
        mixed = data._replace(xt=data.xt[order], t=data.t[order], y=data.y[order])
        x = jnp.asarray(np.random.default_rng(1).normal(size=(20, 2)))
        lifting = Lifting(scale=1.3)
        plain, rotated, reordered = (
            fit_kernel_denoiser(v, S, lifting=lifting) for v in (data, turned, mixed)
        )
        wanted = np.asarray(plain(x, 0.8))
        np.testing.assert_allclose(rotated(x @ turn.T, 0.8), wanted @ turn.T, atol=1e-9)
        np.testing.assert_allclose(reordered(x, 0.8), wanted, atol=1e-9)
        uneven = [
            fit_kernel_denoiser(v, S, lifting=Lifting(scale=(1.0, 3.0)))
            for v in (data, turned)
        ]
        gap = (
            np.asarray(uneven[1](x @ turn.T, 0.8))
            - np.asarray(uneven[0](x, 0.8)) @ turn.T
        )
    assert np.abs(gap).max() > 1e-2


def test_without_bias_predictions_are_linear_along_rays():
    """T17: exactly, and the best error is more than a quarter above that with bias."""
    data, fresh = triples(512), triples(512, 512)
    truth = wide([posterior_mean(mixture(), fresh.xt, fresh.t)])[0]
    xt, t, y, _ = wide(data)
    # To the queries, points (c x, T0 + c (t - T0)) of a ray are added, for three c.
    along = np.array([0.5, 1.0, 2.0])[:, None]
    far_x = np.concatenate([wide([fresh.xt])[0], along * xt[:1]])
    far_t = np.concatenate([wide([fresh.t])[0], 0.05 + along[:, 0] * (t[0] - 0.05)])
    best = {}
    with jax.enable_x64(True):
        for bias in (0.0, 1.0):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", InputWarning)
                z, far = lift(xt, t, 0.05, bias), lift(far_x, far_t, 0.05, bias)
            assert ("linear along rays" in "".join(map(str, caught))) == (bias == 0)
            model = fit(decompose(np.asarray(relu_ntk(z))), y)
            values = predict(model, relu_ntk(far, z), np.array([30.0, 100.0, 300.0]))
            values, ray = np.asarray(values[:, :-3]), np.asarray(values[:, -3:])
            square = np.sum((values - truth) ** 2, axis=2)
            best[bias] = np.sqrt(square.mean(axis=1).min())
            bend = np.abs(ray - along * ray[:, 1:2]).max()
            assert (bend < 1e-10) == (bias == 0)
    assert best[0.0] > 1.25 * best[1.0]


def test_coefficients_of_a_model_predict_what_the_model_does():
    with jax.enable_x64(True):
        xt, t, y, _ = wide(triples())
        z = lift(xt, t, 0.05)
        model = fit(decompose(np.asarray(relu_ntk(z))), y)
        far = lift(*wide(triples(20, 200)[:2]), t0=0.05)
        cross = np.asarray(relu_ntk(far, z))
        for s, filter in ((S, flow), (40, Descent(0.5))):
            weights = dual_coefficients(model, s, filter=filter)
            wanted = predict(model, cross, s, filter=filter)
            np.testing.assert_allclose(cross @ weights, wanted, atol=1e-10)


def test_nystrom_on_all_points_is_the_exact_denoiser():
    x = jax.random.normal(KEY, (20, 2))
    exact = fit_kernel_denoiser(triples(), S, lifting=Lifting(), mean=np.zeros(2))
    with jax.enable_x64(True):
        xt, t, y, _ = wide(triples())
        z = np.asarray(Lifting()(xt, t))
        features = nystrom_map(relu_ntk, z)
        model = fit(decompose_features(np.asarray(features(z))), y)
        found = kernel_denoiser(model, features, S, lifting=Lifting(), event=(2,))
        values = found(jnp.asarray(x, jnp.float64), 0.6)
    np.testing.assert_allclose(values, exact(x, 0.6), atol=2e-4)


def test_a_trained_network_is_a_denoiser_too():
    queries = triples(20, 200)
    z = lift(triples().xt, triples().t, 0.05)
    run = gd_run(init(KEY, 64, 4, 2), z, triples().y, 0.5, [20])
    network = ScoreNetworkDenoiser(
        run.params, jnp.full(2, 0.1), lifting=Lifting(), event=(2,)
    )
    wanted = 0.1 + apply(run.params, lift(queries.xt, queries.t, 0.05))
    found = posterior_mean(network, queries.xt, queries.t)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_error_falls_with_data_and_rises_with_overtraining():
    fresh = triples(512, 512)
    truth = posterior_mean(mixture(), fresh.xt, fresh.t)

    def error(n, s):
        found = fit_kernel_denoiser(triples(n), s, lifting=Lifting())
        values = posterior_mean(found, fresh.xt, fresh.t)
        return float(weighted_errors(values, truth, fresh.t).f)

    few, many, forever = error(128, 50.0), error(512, 150.0), error(512, 1e6)
    assert many < 0.75 * few
    assert forever > 1.5 * many


def test_samplers_run_on_it():
    """They come to the three modes in equal parts; those of the Gaussian do not."""
    lifting = Lifting()
    denoiser = fit_kernel_denoiser(triples(512), 150.0, lifting=lifting, radius=2.5)
    low, high = lifting.sigma_range()
    clean = mixture().sample(jax.random.key(8), 400)
    start = clean + high * jax.random.normal(jax.random.key(9), clean.shape)

    def at_modes(model):
        """Return the share of samples within .75, three deviations, of each mode."""
        samples = integrate(Heun(), model, start, log_linear(12, low, high)).x
        gaps = np.asarray(samples)[:, None] - np.asarray(mixture().means)
        return np.mean(np.linalg.norm(gaps, axis=2) < 0.75, axis=0)

    found, gaussian = at_modes(denoiser), at_modes(fit_gaussian(np.asarray(clean)))
    assert found.sum() > 0.7 and found.min() > 0.2
    assert gaussian.sum() < 0.4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Lifting(t_range=(0.0, 1.0)), "T0"),
        (lambda: Lifting(beta=-1.0), "beta"),
        (
            lambda: fit_kernel_denoiser(triples(8), S, lifting=Lifting(), event=(3,)),
            "2 outputs",
        ),
        (
            lambda: fit_kernel_denoiser(triples(8), S, lifting=Lifting(), radius=-1.0),
            "radius",
        ),
    ],
)
def test_bad_input_gets_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
