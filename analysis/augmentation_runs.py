"""The runs of an augmentation study, and what is measured of each.

Losses of training and held-out images at fixed noise levels over all checkpoints, on
images that are not augmented; and of samples drawn from them: memorised ones, copies,
and ones that look transformed.  A run's numbers are kept in ``measures.json`` beside
its checkpoints, so that a study goes on where it stopped.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.augmentation_arms import Arm, experiment_of
from analysis.learning_dynamics import equivariance_error, losses_over_training
from analysis.memorization import (
    Share,
    background_leak_rate,
    leak_rate,
    memorization,
    share_interval,
)
from configs.augmentation_schema import AugmentationConfig
from configs.errors import InputError, InputWarning
from configs.schema import ExperimentConfig
from diffusion.atomic import write_atomically
from diffusion.augmentation import Transform, build_augmentation, build_transform
from diffusion.augmentation.combinations import OneOfParams
from diffusion.data import Split, split_of, to_data_units
from diffusion.training import load_denoiser, train
from diffusion.training.building import build_problem
from diffusion.training.loading import checkpoint_steps
from diffusion.training.record import read_record
from samplers.heun import Heun
from samplers.sampling import sample_blocks
from samplers.schedules import karras

__all__ = [
    "CLEAR_MARGIN",
    "EQUIVARIANCE_SIGMAS",
    "SIGMAS",
    "Settings",
    "measure_run",
    "run_study",
]

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Noise levels of the losses, as in the pilot of the study; data units."""

CLEAR_MARGIN = 0.1
"""A sample leaks clearly when it is nearer to a transformed image by this share of the
distance; blurred samples are often nearer by less."""

_COPIES = 6  # draws of a transform per held-out image, for the detector of leaks
_MOST_REFERENCES, _MOST_LOSSES = 1024, 2048
_EQUIVARIANCE_IMAGES = 256

EQUIVARIANCE_SIGMAS = (0.2, 0.8, 3.0)
"""Noise levels of the equivariance errors, data units."""


class Settings(NamedTuple):
    """How a run is measured.

    Attributes:
        transforms: Names of the transforms that samples are searched for.
        num_samples: Samples drawn of each sampled checkpoint.
        sampled_checkpoints: How many checkpoints are sampled: the last one, and others
            spread evenly over training.
        num_points: Points of the sampler's grid (Heun, EDM's grid).
        background: Whether the images' background is -1, so that samples with another
            one tell that a gain leaked.
    """

    transforms: tuple[str, ...]
    num_samples: int = 1000
    sampled_checkpoints: int = 1
    num_points: int = 18
    background: bool = False

    @classmethod
    def of_arms(cls, arms: Sequence[Arm], **settings: Any) -> "Settings":
        """Return settings that search samples for all that some arm was trained with.

        EDM's pipe is left out: it mirrors half of the images, so that what is not
        mirrored cannot be told from what is.
        """
        names = [
            name
            for arm in arms
            if arm.augmentation.mode != "none"
            for name in arm.augmentation.expanded
            if not name.startswith(("edm-nla", "identity"))
        ]
        return cls(tuple(dict.fromkeys(names)), **settings)


def run_study(
    arms: Sequence[Arm],
    base: ExperimentConfig,
    seeds: Sequence[int],
    workdir: str | Path,
    settings: Settings,
) -> dict[str, list[dict[str, Any]]]:
    """Train and measure every arm with every seed, or go on where that stopped.

    Args:
        arms: How to augment.
        base: Everything else.
        seeds: Of the runs.
        workdir: Run ARM with seed S is in ``workdir/ARM-seedS``.
        settings: How the runs are measured.

    Returns:
        By arm, the measures of each seed; see `measure_run`.

    Raises:
        InputError: If nothing is held out, or an arm cannot be trained.
        OSError: If something cannot be written.
    """
    split = split_of(base.data)
    if len(split.held_out.images) < 4:
        raise InputError(
            f"{len(split.held_out.images)} images are held out; a study needs at least "
            "4: raise --data.held-out-fraction, or prepare a set with more"
        )
    shape = split.training.images.shape[1:]
    # Every arm is checked before the first is trained.
    experiments = {
        (arm.name, seed): experiment_of(arm, base, shape, seed)
        for seed in seeds
        for arm in arms
    }
    for experiment in experiments.values():
        build_problem(experiment, shape)
    _warn_of_mirroring(experiments)
    found: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for number, ((name, seed), experiment) in enumerate(experiments.items(), start=1):
        print(f"run {number} of {len(experiments)}: {name}, seed {seed}", flush=True)
        run = Path(workdir) / f"{name.replace(':', '_')}-seed{seed}"
        train(experiment, run)
        measured = measure_run(run, split, settings, experiment.augmentation)
        found[name].append(measured)
    return found


