"""Tuning of a run; what is found is written to its workdir.

``.tuned-6.partial.json`` keeps the finished rows of the search and the finished
verifications; the same call goes on from it and ends with the same ``tuned-6.json``.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from configs.errors import InputError
from configs.sampler_schema import SamplerConfig
from configs.solver_table import SOLVERS
from diffusion.atomic import write_json
from diffusion.closed_form import (
    GaussianDenoiser,
    MixtureDenoiser,
    load_closed_form,
    load_gaussian,
)
from diffusion.progress import Progress
from diffusion.training.record import read_record
from samplers.model import Model, load_model
from samplers.statistics_run import read_training_images
from samplers.surrogate import Surrogate, fit_surrogate, surrogate_of_mixture
from samplers.tuned_files import (
    PartialTuning,
    finite,
    load_tuned,
    open_partial_tuning,
    print_table,
    read_finished,
    result_of,
    tuned_path,
)
from samplers.tuning import (
    Reference,
    SearchSpace,
    Trial,
    calls_of_verification,
    describe,
    fine_solution,
    list_candidates,
    plain_samplers,
    predict_errors,
    prepare_search,
    shortlist,
    verify,
)

__all__ = ["Sizes", "tune"]

_GAINS = "gains.npz"
_GAUSSIAN = "gaussian.npz"


class Sizes(NamedTuple):
    """How large surrogate and search are.

    Attributes:
        dimension: Principal directions of the surrogate.
        num_components: Its Gaussians.
        rank: Principal directions of each.
        samples: That predicted errors are measured on.
        gain_images: Images per noise level that its gains are measured on.
        shortlist: Samplers that are verified.
        per_form: At most so many of one solver among them.
    """

    dimension: int = 256
    num_components: int = 10
    rank: int = 32
    samples: int = 64
    gain_images: int = 512
    shortlist: int = 10
    per_form: int = 3


def tune(
    workdir: str | Path,
    calls: int,
    *,
    num_verified: int = 8,
    surrogate: str | Path | None = None,
    seed: int = 0,
    step: int | None = None,
    space: SearchSpace = SearchSpace(),  # noqa: B008, a frozen value
    sizes: Sizes = Sizes(),  # noqa: B008, a frozen value
) -> SamplerConfig:
    """Choose a sampler for a run, write it to the workdir and print a table.

    Args:
        workdir: A run of `diffusion.training.train`.
        calls: Network calls per image.
        num_verified: Images on which the best are tried with the network; 0 for none.
        surrogate: File of a mixture to search on; None fits one to the training images.
        seed: Seed of everything that is drawn.
        step: Checkpoint to use; None for the newest intact one.
        space: What is searched.
        sizes: How large surrogate and search are.

    Returns:
        The choice: least verified error, or least predicted where nothing is verified.

    Raises:
        InputError: If there is no run, a file does not fit it, or no solver takes so
            few calls.
        OSError: If something cannot be written.
    """
    workdir = Path(workdir)
    if calls < 2:
        raise InputError(
            f"calls is {calls}, but every solver takes at least 2, one step and the "
            "last move; give --calls 2 or more"
        )
    model = _load(workdir, step)
    candidates = _candidates(calls, space, model)
    settings = _settings(workdir, model, calls, num_verified, surrogate, seed)
    settings |= {"space": _plain(space), "sizes": _plain(sizes)}
    out = tuned_path(workdir, calls)
    done = read_finished(out, settings)
    if done is not None:
        print(f"tuned already: {out}. To start afresh delete it.")
        print_table(done)
        return load_tuned(workdir, calls, model=model)
    partial = open_partial_tuning(out, settings)
    stand_in = _surrogate(workdir, model, surrogate, seed, sizes)
    trials = _search(partial, stand_in, candidates, model, calls, seed, sizes)
    rows = trials.best + trials.plain
    if num_verified:
        rows = _verify_all(partial, rows, model, num_verified, seed)
    result = result_of(rows, len(trials.best), settings, stand_in.description)
    write_json(out, result)
    partial.path.unlink(missing_ok=True)
    print_table(result)
    print(f"{out}")
    return load_tuned(workdir, calls, model=model)


def _load(workdir: Path, step: int | None) -> Model:
    """Return the model of a run, with its Gaussian read once and for all."""
    if workdir.is_file() or read_record(workdir) is None:
        raise InputError(
            f"{workdir} is no run; tuning needs the workdir of diffusion.train"
        )
    model = load_model(workdir, step=step)
    gaussian = load_gaussian(
        workdir / _GAUSSIAN,
        event_shape=model.event_shape,
        data_digest=model.data_digest,
    )
    # Statistics of the network have no counterpart on the surrogate; those of its
    # Gaussian have.
    return model._replace(gaussian=gaussian, statistics=None)


def _candidates(
    calls: int, space: SearchSpace, model: Model
) -> dict[str, list[SamplerConfig]]:
    """Return the samplers to search by solver; refuses what the network refuses."""
    found = {form: list_candidates(form, calls, space, model) for form in space.forms}
    found = {form: configs for form, configs in found.items() if configs}
    if not found:
        raise InputError(
            f"none of {', '.join(space.forms)} takes {calls} calls or fewer"
        )
    return found


def _settings(
    workdir: Path,
    model: Model,
    calls: int,
    num_verified: int,
    surrogate: str | Path | None,
    seed: int,
) -> dict[str, Any]:
    """Return what decides on the result, ready for JSON."""
    gains = model.gains if isinstance(model.gains, Path) else None
    return {
        "calls": calls,
        "verify": num_verified,
        "seed": seed,
        "surrogate": _file_digest(surrogate),
        "gaussian": _file_digest(workdir / _GAUSSIAN),
        "gains": _file_digest(gains),
        "model_sha256": model.digest,
        "data_digest": model.data_digest,
    }


def _surrogate(
    workdir: Path,
    model: Model,
    path: str | Path | None,
    seed: int,
    sizes: Sizes,
) -> Surrogate:
    """Fit the surrogate to the run's training images, or read it from a file."""
    gaussian = model.gaussian
    assert isinstance(gaussian, GaussianDenoiser), "_load has read it"
    if path is not None:
        found = load_closed_form(path, event_shape=model.event_shape)
        if not isinstance(found.denoiser, MixtureDenoiser):
            raise InputError(
                f"{path} holds a model of kind {found.kind}, but a surrogate is a "
                "mixture; fit one with diffusion.fit_closed_form --kind mixture"
            )
        digest = found.provenance.data_digest
        if digest and model.data_digest and digest != model.data_digest:
            raise InputError(
                f"{path} was fitted to other images (sha256 {digest[:12]}...) than "
                f"{workdir} was trained on ({model.data_digest[:12]}...); fit one to "
                "those, or leave out --surrogate"
            )
        about = {"kind": "mixture of a file", "file": str(path)}
        return surrogate_of_mixture(found.denoiser, gaussian, about)
    images = read_training_images(workdir).training.images
    print(f"surrogate: a mixture of {len(images)} training images", flush=True)
    return fit_surrogate(
        images,
        gaussian,
        jax.random.key(seed),
        dimension=sizes.dimension,
        num_components=sizes.num_components,
        rank=sizes.rank,
    )


