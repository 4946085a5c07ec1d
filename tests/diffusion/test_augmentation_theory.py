"""What the optimum of Score Augmentation is, against closed forms in float64.

Each transform is read as a matrix; posterior means are enumerated over spikes or are
those of Gaussians.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.augmentation import (
    D4,
    Brightness,
    Cutout,
    Gamma,
    Rot90,
    Saturation,
    ScoreAugmentation,
    Translate,
    build_transform,
)
from diffusion.augmentation.combinations import OneOf
from diffusion.preconditioning import EDMPreconditioning
from samplers import Heun, karras, sample

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_least_squares_finds_the_gaussian_optimum[cutout:.3:.4]",
    "test_scores_change_variables_with_the_jacobian",
    "test_tweedie_with_coloured_noise[affine]",
    "test_tweedie_with_coloured_noise[cutout:.3:.7]",
    "test_tweedie_with_coloured_noise[rot90]",
)

SHAPE = (3, 3, 1)
D = 9
SIGMA = 0.6


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def fixed(transform, seed: int = 0, shape=SHAPE):
    """Return parameters that are not the identity's, and the matrix of T."""
    key = jax.random.key(seed)
    params = transform.sample(key, shape)
    while not np.any(np.asarray(transform.encode(params))):
        key = jax.random.fold_in(key, 1)
        params = transform.sample(key, shape)
    size = math.prod(shape)
    with jax.enable_x64(True):
        basis = jnp.eye(size, dtype=jnp.float64).reshape(size, *shape)
        rows = jax.vmap(lambda image: transform.apply(params, image))(basis)
    return params, np.asarray(rows).reshape(size, size).T


def gaussian():
    """Return mean and covariance of data, float64."""
    root = rng(1).normal(size=(D, D)) / 3
    return rng(2).normal(size=D) * 0.3, root @ root.T


def ideal_gaussian(matrix, u):
    """D_T(u) = T m + T S T^T (T S T^T + sigma^2 T T^T)^+ (u - T m)."""
    mean, covariance = gaussian()
    moved = matrix @ covariance @ matrix.T
    inverse = np.linalg.pinv(moved + SIGMA**2 * matrix @ matrix.T, rcond=1e-10)
    return matrix @ mean + (u - matrix @ mean) @ (moved @ inverse).T


def spikes(count: int = 5):
    return rng(3).normal(size=(count, D))


def posterior(u, matrix, sigma=SIGMA):
    """Return E[x0 | T y = u] over spikes, enumerated in the range of T."""
    points = spikes()
    precision = np.linalg.pinv(sigma**2 * matrix @ matrix.T, rcond=1e-10)
    difference = u[:, None] - points @ matrix.T
    logits = -0.5 * np.einsum("nkd,de,nke->nk", difference, precision, difference)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ points


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("brightness", marks=pytest.mark.slow),
        pytest.param("rot90", marks=pytest.mark.slow),
        "cutout:.3:.4",
        "translate:.3",
    ],
)
def test_least_squares_finds_the_gaussian_optimum(name):
    """T7: the best linear fit to what `ScoreAugmentation` makes is equation 2.4."""
    transform = build_transform(name)
    params, matrix = fixed(transform)
    count = 400_000
    mean, covariance = gaussian()
    clean = rng(4).multivariate_normal(mean, covariance, count)
    noise = SIGMA * rng(5).normal(size=clean.shape)

    class Frozen:
        linear = orthogonal = injective = self_identifying = True

        def sample(self, key, shape):
            return params

        def apply(self, params, x):
            return transform.apply(params, x)

        def encode(self, params):
            return transform.encode(params)

    augment = ScoreAugmentation(Frozen(), identity_probability=0.0)
    batch = jax.jit(augment)(
        jax.random.split(jax.random.key(0), count),
        jnp.asarray(clean.reshape(count, *SHAPE), jnp.float32),
        jnp.asarray(noise.reshape(count, *SHAPE), jnp.float32),
        jnp.full(count, SIGMA),
    )
    u, target = (np.asarray(a, np.float64).reshape(count, D) for a in batch[:2])
    design = np.concatenate([u, np.ones((count, 1))], axis=1)
    solution = np.linalg.lstsq(design, target, rcond=1e-6)[0]
    probes = (rng(6).normal(size=(50, D)) * 1.5) @ matrix.T
    found = np.concatenate([probes, np.ones((50, 1))], axis=1) @ solution
    assert np.abs(found - ideal_gaussian(matrix, probes)).max() < 0.05


