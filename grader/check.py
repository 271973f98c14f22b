"""The public check under each exercise: which case failed, what was expected, which mistake it looks like."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from grader.exercise import Attempt, Case, Exercise, explain
from grader.labs import find_exercise
from grader.protocol import ProtocolError, carried

SHOWN = 48  # entries of a tensor that are printed in full
LONGEST = 400  # characters of any other value
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
    with _said_when_slow(exercise):
        tried = [(part, attempt(exercise, function, case)) for part, case in cases]
    failed = [(part, found) for part, found in tried if not found.passed]
    if not failed:
        points = f"{exercise.points} point{'s' * (exercise.points != 1)}"
        form_alone = all(part.secret for part in exercise.parts)
        passed = (
            "the form is right, nothing else was looked at"
            if form_alone
            else f"all {len(tried)} public cases pass"
        )
        return [f"{exercise.id}: {passed}. Hidden cases decide its {points}."], True
    part, first = failed[0]
    # torch raises that too, of what a device can't do
    if first.error == f"NotImplementedError: {exercise.id}":
        return [
            f"{exercise.id}: not written yet (`{exercise.function}` raises NotImplementedError)."
        ], False
    if part.secret:
        lines = [f"{exercise.id}: the form is not right.", f"  {_reason(first)}"]
    else:
        lines = [
            f"{exercise.id}: {len(failed)} of {len(tried)} public cases fail. The first, of “{part.name}”:"
        ]
        lines += _described(exercise, first)
    if mistake := explain(exercise, [found for _, found in tried]):
        lines += [f"  It looks like this: {mistake.hint}"]
    elif not first.error and not part.secret:
        lines += [
            f"  It is no mistake that we know by name. What “{part.name}” asks for: {part.hint}"
        ]
    return lines, False


def public_cases(exercise: Exercise, part) -> list[Case]:
    """The worked examples of a part, then one drawn case unless the part keeps them secret.

    In the students' archive that case is an example, too.
    """
    drawn = [] if part.secret or part.draw is None else [exercise.case(part, PUBLIC_SEED, 0)]
    return [*part.examples, *drawn]


def attempt(exercise: Exercise, function: Callable[..., Any], case: Case) -> Attempt:
    """Run the student's function on one case, here, in the student's own process.

    Arguments and answer are what they would be if they travelled to a sandbox and back, so that no right answer is lost
    on the way when it is graded.

    Args:
        exercise: of a lab.
        function: the student's.
        case: its arguments.
    """
    expected = exercise.run(exercise.reference, case)
    try:
        answer = carried(exercise.run(function, carried(case, finite=False)), finite=True)
        return Attempt(case, expected, answer, wrong=exercise.verdict(case, expected, answer))
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a student's code may raise anything; it has to be said)
        return Attempt(case, expected, error=f"{type(error).__name__}: {error}")


@contextmanager
def _said_when_slow(exercise: Exercise):
    """Say while it runs that the code takes longer than the grader waits: nothing can end it from here."""
    said = (
        f"{exercise.id}: still running after {exercise.seconds:g} seconds, in which the grader wants each case done. "
        "If your code comes to no end, interrupt it (■, or Ctrl-C)."
    )
    timer = threading.Timer(exercise.seconds, print, [said], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _described(exercise: Exercise, found: Attempt) -> list[str]:
    """The case, what is wrong with the answer, and what it should have been."""
    shown = _the_call_that_fails(exercise, found)
    lines = [f"  {name} = {_show(value)}" for name, value in shown.case.items()] + [
        f"  {_reason(found)}"
    ]
    if shown.expected is not None and not _raised(found):
        lines += [f"  expected {_show(shown.expected)}"]
        lines += [f"  got      {_show(shown.answer)}"] if not found.error else []
    return lines


def _raised(found: Attempt) -> bool:
    """Whether the student's code raised, rather than gave an answer that can't be sent or judged."""
    return found.error is not None and not found.error.startswith(f"{ProtocolError.__name__}: ")


def _reason(found: Attempt) -> str:
    """What is wrong, in a sentence: of the answer, of its form, or what the code raised."""
    if _raised(found):
        return f"your code raised {found.error}"
    if found.error:
        return f"the answer can't be graded: {found.error.partition(': ')[2]}"
    return found.wrong or ""


def _the_call_that_fails(exercise: Exercise, found: Attempt) -> Attempt:
    """Of a case that makes several calls, the first that is answered wrongly: few enough numbers to be printed."""
    calls = found.case.get("calls") if exercise.driver == "each" else None
    if (
        found.error
        or not calls
        or not isinstance(found.answer, list)
        or len(found.answer) != len(calls)
    ):
        return found
    for at, (call, want, got) in enumerate(zip(calls, found.expected, found.answer, strict=True)):
        if exercise.verdict({"calls": [call]}, [want], [got]) is not None:
            return Attempt(
                {f"calls[{at}][{name!r}]": value for name, value in call.items()}, want, got
            )
    return found


def _show(value: Any) -> str:
    """Show an argument or answer in full where it is short."""
    text = _written(value)
    return (
        text
        if isinstance(value, (torch.Tensor, np.ndarray)) or len(text) <= LONGEST
        else f"{text[: LONGEST - 1]}…"
    )


def _written(value: Any) -> str:
    """On one line, floats of tensors in four decimals; a tuple as a list, which it is after its way to a sandbox."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach()
        if tensor.numel() > SHOWN:
            return f"tensor of shape {tuple(tensor.shape)}, {tensor.dtype}"
        return str(
            (tensor.double().round(decimals=4) if tensor.is_floating_point() else tensor).tolist()
        )
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_written(item)}' for key, item in value.items())}}}"
    return repr(value)
