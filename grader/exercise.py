"""What an exercise is to the grader: cases drawn from a seed, a reference, a judge, and mistakes it knows by name.

A case is a dict of arguments. The reference and each named mistake are functions with the student's signature; they run
here, in the trusted process, through the same driver that runs the student's function in the worker.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grader.drivers import DRIVERS, NOT_FINITE
from grader.protocol import ProtocolError

# what a wrong implementation may raise
RAISED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Case = dict[str, Any]
# (arguments, expected, answer) → what is wrong, or None
Judge = Callable[[Case, Any, Any], "str | None"]


def close(rtol: float = 1e-5) -> Judge:
    """Judge an answer by its type, then its shape, then its values, each within rtol of the largest one expected.

        |answer − expected| ≤ rtol · max |expected|

    So zero never passes for something that is not zero. Whole numbers, bools and text have to be equal.
    """

    def judge(arguments: Case, expected: Any, answer: Any) -> str | None:
        return difference(expected, answer, rtol)

    return judge


def difference(expected: Any, answer: Any, rtol: float, where: str = "the answer") -> str | None:
    """Say in a sentence how an answer differs from what was expected, or None where it does not.

    Args:
        expected: the right answer.
        answer: the student's.
        rtol: of floats, relative; of arrays to their largest entry.
        where: it stands, for the message.
    """
    if _is_array(expected):
        return _array_difference(expected, answer, rtol, where)
    if (
        _is_array(answer)
        and not isinstance(expected, (Mapping, list, tuple))
        and math.prod(answer.shape) == 1
    ):
        answer = answer.item()
    if isinstance(expected, Mapping):
        if not isinstance(answer, dict) or set(answer) != set(expected):
            return f"{where} must be a dict with the keys {sorted(expected)}, got {_brief(answer)}"
        pairs = ((f"{where}[{key!r}]", expected[key], answer[key]) for key in expected)
    elif isinstance(expected, (list, tuple)):
        if not isinstance(answer, (list, tuple)) and not (_is_array(answer) and answer.ndim):
            return f"{where} must be a {type(expected).__name__}, got {_brief(answer)}"
        if len(answer) != len(expected):
            return f"{where} must hold {len(expected)} items, got {len(answer)}"
        rows = torch.as_tensor(answer) if _is_array(answer) else answer
        pairs = ((f"{where}[{i}]", expected[i], rows[i]) for i in range(len(expected)))
    elif isinstance(expected, float):
        if isinstance(answer, bool) or not isinstance(answer, (int, float)):
            return f"{where} must be a number, got {_brief(answer)}"
        right = math.isclose(answer, expected, rel_tol=rtol, abs_tol=0.0 if expected else 1e-12)
        return None if right else f"{where}: {_compared(expected, answer)}"
    else:
        right = type(answer) is type(expected) and answer == expected
        return None if right else f"{where}: expected {_brief(expected)}, got {_brief(answer)}"
    return next(
        (found for path, want, got in pairs if (found := difference(want, got, rtol, path))), None
    )


def _array_difference(
    expected: Tensor | np.ndarray, answer: Any, rtol: float, where: str
) -> str | None:
    if not _is_array(answer):
        kind = "torch.Tensor" if isinstance(expected, Tensor) else "numpy.ndarray"
        if answer == NOT_FINITE:
            return f"{where} holds {answer}"
        return f"{where} must be a {kind}, got {_brief(answer)}"
    want, got = torch.as_tensor(expected).detach(), torch.as_tensor(answer).detach()
    if got.shape != want.shape:
        return f"{where} must have shape {tuple(want.shape)}, got {tuple(got.shape)}"
    kinds = [_kind(tensor) for tensor in (want, got)]
    if kinds[0] != kinds[1]:
        return f"{where} must have {kinds[0]} entries, got {got.dtype}"
    gap = (got.double() - want.double()).abs()
    allowed = (
        (rtol * want.double().abs().nan_to_num(nan=0.0).max() if want.numel() else 0.0)
        if kinds[0] == "float"
        else 0.0
    )
    # a reference is never NaN
    wrong = ~(gap <= max(float(allowed), 1e-12)) & ~(want.isnan() & got.isnan())
    if not wrong.any():
        return None
    place = tuple(wrong.nonzero()[0].tolist())
    count = (
        f"{int(wrong.sum())} of {wrong.numel()} entries are wrong, first"
        if wrong.numel() > 1
        else "wrong"
    )
    at = f" at {list(place)}" if place else ""
    single = " (float32?)" if got.dtype == torch.float32 else ""
    return f"{where}: {count}{at}: {_compared(want[place].item(), got[place].item(), single)}"


def _compared(expected: float, answer: float, cause: str = "") -> str:
    """Both numbers in six digits, and where these are the same, what is between them."""
    texts = f"{expected:.6g}", f"{answer:.6g}"
    gap = f", off by {abs(answer - expected):.1g}{cause}" if texts[0] == texts[1] else ""
    return f"expected {texts[0]}, got {texts[1]}{gap}"


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _kind(tensor: Tensor) -> str:
    return (
        "bool" if tensor.dtype == torch.bool else "float" if tensor.is_floating_point() else "int"
    )


def _brief(value: Any) -> str:
    if _is_array(value):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


@dataclass(frozen=True)
class Recorded:
    """What a function gave in the public cases: all that the students' archive has of it (grader/public.py)."""

    cases: tuple[Case, ...]
    outcomes: tuple[Any, ...]  # of the driver, a case each; an exception where it raised one

    def __call__(self, case: Case) -> Any:
        """The outcome in one of these very cases. Raises: KeyError for any other, and what the function raised."""
        known = [at for at, one in enumerate(self.cases) if one is case]
        if not known:
            raise KeyError("nothing is recorded for this case")
        outcome = self.outcomes[known[0]]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass(frozen=True)
