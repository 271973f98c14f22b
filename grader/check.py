"""The public check under each exercise: which case failed, what was expected, which mistake it looks like."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from grader.exercise import Attempt, Case, Exercise, explain
from grader.labs import find_exercise

SHOWN = 48  # entries of a tensor that are printed in full
PUBLIC_SEED = 0  # the instructor's seed is another one


def check(exercise_id: str, function: Callable[..., Any]) -> None:
    """Try a function on the public cases of an exercise and print what was found.

    Hidden cases are drawn when the lab is graded.
    Raises: KeyError for an exercise that does not exist, TypeError for something that can't be called.
    """
    exercise = find_exercise(exercise_id)
    if not callable(function):
        example = f"check({exercise_id!r}, {exercise.function})"
        raise TypeError(f"check takes your function, as in {example}, got {function!r}")
    print("\n".join(public_report(exercise, function)[0]))


def public_report(exercise: Exercise, function: Callable[..., Any]) -> tuple[list[str], bool]:
    """Run the public cases and describe the outcome in lines."""
    cases = [(part, case) for part in exercise.parts for case in public_cases(exercise, part)]
    tried = [(part, attempt(exercise, function, case)) for part, case in cases]
    failed = [(part, found) for part, found in tried if not found.passed]
    if not failed:
        points = f"{exercise.points} point{'s' * (exercise.points != 1)}"
        return [f"{exercise.id}: all {len(tried)} public cases pass. Hidden cases decide its {points}."], True
    part, first = failed[0]
    if first.error and first.error.startswith("NotImplementedError"):
        return [f"{exercise.id}: not written yet (`{exercise.function}` raises NotImplementedError)."], False
    lines = [f"{exercise.id}: {len(failed)} of {len(tried)} public cases fail. The first, of “{part.name}”:"]
    lines += [f"  {name} = {_show(value)}" for name, value in first.case.items()]
    lines += [f"  your code raised {first.error}" if first.error else f"  {first.wrong}"]
    if not first.error and first.expected is not None and not part.secret:
        lines += [f"  expected {_show(first.expected)}", f"  got      {_show(first.answer)}"]
    mistake = explain(exercise, [found for _, found in tried])
    lines += [f"  It looks like this: {mistake.hint}" if mistake else f"  Hint: {part.hint}"]
    return lines, False


def public_cases(exercise: Exercise, part) -> list[Case]:
    """The worked examples of a part, then one drawn case unless the part keeps them secret."""
    return [*part.examples] if part.secret else [*part.examples, exercise.case(part, PUBLIC_SEED, 0)]


def attempt(exercise: Exercise, function: Callable[..., Any], case: Case) -> Attempt:
    """Run the student's function on one case, here, in the student's own process."""
    expected = exercise.run(exercise.reference, case)
    try:
        answer = exercise.run(function, copy.deepcopy(case))  # what it changes is its own
    except Exception as error:  # noqa: BLE001  (a student's code may raise anything; the check has to say what)
        return Attempt(case, expected, error=f"{type(error).__name__}: {error}")
    return Attempt(case, expected, answer, wrong=exercise.judge(case, expected, answer))


def _show(value: Any) -> str:
    """Show an argument or answer in full where it is short."""
    if isinstance(value, torch.Tensor):
        text = str(value.tolist()) if value.numel() <= SHOWN else f"tensor of shape {tuple(value.shape)}, {value.dtype}"
        return _rounded(value) if value.is_floating_point() and value.numel() <= SHOWN else text
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}…"


def _rounded(value: torch.Tensor) -> str:
    return str(torch.round(value.detach().double(), decimals=4).tolist())
