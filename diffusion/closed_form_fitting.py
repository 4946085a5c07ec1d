"""From a data set to the file of a closed-form model."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.closed_form_schema import ClosedFormConfig
from configs.errors import InputError
from diffusion.closed_form import (
    EmpiricalDenoiser,
    Provenance,
    accumulate_moments,
    fit_class_mixture,
    fit_gaussian_streaming,
    fit_mixture,
    load_closed_form,
    principal_components,
    save_closed_form,
)
from diffusion.closed_form.checks import check_rank
from diffusion.closed_form.files import ClosedFormDenoiser
from diffusion.data import Dataset, ImageSource, data_digest, open_dataset
from diffusion.progress import Progress

__all__ = ["fit_to_file"]

_LARGEST_COVARIANCE = 8192  # directions; the matrices then take 1 GiB


def fit_to_file(dataset: str | Path, out: str | Path, config: ClosedFormConfig) -> None:
    """Fit a closed-form model to a data set and write it, with its provenance.

    A Gaussian is fitted in one pass over the files, never holding all images; mixtures
    and the empirical model hold them.  An interrupted mixture fit goes on from
    ``<out>.em.npz``.

    Args:
        dataset: Name of a preset, or path of an image archive.
        out: File to write.
        config: Which model, and how.

    Raises:
        InputError: If the data set cannot be read, a setting does not fit it, or `out`
            holds another model.
        OSError: If the file cannot be written.
    """
    started, out = time.monotonic(), Path(out)
    source = _limited(open_dataset(dataset), config.max_images)
    provenance = Provenance(
        num_images=source.num_images,
        data_digest=data_digest(source),
        settings={"dataset": str(dataset), **dataclasses.asdict(config)},
    )
    if out.exists():
        _require_same(out, provenance)
        print(f"done already: {out}. To start afresh delete {out}.", flush=True)
        return
    denoiser = _FITS[config.kind](source, out, config)
    save_closed_form(out, denoiser, provenance)
    checkpoint = _checkpoint(out)
    checkpoint.unlink(missing_ok=True)
    dimension = math.prod(source.event_shape)
    print(
        f"{config.kind} of {source.num_images} images of {dimension} values, "
        f"{time.monotonic() - started:.1f} s: {out}",
        flush=True,
    )


def _checkpoint(out: Path) -> Path:
    return out.with_name(out.name + ".em.npz")


def _require_same(out: Path, wanted: Provenance) -> None:
    """Refuse to overwrite a model of other data or settings."""
    found = load_closed_form(out).provenance
    names = [n for n in wanted.settings if wanted.settings[n] != found.settings.get(n)]
    if found.data_digest != wanted.data_digest:
        names.append("images")
    if names:
        raise InputError(
            f"{out} holds another model (it differs in {', '.join(names)}); choose "
            "another --out or delete it"
        )


def _limited(source: ImageSource, max_images: int | None) -> ImageSource:
    """Return the first images of a source."""
    if max_images is None or max_images >= source.num_images:
        return source

    def blocks(size: int) -> Iterator[np.ndarray]:
        left = max_images
        for block in source.blocks(size):
            yield block[:left]
            left -= len(block)
            if left <= 0:
                return

    labels = None if source.labels is None else source.labels[:max_images]
    return dataclasses.replace(
        source, num_images=max_images, labels=labels, blocks=blocks
    )


def _batches(source: ImageSource, label: str) -> Iterator[Dataset]:
    """Yield a pass with a progress bar."""
    progress = Progress(source.num_images, label=label, unit="image")
    for batch in source.batches():
        yield batch
        progress.advance(len(batch.images), note=source.name)
    progress.close()


def _fit_gaussian(
    source: ImageSource, out: Path, config: ClosedFormConfig
) -> ClosedFormDenoiser:
    dimension = math.prod(source.event_shape)
    check_rank(config.rank, dimension)
    if config.streaming_pca:
        assert config.rank is not None, "checked by the configuration"
        gaussian = fit_gaussian_streaming(
            lambda: _batches(source, "principal components"),
            config.rank,
            seed=config.seed,
        )
    elif dimension > _LARGEST_COVARIANCE:
        raise InputError(
            f"images of {dimension} values have a covariance of "
            f"{8 * dimension**2 / 2**30:.1f} GiB; use --streaming-pca True --rank 256"
        )
    else:
        moments = accumulate_moments(_batches(source, "moments"))
        gaussian = principal_components(moments, config.rank)
    if config.third_cumulant:
        images = source.read().images
        return gaussian.with_third_cumulant(images, rank=config.third_cumulant)
    return gaussian


def _fit_mixture(
    source: ImageSource, out: Path, config: ClosedFormConfig
) -> ClosedFormDenoiser:
    images, labels = source.read()
    common: dict[str, Any] = {
        "rank": config.rank,
        "key": jax.random.key(config.seed),
        "variance_floor": config.variance_floor,
    }
    if config.method == "classes":
        if not source.has_labels:
            raise InputError(
                f"{source.name} has no labels; use --method em, or images with labels"
            )
        return fit_class_mixture(images, labels, **common)
    out.parent.mkdir(parents=True, exist_ok=True)
    return fit_mixture(
        images,
        config.num_components,
        method=config.method,
        num_passes=config.num_passes,
        tolerance=config.tolerance,
        batch_size=config.batch_size,
        checkpoint=_checkpoint(out) if config.method == "em" else None,
        **common,
    )


def _fit_empirical(
    source: ImageSource, out: Path, config: ClosedFormConfig
) -> ClosedFormDenoiser:
    return EmpiricalDenoiser(jnp.asarray(source.read().images))


_FITS = {
    "gaussian": _fit_gaussian,
    "mixture": _fit_mixture,
    "empirical": _fit_empirical,
}
