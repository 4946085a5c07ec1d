"""What every solver promises; add yours, with its order, to `SOLVERS`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers import (
    DPMSolverPP,
    DPMSolverV3,
    EffectiveVariances,
    Euler,
    Heun,
    Prior,
    ResidualExponential,
    StochasticHeun,
    Teleport,
    UniPC,
    gaussian_statistics,
    integrate,
    karras,
    log_linear,
    sample,
    skip_above,
)
from samplers.coordinates import Coordinates

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "[dpm_solver_pp_3_final]",
    "[dpm_solver_pp_3_singlestep]",
    "test_converges_with_its_order[dpm_solver_pp_1]",
    "test_converges_with_its_order[dpm_solver_pp_2_final]",
    "test_converges_with_its_order[dpm_solver_pp_2_singlestep]",
    "test_converges_with_its_order[dpm_solver_pp_2_taylor]",
    "test_converges_with_its_order[dpm_solver_pp_2_taylor_singlestep]",
    "test_converges_with_its_order[dpm_solver_v3_1]",
    "test_converges_with_its_order[dpm_solver_v3_2_pseudo_corrector]",
    "test_converges_with_its_order[dpm_solver_v3_3_final]",
    "test_converges_with_its_order[dpm_solver_v3_3_half]",
    "test_converges_with_its_order[dpm_solver_v3_3_pseudo]",
    "test_converges_with_its_order[residual_exponential_1]",
    "test_converges_with_its_order[residual_exponential_2_final]",
    "test_converges_with_its_order[residual_exponential_2_measured]",
    "test_converges_with_its_order[residual_exponential_2_rank_1]",
    "test_converges_with_its_order[residual_exponential_3_measured]",
    "test_converges_with_its_order[unip_2]",
    "test_converges_with_its_order[unip_3]",
    "test_converges_with_its_order[unipc_1]",
    "test_converges_with_its_order[unipc_2_bh1]",
    "test_converges_with_its_order[unipc_3_final]",
    "test_converges_with_its_order[unipc_4_bh2]",
)

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


def matched() -> GaussianDenoiser:
    """The Gaussian of the mixture's moments, axis by axis."""
    mean = MEANS.mean(0)
    variances = np.mean(STDS**2) + np.mean((MEANS - mean) ** 2, axis=0)
    return GaussianDenoiser(jnp.asarray(mean), jnp.eye(2), jnp.asarray(variances))


def varying() -> EffectiveVariances:
    """Gains of a Gaussian whose variances change with the noise level.

    Two levels: between them log variances have no kink, which would cap every order at
    2 as r = D - w x has it too.
    """
    frame = Coordinates(jnp.asarray(MEANS.mean(0)), jnp.eye(2)[:, :1])
    return EffectiveVariances(frame, np.array([100.0, 0.1]), [[0.4, 0.7], [-1.5, -2.0]])


