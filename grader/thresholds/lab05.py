"""How far the gradients of real counterexamples are apart, and of groups that break nothing: behind REAL_GAP of lab 05.

`python -m grader.thresholds.lab05` writes grader/thresholds/lab05.json (seconds); tests/test_lab05.py reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grader.counterexamples import REAL_GAP, completion_gaps, state_gaps
from grader.labs.lab05 import (
    batches_of,
    clipped_group,
    draw_epsilon,
    draw_lengths,
    draw_micro_batches,
    draw_world,
    length_group,
    micro_group,
    slip_group,
)
from minigrpo.files import write_json

RESULT = Path(__file__).with_suffix(".json")


def measure(seeds: int = 40) -> dict:
    """Relative gaps of the gradients over seeds: of clean counterexamples, and of random groups that break nothing."""

    def spread(values: list[float]) -> dict:
        return {
            "min": min(values),
            "median": float(np.median(values)),
            "max": max(values),
            "seeds": len(values),
        }

    broken: dict[str, list[float]] = {f"lab05.{k}": [] for k in (2, 3, 4, 5)}
    kept: dict[str, list[float]] = {
        "token mean, ratios by prefix": [],
        "slipping, keyed by state and action": [],
    }
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        case = draw_epsilon(rng, 0.05, 3.0)
        group = clipped_group(**case)
        broken["lab05.2"].append(completion_gaps(*group.values(), epsilon=case["epsilon"])[1])
        kept["token mean, ratios by prefix"].append(completion_gaps(*group.values())[1])
        group = length_group(**draw_lengths(rng))
        broken["lab05.3"].append(completion_gaps(*group.values(), aggregation="seq-mean")[1])
        world = draw_world(rng, 2)
        walks = slip_group(**world)
        broken["lab05.4"].append(state_gaps(*walks.values(), **world)[1])
        by_state = state_gaps(*walks.values(), **world, keyed_by_state=True)[1]
        kept["slipping, keyed by state and action"].append(by_state)
        case = draw_micro_batches(rng)
        group = micro_group(**case)
        broken["lab05.5"].append(completion_gaps(*group.values(), batches=batches_of(**case))[1])
    return {
        "threshold": REAL_GAP,
        "counterexamples": {name: spread(values) for name, values in broken.items()},
        "nothing broken": {name: spread(values) for name, values in kept.items()},
    }


if __name__ == "__main__":
    print(write_json(RESULT, measure()))
