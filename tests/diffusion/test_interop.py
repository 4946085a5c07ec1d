"""Checkpoints of other projects, as files of their layout with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from configs.network_schema import DDPMUNetConfig, MLPConfig
from configs.schema import SamplerConfig
from diffusion.adapters import VPNoiseDenoiser, linear_beta_schedule
from diffusion.closed_form import load_gaussian, load_published_pca
from diffusion.importing import import_checkpoint
from diffusion.interop import (
    convert_unet2d,
    load_edm,
    load_params,
    load_unet2d,
    save_params,
)
from diffusion.networks import build_network
from diffusion.training import load_denoiser
from samplers.building import build_sampler
from samplers.model import load_model

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pickle_writer import Storage, dumps, module, tensor, torch_zip
from test_torch_parity import tensor_names
from torch_networks import CASES, edm_arguments, random_tensor

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_a_grid_stays_within_the_levels_that_a_network_knows",
    "test_a_snapshot_of_edm_comes_back_bit_for_bit[adm_small]",
    "test_a_snapshot_of_edm_comes_back_bit_for_bit[ddpmpp_small]",
)

ROOT = Path(__file__).resolve().parents[2]


def edm_tensors(name):
    case = CASES[name]
    found = {edm: random_tensor(edm, shape) for _, edm, shape in tensor_names(name)}
    taps = np.array(case["taps"], np.float32)
    fir = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
    size = case["size"][0]
    found[f"enc.{size // 2}x{size // 2}_down.conv0.resample_filter"] = fir
    return {f"model.{key}": value for key, value in found.items()}


def write_edm(path, name, **changes):
    arguments = {**edm_arguments(CASES[name]), **changes.pop("arguments", {})}
    tensors = {**edm_tensors(name), **changes.pop("tensors", {})}
    tensors = {key: value for key, value in tensors.items() if value is not None}
    ema = module(
        changes.pop("class_name", "EDMPrecond"),
        tensors,
        _init_kwargs=arguments,
        sigma_data=0.5,
    )
    content = {"ema": ema, "loss_fn": None, "augment_pipe": None}
    path.write_bytes(dumps(content, protocol=4))  # Python's default, as EDM writes it
    return path


@pytest.mark.parametrize("name", ["ddpmpp_small", "ncsnpp_small", "adm_small"])
def test_a_snapshot_of_edm_comes_back_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_edm(write_edm(tmp_path / "edm.pkl", name))
    assert [path.name for path in tmp_path.iterdir()] == ["edm.pkl"]  # and no mark
    assert model.event_shape == (8, 8, 3)
    assert model.preconditioning.sigma_data == 0.5
    assert "CC BY-NC-SA" in model.notice
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    }
    for place, edm, shape in tensor_names(name):
        array = random_tensor(edm, shape)
        if place.endswith("kernel"):
            array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
        np.testing.assert_array_equal(found[place], array)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_name": "OtherPrecond"}, "'OtherPrecond' are not known"),
        ({"arguments": {"model_type": "UNet"}}, "model_type is 'UNet'"),
        ({"arguments": {"img_resolution": "8"}}, "img_resolution is '8'"),
        ({"arguments": {"decoder_type": "skip"}}, "decoder_type"),
        ({"arguments": {"model_channels": 16}}, "has shape"),
        ({"tensors": {"model.map_layer0.bias": None}}, "no tensor model.map_layer0"),
        ({"tensors": {"model.extra": np.ones(3, np.float32)}}, "no place for"),
        (
            {"tensors": {"model.map_layer0.bias": np.full(128, np.nan, np.float32)}},
            "NaN",
        ),
        (
            {
                "tensors": {
                    "model.enc.4x4_down.conv0.resample_filter": np.ones(
                        (1, 1, 2, 2), np.float32
                    )
                }
            },
            "another filter",
        ),
    ],
)
def test_snapshots_that_do_not_fit_are_refused_in_one_line(changes, says, tmp_path):
    path = write_edm(tmp_path / "edm.pkl", "ddpmpp_small", **changes)
    with pytest.raises(InputError, match=says) as error:
        load_edm(path)
    assert "\n" not in str(error.value)


def test_other_pickles_are_no_snapshots(tmp_path):
    (tmp_path / "list.pkl").write_bytes(dumps([1, 2]))
    with pytest.raises(InputError, match="no network snapshot"):
        load_edm(tmp_path / "list.pkl")


TINY = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "norm_num_groups": 4,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "act_fn": "silu",
    "_class_name": "UNet2DModel",
}


def diffusers_tensors(old_names=False):
    """Return the tensors of such a network, by the library's names."""
    shapes = {}

    def conv(name, c_in, c_out, k):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c_out, c_in, k, k), (c_out,)

    def dense(name, c_in, c_out):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c_out, c_in), (c_out,)

    def norm(name, c):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c,), (c,)

    def resnet(name, c_in, c_out):
        norm(f"{name}.norm1", c_in)
        conv(f"{name}.conv1", c_in, c_out, 3)
        dense(f"{name}.time_emb_proj", 32, c_out)
        norm(f"{name}.norm2", c_out)
        conv(f"{name}.conv2", c_out, c_out, 3)
        if c_in != c_out:
            conv(f"{name}.conv_shortcut", c_in, c_out, 1)

    def attention(name, c):
        norm(f"{name}.group_norm", c)
        names = ["query", "key", "value", "proj_attn"]
        for layer in names if old_names else ["to_q", "to_k", "to_v", "to_out.0"]:
            dense(f"{name}.{layer}", c, c)

    conv("conv_in", 3, 8, 3)
    dense("time_embedding.linear_1", 8, 32)
    dense("time_embedding.linear_2", 32, 32)
    resnet("down_blocks.0.resnets.0", 8, 8)
    conv("down_blocks.0.downsamplers.0.conv", 8, 8, 3)
    resnet("down_blocks.1.resnets.0", 8, 16)
    attention("down_blocks.1.attentions.0", 16)
    resnet("mid_block.resnets.0", 16, 16)
    attention("mid_block.attentions.0", 16)
    resnet("mid_block.resnets.1", 16, 16)
    resnet("up_blocks.0.resnets.0", 32, 16)
    resnet("up_blocks.0.resnets.1", 24, 16)
    for index in range(2):
        attention(f"up_blocks.0.attentions.{index}", 16)
    conv("up_blocks.0.upsamplers.0.conv", 16, 16, 3)
    resnet("up_blocks.1.resnets.0", 24, 8)
    resnet("up_blocks.1.resnets.1", 16, 8)
    norm("conv_norm_out", 8)
    conv("conv_out", 8, 3, 3)
    renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def seed_name(name):
        for old, new in renamed.items():
            name = name.replace(f".{old}.", f".{new}.")
        return name

    return {n: random_tensor(seed_name(n), shape) for n, shape in shapes.items()}


