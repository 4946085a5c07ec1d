"""Sections of a page, each kept on the disk so that it is made once.

A section is text, tables and figures in order.  Tables are CSV files and figures PNG
and SVG files beside the page; what a section says, and what it was made from, is a
JSON file.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.plots import save_figure_pair
from analysis.report import Report
from diffusion.atomic import write_atomically, write_json

__all__ = ["Section", "digest", "kept_section", "write_csv"]


class Section:
    """A section that grows from top to bottom.

    Args:
        title: Its heading.
        folder: The page's folder; figures go into ``figures``.
    """

    def __init__(self, title: str, folder: Path) -> None:
        """See the class."""
        self.title, self.folder = title, folder
        self.items: list[dict[str, Any]] = []

    def paragraph(self, text: str) -> None:
        """Add plain text."""
        self.items.append({"text": text})

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Write a figure and add it."""
        save_figure_pair(figure, self.folder / "figures" / name)
        self.items.append({"figure": name, "caption": caption})

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a table; the keys of the first row are its header."""
        if rows:
            cells = [[_short(value) for value in row.values()] for row in rows]
            self.items.append({"header": list(rows[0]), "rows": cells})

    def file(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a CSV file beside the page and name it."""
        write_csv(self.folder / name, rows)
        self.items.append({"text": f"All numbers: {name}", "file": name})

    def add_to(self, report: Report) -> None:
        """Add everything to a page.

        Raises:
            OSError: If a figure cannot be read.
        """
        report.heading(self.title)
        for item in self.items:
            if "text" in item:
                report.paragraph(item["text"])
            elif "figure" in item:
                path = self.folder / "figures" / f"{item['figure']}.png"
                report.figure(path.read_bytes(), item["caption"])
            else:
                report.table(item["header"], item["rows"])

    def keep(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write what the section says, and what it was made from, atomically."""
        values = {
            "about": about,
            "title": self.title,
            "items": self.items,
            "files": self.digests(),
        }
        write_json(path, values)

    def digests(self) -> dict[str, str]:
        """Return the sha256 of tables and figures, by their names in the folder.

        Raises:
            OSError: If one cannot be read.
        """
        files = self._files()
        return {
            path.relative_to(self.folder).as_posix(): digest(path) for path in files
        }

    def _files(self) -> list[Path]:
        """Return the tables and figures that the section consists of."""
        files = [self.folder / item["file"] for item in self.items if "file" in item]
        for item in self.items:
            if "figure" in item:
                stem = self.folder / "figures" / item["figure"]
                files += [Path(f"{stem}{suffix}") for suffix in (".png", ".svg")]
        return files


def kept_section(path: Path, folder: Path, about: Mapping[str, Any]) -> Section | None:
    """Return the section of an earlier call, if it was made from the same.

    Args:
        path: What `Section.keep` wrote.
        folder: The page's folder.
        about: What it must have been made from.
    """
    try:
        found = json.loads(path.read_text())
        section = Section(str(found["title"]), folder)
        section.items = list(found["items"])
        same = found["about"] == json.loads(json.dumps(about))
        # Another call may have written its own files under these names since.
        whole = all(digest(folder / n) == d for n, d in found["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return section if same and whole else None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically; the keys of the first are the header.

    Raises:
        OSError: If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def digest(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
