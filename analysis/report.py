"""One self-contained HTML page: text, tables, inlined PNG figures, no JavaScript."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from diffusion.atomic import write_atomically

__all__ = ["Report"]

_WIDE = 10  # columns; more are set small
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums;
        display: block; overflow-x: auto; }
table.wide { font-size: .7rem; } table.wide th, table.wide td { padding: .2rem .3rem; }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""


class Report:
    """A page that grows from top to bottom and is written once, at the end.

    Args:
        title: Heading of the page.
    """

    def __init__(self, title: str) -> None:
        """See the class."""
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def preformatted(self, text: str) -> None:
        """Add text whose spaces and line breaks count."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table of text."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        kind = ' class="wide"' if len(header) > _WIDE else ""
        self._parts.append(
            f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def figure(self, png: bytes, caption: str) -> None:
        """Add a PNG image with the text under it."""
        data = base64.b64encode(png).decode()
        text = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def write(self, path: str | Path) -> None:
        """Write the page, atomically.

        Raises:
            OSError: If it cannot be written.
        """
        title = html.escape(self.title)
        page = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n"
            f"<body><h1>{title}</h1>\n" + "\n".join(self._parts) + "\n</body></html>\n"
        )
        write_atomically(path, lambda file: file.write(page.encode()))