@pytest.mark.parametrize("name", ["brightness", "rot90", "d4", "flip"])
def test_an_invertible_transform_carries_the_optimum_along(name):
    """T8: D_T(T y) = T D(y)."""
    matrix = fixed(build_transform(name), seed=2)[1]
    y = spikes()[rng(7).integers(0, 5, 40)] + SIGMA * rng(8).normal(size=(40, D))
    moved = posterior(y @ matrix.T, matrix) @ matrix.T
    plain = posterior(y, np.eye(D)) @ matrix.T
    np.testing.assert_allclose(moved, plain, atol=1e-9)


@pytest.mark.parametrize("name", ["cutout:.3:.7", "translate:.3"])
def test_a_singular_transform_denoises_without_the_hidden_pixels(name):
    """T9: D_T(T y) = T E[x0 | T y], which is not T D(y)."""
    matrix = fixed(build_transform(name), seed=3)[1]
    y = spikes()[rng(7).integers(0, 5, 200)] + SIGMA * rng(8).normal(size=(200, D))
    visible = np.flatnonzero(matrix.any(axis=1))
    # The posterior from the visible pixels alone, without a pseudo-inverse.
    u = y @ matrix.T
    rest = u[:, None, visible] - (spikes() @ matrix.T)[None, :, visible]
    logits = -0.5 * (rest**2).sum(axis=-1) / SIGMA**2
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    wanted = weights / weights.sum(axis=1, keepdims=True) @ spikes() @ matrix.T
    found = posterior(u, matrix) @ matrix.T
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert np.abs(found - posterior(y, np.eye(D)) @ matrix.T).max() > 0.1


@pytest.mark.parametrize(
    "name", ["brightness", "rot90", "cutout:.3:.7", "translate:.3", "affine"]
)
def test_tweedie_with_coloured_noise(name):
    """T10: D = u + sigma^2 T T^T s_T(u), with T^T from the transform's own adjoint."""
    transform = build_transform(name)
    params, matrix = fixed(transform, seed=1)
    mean, covariance = gaussian()
    whole = matrix @ (covariance + SIGMA**2 * np.eye(D)) @ matrix.T
    u = rng(9).normal(size=(30, D)) * 2 @ matrix.T
    score = -(u - matrix @ mean) @ np.linalg.pinv(whole, rcond=1e-10)
    with jax.enable_x64(True):
        images = jnp.asarray(score.reshape(-1, *SHAPE), jnp.float64)
        coloured = jax.vmap(
            lambda s: transform.apply(params, transform.adjoint(params, s))
        )(images)
    found = u + SIGMA**2 * np.asarray(coloured).reshape(-1, D)
    np.testing.assert_allclose(found, ideal_gaussian(matrix, u), atol=1e-9)
    white = np.abs(u + SIGMA**2 * score - ideal_gaussian(matrix, u)).max()
    if name in ("brightness", "affine"):
        assert white > 0.1
    else:
        assert white < 1e-9


def moments(augment, count=20_000):
    """Return mean and covariance of (input, target) over a batch of small images."""
    data = rng(10).normal(size=(40, 4, 4, 1)) * [[[0.3], [0.5], [0.9], [1.4]]] + 0.5
    clean = jnp.asarray(data[rng(11).integers(0, 40, count)], jnp.float32)
    noise = SIGMA * jax.random.normal(jax.random.key(1), clean.shape)
    keys = jax.random.split(jax.random.key(2), count)
    batch = jax.jit(augment)(keys, clean, noise, SIGMA)
    pair = jnp.concatenate([batch.noisy, batch.target], axis=1).reshape(count, 32)
    return np.asarray(pair.mean(axis=0)), np.cov(np.asarray(pair), rowvar=False)


