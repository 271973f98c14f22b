"""What the paper printed agrees with itself: averages, standard errors, wins."""

import math

import pytest

from minigrpo.llm.table2 import BENCHMARKS as OURS
from minigrpo.paper import TABLE1, TABLE2, TABLE2_AVERAGES, TABLE2_BENCHMARKS

PROBLEMS = (30, 500, 40, 272, 675)  # of each benchmark


def test_averages_are_those_of_the_cells():
    assert list(TABLE2) == list(TABLE2_AVERAGES)
    for setting, cells in TABLE2.items():
        assert len(cells) == len(TABLE2_BENCHMARKS) == len(OURS)
        assert math.fsum(accuracy for accuracy, _ in cells) / 5 == pytest.approx(TABLE2_AVERAGES[setting], abs=1e-4)


def test_errors_are_one_standard_error():
    """Not the confidence interval that the caption says; three cells of Llama are off by more than rounding."""
    off = []
    for setting, cells in TABLE2.items():
        for (p, error), n, name in zip(cells, PROBLEMS, TABLE2_BENCHMARKS, strict=True):
            if abs(math.sqrt(p * (1 - p) / (n - 1)) - error) > 1e-4:
                off.append((setting, name))
    assert off == [
        ("llama-grpo-0", "Minerva"),
        ("llama-grpo-0", "OlympiadBench"),
        ("llama-lambda_grpo-0", "OlympiadBench"),
    ]


def test_wins_losses_and_ties():
    pairs = [
        (theirs, ours)
        for setting in TABLE2
        if "lambda" in setting
        for (ours, _), (theirs, _) in zip(TABLE2[setting], TABLE2[setting.replace("lambda_grpo", "grpo")], strict=True)
    ]
    assert len(pairs) == 20
    assert sum(ours > theirs for theirs, ours in pairs) == 15
    assert sum(ours < theirs for theirs, ours in pairs) == 4
    assert all(second > first for first, second in TABLE1.values())
