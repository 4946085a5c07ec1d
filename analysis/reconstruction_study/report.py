"""The study as a page with tables and figures, and as a record for programs.

Every part is kept once it is made, and so is every auto-encoder; ``record.json`` is
written last, and a folder that holds it, for the same data and settings, is complete.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from analysis.reconstruction_study.angles import angles_part
from analysis.reconstruction_study.chains import samples_part
from analysis.reconstruction_study.data import StudyData, load_data
from analysis.reconstruction_study.energies import energies_part
from analysis.reconstruction_study.estimators import estimators_part
from analysis.reconstruction_study.fields import fields_part
from analysis.reconstruction_study.jacobians import jacobian_part
from analysis.reconstruction_study.limit import limit_part
from analysis.reconstruction_study.maxima import maxima_part
from analysis.reconstruction_study.problem import Study
from analysis.reconstruction_study.settings import PARTS, StudySettings
from analysis.report import Report
from analysis.study_parts import (
    MadePart,
    Outcome,
    folder_name,
    is_complete,
    kept_part,
    make_part,
    write_record,
)
from configs.errors import InputError
from diffusion.progress import Progress
from diffusion.training.loading import checkpoint_steps
from diffusion.training.locking import lock_workdir
from diffusion.versions import versions

__all__ = ["write_study"]


class _Part(NamedTuple):
    """How a part is made, and which settings it depends on beside the common ones."""

    make: Callable[[Study], Outcome]
    settings: tuple[str, ...]


_COMMON = ("num_points", "test_points", "hidden", "num_steps", "batch_size", "seed")
_TANH = ("tanh_width", "tanh_steps", "replicas")
_PARTS: dict[str, _Part] = {
    "fields": _Part(fields_part, ()),
    "angles": _Part(angles_part, _TANH),
    "limit": _Part(limit_part, ()),
    "jacobian": _Part(jacobian_part, _TANH),
    "energies": _Part(energies_part, ("rules", "pairs")),
    "samples": _Part(samples_part, ("rule", "chains", "moves", "start")),
    "maxima": _Part(maxima_part, ("mode_starts", "mode_steps", *_TANH)),
    "estimators": _Part(estimators_part, ("sigmas",)),
}


def write_study(name: str, settings: StudySettings) -> None:
    """Write ``study.html``, tables, figures and ``record.json``, unless they are there.

    An interrupted call is taken up again by the next.

    Args:
        name: See `analysis.reconstruction_study.data.load_data`.
        settings: What to do.

    Raises:
        InputError: If there are no such data or a setting does not fit them, or another
            process writes the same study.
        OSError: If something cannot be written.
    """
    folder = Path(settings.output or f"runs/autoencoder-study-{folder_name(name)}")
    study = Study(load_data(name, settings), settings, folder)
    study.check()
    chosen = _chosen(study)
    page = folder / "study.html"
    about = _about(study, chosen)
    with lock_workdir(folder):
        if is_complete(folder, about) and all(_kept(study, part) for part in chosen):
            print(f"done already: {page}. To start afresh delete {folder}.", flush=True)
            return
        (folder / "record.json").unlink(missing_ok=True)
        made = _make_parts(study, chosen)
        _write_page(page, study.data, about, made)
        write_record(folder, about, made)
    print(f"study: {page}", flush=True)


def _chosen(study: Study) -> list[str]:
    """Return the parts that are wanted and apply.

    Raises:
        InputError: If a part was asked for that does not apply.
    """
    reasons = {}
    if study.data.event != (2,):
        reasons["fields"] = "points of the plane, as those of spiral"
    if study.data.law is None:
        reasons["angles"] = "a known law, as spiral has"
        reasons["limit"] = "no data of its own; ask for it with spiral"
    for part in study.settings.parts or ():
        if part in reasons:
            raise InputError(f"the part {part} needs {reasons[part]}")
    return [p for p in PARTS if study.settings.wants(p) and p not in reasons]


def _make_parts(study: Study, chosen: list[str]) -> dict[str, MadePart]:
    progress = Progress(len(chosen), label="study", unit="part")
    made = {}
    for part in chosen:
        made[part] = _kept(study, part) or _make(study, part)
        progress.advance(note=part)
    progress.close()
    return made


def _make(study: Study, part: str) -> MadePart:
    return make_part(
        study.folder, part, _part_about(study, part), lambda: _PARTS[part].make(study)
    )


def _kept(study: Study, part: str) -> MadePart | None:
    return kept_part(study.folder, part, _part_about(study, part))


def _part_about(study: Study, part: str) -> dict[str, Any]:
    values = dataclasses.asdict(study.settings)
    wanted = (*_COMMON, *_PARTS[part].settings)
    return {**_source(study), "part": part, **{key: values[key] for key in wanted}}


def _source(study: Study) -> dict[str, Any]:
    network = study.settings.network or study.data.network
    return {
        "data": study.data.name,
        "digest": study.data.digest,
        "sigma": study.sigma,
        "network": network,
        "steps": None if network is None else checkpoint_steps(network),
        "versions": versions(),
    }


def _about(study: Study, chosen: list[str]) -> dict[str, Any]:
    settings = dataclasses.asdict(study.settings)
    # Where things are and which parts are wanted changes no part.
    for name in ("output", "parts"):
        del settings[name]
    return {**_source(study), "settings": settings, "parts": chosen}


def _write_page(
    page: Path, data: StudyData, about: Mapping[str, Any], made: Mapping[str, MadePart]
) -> None:
    report = Report(f"What auto-encoders learn: {data.name}")
    report.paragraph(f"{data.name}: {data.about}.")
    report.paragraph(
        "A denoising auto-encoder r, trained to return x_0 from x_0 + sigma n, learns "
        "the score of the noisy data, (r(x) - x) / sigma^2 (Alain & Bengio, arXiv "
        "1211.4246). This page looks at what trained ones have learned of it, and at "
        "what can be made of a score: differences of energy, and samples."
    )
    for one in made.values():
        one.section.add_to(report)
    report.heading("What produced this page")
    shown = {
        **about,
        "seconds": {part: round(one.seconds, 1) for part, one in made.items()},
        "backend": jax.default_backend(),
    }
    report.preformatted(json.dumps(shown, indent=2))
    report.write(page)
