"""How good samples are: every number that the given files allow.

A number depends on how many images went into it, on how they were resized, on the
weights of the network and on both sets; an `Evaluation` holds all of these.  Everything
that can be refused is refused before anything long is computed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from analysis.evaluation.choice import (
    FEATURE_METRICS,
    PROTOCOLS,
    Request,
    choose_metrics,
    least_members,
)
from analysis.evaluation.features import Extractor, load_extractor
from analysis.evaluation.inputs import (
    FeatureSet,
    ImageSet,
    StatisticsSet,
    check_alike,
    check_signed,
    count_images,
    kind_of,
    open_features,
    open_images,
    open_statistics,
)
from analysis.evaluation.numbers import Row
from analysis.evaluation.tasks import EDM_IMAGES, EDM_RANGES, Tasks
from configs.errors import InputError, require, require_choice
from diffusion.progress import Progress

__all__ = ["Evaluation", "evaluate_samples"]

AnySet = ImageSet | FeatureSet | StatisticsSet


class Evaluation(NamedTuple):
    """Numbers, and all that they depend on.

    Attributes:
        rows: The numbers.
        left_out: Why a metric was not computed, by its name.
        sets: What is known of samples, reference and held_out.
        request: What was asked for.
    """

    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    sets: Mapping[str, Mapping[str, Any]]
    request: Request


def evaluate_samples(request: Request, folder: Path) -> Evaluation:
    """Compute every number that was asked for, or that is possible.

    Args:
        request: What to evaluate.
        folder: Where features and large sets of pixels go while it runs.

    Returns:
        The evaluation.

    Raises:
        InputError: If a file cannot be read, sets do not fit, a metric is unknown or
            impossible, or there are too few images.
        OSError: If `folder` cannot be written.
    """
    kinds = _check(request)
    wanted = request.metrics or (("fid",) if request.protocol == "edm" else ())
    has_inception = request.inception is not None
    names, left_out = choose_metrics(wanted, *kinds, has_inception=has_inception)
    extractor = None
    if request.inception and kinds[0] == "images" and {*names} & {*FEATURE_METRICS}:
        extractor = load_extractor(request.inception)
    samples, reference, held_out = _open(request, kinds, folder)
    if isinstance(reference, StatisticsSet):
        _check_statistics(reference, samples, extractor)
    for name in names:
        _check_size(name, samples, reference)
    tasks = Tasks(request, samples, reference, held_out, extractor, folder)
    rows: list[Row] = []
    progress = Progress(len(names), label="metrics", unit="metric")
    for name in names:
        rows += tasks.run(name)
        progress.advance(note=name)
    progress.close()
    sets = {"samples": samples, "reference": reference, "held_out": held_out}
    return Evaluation(
        tuple(rows),
        left_out,
        {name: _describe(s) for name, s in sets.items() if s is not None},
        request,
    )


def _check(request: Request) -> tuple[str, str]:
    """Return the kinds of samples and reference, once the request makes sense."""
    require_choice("protocol", request.protocol, PROTOCOLS)
    require(request.seed >= 0, "seed", request.seed, ">= 0")
    for name in ("max_images", "max_reference_images"):
        value = getattr(request, name)
        require(value is None or value >= 1, name, value, ">= 1")
    kinds = {kind_of(path) for path in request.samples}
    if "statistics" in kinds:
        raise InputError(
            f"{' '.join(request.samples)} holds statistics; the samples must be images "
            "or features, only the reference may be mu and sigma"
        )
    if len(kinds) > 1 or (kinds == {"features"} and len(request.samples) > 1):
        raise InputError(
            f"{' '.join(request.samples)} cannot be joined; several samples must all "
            "be images"
        )
    if request.protocol == "edm" and request.metrics and "fid" not in request.metrics:
        raise InputError(
            f"--protocol edm was given with --metrics {' '.join(request.metrics)}; it "
            "is about fid: add it, or leave the protocol out"
        )
    if request.protocol == "edm" and (kinds == {"features"} or request.max_images):
        given = "--max-images" if request.max_images else "features"
        raise InputError(
            f"--protocol edm was given with {given}; it takes all of 150,000 images"
        )
    return kinds.pop(), kind_of(request.reference)


def _open(
    request: Request, kinds: tuple[str, str], folder: Path
) -> tuple[ImageSet | FeatureSet, AnySet, ImageSet | None]:
    """Read the sets; two that are no pair are refused."""
    if request.protocol == "edm":
        _check_protocol(request.samples)
    seed, held_out = request.seed, None
    if kinds[0] == "features":
        samples = open_features(request.samples[0], "samples")
    else:
        samples = open_images(
            *(request.samples, "samples", folder, request.max_images), seed=seed
        )
    if kinds[1] == "features":
        reference = open_features(request.reference, "reference")
    elif kinds[1] == "statistics":
        reference = open_statistics(request.reference)
    else:
        most = request.max_reference_images
        reference = open_images(
            *((request.reference,), "reference", folder, most), seed=seed
        )
    if request.held_out is not None:
        held_out = open_images((request.held_out,), "held-out images", folder)
    if isinstance(samples, ImageSet):
        for other, label in ((reference, "reference"), (held_out, "held-out images")):
            if isinstance(other, ImageSet):
                check_alike(samples, other, label)
    return samples, reference, held_out


def _check_statistics(
    reference: StatisticsSet,
    samples: ImageSet | FeatureSet,
    extractor: Extractor | None,
) -> None:
    """Refuse statistics of other features before any are computed."""
    if isinstance(samples, ImageSet):
        check_signed(samples)
    width, weights = len(reference.statistics.mean), reference.weights
    if isinstance(samples, FeatureSet):
        found = samples.features.shape[1]
    elif extractor is not None:
        found = extractor.widths[0]
    else:
        return
    if width != found:
        raise InputError(
            f"{reference.name} has a mean of {width} numbers, the samples have {found} "
            "features; both must come from one network and layer"
        )
    if extractor is not None and weights and weights != extractor.digest:
        raise InputError(
            f"{reference.name} was made with the weights {weights[:12]}..., which are "
            f"not those of --inception, {extractor.digest[:12]}...; give the same"
        )


def _check_protocol(samples: tuple[str, ...]) -> None:
    given = count_images(samples)
    needed = EDM_IMAGES * EDM_RANGES
    if given < needed:
        raise InputError(
            f"there are {given} images in {' '.join(samples)}; --protocol edm needs "
            f"{needed}: python -m samplers.generate WORKDIR --num-samples {needed} "
            "--format zip"
        )


def _check_size(metric: str, samples: AnySet, reference: AnySet) -> None:
    """Refuse sets too small for a metric before anything is computed."""
    for given, label in ((samples, "samples"), (reference, "members of the reference")):
        least = least_members(metric, is_reference=given is reference)
        count = _count(given)
        if count is not None and count < least:
            raise InputError(
                f"{metric} needs at least {least} {label}, but {given.name} gives "
                f"{count}; give more, or name other --metrics"
            )


def _count(given: AnySet) -> int | None:
    if isinstance(given, ImageSet):
        return len(given.images)
    if isinstance(given, FeatureSet):
        return len(given.features)
    return given.statistics.count


def _describe(given: AnySet) -> dict[str, Any]:
    about: dict[str, Any] = {"path": given.name, "count": _count(given)}
    about["sha256"] = given.digest or None
    if isinstance(given, ImageSet):
        about |= {
            "of": given.total,
            "shape": list(given.images.shape[1:]),
            "quantised": given.quantised,
            "clipped": given.clipped,
        }
    return about
