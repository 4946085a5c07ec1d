"""Files that belong to a model: closed forms, statistics, gains.

Each is refused where it is of another kind, or of samples of another shape than the
model's.  A closed form must be fitted to the images that the model was trained on, and
in its units; statistics and gains must be measured on the very checkpoint
(`samplers.model.Model.digest`).  What a file does not say is believed, and
``--sampler.other-data True`` accepts what belongs to others.
"""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.sampler_schema import SamplerConfig
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    load_closed_form,
)
from samplers.effective_variances import load_effective_variances, read_about
from samplers.model import Model
from samplers.model_statistics import (
    ModelStatistics,
    gaussian_statistics,
    load_model_statistics,
    read_statistics_about,
)

__all__ = ["read_affine_part", "read_closed_form", "read_gaussian", "read_statistics"]

_T = TypeVar("_T")


def read_gaussian(
    config: SamplerConfig, model: Model, user: str = "teleporting"
) -> GaussianDenoiser:
    """Return the Gaussian that the settings or the model name.

    Args:
        config: The settings.
        model: What it must belong to.
        user: What needs it, for the error.

    Raises:
        InputError: If there is none, or it does not belong to the model.
    """
    given = config.gaussian or model.gaussian
    if given is None:
        raise InputError(
            f"{user} needs a Gaussian, and this model is none; name one of the "
            "same images with --sampler.gaussian FILE"
        )
    if isinstance(given, GaussianDenoiser):
        return given
    if not Path(given).is_file():
        raise InputError(
            f"no Gaussian at {given}; diffusion.train writes gaussian.npz into its "
            "workdir, and diffusion.fit_closed_form writes one for any data set"
        )
    return read_closed_form(given, (GaussianDenoiser,), config, model)


def read_closed_form(
    path: str | Path, kinds: tuple[type[_T], ...], config: SamplerConfig, model: Model
) -> _T:
    """Read a closed form of one of these kinds, of the model's shape and images.

    Args:
        path: The ``.npz`` of `diffusion.fit_closed_form`.
        kinds: Classes of denoisers that will do.
        config: Whether those of other images will do.
        model: What it must belong to.

    Raises:
        InputError: If it is missing, or does not belong to the model.
    """
    found = load_closed_form(path, event_shape=model.event_shape)
    if not isinstance(found.denoiser, kinds):
        names = {
            GaussianDenoiser: "a Gaussian",
            MixtureDenoiser: "a mixture",
            EmpiricalDenoiser: "an empirical model",
        }
        wanted = " or ".join(names[kind] for kind in kinds)
        raise InputError(
            f"{path} holds a model of kind {found.kind}, but {wanted} is needed; fit "
            "one with python -m diffusion.fit_closed_form (--help tells the kinds)"
        )
    digest = found.provenance.data_digest
    both = bool(digest and model.data_digest)
    if both and digest != model.data_digest and not config.other_data:
        raise InputError(
            f"{path} was fitted to other images (sha256 {digest[:12]}...) than the "
            f"model was ({model.data_digest[:12]}...); fit one to those, or set "
            "--sampler.other-data True"
        )
    if not config.other_data:
        _check_range(path, found.denoiser, model)
    return found.denoiser


def read_statistics(config: SamplerConfig, model: Model) -> ModelStatistics:
    """Return what DPM-Solver-v3 knows of the model beforehand.

    The file that the settings name; else that of the model, unless they name a
    Gaussian; else the closed form of the Gaussian.

    Args:
        config: The settings.
        model: What they must belong to.

    Raises:
        InputError: If they are missing, or do not belong to the model.
    """
    path = config.statistics
    if path is None and config.gaussian is None:
        path = model.statistics
    if path is None:
        return gaussian_statistics(read_gaussian(config, model, config.solver))
    found = load_model_statistics(path)
    _check_shape(path, "statistics", found, model)
    told = read_statistics_about(path).get("model_sha256")
    _check_checkpoint(path, "estimated", told, config, model)
    return found


def read_affine_part(
    config: SamplerConfig, model: Model
) -> GaussianDenoiser | ModelStatistics:
    """Return what the residual integrator takes exactly: measured gains, or a Gaussian.

    The file that the settings name; else the gains of the model, unless they name a
    Gaussian; else the Gaussian.

    Args:
        config: The settings.
        model: What it must belong to.

    Raises:
        InputError: If it is missing or does not belong to the model, or the gains were
            measured in another number of directions than the settings ask for.
    """
    given = config.statistics
    if given is None and config.gaussian is None:
        given = model.gains
    if given is None:
        return read_gaussian(config, model, config.solver)
    if isinstance(given, str | Path):
        name, found = str(given), load_effective_variances(given)
        told = read_about(given).get("model_sha256")
        _check_checkpoint(name, "measured", told, config, model, "--gains")
    else:
        name, found = "the model", given
    _check_shape(name, "gains", found, model)
    rank = found.coordinates.size - 1
    if config.changed("rank") and config.rank != rank:
        raise InputError(
            f"sampler.rank is {config.rank}, but {name} holds gains in {rank} "
            "directions; leave it out, or name the Gaussian with --sampler.gaussian "
            "FILE to do without gains"
        )
    return found


def _check_shape(
    path: str | Path, kind: str, found: ModelStatistics, model: Model
) -> None:
    shape = np.shape(found.coordinates.origin)
    if shape != model.event_shape:
        raise InputError(
            f"{path} holds {kind} of samples of shape {shape}, but "
            f"{model.event_shape} is needed; estimate them on this model"
        )


def _check_checkpoint(
    path: str | Path,
    verb: str,
    digest: object,
    config: SamplerConfig,
    model: Model,
    option: str = "",
) -> None:
    """Refuse what was measured on another checkpoint."""
    if not isinstance(digest, str) or config.other_data:
        return
    if not model.is_measured_by(digest):
        command = f"samplers.estimate_statistics WORKDIR {option}".rstrip()
        raise InputError(
            f"{path} was {verb} on another checkpoint (sha256 {digest[:12]}...) than "
            f"the model ({model.digest[:12]}...); delete it and run python -m "
            f"{command} again, name its checkpoint with --step, or set "
            "--sampler.other-data True"
        )


def _check_range(path: str | Path, form: object, model: Model) -> None:
    """Refuse statistics of pixels in [0, 1], if the model has others to compare with.

    Their mean is (mean + 1) / 2 of the same images in [-1, 1].
    """
    own = model.gaussian
    if isinstance(own, Path):
        if not own.is_file() or own.resolve() == Path(path).resolve():
            return
        own = load_closed_form(own).denoiser
    if not isinstance(own, GaussianDenoiser):
        return
    expected, given = np.asarray(own.mean), _mean(form)
    if _rms(given - expected) > 4 * _rms(given - (expected + 1) / 2):
        raise InputError(
            f"{path} seems to be fitted to pixels in [0, 1]: its mean is that of the "
            "model's images halved and shifted; fit it again to x / 127.5 - 1"
        )


def _mean(form: object) -> NDArray[Any]:
    if isinstance(form, GaussianDenoiser):
        return np.asarray(form.mean, np.float64)
    if isinstance(form, MixtureDenoiser):
        weights = np.exp(np.asarray(form.log_weights, np.float64))
        means = np.asarray(form.means, np.float64)
        return np.tensordot(weights / weights.sum(), means, 1)
    assert isinstance(form, EmpiricalDenoiser)
    return np.asarray(form.points, np.float64).mean(axis=0)


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(values**2)))
