"""A person's marks of one written question: asked for in the terminal, or filled into one file for the whole class.

The file is YAML: the question with its model answer and rubric once, then each student's answer with a place for points
and a comment. Read back, it changes the students' forms as the terminal does: all of it or, where something is wrong,
nothing. Marks lie in the forms alone; the file is a way to them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grader.feedback import LOOK_AGAIN, block, form_text, read_manual, set_mark, write_manual
from grader.grade import readable
from grader.results import Grade, MarkedExercise
from minigrpo.files import write_text

HEAD = """\
# {id} of {count} students. Fill in `points`, 0 to {points}, and where you like `comment`, which the student reads.
# What is left empty changes nothing. Then: python -m grader mark GRADES {id} --read THIS_FILE
# `look_again`: the mark was given for an earlier answer; change it or not, and delete that line.
"""
NUMBER = re.compile(r"\d+\.?\d*|\.\d+")


@dataclass(frozen=True)
class Question:
    """A written question of a lab."""

    id: str  # as in "lab02.4"
    points: int
    text: str
    rubric: str  # the model answer and the rubric, "" where the sources are not there
    entry: Mapping[str, Any]  # the lab in the manifest
    rubrics: Mapping[str, str]  # of all its questions


def find_question(lab: str, entry: Mapping, exercise: str, rubrics: Mapping[str, str]) -> Question:
    """A question by its number. Raises ValueError that names those that the lab has.

    Args:
        lab: as in "lab02".
        entry: the lab in the manifest.
        exercise: as in "lab02.4".
        rubrics: the model answer and rubric of each written question.
    """
    rows = {row["id"]: row for row in entry["exercises"] if row["kind"] == "written"}
    if exercise not in rows:
        has = ", ".join(rows) or "none"
        raise ValueError(f"{lab} has no written question {exercise!r}, it has {has}")
    row, rubric = rows[exercise], rubrics.get(exercise, "")
    return Question(exercise, row["points"], row["question"], rubric, entry, rubrics)


def _rows(grades: Sequence[Grade], question: Question) -> Iterator[tuple[Grade, MarkedExercise]]:
    """Each student with what was answered."""
    for grade in grades:
        for row in grade.exercises:
            if row.id == question.id:
                yield grade, row


# ---------------------------------------------------------------------------------------------------------------------
# In the terminal
# ---------------------------------------------------------------------------------------------------------------------


def ask(grades: Sequence[Grade], question: Question, out: Path) -> None:
    """Ask for the marks, a student after the other; Ctrl-D ends, what is given is kept.

    Args:
        grades: of the class.
        question: to mark.
        out: the grades' folder.
    """
    waiting = [
        (grade, row)
        for grade, row in _rows(grades, question)
        if row.open or (row.stale and not grade.problem)
    ]
    print(f"{question.text}\n\n{question.rubric}" if waiting else "no answer waits for a mark")
    try:
        for number, (grade, row) in enumerate(waiting, start=1):
            before = f", {row.earned:g} point{'s' * (row.earned != 1)} before" if row.stale else ""
            print(
                f"\n[{number} of {len(waiting)}] {grade.student}{before}\n\n{readable(row.answer or '')}\n"
            )
            points = _ask_points(question.points)
            if points is not None:
                comment = input("comment, which the student reads: ").strip()
                # where `grade` was stopped before it wrote them
                write_manual(grade, question.entry, out, question.rubrics)
                set_mark(grade, question.id, points, comment, out)
    except EOFError:
        print()


def _ask_points(most: int) -> float | None:
    """A number of points from the keyboard, None for an empty line."""
    while True:
        said = input(f"points, 0 to {most} (Enter: later): ").strip()
        if not said:
            return None
        try:
            points = float(said)
        except ValueError:
            continue
        if 0 <= points <= most:
            return _whole(points)


def _whole(points: float) -> float:
    return int(points) if points == int(points) else points


# ---------------------------------------------------------------------------------------------------------------------
# In one file
# ---------------------------------------------------------------------------------------------------------------------


class _Loader(yaml.BaseLoader):
    """YAML whose scalars are what a person wrote, and where no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            place = f" in line {node.start_mark.line + 1}" if node.start_mark else ""
            raise yaml.YAMLError(f"{twice[0]} stands twice in what begins{place}")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        nothing = node.style is None and node.value in ("~", "null", "Null", "NULL")
        return "" if nothing else super().construct_scalar(node)


