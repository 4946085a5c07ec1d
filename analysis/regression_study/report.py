"""The study as a page with tables and figures, and as a record for programs.

Every part is kept once it is made; ``record.json`` is written last, and a folder that
holds it, for the same data and settings, is complete.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from analysis.regression_study.data import StudyData, load_data
from analysis.regression_study.eigenvalues import spectrum_part
from analysis.regression_study.error_terms import decomposition_part
from analysis.regression_study.homogeneity import homogeneity_part
from analysis.regression_study.learning_curve import sizes_part, sizes_units
from analysis.regression_study.problem import Study
from analysis.regression_study.sample_quality import samples_part, samples_units
from analysis.regression_study.score_fields import fields_part
from analysis.regression_study.settings import PARTS, StudySettings
from analysis.regression_study.stopping import stopping_part, stopping_units
from analysis.regression_study.wide_networks import coupling_part, coupling_units
from analysis.report import Report
from analysis.section import Section
from analysis.study_parts import (
    Advance,
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


def _one(_: Study) -> int:
    return 1


class _Part(NamedTuple):
    # Called under jax.enable_x64(True); tables and figures go into the folder.
    make: Callable[[Study, Path, Advance], Outcome]
    units: Callable[[Study], int]
    settings: tuple[str, ...]


_COMMON = (
    *("target", "num_points", "draws", "test_points", "method", "largest_exact"),
    *("landmarks", "t_range", "bias", "scale", "seed"),
)
_PARTS: dict[str, _Part] = {
    "coupling": _Part(
        coupling_part,
        coupling_units,
        ("coupling_points", "widths", "width_seeds", "steps", "eta"),
    ),
    "stopping": _Part(
        stopping_part, stopping_units, ("stop_seeds", "widths", "steps", "eta")
    ),
    "decomposition": _Part(decomposition_part, _one, ("widths", "eta")),
    "spectrum": _Part(spectrum_part, _one, ()),
    "fields": _Part(fields_part, _one, ()),
    "samples": _Part(samples_part, samples_units, ("num_samples", "sampler_points")),
    "sizes": _Part(sizes_part, sizes_units, ("sizes", "size_seeds", "size_draws")),
    "homogeneity": _Part(homogeneity_part, _one, ()),
}
# Where things are and which parts are wanted changes no part.
_FREE_SETTINGS = ("output", "data", "data_dir")
_NETWORK = "network"


def write_study(name: str, settings: StudySettings) -> None:
    """Write ``study.html``, tables, figures and ``record.json``, unless they are there.

    An interrupted call is taken up again by the next.

    Args:
        name: See `analysis.regression_study.data.load_data`.
        settings: What to do.

    Raises:
        InputError: If there are no such data or a setting does not fit them, or another
            process writes the same study.
        OSError: If something cannot be written.
    """
    study = Study(load_data(name, settings), settings)
    study.check_sizes()
    chosen = _chosen(study)
    folder = Path(settings.output or f"runs/kernel-study-{folder_name(name)}")
    page = folder / "study.html"
    with lock_workdir(folder):
        about = _about(study)
        network = settings.network
        if (
            is_complete(folder, about)
            and all(_kept(study, part, folder) for part in chosen)
            and (network is None or _kept_network(settings, folder))
        ):
            print(f"done already: {page}. To start afresh delete {folder}.", flush=True)
            return
        (folder / "record.json").unlink(missing_ok=True)
        made = _make_parts(study, chosen, folder)
        if network is not None:
            made[_NETWORK] = _network(settings, folder)
        sections = {name: one.section for name, one in made.items()}
        _write_page(page, study, about, sections)
        write_record(folder, about, made)
    print(f"study: {page}", flush=True)


def _chosen(study: Study) -> list[str]:
    """Return the parts that are wanted and apply.

    Raises:
        InputError: If a part was asked for that does not apply.
    """
    data, settings = study.data, study.settings
    reasons = {}
    if data.truth is None:
        reasons["decomposition"] = "a known truth, as mixture2d has"
    if data.labels is not None:
        for name in ("fields", "samples"):
            reasons[name] = "a score; leave out --target labels"
    for part in settings.parts or ():
        if part in reasons:
            raise InputError(f"the part {part} needs {reasons[part]}")
    return [name for name in PARTS if settings.wants(name) and name not in reasons]


def _make_parts(study: Study, chosen: list[str], folder: Path) -> dict[str, MadePart]:
    progress = Progress(
        sum(_PARTS[name].units(study) for name in chosen), label="study", unit="step"
    )
    made = {}
    with jax.enable_x64(True):
        for name in chosen:
            before = progress.done
            made[name] = _make(
                study, name, folder, lambda note: progress.advance(note=note)
            )
            left = _PARTS[name].units(study) - (progress.done - before)
            if left:
                progress.advance(left, note=f"{name}: kept")
    progress.close()
    return made


def _make(study: Study, name: str, folder: Path, advance: Advance) -> MadePart:
    """Return a part as an earlier call left it, or make it and keep it."""
    kept = _kept(study, name, folder)
    if kept is not None:
        return kept
    study.eta  # noqa: B018, refuses a step size before anything is trained
    about = _part_about(study, name)
    return make_part(
        folder, name, about, lambda: _PARTS[name].make(study, folder, advance)
    )


def _kept(study: Study, name: str, folder: Path) -> MadePart | None:
    return kept_part(folder, name, _part_about(study, name))


def _part_about(study: Study, name: str) -> dict[str, Any]:
    wanted = (*_COMMON, *_PARTS[name].settings)
    values = dataclasses.asdict(study.settings)
    return {**_source(study.data), "part": name, **{k: values[k] for k in wanted}}


def _network(settings: StudySettings, folder: Path) -> MadePart:
    """Return the part on a trained network's own kernel, kept or made."""
    # Imported here: only this part needs networks.
    from analysis.regression_study.network_ntk import network_part

    network = settings.network
    assert network is not None, "it was asked for"
    return _kept_network(settings, folder) or make_part(
        folder,
        _NETWORK,
        _network_about(settings),
        lambda: network_part(network, settings, folder),
    )


