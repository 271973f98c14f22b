"""What people add to a grade, and the report a student reads.

The grader writes auto/<student>.json and nobody else does; people write manual/<student>.yaml. A grade is the two
merged: a person's mark wins. Where a student hands in again, the form is written anew: the new answers beside the marks
that were given, with a line at each that has to be looked at again; the earlier form is kept in manual/earlier/.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path

import yaml

from grader.grade import readable
from grader.source import BEGIN, END
from minigrpo.files import write_json, write_text

LOOK_AGAIN = "this mark was given for an earlier submission; change it or not, and delete this line"


class _Block(str):
    """A text that a form shows line by line."""


class _Form(yaml.SafeDumper):
    """YAML as people like to fill it in: texts as blocks, an empty place where a value is missing."""


_Form.add_representer(_Block, lambda form, text: form.represent_scalar("tag:yaml.org,2002:str", str(text), style="|"))
_Form.add_representer(type(None), lambda form, _: form.represent_scalar("tag:yaml.org,2002:null", ""))


def _block(text: str | None) -> _Block | None:
    """A text as YAML can show it in a block: no tabs, no control characters, no spaces at the end of a line."""
    if not text:
        return None
    lines = readable(text).expandtabs(4).replace("\ufeff", "").splitlines()
    return _Block("\n".join(line.rstrip() for line in lines))


def write_manual(result: Mapping, entry: Mapping, out: Path, rubrics: Mapping[str, str] | None = None) -> None:
    """Write the form for a person's marks, where there is none yet or it shows an earlier submission.

    It holds each written question with its answer; where the grader failed, every exercise. A form that names no
    submission, as a person writes one, becomes that of the present one.
    """
    path = out / "manual" / f"{result['student']}.yaml"
    failed = bool(result.get("failed"))
    if (result["problem"] and not failed) or (failed and path.exists()):
        return
    marks = read_manual(out, result["student"])
    if marks and marks.get("submission") == result["sha256"]:
        return
    questions = {row["id"]: row["question"] for row in entry["exercises"] if row["kind"] == "written"}
    forms: dict[str, dict] = {}
    for row in result["exercises"]:
        mark = {"out_of": row["points"], "points": None, "comment": None}
        if row["id"] in questions:
            texts = {
                "question": questions[row["id"]],
                "rubric": (rubrics or {}).get(row["id"]),
                "answer": row["answer"],
            }
            forms[row["id"]] = {name: _block(text) for name, text in texts.items()} | mark
        elif failed:
            forms[row["id"]] = mark
    for exercise, mark in marks.get("exercises", {}).items():
        given = {key: mark[key] for key in ("points", "delta", "comment") if mark.get(key) is not None}
        form = forms.setdefault(exercise, {}) if given else {}
        same = exercise in questions and form.get("answer") == mark.get("answer")
        if given.keys() & {"points", "delta"} and (mark.get("look_again") or not (same or "submission" not in marks)):
            given["look_again"] = LOOK_AGAIN
        form |= given
    if marks:
        earlier = str(marks.get("submission") or "own")[:8]
        write_text(out / "manual" / "earlier" / f"{result['student']}-{earlier}.yaml", path.read_text(encoding="utf-8"))
    write_text(path, _form(result, forms))


def _form(result: Mapping, exercises: Mapping) -> str:
    head = (
        f"# {result['lab']}, {result['student']}: a person's marks. `points` of a written answer; for graded code,\n"
        "# `points` or a `delta` to add. What stands here wins.\n"
    )
    form = {"submission": result["sha256"], "exercises": dict(exercises)}
    return head + yaml.dump(form, Dumper=_Form, sort_keys=False, allow_unicode=True, width=120)


def rubrics(solutions: Path, lab: str) -> dict[str, str]:
    """Each written question's model answer and rubric, from the lab's source; {} where it is not there."""
    found = {}
    for path in solutions.glob(f"{lab}_*.py"):
        cells = path.read_text(encoding="utf-8").split("\n# %%")
        for text in cells:
            exercise = re.match(r' \[markdown\].*exercise="([^"]+)"', text)
            if exercise and BEGIN in text:
                solution = text.partition(BEGIN)[2].partition(END)[0]
                found[exercise[1]] = re.sub(r"(?m)^# ?", "", solution).strip()
    return found


def read_manual(out: Path, student: str) -> dict:
    """Read a person's marks, {} where there are none. Raises ValueError that names the file and what is wrong."""
    path = out / "manual" / f"{student}.yaml"
    if not path.exists():
        return {}
    try:
        marks = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: save it again as UTF-8") from error
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
        (a written answer without a mark); `stale` says that marks were given for another submission, `ungraded` that
        the grader failed and that nobody has marked all of it by hand.
    Raises: ValueError for a mark for an exercise that the lab does not have, or outside 0 … its points.
    """
    given = dict(marks.get("exercises", {}))
    rows, again = [], "submission" in marks and marks["submission"] != result["sha256"]
    for row in result["exercises"]:
        mark = given.pop(row["id"], {})
        points, delta = mark.get("points"), mark.get("delta")
        earned = (row["earned"] if points is None else points) + (delta or 0)
        if not 0 <= earned <= row["points"]:
            raise ValueError(
                f"{result['student']}: {row['id']} can earn 0 to {row['points']} points, marked {earned:g}"
            )
        by = "person" if points is not None or delta else "grader"
        again = again or (by == "person" and bool(mark.get("look_again")))
        unmarked = bool(row["answer"]) and row["kind"] == "written" and points is None and not result["problem"]
        rows.append({**row, "earned": earned, "comment": str(mark.get("comment") or ""), "by": by, "open": unmarked})
    if given:
        raise ValueError(f"{result['student']}: {result['lab']} has no exercise {', '.join(map(str, given))}")
    by_hand = [row["by"] == "person" for row in rows]
    problem = None if rows and all(by_hand) else result["problem"]
    return {
        **result,
        "exercises": rows,
        "problem": problem,
        "earned": sum(row["earned"] for row in rows),
        "stale": again and any(by_hand),
        "ungraded": bool(result.get("failed") and problem),
    }


def write_run(out: Path, results: Sequence[Mapping]) -> None:
    """Remember whose submissions there were: results of others, of earlier runs, count no more."""
    write_json(out / "run.json", {"submissions": sorted(result["student"] for result in results)})


def final_grades(out: Path) -> list[dict]:
    """The final grade of each student of the last run. Raises ValueError where there are none, or can't be merged."""
    results, _ = _results(out)
    if not results:
        raise ValueError(f"no grades in {out} of submissions that are still there: grade again")
    if len(labs := sorted({result["lab"] for result in results})) > 1:
        raise ValueError(f"{out} holds grades of {' and '.join(labs)}: give each lab a folder of its own")
    return [merge(result, read_manual(out, result["student"])) for result in results]


