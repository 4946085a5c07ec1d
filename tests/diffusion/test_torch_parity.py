"""The published architectures against independent torch modules, and golden numbers.

The modules are in `torch_networks`; what they gave is kept in ``golden_networks.npz``,
so that the comparison also runs without torch.  Write it anew with
``python -m pytest tests/diffusion/test_torch_parity.py --write-golden``.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from torch_networks import (  # noqa: E402
    CASES,
    Net,
    edm_arguments,
    random_inputs,
    random_tensor,
)

from diffusion import NeuralDenoiser  # noqa: E402
from diffusion.interop.edm import _edm_name, convert_edm  # noqa: E402
from diffusion.networks import build_network  # noqa: E402
from diffusion.preconditioning import EDMPreconditioning  # noqa: E402

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_the_denoiser_equals_edms_formula",)

GOLDEN = HERE / "golden_networks.npz"
SLOW = [
    name if name == "ddpmpp_small" else pytest.param(name, marks=pytest.mark.slow)
    for name in CASES
]
FULL_DEPTH = ("ddpmpp_32", "ncsnpp_32", "adm_64")
OUTPUTS_KEPT, SIGMA_DATA = 512, 0.5


def converted(name, tensors):
    """Return our network and parameters for named tensors in EDM's layout."""
    case = CASES[name]
    tensors = {f"model.{key}": value for key, value in tensors.items()}
    model = convert_edm("EDMPrecond", edm_arguments(case), tensors)
    return build_network(model.network, (*case["size"], 3)), model.params


# Compiled in seconds; the few calls may be slow.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.cache
def compiled(network):
    """Return value and gradient of <F, cotangent>; compiled quickly, run slowly."""

    def product(params, x, c_noise, labels, condition, cotangent):
        y = network.apply(params, x, c_noise, labels=labels, condition=condition)
        return jnp.sum(y * cotangent), y

    return quick_jit(jax.value_and_grad(product, (0, 1), has_aux=True))


def ours(name, tensors):
    network, params = converted(name, tensors)
    inputs = {k: jnp.asarray(v) for k, v in random_inputs(CASES[name]).items()}
    (_, y), (gradient, x_gradient) = compiled(network)(
        params, inputs.pop("x"), **inputs
    )
    return network, params, y, gradient, x_gradient


@functools.cache
def compiled_denoiser(network):
    """Return D(params, x, sigma, labels, condition) with EDM's preconditioning."""

    def denoise(params, x, sigma, labels, condition):
        preconditioning = EDMPreconditioning(SIGMA_DATA)
        return NeuralDenoiser(params, network, preconditioning, labels, condition)(
            x, sigma
        )

    return quick_jit(denoise)


def assert_denoiser_equals(name, network, params, output):
    """Compare D with its formula in float64, from F = `output` of `random_inputs`.

    The noise levels and images are those whose c_noise and c_in x are the inputs of F.
    What is compared are the elements that `output` has, as `kept` chooses them.
    """
    inputs = {k: v.astype(np.float64) for k, v in random_inputs(CASES[name]).items()}
    sigma = np.exp(4 * inputs["c_noise"])
    total = (sigma**2 + SIGMA_DATA**2).reshape(-1, 1, 1, 1)
    x = np.sqrt(total) * inputs["x"]
    skip = SIGMA_DATA**2 / total * x
    scale = np.broadcast_to(
        SIGMA_DATA * sigma.reshape(-1, 1, 1, 1) / np.sqrt(total), x.shape
    )
    found = compiled_denoiser(network)(
        params,
        *(jnp.asarray(a, jnp.float32) for a in (x, sigma)),
        *(jnp.asarray(inputs[k], jnp.float32) for k in ("labels", "condition")),
    )
    output = np.asarray(output, np.float64)
    if output.ndim == 1:
        skip, scale, found = kept(skip), kept(scale), kept(np.asarray(found))
    np.testing.assert_allclose(found, skip + scale * output, atol=2e-5)


def tensor_names(name):
    """Return EDM's name and shape of each parameter of ours."""
    case = CASES[name]
    network, _ = dry_network(name)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        edm = _edm_name(place, case["size"][0], case["kind"] == "song")
        shape = leaf.shape
        if place.endswith("kernel"):
            shape = tuple(
                shape[i] for i in ((3, 2, 0, 1) if len(shape) == 4 else (1, 0))
            )
        yield place, edm.removeprefix("model."), shape


def dry_network(name):
    from diffusion.interop.edm import _network

    case = CASES[name]
    config = _network(edm_arguments(case), case["size"][0])
    return build_network(config, (*case["size"], 3)), config


