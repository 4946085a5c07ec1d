"""Distances between sets of samples: each takes the samples first."""

from analysis.metrics.bootstrap import (
    Interval,
    bootstrap_interval,
    interval_around,
    mean_interval,
    resample_counts,
)
from analysis.metrics.energy import energy_distance
from analysis.metrics.feature_statistics import (
    Factored,
    FeatureStatistics,
    StoredStatistics,
    accumulate_statistics,
    factored,
    feature_statistics,
    frechet_of_features,
    load_statistics,
    merge_statistics,
    save_statistics,
)
from analysis.metrics.frechet import frechet_distance, frechet_in_basis
from analysis.metrics.frechet_resampling import frechet_floor, frechet_resamples
from analysis.metrics.inception_score import InceptionScore, inception_score
from analysis.metrics.kernel import kernel_distance, kernel_distance_blocks
from analysis.metrics.manifold import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from analysis.metrics.wasserstein import (
    Slicing,
    sliced_wasserstein,
    sliced_wasserstein_levels,
    sliced_wasserstein_resamples,
)

__all__ = [
    "DensityCoverage",
    "Factored",
    "FeatureStatistics",
    "InceptionScore",
    "Interval",
    "PrecisionRecall",
    "Slicing",
    "StoredStatistics",
    "accumulate_statistics",
    "bootstrap_interval",
    "density_coverage",
    "energy_distance",
    "factored",
    "feature_statistics",
    "frechet_distance",
    "frechet_floor",
    "frechet_in_basis",
    "frechet_of_features",
    "frechet_resamples",
    "inception_score",
    "interval_around",
    "kernel_distance",
    "kernel_distance_blocks",
    "load_statistics",
    "mean_interval",
    "merge_statistics",
    "precision_recall",
    "resample_counts",
    "save_statistics",
    "sliced_wasserstein",
    "sliced_wasserstein_levels",
    "sliced_wasserstein_resamples",
]