def _kept_network(settings: StudySettings, folder: Path) -> MadePart | None:
    return kept_part(folder, _NETWORK, _network_about(settings))


def _network_about(settings: StudySettings) -> dict[str, Any]:
    assert settings.network is not None, "it was asked for"
    return {
        "part": _NETWORK,
        "network": settings.network,
        "steps": checkpoint_steps(settings.network),
        "seed": settings.seed,
        "versions": versions(),
    }


def _source(data: StudyData) -> dict[str, Any]:
    return {"data": data.name, "digest": data.digest, "versions": versions()}


def _about(study: Study) -> dict[str, Any]:
    settings = {
        name: value
        for name, value in dataclasses.asdict(study.settings).items()
        if name not in _FREE_SETTINGS
    }
    network = study.settings.network
    steps = [] if network is None else checkpoint_steps(network)
    return {**_source(study.data), "settings": settings, "network_steps": steps}


def _write_page(
    page: Path, study: Study, about: Mapping[str, Any], sections: Mapping[str, Section]
) -> None:
    data, settings = study.data, study.settings
    report = Report(f"Score estimation as kernel regression: {data.name}")
    report.paragraph(f"{data.name}: {data.about}.")
    if data.labels is None:
        first, last = settings.t_range
        report.paragraph(
            "Denoising score matching regresses clean samples X_0 on noisy ones X_t "
            f"and t, uniform in [{first:g}, {last:g}]; X_t = alpha X_0 + sqrt(h) "
            "noise, alpha = exp(-t / 2), h = 1 - alpha^2. Inputs are (x, t, constant); "
            "the kernel is that of a wide two-layer ReLU network whose first layer is "
            "trained, u.v (pi - angle) / (2 pi)."
        )
    else:
        report.paragraph(
            "y is regressed on x and a constant by the kernel of a wide two-layer ReLU "
            "network whose first layer is trained, u.v (pi - angle) / (2 pi)."
        )
    for section in sections.values():
        section.add_to(report)
    report.heading("What produced this page")
    shown = {**about, "backend": jax.default_backend()}
    report.preformatted(json.dumps(shown, indent=2))
    report.write(page)
