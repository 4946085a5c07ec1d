"""A network against closed forms: tables, figures and page in ``WORKDIR/comparison``.

``comparison.json`` tells the files of the page with their digests, and, written last,
what they were made from: a folder in which both are as they should be is complete.
Files of an earlier page that this one does not name are deleted.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from analysis.comparison.run import (
    ComparedRun,
    measure_scores,
    open_compared_run,
)
from analysis.comparison.scores import score_sections
from analysis.comparison.settings import ComparisonSettings
from analysis.comparison.studies import study_sections
from analysis.report import Report
from analysis.section import Section, digest
from diffusion.atomic import read_json, write_json
from diffusion.training.loading import checkpoint_steps
from diffusion.training.locking import lock_workdir
from diffusion.training.record import read_record
from diffusion.versions import versions

__all__ = ["write_comparison"]

# How many samples are handled at once changes nothing but rounding.
_FREE_SETTINGS = ("batch_size",)


def write_comparison(workdir: str | Path, settings: ComparisonSettings) -> None:
    """Write ``comparison.html`` with its tables and figures, unless they are there.

    An interrupted call is taken up again by the next: fits, noise levels and sections
    that are done are kept.

    Args:
        workdir: A run of `diffusion.training.train`, or an imported checkpoint with
            its images.
        settings: What to compare.

    Raises:
        InputError: If there is no run or no such checkpoint, a setting does not fit
            it, or another process writes the same comparison.
        OSError: If something cannot be written.
    """
    checkpoint_steps(workdir)
    folder = Path(workdir) / "comparison"
    page = folder / "comparison.html"
    with lock_workdir(folder):
        run = open_compared_run(workdir, settings, folder)
        about = _about(run, settings)
        record = folder / "comparison.json"
        earlier = _read(record)
        files = earlier.get("files", {})
        if earlier == {**about, "files": files} and _are_as_kept(folder, files):
            print(f"done already: {page}. To start afresh delete {folder}.", flush=True)
            return
        known = {**files, **_section_files(folder)}
        write_json(record, {"files": known})  # without `about`: begun, not complete
        sections = []
        if settings.wants("scores"):
            study = measure_scores(run, settings, folder / "partial")
            sections += score_sections(study, folder)
            known |= _digests(sections)
            write_json(record, {"files": known})
        sections += study_sections(run, settings, folder)
        _write_page(page, run, settings, sections)
        files = {page.name: digest(page), **_digests(sections)}
        _delete_stale(folder, {n: d for n, d in known.items() if n not in files})
        write_json(record, {**about, "files": files})
    print(f"comparison: {page}", flush=True)


def _about(run: ComparedRun, settings: ComparisonSettings) -> dict[str, Any]:
    chosen = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in _FREE_SETTINGS
    }
    steps = checkpoint_steps(run.workdir) if settings.wants("training") else []
    values = {**run.about, "steps": steps, "settings": chosen, "versions": versions()}
    return json.loads(json.dumps(values))


def _read(path: Path) -> Mapping[str, Any]:
    """Return what a JSON file says; nothing if it is missing or damaged."""
    found = read_json(path)
    return found if isinstance(found.get("files", {}), dict) else {}


def _section_files(folder: Path) -> dict[str, str]:
    """Return the files of sections that earlier calls have kept, with digests."""
    found: dict[str, str] = {}
    for path in (folder / "partial").glob("section_*.json"):
        found |= _read(path).get("files", {})
    return found


def _digests(sections: Sequence[Section]) -> dict[str, str]:
    """Return the sha256 of all tables and figures, by their names in the folder."""
    return {n: d for section in sections for n, d in section.digests().items()}


def _is_as_kept(path: Path, expected: str) -> bool:
    return path.is_file() and digest(path) == expected


def _are_as_kept(folder: Path, files: Mapping[str, str]) -> bool:
    return all(_is_as_kept(folder / name, expected) for name, expected in files.items())


def _delete_stale(folder: Path, files: Mapping[str, str]) -> None:
    """Delete files of earlier calls, unless somebody has changed them since."""
    for name, expected in files.items():
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
        if inside and _is_as_kept(path, expected):
            path.unlink()


def _checkpoint(run: ComparedRun) -> str:
    """Say which checkpoint it is, and what it has seen."""
    record = read_record(run.workdir)
    if run.step == 0 or record is None:
        return f"Checkpoint of step {run.step}, before any training here"
    seen = run.step * record.config.training.batch_size
    return f"Checkpoint of step {run.step}, {seen} images seen"


def _write_page(
    page: Path,
    run: ComparedRun,
    settings: ComparisonSettings,
    sections: Sequence[Section],
) -> None:
    report = Report(f"The network of {run.workdir} against closed forms")
    split = run.split
    report.paragraph(
        f"{_checkpoint(run)}; {len(split.training.images)} training and "
        f"{len(split.held_out.images)} held-out images. Candidates: "
        f"{', '.join(run.candidates)}. Probes: training (noised training images), "
        "held-out (noised images that the network has not seen) and noise (sigma n "
        "alone). Noise levels are in data units; pixels lie in [-1, 1]."
    )
    left_out = sorted({*settings.sigmas} - {*run.sigmas.tolist()})
    if left_out:
        report.paragraph(
            f"The network does not know the noise levels {left_out}; they are left out."
        )
    for section in sections:
        section.add_to(report)
    report.heading("What produced this page")
    about = {**_about(run, settings), "backend": jax.default_backend()}
    report.preformatted(json.dumps(about, indent=2))
    report.write(page)
