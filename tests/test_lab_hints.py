"""A grade's hint: where a part stops at its first wrong case, that case tells the mistake from the others."""

from __future__ import annotations

import pytest

from grader.check import attempt
from grader.exercise import explain
from grader.labs import find_exercise


@pytest.mark.parametrize("name", ["lab05.6", "lab06.1", "lab06.4", "lab07.4", "lab09.2"])
def test_no_mistake_is_taken_for_another(name):
    exercise = find_exercise(name)
    for mistake in exercise.mistakes:
        for part in exercise.parts:
            tried = []
            while len(tried) < part.draws and all(found.passed for found in tried):
                tried.append(attempt(exercise, mistake.wrong, exercise.case(part, 3, len(tried))))
            assert tried[-1].passed or explain(exercise, tried) is mistake, (mistake.name, part.name)
