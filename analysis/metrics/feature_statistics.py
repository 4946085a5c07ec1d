"""Mean and covariance of features, streamed, merged, stored and compared.

    mean = sum f_i / n,        covariance = sum (f_i - mean)(f_i - mean)^T / (n - 1),

in float64, in one pass over batches.  The Frechet distance of two sets of features is
that of these moments.  With n below d a covariance is singular, and centred rows over
sqrt(n - 1) are its factor: then tr (A B)^(1/2) is the nuclear norm of C_a^T C_b, exact
and without an eigendecomposition of a d x d matrix.

Files have the keys ``mu`` and ``sigma`` that EDM's reference statistics have (Karras et
al., arXiv 2206.00364), and in ours ``n`` and what the features are features of.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.frechet import factor_covariance, frechet_of_factors
from configs.errors import InputError
from diffusion.atomic import write_atomically
from diffusion.closed_form.moments import (
    Moments,
    accumulate_moments,
    covariance,
    merge,
)

__all__ = [
    "Factored",
    "FeatureStatistics",
    "StoredStatistics",
    "accumulate_statistics",
    "check_features",
    "factored",
    "feature_statistics",
    "frechet_of_features",
    "load_statistics",
    "merge_statistics",
    "save_statistics",
]

_ROWS = 4096


class FeatureStatistics(NamedTuple):
    """First and second moments of a set of features.

    Attributes:
        count: n; None where a file does not say.
        mean: (d,) float64.
        covariance: (d, d) float64, with n - 1.
    """

    count: int | None
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class Factored(NamedTuple):
    """A mean and a factor of a covariance: what a Frechet distance is computed from.

    Attributes:
        mean: (d,) float64.
        factor: F, (d, r) float64, with F F^T the covariance.
        count: n, None where it is not known.
    """

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]
    count: int | None


class StoredStatistics(NamedTuple):
    """Statistics from a file, and of what.

    Attributes:
        statistics: The moments.
        data_digest: sha256 of the images, empty where the file does not say.
        weights_digest: sha256 of the network's weights, likewise.
    """

    statistics: FeatureStatistics
    data_digest: str
    weights_digest: str


def check_features(least: int, **sets: ArrayLike) -> list[NDArray[Any]]:
    """Return sets of features as arrays of floats, or say what is wrong with them.

    Args:
        least: Members that each set must have.
        **sets: (n, d) each, by the name that an error calls them; memory maps too.

    Returns:
        The arrays, in their order; floats keep their dtype, integers become float64.

    Raises:
        InputError: If one is not (n, d) or has too few members, two differ in d, or a
            number is not finite.
    """
    arrays = {name: np.asanyarray(values) for name, values in sets.items()}
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    if any(a.ndim != 2 or not a.shape[1] for a in arrays.values()) or (
        len({a.shape[1] for a in arrays.values()}) != 1
    ):
        raise InputError(f"features have the shapes {shapes}; give (n, d), with one d")
    for name, array in arrays.items():
        if len(array) < least:
            raise InputError(
                f"{name}: {len(array)} were given; this metric needs at least {least}"
            )
        if not np.issubdtype(array.dtype, np.floating):
            if array.dtype.kind not in "iub":
                raise InputError(f"{name} have dtype {array.dtype}; give floats")
            arrays[name] = array.astype(np.float64)
        bad = sum(
            int(np.sum(~np.isfinite(array[start : start + _ROWS]).all(axis=1)))
            for start in range(0, len(array), _ROWS)
        )
        if bad:
            raise InputError(
                f"{bad} of {len(array)} {name} hold a number that is not finite; leave "
                "them out and report how many they were"
            )
    return list(arrays.values())


def accumulate_statistics(batches: Iterable[ArrayLike]) -> FeatureStatistics:
    """Return the moments of everything that an iterable yields, in one pass.

    Args:
        batches: (b, d) floats each; batches may differ in size.

    Returns:
        The moments; memory beyond a batch is two d x d matrices.

    Raises:
        InputError: If there are fewer than two features, or a number is not finite.
    """
    return _statistics(accumulate_moments(np.asarray(b, np.float64) for b in batches))


def feature_statistics(features: ArrayLike) -> FeatureStatistics:
    """Return mean and covariance of an array of features.

    Args:
        features: (n, d), n >= 2; memory maps too.

    Returns:
        The moments in float64.

    Raises:
        InputError: If the shape does not fit or a number is not finite.
    """
    (rows,) = check_features(2, features=features)
    return accumulate_statistics(
        rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)
    )


def merge_statistics(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """Return the moments of two sets together, as one pass over both would give.

    Args:
        a: Moments of one set.
        b: Moments of the other.

    Returns:
        Those of both.

    Raises:
        InputError: If they differ in d, or one does not say its count.
    """
    return _statistics(merge(_moments(a), _moments(b)))


def frechet_of_features(
    samples: ArrayLike | FeatureStatistics | Factored,
    reference: ArrayLike | FeatureStatistics | Factored,
) -> float:
    """Return the squared Frechet distance of two sets of features.

    A set of fewer than d members is its own factor; see the module.

    Args:
        samples: (n, d), n >= 2, or its statistics, or those factored.
        reference: (m, d), m >= 2, or its statistics, or those factored.

    Returns:
        At least 0, in squared units of the features; on the features of the 2015
        Inception network this is the FID.

    Raises:
        InputError: If shapes do not fit, there are too few members or a number is not
            finite.
    """
    a, b = factored(samples, "samples"), factored(reference, "reference")
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"samples have {len(a.mean)} features and the reference {len(b.mean)}; "
            "both must come from one network and layer"
        )
    return frechet_of_factors(a.mean - b.mean, a.factor, b.factor)


def factored(features: ArrayLike | FeatureStatistics | Factored, name: str) -> Factored:
    """Return mean and a factor of the covariance, for use in several distances.

    Args:
        features: (n, d), n >= 2, or its statistics; what is factored stays as it is.
        name: What an error calls them.

    Returns:
        Mean and factor.

    Raises:
        InputError: See `frechet_of_features`.
    """
    if isinstance(features, Factored):
        return features
    if not isinstance(features, FeatureStatistics):
        (rows,) = check_features(2, **{name: features})
        if len(rows) < rows.shape[1]:
            values = rows.astype(np.float64)
            mean = values.mean(axis=0)
            factor = (values - mean).T / np.sqrt(len(rows) - 1)
            return Factored(mean, factor, len(rows))
        features = feature_statistics(rows)
    mean = features.mean
    factor = factor_covariance(features.covariance, len(mean), f"sigma of {name}")
    return Factored(mean, factor, features.count)


def save_statistics(
    path: str | Path,
    statistics: FeatureStatistics,
    *,
    data_digest: str = "",
    weights_digest: str = "",
) -> None:
    """Write statistics as an npz of ``mu``, ``sigma``, ``n`` and digests, atomically.

    Args:
        path: File to write.
        statistics: The moments.
        data_digest: sha256 of the images.
        weights_digest: sha256 of the network's weights.

    Raises:
        OSError: If the file cannot be written.
    """
    arrays: dict[str, Any] = {"mu": statistics.mean, "sigma": statistics.covariance}
    if statistics.count is not None:
        arrays["n"] = np.int64(statistics.count)
    arrays["data_digest"], arrays["weights_digest"] = data_digest, weights_digest
    write_atomically(path, lambda file: np.savez(file, **arrays))


def load_statistics(path: str | Path) -> StoredStatistics:
    """Read statistics: ours, or any npz of ``mu`` (d,) and ``sigma`` (d, d).

    Args:
        path: The file.

    Returns:
        Statistics and digests; the count is None and digests are empty where the file
        does not say.

    Raises:
        InputError: If there is no such file, it is no npz, or an array is missing, of
            another shape or not finite.
    """
    arrays = _read(path)
    missing = [name for name in ("mu", "sigma") if name not in arrays]
    if missing:
        raise InputError(
            f"{path} has no array {' and no '.join(map(repr, missing))} but "
            f"{', '.join(arrays) or 'nothing'}; reference statistics are an npz of mu "
            "(d,) and sigma (d, d)"
        )
    mean, sigma = (np.asarray(arrays[k], np.float64) for k in ("mu", "sigma"))
    if mean.ndim != 1 or sigma.shape != (len(mean), len(mean)):
        raise InputError(
            f"{path} has mu of shape {mean.shape} and sigma of shape {sigma.shape}; "
            "they must be (d,) and (d, d)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(sigma).all()):
        raise InputError(f"{path} holds a number that is not finite; make it again")
    count = int(arrays["n"]) if "n" in arrays else None
    digests = (str(arrays.get(k, "")) for k in ("data_digest", "weights_digest"))
    return StoredStatistics(FeatureStatistics(count, mean, sigma), *digests)


def _read(path: str | Path) -> dict[str, NDArray[Any]]:
    if not Path(path).is_file():
        raise InputError(f"there is no file {str(path)!r}; give an npz of mu and sigma")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # np.load says little, in many types
        raise InputError(f"{path} cannot be read as an npz: {error}") from error


def _statistics(moments: Moments) -> FeatureStatistics:
    return FeatureStatistics(
        moments.count,
        moments.mean.reshape(-1),
        covariance(moments, unbiased=True),
    )


def _moments(statistics: FeatureStatistics) -> Moments:
    if statistics.count is None:
        raise InputError(
            "statistics without a count cannot be merged; make them from the features"
        )
    scatter = statistics.covariance * (statistics.count - 1)
    return Moments(statistics.count, statistics.mean, scatter)
