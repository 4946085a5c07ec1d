"""How a closed-form model is fitted: the options of `diffusion.fit_closed_form`."""

import math
from dataclasses import dataclass

from configs.errors import InputError, choice_error

__all__ = ["ClosedFormConfig"]

KINDS = ("gaussian", "mixture", "empirical")
METHODS = ("em", "kmeans", "classes")


@dataclass(frozen=True)
class ClosedFormConfig:
    """Which model, and how it is fitted."""

    kind: str = "gaussian"
    """Model: gaussian, mixture or empirical (the training set itself)."""
    rank: int | None = None
    """Principal directions kept, per component; None keeps all."""
    max_images: int | None = None
    """Fit to the first so many images only; None takes all."""
    streaming_pca: bool = False
    """Gaussian: never form the covariance, but find `rank` directions in a few passes;
    for images so large that a D x D matrix does not fit."""
    third_cumulant: int = 0
    """Gaussian: add the third cumulant in so many leading directions, at most 64."""
    num_components: int = 10
    """Mixture: number of components."""
    method: str = "em"
    """Mixture: em, kmeans (covariances of k-means clusters) or classes (one component
    for each label)."""
    num_passes: int = 100
    """Mixture: most passes of EM."""
    tolerance: float = 1e-4
    """Mixture: EM ends when a pass gains less than this share of the likelihood."""
    batch_size: int | None = None
    """Mixture: images per update of EM; None updates once per pass."""
    variance_floor: float = 1e-6
    """Mixture: no variance is below this, squared data units."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.kind not in KINDS:
            raise choice_error("kind", self.kind, KINDS)
        if self.method not in METHODS:
            raise choice_error("method", self.method, METHODS)
        for name in ("rank", "max_images", "batch_size", "num_components"):
            value = getattr(self, name)
            lowest = 0 if name == "rank" and self.kind == "mixture" else 1
            if value is not None and value < lowest:
                raise InputError(f"{name} is {value}; it must be at least {lowest}")
        if self.num_passes < 1:
            raise InputError(f"num_passes is {self.num_passes}; it must be at least 1")
        for name in ("tolerance", "variance_floor", "third_cumulant", "seed"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; it must be a number >= 0")
        if self.streaming_pca and self.rank is None:
            raise InputError(
                "streaming_pca needs --rank: how many directions to look for"
            )
        if self.third_cumulant > 64:
            raise InputError(
                f"third_cumulant is {self.third_cumulant}; it must be at most 64"
            )
