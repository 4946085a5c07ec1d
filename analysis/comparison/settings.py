"""What `analysis.compare` measures: candidates, probes, noise levels, parts."""

import math
from dataclasses import dataclass

from configs.errors import InputError, choice_error, require

__all__ = ["KINDS", "PARTS", "ComparisonSettings"]

PARTS = ("scores", "training", "trajectories", "perturbation", "slices")
KINDS = (
    "mean-isotropic",
    "isotropic",
    "gaussian",
    "ranks",
    "mixtures",
    "classes",
    "edgeworth",
    "empirical",
)
METHODS = ("kmeans", "em")


@dataclass(frozen=True)
class ComparisonSettings:
    """Everything `analysis.compare` takes after the workdir."""

    sigmas: tuple[float, ...] = (
        *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0),
        *(1.5, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 80.0),
    )
    """Noise levels, in data units; those that the network does not know are left
    out."""
    parts: tuple[str, ...] | None = None
    """What to report: scores, training (all checkpoints, with three of the candidates,
    8 of the noise levels and 512 of the probes at most), trajectories, perturbation,
    slices; None for all that apply."""
    models: tuple[str, ...] | None = None
    """Candidates: mean-isotropic, isotropic, gaussian, ranks, mixtures, classes (a
    Gaussian per class), edgeworth, empirical (the training images); None for all that
    apply."""
    ranks: tuple[int, ...] | None = None
    """Ranks of the Gaussian; None for those of 8, 32, 128 and 512 that exist."""
    mixtures: tuple[int, ...] | None = None
    """Numbers of components; None for those of 2, 10, 50 and 100 with ten images
    each."""
    mixture_rank: int | None = None
    """Principal directions per component; None for 64, or all where there are fewer."""
    mixture_method: str = "kmeans"
    """kmeans (covariances of clusters) or em."""
    candidates: tuple[str, ...] = ()
    """Files of diffusion.fit_closed_form to compare with too."""
    num_probes: int = 1024
    """Noisy samples of each kind at each level: on training images, on held-out
    images, and pure noise."""
    num_trajectories: int = 64
    """Samples behind trajectories, perturbations and feature emergence."""
    batch_size: int = 256
    """Samples at once."""
    seed: int = 0
    """Seed of everything random."""
    step: int | None = None
    """Checkpoint to use; None for the newest."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.sigmas or any(not 0 < s < math.inf for s in self.sigmas):
            raise InputError(f"sigmas are {self.sigmas}; each must be finite and > 0")
        for part in self.parts or ():
            if part not in PARTS:
                raise choice_error("part", part, PARTS)
        for kind in self.models or ():
            if kind not in KINDS:
                raise choice_error("model", kind, KINDS)
        if self.mixture_method not in METHODS:
            raise choice_error("mixture_method", self.mixture_method, METHODS)
        for name in ("ranks", "mixtures"):
            for value in getattr(self, name) or ():
                require(value >= 1, name, getattr(self, name), "numbers >= 1")
        require(self.num_probes >= 2, "num_probes", self.num_probes, "at least 2")
        require(
            self.num_trajectories >= 2,
            "num_trajectories",
            self.num_trajectories,
            "at least 2",
        )
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        rank = self.mixture_rank
        require(rank is None or rank >= 0, "mixture_rank", rank, "at least 0")

    def wants(self, part: str) -> bool:
        """Tell whether a part was asked for, or nothing was."""
        return self.parts is None or part in self.parts
