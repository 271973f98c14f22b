"""How far the interval of another bootstrap seed is away, and how far wrong ones are: behind NEAR of lab06.3.

`python -m grader.thresholds.lab06` writes grader/thresholds/lab06.json (a minute).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grader.exercise import Case
from grader.labs.lab06 import (
    NEAR,
    RESAMPLES,
    draw_scores,
    interval_of_the_data,
    ninety_percent,
    normal_interval,
    one_deviation,
    paired_interval,
    standard_error,
    unpaired_interval,
)
from minigrpo.files import write_json

RESULT = Path(__file__).with_suffix(".json")


def measure(seeds: int = 40) -> dict:
    """How far an interval of another bootstrap seed is away, and how far wrong ones are, in standard errors.

    "other seeds": the larger distance of the two ends, over `seeds` bootstrap seeds, of each of 20 draws. For a wrong
    answer that of the case of its draw in which it is farthest away, as one is enough to fail.
    """
    cases = {
        few: [draw_scores(np.random.default_rng([few, k]), few=few) for k in range(20)]
        for few in (False, True)
    }
    wrong = {
        "not paired": unpaired_interval,
        "quantiles of the data": interval_of_the_data,
        "one deviation": one_deviation,
        "90%": ninety_percent,
        "mean ± 1.96 standard errors": normal_interval,
    }

    def away(case: Case, function, seed: int) -> float:
        expected = paired_interval(**case)
        ends = zip(expected, function(**case | {"seed": seed}), strict=True)
        return max(abs(want - got) for want, got in ends) / standard_error(case)

    def spread(values: list[float]) -> dict:
        low, middle, high = (
            round(float(v), 3) for v in (min(values), np.median(values), max(values))
        )
        return {"min": low, "median": middle, "max": high, "of": len(values)}

    result: dict = {
        "tolerance": NEAR,
        "unit": "standard errors of the mean",
        "resamples": RESAMPLES,
    }
    for few, drawn in cases.items():
        name = "few seeds, skewed" if few else "scores that go together"
        others = [
            away(case, paired_interval, 5000 + seed) for case in drawn for seed in range(seeds)
        ]
        result[name] = {"other seeds": spread(others)}
        for label, function in wrong.items():
            result[name][label] = spread([away(case, function, case["seed"]) for case in drawn])
    return result


if __name__ == "__main__":
    print(write_json(RESULT, measure()))
