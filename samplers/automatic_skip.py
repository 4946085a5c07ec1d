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
from diffusion.progress import Progress
from samplers.building import build_sampler
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
from samplers.statistics_run import open_run
from samplers.surrogate import fit_surrogate

__all__ = ["resolve_skip"]

_LEVELS = 32
_SAMPLES = 32
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
    plain = _without_skip(config)
    whole = build_sampler(plain, model)
    sigma_max = float(whole.sigmas[0])
    ends = float(whole.sigmas[-1]), sigma_max
    calibration = _calibration(model, gaussian, Path(workdir), ends, class_rule)
    candidates = [SkipCandidate(None, whole.solver, whole.sigmas)]
    for sigma_skip, config_there in _teleports(config, ends):
        try:
            sampler = build_sampler(config_there, model)
        except InputError:  # a number of calls that this grid cannot have
            continue
        candidates.append(SkipCandidate(sigma_skip, sampler.solver, sampler.sigmas))
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
    ends: tuple[float, float],
    class_rule: str | None,
) -> SkipCalibration:
    """Return what was measured on this model, Gaussian and range, or measure it."""
    about: dict[str, Any] = {
        "model_sha256": digest_of(model.denoiser),
        "gaussian_sha256": digest_of(gaussian),
        "sigma_range": list(ends),
        "class_rule": class_rule,
    }
    path = workdir / _FILE if workdir.is_dir() else None
    if path is not None and path.is_file():
        found = load_skip_calibration(path)
        if all(found.about.get(name) == value for name, value in about.items()):
            return found.calibration
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
        images = open_run(workdir).images
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
    plain = choice.table[0]
    if choice.sigma_skip is None:
        others = [row.predicted_error for row in choice.table[1:]]
        best = f", with the best one {min(others):.3g}" if others else ""
        print(
            f"no teleport: predicted error {plain.predicted_error:.3g} rms{best}; 0 "
            "calls saved"
        )
        return
    parts = f"teleport {choice.teleport_error:.3g}, solver {choice.solver_error:.3g}"
    print(
        f"teleport to sigma = {choice.sigma_skip:g}: predicted error "
        f"{choice.predicted_error:.3g} rms ({parts}), without a teleport "
        f"{plain.predicted_error:.3g}; {calls[None] - calls[choice.sigma_skip]} calls "
        "saved"
    )
