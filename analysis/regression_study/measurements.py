"""What the parts of the study measure: the values behind its tables and figures."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.kernels.coupling import ErrorTerms

__all__ = [
    "ErrorChain",
    "FieldStudy",
    "Homogeneity",
    "LearningCurve",
    "NetworkPath",
    "SampleStudy",
    "ScoreField",
    "SpectrumStudy",
    "StopStudy",
]

Numbers = NDArray[np.float64]


class StopStudy(NamedTuple):
    """Stopping rules on several training sets; S seeds, T times, R rules.

    Attributes:
        times: (S, T) training times that were tried.
        errors: (S, T) root mean square error at each.
        rules: Names of the rules.
        stops: (S, R) times that they choose; inf for interpolation.
        stop_errors: (S, R) errors there.
        degrees: (S, R) degrees of freedom there.
        noise: (S,) noise that is estimated at the GCV stop, standard deviation.
        norms: (S,) norm of the target that is estimated there, per output.
    """

    times: Numbers
    errors: Numbers
    rules: tuple[str, ...]
    stops: Numbers
    stop_errors: Numbers
    degrees: Numbers
    noise: Numbers
    norms: Numbers

    @property
    def best(self) -> Numbers:
        """(S,) the least error over all times."""
        return self.errors.min(axis=1)

    @property
    def best_times(self) -> Numbers:
        """(S,) the times of the least error."""
        return self.times[np.arange(len(self.times)), self.errors.argmin(axis=1)]

    @property
    def ratios(self) -> Numbers:
        """(S, R) errors of the rules over the least error."""
        return self.stop_errors / self.best[:, None]

    @property
    def over_training(self) -> Numbers:
        """(S,) error at the last time over the least one."""
        return self.errors[:, -1] / self.best


class NetworkPath(NamedTuple):
    """Errors of one network while it is trained.

    Attributes:
        width: Neurons.
        times: (k,) training times, steps times step size.
        errors: (k,) root mean square errors.
    """

    width: int
    times: Numbers
    errors: Numbers


class ErrorChain(NamedTuple):
    """The error of a trained network in four terms, for several f_H.

    Attributes:
        penalties: (k,) penalties of the ridge projections that the f_H are.
        norms: (k,) their norms in the kernel's space.
        terms: k times the four terms and their total.
        width: Neurons of the network.
        steps: Its steps of gradient descent.
    """

    penalties: Numbers
    norms: Numbers
    terms: tuple[ErrorTerms, ...]
    width: int
    steps: int


class SpectrumStudy(NamedTuple):
    """Eigenvalues, and where the local-Rademacher rule crosses them.

    Attributes:
        mu: (r,) eigenvalues of K / n, those above 0, decreasing.
        exponent: Of mu_j as a power of j, fitted from j = 10 to n / 4.
        theory: -p / (p - 1) of a sphere in p dimensions.
        sigma: Noise of a label per output, standard deviation.
        norm: Norm of the target per output.
        radii: By constant c: the critical radius.
        stops: By constant c: the stop that the rule's own root finds.
        gcv: The GCV stop.
    """

    mu: Numbers
    exponent: float
    theory: float
    sigma: float
    norm: float
    radii: dict[str, float]
    stops: dict[str, float]
    gcv: float


class ScoreField(NamedTuple):
    """A score in the plane at one time.

    Attributes:
        t: The time.
        points: (g, 2) where.
        exact: (g, 2) the truth.
        fitted: (k, g, 2) at each stop.
    """

    t: float
    points: Numbers
    exact: Numbers
    fitted: Numbers


class FieldStudy(NamedTuple):
    """Errors of the score at a few stops.

    Attributes:
        names: k names of the stops.
        stops: (k,) training times.
        edges: (b + 1,) edges of bins of t.
        by_time: (k, b) root mean square error of f in each.
        weighted: (k, 3) errors of f, of the score, of the score weighted by h; nan
            where nobody knows the truth.
        fields: Score fields, of data in the plane with a known truth.
    """

    names: tuple[str, ...]
    stops: Numbers
    edges: Numbers
    by_time: Numbers
    weighted: Numbers
    fields: tuple[ScoreField, ...]


class SampleStudy(NamedTuple):
    """Samples of denoisers at several stops, noised to the first time.

    Attributes:
        stops: (k,) training times.
        distances: (k,) energy distance of the samples from the reference.
        floor: Energy distance of fresh noised data from the reference.
        others: Energy distances with other denoisers, by name.
        gcv: Which stop is GCV's.
        samples: (k, B, D) the samples.
        reference: (B, D) the reference.
        denoised: (B, D) the samples at the GCV stop, denoised.
    """

    stops: Numbers
    distances: Numbers
    floor: float
    others: dict[str, float]
    gcv: int
    samples: Numbers
    reference: Numbers
    denoised: Numbers


class LearningCurve(NamedTuple):
    """Errors against numbers of clean samples; a row for each size, draws, seed.

    Attributes:
        size: Clean samples.
        draws: Noise draws for each.
        seed: Which training set.
        exact: Whether the kernel was used as it is, not through Nystrom's features.
        stop: GCV stop.
        gcv: Mean squared error there.
        best: Least mean squared error over all times.
        others: By name of another estimator fitted on the same samples: its mean
            squared error.
    """

    size: NDArray[np.int64]
    draws: NDArray[np.int64]
    seed: NDArray[np.int64]
    exact: NDArray[np.bool_]
    stop: Numbers
    gcv: Numbers
    best: Numbers
    others: dict[str, Numbers]


class Homogeneity(NamedTuple):
    """A kernel with and without a constant feature.

    Attributes:
        bias: (2,) the feature: 0, and that of the settings.
        best: (2,) least root mean square error over all times.
        gcv: (2,) error at the GCV stop.
        norm: (2,) norm of the fit there.
        ray: (g,) multiples of a point, or None where nobody knows the truth.
        along: (3, g) first output along the ray: both fits, and the truth.
        straightness: (2,) largest distance from a straight line along the ray, over the
            largest value.
    """

    bias: Numbers
    best: Numbers
    gcv: Numbers
    norm: Numbers
    ray: Numbers | None
    along: Numbers | None
    straightness: Numbers | None
