"""Whose submission is it? The row of a roster that a submission belongs to, or nobody's: never another student's.

What Canvas and Moodle let you download is named by a form of their own; it is read from the left, as its end is the
name that the student gave the file. Any other submission has to be named by a person's whole name or by one of a
person's ids, whole. The rest is asked for in names.csv.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minigrpo.files import write_text

NAMES = ("submission", "id")  # the columns of names.csv
# full-width ones count in East Asian settings
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True)
class Roster:
    """A CSV with a row a student."""

    path: Path
    delimiter: str
    header: list[str]
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Keys:
    """Where a roster says who a person is."""

    # how the system names a download: a regular expression with `name`, `number` and, if it is sure, `sure`
    form: str
    number: str  # the column that holds the form's number
    # what may stand before the number in that column: "Participant 42", "Teilnehmer/in42"
    label: str
    names: Sequence[str]  # columns with whole names
    ids: Sequence[str]  # columns with ids, logins, addresses


def cell(text: object) -> str:
    """Make a text safe for a spreadsheet: one that begins like a formula is shown, not computed."""
    text = str(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def csv_text(rows: Iterable[Sequence], delimiter: str = ",") -> str:
    """Rows as CSV, each cell in quotes: a semicolon in one does not begin another where Excel splits at semicolons."""
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows(
        rows
    )
    return file.getvalue()


def read_roster(path: Path, needed: Iterable[str] = ()) -> Roster:
    """Read a roster. Raises ValueError for missing columns, no rows, or a file that is no CSV."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Excel writes the list separator of its country
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, restval="")
        rows = list(reader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: save it as a CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path} can't be read as a CSV: {error}") from error
    header = list(reader.fieldnames or ())
    if missing := [name for name in needed if name not in header]:
        raise ValueError(
            f"{path} must hold the columns {', '.join(needed)} and a row a student, lacks {', '.join(missing)}"
        )
    if not rows:
        raise ValueError(f"{path} must hold a row a student, and holds none")
    return Roster(path, delimiter, header, rows)


def match(
    students: Sequence[str], roster: Roster, keys: Keys, names: Path, strays: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """Find each student's row.

    Args:
        students: names of submissions.
        roster: of people.
        keys: where it says who a person is.
        names: names.csv, which people fill in.
        strays: submissions that may be no student's.

    Returns: rows by name, without the strays that have none of their own.

    Raises: ValueError for students without one row, all in one sentence, after their lines were added to names.csv, and
        where two submissions are one person's.
    """
    given = _read_names(names)
    found = {
        student: find(student, roster.rows, keys, given.get(_composed(student), ""))
        for student in students
    }
    missing = [
        student for student, rows in found.items() if len(rows) != 1 and student not in strays
    ]
    if missing:
        _write_names(names, given, missing)
        raise ValueError(
            f"{roster.path} has no one row for {', '.join(map(repr, missing))}: "
            f"write the id of each into {names}, and export again"
        )
    owners: dict[int, str] = {}
    # what was graded has its row first
    for student in sorted(students, key=lambda student: student in strays):
        rows = found[student]
        if student in strays and (len(rows) != 1 or id(rows[0]) in owners):
            continue
        other = owners.setdefault(id(rows[0]), student)
        if other != student:
            raise ValueError(
                f"{roster.path} has one row for both {other!r} and {student!r}: "
                f"write the right id of one into {names}, or take one of them away and grade again"
            )
    return {student: found[student][0] for student in owners.values()}


def find(
    student: str, rows: Sequence[dict[str, str]], keys: Keys, given: str = ""
) -> list[dict[str, str]]:
    """The rows that may be a submission's: one where it is clear whose it is.

    Args:
        student: the name of a submission.
        rows: of the roster.
        keys: where it says who a person is.
        given: the id that a person wrote for it, "" where nobody did; it counts alone.
    """
    if given:
        return [row for row in rows if _key(given) in _ids(row, keys)]
    form = re.match(keys.form, student, re.IGNORECASE)
    if form:
        numbered = [row for row in rows if _number(row, keys) == form["number"]]
        named = _named(form["name"], rows, keys, _letters)
        agree = [row for row in numbered if row in named]
        # a number that belongs to somebody of another name is believed by nobody
        if agree or form["sure"]:
            return agree or ([] if named else numbered)
    whole = _named(student, rows, keys, _words)
    return whole + [row for row in rows if _key(student) in _ids(row, keys) and row not in whole]


def _named(
    name: str, rows: Sequence[dict[str, str]], keys: Keys, form: Callable
) -> list[dict[str, str]]:
    wanted = form(name)
    return [
        row
        for row in rows
        if wanted and any(form(row.get(column, "")) == wanted for column in keys.names)
    ]


def _ids(row: Mapping[str, str], keys: Keys) -> set[str]:
    values = {_key(row.get(column, "")) for column in keys.ids} | {_number(row, keys)}
    return values - {""}


def _number(row: Mapping[str, str], keys: Keys) -> str:
    found = re.fullmatch(rf"{keys.label}(\d+)", row[keys.number].strip())
    return found[1] if found else ""


def _composed(text: str) -> str:
    """A text with its accents in one form: macOS takes "é" apart in names of files."""
    return unicodedata.normalize("NFC", text)


def _key(text: str) -> str:
    """A text as it is compared: accents in one form, capitals do not matter."""
    return _composed(_composed(text.strip()).casefold())


def _words(name: str) -> list[str]:
    """A whole name as it is compared: "Lee, Anna" and "anna_lee" are one."""
    return sorted(re.findall(r"[^\s,_]+", _key(name)))


def _letters(name: str) -> str:
    """A name as Canvas runs it together: "Lee, Anna" is leeanna."""
    return re.sub(r"[\W_]+", "", _key(name))


def _read_names(path: Path) -> dict[str, str]:
    """The ids that people wrote into names.csv, by submission; {} where there is no such file."""
    if not path.exists():
        return {}
    rows = read_roster(path, NAMES).rows
    given = {_composed(_uncell(row["submission"])): _uncell(row["id"].strip()) for row in rows}
    if len(given) < len(rows):
        raise ValueError(f"{path} names a submission twice: keep one line for each")
    return given


def _write_names(path: Path, given: Mapping[str, str], missing: Sequence[str]) -> None:
    lines = {_composed(student): "" for student in missing} | dict(given)
    rows = [[cell(student), cell(number)] for student, number in lines.items()]
    write_text(path, "\ufeff" + csv_text([NAMES, *rows]))  # the mark tells Excel that this is UTF-8


def _uncell(text: str) -> str:
    """What `cell` was given."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(FORMULA) else text
