"""From settings to an augmentation, and the published ones by name."""

import inspect
from collections.abc import Callable
from typing import Any

from configs.augmentation_schema import (
    PRESET_TRANSFORMS,
    AugmentationConfig,
    expand,
)
from configs.errors import InputError, choice_error
from diffusion.augmentation.colour import (
    ChannelPermutation,
    Gamma,
    HueRotation,
    Saturation,
    Solarise,
)
from diffusion.augmentation.combinations import OneOf
from diffusion.augmentation.masks import Cutout, PatchMask
from diffusion.augmentation.nonleaky import EDMPipe
from diffusion.augmentation.score_augmentation import ScoreAugmentation
from diffusion.augmentation.shifts import CircularShift, Translate
from diffusion.augmentation.symmetries import D4, Flip, Rot90
from diffusion.augmentation.transforms import Brightness, Identity, Transform
from diffusion.augmentation.warps import Affine

__all__ = [
    "TRANSFORMS",
    "augmentation_preset",
    "build_augmentation",
    "build_transform",
    "register_transform",
]

TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "affine": Affine,
    "brightness": Brightness,
    "channel-permutation": ChannelPermutation,
    "circular-shift": CircularShift,
    "cutout": Cutout,
    "d4": D4,
    "edm-nla": EDMPipe,
    "flip": Flip,
    "gamma": Gamma,
    "hue": HueRotation,
    "identity": Identity,
    "patch-mask": PatchMask,
    "rot90": Rot90,
    "saturation": Saturation,
    "solarise": Solarise,
    "translate": Translate,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "scoreaug-linear": {"mode": "score", "transforms": ("scoreaug-linear",)},
    "scoreaug-nobright": {"mode": "score", "transforms": ("scoreaug-nobright",)},
    "edm-nla": {"mode": "nla", "transforms": ("edm-nla",)},
    "d4": {"mode": "score", "transforms": ("d4",)},
}


def build_transform(text: str) -> Transform:
    """Return the transform of a name with strengths, such as ``cutout:.1:.4``.

    Raises:
        InputError: If the name is unknown, or the strengths are too many or out of
            range.
    """
    name, *strengths = text.split(":")
    if name not in TRANSFORMS:
        raise choice_error("transform", name, (*TRANSFORMS, *PRESET_TRANSFORMS))
    make = TRANSFORMS[name]
    allowed = list(inspect.signature(make).parameters)
    if len(strengths) > len(allowed):
        listed = ":".join(allowed) or "none"
        raise InputError(
            f"'{text}' has {len(strengths)} strengths; {name} takes {listed}"
        )
    try:
        return make(*[float(value) for value in strengths])
    except (ValueError, OverflowError) as error:
        raise InputError(f"augmentation '{text}': {error}") from error


def register_transform(name: str, make: Callable[..., Transform]) -> None:
    """Give a transform of your own a name for configurations and command lines.

    Args:
        name: Such as ``blur``; the strengths behind it, ``blur:.5``, go to `make`.
        make: The class of the transform, or a function that returns one.

    Raises:
        InputError: If the name is taken, or is none.
    """
    if name in TRANSFORMS or name in PRESET_TRANSFORMS:
        raise InputError(f"a transform is called '{name}' already; choose another name")
    if not name or ":" in name or "," in name or "=" in name:
        raise InputError(f"'{name}' cannot name a transform; use letters and dashes")
    TRANSFORMS[name] = make


def build_augmentation(config: AugmentationConfig) -> ScoreAugmentation | None:
    """Return the augmentation of a configuration; None for mode none.

    Raises:
        InputError: If a strength is out of range.
    """
    if config.mode == "none":
        return None
    nla = None
    if config.mode == "nla+score":
        nla = _one_of(expand(config.nla_transforms), None)
    return ScoreAugmentation(
        _one_of(config.expanded, config.weights),
        mode=config.mode,
        noisy_side=config.noisy_side,
        sigma_label=config.sigma_label,
        condition=config.condition,
        loss_normalization=config.loss_normalization,
        identity_probability=config.identity_probability,
        identity_anneal_images=config.identity_anneal_images,
        combination=config.combination,
        nla_transform=nla,
    )


def augmentation_preset(name: str) -> ScoreAugmentation:
    """Return a published augmentation.

    Args:
        name: ``scoreaug-linear`` (brightness, translation, cutout, turns by 90
            degrees), ``scoreaug-nobright`` (without brightness), ``edm-nla`` (EDM's, on
            the clean image) or ``d4`` (the symmetries of the square).

    Raises:
        InputError: If there is none of that name.
    """
    if name not in _PRESETS:
        raise choice_error("augmentation preset", name, _PRESETS)
    found = build_augmentation(AugmentationConfig(**_PRESETS[name]))
    assert found is not None, "no preset has mode none"
    return found


def _one_of(names: tuple[str, ...], weights: tuple[float, ...] | None) -> Transform:
    """Return the transform of the only name, or a choice among several."""
    transforms = tuple(build_transform(name) for name in names)
    return transforms[0] if len(transforms) == 1 else OneOf(transforms, weights)
