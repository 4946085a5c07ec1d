"""How training images are augmented.

Transforms are named, with strengths behind colons: ``translate``, ``cutout:.1:.4``,
``edm-nla:.15``.  A preset stands for several: ``scoreaug-linear`` for the four of the
paper, ``scoreaug-nobright`` for three of them.
"""

from dataclasses import dataclass

from configs.errors import require, require_choice

__all__ = ["PRESET_TRANSFORMS", "AugmentationConfig", "expand"]

MODES = ("none", "nla", "score", "nla+score")
NOISY_SIDES = ("joint", "split", "clean")
SIGMA_LABELS = ("nominal", "effective")
LOSS_NORMALIZATIONS = ("none", "gain", "visible")
COMBINATIONS = ("sequential", "either")
PRESET_TRANSFORMS = {
    "scoreaug-linear": ("brightness", "translate", "cutout", "rot90"),
    "scoreaug-nobright": ("translate", "cutout", "rot90"),
}


@dataclass(frozen=True)
class AugmentationConfig:
    """What is done to training images besides noise (arXiv 2508.07926)."""

    mode: str = "none"
    """none; score: the noisy image is transformed and the transformed clean one
    predicted; nla: the clean image is transformed before noise is put on it; nla+score:
    both, nla_transforms on the clean and transforms on the noisy image."""
    transforms: tuple[str, ...] = ("scoreaug-linear",)
    """One of these is drawn for each image: names with strengths, such as
    translate:.125, or presets: scoreaug-linear, scoreaug-nobright, edm-nla, d4."""
    weights: tuple[float, ...] | None = None
    """Relative frequency of each of them; None for equal ones."""
    nla_transforms: tuple[str, ...] = ("edm-nla",)
    """nla+score: what the clean image undergoes."""
    combination: str = "sequential"
    """nla+score: sequential, both act; either, a fair coin decides for each image."""
    condition: bool = True
    """Tell the network what was done; its augment_dim must fit."""
    noisy_side: str = "joint"
    """score: joint, T(x0 + n); split, T(x0) + T(n), another thing for transforms that
    are not linear; clean, T(x0) + n, which is nla."""
    sigma_label: str = "nominal"
    """Noise level that the network is told of brightened images: nominal, sigma;
    effective, gain times sigma."""
    loss_normalization: str = "none"
    """Divide an image's loss by: none, 1; gain, the squared gain; visible, the share of
    pixels that are not hidden."""
    identity_probability: float | None = None
    """How often an image stays as it is; None: 1/(K+1) for K transforms, and 0 where
    the transform draws the identity by itself, such as edm-nla."""
    identity_anneal_images: tuple[int, int] | None = None
    """Between these numbers of images seen that probability rises to 1; None for
    never."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        require_choice("augmentation.mode", self.mode, MODES)
        for name in ("transforms", "nla_transforms"):
            given = getattr(self, name)
            require(len(given) > 0, f"augmentation.{name}", given, "one name or more")
            for text in given:
                _require_strengths(text)
        count = len(self.expanded)
        weights = self.weights
        require(
            weights is None or len(weights) == count,
            "augmentation.weights",
            weights,
            f"{count} numbers, one for each of {', '.join(self.expanded)}",
        )
        require(
            weights is None or (min(weights) >= 0 and 0 < sum(weights) < float("inf")),
            "augmentation.weights",
            weights,
            "finite, >= 0 and not all 0",
        )
        require_choice("augmentation.combination", self.combination, COMBINATIONS)
        require_choice("augmentation.noisy_side", self.noisy_side, NOISY_SIDES)
        require_choice("augmentation.sigma_label", self.sigma_label, SIGMA_LABELS)
        require_choice(
            "augmentation.loss_normalization",
            self.loss_normalization,
            LOSS_NORMALIZATIONS,
        )
        share, anneal = self.identity_probability, self.identity_anneal_images
        require(
            share is None or 0 <= share <= 1,
            "augmentation.identity_probability",
            share,
            "in [0, 1] or None",
        )
        require(
            anneal is None or 0 <= anneal[0] < anneal[1],
            "augmentation.identity_anneal_images",
            anneal,
            "two increasing numbers >= 0, or None",
        )

    @property
    def expanded(self) -> tuple[str, ...]:
        """`transforms` with presets written out."""
        return expand(self.transforms)

    @property
    def mirrors_sideways(self) -> bool:
        """Whether some images are mirrored left to right."""
        active = {
            "none": (),
            "nla": self.expanded,
            "score": self.expanded,
            "nla+score": (*self.expanded, *expand(self.nla_transforms)),
        }[self.mode]
        return any(text.split(":")[0] in ("d4", "edm-nla", "flip") for text in active)


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names with presets written out."""
    return tuple(
        part for text in names for part in PRESET_TRANSFORMS.get(text, (text,))
    )


def _require_strengths(text: str) -> None:
    """Refuse strengths that are no numbers; names are known to those who build."""
    name, *strengths = text.split(":")
    require(bool(name), "a transform's name", text, "in front of its strengths")
    for strength in strengths:
        try:
            float(strength)
        except ValueError:
            require(False, f"strength in '{text}'", strength, "a number")
