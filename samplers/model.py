"""What samples are drawn from: the network of a workdir, or a closed form in a file.

A network that is told classes is given them block by block (`Model.with_classes`);
guidance makes one denoiser of two (`diffusion.guidance`).  What was measured on a model
names it by the sha256 of its numbers (`Model.digest`), and is refused by others.
"""

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from configs.errors import InputError, InputWarning
from configs.sampler_schema import GenerationConfig
from diffusion.adapters import VPNoiseDenoiser
from diffusion.closed_form import GaussianDenoiser, load_closed_form
from diffusion.denoiser import Denoiser
from diffusion.guidance import Guided
from diffusion.neural import NeuralDenoiser
from diffusion.training import load_denoiser
from diffusion.training.record import Record, read_record
from samplers.effective_variances import EffectiveVariances

__all__ = ["Model", "digest_of", "load_guided_model", "load_model"]


class Model(NamedTuple):
    """What to sample from.

    Attributes:
        denoiser: A network or a closed form; a network that is told classes is still
            without them.
        event_shape: Shape of one sample.
        gaussian: What to teleport with where the settings name nothing: a file, or the
            model itself; None if there is none.
        sigma_range: Lowest and highest noise level that the model knows.
        num_classes: Classes that it is told apart by; 0 for none.
        data_digest: sha256 of the images it was trained on; empty when unknown.
        statistics: Where its statistics for DPM-Solver-v3 lie, if they were estimated.
        guide_has_classes: With guidance, whether the guide is told the classes too.
        gains: Its gains for the residual integrator or where they lie, if they were
            measured.
    """

    denoiser: Denoiser
    event_shape: tuple[int, ...]
    gaussian: Path | GaussianDenoiser | None
    sigma_range: tuple[float, float] = (0.0, math.inf)
    num_classes: int = 0
    data_digest: str = ""
    statistics: Path | None = None
    guide_has_classes: bool = False
    gains: Path | EffectiveVariances | None = None

    @property
    def digest(self) -> str:
        """sha256 of all numbers of the denoiser, in hexadecimal: which checkpoint.

        Class labels and an augmentation condition are inputs and not among them.
        """
        return digest_of(_untold(self.denoiser))

    def is_measured_by(self, digest: str) -> bool:
        """Tell whether what was measured on the model of this `digest` serves this one.

        What was measured on the conditional part of a guided model does.
        """
        parts = [self.denoiser]
        if isinstance(self.denoiser, Guided):
            parts.append(self.denoiser.conditional)
        return any(digest_of(_untold(part)) == digest for part in parts)

    def with_classes(self, classes: Array) -> Denoiser:
        """Return the denoiser of a block of samples.

        Args:
            classes: (B,) integers, the class of each; without effect where the model
                is told none.
        """
        if self.num_classes == 0:
            return self.denoiser
        labels = jax.nn.one_hot(classes, self.num_classes)
        if not isinstance(self.denoiser, Guided):
            return _told(self.denoiser, labels)
        weak = self.denoiser.unconditional
        return dataclasses.replace(
            self.denoiser,
            conditional=_told(self.denoiser.conditional, labels),
            unconditional=_told(weak, labels) if self.guide_has_classes else weak,
        )


def load_model(
    path: str | Path, *, step: int | None = None, condition: Sequence[float] = ()
) -> Model:
    """Load a network from its workdir, or a closed form from its file.

    Args:
        path: A run of `diffusion.training.train`, or an ``.npz`` of
            `diffusion.fit_closed_form`.
        step: Checkpoint to use; None for the newest intact one.
        condition: Augmentation condition of all samples; none for images as they are.

    Raises:
        InputError: If there is neither, or it has no input for such a condition.
    """
    if Path(path).is_file():
        if step is not None:
            raise InputError(f"{path} has no steps; leave out --step {step}")
        if condition:
            raise InputError(f"{path} is a closed form; leave out --condition")
        found = load_closed_form(path)
        model = found.denoiser
        own = model if isinstance(model, GaussianDenoiser) else None
        digest = found.provenance.data_digest
        return Model(model, found.event_shape, own, data_digest=digest)
    denoiser = load_denoiser(path, step=step)
    record = read_record(path)
    assert record is not None, "load_denoiser has read it"
    if condition:
        denoiser = _conditioned(denoiser, record, condition)
    statistics, gains = (
        file if file.is_file() else None
        for file in (Path(path) / "model_statistics.npz", Path(path) / "gains.npz")
    )
    return Model(
        denoiser,
        record.event_shape,
        Path(path) / "gaussian.npz",
        _sigma_range(denoiser),
        getattr(record.config.network, "label_dim", 0),
        record.data_digest,
        statistics,
        gains=gains,
    )


