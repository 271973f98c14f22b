"""Lab 05's judges: clean counterexamples pass, and what breaks another assumption, or none, is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from grader.check import attempt, public_report
from grader.counterexamples import REAL_GAP, Flaw, completion_gaps
from grader.labs import find_exercise, lab05
from grader.thresholds import lab05 as measured

THRESHOLDS = measured.RESULT
CLIPPED = {"completions": [[5, 6], [5, 7]], "rewards": [1.0, 0.0], "ratio": [[2.0, 2.0], [2.0, 2.0]]}
ARGUMENTS = {"epsilon": 0.5, "group_size": 2}


def test_the_gap_of_a_hand_worked_group():
    """s is 1.5a, 1.5a, −2a, −2a for GRPO, and 0, 1.5a, 0, −2a for the PRM, with a = 0.5 / (√0.5 + 1e-4)."""
    loss, gradient = completion_gaps(*CLIPPED.values(), epsilon=0.5)
    assert loss == pytest.approx((0.25 - 0.125) * 0.5 / (0.5**0.5 + 1e-4), rel=1e-12)
    # gradients by the log-probs of X, Y and Z, in units of a/4: 0 + 2, 0, 2 for GRPO and 0, 0, 2 for the PRM
    assert gradient == pytest.approx(2 / 8**0.5, rel=1e-12)


def test_the_same_group_has_no_gap_where_nothing_is_clipped():
    assert max(map(abs, completion_gaps(*CLIPPED.values()))) < 1e-14


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
        ({"completions": [[5, 6], [5, 7], [8]]}, "size"),
        ({"rewards": [1.0, 0.0, 0.0]}, "form"),
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
    assert max(map(abs, completion_gaps(*group.values(), epsilon=0.2))) < 1e-14
    with pytest.raises(Flaw) as found:
        lab05.inspect_clipping({"epsilon": 0.2, "group_size": 4}, group)
    assert found.value.name == "one side"


def test_the_threshold_stands_between_the_recorded_gaps():
    recorded = json.loads(THRESHOLDS.read_text(encoding="utf-8"))
    assert recorded["threshold"] == REAL_GAP
    assert all(
        gaps["seeds"] >= 30 for kind in ("counterexamples", "nothing broken") for gaps in recorded[kind].values()
    )
    assert min(gaps["min"] for gaps in recorded["counterexamples"].values()) > 10 * REAL_GAP
    assert max(gaps["max"] for gaps in recorded["nothing broken"].values()) < 1e-9 * REAL_GAP


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_are_numbers(kind):
    """In completions, ratios and rewards, whole or not."""
    ids = [[kind(5), kind(6)], [kind(5), kind(7)]]
    clipped = {"completions": ids, "rewards": [*np.array([1.0, 0.0])], "ratio": [[np.float32(2.0), kind(2)]] * 2}
    assert find_exercise("lab05.2").judge(ARGUMENTS, None, clipped) is None
    lengths = {"completions": [[kind(5)], [kind(5), kind(7)]], "rewards": [kind(1), np.float32(0.0)]}
    assert find_exercise("lab05.3").judge({"lengths": [1, 2]}, None, lengths) is None
    refused = lengths | {"rewards": [np.True_, 0.0]}
    assert "'rewards' must hold numbers" in find_exercise("lab05.3").judge({"lengths": [1, 2]}, None, refused)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda group: group | {"rewards": ["1"] * len(group["rewards"])},
        lambda group: group | {"rewards": group["rewards"][:-1]},
        lambda group: group | {"completions": [[0.5] * len(y) for y in group["completions"]]},
        lambda group: {"completions": group["completions"]},
        lambda group: list(group.values()),
    ],
)
def test_what_has_the_wrong_form_is_not_called_a_mistake_by_name(spoilt):
    for exercise, made in (("lab05.3", lab05.length_group), ("lab05.5", lab05.micro_group)):
        lines, passed = public_report(find_exercise(exercise), lambda made=made, **case: spoilt(made(**case)))
        assert not passed
        assert not any("It looks like this" in line for line in lines), lines


def test_lengths_that_are_not_those_asked_for_are_named():
    for made, said in (
        (lambda lengths: lab05.length_group([n + 2 for n in lengths]), "exactly lengths[i] tokens"),
        (lambda lengths: lab05.length_group([2, 3]), "the lengths are an argument"),
    ):
        assert said in public_report(find_exercise("lab05.3"), made)[0][-1]


# lab05.6: what each batch breaks stands in how it is drawn

BROKEN = ["none"] * 3 + ["clipping"] * 2 + ["per-completion mean"]
BROKEN += ["micro-batch denominators"] * 2 + ["random transitions"] * 2


@pytest.mark.parametrize("seed", range(20))
def test_each_batch_breaks_what_it_was_drawn_for(seed):
    rng = np.random.default_rng(seed)
    assert [lab05.broken_assumption(**draw(rng)) for draw in lab05.ONE_BROKEN] == BROKEN
    kept = [lab05.broken_assumption(**draw(rng)) for draw in lab05.SWITCHED_ON]
    assert kept == ["none"] * 4 + ["random transitions"]


def pairs(states, actions, mask):
    """Places (i, j, t) where two completions both act."""
    G, T = mask.shape
    return [(i, j, t) for i in range(G) for j in range(i) for t in range(T) if mask[i, t] and mask[j, t]]


def only_token_one(states, actions, mask):
    found = [(i, j) for i, j, t in pairs(states, actions, mask) if t == 1]
    return any(actions[i, 0] == actions[j, 0] and states[i, 1] != states[j, 1] for i, j in found)


def one_too_far(states, actions, mask):
    alike = [(i, j, t) for i, j, t in pairs(states, actions, mask) if actions[i, : t + 1].equal(actions[j, : t + 1])]
    return any(states[i, t] != states[j, t] for i, j, t in alike)


def no_history(states, actions, mask):
    return any(
        states[i, t - 1] == states[j, t - 1] and actions[i, t - 1] == actions[j, t - 1] and states[i, t] != states[j, t]
        for i, j, t in pairs(states, actions, mask)
        if t
    )


def neighbouring_rows_alike(states, actions, mask):
    found = [(i, j, t) for i, j, t in pairs(states, actions, mask) if i == j + 1]
    return any(actions[i, :t].equal(actions[j, :t]) and states[i, t] != states[j, t] for i, j, t in found)


@pytest.mark.parametrize("slips", [only_token_one, one_too_far, no_history, neighbouring_rows_alike])
def test_a_slip_has_to_be_looked_for_everywhere(slips):
    def name(ratio, completion_mask, states, actions, **settings):
        batch = {"ratio": ratio, "completion_mask": completion_mask, "states": states, "actions": actions} | settings
        names = lab05.name_with({"random transitions": lambda batch: slips(states, actions, completion_mask)})
        return names(**batch)

    assert_that_every_part_fails(name)


def test_one_completion_that_is_shorter_is_enough():
    def name(completion_mask, aggregation, **rest):
        many = len(set(completion_mask.sum(dim=1).tolist())) > 2
        aggregation = "seq-mean" if aggregation == "seq-mean" and many else "token-mean"
        return lab05.broken_assumption(completion_mask=completion_mask, aggregation=aggregation, **rest)

    assert_that_every_part_fails(name)


def test_micro_batches_are_any_rows():
    def name(completion_mask, micro_batches, **rest):
        consecutive = torch.arange(len(completion_mask)).chunk(len(micro_batches))
        rows = [part.tolist() for part in consecutive]
        return lab05.broken_assumption(completion_mask=completion_mask, micro_batches=rows, **rest)

    assert_that_every_part_fails(name)


def assert_that_every_part_fails(function):
    exercise = find_exercise("lab05.6")
    for part in exercise.parts:
        for seed in range(5):
            cases = [exercise.case(part, seed, index) for index in range(part.draws)]
            assert not all(attempt(exercise, function, case).passed for case in cases), (part.name, seed)
