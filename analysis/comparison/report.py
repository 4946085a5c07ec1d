"""A network against closed forms: tables, figures and page in ``WORKDIR/comparison``.

``comparison.json`` is written last: a folder that holds it, for the same checkpoint,
images and settings, is complete.
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
from analysis.section import Section
from diffusion.atomic import write_json
from diffusion.training.loading import checkpoint_steps
from diffusion.training.locking import lock_workdir
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
        if page.is_file() and _read(folder / "comparison.json") == about:
            print(f"done already: {page}. To start afresh delete {folder}.", flush=True)
            return
        (folder / "comparison.json").unlink(missing_ok=True)
        sections = []
        if settings.wants("scores"):
            study = measure_scores(run, settings, folder / "partial")
            sections += score_sections(study, folder)
        sections += study_sections(run, settings, folder)
        _write_page(page, run, settings, sections)
        write_json(folder / "comparison.json", about)
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


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write_page(
    page: Path,
    run: ComparedRun,
    settings: ComparisonSettings,
    sections: Sequence[Section],
) -> None:
    report = Report(f"The network of {run.workdir} against closed forms")
    step = "newest checkpoint" if settings.step is None else f"step {settings.step}"
    split = run.split
    report.paragraph(
        f"{step.capitalize()}; {len(split.training.images)} training and "
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
