"""DPM-Solver-v3 and the statistics it needs: exactness, limits, estimation, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from diffusion.closed_form import GaussianDenoiser
from samplers import (
    DPMSolverPP,
    DPMSolverV3,
    ResidualExponential,
    TabulatedStatistics,
    estimate_model_statistics,
    gaussian_statistics,
    integrate,
    load_model_statistics,
    log_linear,
    pixel_statistics,
    save_model_statistics,
)
from samplers.coordinates import Coordinates
from samplers.statistics_estimation import Passes

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_estimated_gains_are_those_of_the_closed_form",
    "test_gaussian_statistics_make_any_step_exact[0-points0-1]",
    "test_gaussian_statistics_make_any_step_exact[0-points1-1]",
    "test_gaussian_statistics_make_any_step_exact[0-points1-2]",
    "test_gaussian_statistics_make_any_step_exact[3-points0-1]",
    "test_gaussian_statistics_make_any_step_exact[3-points0-2]",
    "test_gaussian_statistics_make_any_step_exact[3-points1-1]",
    "test_gaussian_statistics_make_any_step_exact[3-points1-2]",
    "test_gaussian_statistics_make_any_step_exact[3-points1-3]",
    "test_gaussian_statistics_make_any_step_exact[5-points0-1]",
    "test_gaussian_statistics_make_any_step_exact[5-points1-1]",
    "test_gaussian_statistics_make_any_step_exact[5-points1-2]",
    "test_gaussian_statistics_make_any_step_exact[5-points1-3]",
)

RNG = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
NODES = np.geomspace(80, 0.002, 40)


def gaussian(dtype=np.float64, rank=3):
    return GaussianDenoiser(
        jnp.asarray(np.linspace(-0.4, 0.5, 5), dtype),
        jnp.asarray(ROTATION[:, :rank], dtype),
        jnp.asarray([1.0, 0.3, 0.01, 0.4, 0.2][:rank], dtype),
        jnp.asarray(0.05, dtype),
    )


def table(l, s, b, nodes=NODES, size=5):  # noqa: E741
    shape = len(nodes), size
    values = [np.broadcast_to(np.asarray(v, float), shape) for v in (l, s, b)]
    return TabulatedStatistics(Coordinates(jnp.zeros(size)), nodes, *values)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("points", [[80.0, 0.1], [80.0, 7.0, 3.0, 0.5, 0.002]])
@pytest.mark.parametrize("rank", [0, 3, 5])
def test_gaussian_statistics_make_any_step_exact(order, points, rank):
    with jax.enable_x64(True):
        model = gaussian(rank=rank)
        x = jnp.asarray(80 * RNG.normal(size=(7, 5)))
        solver = DPMSolverV3(gaussian_statistics(model), order)
        end = integrate(solver, model, x, points, trace=True).trace.x[-1]
        exact = model.flow(x, 80.0, points[-1])
        np.testing.assert_allclose(end, exact, atol=1e-10)


def test_gaussian_statistics_are_exact_to_the_rounding_of_float32():
    model = gaussian(np.float32)
    x = jnp.asarray(80 * RNG.normal(size=(7, 5)), jnp.float32)
    solver = DPMSolverV3(gaussian_statistics(model))
    end = integrate(solver, model, x, [80.0, 0.1], trace=True).trace.x[-1]
    np.testing.assert_allclose(end, model.flow(x, 80.0, 0.1), atol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_a_step_costs_two_products_with_the_basis(order):
    solver = DPMSolverV3(gaussian(np.float32, 3), order)
    x, denoiser = jnp.ones((2, 5)), lambda x, sigma: 0.5 * x
    state = solver.init(denoiser, x, jnp.asarray(80.0))
    row = jax.tree.map(lambda a: a[0], solver.plan(np.array([80.0, 1.0])))
    text = str(jax.make_jaxpr(lambda s: solver.step(denoiser, s, row))(state))
    assert text.count("dot_general") == 2


def test_a_gaussian_stands_for_its_statistics():
    model, grid = gaussian(np.float32), log_linear(6, 0.05)
    x = jnp.asarray(80 * RNG.normal(size=(3, 5)), jnp.float32)
    curved = lambda x, sigma: jnp.tanh(x) / 2  # noqa: E731
    ours, theirs = (
        integrate(DPMSolverV3(given), curved, x, grid).x
        for given in (model, gaussian_statistics(model))
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("make", [DPMSolverV3, ResidualExponential])
@pytest.mark.parametrize(
    "given", [None, jnp.ones(3), "gaussian", GaussianDenoiser, lambda x, sigma: x]
)
def test_what_has_no_linear_part_gets_one_line(make, given):
    with pytest.raises(InputError, match="give a GaussianDenoiser") as caught:
        make(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [DPMSolverV3, ResidualExponential])
@pytest.mark.parametrize("given", [gaussian, lambda dtype: table(1, 0, 0)])
def test_a_solver_is_rebuilt_around_any_leaves(make, given):
    solver = make(given(np.float32))
    leaves, treedef = jax.tree.flatten(solver)
    for leaf in (object(), None, jax.ShapeDtypeStruct((), "float32")):
        rebuilt = jax.tree.unflatten(treedef, [leaf] * len(leaves))
        assert type(rebuilt) is make
    assert type(jax.jit(lambda s: s)(solver)) is make


@pytest.mark.parametrize("make", [DPMSolverV3, ResidualExponential])
@pytest.mark.parametrize("given", [gaussian, lambda dtype: table(1, 0, 0)])
def test_samples_of_another_shape_get_one_line(make, given):
    solver = make(given(np.float32))
    for shape in ((2, 4), (2, 1), (2, 1, 5)):
        with pytest.raises(InputError, match=r"samples of shape \(5,\)") as caught:
            integrate(solver, lambda x, sigma: x, jnp.ones(shape), [2.0, 1.0])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize(("order", "variant"), [(2, "taylor"), (3, "corrected")])
def test_without_a_linear_part_it_is_dpm_solver_pp(order, variant, final):
    with jax.enable_x64(True):
        model = gaussian()
        x = jnp.asarray(80 * RNG.normal(size=(7, 5)))
        grid = log_linear(9)
        other = DPMSolverPP(order, variant, lower_order_final=final)
        mine = DPMSolverV3(
            table(1, 0, 0), order, corrector="off", lower_order_final=final
        )
        np.testing.assert_allclose(
            integrate(mine, model, x, grid).x,
            integrate(other, model, x, grid).x,
            atol=1e-9,
        )


def test_a_rest_that_follows_its_own_law_is_exact_at_order_one():
    """D = (1 - l) x - f(u) with f' = s f + b: then g is constant, whatever the step."""
    l, s, b = 0.3, -0.7, 0.2  # noqa: E741
    f = lambda u: (1.1 + b / s) * np.exp(s * u) - b / s  # noqa: E731
    with jax.enable_x64(True):

        def model(x, sigma):
            return (1 - l) * x - (1.1 + b / s) * sigma ** (-s) + b / s

        x = jnp.asarray(RNG.normal(size=(3, 5)))
        start, end = 2.0, 0.3
        solver = DPMSolverV3(table(l, s, b), 1)
        found = integrate(solver, model, x, [start, end], trace=True).trace.x[-1]
    # x' = -(l x + f), by a fine trapezoid rule in float64.
    u = np.linspace(-np.log(start), -np.log(end), 200_001)
    decay = np.exp(-l * (u[-1] - u))
    exact = np.asarray(x) * decay[0] - np.trapezoid(decay * f(u), u)
    np.testing.assert_allclose(found, exact, atol=1e-9)


