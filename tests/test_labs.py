"""The labs: committed is what the sources make, solutions score all, stubs nothing, each mistake gets its hint."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import pytest
import torch

from grader.check import attempt, public_report
from grader.exercise import Attempt, Exercise, explain
from grader.labs import LABS, exercises
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
