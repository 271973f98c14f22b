"""Every error of the core: its type, one sentence, the argument's name, what came."""

import re

import pytest
import torch

from minigrpo import (
    ProcessTree,
    group_advantages,
    grpo,
    intermediate_proportion,
    lambda_grpo,
    path_depth,
    policy_loss,
    prm,
    process_rewards,
    same_prefix,
    step_mean,
    step_sizes,
    token_logps,
)

NAN, INF = float("nan"), float("inf")
IDS = torch.arange(24).reshape(2, 3, 4)
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool().expand(2, 3, 4)
REWARDS = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
ZEROS = torch.zeros(3, 4)

GROUP = {"completion_ids": IDS, "completion_mask": MASK}
SCORED = {"rewards": REWARDS, **GROUP}
VALID = {
    same_prefix: GROUP,
    step_sizes: GROUP,
    path_depth: GROUP,
    intermediate_proportion: GROUP,
    step_mean: {"values": REWARDS, **GROUP},
    process_rewards: SCORED,
    group_advantages: {"rewards": REWARDS},
    grpo: SCORED,
    prm: SCORED,
    lambda_grpo: SCORED,
    token_logps: {"logits": torch.zeros(3, 4, 5), "completion_ids": torch.zeros(3, 4).long()},
    policy_loss: {
        "logps": ZEROS,
        "old_logps": ZEROS,
        "advantages": ZEROS,
        "step_weights": ZEROS,
        "completion_mask": torch.ones(3, 4).bool(),
    },
    ProcessTree: {"completions": [[1, 2], [1]], "rewards": [0.0, 1.0]},
}
HOLE = MASK.clone()
HOLE[1, 0, 1] = False


def entry(value):
    """REWARDS with a value at index (0, 2) and again further on."""
    rewards = REWARDS.clone()
    rewards[0, 2] = rewards[1, 1] = value
    return rewards


