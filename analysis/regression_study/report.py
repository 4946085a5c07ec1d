"""The study as a page with tables and figures, and as a record for programs.

Every part is kept once it is made; ``record.json`` is written last, and a folder that
holds it, for the same data and settings, is complete.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from analysis.regression_study.data import StudyData, load_data
from analysis.regression_study.eigenvalues import spectrum_part
from analysis.regression_study.error_terms import decomposition_part
from analysis.regression_study.homogeneity import homogeneity_part
from analysis.regression_study.learning_curve import sizes_part, sizes_units
from analysis.regression_study.outcome import Advance, PartMaker
from analysis.regression_study.problem import Study
from analysis.regression_study.sample_quality import samples_part, samples_units
from analysis.regression_study.score_fields import fields_part
from analysis.regression_study.settings import PARTS, StudySettings
from analysis.regression_study.stopping import stopping_part, stopping_units
from analysis.regression_study.wide_networks import coupling_part, coupling_units
from analysis.report import Report
from analysis.section import Section, kept_section
from configs.errors import InputError
from diffusion.atomic import write_json
from diffusion.progress import Progress
from diffusion.training.loading import checkpoint_steps
from diffusion.training.locking import lock_workdir
from diffusion.versions import versions

__all__ = ["write_study"]


def _one(_: Study) -> int:
    return 1


class _Part(NamedTuple):
    make: PartMaker
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


class _Made(NamedTuple):
    section: Section
    figures: Mapping[str, Any]
    seconds: float


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
    folder = Path(settings.output or f"runs/kernel-study-{_slug(name)}")
    page, record = folder / "study.html", folder / "record.json"
    with lock_workdir(folder):
        about = _about(study)
        if (
            page.is_file()
            and _read(record).get("about") == about
            and all(_kept_part(study, name, folder) is not None for name in chosen)
        ):
            print(f"done already: {page}. To start afresh delete {folder}.", flush=True)
            return
        record.unlink(missing_ok=True)
        made = _make_parts(study, chosen, folder)
        sections = {name: one.section for name, one in made.items()}
        if settings.network is not None:
            sections["network"] = _network(settings, folder)
        _write_page(page, study, about, sections)
        _write_record(record, study, about, made)
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


def _make_parts(study: Study, chosen: list[str], folder: Path) -> dict[str, _Made]:
    progress = Progress(
        sum(_PARTS[name].units(study) for name in chosen), label="study", unit="step"
    )
    made = {}
    with jax.enable_x64(True):
        for name in chosen:
            before = progress.done
            made[name] = _make_part(
                study, name, folder, lambda note: progress.advance(note=note)
            )
            left = _PARTS[name].units(study) - (progress.done - before)
            if left:
                progress.advance(left, note=f"{name}: kept")
    progress.close()
    return made


def _make_part(study: Study, name: str, folder: Path, advance: Advance) -> _Made:
    """Return a part as an earlier call left it, or make it and keep it."""
    kept = _kept_part(study, name, folder)
    if kept is not None:
        return kept
    study.eta  # noqa: B018, refuses a step size before anything is trained
    started = time.perf_counter()
    section, figures = _PARTS[name].make(study, folder, advance)
    seconds = time.perf_counter() - started
    about, (path, beside) = _part_about(study, name), _part_paths(name, folder)
    write_json(beside, {"about": about, "figures": figures, "seconds": seconds})
    section.keep(path, about)
    return _Made(section, figures, seconds)


def _kept_part(study: Study, name: str, folder: Path) -> _Made | None:
    """Return a part of an earlier call, if it was made from the same and is whole."""
    about, (path, beside) = _part_about(study, name), _part_paths(name, folder)
    section, found = kept_section(path, folder, about), _read(beside)
    if section is None or found.get("about") != _plain(about):
        return None
    return _Made(section, found["figures"], float(found["seconds"]))


def _part_about(study: Study, name: str) -> dict[str, Any]:
    wanted = (*_COMMON, *_PARTS[name].settings)
    values = dataclasses.asdict(study.settings)
    return {**_source(study.data), "part": name, **{k: values[k] for k in wanted}}


def _part_paths(name: str, folder: Path) -> tuple[Path, Path]:
    """Return where the section is kept, and where its figures for the record."""
    partial = folder / "partial"
    return partial / f"section_{name}.json", partial / f"figures_{name}.json"


def _network(settings: StudySettings, folder: Path) -> Section:
    """Return the section on a trained network's own kernel."""
    # Imported here: only this part needs networks.
    from analysis.regression_study.network_ntk import network_section

    assert settings.network is not None, "it was asked for"
    about = {
        "part": "network",
        "network": settings.network,
        "steps": checkpoint_steps(settings.network),
        "seed": settings.seed,
        "versions": versions(),
    }
    path = folder / "partial" / "section_network.json"
    section = kept_section(path, folder, about)
    if section is None:
        section = network_section(settings.network, settings, folder)
        section.keep(path, about)
    return section


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
    return _plain({**_source(study.data), "settings": settings, "network_steps": steps})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from JSON."""
    return json.loads(json.dumps(values))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _slug(name: str) -> str:
    """Return what a folder is called after a data set or a file."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-") or "data"


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


def _write_record(
    path: Path, study: Study, about: Mapping[str, Any], made: Mapping[str, _Made]
) -> None:
    values = {
        "about": about,
        "backend": jax.default_backend(),
        "seconds": {name: one.seconds for name, one in made.items()},
        "figures": {name: one.figures for name, one in made.items()},
    }
    write_json(path, values)