def left_out(out: Path) -> list[str]:
    """Whose results have no submission any more: withdrawn, or renamed since they were graded."""
    return [result["student"] for result in _results(out)[1]]


def check_folder(out: Path, lab: str) -> None:
    """Refuse to grade a lab into the results of another. Raises ValueError."""
    others = {result["lab"] for path in (out / "auto").glob("*.json") if (result := _read(path))} - {lab}
    if others:
        raise ValueError(f"{out} holds grades of {' and '.join(sorted(others))}: give each lab a folder of its own")


def _results(out: Path) -> tuple[list[dict], list[dict]]:
    """The results of the last run's submissions, in order, and the others."""
    results = [(path, _read(path)) for path in sorted((out / "auto").glob("*.json"))]
    if not results:
        raise ValueError(f"no grades in {out}: run `python -m grader grade … --out {out}` first")
    if damaged := [str(path) for path, result in results if not result]:
        raise ValueError(f"{', '.join(damaged)} is damaged: run `python -m grader grade … --out {out}` again")
    run = _read(out / "run.json")
    known = [result["student"] for _, result in results] if run is None else run["submissions"]
    return (
        [result for _, result in results if result["student"] in known],
        [result for _, result in results if result["student"] not in known],
    )


def _read(path: Path) -> dict | None:
    """A file that the grader wrote, or None where it is missing or damaged: `grade` writes it again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def score(row: Mapping) -> str:
    """What an exercise earned, and by whom, in words."""
    if row["open"]:
        return "not marked yet"
    earned = f"{row['earned']:g} of {row['points']}"
    if row["by"] == "person" and row["parts"]:
        return f"{earned} (marked by a person; the grader gave {sum(part['earned'] for part in row['parts']):g})"
    if row["by"] == "person":
        return f"{earned} (marked by a person)"
    return f"{earned} (no answer)" if row["kind"] == "written" and not row["answer"] else earned


def said(part: Mapping) -> str:
    """What a student reads about a part: a hint is worded as a guess where the answers are those of a known mistake."""
    return f"It looks like this: {part['feedback']}" if part.get("mistake") else part["feedback"]


def said_once(parts: Sequence[Mapping]) -> list[str]:
    """What is said about each part of an exercise, a sentence that was said already left away."""
    texts = ["" if part["passed"] else said(part) for part in parts]
    return [text if text not in texts[:at] else "as above" if text else "" for at, text in enumerate(texts)]


def feedback_lines(grade: Mapping) -> list[str]:
    """The feedback of one grade as lines of text."""
    if grade["problem"]:
        return [f"Not graded: {grade['problem']}"]
    lines = []
    for row in grade["exercises"]:
        lines.append(f"{row['id']}: {score(row)}")
        for part, text in zip(row["parts"], said_once(row["parts"]), strict=True):
            lines.append(f"  {mark(part)} {part['name']}" + f": {text}" * bool(text))
        lines += [f"  {row['comment']}"] if row["comment"] else []
    return lines


def mark(part: Mapping) -> str:
    return "✓" if part["passed"] else "✗"


def headings(notebook: Path) -> dict[str, str]:
    """The heading under which each exercise stands in a lab's notebook, without its number."""
    found, heading = {}, ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if exercise := cell["metadata"].get("exercise"):
            found[exercise] = heading
        elif cell["cell_type"] == "markdown" and (titles := re.findall(r"(?m)^## (?:\d+ · )?(.+)", source)):
            heading = titles[-1].replace("`", "").replace("\\|", "|")
    return found


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


