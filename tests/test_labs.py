"""The labs: committed is what the sources make, solutions score all, stubs nothing, each mistake gets its hint."""

from __future__ import annotations

import time
from collections import OrderedDict, namedtuple
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from grader.check import attempt, public_report
from grader.exercise import Attempt, Exercise, explain
from grader.grade import _attempt
from grader.labs import LABS, exercises
from grader.protocol import carried
from grader.sandbox import Answer
from grader.source import build, read_source

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "solutions").glob("lab*.py"))
EXERCISES = [exercise for lab in LABS for exercise in exercises(lab)]
MISTAKES = [(exercise, mistake) for exercise in EXERCISES for mistake in exercise.mistakes]


def run_cells(cells) -> dict:
    """Run a lab's setup and exercise cells."""
    namespace: dict = {}
    for cell in cells:
        if cell.cell_type == "code" and ("exercise" in cell.metadata or "setup" in cell.metadata.get("tags", ())):
            exec(compile(cell.source, "<lab>", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def solved() -> dict[str, dict]:
    return {path.stem[:5]: run_cells(read_source(path).cells) for path in SOURCES}


@pytest.fixture(scope="module")
def stubs() -> dict[str, dict]:
    notebooks = sorted((ROOT / "labs").glob("lab*.ipynb"))
    return {path.stem[:5]: run_cells(nbformat.read(path, 4).cells) for path in notebooks}


def hidden(exercise: Exercise, function, seeds) -> dict[str, list[Attempt]]:
    """Every hidden case of every part for these seeds."""
    return {
        part.name: [
            attempt(exercise, function, exercise.case(part, seed, index))
            for seed in seeds
            for index in range(part.draws)
        ]
        for part in exercise.parts
    }


def test_what_is_committed_is_what_the_sources_make():
    for path, text in build(ROOT / "solutions", ROOT / "labs").items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: python -m grader build"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_the_solution_passes_on_seeds_that_nobody_has_seen(exercise, solved):
    function = solved[exercise.id[:5]][exercise.function]
    for attempts in hidden(exercise, function, range(1000, 1003)).values():
        assert not [(f.wrong, f.error, f.case) for f in attempts if not f.passed][:1]
    assert public_report(exercise, function)[1]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_a_check_answers_within_two_seconds(exercise, solved):
    begin = time.process_time()  # of this process alone: a busy machine is not the check's fault
    public_report(exercise, solved[exercise.id[:5]][exercise.function])
    assert time.process_time() - begin < 2


@pytest.mark.labs
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_the_solution_passes_on_100_seeds(exercise, solved):
    function = solved[exercise.id[:5]][exercise.function]
    for attempts in hidden(exercise, function, range(100)).values():
        assert all(found.passed for found in attempts)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_the_stub_scores_nothing(exercise, stubs):
    function = stubs[exercise.id[:5]][exercise.function]
    for attempts in hidden(exercise, function, [7]).values():
        assert all(found.error == f"NotImplementedError: {exercise.id}" for found in attempts)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_an_answer_that_knows_nothing_scores_nothing(exercise):
    """Zeros, ones and an argument handed back fail every part."""
    for part in exercise.parts:
        case = exercise.case(part, 7, 0)
        expected = exercise.run(exercise.reference, case)
        blanks = [None, 0.0, 1.0, *case.values()]
        if isinstance(expected, torch.Tensor):
            blanks += [torch.zeros_like(expected), torch.ones_like(expected)]
        for blank in blanks:
            assert exercise.judge(case, expected, blank) is not None, (part.name, blank)


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=lambda v: v.id if isinstance(v, Exercise) else v.name)
def test_a_named_mistake_fails_and_gets_its_own_hint(exercise, mistake):
    """On hidden seeds it fails one part at least for each, and on the public cases the hint is its own."""
    for seed in (11, 12, 13):
        failed = {
            name: attempts
            for name, attempts in hidden(exercise, mistake.wrong, [seed]).items()
            if not all(found.passed for found in attempts)
        }
        assert failed, f"{mistake.name} passes every part at seed {seed}"
        crashes = [found.error for attempts in failed.values() for found in attempts if not found.passed]
        assert None in crashes, (
            f"{mistake.name} only crashes: any exception of its kind would get its hint ({crashes[0]})"
        )
        assert mistake in [explain(exercise, attempts) for attempts in failed.values()], f"no hint at seed {seed}"
    lines, passed = public_report(exercise, mistake.wrong)
    assert not passed
    assert mistake.hint in lines[-1]


# What people return: the plain value dressed as numpy, torch and the standard library hand it out.


class Subclass(torch.Tensor):
    pass


def dressed(value, number=lambda x: x, tensor=lambda x: x, many=lambda x: x, mapping=lambda x: x):
    """The same value in other clothes, inside and out; what is none of these kinds is left as it is."""
    clothes = {"number": number, "tensor": tensor, "many": many, "mapping": mapping}
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if isinstance(value, (list, tuple)):
        return many([dressed(item, **clothes) for item in value])
    if isinstance(value, dict):
        return mapping({key: dressed(item, **clothes) for key, item in value.items()})
    return number(value) if isinstance(value, (bool, int, float, str)) else value


def as_array(items: list):
    """An array where items are numbers alone, as most people's lists of indices are."""
    return np.array(items) if items and {type(item) for item in items} <= {int} else items


def small(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.to(torch.int8)


CLOTHES = {
    "numpy scalars": {"number": lambda x: np.asarray(x)[()]},
    "narrow numpy scalars": {
        "number": lambda x: np.float32(x) if type(x) is float else np.int16(x) if type(x) is int else x
    },
    "tensors of no dimension": {"number": lambda x: x if isinstance(x, str) else torch.tensor(x, dtype=WIDE[type(x)])},
    "a subclass of Tensor": {"tensor": lambda x: x.as_subclass(Subclass)},
    "float32": {"tensor": lambda x: x.float() if x.is_floating_point() else x},
    "int8": {"tensor": small},
    "tuples": {"many": tuple},
    "named tuples": {"many": lambda x: namedtuple("Items", [f"item{at}" for at in range(len(x))])(*x)},
    "arrays of whole numbers": {"many": as_array},
    "an OrderedDict": {"mapping": OrderedDict},
}
WIDE = {float: torch.float64, int: torch.int64, bool: torch.bool}
OWN_RULES = ("lab05", "lab09")  # their judges want plain numbers and lists, and say so
UNLIKE = ("tensors of no dimension", "arrays of whole numbers", "narrow numpy scalars")


def wearing(function, name: str):
    return lambda *args, **kwargs: dressed(function(*args, **kwargs), **CLOTHES[name])


@pytest.mark.parametrize("name", CLOTHES)
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_the_check_and_the_grade_agree_on_what_people_return(exercise, name, solved):
    """A right answer is right in any clothes, and what the check says of it is what the grade says."""
    function = wearing(solved[exercise.id[:5]][exercise.function], name)
    for part in exercise.parts:
        case = exercise.case(part, 1000, 0)
        here = attempt(exercise, function, case)
        assert here.error is None, (part.name, here.error)
        there = _attempt(exercise, case, Answer(carried(exercise.run(function, case), finite=True)))
        assert here.wrong == there.wrong
        if exercise.id[:5] not in OWN_RULES or name not in UNLIKE:
            assert here.passed, (part.name, here.wrong)


# What nobody expects: every judge has a sentence for it, and no point.

ODD = [
    *(None, True, False, 0, 1, -1, 2**62, -(2**62), 0.0, 1.5, -1e300, 1e-300, "", "a", "NaN or infinity", "ü" * 300),
    *([], {}, [[]], [{}], [None], [[], []], [0], [1, 2], [0.5, 0.5], ["a", "b"], [[1], [2, 3]], [[[1]]], [True]),
    *([[0.5, 0.5]] * 2, [[None, None]] * 2, [["a", "b"]] * 2, [[[], []]] * 2, [[2**62, -1]] * 2, [{"a": 1}] * 2),
    *({"a": 1}, {"": None}, {"A": [], "B": {}}, {"loss": 1, "grads": 2}, {"loss": [], "grads": {}}),
    *({"output": None, "grads": None}, {"bias": 0, "variance": None}, {"completions": 1, "rewards": "a"}),
    *(torch.tensor(1.0), torch.tensor(True), torch.tensor(2**62), torch.zeros(0), torch.zeros(3, 0, 2)),
    *(torch.ones(1), torch.ones(1, 1, 1, 1), torch.ones(2, dtype=torch.uint8), torch.ones(5, 5) > 0),
    *(np.array(1.0), np.zeros((0, 3)), np.ones(4, np.float32), np.ones((2, 2), bool), [torch.ones(2), np.ones(2)]),
]


def variations(expected):
    """Odd answers that look like the right one: its shape, its keys or its length, filled with something else."""
    if isinstance(expected, torch.Tensor):
        empty = torch.zeros_like(expected)
        yield from (empty.bool(), empty.int(), empty.float(), empty[None], empty.tolist(), empty.numpy() > 0)
    elif isinstance(expected, (list, tuple)):
        for odd in ODD:
            yield [odd] * len(expected)
    elif isinstance(expected, dict):
        for odd in ODD:
            yield dict.fromkeys(expected, odd)
            yield expected | {next(iter(expected)): odd}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_an_odd_answer_gets_a_sentence_and_no_point(exercise):
    for part in exercise.parts:
        case = exercise.case(part, 7, 0)
        expected = exercise.run(exercise.reference, case)
        right = repr(carried(expected, finite=True))
        for odd in (carried(value, finite=True) for value in [*ODD, *variations(expected)]):
            assert repr(odd) == right or exercise.judge(case, expected, odd), (part.name, odd)