def _warn_of_mirroring(
    experiments: Mapping[tuple[str, int], ExperimentConfig],
) -> None:
    """Say so where some arms mirror images left to right and others do not."""
    by_kind: dict[bool, list[str]] = {True: [], False: []}
    for (name, _), one in experiments.items():
        mirrors = one.data.horizontal_flip or one.augmentation.mirrors_sideways
        by_kind[mirrors].append(name)
    if by_kind[True] and by_kind[False]:
        mirrored, plain = (", ".join(dict.fromkeys(v)) for v in by_kind.values())
        warnings.warn(
            f"{mirrored} mirror images left to right and {plain} do not; "
            "--data.horizontal-flip True mirrors half of them in every arm",
            InputWarning,
            stacklevel=3,
        )


def measure_run(
    workdir: str | Path,
    split: Split,
    settings: Settings,
    augmentation: AugmentationConfig,
) -> dict[str, Any]:
    """Measure a finished run, or read what was measured before.

    Args:
        workdir: The run.
        split: Its images.
        settings: How it is measured.
        augmentation: That of its training.

    Returns:
        Plain numbers: ``steps``, ``sigmas``, ``training`` and ``held_out`` (S, L)
        losses, ``samples`` (a list, one entry per sampled checkpoint) and
        ``equivariance``, errors by transform where the network was told omega.

    Raises:
        InputError: If there is no run, or a transform is unknown.
        OSError: If the numbers cannot be written.
    """
    path = Path(workdir) / "measures.json"
    steps = _regular_steps(workdir)
    asked = json.loads(json.dumps({**settings._asdict(), "steps": steps}))
    if path.is_file():
        found = json.loads(path.read_text())
        if found["settings"] == asked:
            return found
    # At most as many training images, which need no longer than the held-out ones.
    held_out = split.held_out.images[:_MOST_LOSSES]
    curves = losses_over_training(
        workdir,
        {"training": split.training.images[: len(held_out)], "held_out": held_out},
        np.asarray(SIGMAS),
        jax.random.key(0),
        steps=steps,
        batch_size=_block_size(len(held_out)),
    )
    values = {
        "settings": asked,
        "steps": curves.steps.tolist(),
        "sigmas": list(SIGMAS),
        "training": curves.loss["training"].tolist(),
        "held_out": curves.loss["held_out"].tolist(),
        "samples": [
            _measure_samples(workdir, int(step), split, settings)
            for step in _spread(curves.steps, settings.sampled_checkpoints)
        ],
        "equivariance": _equivariance(workdir, split, augmentation),
    }
    text = json.dumps(values, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))
    return values


def _regular_steps(workdir: str | Path) -> list[int]:
    """Return the steps after 0 at which every run of a study has a checkpoint.

    Raises:
        InputError: If the run has not come to its end.
    """
    record = read_record(workdir)
    assert record is not None, "it was trained before"
    training, found = record.config.training, checkpoint_steps(workdir)
    if training.num_steps not in found:
        raise InputError(
            f"{workdir} stopped at step {max(found)} of {training.num_steps}; run the "
            "same command to continue"
        )
    every = training.checkpoint_every_steps
    return [s for s in found if s and (s % every == 0 or s == training.num_steps)]


