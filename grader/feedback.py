"""What people add to a grade, and what is said of it.

The grader writes auto/<student>.json and nobody else does; people write manual/<student>.yaml. A grade is the two
merged: a person's mark wins. Where a student hands in again, the form is written anew: the new answers beside the marks
that were given, with a line at each that has to be looked at again; the earlier form is kept in manual/earlier/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from grader.grade import readable
from grader.results import ExerciseResult, Grade, MarkedExercise, PartResult, Result, read_result
from grader.source import BEGIN, END
from minigrpo.files import write_json, write_text

LOOK_AGAIN = "this mark was given for an earlier submission; change it or not, and delete this line"
TEXTS = ("question", "rubric", "answer")  # of a written question, in its form
MARKS = ("points", "delta", "comment")  # what a person gives


class _Block(str):
    """A text that a form shows line by line."""


class _Dumper(yaml.SafeDumper):
    """YAML as people like to fill it in: texts as blocks, an empty place where a value is missing."""


_Dumper.add_representer(
    _Block, lambda form, text: form.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")
)
_Dumper.add_representer(
    type(None), lambda form, _: form.represent_scalar("tag:yaml.org,2002:null", "")
)


def write_manual(
    result: Result, entry: Mapping, out: Path, rubrics: Mapping[str, str] | None = None
) -> None:
    """Write the form for a person's marks, where there is none yet or it shows an earlier submission.

    It holds each written question with its answer; where the grader failed, every exercise. Marks that were given stay.
    A form that names no submission, as a person writes one, becomes that of the present one.

    Args:
        result: the grader's.
        entry: the lab in the manifest.
        out: the grades' folder.
        rubrics: the model answer and rubric of each written question.
    """
    path = out / "manual" / f"{result.student}.yaml"
    if result.problem and not result.failed:  # the student has to hand in again
        return
    if result.failed and path.exists():
        return
    marks = read_manual(out, result.student)
    if marks and marks.get("submission") == result.sha256:
        return
    forms = _empty_forms(result, entry, rubrics or {})
    for exercise, mark in marks.get("exercises", {}).items():
        given = {key: mark[key] for key in MARKS if mark.get(key) is not None}
        if given:
            form = forms.setdefault(exercise, {})
            same = "answer" in form and form["answer"] == mark.get("answer")
            given_for_another = marked(mark) and "submission" in marks and not same
            if given_for_another or mark.get("look_again"):
                given["look_again"] = LOOK_AGAIN
            form |= given
    if marks:
        earlier = f"{result.student}-{str(marks.get('submission') or 'own')[:8]}.yaml"
        write_text(out / "manual" / "earlier" / earlier, path.read_text(encoding="utf-8"))
    _write_form(path, result, {"submission": result.sha256, "exercises": forms})


def _empty_forms(result: Result, entry: Mapping, rubrics: Mapping[str, str]) -> dict[str, dict]:
    """What a person has to mark: written questions with their answers, and what the grader failed at."""
    questions = {
        row["id"]: row["question"] for row in entry["exercises"] if row["kind"] == "written"
    }
    forms: dict[str, dict] = {}
    for row in result.exercises:
        places = {"out_of": row.points, "points": None, "comment": None}
        if row.id in questions:
            texts = (questions[row.id], rubrics.get(row.id), row.answer)
            forms[row.id] = {
                name: block(text) for name, text in zip(TEXTS, texts, strict=True)
            } | places
        elif result.failed or row.failed:
            forms[row.id] = places
    return forms


def set_mark(
    grade: Result,
    exercise: str,
    points: float | None,
    comment: str,
    out: Path,
    *,
    look_again: bool = False,
) -> None:
    """Write one mark into a student's form, which is there. Comments after # in it are not kept.

    Args:
        grade: whose form is changed.
        exercise: as in "lab02.4".
        points: that it earns; None keeps what stands there.
        comment: "" keeps what stands there.
        out: the grades' folder.
        look_again: whether nobody has looked yet at the answer as it is now.
    """
    marks = read_manual(out, grade.student)
    form = marks["exercises"].setdefault(exercise, {})
    form["points"] = form.get("points") if points is None else points
    form["comment"] = comment or form.get("comment")
    form.pop("look_again", None)
    if look_again:
        form["look_again"] = LOOK_AGAIN
    for other in marks["exercises"].values():
        other |= {name: block(other[name]) for name in TEXTS if isinstance(other.get(name), str)}
    _write_form(out / "manual" / f"{grade.student}.yaml", grade, marks)


def marked(mark: Mapping) -> bool:
    """Whether a person's entry changes what is earned."""
    return mark.get("points") is not None or bool(mark.get("delta"))