def test_the_ddpm_network_of_cifar_has_the_published_number_of_parameters():
    network = build_network(DDPMUNetConfig(), (32, 32, 3))
    assert network.num_parameters() == 35_746_307


def test_a_diffusers_network_equals_torch():
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    fn = torch.nn.functional
    t = {k: torch.from_numpy(v) for k, v in diffusers_tensors().items()}

    def conv(name, x, **options):
        return fn.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], **options)

    def dense(name, x):
        return fn.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    def norm(name, x):
        return fn.group_norm(x, 4, t[f"{name}.weight"], t[f"{name}.bias"], eps=1e-6)

    def resnet(name, x, emb):
        y = conv(f"{name}.conv1", fn.silu(norm(f"{name}.norm1", x)), padding=1)
        y = y + dense(f"{name}.time_emb_proj", fn.silu(emb))[:, :, None, None]
        y = conv(f"{name}.conv2", fn.silu(norm(f"{name}.norm2", y)), padding=1)
        if f"{name}.conv_shortcut.weight" in t:
            x = conv(f"{name}.conv_shortcut", x)
        return x + y

    def attention(name, x):
        b, c, h, w = x.shape
        y = norm(f"{name}.group_norm", x).reshape(b, c, h * w).transpose(1, 2)
        q, k, v = (dense(f"{name}.to_{n}", y) for n in "qkv")
        y = (q @ k.transpose(1, 2) / c**0.5).softmax(-1) @ v
        return x + dense(f"{name}.to_out.0", y).transpose(1, 2).reshape(b, c, h, w)

    x = torch.from_numpy(random_tensor("input", (2, 3, 8, 8)))
    time = torch.tensor([3.0, 700.0])
    angles = time[:, None] * 10_000.0 ** -(torch.arange(4) / 3)
    emb = torch.cat([angles.sin(), angles.cos()], dim=1)
    emb = dense("time_embedding.linear_1", emb)
    emb = dense("time_embedding.linear_2", fn.silu(emb))
    y0 = conv("conv_in", x, padding=1)
    y1 = resnet("down_blocks.0.resnets.0", y0, emb)
    y2 = conv("down_blocks.0.downsamplers.0.conv", fn.pad(y1, (0, 1, 0, 1)), stride=2)
    y3 = resnet("down_blocks.1.resnets.0", y2, emb)
    y3 = attention("down_blocks.1.attentions.0", y3)
    y = attention("mid_block.attentions.0", resnet("mid_block.resnets.0", y3, emb))
    y = resnet("mid_block.resnets.1", y, emb)
    for index, skip in enumerate([y3, y2]):
        y = resnet(f"up_blocks.0.resnets.{index}", torch.cat([y, skip], 1), emb)
        y = attention(f"up_blocks.0.attentions.{index}", y)
    y = fn.interpolate(y, scale_factor=2.0, mode="nearest")
    y = conv("up_blocks.0.upsamplers.0.conv", y, padding=1)
    for index, skip in enumerate([y1, y0]):
        y = resnet(f"up_blocks.1.resnets.{index}", torch.cat([y, skip], 1), emb)
    y = conv("conv_out", fn.silu(norm("conv_norm_out", y)), padding=1)

    model = convert_unet2d(TINY, diffusers_tensors())
    network = build_network(model.network, model.event_shape)
    found = jax.jit(network.apply)(
        model.params, x.permute(0, 2, 3, 1).numpy(), jnp.asarray(time.numpy())
    )
    np.testing.assert_allclose(found, y.permute(0, 2, 3, 1).numpy(), atol=2e-5)


