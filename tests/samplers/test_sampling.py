"""From keys to samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers import Prior, Teleport, karras, sample, sample_blocks

GAUSSIAN = GaussianDenoiser(
    jnp.asarray([0.5, -0.2]), jnp.eye(2), jnp.asarray([1.0, 0.04])
)


def test_samples_of_a_gaussian_have_its_moments():
    x = np.asarray(sample(GAUSSIAN, jax.random.key(0), (20_000, 2), karras(40)).x)
    np.testing.assert_allclose(x.mean(0), GAUSSIAN.mean, atol=5 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(x.T), np.diag([1.0, 0.04]), atol=0.06)


def test_blocks_give_the_same_image_whatever_the_number():
    key, grid = jax.random.key(1), karras(6)
    five = np.concatenate(
        list(sample_blocks(GAUSSIAN, key, (5, 2), grid, block_size=4))
    )
    nine = np.concatenate(
        list(sample_blocks(GAUSSIAN, key, (9, 2), grid, block_size=4))
    )
    assert five.shape == (5, 2)
    np.testing.assert_array_equal(five, nine[:5])


def test_prior_neglects_the_data():
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    np.testing.assert_array_equal(Prior()(noise, 7.0), 7.0 * noise)


def test_teleport_to_sigma_max_is_the_prior_start():
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    np.testing.assert_allclose(Teleport(GAUSSIAN)(noise, 80.0), 80.0 * noise, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sample(GAUSSIAN, jax.random.key(0), (2,), karras(4)), "shape"),
        (lambda: sample(GAUSSIAN, jax.random.key(0), (0, 2), karras(4)), "B >= 1"),
        (lambda: sample(GAUSSIAN, jax.random.key(0), (2, 3), karras(4)), "shape"),
        (
            lambda: list(sample_blocks(GAUSSIAN, jax.random.key(0), (0, 2), karras(4))),
            "at least 1",
        ),
        (
            lambda: sample(
                GAUSSIAN,
                jax.random.key(0),
                (2, 2),
                karras(4, sigma_max=100.0),
                start=Teleport(GAUSSIAN),
            ),
            "above sigma_max",
        ),
    ],
)
def test_bad_calls_get_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