def in_edm_layout(array):
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    return np.asarray(array).transpose(axes)


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def kept(y):
    """Return the elements of an output that are kept."""
    return y.ravel()[:: max(1, y.size // OUTPUTS_KEPT)]


def summary(y, gradients):
    """Return what is kept: some outputs, and the norm of every gradient."""
    norms = np.array([np.linalg.norm(g.astype(np.float64)) for g in gradients])
    return kept(np.asarray(y)), norms


@pytest.mark.parametrize("name", SLOW)
def test_networks_denoisers_and_gradients_equal_torch(name, request):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    net = Net(torch, CASES[name])
    inputs = {k: torch.from_numpy(v) for k, v in random_inputs(CASES[name]).items()}
    cotangent = inputs.pop("cotangent")
    inputs["x"].requires_grad_(True)
    y = net(**inputs)
    (y * cotangent).sum().backward()
    tensors = {k: v.detach().numpy() for k, v in net.get.tensors.items()}
    network, params, found, gradient, x_gradient = ours(name, tensors)
    np.testing.assert_allclose(found, y.detach().numpy(), atol=2e-5)
    assert_denoiser_equals(name, network, params, y.detach().numpy())
    np.testing.assert_allclose(x_gradient, inputs["x"].grad.numpy(), atol=1e-4)
    gradient, gradients = flat(gradient), []
    names = list(tensor_names(name))
    assert {edm for _, edm, _ in names} == set(tensors)
    assert set(flat(params)) == {place for place, _, _ in names}
    for place, edm, _ in names:
        found_gradient = gradient[place]
        if place.endswith("kernel"):
            found_gradient = in_edm_layout(found_gradient)
        if edm.endswith("freqs"):
            assert not np.any(found_gradient)
            continue
        wanted = net.get.tensors[edm].grad.numpy()
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(
            found_gradient, wanted, atol=1e-4 * scale, err_msg=edm
        )
        gradients.append(wanted)
    if request.config.getoption("--write-golden"):
        values = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
        values[f"{name}/output"], values[f"{name}/norms"] = summary(
            y.detach().numpy(), gradients
        )
        np.savez_compressed(GOLDEN, **values)


@pytest.mark.parametrize("name", SLOW)
def test_networks_denoisers_and_gradients_equal_the_golden_numbers(name):
    golden = np.load(GOLDEN)
    names = list(tensor_names(name))
    tensors = {edm: random_tensor(edm, shape) for _, edm, shape in names}
    network, params, y, gradient, _ = ours(name, tensors)
    gradient = flat(gradient)
    gradients = [
        np.asarray(gradient[p]) for p, edm, _ in names if not edm.endswith("freqs")
    ]
    output, norms = summary(np.asarray(y), gradients)
    assert_denoiser_equals(name, network, params, golden[f"{name}/output"])
    np.testing.assert_allclose(output, golden[f"{name}/output"], atol=2e-5)
    np.testing.assert_allclose(norms, golden[f"{name}/norms"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "ddpmpp_small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ncsnpp_small", "adm_small", *FULL_DEPTH)
        ),
    ],
)
def test_every_parameter_matters_in_both_or_in_neither(name):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    net = Net(torch, CASES[name])
    inputs = random_inputs(CASES[name], batch=1 if name in FULL_DEPTH else 2)
    inputs.pop("cotangent")
    torch_inputs = {k: torch.from_numpy(v) for k, v in inputs.items()}
    with torch.no_grad():
        y = net(**torch_inputs)
    tensors = {k: v.detach().numpy() for k, v in net.get.tensors.items()}
    network, params = converted(name, tensors)
    apply = quick_jit(network.apply)
    plain = apply(params, **inputs)
    leaves, structure = jax.tree_util.tree_flatten(params)
    for index, (place, edm, _) in enumerate(tensor_names(name)):
        tensor = net.get.tensors[edm].data
        rng = np.random.default_rng(index)
        change = rng.normal(size=tensor.shape).astype(np.float32)
        with torch.no_grad():
            tensor += torch.from_numpy(change)
            wanted = (net(**torch_inputs) - y).numpy()
            tensor -= torch.from_numpy(change)
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(change.ndim, range(change.ndim))
        moved = list(leaves)
        ours_change = change.transpose(tuple(axes)) if "kernel" in place else change
        moved[index] = leaves[index] + ours_change
        found = apply(jax.tree_util.tree_unflatten(structure, moved), **inputs) - plain
        assert (np.abs(wanted).max() > 1e-3) == (np.abs(found).max() > 1e-3), edm
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(found, wanted, atol=2e-4 * scale, err_msg=edm)


def test_the_denoiser_equals_edms_formula():
    name = "ddpmpp_small"
    tensors = {edm: random_tensor(edm, shape) for _, edm, shape in tensor_names(name)}
    network, params = converted(name, tensors)
    inputs = random_inputs(CASES[name])
    denoiser = NeuralDenoiser(
        params,
        network,
        EDMPreconditioning(0.5),
        labels=jnp.asarray(inputs["labels"]),
        condition=jnp.asarray(inputs["condition"]),
    )
    apply, call = quick_jit(network.apply), quick_jit(lambda d, *a: d(*a))
    for sigma in (0.002, 0.3, 80.0):
        x = inputs["x"] * sigma
        total = sigma**2 + 0.25
        raw = apply(
            params,
            jnp.asarray(x / np.sqrt(total)),
            jnp.full(2, np.log(sigma) / 4, jnp.float32),
            labels=denoiser.labels,
            condition=denoiser.condition,
        )
        expected = 0.25 / total * x + sigma * 0.5 / np.sqrt(total) * raw
        found = call(denoiser, x, jnp.float32(sigma))
        np.testing.assert_allclose(found, expected, atol=2e-5)
