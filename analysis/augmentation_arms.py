"""The arms of an augmentation study: experiments that differ in the augmentation alone.

Arms of one seed see the same images, the same noise and the same number of steps, and
start from the same values of every parameter that they share: the augmentation draws
from a stream of its own, and every network has an input for a condition, used or not.
"""

import dataclasses
from typing import NamedTuple

from configs.augmentation_schema import AugmentationConfig
from configs.errors import InputError, choice_error
from configs.schema import ExperimentConfig

__all__ = ["ARMS", "Arm", "build_arm", "experiment_of"]

# Mode, and whether the network is told what was done.
ARMS: dict[str, tuple[str, bool]] = {
    "none": ("none", True),
    "nla": ("nla", True),
    "nla-blind": ("nla", False),
    "score": ("score", True),
    "score-blind": ("score", False),
    "both": ("nla+score", True),
    "both-blind": ("nla+score", False),
}


class Arm(NamedTuple):
    """One way to augment.

    Attributes:
        name: As the user wrote it; names folders and rows.
        augmentation: Its settings.
    """

    name: str
    augmentation: AugmentationConfig


def build_arm(text: str, base: AugmentationConfig) -> Arm:
    """Return the arm of a name, such as ``score``, ``nla-blind`` or ``score=rot90``.

    Args:
        text: One of `ARMS`, and behind ``=`` the transforms that it draws from, with
            commas between them; without, those of `base`.  ``both`` draws for the clean
            and for the noisy image from the same ones.
        base: All other settings.

    Raises:
        InputError: If the name or a transform is unknown.
    """
    kind, _, listed = text.partition("=")
    if kind not in ARMS:
        raise choice_error("arm", kind, ARMS)
    mode, condition = ARMS[kind]
    transforms, weights = base.transforms, base.weights
    if listed:
        transforms, weights = tuple(listed.split(",")), None
    settings = dataclasses.replace(
        base,
        mode=mode,
        condition=condition,
        transforms=transforms,
        weights=weights,
        nla_transforms=transforms,
    )
    return Arm(text, settings)


def experiment_of(
    arm: Arm, base: ExperimentConfig, event_shape: tuple[int, ...], seed: int
) -> ExperimentConfig:
    """Return an arm's experiment.

    Args:
        arm: How it augments.
        base: Everything else.
        event_shape: Shape of one image.
        seed: Of initialisation, batches and noise.

    Raises:
        InputError: If the network can take no condition, or a transform cannot act on
            such images.
    """
    from diffusion.augmentation import build_augmentation  # not for a command's help

    if not hasattr(base.network, "augment_dim"):
        raise InputError(
            f"{type(base.network).__name__.removesuffix('Config')} has no input for a "
            "condition, so arms with and without cannot be compared; choose a preset "
            "with another network"
        )
    told = build_augmentation(dataclasses.replace(arm.augmentation, condition=True))
    size = 1 if told is None else max(1, told.condition_size(event_shape))
    network = dataclasses.replace(base.network, augment_dim=size)
    return dataclasses.replace(
        base, network=network, augmentation=arm.augmentation, seed=seed
    )
