"""Distances between sets of samples: each takes the samples first."""

from analysis.metrics.frechet import frechet_distance, frechet_in_basis
from analysis.metrics.wasserstein import SlicedWasserstein, sliced_wasserstein

__all__ = [
    "SlicedWasserstein",
    "frechet_distance",
    "frechet_in_basis",
    "sliced_wasserstein",
]
