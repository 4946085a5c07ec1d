"""The losses of VP and VE, as training and evaluation compute them, against NumPy.

    L = |D(x, sigma) - y|^2 / sigma^2,    D = x + c_out F(c_in x; c_noise)

with c_in = 1/sqrt(1 + sigma^2), c_out = -sigma and c_noise = 999 t for VP, and 1, sigma
and ln(sigma/2) for VE; t is uniform in [1e-5, 1] for VP, and ln sigma between those of
.02 and 100 for VE (arXiv 2206.00364, table 1).  The weight belongs to the law of sigma:
with EDM's preconditioning, which would weight otherwise, it is the same.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.digits import config as digits
from configs.network_schema import MLPConfig
from configs.schema import NoiseConfig
from diffusion.preconditioning import (
    EDMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from diffusion.training.building import build_problem
from diffusion.training.feeding import Examples
from diffusion.training.mesh import make_placement
from diffusion.training.state import create_state, init_params
from diffusion.training.step import Fixed, build_evaluation, build_step
from tests.diffusion.runs import with_training

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_a_step_on_the_losses_of_vp_and_ve_equals_numpy[vp]",)

EVENT, BATCH, EDGES = (2, 3, 1), 32, (0.1, 1.0, 10.0)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (BATCH, *EVENT))
PRECONDITIONINGS = {
    "vp": VPPreconditioning(),
    "ve": VEPreconditioning(),
    "edm": EDMPreconditioning(0.5),
}


@dataclasses.dataclass(frozen=True)
class Recorder:
    """An optimizer whose state is the last gradient."""

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, gradient, state, params):
        return jax.tree.map(jnp.zeros_like, gradient), gradient


def problem_of(law, preconditioning):
    """Return configuration, problem and parameters in float64."""
    config = with_training(
        dataclasses.replace(
            digits,
            network=MLPConfig(width=8, num_layers=1),
            noise=NoiseConfig(law=law),
            preconditioning=dataclasses.replace(
                digits.preconditioning, name=preconditioning, sigma_data=None
            ),
        ),
        dtype="float64",
        batch_size=BATCH,
        accumulation=1,
        sigma_bin_edges=EDGES,
    )
    problem = build_problem(config, EVENT)
    params = init_params(config, problem.network, jax.random.key(1))
    # Away from the start, at which F is almost zero.
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64) + 0.1, params)
    return config, problem, params


def law_of(name, u):
    """Return sigma for u uniform in (0, 1)."""
    if name == "ve":
        return 0.02 * (100 / 0.02) ** u
    time = 1e-5 + u * (1 - 1e-5)
    return np.sqrt(np.expm1(0.5 * 19.9 * time**2 + 0.1 * time))


class Expected(NamedTuple):
    losses: np.ndarray
    output_gradient: np.ndarray


def expected(preconditioning, problem, params, sigma, noise):
    """Return (B,) losses, and the gradient of their mean sum over pixels by F."""
    column = sigma.reshape(-1, 1, 1, 1)
    x = IMAGES + column * noise
    c_skip = 1.0
    if preconditioning == "vp":
        time = (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(sigma**2)) - 0.1) / 19.9
        c_in, c_out, c_noise = 1 / np.sqrt(1 + column**2), -column, 999 * time
    elif preconditioning == "ve":
        c_in, c_out, c_noise = 1.0, column, np.log(sigma / 2)
    else:
        total = column**2 + 0.25
        c_in, c_out, c_noise = (
            total**-0.5,
            0.5 * column * total**-0.5,
            np.log(sigma) / 4,
        )
        c_skip = 0.25 / total
    output = np.asarray(problem.network.apply(params, c_in * x, jnp.asarray(c_noise)))
    error = c_skip * x + c_out * output - IMAGES
    losses = (error**2 / column**2).mean(axis=(1, 2, 3))
    return Expected(losses, 2 * error * c_out / column**2 / BATCH)


def in_bins(values, sigma):
    return np.bincount(np.searchsorted(EDGES, sigma), values, len(EDGES) + 1)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_a_step_on_the_losses_of_vp_and_ve_equals_numpy(name):
    with jax.enable_x64(True):
        config, problem, params = problem_of(name, name)
        # The step donates its state.
        state = create_state(
            jax.tree.map(jnp.array, params),
            Recorder(),
            len(EDGES) + 1,
            dtype="float64",
        )
        place = make_placement(1, BATCH)
        step = build_step(
            config, problem, Recorder(), place, place.state_shardings(state)
        )
        labels = jnp.zeros(BATCH, jnp.int32)
        examples = Examples(jnp.asarray(IMAGES), labels, PRECONDITIONINGS[name])
        after = step(state, examples, None)
        # The random numbers of step 0: flips and losses, then sigma, noise, dropout.
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        keys = jax.random.split(jax.random.split(key)[1], 3)
        sigma = law_of(name, np.asarray(jax.random.uniform(keys[0], (BATCH,))))
        noise = np.asarray(jax.random.normal(keys[1], IMAGES.shape))
        wanted = expected(name, problem, params, sigma, noise)
    found = after.sums
    np.testing.assert_array_equal(found.count, in_bins(np.ones(BATCH), sigma))
    assert (np.asarray(found.count) > 0).sum() >= 3
    np.testing.assert_allclose(found.loss, in_bins(wanted.losses, sigma), rtol=1e-9)
    # The last layer's bias is added to F itself.
    gradient = after.opt_state["layer_out"]["bias"]
    summed = wanted.output_gradient.sum(axis=0).ravel()
    np.testing.assert_allclose(gradient, summed, rtol=1e-9)


@pytest.mark.parametrize(
    ("law", "name"), [("vp", "vp"), ("ve", "ve"), ("vp", "edm"), ("ve", "edm")]
)
def test_the_evaluated_losses_of_vp_and_ve_equal_numpy(law, name):
    probability = (np.arange(BATCH) + 0.5) / BATCH
    sigma = law_of(law, probability)
    number = np.arange(BATCH, dtype=np.int32)
    with jax.enable_x64(True):
        config, problem, params = problem_of(law, name)
        evaluate = build_evaluation(config, problem, make_placement(1, BATCH))
        labels = jnp.zeros(BATCH, jnp.int32)
        examples = Examples(jnp.asarray(IMAGES), labels, PRECONDITIONINGS[name])
        fixed = Fixed(
            *map(jnp.asarray, (number, probability, np.ones_like(probability)))
        )
        loss, count = evaluate(params, examples, fixed)
        # Image i has noise of its own, from a stream that training does not use.
        key = jax.random.fold_in(jax.random.key(config.seed), 2**31)
        noise = jax.vmap(
            lambda i: jax.random.normal(jax.random.fold_in(key, i), EVENT)
        )(number)
        wanted = expected(name, problem, params, sigma, np.asarray(noise))
    np.testing.assert_array_equal(count, in_bins(np.ones(BATCH), sigma))
    assert np.all(np.asarray(count) > 0)
    np.testing.assert_allclose(loss, in_bins(wanted.losses, sigma), rtol=1e-9)
