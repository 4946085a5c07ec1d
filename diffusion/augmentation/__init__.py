"""Augmentation of noisy and of clean images, and the condition that tells a network."""

from diffusion.augmentation.building import (
    augmentation_preset,
    build_augmentation,
    build_transform,
    register_transform,
)
from diffusion.augmentation.colour import (
    ChannelPermutation,
    Gamma,
    HueRotation,
    Saturation,
    Solarise,
)
from diffusion.augmentation.combinations import Chain, Maybe, OneOf
from diffusion.augmentation.masks import Cutout, PatchMask
from diffusion.augmentation.nonleaky import EDMPipe
from diffusion.augmentation.score_augmentation import (
    AugmentedBatch,
    Draw,
    ScoreAugmentation,
)
from diffusion.augmentation.shifts import CircularShift, Translate
from diffusion.augmentation.symmetries import D4, Flip, Rot90
from diffusion.augmentation.transforms import (
    Brightness,
    Identity,
    Transform,
    linear_adjoint,
)
from diffusion.augmentation.warps import Affine

__all__ = [
    "D4",
    "Affine",
    "AugmentedBatch",
    "Brightness",
    "Chain",
    "ChannelPermutation",
    "CircularShift",
    "Cutout",
    "Draw",
    "EDMPipe",
    "Flip",
    "Gamma",
    "HueRotation",
    "Identity",
    "Maybe",
    "OneOf",
    "PatchMask",
    "Rot90",
    "Saturation",
    "ScoreAugmentation",
    "Solarise",
    "Transform",
    "Translate",
    "augmentation_preset",
    "build_augmentation",
    "build_transform",
    "linear_adjoint",
    "register_transform",
]
