"""Lab 06's judges: what an interval has to do with its seed, which forms count, and what is said of an environment."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from grader import grade
from grader.check import attempt, public_report
from grader.drivers import DRIVERS
from grader.labs import find_exercise, lab06
from grader.results import Grading
from grader.sandbox import Answer

INTERVAL = find_exercise("lab06.3")
SCORES = INTERVAL.case(INTERVAL.parts[0], 0, 0)  # the same seed first and last, another in between


def verdict(function) -> str | None:
    found = attempt(INTERVAL, function, SCORES)
    assert found.error is None
    return found.wrong


def test_an_answer_that_remembers_its_first_call_does_not_depend_on_the_seed():
    kept = {}

    def remembers(a, b, resamples, seed):
        return kept.setdefault(len(a), lab06.without_seed(a, b, resamples, seed))

    assert verdict(remembers) == "two calls with different seeds gave the same interval"


class WorkerHere:
    """A sandbox's worker without the sandbox: cells in a namespace of their own."""

    alive = loaded = True
    crowded = False
    cell_errors = ()

    def __init__(self, cells, setup, isolation):
        self.namespace: dict = {}
        for _, source in cells:
            exec(source, self.namespace)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def ask(self, driver, function, case, seconds):
        return Answer(DRIVERS[driver](self.namespace, function, copy.deepcopy(case)))


REMEMBERS = """
import numpy as np
kept = {}
def paired_interval(a, b, resamples, seed):
    if (seed, len(a)) not in kept:
        d, rng = (a - b).numpy(), np.random.default_rng(SEED)
        means = d[rng.integers(len(d), size=(resamples, len(d)))].mean(axis=1)
        kept[seed, len(a)] = tuple(float(x) for x in np.quantile(means, [0.025, 0.975]))
    return kept[seed, len(a)]
"""


@pytest.mark.parametrize(("argument", "earned"), [("seed", [2, 1]), ("", [0, 0])])
def test_what_is_remembered_for_a_seed_is_asked_of_a_new_process(monkeypatch, argument, earned):
    """It is the same for the same seed and differs for another; only the seed makes it the same next time."""
    monkeypatch.setattr(grade, "Worker", WorkerHere)
    cells = [("lab06.3", REMEMBERS.replace("SEED", argument))]
    submission = SimpleNamespace(cells_for=lambda exercise_id: cells, left_out=lambda exercise_id: "")
    parts = grade.grade_exercise(INTERVAL, submission, Grading("lab06", {"setup": ""}, 5, "reduced"))
    assert [part.earned for part in parts] == earned
    assert {part.feedback for part in parts if not part.earned} <= {grade.KINDS["changed"]}


def test_one_generator_for_all_calls_is_no_seed():
    rng = np.random.default_rng(0)

    def goes_on(a, b, resamples, seed):
        return lab06.paired_interval(a, b, resamples, int(rng.integers(10**6)))

    assert verdict(goes_on) == "two calls with the same seed gave different intervals"


@pytest.mark.parametrize(
    "form",
    [
        np.array,
        torch.tensor,
        list,
        lambda ends: [np.float64(end) for end in ends],
        lambda ends: [torch.tensor(end, dtype=torch.float64) for end in ends],
        lambda ends: torch.tensor(ends, dtype=torch.float64),
    ],
)
def test_two_numbers_count_in_any_form(form):
    assert verdict(lambda **case: form(lab06.paired_interval(**case))) is None


@pytest.mark.parametrize("answer", [0.5, [1.0], (1.0, 2.0, 3.0), "ab", [True, False], torch.ones(2, 2), {}])
def test_anything_else_is_said_to_be_no_two_numbers(answer):
    assert verdict(lambda **case: answer) == "the answer must be two numbers, low and high"


def test_many_scores_are_enough_to_tell_seeds_apart():
    """With `MANY` of them no two of 40 bootstrap seeds give the same interval."""
    case = next(lab06.draw_scores(np.random.default_rng(k), few=False) for k in range(5))
    few = case | {name: case[name][: lab06.MANY] for name in "ab"}
    assert len({lab06.paired_interval(**few | {"seed": seed}) for seed in range(40)}) == 40


def test_the_mean_along_the_other_axis_is_not_taken_for_drawing_without_replacement():
    for function, said in ((lab06.other_axis, "average over the resamples"), (lab06.without_replacement, "without")):
        assert said in public_report(INTERVAL, function)[0][-1]


class OneTooMany(lab06.PathTreeEnv):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.action_space = gym.spaces.Discrete(3)


def test_a_space_of_the_wrong_size_is_named_as_the_student_knows_it():
    exercise = find_exercise("lab06.2")
    lines = public_report(exercise, lab06.OneNodeTooMany)[0]
    assert "  observation_space must be Discrete(7), got Discrete(8)" in lines
    assert "2^(depth + 1) − 1" in lines[-1]
    assert "  action_space must be Discrete(2), got Discrete(3)" in public_report(exercise, OneTooMany)[0]


def test_a_wrong_reward_is_named_with_its_walk():
    lines = public_report(find_exercise("lab06.2"), lab06.RewardsOnTheWay)[0]
    assert any(line.startswith("  walks[0]['rewards'][0]: expected 0") for line in lines)
