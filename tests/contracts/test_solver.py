"""What every solver promises; add yours, with its order, to `SOLVERS`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers import (
    Euler,
    Heun,
    Prior,
    Teleport,
    integrate,
    karras,
    log_linear,
    sample,
    skip_above,
)

SOLVERS = {"euler": (Euler(), 1), "heun": (Heun(), 2)}

# Two Gaussians in the plane: the simplest density with a curved flow.
MEANS = np.array([[-1.0, 0.4], [0.8, -0.3]])
STDS = np.array([0.3, 0.5])


def mixture(x, sigma):
    """The posterior mean of the two Gaussians, by Bayes' rule."""
    total = STDS**2 + sigma**2
    difference = x[:, None, :] - MEANS
    logits = -0.5 * jnp.sum(difference**2, -1) / total - jnp.log(total)
    weights = jax.nn.softmax(logits, axis=1)
    means = MEANS + (STDS**2 / total)[:, None] * difference
    return jnp.sum(weights[..., None] * means, axis=1)


@pytest.fixture(params=sorted(SOLVERS))
def solver_and_order(request):
    return SOLVERS[request.param]


@pytest.fixture
def solver(solver_and_order):
    return solver_and_order[0]


def anisotropic() -> GaussianDenoiser:
    return GaussianDenoiser(
        jnp.asarray([0.5, -0.2]), jnp.eye(2), jnp.asarray([1.0, 0.04])
    )


def test_converges_with_its_order(solver_and_order):
    solver, order = solver_and_order
    with jax.enable_x64(True):
        noise = np.random.default_rng(0).normal(size=(16, 2))
        x = jnp.asarray(5.0 * noise)
        # The last call of D is not part of the ODE; a grid that ends low keeps its
        # part of the error, the same for all grids, out of the differences.
        ends = dict(sigma_min=0.05, sigma_max=5.0)
        exact = integrate(Heun(), mixture, x, log_linear(4097, **ends)).x
        sizes = (17, 33, 65, 129)
        errors = [
            float(
                jnp.abs(
                    integrate(solver, mixture, x, log_linear(n, **ends)).x - exact
                ).max()
            )
            for n in sizes
        ]
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    assert measured[-1] == pytest.approx(order, abs=0.15), (errors, measured)


def test_declared_nfe_equals_counted_nfe(solver):
    calls = []

    def counting(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return anisotropic()(x, sigma)

    for points in (1, 2, 5):
        calls.clear()
        solution = integrate(solver, counting, jnp.ones((2, 2)), karras(points))
        jax.block_until_ready(solution.x)
        jax.effects_barrier()
        assert len(calls) == solution.nfe == solver.nfe(points)


def test_agrees_with_the_exact_flow_of_a_gaussian(solver_and_order):
    solver, order = solver_and_order
    with jax.enable_x64(True):
        gaussian = anisotropic()
        x = 80.0 * jax.random.normal(jax.random.key(0), (8, 2))
        grid = karras(257)
        found = integrate(solver, gaussian, x, grid).x
        exact = gaussian(gaussian.flow(x, 80.0, grid[-1]), grid[-1])
        assert float(jnp.abs(found - exact).max()) < {1: 5e-2, 2: 1e-3}[order]


def test_trace_is_the_trajectory(solver):
    gaussian, grid = anisotropic(), karras(7)
    x = 80.0 * jax.random.normal(jax.random.key(0), (3, 2))
    solution = integrate(solver, gaussian, x, grid, trace=True)
    assert solution.trace.x.shape == solution.trace.denoised.shape == (7, 3, 2)
    np.testing.assert_array_equal(solution.trace.x[0], x)
    np.testing.assert_array_equal(solution.trace.denoised[-1], solution.x)
    for i, sigma in enumerate(grid):
        np.testing.assert_allclose(
            solution.trace.denoised[i],
            gaussian(solution.trace.x[i], sigma),
            rtol=1e-4,
            atol=1e-4,
        )
    untraced = integrate(solver, gaussian, x, grid)
    assert untraced.trace is None
    np.testing.assert_allclose(untraced.x, solution.x, atol=1e-6)


def test_keeps_the_dtype_of_x(solver):
    for dtype in ("float32", "bfloat16"):
        x = jnp.ones((2, 2), dtype)
        assert integrate(solver, anisotropic(), x, karras(4)).x.dtype == dtype


def test_plan_is_float64_with_a_row_for_each_step(solver):
    for leaf in jax.tree.leaves(solver.plan(karras(6))):
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype == np.float64
        assert leaf.shape[0] == 5


def test_teleport_to_a_grid_point_equals_cutting_the_grid_there(solver):
    """Once the exact flow has done the first part, the rest is the grid's tail."""
    gaussian, grid, cut = anisotropic(), karras(9), 3
    key, shape = jax.random.key(2), (4, 2)
    tail = skip_above(grid, grid[cut])
    np.testing.assert_array_equal(tail, grid[cut:])
    teleported = sample(
        gaussian, key, shape, tail, solver=solver, start=Teleport(gaussian)
    )
    noise = sample(gaussian, key, shape, [1.0], trace=True).trace.x[0]
    there = gaussian.flow(80.0 * noise, 80.0, grid[cut])
    cut_grid = integrate(solver, gaussian, there, grid[cut:])
    np.testing.assert_allclose(teleported.x, cut_grid.x, atol=1e-6)
    assert teleported.nfe == cut_grid.nfe < solver.nfe(len(grid))


def test_a_plain_function_is_a_denoiser(solver):
    result = integrate(solver, lambda x, sigma: 0 * x, jnp.ones((1, 2)), karras(4))
    np.testing.assert_array_equal(result.x, 0)


def test_samples_do_not_depend_on_their_number(solver):
    gaussian, key, grid = anisotropic(), jax.random.key(0), karras(5)
    few = sample(gaussian, key, (2, 2), grid, solver=solver, start=Prior()).x
    many = sample(gaussian, key, (9, 2), grid, solver=solver, start=Prior()).x
    np.testing.assert_allclose(few, many[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sigmas", "says"),
    [
        ([1.0, 2.0], "must decrease"),
        ([2.0, 2.0], "must decrease"),
        ([2.0, 0.0], "above 0"),
        ([2.0, -1.0], "above 0"),
        ([float("inf"), 1.0], "finite"),
        ([], "shape"),
        ([[2.0, 1.0]], "shape"),
    ],
)
def test_bad_grids_get_one_line(solver, sigmas, says):
    with pytest.raises(InputError, match=says) as caught:
        integrate(solver, anisotropic(), jnp.ones((1, 2)), sigmas)
    assert "\n" not in str(caught.value)