def test_orthogonal_transforms_make_both_problems_one():
    """T11: same law of (input, target); brightness, for which it differs, is seen."""
    for transform, same in ((D4(), True), (Brightness(3.0), False)):
        found = [
            moments(ScoreAugmentation(transform, mode=mode))
            for mode in ("score", "nla")
        ]
        error = np.abs(found[0][1] - found[1][1]).max()
        assert (error < 0.1) == same, error
        assert np.abs(found[0][0] - found[1][0]).max() < 0.05


def test_brightness_scales_the_optimum_and_the_network_input():
    """T12: D_b(u) = b D(u / b; sigma), and what each noise label does to c_in u."""
    params, matrix = fixed(Brightness(), seed=4)
    b = float(params.gain)
    u = rng(12).normal(size=(40, D)) * 2
    np.testing.assert_allclose(matrix, b * np.eye(D), rtol=1e-12)
    np.testing.assert_allclose(
        posterior(u, matrix) @ matrix.T, b * posterior(u / b, np.eye(D)), atol=1e-12
    )
    sigma_data, count = 0.5, 8
    clean, noise = jnp.zeros((count, *SHAPE)), jnp.ones((count, *SHAPE))
    keys = jax.random.split(jax.random.key(3), count)
    rule = EDMPreconditioning(sigma_data)
    for label in ("nominal", "effective"):
        augment = ScoreAugmentation(
            Brightness(), sigma_label=label, identity_probability=0.0
        )
        draw = augment.draw(keys, SHAPE)
        gain = np.asarray(draw.score.params.gain, np.float64)
        batch = augment.apply(draw, clean, noise, SIGMA)
        told = SIGMA if label == "nominal" else gain * SIGMA
        np.testing.assert_allclose(batch.sigma, told * np.ones(count), rtol=1e-6)
        variance = gain**2 * (SIGMA**2 + sigma_data**2)
        scaled = np.asarray(rule(batch.sigma).c_in, np.float64).reshape(-1) ** 2
        wanted = variance / (np.asarray(told) ** 2 + sigma_data**2)
        np.testing.assert_allclose(scaled * variance, wanted, rtol=1e-5)
        assert np.abs(wanted - 1).min() > 1e-3
        # Only with sigma_data scaled too is the input's variance 1.
        both = EDMPreconditioning(sigma_data * gain[0])(jnp.float32(gain[0] * SIGMA))
        assert float(both.c_in) ** 2 * variance[0] == pytest.approx(1, rel=1e-5)


def test_scores_change_variables_with_the_jacobian():
    """T15: s_T(u) = J^-T (s(y) - grad log|det J|) for a smooth invertible T."""
    transform, shape = Gamma(), (1, 3, 1)
    params = transform.sample(jax.random.key(1), shape)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        back = params._replace(value=1 / params.value)
        centres = jnp.asarray(rng(13).normal(size=(4, 3)) * 0.4)

        def log_density(y):
            distance = jnp.sum((y - centres) ** 2, axis=-1)
            return jax.nn.logsumexp(-0.5 * distance / SIGMA**2)

        def forward(y):
            return transform.apply(params, y.reshape(shape)).reshape(3)

        def log_density_of_image(u):
            y = transform.apply(back, u.reshape(shape)).reshape(3)
            jacobian = jax.jacfwd(forward)(y)
            return log_density(y) - jnp.linalg.slogdet(jacobian)[1]

        for y in jnp.asarray(rng(14).uniform(-0.5, 0.9, (5, 3))):
            jacobian = jax.jacfwd(forward)(y)
            volume = jax.grad(lambda z: jnp.linalg.slogdet(jax.jacfwd(forward)(z))[1])(
                y
            )
            wanted = jax.grad(log_density_of_image)(forward(y))
            found = jnp.linalg.solve(jacobian.T, jax.grad(log_density)(y) - volume)
            np.testing.assert_allclose(found, wanted, atol=1e-6)
            assert float(jnp.abs(volume).max()) > 0.05


