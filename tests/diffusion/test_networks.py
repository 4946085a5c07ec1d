"""Architectures: published parameter counts, layers against NumPy, shapes, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import InputError
from configs.network_schema import DhariwalUNetConfig, MLPConfig, SongUNetConfig
from diffusion.interop.edm import _edm_name, _network
from diffusion.networks import build_network
from diffusion.networks.convolution import convolve, downsample, upsample
from diffusion.networks.layers import GroupNorm, dropout, positional_embedding
from diffusion.networks.residual_block import Attention, BlockSettings

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_images_need_not_be_square",
    "test_published_numbers_of_parameters[config0-event0-55732739]",
    "test_published_numbers_of_parameters[config1-event1-55733891]",
    "test_published_numbers_of_parameters[config2-event2-55735299]",
    "test_published_numbers_of_parameters[config4-event4-56400643]",
    "test_published_numbers_of_parameters[config5-event5-61805571]",
    "test_published_numbers_of_parameters[config6-event6-62761091]",
    "test_published_numbers_of_parameters[config7-event7-295899267]",
    "test_tensors_have_the_published_names_and_shapes[adm 64]",
    "test_tensors_have_the_published_names_and_shapes[ddpmpp 32 cond]",
)

NCSNPP = {
    "encoder": "residual",
    "embedding": "fourier",
    "noise_channel_mult": 2,
    "resample_filter": (1, 3, 3, 1),
}
EDM_NCSNPP = {
    "encoder_type": "residual",
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
WIDE = {"channel_mult": (1, 2, 2, 2)}
KEY, SLOW = jax.random.key(0), pytest.mark.slow


@pytest.mark.parametrize(
    ("config", "event", "count"),
    [
        # The published networks of arXiv 2206.00364 (reference implementation).
        (SongUNetConfig(), (32, 32, 3), 55_733_891 - 9 * 128),
        (SongUNetConfig(augment_dim=9), (32, 32, 3), 55_733_891),
        (SongUNetConfig(augment_dim=9, label_dim=10), (32, 32, 3), 55_735_299),
        (SongUNetConfig(augment_dim=9, **NCSNPP), (32, 32, 3), 56_397_827),
        (
            SongUNetConfig(augment_dim=9, label_dim=10, **NCSNPP),
            (32, 32, 3),
            56_400_643,
        ),
        (SongUNetConfig(augment_dim=9, **WIDE), (64, 64, 3), 61_805_571),
        (SongUNetConfig(augment_dim=9, **WIDE, **NCSNPP), (64, 64, 3), 62_761_091),
        (DhariwalUNetConfig(label_dim=1000), (64, 64, 3), 295_899_267),
    ],
)
def test_published_numbers_of_parameters(config, event, count):
    assert build_network(config, event).num_parameters() == count


def test_group_norm_equals_numpy():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 4, 4, 16)).astype(np.float32)
    layer = GroupNorm(16, epsilon=1e-6, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = jnp.arange(16.0), jnp.arange(16.0) - 5
    groups = x.astype(np.float64).reshape(2, 16, 4, 4)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    deviation = np.sqrt(groups.var(axis=(1, 3), keepdims=True) + 1e-6)
    expected = ((groups - mean) / deviation).reshape(x.shape)
    expected = expected * np.arange(16) + np.arange(16) - 5
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=2e-5)


def test_group_norm_survives_a_large_offset():
    x = np.random.default_rng(0).normal(1e4, 1, size=(1, 8, 8, 16)).astype(np.float32)
    layer = GroupNorm(16, epsilon=1e-6, rngs=nnx.Rngs(0))
    result = np.asarray(layer(jnp.asarray(x)))
    assert result.std() == pytest.approx(1, abs=1e-2)


def test_attention_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    layer = Attention(8, BlockSettings(1, channels_per_head=4), rngs=nnx.Rngs(0))
    layer.proj.kernel[...] = jnp.asarray(rng.normal(size=(1, 1, 8, 8)), jnp.float32)
    normed = np.asarray(layer.norm(jnp.asarray(x)), np.float64).reshape(2, 15, 8)
    qkv = normed @ np.asarray(layer.qkv.kernel[...][0, 0], np.float64)
    # Channels are (head, channel, {q, k, v}).
    q, k, v = np.moveaxis(qkv.reshape(2, 15, 2, 4, 3), -1, 0)
    logits = np.einsum("bqhc,bkhc->bhqk", q, k) / 2
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhc->bqhc", weights, v).reshape(2, 3, 5, 8)
    expected = x + mixed @ np.asarray(layer.proj.kernel[...][0, 0])
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-4)


def test_positional_embedding_equals_the_formula():
    values = np.array([-1.3, 0.0, 0.7], np.float32)
    frequencies = 10_000.0 ** -(np.arange(8) / 7)
    angles = values[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    found = positional_embedding(jnp.asarray(values), 16)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_resampling_averages_and_repeats():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(downsample(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    up = upsample(x)
    assert up.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(up[0, ::2, 1::2, 0], x[0, :, :, 0])
    np.testing.assert_array_equal(downsample(up), x)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((100, 100))
    np.testing.assert_array_equal(dropout(x, 0.3, None), x)
    dropped = dropout(x, 0.3, jax.random.key(0))
    assert float((dropped == 0).mean()) == pytest.approx(0.3, abs=0.02)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)


@pytest.fixture(scope="module")
def unet():
    config = SongUNetConfig(
        4,
        (1, 2),
        num_blocks=1,
        attention_resolutions=(2,),
        adaptive_scale=True,
        label_dim=3,
        augment_dim=2,
        dropout=0.5,
    )
    network = build_network(config, (4, 8, 1))
    params = jax.tree.map(lambda p: p + 0.05, network.init(jax.random.key(0)))
    apply = jax.jit(network.apply)
    x = jax.random.normal(jax.random.key(1), (2, 4, 8, 1))
    return network, params, apply, x, jnp.asarray([0.1, -0.4])


def test_images_need_not_be_square(unet):
    _, params, apply, x, c_noise = unet
    assert apply(params, x, c_noise).shape == x.shape


def test_no_labels_are_zero_labels_and_no_condition_is_a_zero_condition(unet):
    _, params, apply, x, c_noise = unet
    neutral = apply(
        params, x, c_noise, labels=jnp.zeros((2, 3)), condition=jnp.zeros((2, 2))
    )
    np.testing.assert_allclose(apply(params, x, c_noise), neutral, atol=1e-6)


def test_labels_condition_noise_and_dropout_all_matter(unet):
    _, params, apply, x, c_noise = unet
    plain = apply(params, x, c_noise)
    for other in (
        apply(params, x, c_noise + 0.5),
        apply(params, x, c_noise, labels=jnp.eye(3)[:2]),
        apply(params, x, c_noise, condition=jnp.ones((2, 2))),
        apply(params, x, c_noise, dropout_key=jax.random.key(2)),
    ):
        assert float(jnp.abs(other - plain).max()) > 1e-4


def test_parameters_are_a_plain_nested_dict_of_float32(unet):
    _, params, *_ = unet

    def check(tree):
        for name, value in tree.items():
            assert isinstance(name, str)
            if isinstance(value, dict):
                check(value)
            else:
                assert value.dtype == jnp.float32

    assert type(params) is dict
    check(params)


@pytest.mark.parametrize(
    ("config", "event", "says"),
    [
        (SongUNetConfig(), (30, 32, 3), "divisible by 4"),
        (SongUNetConfig(), (2,), "divisible by 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(config, event, says):
    with pytest.raises(InputError, match=says):
        build_network(config, event)


def test_unknown_inputs_are_refused():
    network = build_network(MLPConfig(width=4, num_layers=1), (2,))
    params, x = network.init(jax.random.key(0)), jnp.ones((1, 2))
    with pytest.raises(InputError, match="no labels"):
        network.apply(params, x, jnp.ones(1), labels=jnp.ones((1, 2)))
    with pytest.raises(InputError, match="shape"):
        network.apply(params, jnp.ones((1, 3)), jnp.ones(1))


@pytest.mark.slow
def test_the_published_size_runs_at_32x32():
    network = build_network(SongUNetConfig(model_channels=32), (32, 32, 3))
    assert network.num_parameters() > 3e6
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    assert jax.jit(network.apply)(params, x, jnp.zeros(2)).shape == x.shape


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])
def test_filters_resample_as_their_definition(taps):
    x = np.random.default_rng(0).normal(size=(1, 6, 8, 2))
    f = np.outer(taps, taps) / sum(taps) ** 2
    pad = len(taps) // 2 - 1
    n = len(taps)
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    down = np.zeros((1, 3, 4, 2))
    up = np.zeros((1, 12 + 2 * pad, 16 + 2 * pad, 2))
    for i in range(3):
        for j in range(4):
            window = wide[:, 2 * i : 2 * i + n, 2 * j : 2 * j + n]
            down[:, i, j] = np.einsum("bijc,ij->bc", window, f)
    for i in range(6):
        for j in range(8):
            spread = 4 * f[None, :, :, None] * x[:, i : i + 1, j : j + 1]
            up[:, 2 * i : 2 * i + n, 2 * j : 2 * j + n] += spread
    up = up[:, pad : pad + 12, pad : pad + 16]
    with jax.enable_x64(True):
        np.testing.assert_allclose(downsample(jnp.asarray(x), taps), down, atol=1e-12)
        np.testing.assert_allclose(upsample(jnp.asarray(x), taps), up, atol=1e-12)
    with pytest.raises(InputError, match="symmetric"):
        SongUNetConfig(resample_filter=(1, 2))


def test_convolutions_have_xlas_values_and_derivatives():
    def plain(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        sides = [(1, 1), (1, 1)]
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), sides, dimension_numbers=layout
        )

    def loss(f, x, kernel):
        return jnp.sum(jnp.sin(f(x, kernel)))

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, 5, 4, 3)))
        kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 2)))
        tangents = jnp.asarray(rng.normal(size=x.shape)), 2 * kernel
        ours = lambda x, kernel: convolve(x, kernel, 1)  # noqa: E731
        np.testing.assert_allclose(ours(x, kernel), plain(x, kernel), atol=1e-12)
        for result, expected in zip(
            jax.grad(lambda *a: loss(ours, *a), (0, 1))(x, kernel),
            jax.grad(lambda *a: loss(plain, *a), (0, 1))(x, kernel),
            strict=True,
        ):
            np.testing.assert_allclose(result, expected, atol=1e-11)
        np.testing.assert_allclose(
            jax.jvp(ours, (x, kernel), tangents)[1],
            jax.jvp(plain, (x, kernel), tangents)[1],
            atol=1e-11,
        )
        hessian = jax.jvp(jax.grad(lambda k: loss(ours, x, k)), (kernel,), (kernel,))
        wanted = jax.jvp(jax.grad(lambda k: loss(plain, x, k)), (kernel,), (kernel,))
        np.testing.assert_allclose(hessian[1], wanted[1], atol=1e-10)


def published_tensors(
    kind, size, width, mult, blocks, attention, label_dim=0, augment_dim=9
):
    """Return the shape of every tensor of EDM's networks, by its name there.

    Convolutions are OIHW, dense layers (out, in).  `kind` is ddpmpp, ncsnpp or adm.
    """
    song, found = kind != "adm", {}
    noise = width * (2 if kind == "ncsnpp" else 1)
    emb = 4 * width

    def layer(name, *shape, bias=True):
        found[f"{name}.weight"] = shape
        if bias:
            found[f"{name}.bias"] = shape[:1]

    def block(name, c_in, c_out, attend=False, resampled=False):
        layer(f"{name}.norm0", c_in)
        layer(f"{name}.conv0", c_out, c_in, 3, 3)
        layer(f"{name}.affine", c_out if song else 2 * c_out, emb)
        layer(f"{name}.norm1", c_out)
        layer(f"{name}.conv1", c_out, c_out, 3, 3)
        if c_in != c_out or (resampled and song):
            layer(f"{name}.skip", c_out, c_in, 1, 1)
        if attend:
            layer(f"{name}.norm2", c_out)
            layer(f"{name}.qkv", 3 * c_out, c_out, 1, 1)
            layer(f"{name}.proj", c_out, c_out, 1, 1)

    if kind == "ncsnpp":
        found["map_noise.freqs"] = (noise // 2,)
    if label_dim:
        layer("map_label", noise if song else emb, label_dim, bias=song)
    if augment_dim:
        layer("map_augment", noise, augment_dim, bias=False)
    layer("map_layer0", emb, noise)
    layer("map_layer1", emb, emb)
    layer(f"enc.{size}x{size}_conv", width, 3, 3, 3)
    channels, image, skips = width, 3, [width]
    for level, factor in enumerate(mult):
        res = f"{size >> level}x{size >> level}"
        if level:
            block(f"enc.{res}_down", channels, channels, resampled=True)
            skips.append(channels)
            if kind == "ncsnpp":
                layer(f"enc.{res}_aux_residual", channels, image, 3, 3)
                image = channels
        for index in range(blocks):
            attend = size >> level in attention
            block(f"enc.{res}_block{index}", channels, factor * width, attend)
            channels = factor * width
            skips.append(channels)
    for level, factor in reversed(list(enumerate(mult))):
        res = f"{size >> level}x{size >> level}"
        if level == len(mult) - 1:
            block(f"dec.{res}_in0", channels, channels, attend=True)
            block(f"dec.{res}_in1", channels, channels)
        else:
            block(f"dec.{res}_up", channels, channels, resampled=True)
        for index in range(blocks + 1):
            attend = size >> level in attention and (not song or index == blocks)
            c_in, channels = channels + skips.pop(), factor * width
            block(f"dec.{res}_block{index}", c_in, channels, attend)
    assert not skips
    out = f"dec.{size}x{size}_aux" if song else "out"
    layer(f"{out}_norm", channels)
    layer(f"{out}_conv", 3, channels, 3, 3)
    return found


SHALLOW, DEEP = (128, (2, 2, 2), 4, {16}), (128, (1, 2, 2, 2), 4, {16})
PUBLISHED = {  # with numbers of tensors where they are known
    "ddpmpp 32 cond": (("ddpmpp", 32, *SHALLOW, 10), 419),
    "ddpmpp 32": (("ddpmpp", 32, *SHALLOW), 417),
    "ncsnpp 32 cond": (("ncsnpp", 32, *SHALLOW, 10), None),
    "ncsnpp 32": (("ncsnpp", 32, *SHALLOW), None),
    "ddpmpp 64": (("ddpmpp", 64, *DEEP), None),
    "ncsnpp 64": (("ncsnpp", 64, *DEEP), None),
    "adm 64": (("adm", 64, 192, (1, 2, 3, 4), 3, {32, 16, 8}, 1000, 0), 541),
}


@pytest.mark.parametrize(
    "name",
    [
        name if "cond" in name or "adm" in name else pytest.param(name, marks=SLOW)
        for name in PUBLISHED
    ],
)
def test_tensors_have_the_published_names_and_shapes(name):
    """All of them, as `diffusion.interop.edm` maps them from a checkpoint."""
    arguments, count = PUBLISHED[name]
    wanted = published_tensors(*arguments)
    kind, size, width, mult, blocks, attention, *dims = arguments
    label_dim, augment_dim = {0: (0, 9), 1: (*dims, 9), 2: dims}[len(dims)]
    config = _network(
        {
            "model_type": "DhariwalUNet" if kind == "adm" else "SongUNet",
            "model_channels": width,
            "channel_mult": list(mult),
            "num_blocks": blocks,
            "attn_resolutions": list(attention),
            "label_dim": label_dim,
            "augment_dim": augment_dim,
            **(EDM_NCSNPP if kind == "ncsnpp" else {}),
        },
        size,
    )
    shapes = jax.eval_shape(build_network(config, (size, size, 3)).init, KEY)
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = leaf.shape
        if place.endswith("kernel"):
            axes = (3, 2, 0, 1) if len(shape) == 4 else (1, 0)
            shape = tuple(shape[axis] for axis in axes)
        edm = _edm_name(place, size, kind != "adm").removeprefix("model.")
        assert edm not in found
        found[edm] = shape
    assert found == wanted
    assert count in (None, len(found))
