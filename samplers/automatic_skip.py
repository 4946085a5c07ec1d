"""``--sampler.teleport auto``: where to teleport to, predicted for a model.

The model is calibrated once per checkpoint (`samplers.skip_calibration`), which costs
32 calls for each of 32 samples; the calibration stays in the workdir, and so does a
coarse mixture of the training images, which says how errors grow.  What is chosen then
depends on solver, grid and number of calls (`samplers.skip`) and costs no call.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError, InputWarning
from configs.sampler_schema import SamplerConfig
from configs.solver_table import SOLVERS
from diffusion.closed_form import (
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    Provenance,
    save_closed_form,
)
from diffusion.denoiser import Denoiser
from diffusion.guidance import Guided
from diffusion.progress import Progress
from samplers.building import build_grid, build_sampler
from samplers.drawing import draw_classes
from samplers.model import Model, digest_of
from samplers.model_files import read_closed_form, read_gaussian
from samplers.schedules import log_linear
from samplers.skip import SKIP_SIGMAS, SkipCandidate, SkipChoice, choose_skip
from samplers.skip_calibration import (
    SkipCalibration,
    calibrate_skip,
    load_skip_calibration,
    save_skip_calibration,
)
from samplers.statistics_run import read_training_images
from samplers.surrogate import fit_surrogate

__all__ = ["resolve_skip"]

_LEVELS = 32
_SAMPLES = 32
_RANGE = (0.002, 80.0)
_ROUNDING = 1 + 1e-6
_FILE = "skip_calibration.npz"
_MIXTURE = "mixture.npz"


def resolve_skip(
    config: SamplerConfig,
    model: Model,
    workdir: str | Path,
    *,
    class_rule: str | None = None,
) -> SamplerConfig:
    """Return the configuration with a noise level, or None, in the place of auto.

    Prints the choice, both predictions and the calls saved.

    Args:
        config: With teleport "auto"; any other is returned as it is.
        model: What to sample from.
        workdir: Where its calibration lies, or is put; of a closed form's file, none.
        class_rule: How classes are drawn, for models that are told them.

    Raises:
        InputError: If there is no Gaussian, or it is of other images.
        OSError: If the calibration cannot be written.
    """
    if config.teleport != "auto":
        return config
    gaussian = read_gaussian(config, model)
    if config.num_points < 2 and config.nfe is None:
        raise InputError(
            f"sampler.num_points is {config.num_points}, but teleport auto needs a "
            "grid to choose from; give 2 points or more"
        )
    plain = _without_skip(config)
    whole = build_sampler(plain, model)
    sigma_max = float(whole.sigmas[0])
    ends = float(whole.sigmas[-1]), sigma_max
    calibration = _calibration(model, gaussian, Path(workdir), sigma_max, class_rule)
    candidates = [SkipCandidate(None, whole.solver, whole.sigmas)]
    for sigma_skip, config_there in _teleports(config, ends):
        try:
            sigmas = build_grid(config_there, model, whole.solver)
        except InputError:  # a number of calls that this grid cannot have
            continue
        candidates.append(SkipCandidate(sigma_skip, whole.solver, sigmas))
    surrogate = _surrogate(config, model, gaussian, Path(workdir))
    choice = choose_skip(
        calibration, gaussian, candidates, sigma_max, surrogate=surrogate
    )
    _report(choice, candidates)
    if choice.sigma_skip is None:
        return plain
    return dataclasses.replace(config, teleport=choice.sigma_skip)


def _without_skip(config: SamplerConfig) -> SamplerConfig:
    """Return the same without a teleport, and without what then has no use."""
    used = "statistics" in SOLVERS[config.solver].options and config.statistics is None
    return dataclasses.replace(
        config,
        teleport=None,
        skip_mode="same-tail",
        gaussian=config.gaussian if used else None,
    )


def _teleports(
    config: SamplerConfig, ends: tuple[float, float]
) -> Iterator[tuple[float, SamplerConfig]]:
    for sigma_skip in SKIP_SIGMAS:
        if ends[0] < sigma_skip < ends[1]:
            yield sigma_skip, dataclasses.replace(config, teleport=sigma_skip)


def _calibration(
    model: Model,
    gaussian: GaussianDenoiser,
    workdir: Path,
    sigma_max: float,
    class_rule: str | None,
) -> SkipCalibration:
    """Return what was measured on this model and Gaussian, or measure it."""
    about: dict[str, Any] = {
        "model_sha256": digest_of(model.denoiser),
        "gaussian_sha256": digest_of(gaussian),
        "guidance_interval": _interval(model.denoiser),
        "class_rule": class_rule,
    }
    path = workdir / _FILE if workdir.is_dir() else None
    if path is not None:
        found = _read(path, about)
        if found is not None and sigma_max <= found.sigmas[0] * _ROUNDING:
            return found
    lowest, highest = model.sigma_range
    ends = max(_RANGE[0], lowest), min(max(_RANGE[1], sigma_max), highest)
    progress = Progress(_LEVELS, label="skip calibration", unit="level")
    calibration = calibrate_skip(
        model.denoiser,
        gaussian,
        log_linear(_LEVELS, *ends),
        jax.random.key(0),
        num_samples=_SAMPLES,
        batch_size=_SAMPLES,
        denoiser_of=_told(model, class_rule),
        after_level=progress.advance,
    )
    progress.close()
    if path is not None:
        save_skip_calibration(path, calibration, about=about)
    return calibration


def _read(path: Path, about: dict[str, Any]) -> SkipCalibration | None:
    """Return a calibration that was measured on the same; None if there is none."""
    try:
        found = load_skip_calibration(path)
    except InputError:  # missing, or damaged: it is measured again
        return None
    same = all(found.about.get(name) == value for name, value in about.items())
    return found.calibration if same else None


def _interval(denoiser: Denoiser) -> list[str] | None:
    """Return what no digest of numbers sees of a guided model."""
    if not isinstance(denoiser, Guided):
        return None
    return [f"{sigma:g}" for sigma in denoiser.interval]


def _surrogate(
    config: SamplerConfig, model: Model, gaussian: GaussianDenoiser, workdir: Path
) -> Denoiser | None:
    """Return a closed form that is nearer to the model than the Gaussian."""
    if isinstance(model.denoiser, GaussianDenoiser):
        return None
    if isinstance(model.denoiser, MixtureDenoiser | EmpiricalDenoiser):
        return model.denoiser
    path = workdir / _MIXTURE
    if path.is_file():
        return read_closed_form(path, (MixtureDenoiser,), config, model)
    try:
        images = read_training_images(workdir).training.images
    except InputError as error:
        warnings.warn(
            f"the skip is predicted from the Gaussian alone ({error})",
            InputWarning,
            stacklevel=2,
        )
        return None
    print(f"fitting a mixture to {len(images)} training images: {path}")
    found = fit_surrogate(images, gaussian, jax.random.key(0))
    mixture = found.mixture(model.event_shape)
    save_closed_form(path, mixture, Provenance(len(images), model.data_digest))
    return mixture


def _told(model: Model, class_rule: str | None) -> Any:
    """Return what denoises some samples, told their classes; None without classes."""
    if class_rule is None:
        return None
    key = jax.random.key(0)
    classes = draw_classes(class_rule, model.num_classes, key, 0, _SAMPLES)

    def denoiser_of(numbers: NDArray[np.intp]) -> Denoiser:
        return model.with_classes(jnp.asarray(classes[numbers], jnp.int32))

    return denoiser_of


def _report(choice: SkipChoice, candidates: list[SkipCandidate]) -> None:
    calls = {c.sigma_skip: c.solver.nfe(len(c.sigmas)) for c in candidates}
    without = choice.table[0].predicted_error
    if choice.sigma_skip is None:
        others = [row.predicted_error for row in choice.table[1:]]
        best = f", with the best teleport {min(others):.3g}" if others else ""
        print(
            f"auto: no teleport; predicted error {without:.3g} rms{best}; "
            f"{calls[None]} calls, 0 saved"
        )
        return
    left = calls[choice.sigma_skip]
    print(
        f"auto: teleport to sigma = {choice.sigma_skip:g}; predicted error "
        f"{choice.predicted_error:.3g} rms (of the teleport alone "
        f"{choice.teleport_error:.3g}, of the solver alone {choice.solver_error:.3g}), "
        f"without a teleport {without:.3g}; {left} calls, {calls[None] - left} saved"
    )
