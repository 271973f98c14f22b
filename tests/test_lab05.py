"""Lab 05's judges: clean counterexamples pass, and what breaks another assumption, or none, is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grader.labs import lab05
from grader.labs.lab05 import Flaw

THRESHOLDS = Path(lab05.__file__).parents[1] / "thresholds" / "lab05.json"
CLIPPED = {"completions": [[5, 6], [5, 7]], "rewards": [1.0, 0.0], "ratio": [[2.0, 2.0], [2.0, 2.0]]}
ARGUMENTS = {"epsilon": 0.5, "group_size": 2}


def test_the_gap_of_a_hand_worked_group():
    """s is 1.5a, 1.5a, −2a, −2a for GRPO, and 0, 1.5a, 0, −2a for the PRM, with a = 0.5 / (√0.5 + 1e-4)."""
    loss, gradient = lab05.completion_gaps(*CLIPPED.values(), epsilon=0.5)
    assert loss == pytest.approx((0.25 - 0.125) * 0.5 / (0.5**0.5 + 1e-4), rel=1e-12)
    # gradients by the log-probs of X, Y and Z, in units of a/4: 0 + 2, 0, 2 for GRPO and 0, 0, 2 for the PRM
    assert gradient == pytest.approx(2 / 8**0.5, rel=1e-12)


def test_the_same_group_has_no_gap_where_nothing_is_clipped():
    assert max(map(abs, lab05.completion_gaps(*CLIPPED.values()))) < 1e-14


@pytest.mark.parametrize("seed", range(10))
def test_clean_counterexamples_are_accepted(seed):
    rng = np.random.default_rng(seed)
    tried = (
        (lab05.inspect_clipping, lab05.clipped_group, lab05.draw_epsilon(rng, 0.05, 3.0)),
        (lab05.inspect_lengths, lab05.length_group, lab05.draw_lengths(rng)),
        (lab05.inspect_slips, lab05.slip_group, lab05.draw_world(rng, seed % 3)),
        (lab05.inspect_micro_batches, lab05.micro_group, lab05.draw_micro_batches(rng)),
    )
    assert [inspect(case, made(**case)) for inspect, made, case in tried] == [None] * 4  # they raise what they refuse


@pytest.mark.parametrize(
    ("changed", "flaw"),
    [
        ({"ratio": [[2.0, 2.0], [1.0, 2.0]]}, "other ratios"),  # equal prefixes, other probabilities
        ({"ratio": [[1.5, 1.0], [1.5, 1.0]]}, "inside"),
        ({"ratio": [[1.0, 2.0], [1.0, 2.0]]}, "unshared"),
        ({"completions": [[5, 6], [5, 6]]}, "unfair"),
        ({"completions": [[5, 6], [6, 6]]}, "unshared"),
        ({"rewards": [1.0, 1.0]}, "rewards"),
        ({"rewards": [1.0, float("nan")]}, "form"),
        ({"rewards": [True, 0.0]}, "form"),
        ({"completions": [[5, 6], []]}, "form"),
        ({"ratio": [[2.0, 0.0], [2.0, 2.0]]}, "form"),
        ({"completions": [[5, 6], [5, 7], [8]]}, "form"),
    ],
)
def test_what_is_no_counterexample_is_refused(changed, flaw):
    lab05.inspect_clipping(ARGUMENTS, CLIPPED)
    with pytest.raises(Flaw) as found:
        lab05.inspect_clipping(ARGUMENTS, CLIPPED | changed)
    assert found.value.name == flaw


def test_members_on_one_side_of_the_mean_make_no_gap():
    """All the winners share a clipped step: clipping acts on their sum as on each."""
    group = {
        "completions": [[0, 1], [0, 2], [3, 4], [5, 6]],
        "rewards": [1.0, 0.8, 0.0, 0.0],
        "ratio": [[2.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
    }
    assert max(map(abs, lab05.completion_gaps(*group.values(), epsilon=0.2))) < 1e-14
    with pytest.raises(Flaw) as found:
        lab05.inspect_clipping({"epsilon": 0.2, "group_size": 4}, group)
    assert found.value.name == "one side"


def test_the_threshold_stands_between_the_recorded_gaps():
    recorded = json.loads(THRESHOLDS.read_text(encoding="utf-8"))
    assert recorded["threshold"] == lab05.REAL_GAP
    assert all(
        gaps["seeds"] >= 30 for kind in ("counterexamples", "nothing broken") for gaps in recorded[kind].values()
    )
    assert min(gaps["min"] for gaps in recorded["counterexamples"].values()) > 10 * lab05.REAL_GAP
    assert max(gaps["max"] for gaps in recorded["nothing broken"].values()) < 1e-9 * lab05.REAL_GAP
