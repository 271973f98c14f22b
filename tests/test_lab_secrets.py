"""A diagnosis is checked in its form alone, and files are an exercise of their own kind in the manifest."""

from __future__ import annotations

from pathlib import Path

from grader.check import attempt, public_report
from grader.labs import find_exercise
from grader.labs.lab08 import CAUSES, TRUTH
from grader.source import entry, read_source

SOLUTIONS = Path(__file__).parents[1] / "solutions"


def test_the_public_check_of_a_diagnosis_tells_neither_right_nor_wrong():
    exercise = find_exercise("lab08.1")
    right, shifted = dict(TRUTH), dict(zip(TRUTH, [*list(TRUTH.values())[1:], TRUTH["A"]], strict=True))
    reports = [public_report(exercise, lambda answer=answer: answer) for answer in (right, shifted)]
    assert reports[0] == reports[1]
    assert reports[0][1]
    lines, passed = public_report(exercise, lambda: right | {"C": "bad luck"})
    assert not passed
    assert not any(cause in line for cause in CAUSES for line in lines if "got" not in line)


def test_each_run_is_a_point_of_its_own():
    exercise = find_exercise("lab08.1")
    answer = TRUTH | {"B": "rate too small"}
    earned = [
        part.points * attempt(exercise, lambda: answer, exercise.case(part, 5, 0)).passed for part in exercise.parts
    ]
    assert earned == [1, 0, 1, 1, 1, 1]


def test_the_manifest_knows_files_from_code_and_writing():
    rows = entry(read_source(SOLUTIONS / "lab09_language_model.py"))["exercises"]
    assert [row["kind"] for row in rows] == ["code", "code", "artifact", "written", "written"]
    assert rows[2]["files"] == ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl"]
