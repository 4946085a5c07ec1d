"""Modes and options of Score Augmentation, EDM's pipe, and what is refused."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.augmentation_schema import PRESET_TRANSFORMS, AugmentationConfig
from configs.errors import InputError, InputWarning
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
    OneOf,
    PatchMask,
    Rot90,
    ScoreAugmentation,
    Translate,
    augmentation_preset,
    build_augmentation,
    build_transform,
    register_transform,
)
from diffusion.augmentation.building import TRANSFORMS

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_an_image_depends_on_its_own_key_alone",
    "test_labels_and_losses_follow_the_gain_and_the_visible_pixels[others1]",
)

SHAPE = (8, 8, 3)
COUNT = 64
KEYS = jax.random.split(jax.random.key(0), COUNT)
CLEAN = jax.random.uniform(jax.random.key(1), (COUNT, *SHAPE), minval=-1, maxval=1)
SIGMA = jnp.exp(jax.random.normal(jax.random.key(2), (COUNT,)))
NOISE = SIGMA[:, None, None, None] * jax.random.normal(jax.random.key(3), CLEAN.shape)
PAPER = OneOf((Brightness(), Translate(), Cutout(), Rot90()))


def moved(augment, draw, x):
    """Return T x with the drawn parameters of the noisy side, one image at a time."""
    stage = draw.score
    return jnp.stack(
        [
            augment.transform.apply(
                jax.tree.map(lambda p, n=n: p[n], stage.params), x[n]
            )
            if stage.active[n]
            else x[n]
            for n in range(COUNT)
        ]
    )


@pytest.fixture(scope="module")
def paper_draw():
    augment = ScoreAugmentation(PAPER)
    return augment, augment.draw(KEYS, SHAPE)


def test_the_noisy_image_and_its_target_undergo_the_same(paper_draw):
    augment, draw = paper_draw
    batch = augment(KEYS, CLEAN, NOISE, SIGMA)
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(
        batch.noisy, moved(augment, draw, CLEAN + NOISE), **close
    )
    np.testing.assert_allclose(batch.target, moved(augment, draw, CLEAN), **close)
    np.testing.assert_array_equal(batch.sigma, SIGMA)
    assert batch.condition.shape == (COUNT, 11)
    # Every family and the identity came up, and only the identity is told as zeros.
    assert set(np.asarray(augment.family(draw))) == {0, 1, 2, 3, 4}
    same = np.asarray((batch.target == CLEAN).all(axis=(1, 2, 3)))
    np.testing.assert_array_equal((batch.condition == 0).all(axis=1), same)


def test_the_sides_of_the_noise(paper_draw):
    """split = joint for linear transforms and not for others; clean = nla."""
    augment, _ = paper_draw
    joint = augment(KEYS, CLEAN, NOISE, SIGMA)
    split = dataclasses.replace(augment, noisy_side="split")(KEYS, CLEAN, NOISE, SIGMA)
    np.testing.assert_allclose(split.noisy, joint.noisy, atol=1e-5)
    clean = dataclasses.replace(augment, noisy_side="clean")(KEYS, CLEAN, NOISE, SIGMA)
    np.testing.assert_array_equal(clean.noisy, clean.target + NOISE)
    np.testing.assert_array_equal(clean.target, joint.target)
    bent = ScoreAugmentation(Gamma())
    other = dataclasses.replace(bent, noisy_side="split")
    a, b = (one(KEYS, CLEAN, NOISE, SIGMA).noisy for one in (bent, other))
    assert float(jnp.abs(a - b).max()) > 0.1


def test_non_leaky_augmentation_adds_noise_afterwards():
    augment = ScoreAugmentation(PAPER, mode="nla")
    batch = augment(KEYS, CLEAN, NOISE, SIGMA)
    np.testing.assert_array_equal(batch.noisy, batch.target + NOISE)
    assert 0.1 < float((batch.target == CLEAN).all(axis=(1, 2, 3)).mean()) < 0.4


def test_mode_none_changes_nothing():
    batch = ScoreAugmentation(PAPER, mode="none")(KEYS, CLEAN, NOISE, 0.5)
    np.testing.assert_array_equal(batch.noisy, CLEAN + NOISE)
    np.testing.assert_array_equal(batch.target, CLEAN)
    assert batch.condition is None
    assert batch.sigma.shape == (COUNT,)


@pytest.mark.parametrize("combination", ["sequential", "either"])
def test_both_kinds_together(combination):
    augment = ScoreAugmentation(
        Brightness(),
        mode="nla+score",
        nla_transform=Flip(),
        combination=combination,
        identity_probability=0.25,
    )
    draw = augment.draw(KEYS, SHAPE)
    batch = augment.apply(draw, CLEAN, NOISE, SIGMA)
    assert batch.condition.shape == (COUNT, 3)
    flipped = np.asarray(draw.nla.active)
    bright = np.asarray(draw.score.active)
    np.testing.assert_array_equal(batch.condition[:, 0] != 0, flipped)
    np.testing.assert_array_equal(batch.condition[:, 1] != 0, bright)
    # The clean image is mirrored, its noise is not, and then both are brightened.
    gain = np.where(bright, np.asarray(draw.score.params.gain), 1)[:, None, None, None]
    clean = np.where(flipped[:, None, None, None], CLEAN[:, :, ::-1], CLEAN)
    np.testing.assert_allclose(batch.target, gain * clean, rtol=1e-6)
    np.testing.assert_allclose(batch.noisy, gain * (clean + NOISE), atol=1e-5)
    assert (flipped & bright).any() == (combination == "sequential")
    assert augment.families == ("identity", "nla Flip", "Brightness")
    family = np.asarray(augment.family(draw))
    np.testing.assert_array_equal(family, np.where(bright, 2, np.where(flipped, 1, 0)))


@pytest.mark.parametrize("others", [(), (Affine(),)])
def test_labels_and_losses_follow_the_gain_and_the_visible_pixels(others):
    """Beside a transform that is no gather of pixels too."""
    plain = ScoreAugmentation(OneOf((Brightness(), Cutout(), *others)))
    draw = plain.draw(KEYS, SHAPE)
    index, active = np.asarray(draw.score.params.index), np.asarray(draw.score.active)
    bright, hidden = active & (index == 0), active & (index == 1)
    gain = np.where(bright, np.asarray(draw.score.params.members[0].gain), 1)
    size = np.asarray(draw.score.params.members[1].size)
    share = np.where(hidden, 1 - size.prod(axis=1) / 64, 1)
    effective = dataclasses.replace(plain, sigma_label="effective")
    np.testing.assert_allclose(
        effective.apply(draw, CLEAN, NOISE, SIGMA).sigma, gain * SIGMA, rtol=1e-6
    )
    by_gain = dataclasses.replace(plain, loss_normalization="gain")
    np.testing.assert_allclose(by_gain.loss_factor(draw, SHAPE), gain**-2.0, rtol=1e-5)
    by_share = dataclasses.replace(plain, loss_normalization="visible")
    np.testing.assert_allclose(by_share.loss_factor(draw, SHAPE), 1 / share, rtol=1e-5)
    assert plain.loss_factor(draw, SHAPE) is None
    nla = dataclasses.replace(by_share, mode="nla", sigma_label="effective")
    draw = nla.draw(KEYS, SHAPE)
    np.testing.assert_array_equal(nla.apply(draw, CLEAN, NOISE, SIGMA).sigma, SIGMA)
    assert nla.loss_factor(draw, SHAPE) is None, "on the clean side all pixels count"


@pytest.mark.parametrize(
    ("transform", "given", "share"),
    [
        (PAPER, None, 1 / 5),
        (Rot90(), None, 1 / 2),
        (PAPER, 0.7, 0.7),
        (EDMPipe(0.5), None, 0.0),
    ],
)
def test_the_identity_is_drawn_as_often_as_said(transform, given, share):
    augment = ScoreAugmentation(transform, identity_probability=given)
    count = 20_000
    draw = jax.jit(lambda keys: augment.draw(keys, SHAPE).score.active)
    active = draw(jax.random.split(jax.random.key(5), count))
    error = 4 * np.sqrt(share * (1 - share) / count)
    assert float(1 - active.mean()) == pytest.approx(share, abs=error + 1e-9)


def test_the_identity_takes_over_towards_the_end():
    augment = ScoreAugmentation(
        Flip(), identity_probability=0.2, identity_anneal_images=(100, 200)
    )
    keys = jax.random.split(jax.random.key(6), 20_000)
    shares = [
        float(1 - augment.draw(keys, SHAPE, images_seen=n).score.active.mean())
        for n in (0, 100, 150, 200, 1000)
    ]
    np.testing.assert_allclose(shares, [0.2, 0.2, 0.6, 1, 1], atol=0.02)
    assert augment.condition_size(SHAPE) == 1
    with pytest.raises(InputError, match="images_seen must be given"):
        augment.draw(keys, SHAPE)


def test_an_image_depends_on_its_own_key_alone():
    augment = ScoreAugmentation(PAPER)
    whole = augment(KEYS, CLEAN, NOISE, SIGMA)
    part = augment(KEYS[40:], CLEAN[40:], NOISE[40:], SIGMA[40:])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[40:], b)


def test_transforms_that_cannot_be_seen_need_the_condition():
    for transform, mode in (
        (Rot90(), "score"),
        (OneOf((Brightness(), D4())), "score"),
        (Brightness(), "nla"),
        (Cutout(), "nla+score"),
    ):
        with pytest.warns(InputWarning, match="samples will be transformed too"):
            ScoreAugmentation(transform, mode=mode, condition=False)
    with pytest.warns(InputWarning, match="Brightness without condition"):
        ScoreAugmentation(Brightness(), sigma_label="effective", condition=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = ScoreAugmentation(
            OneOf((Brightness(), Translate(), Cutout())), condition=False
        )
        ScoreAugmentation(Rot90())
        ScoreAugmentation(Rot90(), mode="none", condition=False)
    assert seen(KEYS, CLEAN, NOISE, SIGMA).condition is None
    assert seen.condition_size(SHAPE) == 0


def test_published_sets_by_name():
    sizes = {"scoreaug-linear": 11, "scoreaug-nobright": 9, "edm-nla": 9, "d4": 7}
    for name, size in sizes.items():
        augment = augmentation_preset(name)
        assert augment.condition_size((16, 16, 3)) == size
        assert augment.mode == ("nla" if name == "edm-nla" else "score")
    twice = ScoreAugmentation(OneOf((Brightness(1.2), Flip(), Brightness())))
    assert twice.families == ("identity", "Brightness", "Flip", "Brightness 2")
    names = augmentation_preset("scoreaug-linear").families[1:]
    assert names == ("Brightness", "Translate", "Cutout", "Rot90")
    with pytest.raises(InputError, match=r"did you mean 'scoreaug-linear'"):
        augmentation_preset("scoreaug-liner")


def test_every_name_of_the_configuration_is_built():
    for name in TRANSFORMS:
        build_transform(name).sample(jax.random.key(0), SHAPE)
    for names in PRESET_TRANSFORMS.values():
        assert set(names) <= set(TRANSFORMS)
    assert build_transform("cutout:.2:.4") == Cutout(0.2, 0.4)
    assert build_transform("patch-mask:2") == PatchMask(2)
    assert build_augmentation(AugmentationConfig()) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Rot90().sample(KEYS[0], (8, 6, 3)),
            "Rot90 needs square images .* 8x6",
        ),
        (lambda: D4().sample(KEYS[0], (8, 6, 3)), "D4 needs square images"),
        (lambda: Flip().sample(KEYS[0], (10,)), r"acts on images \(H, W, C\)"),
        (lambda: Flip().sample(KEYS[0], (4, 1, 3)), "one pixel wide"),
        (
            lambda: Translate(1.0),
            r"Translate.max_fraction is 1.0; it must be in \(0, 1\)",
        ),
        (lambda: Translate(0.05).sample(KEYS[0], SHAPE), "by less than one; give"),
        (lambda: Translate(0.97).sample(KEYS[0], SHAPE), "out of themselves; lower it"),
        (lambda: Cutout(0.1, 0.97).sample(KEYS[0], SHAPE), "hides a whole side"),
        (lambda: PatchMask(float("inf")), "an integer > 0"),
        (lambda: Chain((Flip(), Affine(), D4())), "Flip and D4 could cancel unseen"),
        (lambda: Chain((Flip(), EDMPipe())), "Flip and EDMPipe could cancel unseen"),
        (lambda: register_transform("flip", Flip), "called 'flip' already"),
        (lambda: register_transform("a:b", Flip), "cannot name a transform"),
        (lambda: CircularShift(0.6), r"must be in \(0, 0.5\)"),
        (lambda: CircularShift(0.45).sample(KEYS[0], (2, 2, 1)), "half a side or more"),
        (lambda: Cutout(0.6, 0.5), "min_fraction is 0.6"),
        (lambda: Cutout(0.1, 1.5), "max_fraction is 1.5"),
        (lambda: Cutout(0.01, 0.02).sample(KEYS[0], SHAPE), "less than one pixel"),
        (lambda: PatchMask(5).sample(KEYS[0], SHAPE), "divisible by patch_size = 5"),
        (lambda: Brightness(1.0), "a finite number above 1"),
        (lambda: EDMPipe(1.2), r"probability is 1.2; it must be in \[0, 1\]"),
        (lambda: HueRotation().sample(KEYS[0], (8, 8, 1)), "needs three channels"),
        (lambda: ChannelPermutation().sample(KEYS[0], (8, 8, 1)), "two channels"),
        (lambda: OneOf(()), "OneOf has no transforms"),
        (lambda: OneOf((Flip(), Rot90()), (1.0,)), "2 numbers, one for each"),
        (lambda: OneOf((Flip(), Rot90()), (1.0, -1.0)), ">= 0 and not all 0"),
        (lambda: OneOf((Flip(), Rot90()), (0, 0)), ">= 0 and not all 0"),
        (lambda: build_transform("cutot"), "did you mean 'cutout'"),
        (
            lambda: build_transform("flip:2"),
            "'flip:2' has 1 strengths; flip takes none",
        ),
        (
            lambda: build_transform("translate:2"),
            "'translate:2': Translate.max_fraction",
        ),
        (lambda: ScoreAugmentation(Flip(), mode="scores"), "did you mean 'score'"),
        (lambda: ScoreAugmentation(Flip(), noisy_side="both"), "unknown noisy side"),
        (lambda: ScoreAugmentation(Flip(), sigma_label="b"), "unknown sigma label"),
        (
            lambda: ScoreAugmentation(Flip(), identity_probability=2.0),
            r"identity_probability is 2.0; it must be in \[0, 1\]",
        ),
        (
            lambda: ScoreAugmentation(Flip(), identity_anneal_images=(5, 5)),
            "two increasing numbers",
        ),
        (
            lambda: ScoreAugmentation(Flip())(KEYS, CLEAN, NOISE[:3], SIGMA),
            "they must agree",
        ),
        (
            lambda: build_augmentation(AugmentationConfig("score", ("rot45",))),
            "did you mean 'rot90'",
        ),
        (lambda: AugmentationConfig(transforms=("cutout:a",)), "it must be a number"),
        (lambda: AugmentationConfig(transforms=()), "one name or more"),
        (
            lambda: AugmentationConfig(weights=(1.0,)),
            "4 numbers, one for each of bright",
        ),
        (
            lambda: AugmentationConfig(weights=(1.0, 1.0, -1.0, 1.0)),
            "augmentation.weights is .* not all 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_augmentation_of_nothing():
    batch = ScoreAugmentation(Identity())(KEYS, CLEAN, NOISE, SIGMA)
    np.testing.assert_array_equal(batch.noisy, CLEAN + NOISE)
    assert batch.condition.shape == (COUNT, 0)
