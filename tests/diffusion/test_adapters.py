"""Each wrapped form of a known mixture is the mixture's own denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion import score
from diffusion.adapters import (
    ContinuousVP,
    FlowVelocityDenoiser,
    ScoreDenoiser,
    VPNoiseDenoiser,
    VPScoreDenoiser,
    VPVelocityDenoiser,
    linear_beta_schedule,
)
from diffusion.closed_form import MixtureDenoiser
from diffusion.guidance import Guided

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_a_wrapped_mixture_is_its_own_denoiser[noise]",
    "test_a_wrapped_mixture_is_its_own_denoiser[score]",
    "test_a_wrapped_mixture_is_its_own_denoiser[vp_score]",
)

SIGMAS = np.array([0.02, 0.3, 1.0, 5.0, 70.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def mixture(shift: float = 0.0) -> MixtureDenoiser:
    rng = np.random.default_rng(0)
    return MixtureDenoiser(
        jnp.asarray(rng.normal(size=3)),
        jnp.asarray(rng.normal(size=(3, 4)) + shift),
        jnp.zeros((3, 4, 0)),
        jnp.zeros((3, 0)),
        jnp.asarray([0.1, 0.2, 0.4]),
    )


def noisy() -> jax.Array:
    white = np.random.default_rng(1).normal(size=(5, 4))
    return jnp.asarray(SIGMAS[:, None] * white)


def clean_and_noise(x_t, alpha, s):
    """E[x0 | x_t] and E[n | x_t] of x_t = alpha x0 + s n, from the mixture."""
    denoised = mixture()(x_t / alpha[:, None], s / alpha)
    return denoised, (x_t - alpha[:, None] * denoised) / s[:, None]


def vp(t):
    """Alpha and s at time t, from beta(t) = .1 + 19.9 t."""
    alpha = jnp.exp(-0.5 * (0.1 * t + 19.9 * t**2 / 2))
    return alpha, jnp.sqrt(1 - alpha**2)


def noise_model(x_t, t):
    return clean_and_noise(x_t, *vp(t))[1]


def velocity_model(x_t, t):
    alpha, s = vp(t)
    x0, n = clean_and_noise(x_t, alpha, s)
    return alpha[:, None] * n - s[:, None] * x0


def score_model(x_t, t):
    alpha, s = vp(t)
    return -clean_and_noise(x_t, alpha, s)[1] / s[:, None]


def flow_model(x_t, t):
    x0, n = clean_and_noise(x_t, 1 - t, t)
    return n - x0


def house_score(x, sigma):
    return score(mixture(), x, sigma)


ADAPTERS = {
    "noise": lambda f: VPNoiseDenoiser(f(noise_model), ContinuousVP()),
    "velocity": lambda f: VPVelocityDenoiser(f(velocity_model), ContinuousVP()),
    "vp_score": lambda f: VPScoreDenoiser(f(score_model), ContinuousVP()),
    "flow": lambda f: FlowVelocityDenoiser(f(flow_model)),
    "score": lambda f: ScoreDenoiser(f(house_score)),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_wrapped_mixture_is_its_own_denoiser(name):
    adapted = ADAPTERS[name](jax.tree_util.Partial)
    found = jax.jit(lambda d, x, s: d(x, s))(adapted, noisy(), SIGMAS)
    expected = mixture()(noisy(), SIGMAS)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    one = adapted(noisy()[2:3], 1.0)
    np.testing.assert_allclose(one, expected[2:3], rtol=1e-6, atol=1e-6)


def test_time_and_sigma_are_inverse():
    schedule = ContinuousVP(time_scale=999.0)
    t = jnp.asarray([1e-6, 1e-3, 0.2, 1.0])
    np.testing.assert_allclose(schedule.time(schedule.sigma(t)), 999 * t, rtol=1e-9)
    # Published range of EDM's VP networks: t in [1e-5, 1].
    np.testing.assert_allclose(schedule.sigma(1e-5), 1.0005e-3, rtol=1e-4)
    np.testing.assert_allclose(schedule.sigma(1.0), 152.17, rtol=1e-4)


def test_ddpm_times_are_the_indices_of_its_table():
    schedule = linear_beta_schedule()
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    sigmas = np.sqrt((1 - kept) / kept)
    times = schedule.time(jnp.asarray(sigmas[[0, 17, 500, 999]]))
    np.testing.assert_allclose(times, [0, 17, 500, 999], atol=1e-6)
    assert 17 < float(schedule.time(jnp.asarray(np.sqrt(sigmas[17] * sigmas[18])))) < 18
    outside = schedule.time(jnp.asarray([1e-5, 1e5]))
    np.testing.assert_array_equal(outside, [0, 999])


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_guidance_is_linear_between_two_denoisers(weight):
    x, strong, weak = noisy(), mixture(), mixture(shift=0.5)
    a, b = strong(x, SIGMAS), weak(x, SIGMAS)
    found = Guided(strong, weak, weight)(x, SIGMAS)
    np.testing.assert_allclose(found, b + weight * (a - b), rtol=1e-12, atol=1e-12)


def test_weight_one_and_levels_outside_the_interval_are_the_conditional_model():
    x, strong, weak = noisy(), mixture(), mixture(shift=0.5)
    expected = np.asarray(strong(x, SIGMAS))
    np.testing.assert_array_equal(Guided(strong, weak, 1.0)(x, SIGMAS), expected)
    found = np.asarray(Guided(strong, weak, 4.0, interval=(0.3, 5.0))(x, SIGMAS))
    inside = (SIGMAS > 0.3) & (SIGMAS <= 5)
    np.testing.assert_array_equal(found[~inside], expected[~inside])
    assert (np.abs(found - expected)[inside] > 1e-4).any(axis=1).all()


def test_an_interval_that_is_empty_is_refused():
    with pytest.raises(InputError, match="lowest < highest"):
        Guided(mixture(), mixture(), 2.0, interval=(3.0, 1.0))(noisy(), SIGMAS)


def test_a_table_out_of_range_is_refused():
    with pytest.raises(InputError, match="0 < beta_start"):
        linear_beta_schedule(1000, 0.3, 0.1)