def load_guided_model(path: str | Path, config: GenerationConfig) -> Model:
    """Load what a configuration names: a model, and its guide if there is one.

    Args:
        path: A workdir or the file of a closed form.
        config: Names checkpoint, condition and guidance.

    Returns:
        The model; with guidance its denoiser is a `Guided`.

    Raises:
        InputError: If there is no such model, or the guide does not fit it.
    """
    model = load_model(path, step=config.step, condition=config.condition)
    if config.guidance is None:
        return model
    guide = model
    if config.guide is None:
        _check_class_guidance(path, model)
    else:
        guide = load_model(
            config.guide, step=config.guide_step, condition=config.condition
        )
        _check_guide(config.guide, guide, model)
    lowest, highest = zip(model.sigma_range, guide.sigma_range, strict=True)
    guided = Guided(
        model.denoiser,
        guide.denoiser,
        config.guidance,
        config.guidance_interval or (0.0, math.inf),
    )
    return model._replace(
        denoiser=guided,
        sigma_range=(max(lowest), min(highest)),
        guide_has_classes=config.guide is not None and guide.num_classes > 0,
    )


def digest_of(tree: Any) -> str:
    """Return the sha256 of all numbers in a pytree, in hexadecimal."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def _untold(denoiser: Denoiser) -> Denoiser:
    """Return a denoiser without what it is told about samples."""
    if isinstance(denoiser, Guided):
        return dataclasses.replace(
            denoiser,
            conditional=_untold(denoiser.conditional),
            unconditional=_untold(denoiser.unconditional),
        )
    inputs = ("labels", "condition")
    told = [name for name in inputs if getattr(denoiser, name, None) is not None]
    if not told:
        return denoiser
    return dataclasses.replace(denoiser, **dict.fromkeys(told))  # type: ignore[type-var]


def _told(denoiser: Denoiser, labels: Array) -> Denoiser:
    """Return a denoiser of the same kind with one-hot labels, (B, num_classes)."""
    return dataclasses.replace(denoiser, labels=labels)  # type: ignore[type-var]


def _check_class_guidance(path: str | Path, model: Model) -> None:
    """Refuse, or warn of, guidance away from the same network without classes."""
    if model.num_classes == 0:
        raise InputError(
            f"{path} is told no classes, so without a guide there is nothing to guide "
            "away from; name a weaker run with --guide WORKDIR or leave out --guidance"
        )
    record = read_record(path)
    if record is not None and not getattr(record.config.network, "label_dropout", 0):
        warnings.warn(
            f"{path} was trained with network.label_dropout 0 and has never been "
            "without classes; guidance away from that may make images worse",
            InputWarning,
            stacklevel=3,
        )


def _check_guide(path: str, guide: Model, model: Model) -> None:
    if guide.event_shape != model.event_shape:
        raise InputError(
            f"the guide {path} makes samples of shape {guide.event_shape}, the model "
            f"of shape {model.event_shape}; they must agree"
        )
    if guide.num_classes not in (0, model.num_classes):
        raise InputError(
            f"the guide {path} is told {guide.num_classes} classes, the model "
            f"{model.num_classes}; the guide must be told as many, or none"
        )


def _conditioned(
    denoiser: NeuralDenoiser | VPNoiseDenoiser,
    record: Record,
    condition: Sequence[float],
) -> NeuralDenoiser:
    """Return the denoiser of transformed images."""
    size = getattr(record.config.network, "augment_dim", 0)
    if not isinstance(denoiser, NeuralDenoiser) or size == 0:
        raise InputError(
            "this network has no input for an augmentation condition; leave out "
            "--condition"
        )
    if len(condition) != size or not np.isfinite(condition).all():
        raise InputError(
            f"--condition has {len(condition)} numbers; this network takes {size} "
            "finite ones"
        )
    told = record.config.augmentation
    if told.mode != "none" and not told.condition:
        raise InputError(
            "this network was trained without being told the augmentation; leave out "
            "--condition"
        )
    values = jnp.asarray(condition, jnp.float32)
    return dataclasses.replace(denoiser, condition=values)


def _sigma_range(denoiser: NeuralDenoiser | VPNoiseDenoiser) -> tuple[float, float]:
    if isinstance(denoiser, NeuralDenoiser):
        rule = denoiser.preconditioning
        return rule.sigma_min, rule.sigma_max
    sigmas = np.asarray(getattr(denoiser.schedule, "sigmas", [0.0, math.inf]))
    return float(sigmas[0]), float(sigmas[-1])
