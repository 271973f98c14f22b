"""Lab 09's cases: every rule of its text decides some of them, on every seed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from grader.check import attempt, public_report
from grader.labs import find_exercise, lab09

BOX = r"\\boxed\{([^{}]*)\}"
SIGN, WHOLE, DECIMALS = r"(?:(?<![0-9A-Za-z)])-)?", r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)", r"(?:\.[0-9]+)?"


def reader(*, sign=SIGN, whole=WHOLE, decimals=DECIMALS, number=-1, box=lambda boxes: boxes[-1]):
    """A verifier with a rule of its own in one place."""

    def read(completion: str) -> float | None:
        boxes = re.findall(BOX, completion)
        found = re.findall(sign + whole + decimals, box(boxes) if boxes else completion)
        return float(found[number].replace(",", "").replace(" ", "")) if found else None

    return read


def some_part_fails(exercise, function, seed: int) -> bool:
    return any(
        not attempt(exercise, function, exercise.case(part, seed, index)).passed
        for part in exercise.parts
        for index in range(part.draws)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        reader(sign=r"(?:(?<![0-9a-z)])-)?"),  # a capital letter may stand before the sign
        reader(sign=r"(?:(?<![0-9A-Za-z])-)?"),
        reader(sign=r"(?:(?<![0-9A-Za-z)])-\s?)?"),
        reader(whole=r"(?:[0-9]{1,3}(?:,[0-9]{3})?(?![0-9])|[0-9]+)"),  # no millions
        reader(whole=r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"),  # 7,2024 is read as 7,202 and 4
        reader(whole=r"(?:[0-9]+(?:,[0-9]{3})+(?![0-9])|[0-9]+)"),  # 1234,567 is one
        reader(decimals=""),
        reader(number=0),
        reader(box=lambda boxes: ([box for box in boxes if re.search("[0-9]", box)] or [""])[-1]),
        reader(box=lambda boxes: " ".join(boxes)),
    ],
)
def test_every_rule_of_the_verifier_is_tried(wrong):
    exercise = find_exercise("lab09.1")
    assert not some_part_fails(exercise, reader(), 0)
    assert all(some_part_fails(exercise, wrong, seed) for seed in range(5))


def test_numbers_of_numpy_are_answers():
    exercise = find_exercise("lab09.1")
    texts = {"completions": ["25-4=21", "none"]}
    assert exercise.judge(texts, [21.0, None], [np.int64(21), None]) is None
    assert exercise.judge(texts, [21.0, None], [np.float32(21), None]) is None
    assert exercise.judge({"completions": ["1"]}, [1.0], [np.True_]) is not None


@pytest.mark.parametrize("seed", range(10))
def test_a_group_of_all_is_asked_for_on_every_seed(seed):
    """Where no divisor makes the chance of equal rewards at most 0.1."""
    exercise = find_exercise("lab09.2")
    part = next(part for part in exercise.parts if part.name == "a hard task and a small update")
    for index in range(part.draws):
        case = exercise.case(part, seed, index)
        assert case["success"] ** 12 + (1 - case["success"]) ** 12 > 0.1
        assert lab09.choose_settings(**case)["group_size"] == case["completions"] == 12


def test_the_public_check_asks_for_a_group_of_all():
    lines, passed = public_report(find_exercise("lab09.2"), lab09.settings_with(otherwise=1))
    assert not passed
    assert "yours is 1" in lines[-1]


@pytest.mark.parametrize(
    "answer",
    [
        {"prompts": torch.ones(2), "group_size": 8, "micro_batch": 16},
        {"prompts": True, "group_size": 64, "micro_batch": 16},
        {"prompts": [8], "group_size": 8, "micro_batch": 16},
        {"prompts": 8.0, "group_size": 8, "micro_batch": 16},
        {"prompts": 8, "group_size": 8},
        [8, 8, 16],
    ],
)
def test_settings_of_the_wrong_form_are_wrong(answer):
    right = {"prompts": 8, "group_size": 8, "micro_batch": 16}
    assert lab09.choose_settings(**lab09.WORKED_MACHINE) == right
    assert lab09.judge_settings(lab09.WORKED_MACHINE, right, {name: np.int64(n) for name, n in right.items()}) is None
    assert "must be" in lab09.judge_settings(lab09.WORKED_MACHINE, right, answer)