def html_report(grade: Mapping, entry: Mapping, titles: Mapping[str, str]) -> str:
    """One student's report, a page that stands alone; every text of a student's is escaped.

    Args: entry: the lab in the manifest; titles: the heading of each exercise.
    """
    e, title = html.escape, entry["title"]
    questions = {row["id"]: row.get("question", "").removeprefix(f"**{row['id']}**") for row in entry["exercises"]}
    unmarked = sum(row["points"] for row in grade["exercises"] if row["open"])
    rest = f" so far; {unmarked} points are not marked yet" if unmarked else ""
    total = "no grade yet" if grade["ungraded"] else f"{grade['earned']:g} of {grade['points']}"
    body = [f"<h1>{e(title)}</h1>", f"<p>{e(grade['student'])}: <strong>{total}</strong>{rest}</p>"]
    if grade["problem"]:
        body.append(f"<p class='no'>Not graded: {e(grade['problem'])}</p>")
    for row in [] if grade["problem"] else grade["exercises"]:
        name = " · ".join(text for text in (row["id"], titles.get(row["id"])) if text)
        body.append(f"<h2>{e(name)}: {e(score(row))}</h2>")
        cells = [
            f"<tr><td class='{'yes' if part['passed'] else 'no'}'>{mark(part)}</td><td>{e(part['name'])}</td>"
            f"<td>{e(text)}</td><td>{part['earned']:g}/{part['points']}</td></tr>"
            for part, text in zip(row["parts"], said_once(row["parts"]), strict=True)
        ]
        body += [f"<table>{''.join(cells)}</table>"] if cells else []
        body += [f"<p>{e(questions[row['id']].strip())}</p>"] if questions.get(row["id"]) else []
        body += [f"<blockquote>{e(row['answer'])}</blockquote>"] if row["answer"] else []
        body += [f"<p><b>{e(row['comment'])}</b></p>"] if row["comment"] else []
    footer = f"isolation: {grade['isolation']} · submission {grade['sha256'][:12] or 'unreadable'}"  # and no seed
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{e(title)}</title><style>{STYLE}</style><body>{''.join(body)}<footer>{e(footer)}</footer></body></html>\n"
    )
