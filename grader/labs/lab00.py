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
    return {
        "rewards": rng.choice([-1.0, 0.5, 1.0, 2.0], size=rng.integers(3, 9)).tolist() + [1.0, 1.5]
    }


EXERCISES = (
    Exercise(
        id="lab00.1",
        function="group_mean",
        reference=group_mean,
        parts=(
            Part(
                name="random groups",
                points=1,
                draw=draw_group,
                hint="add the rewards and divide by how many there are.",
                examples=({"rewards": [0.0, 1.0, 1.0, 2.0]},),
            ),
        ),
        mistakes=(
            Mistake(
                name="sum",
                hint="you add the rewards; divide the sum by how many there are.",
                wrong=group_sum,
            ),
            Mistake(
                name="n − 1",
                hint="you divide by G − 1; a mean is divided by G.",
                wrong=mean_of_the_others,
            ),
        ),
    ),
)
