"""Grades for other systems: Gradescope, Canvas, Moodle, a plain table, a page for each student.

Formats: Gradescope's results.json; the gradebook CSV that Canvas imports; the grading worksheet that Moodle's
assignment gives out and takes back; a CSV for everything else.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from grader.feedback import feedback_lines, html_report
from minigrpo.files import write_json, write_text

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")


def cell(text: object) -> str:
    """Make a text safe for a spreadsheet: one that begins like a formula is shown, not computed."""
    text = str(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def gradescope(grade: Mapping) -> dict:
    """One student's results.json: a test for each part and for each written answer."""
    tests = []
    for row in grade["exercises"]:
        tests += [
            {
                "name": f"{row['id']} {part['name']}",
                "score": part["earned"],
                "max_score": part["points"],
                "status": "passed" if part["passed"] else "failed",
                "output": part["feedback"],
                "visibility": "visible",
            }
            for part in row["parts"]
        ]
        earned = sum(part["earned"] for part in row["parts"])
        if not row["parts"] or row["earned"] != earned:  # a person's: what was written, or what was added
            rest = {"score": row["earned"] - earned, "max_score": row["points"] if not row["parts"] else 0}
            text = row["comment"] or ("not marked yet" if row.get("open") else "")
            tests.append({"name": f"{row['id']} mark", **rest, "output": text, "visibility": "visible"})
    return {
        "score": grade["earned"],
        "output": grade["problem"] or "",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def nothing_yet() -> dict:
    """The file written before grading begins, so that a grader that dies leaves zero points and a sentence."""
    text = "The grader did not finish; tell your instructor."
    return {"score": 0, "output": text, "visibility": "visible", "stdout_visibility": "hidden", "tests": []}


def export_gradescope(grades: Sequence[Mapping], out: Path) -> list[Path]:
    """Write out/<student>/results.json for each."""
    return [write_json(out / grade["student"] / "results.json", gradescope(grade)) for grade in grades]


def export_html(grades: Sequence[Mapping], title: str, out: Path) -> list[Path]:
    """Write out/<student>.html for each."""
    return [write_text(out / f"{grade['student']}.html", html_report(grade, title)) for grade in grades]


def export_csv(grades: Sequence[Mapping], out: Path) -> list[Path]:
    """Write out/grades.csv: a row for each student, a column for each exercise."""
    ids = [row["id"] for row in grades[0]["exercises"]]
    header = ["student", "lab", "earned", "points", *ids, "unmarked", "stale", "problem", "isolation", "sha256"]
    rows = [
        [
            cell(grade["student"]),
            grade["lab"],
            f"{grade['earned']:g}",
            grade["points"],
            *(f"{row['earned']:g}" for row in grade["exercises"]),
            " ".join(row["id"] for row in grade["exercises"] if row["open"]),
            "yes" if grade["stale"] else "",
            cell(grade["problem"] or ""),
            grade["isolation"],
            grade["sha256"],
        ]
        for grade in grades
    ]
    return [write_text(out / "grades.csv", _csv([header, *rows]))]


def export_canvas(grades: Sequence[Mapping], assignment: str, roster: Path | None, out: Path) -> list[Path]:
    """Write out/canvas.csv, to import into Canvas's gradebook.

    Args: assignment: the column's name there, as in "Lab 02 (12345)"; roster: the gradebook as Canvas exports it, which
        gives each student's name and ids; without it the students' names alone stand in the file.
    Raises: ValueError for an assignment without its number, a roster without Canvas's columns, a student not in it.
    """
    if not re.fullmatch(r".+ \(\d+\)", assignment):
        raise ValueError(
            f"--assignment must be the column's name in Canvas, as in 'Lab 02 (12345)', got {assignment!r}"
        )
    points = grades[0]["points"]
    rows = [["Points Possible".rjust(19), "", "", "", "", points]]
    if roster is None:
        found = [dict.fromkeys(CANVAS, "") | {"Student": grade["student"]} for grade in grades]
    else:
        found = _match(grades, _people(roster, ("Student", "ID"), skip="Points Possible"), CANVAS_KEYS, roster)
    for grade, person in zip(grades, found, strict=True):
        rows.append([*(cell(person.get(name, "")) for name in CANVAS), f"{grade['earned']:g}"])
    return [write_text(out / "canvas.csv", _csv([[*CANVAS, assignment], *rows]))]


def export_moodle(grades: Sequence[Mapping], worksheet: Path | None, out: Path) -> list[Path]:
    """Write out/moodle.csv, the downloaded worksheet with Grade and Feedback comments filled in, and a plain CSV.

    Args: worksheet: Moodle's grading worksheet; without it only the plain CSV is written.
    Raises: ValueError for a worksheet without Moodle's columns, or a student who is not in it.
    """
    lines = {grade["student"]: "\n".join(feedback_lines(grade)) for grade in grades}
    people = None if worksheet is None else _people(worksheet, ("Identifier", "Full name", "Grade"))
    plain, written = [["Email address", "ID number", "Grade", "Feedback"]], []
    found = [{} for _ in grades] if people is None else _match(grades, people, MOODLE_KEYS, worksheet)
    for grade, person in zip(grades, found, strict=True):
        if person:
            person["Grade"] = f"{grade['earned']:g}"
            person["Feedback comments"] = cell(lines[grade["student"]])
        address = person.get("Email address", "" if "@" not in grade["student"] else grade["student"])
        number = person.get("ID number", "" if "@" in grade["student"] else grade["student"])
        plain.append([cell(address), cell(number), f"{grade['earned']:g}", cell(lines[grade["student"]])])
    if people:
        header = list(people[0]) if "Feedback comments" in people[0] else [*people[0], "Feedback comments"]
        rows = [[person.get(name, "") for name in header] for person in people]
        written.append(write_text(out / "moodle.csv", _csv([header, *rows])))
    return [*written, write_text(out / "moodle_plain.csv", _csv(plain))]


CANVAS_KEYS = ("ID", "SIS Login ID", "SIS User ID", "Student")
MOODLE_KEYS = ("Identifier", "Email address", "ID number", "Username", "Full name")


def _people(path: Path, needed: Iterable[str], skip: str | None = None) -> list[dict]:
    """The rows of a roster. Raises ValueError for missing columns or a file that is no CSV."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} can't be read as a CSV: {error}") from error
    missing = [name for name in needed if not rows or name not in rows[0]]
    if missing:
        raise ValueError(
            f"{path} must hold the columns {', '.join(needed)} and a row a student, lacks {', '.join(missing)}"
        )
    return [row for row in rows if not skip or not (row["Student"] or "").strip().startswith(skip)]


def _match(grades: Sequence[Mapping], people: Sequence[dict], keys: Iterable[str], roster: Path) -> list[dict]:
    """Find each grade's person. Raises ValueError as `_find`, and where two grades are one person's."""
    owners: dict[int, str] = {}
    found = [_find(grade["student"], people, keys, roster) for grade in grades]
    for grade, person in zip(grades, found, strict=True):
        other = owners.setdefault(id(person), grade["student"])
        if other != grade["student"]:
            raise ValueError(f"{roster} has one row for both {other!r} and {grade['student']!r}: rename one of them")
    return found


def _find(student: str, people: Sequence[dict], keys: Iterable[str], roster: Path) -> dict:
    """Find the one person whom a submission's name speaks of: an id in it, or the whole name."""
    words = set(re.findall(r"[^\W_]+", student.lower())) | {student.lower()}
    for key in keys:
        found = [person for person in people if (value := _key(person.get(key))) and value in words | {_key(student)}]
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"{roster} has no one row for {student!r}: rename the submission to the student's id, and grade again"
    )


def _key(value: str | None) -> str:
    """A name or id as it is compared: "Participant 123" is 123, case and punctuation do not matter."""
    return re.sub(r"\W+", "", re.sub(r"^participant ", "", (value or "").strip().lower()))


def _csv(rows: Iterable[Sequence]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerows(rows)
    return file.getvalue()