IN_GROUP = [
    ({"completion_ids": IDS.tolist()}, TypeError, "completion_ids must be a torch.Tensor, got list"),
    ({"completion_ids": IDS.double()}, TypeError, "completion_ids must have an int dtype, got torch.float64"),
    ({"completion_ids": IDS.cfloat()}, TypeError, "completion_ids must have an int dtype, got torch.complex64"),
    ({"completion_ids": IDS.bool()}, TypeError, "completion_ids must have an int dtype, got torch.bool"),
    ({"completion_ids": IDS[0, 0]}, ValueError, r"completion_ids must have shape \(…, G, T\), got \(4,\)"),
    (
        {"completion_ids": IDS[:, :0], "completion_mask": MASK[:, :0]},
        ValueError,
        r"completion_ids must hold at least one completion, got shape \(2, 0, 4\)",
    ),
    (
        {"completion_mask": MASK.int()},
        TypeError,
        r"completion_mask must have a bool dtype, got torch.int32; use completion_mask.bool\(\)",
    ),
    ({"completion_mask": MASK.float()}, TypeError, "completion_mask must have a bool dtype, got torch.float32"),
    ({"completion_mask": None}, TypeError, "completion_mask must be a torch.Tensor, got NoneType"),
    ({"completion_mask": MASK[0]}, ValueError, r"completion_mask must have shape \(2, 3, 4\), got \(3, 4\)"),
    (
        {"completion_mask": MASK & False},
        ValueError,
        r"completion_mask must have at least one True token, got none in shape \(2, 3, 4\)",
    ),
    (
        {"completion_ids": IDS[..., :0], "completion_mask": MASK[..., :0]},
        ValueError,
        r"completion_mask must have at least one True token, got none in shape \(2, 3, 0\)",
    ),
    (
        {"completion_mask": HOLE},
        ValueError,
        r"completion_mask must have no holes .*, got False at token 1 and True at token 2 of row \(1, 0\)",
    ),
]
IN_REWARDS = [
    ({"rewards": [0.0, 1.0]}, TypeError, "rewards must be a torch.Tensor, got list"),
    ({"rewards": REWARDS.int()}, TypeError, r"rewards must have a float dtype, got torch.int32; use rewards.float\(\)"),
    ({"rewards": REWARDS.bool()}, TypeError, "rewards must have a float dtype, got torch.bool"),
    ({"rewards": REWARDS.cfloat()}, TypeError, "rewards must have a float dtype, got torch.complex64"),
    ({"rewards": REWARDS[:, :1]}, ValueError, r"rewards must have shape \(…, G\) with G ≥ 2, .*, got \(2, 1\)"),
    ({"rewards": REWARDS[0, 0]}, ValueError, r"rewards must have shape \(…, G\) with G ≥ 2, .*, got \(\)"),
    ({"rewards": entry(NAN)}, ValueError, r"rewards must be finite, got nan at index \(0, 2\)"),
    ({"rewards": entry(-INF)}, ValueError, r"rewards must be finite, got -inf at index \(0, 2\)"),
]
IN_VALUES = [
    ({"values": REWARDS.long()}, TypeError, r"values must have a float dtype, got torch.int64; use values.float\(\)"),
    ({"values": REWARDS[0]}, ValueError, r"values must have shape \(2, 3\), got \(3,\)"),
    ({"values": entry(INF)}, ValueError, r"values must be finite, got inf at index \(0, 2\)"),
]
IN_SCALE = [({"scale": "l2"}, ValueError, "scale must be one of none, population, std, got 'l2'")]
SHAPES = [({"rewards": REWARDS[:, :2]}, ValueError, r"rewards must have shape \(2, 3\), got \(2, 2\)")]
IN_LOGITS = [
    (
        {"logits": torch.zeros(3, 4, 5).long()},
        TypeError,
        r"logits must have a float dtype, got torch.int64; use logits.float\(\)",
    ),
    ({"completion_ids": ZEROS}, TypeError, "completion_ids must have an int dtype, got torch.float32"),
    ({"completion_ids": ZEROS.long()[:2]}, ValueError, r"completion_ids must have shape \(3, 4\), got \(2, 4\)"),
]
IN_LOSS = [
    ({"logps": ZEROS.long()}, TypeError, r"logps must have a float dtype, got torch.int64; use logps.float\(\)"),
    *[
        case
        for name in ("old_logps", "advantages", "step_weights", "ref_logps")
        for case in (
            (
                {name: ZEROS.long()},
                TypeError,
                rf"{name} must have a float dtype, got torch.int64; use {name}.float\(\)",
            ),
            ({name: ZEROS[0]}, ValueError, rf"{name} must have shape \(3, 4\), got \(4,\)"),
        )
    ],
    (
        {"completion_mask": ZEROS.long()},
        TypeError,
        r"completion_mask must have a bool dtype, got torch.int64; use completion_mask.bool\(\)",
    ),
    ({"completion_mask": ZEROS[:2].bool()}, ValueError, r"completion_mask must have shape \(3, 4\), got \(2, 4\)"),
    (
        {"completion_mask": ZEROS.bool()},
        ValueError,
        r"completion_mask must have at least one True token, got none in shape \(3, 4\)",
    ),
    ({"beta": 0.1}, ValueError, "ref_logps must be given where beta is above 0, got None with beta 0.1"),
    ({"beta": -0.1, "ref_logps": ZEROS}, ValueError, "beta must be 0 or above, got -0.1"),
    ({"beta": NAN, "ref_logps": ZEROS}, ValueError, "beta must be 0 or above, got nan"),
    ({"epsilon": 0.0}, ValueError, "epsilon must be above 0, or None for no clipping, got 0.0"),
    ({"epsilon": -0.2}, ValueError, "epsilon must be above 0, or None for no clipping, got -0.2"),
    ({"epsilon": NAN}, ValueError, "epsilon must be above 0, or None for no clipping, got nan"),
    ({"aggregation": "mean"}, ValueError, "aggregation must be one of seq-mean, token-mean, got 'mean'"),
    ({"num_tokens": 0}, ValueError, "num_tokens must be above 0, got 0"),
    ({"num_tokens": torch.tensor(-3)}, ValueError, "num_tokens must be above 0, got -3"),
    (
        {"num_tokens": 8, "aggregation": "seq-mean"},
        ValueError,
        "num_tokens is the denominator of 'token-mean', got it with aggregation 'seq-mean'",
    ),
]
IN_TREE = [
    ({"completions": []}, ValueError, "completions must hold at least two, one of them not empty, got 0 with 0 tokens"),
    ({"completions": [[1, 2]]}, ValueError, "completions must hold at least two, .*, got 1 with 2 tokens"),
    ({"completions": [[], []]}, ValueError, "completions must hold at least two, .*, got 2 with 0 tokens"),
    ({"rewards": [1.0]}, ValueError, r"rewards must hold one number a completion \(2\), got 1"),
    ({"rewards": [1.0, NAN]}, ValueError, r"rewards must be finite, got \[1.0, nan\]"),
    ({"rewards": [INF, 0]}, ValueError, r"rewards must be finite, got \[inf, 0.0\]"),
    *IN_SCALE,
]

OBJECTIVES = (grpo, prm, lambda_grpo)
CASES = [
    (function, *case)
    for functions, cases in (
        (
            (same_prefix, step_sizes, path_depth, intermediate_proportion, step_mean, process_rewards, *OBJECTIVES),
            IN_GROUP,
        ),
        ((group_advantages, process_rewards, *OBJECTIVES), IN_REWARDS),
        ((group_advantages, *OBJECTIVES), IN_SCALE),
        (OBJECTIVES, SHAPES),
        ((step_mean,), IN_VALUES),
        ((token_logps,), IN_LOGITS),
        ((policy_loss,), IN_LOSS),
        ((ProcessTree,), IN_TREE),
    )
    for function in functions
    for case in cases
]


@pytest.mark.parametrize("function", VALID, ids=lambda function: function.__name__)
def test_the_valid_call_is_valid(function):
    assert function(**VALID[function]) is not None


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    CASES,
    ids=[f"{c[0].__name__}-{'-'.join(c[1])}-{k}" for k, c in enumerate(CASES)],
)
def test_errors(function, change, error, message):
    with pytest.raises(error) as caught:
        function(**{**VALID[function], **change})
    assert caught.type is error
    assert re.fullmatch(message, str(caught.value)), str(caught.value)  # one sentence: "." matches no newline


def test_rewards_that_do_not_fit_in_process_rewards():
    with pytest.raises(ValueError, match=r"^values must have shape \(2, 3\), got \(2, 2\)$"):
        process_rewards(REWARDS[:, :2], IDS, MASK)
