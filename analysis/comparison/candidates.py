"""The closed-form models that a network's score is compared with.

From the least knowledge of the training images to all of it: their mean, their mean
variance, their covariance cut to a rank, their whole covariance, a mixture of Gaussians
with more and more components, one Gaussian per class, the third cumulant, and the
images themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis.comparison.settings import KINDS, ComparisonSettings
from configs.errors import InputError
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    Provenance,
    fit_class_mixture,
    fit_mixture,
    load_closed_form,
    save_closed_form,
)
from diffusion.closed_form.files import ClosedFormDenoiser
from diffusion.data import Split
from diffusion.denoiser import Denoiser
from diffusion.progress import Progress
from samplers.model import digest_of

__all__ = [
    "EMPIRICAL",
    "GAUSSIAN",
    "fit_candidates",
    "gaussian_candidates",
    "load_candidates",
]

GAUSSIAN, EMPIRICAL = "Gaussian", "empirical"
_RANKS = (8, 32, 128, 512)
_COMPONENTS = (2, 10, 50, 100)
_IMAGES_PER_COMPONENT = 10
_MIXTURE_RANK = 64
_MOST_CLASSES = 100  # by default: a Gaussian of rank 64 for each
_IN_MEMORY = 2**32  # bytes of images that models which hold them are fitted to
_HOLDING = ("classes", "mixtures", "empirical")  # need all images at once


def gaussian_candidates(gaussian: GaussianDenoiser) -> Mapping[str, Denoiser]:
    """Return what less and less knowledge of the training images gives.

    Args:
        gaussian: The Gaussian of the training images.

    Returns:
        ``Gaussian`` (mean and covariance), ``isotropic`` (mean and mean variance) and
        ``mean-isotropic`` (the mean alone: variance 0).
    """
    return {
        GAUSSIAN: gaussian,
        "isotropic": gaussian.isotropic(),
        "mean-isotropic": gaussian.mean_only(),
    }


def load_candidates(
    paths: Sequence[str | Path], event_shape: tuple[int, ...]
) -> Mapping[str, Denoiser]:
    """Read closed forms to compare with, named by their files.

    Args:
        paths: Files of `diffusion.fit_closed_form`.
        event_shape: Shape of one sample.

    Returns:
        Models by the stem of their file.

    Raises:
        InputError: If a file does not match or two have the same stem.
    """
    found: dict[str, Denoiser] = {}
    for path in paths:
        name = Path(path).stem
        if name in found:
            raise InputError(f"two candidates are called {name}; rename one file")
        found[name] = load_closed_form(path, event_shape=event_shape).denoiser
    return found


class _Fit(NamedTuple):
    """How a model is fitted, given where EM may keep its state; with which settings."""

    fit: Callable[[Path], ClosedFormDenoiser]
    settings: dict[str, Any]


def fit_candidates(
    split: Split,
    gaussian: GaussianDenoiser,
    settings: ComparisonSettings,
    folder: str | Path,
) -> Mapping[str, Denoiser]:
    """Return the candidates of a comparison, fitted to the training images.

    Each fit is kept in a file with its provenance and read from there by later calls
    with the same images and settings; a process that is killed loses one fit at most.

    Args:
        split: The images.
        gaussian: The Gaussian of the training images.
        settings: Which candidates, and how they are fitted.
        folder: Where the fits are kept.

    Returns:
        Denoisers by name, from the least knowledge to the most; files of
        ``settings.candidates`` last.

    Raises:
        InputError: If a candidate that was asked for does not exist for these images.
        OSError: If a file cannot be written.
    """
    wanted = _wanted(split, settings)
    files = load_candidates(settings.candidates, gaussian.mean.shape)
    found: dict[str, Denoiser] = {}
    plain = gaussian_candidates(gaussian)
    for name in ("mean-isotropic", "isotropic"):
        if name in wanted:
            found[name] = plain[name]
    if "ranks" in wanted:
        for rank in _ranks(gaussian, settings):
            found[f"{GAUSSIAN} rank {rank}"] = gaussian.truncated(rank)
    if "gaussian" in wanted:
        found[GAUSSIAN] = gaussian
    fits = _fits(split, gaussian, settings, wanted)
    for name in files:
        if name in {*found, *fits, EMPIRICAL}:
            raise InputError(f"a candidate is called {name} already; rename the file")
    found |= _fit_all(split, fits, Path(folder))
    if "empirical" in wanted:
        found[EMPIRICAL] = EmpiricalDenoiser(jnp.asarray(split.training.images))
    found |= files
    if not found:
        raise InputError("no candidate is left; name one with --models or --candidates")
    return found


def _wanted(split: Split, settings: ComparisonSettings) -> tuple[str, ...]:
    """Return the kinds of candidates that were asked for and exist."""
    labels = split.training.labels
    classes = np.unique(labels)
    size = split.training.images.nbytes
    if settings.models is None:
        several = classes[0] >= 0 and 1 < len(classes) <= _MOST_CLASSES
        left_out = () if several else ("classes",)
        if size > _IN_MEMORY:
            left_out = _HOLDING
        return tuple(kind for kind in KINDS if kind not in left_out)
    if "classes" in settings.models and classes[0] < 0:
        raise InputError(
            "--models classes needs a class for every image, but the training images "
            "have no labels; leave it out"
        )
    held = [kind for kind in settings.models if kind in _HOLDING]
    if held and size > _IN_MEMORY:
        raise InputError(
            f"--models {held[0]} holds all training images in memory, "
            f"{size / 2**30:.1f} GiB; up to {_IN_MEMORY / 2**30:g} GiB are allowed: "
            f"leave it out, or fit one to fewer with diffusion.fit_closed_form and "
            f"name its file with --candidates"
        )
    return settings.models


def _ranks(gaussian: GaussianDenoiser, settings: ComparisonSettings) -> list[int]:
    largest = gaussian.basis.shape[1]
    if settings.ranks is None:
        return [rank for rank in _RANKS if rank < largest]
    for rank in settings.ranks:
        if rank > largest:
            raise InputError(
                f"--ranks has {rank}, but the Gaussian of these images has {largest} "
                f"directions; give ranks in [1, {largest}]"
            )
    return sorted(set(settings.ranks))


def _components(count: int, settings: ComparisonSettings) -> list[int]:
    if settings.mixtures is None:
        return [k for k in _COMPONENTS if k * _IMAGES_PER_COMPONENT <= count]
    for k in settings.mixtures:
        if k > count:
            raise InputError(
                f"--mixtures has {k}, but there are {count} training images; give "
                f"numbers of components in [1, {count}]"
            )
    return sorted(set(settings.mixtures))


def _mixture_rank(dimension: int, settings: ComparisonSettings) -> int:
    rank = settings.mixture_rank
    if rank is None:
        return min(_MIXTURE_RANK, dimension)
    if rank > dimension:
        raise InputError(
            f"--mixture-rank is {rank}, but a sample has {dimension} values; give one "
            f"in [0, {dimension}]"
        )
    return rank


def _fits(
    split: Split,
    gaussian: GaussianDenoiser,
    settings: ComparisonSettings,
    wanted: tuple[str, ...],
) -> dict[str, _Fit]:
    """Return the fits that take time, by the name of their model."""
    images, labels = split.training
    rank = _mixture_rank(images[0].size, settings)
    common: dict[str, Any] = {"rank": rank, "key": jax.random.key(settings.seed)}
    about = {"rank": rank, "seed": settings.seed}
    fits = {}
    for k in _components(len(images), settings) if "mixtures" in wanted else ():
        method = settings.mixture_method
        fits[f"mixture {k}"] = _Fit(
            lambda state, k=k, method=method: fit_mixture(
                images,
                k,
                method=method,
                checkpoint=state if method == "em" else None,
                **common,
            ),
            {**about, "components": k, "method": method},
        )
    if "classes" in wanted:
        fits["class mixture"] = _Fit(
            lambda _: fit_class_mixture(images, labels, **common),
            {**about, "labels": digest_of(np.asarray(labels))},
        )
    if "edgeworth" in wanted:
        fits["Edgeworth"] = _Fit(
            lambda _: gaussian.with_third_cumulant(images),
            {"gaussian": digest_of(gaussian)},
        )
    return fits


def _fit_all(
    split: Split, fits: dict[str, _Fit], folder: Path
) -> dict[str, ClosedFormDenoiser]:
    """Fit models, or read them where an earlier call has left them."""
    progress = Progress(len(fits), label="candidates", unit="fit")
    found = {}
    for name, fit in fits.items():
        path = folder / f"{name.replace(' ', '_').lower()}.npz"
        provenance = Provenance(
            num_images=len(split.training.images),
            data_digest=split.digest,
            settings={"model": name, **fit.settings},
        )
        model = _kept(path, provenance)
        if model is None:
            model = _fit(fit, path.with_suffix(".em.npz"))
            save_closed_form(path, model, provenance)
            path.with_suffix(".em.npz").unlink(missing_ok=True)
        found[name] = model
        progress.advance(note=name)
    progress.close()
    return found


def _fit(fit: _Fit, state: Path) -> ClosedFormDenoiser:
    """Fit a model, going on from the state that EM has left, if it is of this fit."""
    try:
        return fit.fit(state)
    except InputError:
        if not state.exists():
            raise
        state.unlink()
        return fit.fit(state)


def _kept(path: Path, wanted: Provenance) -> ClosedFormDenoiser | None:
    """Return the model of an earlier call, if it is the one that is wanted."""
    if not path.is_file():
        return None
    try:
        found = load_closed_form(path)
    except InputError:
        return None
    same = found.provenance.data_digest == wanted.data_digest
    settings = json.loads(json.dumps(wanted.settings))
    return found.denoiser if same and found.provenance.settings == settings else None