@dataclass(frozen=True)
class _Entry:
    """What a file says of one student's answer; "" where it says nothing."""

    student: str
    answer: str
    points: str
    comment: str
    look_again: str

    @property
    def filled_in(self) -> bool:
        return bool(self.points or self.comment)


def write_file(grades: Sequence[Grade], question: Question, out: Path, path: Path) -> list[str]:
    """Write the file to fill in; marks that are given stand in it, and those of an earlier file that was not read.

    Args:
        grades: of the class.
        question: to mark.
        out: the grades' folder; where the file is there already, it is kept in its manual/earlier/.
        path: of the file.

    Returns: what is to be said.

    Raises: ValueError where another file is there, or no student has an answer; OSError.
    """
    rows = [
        (grade, row)
        for grade, row in _rows(grades, question)
        if not grade.problem and (row.answer or row.by == "person")
    ]
    if not rows:
        raise ValueError(f"nobody has answered {question.id}")
    filled = {}
    if path.exists():
        filled = {entry.student: entry for entry in _read(path, question) if entry.filled_in}
    said, answers = [], []
    for grade, row in rows:
        mark = _mark(grade, question, out)
        own = _Entry(
            student=grade.student,
            answer=block(row.answer) or "",
            points=_text(mark.get("points")),
            comment=str(mark.get("comment") or ""),
            look_again=LOOK_AGAIN if row.stale else "",
        )
        entry = _carried(own, filled.pop(grade.student, None))
        if own.points not in ("", entry.points):
            told = f"{own.points} in the form, {entry.points} in the file, which stays"
            said.append(f"{grade.student}: {told}")
        answers.append(_as_yaml(entry))
    said += [f"{student}: has no answer any more, and is left out" for student in filled]
    form = {
        "exercise": question.id,
        "question": block(question.text),
        "rubric": block(question.rubric),
        "answers": answers,
    }
    text = HEAD.format(id=question.id, count=len(rows), points=question.points) + form_text(form)
    _keep(path, text, question, out)
    write_text(path, text)
    waiting = sum(not answer["points"] and answer["points"] != 0 for answer in answers)
    return [f"{path} holds {len(rows)} answers, {waiting} without points", *said]


def _mark(grade: Grade, question: Question, out: Path) -> Mapping[str, Any]:
    """What stands in a student's form."""
    return read_manual(out, grade.student).get("exercises", {}).get(question.id, {})


def _text(points: float | None) -> str:
    return "" if points is None else f"{points:g}"


def _carried(own: _Entry, filled: _Entry | None) -> _Entry:
    """A student's entry: what the form says, and over it what an earlier file does."""
    if filled is None:
        return own
    changed = not _same_text(filled.answer, own.answer)
    points = filled.points or own.points
    new = (points, filled.comment or own.comment) != (own.points, own.comment)
    again = filled.look_again
    if changed:
        again = LOOK_AGAIN if new else own.look_again
    return _Entry(own.student, own.answer, points, filled.comment or own.comment, again)


def _as_yaml(entry: _Entry) -> dict[str, Any]:
    points: Any = entry.points or None
    if NUMBER.fullmatch(entry.points):
        points = _whole(float(entry.points))
    shown = {
        "student": entry.student,
        "answer": block(entry.answer),
        "points": points,
        "comment": entry.comment or None,
    }
    return shown | ({"look_again": entry.look_again} if entry.look_again else {})


def _keep(path: Path, text: str, question: Question, out: Path) -> None:
    """Keep a copy of a file that is written over by another text."""
    if path.exists() and (old := path.read_text(encoding="utf-8")) != text:
        name = f"{question.id}-{hashlib.sha256(old.encode()).hexdigest()[:8]}.yaml"
        write_text(out / "manual" / "earlier" / name, old)