def optimum_without_condition(points, deviations):
    """Return the exact denoiser of spikes, each with its own multiple of sigma."""
    size = points.shape[1]

    def denoiser(x, sigma):
        sigma = jnp.reshape(sigma, (-1, 1))
        distance = jnp.sum((x[:, None] - points) ** 2, axis=-1)
        logits = -0.5 * distance / (sigma * deviations) ** 2
        logits = logits - size * jnp.log(sigma * deviations)
        return jax.nn.softmax(logits, axis=-1) @ points

    return denoiser


def drawn(points, deviations):
    with jax.enable_x64(True):
        denoiser = optimum_without_condition(points, deviations)
        shape = (200, points.shape[1])
        return np.asarray(
            sample(denoiser, jax.random.key(0), shape, karras(40), solver=Heun()).x
        )


def test_unconditioned_gains_leak_from_the_clean_side_and_not_from_the_noisy_one():
    """T14, with exact optima: the gain of noise can be seen at every noise level.

    Clean images and noise are brightened by the transform itself.
    """
    images = np.sign(rng(15).normal(size=(6, 12, 12, 1)))
    transform, gains = Brightness(), np.array([0.5, 1.0, 2.0])
    moved, deviations = [], []
    for gain in gains:
        params = transform.sample(jax.random.key(0), (12, 12, 1))
        params = params._replace(gain=jnp.float32(gain))
        moved.append(jax.vmap(lambda x, p=params: transform.apply(p, x))(images))
        noise = transform.apply(params, jnp.ones((12, 12, 1)))
        deviations += [float(noise.std() + noise.mean())] * 6
    points = np.concatenate(moved).reshape(18, 144)
    leaks = {}
    for name, deviation in (("score", np.array(deviations)), ("nla", np.ones(18))):
        level = np.sqrt((drawn(points, deviation) ** 2).mean(axis=1))
        leaks[name] = float((np.abs(level - 1) > 0.2).mean())
    assert leaks["score"] < 0.05
    assert leaks["nla"] > 0.5


def test_unconditioned_cutouts_leak_from_the_clean_side():
    """T14, exact: after T(x0 + n) an input without zeros can be no cutout's."""
    images = np.sign(rng(17).normal(size=(6, 8, 8, 1)))
    keys = jax.random.split(jax.random.key(1), 20)
    params = jax.vmap(lambda key: Cutout().sample(key, (8, 8, 1)))(keys)
    cut = jax.vmap(lambda p: jax.vmap(lambda x: Cutout().apply(p, x))(images))(params)
    points = np.concatenate([images.reshape(6, 64), np.reshape(cut, (120, 64))])
    for shown, low, high in ((points, 0.5, 1.0), (points[:6], 0.0, 0.0)):
        holes = (np.abs(drawn(shown, np.ones(len(shown)))) < 0.1).any(axis=1).mean()
        assert low <= holes <= high


def test_masks_show_on_the_noisy_side_alone():
    """T14: hidden pixels are exactly 0 after T(x0 + n), and noisy after T(x0) + n."""
    clean = jnp.asarray(rng(16).normal(size=(64, 8, 8, 1)), jnp.float32)
    noise = jax.random.normal(jax.random.key(4), clean.shape)
    keys = jax.random.split(jax.random.key(5), 64)
    for transform in (Cutout(), Translate()):
        for mode, shown in (("score", True), ("nla", False)):
            augment = ScoreAugmentation(transform, mode=mode)
            batch = augment(keys, clean, noise, 1.0)
            moved = np.asarray((batch.condition != 0).any(axis=1))
            zeros = np.asarray((batch.noisy == 0).any(axis=(1, 2, 3)))
            assert moved.any()
            np.testing.assert_array_equal(zeros, moved & shown)


def test_colour_noise_of_saturation_shows():
    """T T^T differs from 1, so that the transform is called self-identifying."""
    matrix = fixed(Saturation(), shape=(2, 2, 3))[1]
    assert np.abs(matrix @ matrix.T - np.eye(12)).max() > 0.05
    assert Saturation().self_identifying
    assert not OneOf((Saturation(), Rot90())).self_identifying
