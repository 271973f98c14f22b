"""What the grader finds, as types: of a part, of an exercise, of a submission; and what a person's marks make of it.

A `Result` is the grader's alone and lies on disk as JSON, with the fields below as keys. A `Grade` is a result merged
with a person's marks (`feedback.merge`), and is never written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrpo.files import write_json


@dataclass(frozen=True)
class Grading:
    """What the submissions of one grading have in common."""

    lab: str  # as in "lab02"
    entry: Mapping[str, Any]  # the lab in labs/manifest.json
    seed: int  # the instructor's secret
    isolation: str  # "bubblewrap" or "reduced"


@dataclass(frozen=True)
class PartResult:
    """A part of an exercise, and what the student may read about it."""

    name: str
    points: int
    earned: int
    passed: bool
    feedback: str  # "" where it passed
    mistake: bool = False  # whether the feedback is the hint of a known mistake, which is a guess
    # what the grader measured itself, for `grader report` alone: `class_report.RECORD` says its keys
    records: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class ExerciseResult:
    """An exercise: code, files, or a written question, which has no parts."""

    id: str  # as in "lab02.1"
    kind: str  # "code", "artifact" or "written"
    points: int
    earned: float
    parts: tuple[PartResult, ...] = ()
    answer: str | None = None  # of a written question
    failed: str | None = None  # what the grader itself failed with: for instructors alone

    def marked(self, **changes: Any) -> MarkedExercise:
        """The exercise after a person's marks."""
        return MarkedExercise(**vars(self) | changes)


@dataclass(frozen=True)
class Result:
    """What the grader found in one submission."""

    student: str
    lab: str
    sha256: str  # of the submission; "" where it can't be read
    seed: int
    isolation: str
    version: str  # of the code that decides the lab's points
    problem: str | None  # why nothing could be graded, for the student
    earned: float
    points: int
    exercises: tuple[ExerciseResult, ...]
    failed: str | None = None  # what the grader itself failed with, where it could grade nothing
    stray: bool = False  # no notebook: perhaps a file that lies beside a submission

    def graded(self, **changes: Any) -> Grade:
        """The result after a person's marks."""
        return Grade(**vars(self) | changes)

    def to_json(self) -> dict[str, Any]:
        """The result as it lies on disk."""
        saved = dataclasses.asdict(self)
        for exercise in saved["exercises"]:
            for part in exercise["parts"]:
                for name in ("mistake", "records"):
                    if not part[name]:
                        del part[name]
        return saved

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Result:
        """Read what `to_json` made, of earlier versions too. Raises: LookupError or TypeError for anything else."""
        exercises = []
        for row in saved["exercises"]:
            parts = tuple(_known(PartResult, part) for part in row["parts"])
            exercises.append(_known(ExerciseResult, {**row, "parts": parts}))
        return _known(cls, {**saved, "exercises": tuple(exercises)})


def _known(kind: Any, saved: Mapping[str, Any]) -> Any:
    """A dataclass from a mapping that may have more keys."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in saved.items() if name in names})


@dataclass(frozen=True)
class MarkedExercise(ExerciseResult):
    """An exercise after a person's marks: `earned` is final."""

    comment: str = ""
    by: str = "grader"  # or "person"
    open: bool = False  # a written answer, or what the grader failed at, without a mark
    stale: bool = False  # its mark was given for another submission
    ungraded: bool = False  # the grader failed at it, and nobody has marked it


@dataclass(frozen=True)
class Grade(Result):
    """A result after a person's marks: `earned` is final."""

    exercises: tuple[MarkedExercise, ...] = ()
    stale: bool = False  # where an exercise is
    ungraded: bool = False  # where an exercise is


def write_result(result: Result, out: Path) -> Result:
    """Write a result where the others of its grading lie."""
    write_json(out / "auto" / f"{result.student}.json", result.to_json())
    return result


def read_result(path: Path) -> Result | None:
    """Read a result; None where it is missing or damaged: `grade` writes it again."""
    try:
        return Result.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
