"""What can be asked: the metrics, how much they look at, and what files they need.

samples     reference    metrics
images      images       of pixels and principal directions; of Inception features
images      mu, sigma    fid, inception_score
features    features     fid, kid, precision_recall, density_coverage
features    mu, sigma    fid
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from configs.errors import InputError, require, require_choice

__all__ = [
    "FEATURE_METRICS",
    "METRICS",
    "PIXEL_METRICS",
    "PROTOCOLS",
    "Limits",
    "Request",
    "choose_metrics",
    "least_members",
]

PIXEL_METRICS = (
    "sliced_wasserstein",
    "memorization",
    "pca_frechet",
    "pca_kernel",
    "pca_precision_recall",
    "pca_density_coverage",
)
FEATURE_METRICS = (
    "fid",
    "kid",
    "precision_recall",
    "density_coverage",
    "inception_score",
)
METRICS = (*PIXEL_METRICS, *FEATURE_METRICS)
PROTOCOLS = ("none", "edm")

# Samples, and references, that a metric needs: k + 1, two for a covariance, ten splits.
_LEAST = {
    "sliced_wasserstein": (1, 1),
    "memorization": (1, 2),
    "precision_recall": (4, 4),
    "density_coverage": (6, 6),
    "inception_score": (10, 1),
}


@dataclass(frozen=True)
class Limits:
    """How much is looked at, where all of it would take hours."""

    num_resamples: int = 200
    """Bootstrap resamples of every number."""
    confidence: float = 0.95
    """Of every interval, in (0, 1)."""
    num_directions: int = 64
    """Principal directions of the reference that stand for its pixels."""
    manifold_images: int = 10_000
    """Images of each side in precision, recall, density and coverage."""
    neighbour_images: int = 5_000
    """Samples, and held-out images in their place, whose nearest training images are
    looked for."""
    sliced_images: int = 5_000
    """Images of each side in the sliced Wasserstein distance."""
    sliced_patches: int = 16
    """Patches of each image at each level of the pyramid."""
    sliced_directions: int = 64
    """Directions that the patches are projected on."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.num_resamples >= 2, "num_resamples", self.num_resamples, ">= 2")
        require(0 < self.confidence < 1, "confidence", self.confidence, "in (0, 1)")
        for name in (
            "num_directions",
            "manifold_images",
            "neighbour_images",
            "sliced_images",
            "sliced_patches",
            "sliced_directions",
        ):
            value = getattr(self, name)
            require(value >= 1, name, value, ">= 1")


class Request(NamedTuple):
    """What is to be evaluated.

    Attributes:
        samples: Path of the samples, or several whose images follow one another.
        reference: Path or preset that they are compared with.
        held_out: Path of images of the same kind that nobody trained on, or None.
        inception: File of `analysis.import_inception`, or None.
        metrics: Names; all that are possible where empty.
        protocol: "none", or "edm": FID of three times 50,000 images.
        max_images: Take a random subset of so many samples; None for all.
        max_reference_images: The same of the reference.
        reference_statistics: File that the reference's Inception statistics are read
            from, or written to where it does not exist; None for neither.
        seed: Of subsets, directions, blocks and resamples.
        limits: How much is looked at.
    """

    samples: tuple[str, ...]
    reference: str
    held_out: str | None = None
    inception: str | None = None
    metrics: tuple[str, ...] = ()
    protocol: str = "none"
    max_images: int | None = None
    max_reference_images: int | None = None
    reference_statistics: str | None = None
    seed: int = 0
    limits: Limits = Limits()


def least_members(metric: str, *, is_reference: bool) -> int:
    """Return how many samples, or references, a metric needs."""
    return _LEAST.get(metric.removeprefix("pca_"), (2, 2))[is_reference]


def choose_metrics(
    wanted: Sequence[str], samples: str, reference: str, *, has_inception: bool
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the metrics to compute, and why others are left out.

    Args:
        wanted: Names; empty for all that are possible.
        samples: "images" or "features".
        reference: "images", "features" or "statistics".
        has_inception: Whether there are weights of the Inception network.

    Returns:
        Names in the order of `METRICS`, and a reason for each that was not asked for by
        name and is not possible.

    Raises:
        InputError: If a name is unknown, one that was asked for is not possible, or
            none is.
    """
    for name in wanted:
        require_choice("metric", name, METRICS)
    reasons = {
        name: _why_not(name, samples, reference, has_inception=has_inception)
        for name in wanted or METRICS
    }
    refused = {name: reason for name, reason in reasons.items() if reason}
    if wanted and refused:
        name, reason = next(iter(refused.items()))
        raise InputError(f"{name} cannot be computed: {reason}")
    chosen = tuple(name for name in METRICS if name in reasons and not reasons[name])
    if not chosen:
        raise InputError(f"nothing can be computed: {next(iter(refused.values()))}")
    return chosen, refused


def _why_not(name: str, samples: str, reference: str, *, has_inception: bool) -> str:
    """Return why a metric is not possible, empty where it is."""
    if {samples, reference} == {"images", "features"}:
        return (
            f"the samples are {samples} and the reference {reference}; give both as "
            "images, or both as features of one network"
        )
    if name in PIXEL_METRICS:
        if samples == reference == "images":
            return ""
        return "it needs the images themselves, of samples and reference"
    if name == "inception_score" and samples == "features":
        return "it needs images, for the network's logits"
    if samples == "images" and not has_inception:
        from analysis.metrics.inception import HOW_TO_GET_WEIGHTS

        return (
            f"it needs the Inception network: {HOW_TO_GET_WEIGHTS}; then add "
            "--inception inception.npz"
        )
    if reference == "statistics" and name not in ("fid", "inception_score"):
        return "the reference is only mu and sigma; give its images or features"
    return ""
