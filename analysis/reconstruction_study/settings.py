"""What `analysis.autoencoder_study` does: parts, noise level, sizes, steps, rules."""

import itertools
import math
from dataclasses import dataclass

from configs.errors import InputError, is_positive, require, require_choice

__all__ = ["BUILT_IN", "PARTS", "StudySettings"]

BUILT_IN = ("spiral", "two-bumps", "mixture10d", "digits")
PARTS = (
    "fields",
    "angles",
    "limit",
    "jacobian",
    "energies",
    "samples",
    "maxima",
    "estimators",
)


@dataclass(frozen=True)
class StudySettings:
    """Everything `analysis.autoencoder_study` takes after the data set."""

    output: str | None = None
    """Folder to write; None for runs/autoencoder-study-DATA."""
    parts: tuple[str, ...] | None = None
    """What to report: fields, angles, limit, jacobian, energies, samples, maxima,
    estimators; None for all that apply."""
    sigma: float | None = None
    """Noise level of the auto-encoders, data units; None for the data set's own."""
    num_points: int = 1000
    """Clean points to learn from, where they are drawn from a known law."""
    test_points: int = 2000
    """Noisy points that errors are averaged over."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Widths of the perceptron."""
    num_steps: int = 5000
    """Steps of Adam for each perceptron."""
    batch_size: int = 256
    """Clean points in a step of Adam."""
    tanh_width: int = 500
    """Neurons of the networks with one layer of tanh."""
    tanh_steps: int = 1000
    """Steps of L-BFGS for each of them, on all points."""
    replicas: int = 10
    """Fixed draws of noise for each clean point, for L-BFGS."""
    rules: tuple[str, ...] = (
        "left",
        "trapezoid",
        "mean-5",
        "trapezoid-5",
        "gl3",
        "gl5",
        "gl8",
    )
    """Rules of quadrature whose energy differences are compared."""
    rule: str = "gl3"
    """Rule of the chains, beside left."""
    pairs: int = 500
    """Moves whose energy differences are compared."""
    chains: int = 300
    """Chains of Metropolis-Hastings, side by side."""
    moves: int | None = None
    """Moves of each chain; None for 1,000, of images 200."""
    start: tuple[float, ...] | None = None
    """Point where the far chains start; None spreads them over a box."""
    mode_starts: int = 500
    """Starts of the search for maxima."""
    mode_steps: int = 300
    """Reconstructions of each start."""
    sigmas: tuple[float, ...] | None = None
    """Noise levels of the table of estimators; None for .1, .3 and 1 for images, else
    for sigma alone."""
    network: str | None = None
    """A run whose diffusion network is looked at beside the auto-encoders."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for part in self.parts or ():
            require_choice("part", part, PARTS)
        for name in ("sigma", "sigmas"):
            given = getattr(self, name)
            for value in (
                () if given is None else (given,) if name == "sigma" else given
            ):
                require(is_positive(value), name, given, "finite and above 0")
        counts = {
            "num_points": 16,
            "test_points": 16,
            "num_steps": 4,
            "batch_size": 1,
            "tanh_width": 1,
            "tanh_steps": 1,
            "replicas": 1,
            "pairs": 2,
            "chains": 4,
            "moves": 20,
            "mode_starts": 1,
            "mode_steps": 1,
            "seed": 0,
        }
        for name, least in counts.items():
            value = getattr(self, name)
            fits = value is None or value >= least
            require(fits, name, value, f"at least {least}")
        require(len(self.hidden) > 0, "hidden", self.hidden, "one or more widths")
        require(min(self.hidden) >= 1, "hidden", self.hidden, "widths of at least 1")
        if not self.rules:
            raise InputError("no rule is left; name one with --rules, such as gl3")
        rising = all(a < b for a, b in itertools.pairwise(self.sigmas or ()))
        require(rising and self.sigmas != (), "sigmas", self.sigmas, "rising numbers")
        if self.start is not None and not all(map(math.isfinite, self.start)):
            raise InputError(
                f"chains start at {self.start}, a point of zero density; give a point "
                "where there may be data"
            )

    def wants(self, part: str) -> bool:
        """Tell whether a part was asked for, or nothing was."""
        return self.parts is None or part in self.parts