def _block_size(count: int) -> int:
    """Return how many of `count` to handle at once: at most 256, little padding."""
    return -(-count // -(-count // 256))


def _spread(steps: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the last of the steps, and others that divide them evenly."""
    places = np.ceil(np.arange(1, count + 1) * len(steps) / count).astype(int) - 1
    return np.unique(steps[np.clip(places, 0, None)])


def _measure_samples(
    workdir: str | Path, step: int, split: Split, settings: Settings
) -> dict[str, Any]:
    samples = _samples(load_denoiser(workdir, step=step), split, settings)
    finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
    kept = samples[finite]
    values: dict[str, Any] = {"step": step, "not_finite": int((~finite).sum())}
    training, held_out = split.training.images, split.held_out.images
    copied = memorization(kept, training, held_out)
    values["memorised"] = _share(copied.memorised)
    values["memorised_held_out"] = _share(copied.memorised_held_out)
    values["copy_rate"] = _share(copied.copy_rate)
    values["copy_rate_expected"] = list(copied.copy_rate_expected)
    half = min(len(held_out) // 2, _MOST_REFERENCES)
    references, control = held_out[:half], held_out[half : 2 * half]
    values["leaks"] = {}
    for name in settings.transforms:
        moved = _transformed(build_transform(name), references)
        leak = leak_rate(kept, references, moved, control=control)
        assert leak.control is not None, "a control was given"
        clear = int((leak.margin > CLEAR_MARGIN).sum())
        values["leaks"][name] = {
            "share": _share(leak.share),
            "control": _share(leak.control),
            "clear": _share(share_interval(clear, len(kept))),
        }
    if settings.background:
        values["background"] = _share(background_leak_rate(kept))
    return values


def _samples(denoiser: Any, split: Split, settings: Settings) -> NDArray[np.float32]:
    shape = (settings.num_samples, *split.training.images.shape[1:])
    blocks = sample_blocks(
        denoiser,
        jax.random.key(0),
        shape,
        karras(settings.num_points),
        solver=Heun(),
        block_size=_block_size(settings.num_samples),
    )
    return np.concatenate(list(blocks))


def _transformed(transform: Transform, images: NDArray[Any]) -> NDArray[np.float32]:
    """Return (R, m, *event): each image under R draws that are not the identity."""
    clean = to_data_units(images)

    @jax.jit
    def one(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = transform.sample(key, image.shape)
        return transform.apply(params, image), (transform.encode(params) != 0).any()

    copies = []
    for number in range(_COPIES):
        keys = jax.random.split(jax.random.key(number), len(images))
        moved, active = jax.vmap(one)(keys, clean)
        # A draw of the identity is replaced by that of another key.
        attempt = 1
        while not bool(active.all()):
            again = jax.vmap(lambda k, a=attempt: jax.random.fold_in(k, a))(keys)
            other, other_active = jax.vmap(one)(again, clean)
            chosen = active.reshape(-1, *[1] * (clean.ndim - 1))
            moved = jnp.where(chosen, moved, other)
            active, attempt = active | other_active, attempt + 1
        copies.append(np.asarray(moved))
    return np.stack(copies)


class _Told(NamedTuple):
    """One of the transforms that a network was told of, with its whole condition."""

    transform: Transform
    before: int

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        return self.transform.apply(params, x)

    def encode(self, params: Any) -> jax.Array:
        return jnp.pad(self.transform.encode(params), (self.before, 0))


def _equivariance(
    workdir: str | Path, split: Split, augmentation: AugmentationConfig
) -> dict[str, list[float]]:
    """Return |D(T x; omega) - T D(x; 0)| / |T D(x; 0)| by transform and sigma."""
    built = build_augmentation(augmentation)
    if built is None or not built.condition:
        return {}
    denoiser = load_denoiser(workdir)
    images = split.held_out.images[:_EQUIVARIANCE_IMAGES]
    shape, keys = images.shape[1:], jax.random.split(jax.random.key(1), len(images))
    transform = built.transform
    params = jax.vmap(lambda key: transform.sample(key, shape))(keys)
    size = jax.eval_shape(jax.vmap(transform.encode), params).shape[1]
    told = _Told(transform, built.condition_size(shape) - size)
    errors, sigmas = {}, np.asarray(EQUIVARIANCE_SIGMAS)
    for number, name in enumerate(augmentation.expanded):
        chosen = params
        if isinstance(params, OneOfParams):
            chosen = params._replace(index=jnp.full_like(params.index, number))
        found = equivariance_error(
            denoiser, told, chosen, images, sigmas, jax.random.key(2)
        )
        errors[name] = found.error.tolist()
    return errors


def _share(share: Share) -> list[float]:
    return [share.value, share.low, share.high]
