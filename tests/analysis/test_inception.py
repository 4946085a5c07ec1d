"""The Inception network against formulas, torch-fidelity and its golden numbers.

Golden numbers are torch-fidelity's under random weights; write them anew with
``python -m benchmarks.inception_parity``.
"""

import importlib.util
import math
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.import_inception import main
from analysis.metrics.inception import (
    HOW_TO_GET_WEIGHTS,
    LAYERS,
    Inception,
    _apply,
    inception_features,
    inception_layer,
    inception_shapes,
    load_inception,
    save_inception,
)
from analysis.metrics.inception_layers import (
    STAGES,
    Convolution,
    Parallel,
    Pool,
    parameter_shapes,
    resize_tf1,
    run_steps,
)
from analysis.metrics.inception_weights import (
    read_torch_inception,
    torch_inception_shapes,
)
from benchmarks.inception_parity import (
    GOLDEN,
    image_sets,
    kept,
    our_frechet,
    random_images,
    random_weights,
    relative_error,
    save_torch_weights,
    torch_frechet,
    torch_layers,
    two_images,
)
from configs.errors import InputError
from diffusion.command_line import exit_on_error

# Most of a minute of compilation.
pytestmark = pytest.mark.slow


RNG = np.random.default_rng


@pytest.fixture(scope="module")
def weights():
    """Random tensors under the names of torch's file."""
    return random_weights()


