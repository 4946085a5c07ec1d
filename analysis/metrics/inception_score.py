"""Inception score: are samples recognisable one by one, and different together.

    IS = exp( mean over samples of KL(p(y | x) || p(y)) ),      p(y) = mean of p(y | x),

with p(y | x) the softmax of a classifier's logits (Salimans et al., arXiv 1606.03498).
It is the mean of consecutive splits of the samples, and knows nothing of a reference:
a training set learned by heart has a perfect score.  The 2015 Inception network is
asked for logits without the bias of its last layer.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.metrics.feature_statistics import check_features
from configs.errors import InputError, require

__all__ = ["InceptionScore", "inception_score", "inception_score_resamples"]


_ROWS = 4096
_TINY = 1e-300  # 0 log 0 is 0


class InceptionScore(NamedTuple):
    """Mean and standard deviation over splits; the score is in [1, classes]."""

    mean: float
    deviation: float


def inception_score(logits: ArrayLike, *, num_splits: int = 10) -> InceptionScore:
    """Return the Inception score of a set of samples.

    Args:
        logits: (n, K) float, n >= num_splits, in random order.
        num_splits: Consecutive parts whose scores are averaged.

    Returns:
        Mean and deviation over the splits.

    Raises:
        InputError: If there are fewer samples than splits or a logit is not finite.
    """
    require(num_splits >= 1, "num_splits", num_splits, ">= 1")
    (values,) = check_features(1, logits=logits)
    if len(values) < num_splits:
        raise InputError(
            f"{len(values)} samples were given; the Inception score needs at least one "
            f"for each of {num_splits} splits"
        )
    scores = [
        np.exp(_divergence(_log_probabilities(part)))
        for part in np.array_split(values, num_splits)
    ]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def inception_score_resamples(
    logits: ArrayLike, counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the score of resamples, each taken whole.

    Args:
        logits: (n, K) float.
        counts: (B, n), how often each sample is taken.

    Returns:
        (B,) scores.

    Raises:
        InputError: If a logit is not finite.
    """
    (values,) = check_features(1, logits=logits)
    shares = counts / counts.sum(axis=1, keepdims=True)
    certainty = np.zeros(len(counts))
    marginal = np.zeros((len(counts), values.shape[1]))
    for start in range(0, len(values), _ROWS):
        log_p = _log_probabilities(values[start : start + _ROWS])
        p, part = np.exp(log_p), shares[:, start : start + _ROWS]
        certainty += part @ np.sum(p * log_p, axis=1)
        marginal += part @ p
    entropy = -np.sum(marginal * np.log(np.maximum(marginal, _TINY)), axis=1)
    return np.exp(certainty + entropy)


def _divergence(log_p: NDArray[np.float64]) -> float:
    """Return the mean KL divergence from the marginal."""
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    log_marginal = np.log(np.maximum(marginal, _TINY))
    return float(np.mean(np.sum(p * (log_p - log_marginal), axis=1)))


def _log_probabilities(logits: NDArray) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