class Part:
    """Some points of an exercise, given where every case drawn for it is answered right."""

    name: str  # shown to the student, also for hidden cases
    points: int
    # None in the students' archive, where no case can be drawn
    draw: Callable[[np.random.Generator], Case] | None
    hint: str  # said where a hidden case fails and no named mistake explains it
    draws: int = 4  # hidden cases
    examples: tuple[Case, ...] = ()  # shown in the public check, before one drawn case
    # the public check tries the examples alone and shows nothing of what was expected
    secret: bool = False


@dataclass(frozen=True)
class Mistake:
    """A wrong implementation that people write, and what to tell them."""

    name: str
    hint: str
    wrong: Callable[..., Any]  # as the reference


@dataclass(frozen=True)
class Exercise:
    """One graded function of a lab."""

    id: str  # "lab02.1"
    function: str  # the name that the student defines
    reference: Callable[..., Any]
    parts: tuple[Part, ...]
    mistakes: tuple[Mistake, ...] = ()
    driver: str = "call"  # one of grader.drivers.DRIVERS
    judge: Judge = close()
    seconds: float = 10.0  # for one case
    # draws random numbers from a seed: a new process has to find the very same answer
    seeded: bool = False

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    def run(self, function: Callable[..., Any], case: Case) -> Any:
        """Call a trusted function as the worker calls the student's."""
        if isinstance(function, Recorded):
            return function(case)
        return DRIVERS[self.driver]({self.function: function}, self.function, case)

    def verdict(self, case: Case, expected: Any, answer: Any) -> str | None:
        """What the judge says of an answer. Raises: ProtocolError where the judge can make nothing of it.

        Args:
            case: the arguments.
            expected: the right answer.
            answer: the student's.
        """
        try:
            return self.judge(case, expected, answer)
        except Exception as error:  # an answer may be anything, and costs its part at most
            raise ProtocolError(
                f"the judge stumbled over it ({type(error).__name__}: {error})"
            ) from error

    def case(self, part: Part, seed: int, index: int) -> Case:
        """Draw a hidden case: the same for the same seed, exercise, part and index, and for nothing else.

        Args:
            part: of this exercise.
            seed: of the grading.
            index: which of its draws.

        Raises: ValueError in the students' archive.
        """
        if part.draw is None:
            raise ValueError(
                "the students' archive has no hidden cases: grade in the course's folder"
            )
        label = zlib.crc32(f"{self.id}/{part.name}".encode())
        return part.draw(np.random.default_rng([seed, label, index]))

    def repeats(self, first: Any, second: Any) -> bool:
        """Whether two answers to the same arguments are the same, to the last digit."""
        return difference(first, second, 0.0) is None


@dataclass(frozen=True)
class Artifact:
    """Graded files of a lab: something trained, evaluated again by the grader."""

    id: str  # "lab09.3"
    points: int
    files: tuple[str, ...]  # names in the submission
    # (contents, seed) → name, points, earned, … a part
    grade: Callable[[Mapping[str, bytes | None], int], list[dict]]


@dataclass(frozen=True)
class Attempt:
    """One case with what was expected and what came: an answer, or the reason why there is none."""

    case: Case
    expected: Any
    answer: Any = None
    # "ValueError: …" where it was run here, the kind of the worker's failure where there
    error: str | None = None
    wrong: str | None = None  # what differs; None where the answer is right

    @property
    def passed(self) -> bool:
        return self.error is None and self.wrong is None


def explain(exercise: Exercise, attempts: Sequence[Attempt]) -> Mistake | None:
    """Find the named mistake that gives the student's answer in every case tried, right or wrong, or None."""
    if all(attempt.passed for attempt in attempts):
        return None
    return next(
        (m for m in exercise.mistakes if all(_same(exercise, m, attempt) for attempt in attempts)),
        None,
    )


def _same(exercise: Exercise, mistake: Mistake, attempt: Attempt) -> bool:
    """Whether a mistake does in this case what the student's code did: the same answer, or the same exception."""
    try:
        value = exercise.run(mistake.wrong, attempt.case)
    except RAISED as error:
        return (attempt.error or "").split(":")[0] == type(error).__name__
    try:
        return (
            attempt.error is None and exercise.verdict(attempt.case, value, attempt.answer) is None
        )
    except ProtocolError:
        return False
