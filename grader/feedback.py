"""What people add to a grade, and the report a student reads.

The grader writes auto/<student>.json and nobody else does; people write manual/<student>.yaml and the grader never
changes one. A grade is the two merged: a person's mark wins. Marks are keyed to the submission they were given for.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

import yaml

from minigrpo.files import write_text


def write_manual(result: Mapping, entry: Mapping, out: Path) -> None:
    """Write the form for a person's marks, where there is none yet: each written answer beside its question."""
    path = out / "manual" / f"{result['student']}.yaml"
    if path.exists() or result["problem"]:
        return
    questions = {row["id"]: row["question"] for row in entry["exercises"] if row["kind"] == "written"}
    forms = {
        row["id"]: {"points": None, "out_of": row["points"], "comment": "", "answer": row["answer"]}
        for row in result["exercises"]
        if row["id"] in questions
    }
    head = (
        f"# {result['lab']}, {result['student']}: a person's marks. `points` of a written answer; for graded code,\n"
        "# `points` or a `delta` to add. What stands here wins; the rubric is in solutions/.\n"
    )
    body = yaml.safe_dump({"submission": result["sha256"], "exercises": forms}, sort_keys=False, allow_unicode=True)
    write_text(path, head + body)


def read_manual(out: Path, student: str) -> dict:
    """Read a person's marks, {} where there are none. Raises ValueError that names the file and what is wrong."""
    path = out / "manual" / f"{student}.yaml"
    if not path.exists():
        return {}
    try:
        marks = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(marks, dict) or not isinstance(marks.get("exercises"), dict):
        raise ValueError(f"{path} must hold `submission` and `exercises`, a mapping")
    for exercise, mark in marks["exercises"].items():
        for key in ("points", "delta"):
            value = mark.get(key) if isinstance(mark, dict) else ""
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ValueError(f"{path}: {key} of {exercise} must be a number, got {value!r}")
    return marks


def merge(result: Mapping, marks: Mapping) -> dict:
    """Merge the grader's result and a person's marks into the final grade.

    Returns: the result with `earned` final, and for each exercise `comment`, `by` ("grader" or "person") and `open`
        (a written answer without a mark); `stale` says that marks were given for another submission.
    Raises: ValueError for a mark for an exercise that the lab does not have, or outside 0 … its points.
    """
    given = dict(marks.get("exercises", {}))
    rows = []
    for row in result["exercises"]:
        mark = given.pop(row["id"], {})
        points, delta = mark.get("points"), mark.get("delta")
        earned = (row["earned"] if points is None else points) + (delta or 0)
        if not 0 <= earned <= row["points"]:
            raise ValueError(
                f"{result['student']}: {row['id']} can earn 0 to {row['points']} points, marked {earned:g}"
            )
        by_person = points is not None or bool(delta)
        by_hand = row["kind"] == "written" or row.get("failed")  # the grader failed on it: a person has to
        unmarked = bool(by_hand) and points is None and not result["problem"]
        by = "person" if by_person else "grader"
        rows.append({**row, "earned": earned, "comment": str(mark.get("comment") or ""), "by": by, "open": unmarked})
    if given:
        raise ValueError(f"{result['student']}: {result['lab']} has no exercise {', '.join(map(str, given))}")
    marked = any(row["by"] == "person" for row in rows)
    stale = marked and marks.get("submission") != result["sha256"]
    return {**result, "exercises": rows, "earned": sum(row["earned"] for row in rows), "stale": stale}


def final_grades(out: Path) -> list[dict]:
    """Every student's final grade, in order. Raises ValueError where there are none or one can't be merged."""
    paths = sorted((out / "auto").glob("*.json"))
    if not paths:
        raise ValueError(f"no grades in {out}: run `python -m grader grade … --out {out}` first")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if len(labs := sorted({result["lab"] for result in results})) > 1:
        raise ValueError(f"{out} holds grades of {' and '.join(labs)}: give each lab a folder of its own")
    return [merge(result, read_manual(out, result["student"])) for result in results]


def feedback_lines(grade: Mapping) -> list[str]:
    """The feedback of one grade as lines of text."""
    if grade["problem"]:
        return [f"Not graded: {grade['problem']}"]
    lines = []
    for row in grade["exercises"]:
        score = "not marked yet" if row["open"] else f"{row['earned']:g} of {row['points']}"
        lines.append(f"{row['id']}: {score}{' (marked by a person)' if row['by'] == 'person' else ''}")
        lines += [
            f"  {mark(part)} {part['name']}" + f": {part['feedback']}" * (not part["passed"]) for part in row["parts"]
        ]
        lines += [f"  {row['comment']}"] if row["comment"] else []
    return lines


def mark(part: Mapping) -> str:
    return "✓" if part["passed"] else "✗"


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


def html_report(grade: Mapping, title: str) -> str:
    """One student's report, a page that stands alone; every text of a student's is escaped."""
    e = html.escape
    unmarked = sum(row["points"] for row in grade["exercises"] if row["open"])
    rest = f" so far; {unmarked} points are not marked yet" if unmarked else ""
    body = [
        f"<h1>{e(title)}</h1>",
        f"<p>{e(grade['student'])}: <strong>{grade['earned']:g} of {grade['points']}</strong>{rest}</p>",
    ]
    if grade["problem"]:
        body.append(f"<p class='no'>Not graded: {e(grade['problem'])}</p>")
    if grade["stale"]:
        body.append("<p class='no'>Marks by a person were given for an earlier submission.</p>")
    for row in [] if grade["problem"] else grade["exercises"]:
        score = "not marked yet" if row["open"] else f"{row['earned']:g} of {row['points']}"
        body.append(f"<h2>{e(row['id'])} · {score}</h2>")
        cells = [
            f"<tr><td class='{'yes' if part['passed'] else 'no'}'>{mark(part)}</td><td>{e(part['name'])}</td>"
            f"<td>{'' if part['passed'] else e(part['feedback'])}</td><td>{part['earned']:g}/{part['points']}</td></tr>"
            for part in row["parts"]
        ]
        body += [f"<table>{''.join(cells)}</table>"] if cells else []
        body += [f"<blockquote>{e(row['answer'])}</blockquote>"] if row["answer"] else []
        body += [f"<p>{e(row['comment'])}</p>"] if row["comment"] else []
    footer = f"isolation: {grade['isolation']} · submission {grade['sha256'][:12] or 'unreadable'}"  # and no seed
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{e(title)}</title><style>{STYLE}</style><body>{''.join(body)}<footer>{e(footer)}</footer></body></html>\n"
    )