def test_statistics_stay_on_their_own_levels_when_the_grid_starts_lower():
    """A skip takes the table's values at the grid's levels, not from its top on."""
    part = table(np.linspace(0, 1, 40)[:, None], 0, 0).linear_part()
    sigmas = np.array([80.0, 5.0, 0.3])
    wanted = np.interp(-np.log(sigmas), -np.log(NODES), np.linspace(0, 1, 40))
    np.testing.assert_allclose(part.gains(-np.log(sigmas))[:, 0], wanted)
    with jax.enable_x64(True):
        model = gaussian()
        solver = DPMSolverV3(pixel_statistics(model, NODES))
        x = jnp.asarray(5 * RNG.normal(size=(50, 5)))
        grid = log_linear(12, sigma_max=5.0)
        end = integrate(solver, model, x, grid, trace=True).trace.x[-1]
        plain = integrate(DPMSolverPP(3), model, x, grid, trace=True).trace.x[-1]
        exact = model.flow(x, 5.0, 0.002)
        rms = lambda x: float(jnp.sqrt(jnp.mean((x - exact) ** 2)))  # noqa: E731
        assert rms(end) < 0.6 * rms(plain)


@pytest.fixture(scope="module")
def estimate():
    model = gaussian(np.float32)
    images = np.asarray(model.sample(jax.random.key(0), 5_000))
    found = estimate_model_statistics(
        model, images, NODES, jax.random.key(1), num_samples=1500, batch_size=512
    )
    return model, images, found


