"""What `analysis.kernel_study` does: parts, sizes, widths, times."""

import itertools
import math
from dataclasses import dataclass

from configs.errors import InputError, is_positive, require, require_choice

__all__ = ["BUILT_IN", "PARTS", "StudySettings"]

BUILT_IN = ("mixture2d", "digits", "mnist")
PARTS = (
    "coupling",
    "stopping",
    "decomposition",
    "spectrum",
    "fields",
    "samples",
    "sizes",
    "homogeneity",
)
_METHODS = ("auto", "exact", "nystrom")
_TARGETS = ("score", "labels")


@dataclass(frozen=True)
class StudySettings:
    """Everything `analysis.kernel_study` takes after the data set."""

    output: str | None = None
    """Folder to write; None for runs/kernel-study-DATA."""
    parts: tuple[str, ...] | None = None
    """What to report: coupling, stopping, decomposition, spectrum, fields, samples,
    sizes, homogeneity; None for all that apply."""
    data: str | None = None
    """mnist: its file of images, such as train-images-idx3-ubyte.gz; None for the set
    that diffusion.prepare_data has packed."""
    data_dir: str = "data"
    """mnist: folder that diffusion.prepare_data has written to."""
    target: str = "score"
    """score: clean samples regressed on noisy ones; labels: y of a file on its x."""
    num_points: int = 512
    """Training points of the regression that most parts look at."""
    draws: int = 1
    """Noise draws for each clean sample."""
    test_points: int = 2000
    """Test points."""
    stop_seeds: int = 10
    """Training sets on which the stopping rules are tried."""
    coupling_points: int = 256
    """Training points of the networks that are compared with their kernel."""
    widths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Neurons of those networks, even numbers, at least two."""
    width_seeds: int = 3
    """Networks of each width."""
    steps: tuple[int, ...] | None = None
    """Steps of gradient descent at which they are compared; None for 10, 100 and 1000,
    in more than 4 dimensions 10, 30 and 100."""
    eta: float | None = None
    """Step size, below 2 / mu_1; None for 1, or less where a network needs it."""
    sizes: tuple[int, ...] | None = None
    """Numbers of clean samples to learn from, rising; None for powers of 2 from 64."""
    size_seeds: int = 3
    """Training sets of each size."""
    size_draws: tuple[int, ...] | None = None
    """Noise draws for each clean sample there; None for 1, for images and tables 1, 4
    and 16."""
    method: str = "auto"
    """exact, nystrom, or auto: exact up to --largest-exact points."""
    largest_exact: int = 2048
    """Points from which on auto takes Nystrom's features."""
    landmarks: int = 1024
    """Landmarks of Nystrom's features."""
    t_range: tuple[float, float] = (0.05, 2.0)
    """First and last time of the process."""
    bias: float = 1.0
    """Constant feature; the part homogeneity compares it with none."""
    scale: float = 1.0
    """What samples are divided by before they enter the kernel."""
    num_samples: int = 1000
    """Samples drawn at each stop."""
    sampler_points: int = 40
    """Noise levels of the sampler's grid."""
    network: str | None = None
    """A run whose network's own tangent kernel is looked at too."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for part in self.parts or ():
            require_choice("part", part, PARTS)
        require_choice("method", self.method, _METHODS)
        require_choice("target", self.target, _TARGETS)
        counts = {
            "num_points": 16,
            "draws": 1,
            "test_points": 16,
            "stop_seeds": 1,
            "coupling_points": 8,
            "width_seeds": 1,
            "size_seeds": 1,
            "largest_exact": 1,
            "landmarks": 1,
            "num_samples": 16,
            "sampler_points": 2,
            "seed": 0,
        }
        for name, least in counts.items():
            value = getattr(self, name)
            require(value >= least, name, value, f"at least {least}")
        for name, least in {"widths": 2, "steps": 1, "sizes": 2}.items():
            _require_rising(name, getattr(self, name), least)
        for value in self.size_draws or ():
            require(value >= 1, "size_draws", self.size_draws, "numbers >= 1")
        odd = [m for m in self.widths if m % 2]
        require(not odd, "widths", self.widths, "even: neurons come in pairs")
        first, last = self.t_range
        require(
            0 < first < last < math.inf, "t_range", self.t_range, "0 < first < last"
        )
        require(
            self.num_points % self.draws == 0, "draws", self.draws, "a divisor of n"
        )
        require(is_positive(self.scale), "scale", self.scale, "a finite number > 0")
        require(is_positive(self.bias), "bias", self.bias, "a finite number > 0")
        if self.eta is not None:
            require(is_positive(self.eta), "eta", self.eta, "a finite number > 0")

    def wants(self, part: str) -> bool:
        """Tell whether a part was asked for, or nothing was."""
        return self.parts is None or part in self.parts


def _require_rising(name: str, values: tuple[int, ...] | None, least: int) -> None:
    if values is None:
        return
    rising = all(a < b for a, b in itertools.pairwise(values))
    if len(values) < (1 if name == "steps" else 2) or not rising:
        raise InputError(f"{name} are {values}; give rising numbers, two or more")
    require(values[0] >= least, name, values, f"numbers >= {least}")
