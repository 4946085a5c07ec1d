"""Metrics by name: what each takes from the sets, and what several of them share.

Features of the Inception network and coefficients in principal directions are computed
once and compared in several ways.  Each number is told in what space it was computed,
with which weights and after which resize.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.evaluation.choice import PIXEL_METRICS, Request
from analysis.evaluation.features import Extractor, extract_features
from analysis.evaluation.inputs import FeatureSet, ImageSet, StatisticsSet
from analysis.evaluation.numbers import (
    Row,
    feature_density_coverage,
    feature_frechet,
    feature_kernel,
    feature_precision_recall,
    pixel_distance,
    pixel_memorization,
    recognition_score,
)
from analysis.evaluation.pixels import principal_coefficients
from analysis.metrics.feature_statistics import (
    Factored,
    FeatureStatistics,
    factored,
    feature_statistics,
    load_statistics,
    save_statistics,
)
from configs.errors import InputError

__all__ = ["EDM_IMAGES", "EDM_RANGES", "Tasks"]

EDM_IMAGES = 50_000
EDM_RANGES = 3
_KINDS = {"fid": "frechet", "kid": "kernel"}

Array = NDArray[Any]


class Tasks:
    """Computes metrics by name.

    Args:
        request: What was asked for.
        samples: The samples.
        reference: What they are compared with; of a kind that `choose_metrics` allows.
        held_out: Images that nobody trained on, or None.
        extractor: The Inception network, or None.
        folder: Where features go.

    Raises:
        InputError: If stored statistics are those of other images or weights.
    """

    def __init__(
        self,
        request: Request,
        samples: ImageSet | FeatureSet,
        reference: ImageSet | FeatureSet | StatisticsSet,
        held_out: ImageSet | None,
        extractor: Extractor | None,
        folder: Path,
    ) -> None:
        """See the class."""
        self._request, self._extractor, self._folder = request, extractor, folder
        self._samples, self._reference, self._held_out = samples, reference, held_out
        self._coefficients: tuple[Array, Array] | None = None
        self._moments = self._stored_moments()

    def run(self, name: str) -> list[Row]:
        """Return the rows of a metric, with what its numbers depend on.

        Raises:
            InputError: If a set or a file does not fit.
            OSError: If features cannot be written.
        """
        if name.startswith("pca_"):
            space, rows = self._principal(name.removeprefix("pca_"))
        elif name in PIXEL_METRICS:
            space, rows = "pixels", self._pixels(name)
        elif isinstance(self._samples, FeatureSet):
            space, rows = "given features", self._given(_KINDS.get(name, name))
        else:
            space, rows = "Inception", self._inception(name)
        told: dict[str, Any] = {"space": space, "resize": None, "weights": None}
        if space == "Inception" and self._extractor is not None:
            told["resize"] = self._extractor.resize
            told["weights"] = self._extractor.digest
        return [row._replace(settings={**told, **row.settings}) for row in rows]

    def _pixels(self, name: str) -> list[Row]:
        limits, seed = self._request.limits, self._request.seed
        samples, reference = _images(self._samples), _images(self._reference)
        if name == "sliced_wasserstein":
            return pixel_distance(samples, reference, limits, seed)
        held_out = None if self._held_out is None else self._held_out.images
        return pixel_memorization(samples, reference, held_out, limits, seed)

    def _principal(self, kind: str) -> tuple[str, list[Row]]:
        """Compare coefficients in the reference's leading principal directions."""
        if self._coefficients is None:
            self._coefficients = principal_coefficients(
                _images(self._samples),
                _images(self._reference),
                self._request.limits.num_directions,
                self._request.seed,
            )
        samples, reference = self._coefficients
        space = f"{samples.shape[1]} principal directions"
        if kind != "kernel":
            return space, self._compare(kind, "pca_", samples, reference)
        # The kernel's own scale is that of features around 1.
        scale = float(np.sqrt(np.mean(np.square(reference)))) or 1.0
        rows = self._compare(kind, "pca_", samples / scale, reference / scale)
        return space, [
            row._replace(settings={**row.settings, "scale": scale}) for row in rows
        ]

    def _given(self, kind: str) -> list[Row]:
        """Compare features that were computed elsewhere."""
        samples, reference = self._samples, self._reference
        assert isinstance(samples, FeatureSet), "choose_metrics has seen to it"
        if isinstance(reference, FeatureSet):
            return self._compare(kind, "", samples.features, reference.features)
        assert isinstance(reference, StatisticsSet), "choose_metrics has seen to it"
        return self._compare(kind, "", samples.features, reference.statistics)

    def _inception(self, name: str) -> list[Row]:
        """Compare features of the Inception network."""
        limits, seed = self._request.limits, self._request.seed
        features, logits = self._extract("samples", self._samples)
        if name == "inception_score":
            return recognition_score(logits, limits, seed)
        if name == "fid" and self._request.protocol == "edm":
            return self._three_fids(features)
        if name == "fid":
            rows = self._compare("frechet", "", features, self._reference_moments())
            return [self._as_fid(row, "fid") for row in rows]
        reference, _ = self._extract("reference", self._reference)
        rows = self._compare(_KINDS.get(name, name), "", features, reference)
        return [row._replace(metric="kid") if name == "kid" else row for row in rows]

    def _compare(
        self,
        kind: str,
        prefix: str,
        samples: Array,
        reference: Array | FeatureStatistics | Factored,
    ) -> list[Row]:
        """Return the rows of one comparison of features."""
        limits, seed = self._request.limits, self._request.seed
        if kind == "frechet":
            name, is_small = f"{prefix}frechet_distance", prefix == "pca_"
            return feature_frechet(
                name, samples, reference, limits, seed, with_floor=is_small
            )
        assert isinstance(reference, np.ndarray), "choose_metrics has seen to it"
        if kind == "kernel":
            name = f"{prefix}kernel_distance"
            return feature_kernel(name, samples, reference, limits, seed)
        compare = {
            "precision_recall": feature_precision_recall,
            "density_coverage": feature_density_coverage,
        }[kind]
        return compare(prefix, samples, reference, limits, seed)

    def _extract(self, label: str, images: object) -> tuple[Array, Array]:
        """Return features and logits; a second call finds them in the folder."""
        assert self._extractor is not None, "choose_metrics has seen to it"
        assert isinstance(images, ImageSet)
        found = extract_features(self._extractor, images, label, self._folder)
        return found.features, found.logits

    def _stored_moments(self) -> FeatureStatistics | None:
        """Return statistics that an earlier evaluation has stored, if there are any."""
        path, reference = self._request.reference_statistics, self._reference
        if isinstance(reference, StatisticsSet):
            return reference.statistics
        if self._extractor is None or path is None or not Path(path).exists():
            return None
        found = load_statistics(path)
        digests = reference.digest, self._extractor.digest
        if (found.data_digest, found.weights_digest) != digests:
            raise InputError(
                f"{path} holds statistics of other images or weights; delete it or "
                "name another --reference-statistics"
            )
        return found.statistics

    def _reference_moments(self) -> FeatureStatistics | Array:
        """Return the reference's statistics: given, or computed and stored.

        Or its features, where there are fewer of them than numbers in each: their
        covariance would have that many directions and cost more.
        """
        if self._moments is None:
            features, _ = self._extract("reference", self._reference)
            path = self._request.reference_statistics
            if path is None and len(features) < features.shape[1]:
                return features
            self._moments = feature_statistics(features)
            if path is not None and self._extractor is not None:
                save_statistics(
                    path,
                    self._moments,
                    data_digest=self._reference.digest,
                    weights_digest=self._extractor.digest,
                )
        return self._moments

    def _three_fids(self, features: Array) -> list[Row]:
        """Return the FID of three ranges of images, their minimum and mean."""
        reference, rows = factored(self._reference_moments(), "reference"), []
        for i in range(EDM_RANGES):
            first, last = i * EDM_IMAGES, (i + 1) * EDM_IMAGES - 1
            (row,) = self._compare("frechet", "", features[first : last + 1], reference)
            row = row._replace(settings={**row.settings, "images": [first, last]})
            rows.append(self._as_fid(row, f"fid_{i}"))
        values = [row.value for row in rows]
        best = rows[int(np.argmin(values))]
        mean = rows[0]._replace(
            metric="fid_mean",
            value=float(np.mean(values)),
            low=min(values),
            high=max(values),
            interval="range of the three",
            settings={**rows[0].settings, "images": [0, EDM_RANGES * EDM_IMAGES - 1]},
        )
        return [*rows, best._replace(metric="fid_minimum"), mean]

    def _as_fid(self, row: Row, name: str) -> Row:
        """Name the row; statistics from a file say whether the weights are the same."""
        if not isinstance(self._reference, StatisticsSet):
            return row._replace(metric=name)
        weights = self._reference.weights or "not stated"
        settings = {**row.settings, "weights_of_reference": weights}
        return row._replace(metric=name, settings=settings)


def _images(given: object) -> NDArray[np.uint8]:
    assert isinstance(given, ImageSet), "choose_metrics has seen to it"
    return given.images
