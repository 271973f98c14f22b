"""Figures as files, and results as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from minigrpo.checks import check_choice
from minigrpo.files import write_bytes, write_text


@dataclass(frozen=True)
class Pre:
    """A block of a report: text in letters of one width, its lines as they are."""

    text: str


@dataclass(frozen=True)
class Table:
    """A block of a report: cells are shown as `str` gives them; a column of numbers is aligned to the right."""

    header: Sequence[object]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def __post_init__(self) -> None:
        """Raises: ValueError for a row that is longer or shorter than the header."""
        for k, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows[{k}] must have {len(self.header)} cells as the header has, got {len(row)}"
                )


@dataclass(frozen=True)
class Picture:
    """A block of a report: a figure, what it shows in words for those who can't see it, and a caption."""

    figure: Figure
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        """Raises: ValueError for an empty alt."""
        if not self.alt.strip():
            raise ValueError(f"alt must say in words what the figure shows, got {self.alt!r}")


Block = str | Pre | Table | Picture  # a str is a paragraph
HEAVY = 300_000  # bytes of SVG above which a report embeds a figure as PNG

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #c8c8c8; --shade: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181b; --line: #4a4d52; --shade: #22252a; } }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; box-sizing: border-box; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-top: 2.5rem; }
p { max-width: 44rem; }
pre, .wide { overflow-x: auto; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 6px; padding: 0.8rem;
  font: 0.85rem/1.35 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
table { border-collapse: collapse; font-size: 0.95rem; }
caption { text-align: left; padding-bottom: 0.4rem; }
th, td { text-align: left; padding: 0.3rem 0.8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; min-width: 38rem; height: auto; background: #fff; border-radius: 6px; }
figcaption { max-width: 44rem; margin-top: 0.5rem; font-size: 0.95rem; }
"""
WIDE = """
body { max-width: none; } th, td { white-space: nowrap; padding: 0.2rem 0.6rem; }
figure img { max-width: 42rem; min-width: 0; } h2 { margin-top: 1rem; }
"""


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (160 dots an inch) or SVG, whole or not at all.

    Raises: ValueError for another suffix; OSError where the file can't be written.
    """
    path = Path(path)
    check_choice("suffix of path", path.suffix, (".png", ".svg"))
    return write_bytes(path, render(figure, path.suffix[1:]))


def render(figure: Figure, kind: str) -> bytes:
    """A figure as bytes, the same ones each time it is drawn; SVG holds its letters as outlines and needs no font."""
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "minigrpo", "svg.fonttype": "path"}):
        figure.savefig(file, format=kind, dpi=160, facecolor="white", metadata=metadata)
    return file.getvalue()


def report(
    path: str | Path,
    sections: Iterable[tuple[str, Sequence[Block]]],
    title: str,
    *,
    refresh: int | None = None,
    wide: bool = False,
) -> Path:
    """Write one self-contained HTML file: figures are inside, nothing is fetched or run.

    Args:
        path: of the page.
        sections: heading and contents of each.
        title: of the page.
        refresh: seconds after which a browser reads the page again; None: never.
        wide: take all of the window, for tables that are looked at from afar.

    Raises: TypeError for another block; OSError as `write_text`.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, blocks in sections:
        body += [
            "<section>",
            f"<h2>{html.escape(heading)}</h2>",
            *map(_block, blocks),
            "</section>",
        ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        *([f'<meta http-equiv="refresh" content="{refresh}">'] if refresh else []),
        f"<title>{html.escape(title)}</title>",
        f"<style>{STYLE}{WIDE if wide else ''}</style>",
    ]
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        *head,
        "</head>",
        "<body>",
        "<main>",
        *body,
    ]
    return write_text(path, "\n".join([*lines, "</main>", "</body>", "</html>", ""]))


def _block(block: Block) -> str:
    """A block as HTML. What may be wider than a phone scrolls in a box of its own, which the keyboard can reach."""
    match block:
        case str():
            return f"<p>{html.escape(block)}</p>"
        case Pre(text):
            return f'<pre tabindex="0">{html.escape(text)}</pre>'
        case Table():
            return f'<div class="wide" tabindex="0">{_table(block)}</div>'
        case Picture(figure, alt, caption):
            kind, content = "svg+xml", render(figure, "svg")
            if len(content) > HEAVY:
                kind, content = "png", render(figure, "png")
            source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
            image = f'<div class="wide" tabindex="0"><img src="{source}" alt="{html.escape(alt)}"></div>'
            return f"<figure>{image}{f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''}</figure>"
    raise TypeError(f"a block must be a str, Pre, Table or Picture, got {type(block).__name__}")


def _table(table: Table) -> str:
    """A table as HTML, its columns of numbers marked."""
    columns = [
        [str(cell) for cell in column] for column in zip(table.header, *table.rows, strict=True)
    ]
    numeric = [all(re.match(r"[\[(]?[+−-]?\d", cell) for cell in column[1:]) for column in columns]
    kinds = [' class="number"' if number else "" for number in numeric]
    head, *rows = zip(*columns, strict=True)
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(cell)}</th>'
        for cell, kind in zip(head, kinds, strict=True)
    )
    lines = [
        "".join(
            f"<td{kind}>{html.escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)
        )
        for row in rows
    ]
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody><tr>{'</tr><tr>'.join(lines)}</tr></tbody></table>"