def test_estimated_gains_are_those_of_the_closed_form(estimate):
    model, _, found = estimate
    difference = found.statistics.gains - pixel_statistics(model, NODES).gains
    deviation = difference / np.maximum(found.standard_error, 1e-6)
    # 200 numbers: the largest of as many normal ones is below 4.
    assert np.sqrt(np.mean(deviation**2)) < 1.3
    assert np.mean(np.abs(deviation) < 3) > 0.98
    assert np.abs(deviation).max() < 4.5
    assert np.median(found.standard_error) < 0.01


def test_estimated_statistics_help_the_solver(estimate):
    model, _, found = estimate
    x = jnp.asarray(80 * RNG.normal(size=(64, 5)), jnp.float32)
    grid, exact = log_linear(9), model.flow(x, 80.0, 0.002)
    rms = [
        float(
            jnp.sqrt(
                jnp.mean(
                    (integrate(s, model, x, grid, trace=True).trace.x[-1] - exact) ** 2
                )
            )
        )
        for s in (DPMSolverV3(found.statistics), DPMSolverPP(3))
    ]
    assert rms[0] < 0.2 * rms[1]


def test_where_the_rest_does_not_vary_its_bias_is_its_slope():
    """D = (1 - l) x - c sigma: f = c sigma is the same for all images, f' = -f."""
    l, c = 0.25, 0.7  # noqa: E741
    model = lambda x, sigma: (1 - l) * x - c * sigma  # noqa: E731
    images = RNG.normal(size=(100, 3)).astype(np.float32)
    nodes = np.geomspace(5, 0.1, 6)
    found = estimate_model_statistics(
        model, images, nodes, jax.random.key(0), num_samples=200, batch_size=64
    ).statistics
    np.testing.assert_allclose(found.gains, l, atol=1e-6)
    np.testing.assert_array_equal(found.scalings, 0)
    wanted = np.broadcast_to(-c * nodes[:, None], (6, 3))
    np.testing.assert_allclose(found.biases, wanted, rtol=1e-3)


def test_an_interrupted_estimation_ends_with_the_same_numbers():
    model = gaussian(np.float32)
    images = RNG.normal(size=(50, 5)).astype(np.float32)
    arguments = (model, images, NODES[:5], jax.random.key(2))
    sizes = dict(num_samples=70, batch_size=32)
    whole = estimate_model_statistics(*arguments, **sizes).statistics

    class Stop(Exception):
        pass

    passes = Passes(*np.full((4, 5, 5), np.nan))
    for count in (3, 4):

        def stop_after(_, left=[count]):  # noqa: B006
            left[0] -= 1
            if left[0] == 0:
                raise Stop

        with pytest.raises(Stop):
            estimate_model_statistics(
                *arguments, **sizes, passes=passes, after_level=stop_after
            )
    rest = estimate_model_statistics(*arguments, **sizes, passes=passes).statistics
    for name in ("gains", "scalings", "biases"):
        np.testing.assert_array_equal(getattr(rest, name), getattr(whole, name))


def test_statistics_survive_their_file(tmp_path, estimate):
    _, _, found = estimate
    path = tmp_path / "statistics.npz"
    save_model_statistics(path, found.statistics, about={"seed": 1})
    again = load_model_statistics(path)
    np.testing.assert_allclose(again.gains, found.statistics.gains, rtol=1e-6)
    np.testing.assert_array_equal(again.sigmas, found.statistics.sigmas)
    (tmp_path / "other.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="no model statistics"):
        load_model_statistics(tmp_path / "other.npz")
    with pytest.raises(InputError, match="estimate_statistics WORKDIR"):
        load_model_statistics(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DPMSolverV3(table(1, 0, 0), 4), "orders 1, 2, 3"),
        (lambda: DPMSolverV3(table(1, 0, 0), corrector="hlaf"), "half"),
        (
            lambda: DPMSolverV3(table(1, 0, 0), corrector=False),
            "'False'; choose from half, off, on",
        ),
        (
            lambda: DPMSolverV3(table(1, 0, 0)).plan(np.array([90.0, 1.0])),
            "cover noise levels 0.002 to 80",
        ),
        (lambda: table(1, 0, np.nan).linear_part(), "not finite"),
        (
            lambda: TabulatedStatistics(
                Coordinates(jnp.zeros(5)), NODES, *np.zeros((3, 39, 5))
            ).linear_part(),
            r"shape \(40, 5\)",
        ),
        (
            lambda: save_model_statistics(
                "x.npz",
                table(1, 0, 0).__class__(
                    gaussian_statistics(gaussian()).coordinates,
                    NODES,
                    *np.zeros((3, 40, 4)),
                ),
                about={},
            ),
            "pixel basis",
        ),
    ],
)
def test_bad_statistics_get_one_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
