"""Grades for other systems: Gradescope, Canvas, Moodle, a plain table, a page for each student.

Formats: Gradescope's results.json; the gradebook CSV that Canvas imports; the grading worksheet that Moodle's
assignment gives out and takes back; a CSV for everything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from grader.feedback import feedback_lines, said
from grader.report import html_report
from grader.results import Grade, MarkedExercise
from grader.roster import Keys, Roster, cell, csv_text, match, read_roster
from minigrpo.files import write_json, write_text

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
CANVAS_KEYS = Keys(  # lastnamefirstname_[LATE_]userid_submissionid_theirfile
    form=r"(?P<name>.+?)_(?:LATE_)?(?P<number>\d+)_(?P<sure>\d+_)?",
    number="ID",
    label="",
    names=("Student",),
    ids=("ID", "SIS User ID", "SIS Login ID"),
)
MOODLE_KEYS = Keys(  # Full name_participant_assignsubmission_file_
    form=r"(?P<name>.+?)_(?P<number>\d+)_(?P<sure>assignsubmission_)?",
    number="Identifier",
    label=r"\D*",
    names=("Full name",),
    ids=("Identifier", "Email address", "ID number", "Username"),
)


def points(earner: Grade | MarkedExercise) -> str:
    """A grade or an exercise as a cell, empty where the grader failed and nobody has marked: that changes nothing."""
    return "" if earner.ungraded else f"{earner.earned:g}"


def gradescope(grade: Grade) -> dict:
    """One student's results.json: a test for each part and for each written answer."""
    tests = []
    for row in grade.exercises:
        tests += [
            {
                "name": f"{row.id} {part.name}",
                "score": part.earned,
                "max_score": part.points,
                "status": "passed" if part.passed else "failed",
                "output": said(part),
                "visibility": "visible",
            }
            for part in row.parts
        ]
        earned = sum(part.earned for part in row.parts)
        if not row.parts or row.earned != earned:  # a person's: what was written, or what was added
            rest = {"score": row.earned - earned, "max_score": row.points if not row.parts else 0}
            text = row.comment or ("not marked yet" if row.open else "")
            tests.append(
                {"name": f"{row.id} mark", **rest, "output": text, "visibility": "visible"}
            )
    return {
        "score": grade.earned,
        "output": grade.problem or "",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def nothing_yet() -> dict:
    """The file written before grading begins, so that a grader that dies leaves zero points and a sentence."""
    text = "The grader did not finish; tell your instructor."
    return {
        "score": 0,
        "output": text,
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": [],
    }


def export_gradescope(grades: Sequence[Grade], out: Path) -> list[Path]:
    """Write out/<student>/results.json for each."""
    return [write_json(out / grade.student / "results.json", gradescope(grade)) for grade in grades]


@dataclass(frozen=True)
class People:
    """Whose the submissions are; without a roster their own names are all that is known."""

    kept: Sequence[Grade]  # of people
    strays: Sequence[str]  # submissions that are no student's
    names: Sequence[str] = ()  # columns of the roster with whole names
    ids: Sequence[str] = ()  # columns with ids, logins, addresses
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by submission
    missing: Sequence[str] = ()  # people of the roster who have handed in nothing

    def told(self, student: str, columns: Sequence[str]) -> list[str]:
        """What columns say of a submission's student."""
        return [self.rows[student][name] for name in columns]


def find_people(grades: Sequence[Grade], path: Path | None, names: Path) -> People:
    """Find whose each submission is.

    Args:
        grades: of a lab.
        path: the roster: Canvas's gradebook, Moodle's worksheet, or a CSV with the columns name and id; None for none.
        names: names.csv.

    Raises: ValueError for a roster that says of nobody who that is, and as `match`.
    """
    if path is None:
        return People(grades, ())
    roster = read_roster(path)
    keys = roster_keys(roster)
    rows = roster.rows
    if keys == CANVAS_KEYS:
        rows = [row for row in rows if row["ID"] or not _no_student(row["Student"])]
    found = match(_students(grades), replace(roster, rows=rows), keys, names, _strays(grades))
    kept = [grade for grade in grades if grade.student in found]
    called = [name for name in keys.names if name in roster.header]
    ids = [name for name in keys.ids if name in roster.header and name not in called]
    there = {id(row) for row in found.values()}
    absent = [row for row in rows if id(row) not in there]
    missing = [" ".join(row[name] for name in called or ids[:1]) for row in absent]
    return People(kept, _left_out(grades, found), called, ids, found, missing)


def roster_keys(roster: Roster) -> Keys:
    """Where a roster says who a person is. Raises: ValueError where it does not."""
    header = set(roster.header)
    if {"Student", "ID"} <= header:
        return CANVAS_KEYS
    if {"Identifier", "Grade"} <= header:
        return MOODLE_KEYS
    plain = {kind: _columns_called(roster, kind) for kind in ("name", "id", "email", "login")}
    ids = [*plain["id"], *plain["email"], *plain["login"]]
    if plain["name"] and ids:
        return Keys(form="(?!)", number=ids[0], label="", names=plain["name"], ids=ids)
    try:
        return moodle_columns(roster)[0]
    except ValueError as error:
        raise ValueError(
            f"{roster.path} must be Canvas's gradebook, Moodle's worksheet, or a CSV with the columns name and id"
        ) from error


def _columns_called(roster: Roster, word: str) -> list[str]:
    return [name for name in roster.header if name.strip().casefold() == word]


def export_html(
    people: People, entry: Mapping, headings: Mapping[str, str], out: Path
) -> tuple[list[Path], Sequence[str]]:
    """Write out/<student>.html for each; return also which submissions are no student's.

    Args:
        people: with their grades.
        entry: the lab in the manifest.
        headings: that of each exercise.
        out: the folder.
    """
    written = []
    for grade in people.kept:
        who = " ".join(people.told(grade.student, people.names)) or grade.student
        page = html_report(grade, entry, headings, who)
        written.append(write_text(out / f"{grade.student}.html", page))
    return written, people.strays


def export_csv(people: People, out: Path) -> tuple[list[Path], Sequence[str]]:
    """Write out/grades.csv: a row for each student, a column for each exercise."""
    columns = [*people.names, *people.ids]
    grades = people.kept
    exercises = [row.id for row in grades[0].exercises] if grades else []
    header = [
        "student",
        *columns,
        "lab",
        "earned",
        "points",
        *exercises,
        "unmarked",
        "stale",
        "problem",
        "isolation",
        "sha256",
    ]
    rows = [
        [
            cell(grade.student),
            *map(cell, people.told(grade.student, columns)),
            grade.lab,
            points(grade),
            grade.points,
            *map(points, grade.exercises),
            " ".join(row.id for row in grade.exercises if row.open),
            "yes" if grade.stale else "",
            cell(grade.problem or ""),
            grade.isolation,
            grade.sha256,
        ]
        for grade in grades
    ]
    # Excel reads UTF-8 by its mark
    written = write_text(out / "grades.csv", "\ufeff" + csv_text([header, *rows]))
    return [written], people.strays


def export_canvas(
    grades: Sequence[Grade], assignment: str, roster: Path | None, names: Path, out: Path
) -> tuple[list[Path], list[str]]:
    """Write out/canvas.csv, to import into Canvas's gradebook; return also which submissions are no student's.

    Args:
        grades: of a lab.
        assignment: the column's name there, as in "Lab 02 (12345)".
        roster: the gradebook as Canvas exports it, which gives each student's name and ids; without it the
            students' names alone stand in the file.
        names: names.csv.
        out: the folder.

    Raises: ValueError for an assignment without its number, a roster without Canvas's columns, students not in it.
    """
    if not re.fullmatch(r".+ \(\d+\)", assignment):
        raise ValueError(
            f"--assignment must be the column's name in Canvas, as in 'Lab 02 (12345)', got {assignment!r}"
        )
    rows = [["Points Possible".rjust(19), "", "", "", "", grades[0].points]]
    if roster is None:
        found = {grade.student: {"Student": grade.student} for grade in grades}
    else:
        gradebook = read_roster(roster, ("Student", "ID"))
        people = [row for row in gradebook.rows if row["ID"] or not _no_student(row["Student"])]
        found = match(
            _students(grades), replace(gradebook, rows=people), CANVAS_KEYS, names, _strays(grades)
        )
    for grade in (grade for grade in grades if grade.student in found):
        rows.append([*(cell(found[grade.student].get(name, "")) for name in CANVAS), points(grade)])
    written = write_text(out / "canvas.csv", csv_text([[*CANVAS, assignment], *rows]))
    return [written], _left_out(grades, found)


def _no_student(name: str) -> bool:
    """Canvas puts two rows without an id before the students: whether grades are posted by hand, and the points."""
    return name.strip() in ("", "Points Possible")


def export_moodle(
    grades: Sequence[Grade], worksheet: Path | None, names: Path, out: Path
) -> tuple[list[Path], list[str]]:
    """Write out/moodle.csv, the downloaded worksheet with grades and feedback filled in, and a plain CSV.

    Args:
        grades: of a lab.
        worksheet: Moodle's grading worksheet; without it only the plain CSV is written.
        names: names.csv.
        out: the folder.

    Returns: what was written, and which submissions are no student's.

    Raises: ValueError for a worksheet whose columns can't be told apart, or students who are not in it.
    """
    lines = {grade.student: cell("\n".join(feedback_lines(grade))) for grade in grades}
    plain, written = [["Email address", "ID number", "Grade", "Feedback"]], []
    found, keys = {grade.student: {} for grade in grades}, MOODLE_KEYS
    if worksheet is not None:
        sheet = read_roster(worksheet)
        keys, for_grade, for_feedback = moodle_columns(sheet)
        found = match(_students(grades), sheet, keys, names, _strays(grades))
    for grade in (grade for grade in grades if grade.student in found):
        person = found[grade.student]
        by_address = "@" in grade.student
        addresses = [person[column] for column in keys.ids if "@" in person.get(column, "")]
        address = [*addresses, grade.student if by_address else ""][0]
        number = person.get("ID number", "" if by_address else grade.student)
        plain.append([cell(address), cell(number), points(grade), lines[grade.student]])
        if person and not grade.ungraded:
            person |= {for_grade: points(grade), for_feedback: lines[grade.student]}
    if worksheet is not None:
        header = [*sheet.header, *([] if for_feedback in sheet.header else [for_feedback])]
        rows = [[person.get(name, "") for name in header] for person in sheet.rows]
        written.append(write_text(out / "moodle.csv", csv_text([header, *rows], sheet.delimiter)))
    return [*written, write_text(out / "moodle_plain.csv", csv_text(plain))], _left_out(
        grades, found
    )


def moodle_columns(sheet: Roster) -> tuple[Keys, str, str]:
    """Where Moodle's worksheet says who a person is, and its columns for the grade and for feedback.

    A site in another language calls them otherwise. Then they are told by what they hold: the first is the identifier,
    the grade stands before its maximum, which is one number in all rows, and people are named between the two.
    Raises: ValueError where that leaves a doubt.
    """
    if {"Identifier", "Grade"} <= set(sheet.header):
        return MOODLE_KEYS, "Grade", "Feedback comments"
    places = range(2, len(sheet.header))
    values = {at: {row[sheet.header[at]] for row in sheet.rows} for at in places}
    one_number = re.compile(r"\d+([.,]\d+)?")
    maximum = [
        at for at in places if len(values[at]) == 1 and one_number.fullmatch(next(iter(values[at])))
    ]
    identified = all(re.search(r"\d$", row[sheet.header[0]]) for row in sheet.rows)
    if len(maximum) != 1 or not identified:
        raise ValueError(
            f"{sheet.path} must be Moodle's grading worksheet, with the columns Identifier and Grade; where yours are "
            "named in another language and can't be told apart, set your Moodle to English and download it again"
        )
    grade = maximum[0] - 1
    told = [
        name
        for name in sheet.header[:grade]
        if len({row[name] for row in sheet.rows}) == len(sheet.rows)
    ]
    feedback = [
        name
        for name in sheet.header[grade + 2 :]
        if re.search("(?i)feedback|comm?ent|komment", name)
    ]
    keys = replace(MOODLE_KEYS, number=sheet.header[0], names=told[1:], ids=told)
    return keys, sheet.header[grade], feedback[-1] if feedback else "Feedback comments"


def _students(grades: Sequence[Grade]) -> list[str]:
    return [grade.student for grade in grades]


def _strays(grades: Sequence[Grade]) -> list[str]:
    """Submissions that may be no student's: a file of another kind, a folder without a notebook."""
    return [grade.student for grade in grades if grade.stray]


def _left_out(grades: Sequence[Grade], found: Mapping) -> list[str]:
    return [student for student in _students(grades) if student not in found]