def read_file(grades: Sequence[Grade], question: Question, out: Path, path: Path) -> list[str]:
    """Put the marks of a file into the students' forms; where one of them can't be, none is.

    Args:
        grades: of the class.
        question: that was marked.
        out: the grades' folder.
        path: of the file.

    Returns: what is to be said.

    Raises: ValueError that names each entry with something wrong; OSError.
    """
    rows = {grade.student: (grade, row) for grade, row in _rows(grades, question)}
    entries = _read(path, question)
    wrong: list[str] = []
    changes: list[tuple[Grade, _Entry]] = []
    for entry in entries:
        if not entry.filled_in:
            continue
        if entry.student not in rows:
            wrong.append(f"{entry.student} is none of the students in {out}")
            continue
        grade, row = rows[entry.student]
        mark = _mark(grade, question, out)
        if _is_as_before(entry, row, mark):
            continue
        problem = _problem(entry, grade, row, mark)
        wrong += [problem] if problem else []
        changes.append((grade, entry))
    if wrong:
        raise ValueError(f"no mark of {path} was taken: {'; '.join(wrong)}")
    for grade, entry in changes:
        write_manual(grade, question.entry, out, question.rubrics)
        points = _whole(float(entry.points)) if entry.points else None
        again = bool(entry.look_again)
        set_mark(grade, question.id, points, entry.comment, out, look_again=again)
    names = ", ".join(grade.student for grade, _ in changes) or "nobody's, as nothing is new"
    empty = sum(not entry.filled_in for entry in entries)
    return [f"marks put into {out / 'manual'}: {names}; still empty: {empty} of {len(entries)}"]


def _is_as_before(entry: _Entry, row: MarkedExercise, mark: Mapping[str, Any]) -> bool:
    """Whether an entry says what the form does; one of an earlier answer says nothing of the present one."""
    points_same = entry.points in ("", _text(mark.get("points")))
    same = points_same and entry.comment in ("", str(mark.get("comment") or ""))
    looked = row.stale and not entry.look_again
    return same and not (looked and _same_text(entry.answer, row.answer or ""))


def _problem(entry: _Entry, grade: Grade, row: MarkedExercise, mark: Mapping[str, Any]) -> str:
    """Why an entry can't be taken, empty where it can."""
    if grade.problem:
        return f"{entry.student}'s submission can't be read any more"
    if not _same_text(entry.answer, row.answer or ""):
        return (
            f"{entry.student}'s answer has changed since: write the file again with --write, "
            "which keeps what you filled in, and look at it"
        )
    if entry.points:
        number = NUMBER.fullmatch(entry.points)
        earned = float(entry.points) + (mark.get("delta") or 0) if number else -1
        if not 0 <= earned <= row.points:
            return f"points of {entry.student} must be from 0 to {row.points}, got {entry.points}"
    return ""


def _same_text(one: str, other: str) -> bool:
    """Whether two answers are the same but for what an editor does to blanks and lines."""
    return (block(one) or "").split() == (block(other) or "").split()


def _read(path: Path, question: Question) -> list[_Entry]:
    """Read a file. Raises ValueError that says what is wrong with it."""
    try:
        form = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: save it again as UTF-8") from error
    if not isinstance(form, dict) or not isinstance(form.get("answers"), list):
        raise ValueError(f"{path} is no file that `mark --write` wrote: name another")
    if form.get("exercise") != question.id:
        raise ValueError(f"{path} is for {form.get('exercise')}, not for {question.id}")
    entries = [_entry(path, found) for found in form["answers"]]
    twice = [name for name, count in Counter(e.student for e in entries).items() if count > 1]
    if twice:
        raise ValueError(f"{path} names {', '.join(twice)} twice: keep one entry of each")
    return entries


def _entry(path: Path, found: Any) -> _Entry:
    """One student's entry. Raises ValueError."""
    if not isinstance(found, dict) or not isinstance(found.get("student"), str):
        raise ValueError(f"{path}: each entry of `answers` must be a mapping with its `student`")
    names = ("student", "answer", "points", "comment", "look_again")
    texts = {name: found.get(name, "") for name in names}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{path}: {name} of {found['student']} must be one text")
    student = texts.pop("student")
    return _Entry(student, **{name: text.strip() for name, text in texts.items()})
