"""The exercises of each lab: references, cases and named mistakes. Trusted: never imported where student code runs."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

from grader.exercise import Artifact, Exercise

LABS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("lab[0-9][0-9].py")))


@cache
def exercises(lab: str) -> tuple[Exercise, ...]:
    """The exercises of one lab, in order. Raises KeyError for a lab that does not exist."""
    if lab not in LABS:
        raise KeyError(f"lab must be one of {', '.join(LABS)}, got {lab!r}")
    return import_module(f"grader.labs.{lab}").EXERCISES


def artifacts(lab: str) -> tuple[Artifact, ...]:
    """The graded files of one lab; most have none."""
    exercises(lab)  # refuses what does not exist
    return vars(import_module(f"grader.labs.{lab}")).get("ARTIFACTS", ())


def asked_files(lab: str) -> list[str]:
    """The names of the files that one lab asks for beside its notebook."""
    return [name for artifact in artifacts(lab) for name in artifact.files]


def find_exercise(exercise_id: str) -> Exercise:
    """Look an exercise up by its id, as in "lab02.1". Raises KeyError."""
    match = re.fullmatch(r"(lab\d\d)\.\d+", exercise_id)
    known = {exercise.id: exercise for exercise in exercises(match[1])} if match else {}
    if exercise_id not in known:
        raise KeyError(
            f"exercise must look like 'lab02.1' and exist, got {exercise_id!r}; known: {', '.join(known)}"
        )
    return known[exercise_id]