def _write_form(path: Path, result: Result, form: Mapping) -> None:
    head = (
        f"# {result.lab}, {result.student}: a person's marks. `points` of a written answer; for graded code,\n"
        "# `points` or a `delta` to add. What stands here wins.\n"
    )
    write_text(path, head + form_text(form))


def form_text(form: Mapping) -> str:
    """A form as YAML that people like to fill in."""
    return yaml.dump(form, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def block(text: str | None) -> _Block | None:
    """A text as YAML can show it in a block: no tabs, no control characters, no spaces at the end of a line."""
    if not text:
        return None
    lines = readable(text).expandtabs(4).replace("\ufeff", "").splitlines()
    return _Block("\n".join(line.rstrip() for line in lines))


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
        text = path.read_text(encoding="utf-8")
        marks, as_written = yaml.safe_load(text), yaml.load(text, Loader=yaml.BaseLoader)
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
        if mark.get("comment") is not None:  # "yes" is a comment, not true
            mark["comment"] = as_written["exercises"].get(exercise, mark)["comment"]
    return marks


def merge(result: Result, marks: Mapping) -> Grade:
    """Merge the grader's result and a person's marks into the final grade.

    Raises: ValueError for a mark for an exercise that the lab does not have, or outside 0 … its points.
    """
    given = dict(marks.get("exercises", {}))
    other = "submission" in marks and marks["submission"] != result.sha256
    rows = tuple(
        _marked_exercise(result, row, given.pop(row.id, {}), other) for row in result.exercises
    )
    if given:
        raise ValueError(
            f"{result.student}: {result.lab} has no exercise {', '.join(map(str, given))}"
        )
    replaced = bool(rows) and all(row.by == "person" for row in rows)
    return result.graded(
        exercises=rows,
        problem=None if replaced else result.problem,
        earned=sum(row.earned for row in rows),
        stale=any(row.stale for row in rows),
        ungraded=any(row.ungraded for row in rows),
    )


def _marked_exercise(
    result: Result, row: ExerciseResult, mark: Mapping, other: bool
) -> MarkedExercise:
    """An exercise with a person's mark; `other`: the marks are for another submission."""
    points = mark.get("points")
    earned = (row.earned if points is None else points) + (mark.get("delta") or 0)
    if not 0 <= earned <= row.points:
        raise ValueError(
            f"{result.student}: {row.id} can earn 0 to {row.points} points, marked {earned:g}"
        )
    by_hand = (row.kind == "written" and bool(row.answer)) or bool(row.failed)
    return row.marked(
        earned=earned,
        comment=str(mark.get("comment") or ""),
        by="person" if marked(mark) else "grader",
        open=by_hand and points is None and not result.problem,
        stale=marked(mark) and (other or bool(mark.get("look_again"))),
        ungraded=bool(result.failed or row.failed) and not marked(mark),
    )


def write_run(out: Path, results: Sequence[Result], folder: Path | None = None) -> None:
    """Remember whose submissions there were: results of others, of earlier runs, count no more.

    Args:
        out: the grades' folder.
        results: of the run.
        folder: of the submissions, where `oral` finds them again.
    """
    found: dict[str, Any] = {"submissions": sorted(result.student for result in results)}
    if folder is not None:
        found["folder"] = str(folder.resolve())
    write_json(out / "run.json", found)


def final_grades(out: Path) -> list[Grade]:
    """The final grade of each student of the last run. Raises ValueError where there are none, or can't be merged."""
    results, _ = _results(out)
    if not results:
        raise ValueError(f"no grades in {out} of submissions that are still there: grade again")
    if len(labs := sorted({result.lab for result in results})) > 1:
        raise ValueError(
            f"{out} holds grades of {' and '.join(labs)}: give each lab a folder of its own"
        )
    return [merge(result, read_manual(out, result.student)) for result in results]


def left_out(out: Path) -> list[str]:
    """Whose results have no submission any more: withdrawn, or renamed since they were graded; says who has marks."""
    _, gone = _results(out)
    students = []
    for result in gone:
        marks = read_manual(out, result.student).get("exercises", {})
        students.append(
            result.student + (" (with marks)" if any(map(marked, marks.values())) else "")
        )
    return students


def check_one_lab(out: Path, lab: str) -> None:
    """Refuse to grade a lab into the results of another. Raises ValueError."""
    others = {
        result.lab for path in (out / "auto").glob("*.json") if (result := read_result(path))
    } - {lab}
    if others:
        raise ValueError(
            f"{out} holds grades of {' and '.join(sorted(others))}: give each lab a folder of its own"
        )


def _results(out: Path) -> tuple[list[Result], list[Result]]:
    """The results of the last run's submissions, in order, and the others."""
    paths = sorted((out / "auto").glob("*.json"))
    if not paths:
        raise ValueError(f"no grades in {out}: run `python -m grader grade … --out {out}` first")
    results, damaged = [], []
    for path in paths:
        result = read_result(path)
        results += [result] if result else []
        damaged += [] if result else [str(path)]
    if damaged:
        raise ValueError(
            f"{', '.join(damaged)} is damaged: run `python -m grader grade … --out {out}` again"
        )
    known = _read_run(out)
    there = [result for result in results if known is None or result.student in known]
    return there, [result for result in results if result not in there]


def _read_run(out: Path) -> list[str] | None:
    """Whose submissions there were in the last run; None where that is not known."""
    return _of_run(out, "submissions")


def submissions_folder(out: Path) -> Path | None:
    """Where the submissions of the last run lay; None where that is not known."""
    folder = _of_run(out, "folder")
    return Path(folder) if isinstance(folder, str) else None


def _of_run(out: Path, key: str) -> Any:
    """What run.json says; None where it says nothing."""
    try:
        return json.loads((out / "run.json").read_text(encoding="utf-8"))[key]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


# ---------------------------------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------------------------------


def score(row: MarkedExercise) -> str:
    """What an exercise earned, and by whom, in words."""
    if row.open:
        return "not marked yet"
    earned = f"{row.earned:g} of {row.points}"
    if row.by == "person" and row.parts:
        return f"{earned} (marked by a person; the grader gave {sum(part.earned for part in row.parts):g})"
    if row.by == "person":
        return f"{earned} (marked by a person)"
    return f"{earned} (no answer)" if row.kind == "written" and not row.answer else earned


def said(part: PartResult) -> str:
    """What a student reads about a part: a hint is worded as a guess where the answers are those of a known mistake."""
    return f"It looks like this: {part.feedback}" if part.mistake else part.feedback


def said_once(parts: Sequence[PartResult]) -> list[str]:
    """What is said about each part of an exercise, a sentence that was said already left away."""
    texts = ["" if part.passed else said(part) for part in parts]
    once = []
    for place, text in enumerate(texts):
        repeated = text and text in texts[:place]
        once.append("as above" if repeated else text)
    return once


def feedback_lines(grade: Grade) -> list[str]:
    """The feedback of one grade as lines of text."""
    if grade.problem:
        return [f"Not graded: {grade.problem}"]
    lines = []
    for row in grade.exercises:
        lines.append(f"{row.id}: {score(row)}")
        for part, text in zip(row.parts, said_once(row.parts), strict=True):
            lines.append(f"  {tick(part)} {part.name}" + (f": {text}" if text else ""))
        if row.comment:
            lines.append(f"  {row.comment}")
    return lines


def tick(part: PartResult) -> str:
    """Whether a part passed, as a sign."""
    return "✓" if part.passed else "✗"