@pytest.fixture(scope="module")
def weights_file(weights, tmp_path_factory):
    """Them as a pickle of NumPy arrays, which needs no torch to write."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    counters = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.int64(0)}
    path.write_bytes(pickle.dumps({**weights, **counters}, protocol=2))
    return path


@pytest.fixture(scope="module")
def inception(weights_file):
    """The network that they make."""
    return read_torch_inception(weights_file)


def resized_in_float64(image, size_out):
    """Return rows of (H, C) at i H / size_out, one at a time."""
    size_in, rows = len(image), []
    for i in range(size_out):
        place = i * size_in / size_out
        lower = math.floor(place)
        upper = min(lower + 1, size_in - 1)
        rows.append(image[lower] * (1 - place + lower) + image[upper] * (place - lower))
    return np.array(rows)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (32, 32), (598, 301), (1, 2)])
def test_resize_equals_tensorflows_formula(height, width):
    image = RNG(0).integers(0, 256, (1, height, width, 2)).astype(np.float64)
    across = resized_in_float64(image[0].swapaxes(0, 1), 299).swapaxes(0, 1)
    wanted = resized_in_float64(across, 299)
    found = resize_tf1(jnp.asarray(image, jnp.float32), 299, 299)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=5e-3)


def test_resize_has_no_half_pixel_shift():
    row = jnp.array([0.0, 8.0]).reshape(1, 1, 2, 1)
    np.testing.assert_array_equal(resize_tf1(row, 1, 4).ravel(), [0, 4, 8, 8])


def windows(x, stride, same):
    """Yield (row, column, pixels of the 3x3 window within the image)."""
    height, width = x.shape[:2]
    starts = range(-1, height - 1) if same else range(0, height - 2, stride)
    columns = range(-1, width - 1) if same else range(0, width - 2, stride)
    for i, top in enumerate(starts):
        for j, left in enumerate(columns):
            rows, cols = slice(max(top, 0), top + 3), slice(max(left, 0), left + 3)
            yield i, j, x[rows, cols].reshape(-1, x.shape[2])


@pytest.mark.parametrize("pool", [Pool("average"), Pool("maximum"), Pool("maximum", 2)])
def test_pools_see_only_pixels_within_the_image(pool):
    x = RNG(1).normal(-3, 1, size=(1, 7, 5, 2)).astype(np.float32)
    found = np.asarray(run_steps([pool], {}, jnp.asarray(x)))[0]
    seen = list(windows(x[0].astype(np.float64), pool.stride, pool.stride == 1))
    assert found.shape[:2] == (seen[-1][0] + 1, seen[-1][1] + 1)
    for i, j, pixels in seen:
        wanted = pixels.mean(0) if pool.kind == "average" else pixels.max(0)
        np.testing.assert_allclose(found[i, j], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "step",
    [
        Convolution("a", 4, (3, 3), stride=2, padding="VALID"),
        Convolution("a", 4, (1, 7)),
        Convolution("a", 4, (5, 5)),
    ],
)
def test_a_convolution_is_normalised_with_epsilon_and_cut_at_zero(step):
    rng = RNG(2)
    shapes = parameter_shapes([step], 3)[0]["a"]
    params = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    params["variance"] = np.array([0, 1e-3, 0.5, 2], np.float32)
    x = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
    found = run_steps([step], {"a": params}, jnp.asarray(x))
    kernel = params["kernel"].astype(np.float64)
    h, w = step.kernel
    pads = (h // 2, w // 2) if step.padding == "SAME" else (0, 0)
    padded = np.pad(x.astype(np.float64), ((0, 0), *((p, p) for p in pads), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(1, 2))
    views = views[:, :: step.stride, :: step.stride]
    y = np.einsum("bijchw,hwco->bijo", views, kernel)
    mean, variance = params["mean"], params["variance"].astype(np.float64)
    normal = (y - mean) / np.sqrt(variance + 1e-3)
    wanted = np.maximum(params["scale"] * normal + params["bias"], 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4)


def test_parallel_chains_lie_side_by_side_in_their_order():
    x = jnp.asarray(RNG(3).normal(size=(1, 4, 4, 2)), jnp.float32)
    step = Parallel(((Pool("maximum"),), (Pool("average"), Pool("maximum")), ()))
    found = run_steps([step], {}, x)
    assert parameter_shapes([step], 2) == ({}, 6)
    np.testing.assert_array_equal(found[..., :2], run_steps([Pool("maximum")], {}, x))
    np.testing.assert_array_equal(found[..., 4:], x)


def test_the_network_has_the_published_tensors():
    shapes = torch_inception_shapes()
    assert len(shapes) == 472
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    numbers = sum(math.prod(s) for n, s in shapes.items() if "running" not in n)
    # torchvision counts 23,834,568 for 1000 classes without the auxiliary head.
    assert numbers == 23_834_568 + 8 * 2049
    wanted = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_2.bn.running_var": (192,),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: shapes[name] for name in wanted} == wanted


def test_channels_after_each_stage_are_the_layers_widths():
    channels = 3
    for name, steps in STAGES:
        _, channels = parameter_shapes(steps, channels)
        assert channels == int(name)


def test_every_layer_equals_torch_fidelitys_golden_numbers(inception):
    golden = np.load(GOLDEN)
    features, logits = inception_features(inception, two_images())
    found = {"2048": features, "logits_unbiased": logits}
    found["logits"] = logits + np.asarray(inception.params["fc"]["bias"])
    early = ("64", "192", "768")
    layers = _apply(inception.params, jnp.asarray(two_images()), early)
    found |= dict(zip(early, map(np.asarray, layers), strict=True))
    for name in LAYERS:
        assert relative_error(kept(found[name]), golden[f"layer/{name}"]) < 1e-5, name


@pytest.mark.parametrize(
    "layer", ["64", *(pytest.param(n, marks=pytest.mark.slow) for n in ("192", "2048"))]
)
def test_frechet_distances_equal_torch_fidelitys_golden_numbers(inception, layer):
    sets = [inception_layer(inception, images, layer) for images in image_sets()]
    wanted = float(np.load(GOLDEN)[f"frechet/{layer}"])
    assert our_frechet(*sets) == pytest.approx(wanted, rel=1e-4)
    assert our_frechet(sets[0], sets[0]) < 1e-6


@pytest.mark.slow
def test_layers_and_distances_equal_torch_fidelitys(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("needs torch-fidelity, by pip install --no-deps torch-fidelity")
    torch.set_num_threads(1)
    path = tmp_path / "weights.pth"
    save_torch_weights(path)
    inception = read_torch_inception(path)
    images = random_images(7, 3, 64)
    wanted, golden = torch_layers(path, images), np.load(GOLDEN)
    published = torch_layers(path, two_images())
    for name in LAYERS:
        found = inception_layer(inception, images, name)
        assert relative_error(found, wanted[name]) < 1e-5, name
        assert relative_error(kept(published[name]), golden[f"layer/{name}"]) < 1e-5
    sets = [torch_layers(path, images)["192"] for images in image_sets()]
    found = our_frechet(*sets)
    assert found == pytest.approx(torch_frechet(*sets), rel=1e-4)
    assert found == pytest.approx(float(golden["frechet/192"]), rel=1e-4)


def test_layers_do_not_depend_on_the_batch_and_grey_is_repeated(inception):
    grey = random_images(3, 5, 16)[..., :1]
    counts = []
    found = inception_layer(inception, grey, "64", batch_size=2, advance=counts.append)
    assert counts == [2, 2, 1]
    wanted = inception_layer(inception, grey.repeat(3, axis=-1), "64")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "part"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "dtype float32, .* uint8 pixels 0 to 255"),
        (np.zeros((2, 3, 8, 8), np.uint8), "channels come last"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\); give \(n, H, W, C\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "n >= 1"),
        (np.zeros((2, 8, 8, 4), np.uint8), "C = 3"),
    ],
)
def test_images_of_another_kind_are_refused_in_one_line(inception, images, part):
    with pytest.raises(InputError, match=part) as error:
        inception_features(inception, images)
    assert "\n" not in str(error.value)


def test_an_unknown_layer_is_refused(inception):
    with pytest.raises(InputError, match="unknown Inception layer '2047'; did you"):
        inception_layer(inception, two_images(), "2047")


def test_imported_tensors_are_the_files(inception, weights, weights_file):
    params = inception.params
    block = params["Mixed_6b"]["branch7x7_2"]
    name = "Mixed_6b.branch7x7_2"
    np.testing.assert_array_equal(
        block["kernel"], weights[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(block["variance"], weights[f"{name}.bn.running_var"])
    np.testing.assert_array_equal(block["scale"], weights[f"{name}.bn.weight"])
    np.testing.assert_array_equal(block["mean"], weights[f"{name}.bn.running_mean"])
    np.testing.assert_array_equal(params["fc"]["kernel"], weights["fc.weight"].T)
    shapes = jax.tree.map(np.shape, params)
    assert shapes == inception_shapes()
    assert len(inception.digest) == 64


def test_the_command_writes_what_load_reads(
    inception, weights_file, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "folder" / "inception.npz"
    command = ["import_inception", str(weights_file), "--out", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    exit_on_error(main)
    printed = capsys.readouterr().out
    assert "472 tensors" in printed and inception.digest in printed
    found = load_inception(path)
    assert found.digest == inception.digest
    jax.tree.map(np.testing.assert_array_equal, found.params, inception.params)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"fc__weight": np.zeros((1000, 2048), np.float32)}, r"fc.weight has shape"),
        ({"Mixed_5b__branch1x1__conv__weight": None}, "it lacks Mixed_5b.branch1x1"),
        ({"AuxLogits__fc__bias": np.zeros(9, np.float32)}, "also holds AuxLogits"),
        ({"fc__bias": np.full(1008, np.nan, np.float32)}, "fc.bias holds NaN"),
        ({"fc__bias": np.zeros(1008, np.int32)}, "fc.bias is of type int32"),
        (
            {"Mixed_5b__branch1x1__bn__running_var": np.full(64, -1, np.float32)},
            "negative variance",
        ),
    ],
)
def test_other_tensors_are_refused_in_one_line(
    weights, weights_file, monkeypatch, changes, part
):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    tensors = {n: v for n, v in {**weights, **changes}.items() if v is not None}
    reader = "analysis.metrics.inception_weights.read_untrusted"
    monkeypatch.setattr(reader, lambda path: tensors)
    with pytest.raises(InputError, match=part) as error:
        read_torch_inception(weights_file)
    assert HOW_TO_GET_WEIGHTS in str(error.value) and "\n" not in str(error.value)


def test_missing_weights_say_what_to_fetch(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"6726825d.pth .* analysis.import_inception"):
        load_inception(tmp_path / "inception.npz")
    monkeypatch.setattr(sys, "argv", ["import_inception", str(tmp_path / "none.pth")])
    with pytest.raises(SystemExit) as stop:
        exit_on_error(main)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    assert "pt_inception-2015-12-05-6726825d.pth" in message


def test_other_files_are_refused_in_one_line(inception, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.zeros((2, 2)))
    with pytest.raises(InputError, match="was not written by"):
        load_inception(path)
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}.")
    with pytest.raises(InputError, match="import it first"):
        load_inception(tmp_path / "weights.pth")
    params = {name: leaf for name, leaf in inception.params.items() if name != "fc"}
    with pytest.raises(InputError, match=r"fc/bias has shape none instead of \(1008,"):
        save_inception(path, Inception(params, ""))
