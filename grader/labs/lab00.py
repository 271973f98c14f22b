"""Lab 00, the doctor: one toy exercise to try the check and the hand-in with."""

from __future__ import annotations

import numpy as np

from grader.exercise import Case, Exercise, Mistake, Part


def group_mean(rewards: list[float]) -> float:
    return sum(rewards) / len(rewards)


def group_sum(rewards: list[float]) -> float:
    return sum(rewards)


def mean_of_the_others(rewards: list[float]) -> float:
    return sum(rewards) / (len(rewards) - 1)


def draw_group(rng: np.random.Generator) -> Case:
    return {"rewards": rng.choice([-1.0, 0.5, 1.0, 2.0], size=rng.integers(3, 9)).tolist() + [1.0, 1.5]}


EXERCISES = (
    Exercise(
        id="lab00.1",
        function="group_mean",
        reference=group_mean,
        parts=(
            Part(
                "random groups",
                1,
                draw_group,
                "add the rewards and divide by how many there are.",
                examples=({"rewards": [0.0, 1.0, 1.0, 2.0]},),
            ),
        ),
        mistakes=(
            Mistake("sum", "you add the rewards; divide the sum by how many there are.", group_sum),
            Mistake("n − 1", "you divide by G − 1; a mean is divided by G.", mean_of_the_others),
        ),
    ),
)
