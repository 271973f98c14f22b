"""The public check as data: what of an exercise the students' archive holds in the place of its code.

Of each public case the arguments, what the reference and each named mistake gave, and nothing to draw another from. The
release writes a file a lab (grader/labs/labNN.json); there `exercises` are read from it, for a check that is the same.

JSON, where {"dict": …}, {"tuple": …}, {"numpy": …}, {"torch": …} and {"raised": …} stand for what JSON does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grader.check import public_cases
from grader.exercise import RAISED, Exercise, Judge, Mistake, Part, Recorded, close


def written(exercises: tuple[Exercise, ...]) -> str:
    """The file of a lab."""
    return json.dumps([_recorded(exercise) for exercise in exercises], ensure_ascii=False)


def read_exercises(path: Path, judges: Mapping[str, Judge]) -> tuple[Exercise, ...]:
    """The exercises of a lab out of its file, each with the judge that its id has here, or the usual one."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(_exercise(row, judges.get(row["id"], close())) for row in rows)


def _recorded(exercise: Exercise) -> dict[str, Any]:
    parts = [(part, public_cases(exercise, part)) for part in exercise.parts]
    cases = [(part, case) for part, those in parts for case in those]
    return {
        "id": exercise.id,
        "function": exercise.function,
        "driver": exercise.driver,
        "seconds": exercise.seconds,
        "parts": [
            {
                "name": part.name,
                "points": part.points,
                "hint": part.hint,
                "secret": part.secret,
                "cases": [_encode(case) for case in those],
            }
            for part, those in parts
        ],
        # a secret one is judged by its form
        "expected": [
            None if part.secret else _encode(exercise.run(exercise.reference, case))
            for part, case in cases
        ],
        "mistakes": [
            {
                "name": mistake.name,
                "hint": mistake.hint,
                "outcomes": [_outcome(exercise, mistake.wrong, case) for _, case in cases],
            }
            for mistake in exercise.mistakes
        ],
    }


def _outcome(exercise: Exercise, function: Callable[..., Any], case: dict[str, Any]) -> Any:
    try:
        return _encode(exercise.run(function, case))
    except RAISED as error:
        return {"raised": type(error).__name__}


def _exercise(row: Mapping[str, Any], judge: Judge) -> Exercise:
    parts = tuple(
        Part(
            name=part["name"],
            points=part["points"],
            draw=None,
            hint=part["hint"],
            examples=tuple(map(_decode, part["cases"])),
            secret=part["secret"],
        )
        for part in row["parts"]
    )
    cases = tuple(case for part in parts for case in part.examples)
    mistakes = tuple(
        Mistake(
            name=mistake["name"],
            hint=mistake["hint"],
            wrong=Recorded(cases, tuple(map(_decode, mistake["outcomes"]))),
        )
        for mistake in row["mistakes"]
    )
    return Exercise(
        id=row["id"],
        function=row["function"],
        reference=Recorded(cases, tuple(map(_decode, row["expected"]))),
        parts=parts,
        mistakes=mistakes,
        driver=row["driver"],
        judge=judge,
        seconds=row["seconds"],
    )


def _encode(value: Any) -> Any:
    match value:
        case np.generic():
            return value.item()
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_encode(item) for item in value]
        case tuple():
            return {"tuple": [_encode(item) for item in value]}
        case dict():
            return {"dict": {key: _encode(item) for key, item in value.items()}}
        case torch.Tensor():
            dtype = str(value.dtype).removeprefix("torch.")
            return {"torch": [dtype, list(value.shape), value.detach().flatten().tolist()]}
        case np.ndarray():
            return {"numpy": [value.dtype.name, list(value.shape), value.ravel().tolist()]}
    raise TypeError(f"{type(value).__name__} has no form in a file")


def _decode(node: Any) -> Any:
    match node:
        case list():
            return [_decode(item) for item in node]
        case {"tuple": items}:
            return tuple(map(_decode, items))
        case {"dict": items}:
            return {key: _decode(item) for key, item in items.items()}
        case {"torch": [dtype, shape, entries]}:
            return torch.tensor(entries, dtype=getattr(torch, dtype)).reshape(shape)
        case {"numpy": [dtype, shape, entries]}:
            return np.array(entries, dtype=dtype).reshape(shape)
        case {"raised": name}:
            return type(name, (RuntimeError,), {})()  # known by its name alone
    return node