V3 = gaussian_statistics(matched())
FREE = dict(lower_order_final=False)
# Each with its measured order; the corrector of UniPC adds one to its name's.
SOLVERS = {
    "euler": (Euler(), 1),
    "heun": (Heun(), 2),
    "stochastic_heun": (StochasticHeun(), 2),
    "dpm_solver_pp_1": (DPMSolverPP(1, **FREE), 1),
    "dpm_solver_pp_2_midpoint": (DPMSolverPP(2, **FREE), 2),
    "dpm_solver_pp_2_taylor": (DPMSolverPP(2, "taylor", **FREE), 2),
    "dpm_solver_pp_2_final": (DPMSolverPP(2), 2),
    "dpm_solver_pp_3_published": (DPMSolverPP(3, **FREE), 2),
    "dpm_solver_pp_3_corrected": (DPMSolverPP(3, "corrected", **FREE), 3),
    "dpm_solver_pp_3_final": (DPMSolverPP(3, "corrected"), 2),
    "dpm_solver_pp_2_singlestep": (DPMSolverPP(2, singlestep=True), 2),
    "dpm_solver_pp_2_taylor_singlestep": (
        DPMSolverPP(2, "taylor", singlestep=True),
        2,
    ),
    "dpm_solver_pp_3_singlestep": (DPMSolverPP(3, singlestep=True), 3),
    "unip_2": (UniPC(2, corrector=False, **FREE), 2),
    "unip_3": (UniPC(3, corrector=False, **FREE), 3),
    "unipc_1": (UniPC(1, **FREE), 2),
    "unipc_2_bh1": (UniPC(2, "bh1", **FREE), 3),
    "unipc_2_bh2": (UniPC(2, "bh2", **FREE), 3),
    "unipc_3_bh1": (UniPC(3, "bh1", **FREE), 4),
    "unipc_3_bh2": (UniPC(3, "bh2", **FREE), 4),
    "unipc_4_bh2": (UniPC(4, "bh2", **FREE), 5),
    "unipc_3_final": (UniPC(3), 2),
    "dpm_solver_v3_1": (DPMSolverV3(V3, 1, corrector="off", **FREE), 1),
    "dpm_solver_v3_2": (DPMSolverV3(V3, 2, corrector="off", **FREE), 2),
    "dpm_solver_v3_3": (DPMSolverV3(V3, 3, corrector="off", **FREE), 3),
    "dpm_solver_v3_3_corrector": (DPMSolverV3(V3, 3, **FREE), 3),
    "dpm_solver_v3_3_half": (DPMSolverV3(V3, 3, corrector="half", **FREE), 3),
    "dpm_solver_v3_3_pseudo": (
        DPMSolverV3(V3, 3, pseudo_order=True, corrector="off", **FREE),
        2,
    ),
    "dpm_solver_v3_2_pseudo_corrector": (
        DPMSolverV3(V3, 2, pseudo_corrector=True, **FREE),
        2,
    ),
    "dpm_solver_v3_3_final": (DPMSolverV3(V3, 3), 2),
    "residual_exponential_1": (ResidualExponential(matched(), 1, **FREE), 1),
    "residual_exponential_2": (ResidualExponential(matched(), 2, **FREE), 2),
    "residual_exponential_3": (ResidualExponential(matched(), 3, **FREE), 3),
    "residual_exponential_2_rank_1": (
        ResidualExponential(matched(), 2, rank=1, **FREE),
        2,
    ),
    "residual_exponential_2_measured": (ResidualExponential(varying(), 2, **FREE), 2),
    "residual_exponential_3_measured": (ResidualExponential(varying(), 3, **FREE), 3),
    "residual_exponential_2_final": (ResidualExponential(matched(), 2), 2),
}


# One of each kind goes through the whole suite; the order of all is measured.
KINDS = (
    "euler",
    "heun",
    "stochastic_heun",
    "dpm_solver_pp_2_midpoint",
    "dpm_solver_pp_3_final",
    "dpm_solver_pp_3_singlestep",
    "unipc_3_bh2",
    "dpm_solver_v3_3_corrector",
    "residual_exponential_3",
)


@pytest.fixture(params=KINDS)
def solver_and_order(request):
    return SOLVERS[request.param]


@pytest.fixture
def solver(solver_and_order):
    return solver_and_order[0]


def anisotropic() -> GaussianDenoiser:
    return GaussianDenoiser(
        jnp.asarray([0.5, -0.2]), jnp.eye(2), jnp.asarray([1.0, 0.04])
    )


@pytest.fixture(scope="module")
def noise_and_end():
    """Samples at sigma = 80, and the same flow's at .2 by extrapolated Heun steps."""
    with jax.enable_x64(True):
        x = jnp.asarray(80.0 * np.random.default_rng(0).normal(size=(16, 2)))
        fine, finer = (
            integrate(Heun(), mixture, x, log_linear(n, **ENDS), trace=True).trace.x[-1]
            for n in (2561, 5121)
        )
        return x, finer + (finer - fine) / 3


ENDS = dict(sigma_min=0.2, sigma_max=80.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_converges_with_its_order(name, noise_and_end):
    """At the grid's last point: the call of D after it is no part of the ODE.

    From 80 down to .2 the first steps, of lower order, lie where the flow is nearly
    straight; lower down they would cap every multistep solver at order 2.
    """
    solver, order = SOLVERS[name]
    x, exact = noise_and_end
    with jax.enable_x64(True):
        errors = []
        for n in (161, 321):
            grid = log_linear(n, **ENDS)
            found = integrate(solver, mixture, x, grid, trace=True).trace.x[-1]
            errors.append(float(jnp.abs(found - exact).max()))
    measured = np.log2(errors[0] / errors[1])
    # A corrector that begins on the way (half) still gains a little.
    assert order - 0.2 < measured < order + 0.4, (errors, measured)


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
        assert float(jnp.abs(found - exact).max()) < {1: 5e-2}.get(order, 1e-3)


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
