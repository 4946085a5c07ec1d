"""What every transform promises; add yours to `TRANSFORMS`.

Linear transforms are read as matrices, column by column, and compared with what their
flags, adjoints and conditions say of them; what a transform does to pixels is compared
with NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.augmentation import (
    D4,
    Affine,
    Brightness,
    Chain,
    ChannelPermutation,
    CircularShift,
    Cutout,
    EDMPipe,
    Flip,
    Gamma,
    HueRotation,
    Identity,
    Maybe,
    OneOf,
    PatchMask,
    Rot90,
    Saturation,
    Solarise,
    Translate,
)

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "[chain_mixed]",
    "[channel_permutation]",
    "[circular_shift]",
    "[flip]",
    "[gamma]",
    "[maybe]",
    "[maybe_warped]",
    "[one_of_mixed]",
    "[patch_mask]",
    "[saturation]",
    "[solarise]",
    "[turned_twice]",
    "test_adjoints_are_transposes[edm_pipe]",
)

SHAPE = (6, 6, 3)
SIZE = 108
DRAWS = 64
PAPER = (Brightness(), Translate(0.3), Cutout(), Rot90())
TRANSFORMS = {
    "identity": Identity(),
    "brightness": Brightness(),
    "translate": Translate(0.17),
    "cutout": Cutout(),
    "rot90": Rot90(),
    "flip": Flip(),
    "d4": D4(),
    "channel_permutation": ChannelPermutation(),
    "hue": HueRotation(),
    "saturation": Saturation(),
    "circular_shift": CircularShift(0.17),
    "patch_mask": PatchMask(3),
    "affine": Affine(),
    "gamma": Gamma(),
    "solarise": Solarise(),
    "edm_pipe": EDMPipe(0.4),
    "one_of": OneOf(PAPER, weights=(1, 2, 1, 1)),
    "one_of_mixed": OneOf((HueRotation(), Affine(), Identity(), Flip())),
    "turned_twice": Chain((Rot90(), Rot90())),
    "chain": Chain((D4(), HueRotation(), Brightness(), Translate(0.17))),
    "chain_mixed": Chain((Flip(), Affine())),
    "maybe": Maybe(Cutout(), 0.7),
    "maybe_warped": Maybe(Affine(), 0.5),
}
KEYS = jax.random.split(jax.random.key(0), DRAWS)


@functools.cache
def drawn(name: str):
    """Return parameters of many draws, their conditions and, if linear, matrices."""
    transform = TRANSFORMS[name]

    @jax.jit
    def draw(keys):
        params = jax.vmap(lambda key: transform.sample(key, SHAPE))(keys)
        return params, jax.vmap(transform.encode)(params)

    params, conditions = draw(KEYS)
    if not transform.linear:
        return params, np.asarray(conditions), None
    with jax.enable_x64(True):
        basis = jnp.eye(SIZE, dtype=jnp.float64).reshape(SIZE, *SHAPE)

        @jax.jit
        def matrix(one):
            columns = jax.vmap(lambda image: transform.apply(one, image))(basis)
            return columns.reshape(SIZE, SIZE).T

        matrices = np.asarray(jax.lax.map(matrix, params))
    return params, np.asarray(conditions), matrices


def linear(name: str) -> bool:
    return TRANSFORMS[name].linear


LINEAR = [name for name in TRANSFORMS if linear(name)]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_condition_is_zero_for_the_identity_and_for_nothing_else(name):
    transform = TRANSFORMS[name]
    params, conditions, matrices = drawn(name)
    if matrices is None:
        images = jax.random.uniform(KEYS[0], (20, *SHAPE), minval=-1.5, maxval=1.5)
        moved = jax.vmap(
            lambda one: jax.vmap(lambda image: transform.apply(one, image))(images)
        )(params)
        same = (np.asarray(moved) == np.asarray(images)).all(axis=(1, 2, 3, 4))
    else:
        same = (matrices == np.eye(SIZE)).all(axis=(1, 2))
    told = (conditions == 0).all(axis=1) if conditions.shape[1] else same
    np.testing.assert_array_equal(told, same)
    assert np.isfinite(conditions).all()
    if name in ("translate", "d4", "edm_pipe", "turned_twice", "maybe", "one_of"):
        assert 0 < same.sum() < DRAWS, "draws of both kinds are needed to tell"


@pytest.mark.parametrize("name", LINEAR)
def test_linear_transforms_are_linear(name):
    """T1: T(a x + b y) = a T x + b T y, float32."""
    transform = TRANSFORMS[name]
    params = drawn(name)[0]
    x, y = jax.random.normal(KEYS[1], (2, DRAWS, *SHAPE))
    apply = jax.jit(jax.vmap(transform.apply))
    whole = apply(params, 0.7 * x - 1.3 * y)
    parts = 0.7 * apply(params, x) - 1.3 * apply(params, y)
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(whole, parts, atol=2e-6 * scale)


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if not linear(n)])
def test_what_is_not_linear_says_so_and_has_no_adjoint(name):
    transform = TRANSFORMS[name]
    params = jax.tree.map(lambda leaf: leaf[0], drawn(name)[0])
    x = jnp.full(SHAPE, 0.7 if name == "gamma" else 0.2)  # 8 x lies above the threshold
    much, little = transform.apply(params, 8 * x), transform.apply(params, x)
    assert not np.allclose(much, 8 * little, atol=1e-3)
    with pytest.raises(ValueError, match="is not linear, so it has no adjoint"):
        transform.adjoint(params, x)


@pytest.mark.parametrize("name", LINEAR)
def test_adjoints_are_transposes(name):
    """T2, in float64 and for every draw."""
    transform = TRANSFORMS[name]
    params, _, matrices = drawn(name)
    with jax.enable_x64(True):
        y = jax.random.normal(KEYS[2], (DRAWS, *SHAPE), jnp.float64)
        found = jax.jit(jax.vmap(transform.adjoint))(params, y)
        assert found.dtype == jnp.float64
    wanted = np.einsum("nij,ni->nj", matrices, np.asarray(y).reshape(DRAWS, SIZE))
    np.testing.assert_allclose(
        np.asarray(found).reshape(DRAWS, SIZE), wanted, atol=1e-12
    )


@pytest.mark.parametrize("name", LINEAR)
def test_flags_are_true_of_the_matrices(name):
    """T3: orthogonal and injective for every draw, or not for some draw."""
    transform = TRANSFORMS[name]
    matrices = drawn(name)[2]
    gram = np.einsum("nij,nik->njk", matrices, matrices)
    distance = np.abs(gram - np.eye(SIZE)).max()
    assert (distance < 1e-6) == transform.orthogonal
    smallest = np.linalg.svd(matrices, compute_uv=False)[:, -1].min()
    if transform.injective:
        assert smallest > 0.1
    elif "affine" not in name and name not in ("chain_mixed", "maybe_warped"):
        assert smallest < 1e-3


@pytest.mark.parametrize("name", ["cutout", "patch_mask", "translate"])
def test_masks_are_projections_and_shifts_hide_what_left(name):
    """T3: masks are idempotent and symmetric; S S^T is diagonal with 0 and 1."""
    matrices = drawn(name)[2]
    if name != "translate":
        np.testing.assert_array_equal(matrices @ matrices, matrices)
        np.testing.assert_array_equal(matrices.transpose(0, 2, 1), matrices)
    outer = np.einsum("nij,nkj->nik", matrices, matrices)
    diagonal = np.einsum("nii->ni", outer)
    np.testing.assert_array_equal(outer, diagonal[:, :, None] * np.eye(SIZE))
    assert set(np.unique(diagonal)) == {0.0, 1.0}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_compiled_batch_is_a_loop_of_single_images(name):
    """T5: jit and vmap change nothing beyond rounding; types are kept."""
    transform = TRANSFORMS[name]
    params = drawn(name)[0]
    x = jax.random.normal(KEYS[3], (DRAWS, *SHAPE))
    batch = jax.jit(jax.vmap(transform.apply))(params, x)
    for number in (5,):
        key = KEYS[number]
        one = transform.sample(key, SHAPE)
        jax.tree.map(
            lambda a, b, n=number: np.testing.assert_allclose(a, b[n], rtol=1e-5),
            one,
            params,
        )
        alone = transform.apply(
            jax.tree.map(lambda p, n=number: p[n], params), x[number]
        )
        np.testing.assert_allclose(alone, batch[number], rtol=1e-5, atol=2e-5)
    half = transform.apply(
        jax.tree.map(lambda p: p[0], params), x[0].astype("bfloat16")
    )
    assert half.dtype == jnp.bfloat16
    assert half.shape == SHAPE


def shifted(x, down, right):
    wide = np.zeros((18, 18, 3), x.dtype)
    wide[6 + down : 12 + down, 6 + right : 12 + right] = x
    return wide[6:12, 6:12]


def masked(x, hidden):
    return np.where(hidden[..., None], 0, x)


def cut(params, x):
    hidden = np.zeros(SHAPE[:2], bool)
    (top, left), (height, width) = params.corner, params.size
    hidden[top : top + height, left : left + width] = True
    return masked(x, hidden)


REFERENCES = {
    "brightness": lambda p, x: x * p.gain,
    "translate": lambda p, x: shifted(x, *p.pixels),
    "circular_shift": lambda p, x: np.roll(x, p.pixels, (0, 1)),
    "cutout": cut,
    "patch_mask": lambda p, x: masked(x, p.hidden.repeat(3, 0).repeat(3, 1)),
    "rot90": lambda p, x: np.rot90(x, p.turns),
    "flip": lambda p, x: x[:, ::-1],
    "d4": lambda p, x: np.rot90(x[:, ::-1] if p.mirrored else x, p.turns),
    "channel_permutation": lambda p, x: x[..., p.drawn],
    "gamma": lambda p, x: 2 * np.sign((x + 1) / 2) * np.abs((x + 1) / 2) ** p.value - 1,
    "solarise": lambda p, x: np.where(x > p.value, -x, x),
    "turned_twice": lambda p, x: np.rot90(x, p.members[0].turns + p.members[1].turns),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_pixels_are_where_numpy_puts_them(name):
    """T5, against NumPy on the same parameters; exact where nothing is computed."""
    params = jax.tree.map(np.asarray, drawn(name)[0])
    x = np.asarray(jax.random.normal(KEYS[4], (DRAWS, *SHAPE)))
    found = jax.jit(jax.vmap(TRANSFORMS[name].apply))(params, x)
    for number in range(DRAWS):
        one = jax.tree.map(lambda leaf, n=number: leaf[n], params)
        wanted = REFERENCES[name](one, x[number])
        tolerance = 1e-5 if name == "gamma" else 0
        np.testing.assert_allclose(found[number], wanted, atol=tolerance, rtol=0)


def test_colours_turn_about_the_grey_axis():
    x = np.asarray(jax.random.normal(KEYS[5], (DRAWS, *SHAPE)))
    grey = x.mean(axis=-1, keepdims=True)
    for name in ("hue", "saturation"):
        params = drawn(name)[0]
        found = np.asarray(jax.vmap(TRANSFORMS[name].apply)(params, x))
        np.testing.assert_allclose(
            found.mean(axis=-1, keepdims=True), grey, atol=2e-6, err_msg=name
        )
    rest, turned = (
        x - grey,
        np.asarray(jax.vmap(HueRotation().apply)(drawn("hue")[0], x)) - grey,
    )
    cosine = np.cos(np.asarray(drawn("hue")[0].drawn))
    inner = (rest * turned).sum(axis=(1, 2, 3)) / (rest**2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(inner, cosine, atol=1e-5)
    factor = 2 ** np.asarray(drawn("saturation")[0].drawn)
    found = np.asarray(jax.vmap(Saturation().apply)(drawn("saturation")[0], x))
    np.testing.assert_allclose(
        found - grey, factor[:, None, None, None] * rest, atol=2e-5
    )


def test_gradients_flow_and_nothing_is_compiled_again():
    """T5: 100 steps, one compilation."""
    transform = TRANSFORMS["one_of"]

    @jax.jit
    def step(x, key):
        def loss(image):
            params = transform.sample(key, SHAPE)
            return jnp.square(transform.apply(params, image)).sum()

        return x - 0.01 * jax.grad(loss)(x)

    x = jnp.ones(SHAPE)
    for number in range(100):
        x = step(x, jax.random.key(number))
    assert step._cache_size() == 1
    assert 0 < float(jnp.abs(x).min()) < float(jnp.abs(x).max()) < 1
