"""The page that a student reads: what each exercise earned, what was said, what a person wrote."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from grader.feedback import said_once, score, tick
from grader.results import Grade

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
table { border-collapse: collapse; width: 100%; } td { padding: .3rem .6rem; border-top: 1px solid #ccc;
  vertical-align: top; } td:first-child { width: 1.5rem; }
  td:nth-child(2) { width: 13rem; } td:last-child { width: 3rem; text-align: right; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem; }
.yes { color: #00695c; } .no { color: #a33b00; } blockquote { margin: .5rem 0; padding-left: 1rem;
  border-left: 3px solid #ccc; white-space: pre-wrap; } footer { margin-top: 2rem; color: #666; font-size: .85rem; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } .yes { color: #6cd0bf; }
  .no { color: #ffab7a; } footer { color: #aaa; } td { border-color: #444; } }
"""


def html_report(
    grade: Grade, entry: Mapping, titles: Mapping[str, str], who: str | None = None
) -> str:
    """One student's report, a page that stands alone; every text of a student's is escaped.

    Args:
        grade: the student's.
        entry: the lab in the manifest.
        titles: the heading of each exercise.
        who: handed it in; the submission's name unless given.
    """
    e, title = html.escape, entry["title"]
    questions = {
        row["id"]: row.get("question", "").removeprefix(f"**{row['id']}**")
        for row in entry["exercises"]
    }
    unmarked = sum(row.points for row in grade.exercises if row.open)
    rest = f"; {unmarked} points are not marked yet" if unmarked else ""
    so_far = f"{grade.earned:g} of {grade.points}" + " so far" * bool(unmarked)
    total = "no grade yet" if grade.ungraded else so_far
    body = [
        f"<h1>{e(title)}</h1>",
        f"<p>{e(who or grade.student)}: <strong>{total}</strong>{rest}</p>",
    ]
    if grade.problem:
        body.append(f"<p class='no'>Not graded: {e(grade.problem)}</p>")
    for row in [] if grade.problem else grade.exercises:
        name = " · ".join(text for text in (row.id, titles.get(row.id)) if text)
        body.append(f"<h2>{e(name)}: {e(score(row))}</h2>")
        cells = [
            f"<tr><td class='{'yes' if part.passed else 'no'}'>{tick(part)}</td><td>{e(part.name)}</td>"
            f"<td>{e(text)}</td><td>{part.earned:g}/{part.points}</td></tr>"
            for part, text in zip(row.parts, said_once(row.parts), strict=True)
        ]
        body += [f"<table>{''.join(cells)}</table>"] if cells else []
        body += [f"<p>{e(questions[row.id].strip())}</p>"] if questions.get(row.id) else []
        body += [f"<blockquote>{e(row.answer)}</blockquote>"] if row.answer else []
        body += [f"<p><b>{e(row.comment)}</b></p>"] if row.comment else []
    # and no seed
    footer = f"isolation: {grade.isolation} · submission {grade.sha256[:12] or 'unreadable'}"
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{e(title)}</title><style>{STYLE}</style><body>{''.join(body)}<footer>{e(footer)}</footer></body></html>\n"
    )


def headings(notebook: Path) -> dict[str, str]:
    """The heading under which each exercise stands in a lab's notebook, without its number."""
    found, heading = {}, ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if exercise := cell["metadata"].get("exercise"):
            found[exercise] = heading
        elif cell["cell_type"] == "markdown" and (
            titles := re.findall(r"(?m)^## (?:\d+ · )?(.+)", source)
        ):
            heading = titles[-1].replace("`", "").replace("\\|", "|")
    return found


def given_lines(notebook: Path) -> set[str]:
    """The lines of code, without their indent, that a lab's notebook gives to everybody."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return {line.strip() for source in code for line in source.splitlines()}