def write_diffusers(folder, old_names=False, **changes):
    import safetensors.numpy

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TINY, **changes}))
    path = folder / "diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(diffusers_tensors(old_names), path)
    return folder


def test_old_and_new_names_of_attention_are_the_same_network(tmp_path):
    new = load_unet2d(write_diffusers(tmp_path / "new"))
    old = load_unet2d(write_diffusers(tmp_path / "old", old_names=True))
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"act_fn": "relu"}, "act_fn = 'relu'"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "down_block_types"),
        ({"block_out_channels": [8, 12]}, "shape"),
        ({"sample_size": None}, "sample_size"),
        ({"layers_per_block": 2}, "no tensor"),
    ],
)
def test_other_layouts_are_refused_in_one_line(changes, says, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        load_unet2d(write_diffusers(tmp_path / "unet", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_imported_noise_predictor_is_a_denoiser(tmp_path):
    folder = write_diffusers(tmp_path / "unet")
    model = import_checkpoint(folder, tmp_path / "run")
    denoiser = load_denoiser(tmp_path / "run")
    assert isinstance(denoiser, VPNoiseDenoiser)
    network = build_network(model.network, model.event_shape)
    x = 3 * random_tensor("x", (2, 8, 8, 3))
    sigma = float(linear_beta_schedule().sigmas[400])
    noise = jax.jit(network.apply)(
        model.params,
        jnp.asarray(x / np.sqrt(1 + sigma**2)),
        jnp.full(2, 400.0),
    )
    found = jax.jit(lambda d, x: d(x, sigma))(denoiser, jnp.asarray(x))
    np.testing.assert_allclose(found, x - sigma * noise, atol=1e-3)


def test_a_grid_stays_within_the_levels_that_a_network_knows(tmp_path):
    import_checkpoint(write_diffusers(tmp_path / "unet"), tmp_path / "run")
    model = load_model(tmp_path / "run")
    sigmas = build_sampler(SamplerConfig(sigma_max=1000.0), model).sigmas
    table = linear_beta_schedule().sigmas
    np.testing.assert_allclose(sigmas[[0, -1]], [table[-1], table[0]], rtol=1e-5)
    with pytest.raises(InputError, match=r"noise levels \S+ to 15"):
        build_sampler(SamplerConfig(sigma_min=200.0, sigma_max=300.0), model)


def test_our_weights_go_to_safetensors_and_back(tmp_path):
    network = build_network(MLPConfig(width=4, num_layers=1), (2,))
    params = network.init(jax.random.key(0))
    save_params(tmp_path / "w.safetensors", params)
    found = load_params(tmp_path / "w.safetensors")
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-5])
    for name, says in (("cut", "no intact"), ("none", "there is no file")):
        with pytest.raises(InputError, match=says):
            load_params(tmp_path / f"{name}.safetensors")


def test_a_published_table_of_torch_is_the_same_as_an_npz(tmp_path):
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(12, 12)))[0].astype(np.float32)
    values = np.sort(rng.uniform(size=12)).astype(np.float32)
    table = {
        "eigval": values,
        "eigvec": vectors,
        "imgmean": rng.uniform(size=12).astype(np.float32),
    }
    stored = {name: np.ascontiguousarray(a).ravel() for name, a in table.items()}
    tensors = {
        name: tensor(
            np.ascontiguousarray(a), Storage("FloatStorage", name, stored[name].size)
        )
        for name, a in table.items()
    }
    (tmp_path / "pca.pt").write_bytes(torch_zip(tensors, stored))
    np.savez(tmp_path / "pca.npz", **table)
    torch_table = load_published_pca(tmp_path / "pca.pt", (2, 2, 3))
    npz_table = load_published_pca(tmp_path / "pca.npz", (2, 2, 3))
    jax.tree.map(np.testing.assert_array_equal, torch_table, npz_table)
    (tmp_path / "other.pt").write_bytes(torch_zip({"eigval": 1}, {}))
    with pytest.raises(InputError, match="does not hold the tensors"):
        load_published_pca(tmp_path / "other.pt", (2, 2, 3))


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_an_imported_snapshot_generates_and_compares_like_a_trained_run(tmp_path):
    snapshot = write_edm(tmp_path / "edm.pkl", "ddpmpp_small")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    workdir = tmp_path / "run"
    arguments = ("--workdir", str(workdir), "--data", str(tmp_path / "images.npz"))
    done = run("diffusion.import_checkpoint", str(snapshot), *arguments)
    assert done.returncode == 0, done.stderr
    assert "CC BY-NC-SA" in done.stdout
    assert load_gaussian(workdir / "gaussian.npz").mean.shape == (8, 8, 3)
    sampler = ("--sampler.num-points", "3", "--sampler.teleport", "10")
    done = run("samplers.generate", str(workdir), "--num-samples", "2", *sampler)
    assert done.returncode == 0, done.stderr
    done = run(
        *("analysis.compare", str(workdir), "--sigmas", "1", "10"),
        *("--parts", "scores", "--num-probes", "8"),
    )
    assert done.returncode == 0, done.stderr
    again = run("diffusion.import_checkpoint", str(snapshot), *arguments)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "holds a run already" in again.stderr


@pytest.mark.parametrize("content", [b"no pickle", None])
def test_the_command_refuses_other_files_in_one_line(content, tmp_path):
    path = tmp_path / "file.pkl"
    if content is not None:
        path.write_bytes(content)
    done = run(
        "diffusion.import_checkpoint", str(path), "--workdir", str(tmp_path / "r")
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()