class _Found(NamedTuple):
    best: list[Trial]
    plain: list[Trial]


def _search(
    partial: PartialTuning,
    surrogate: Surrogate,
    candidates: dict[str, list[SamplerConfig]],
    model: Model,
    calls: int,
    seed: int,
    sizes: Sizes,
) -> _Found:
    """Predict the error of every candidate; keep the best, and the plain samplers."""
    search = prepare_search(
        surrogate,
        model.sigma_range,
        measure_gains=model.gains is not None,
        seed=seed,
        num_samples=sizes.samples,
        gain_images=sizes.gain_images,
    )
    plain = plain_samplers(calls, search.model)
    groups = {**candidates, **{f"plain {f}": [c] for f, c in plain.items()}}
    progress = Progress(
        len(groups), done=len(partial.predicted), label="search", unit="solver"
    )
    for name, configs in groups.items():
        if name not in partial.predicted:
            errors = predict_errors(search, configs)
            partial.predicted[name] = [finite(e) for e in errors.tolist()]
            partial.save()
            progress.advance(note=f"{name}, {len(configs)} starts and grids")
    progress.close()
    trials = {
        name: [
            Trial(name, config, math.inf if error is None else error)
            for config, error in zip(configs, partial.predicted[name], strict=True)
        ]
        for name, configs in groups.items()
    }
    best = shortlist(
        [trial for form in candidates for trial in trials[form]],
        count=sizes.shortlist,
        per_form=sizes.per_form,
    )
    if not best:
        raise InputError("no sampler is finite on the surrogate; give more --calls")
    best = [t._replace(config=_for_network(t.config, model)) for t in best]
    return _Found(best, [trials[f"plain {form}"][0] for form in plain])


def _for_network(config: SamplerConfig, model: Model) -> SamplerConfig:
    """Name the files that a sampler was searched with: more may be measured later."""
    if config.solver == "residual_exponential" and model.gains is not None:
        return dataclasses.replace(config, statistics=_GAINS)
    if "statistics" in SOLVERS[config.solver].options:
        return dataclasses.replace(config, gaussian=_GAUSSIAN)
    return config


def _verify_all(
    partial: PartialTuning, trials: Sequence[Trial], model: Model, count: int, seed: int
) -> list[Trial]:
    """Try samplers on the network; what is done already is not done again."""
    fine, all_of_them = calls_of_verification([t.config for t in trials], count)
    print(
        f"verification: {count} images, {fine} network calls for their fine solutions "
        f"and {all_of_them} for {len(trials)} samplers",
        flush=True,
    )
    reference: Reference | None = None
    progress = Progress(
        len(trials), done=len(partial.verified), label="verification", unit="sampler"
    )
    for trial in trials:
        name = describe(trial.config)
        if name not in partial.verified:
            if reference is None:
                reference = fine_solution(model, jax.random.key(seed), count)
            # The model holds its Gaussian and gains: no file need be read again.
            config = dataclasses.replace(trial.config, gaussian=None, statistics=None)
            partial.verified[name] = finite(verify(model, config, reference))
            partial.save()
            progress.advance(note=name)
    progress.close()
    verified = [partial.verified[describe(t.config)] for t in trials]
    return [
        t._replace(verified=math.inf if error is None else error)
        for t, error in zip(trials, verified, strict=True)
    ]


def _plain(value: Any) -> dict[str, Any]:
    return json.loads(json.dumps(value._asdict()))


def _file_digest(path: str | Path | None) -> str:
    if path is None:
        return ""
    if not Path(path).is_file():
        raise InputError(
            f"there is no file {path}; python -m diffusion.fit_closed_form writes one"
        )
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
