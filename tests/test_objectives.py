"""Advantages and step weights: by hand, and against the recursive tree."""

import math
from itertools import product

import pytest
import torch
from groups import assert_close, groups, padded
from hypothesis import given

from minigrpo import OBJECTIVES, group_advantages, grpo, lambda_grpo, prm
from minigrpo.objectives import PAPER_OBJECTIVES

F64 = torch.float64
DEVIATION = {"std": math.sqrt(14 / 3), "population": math.sqrt(14 / 4), "none": 1.0}  # of 0, 1, 2, 5: Σ(r − 2)² = 14
names = pytest.mark.parametrize("name", OBJECTIVES)
scaled = pytest.mark.parametrize("name", PAPER_OBJECTIVES)


@pytest.mark.parametrize("eps", [1e-4, 0.5])
@pytest.mark.parametrize("scale", DEVIATION)
def test_group_advantages_by_hand(scale, eps):
    rewards = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=F64)
    unit = DEVIATION[scale] + (eps if scale != "none" else 0)
    assert_close(group_advantages(rewards, scale=scale, eps=eps), torch.tensor([-2, -1, 0, 3], dtype=F64) / unit)
    pair = torch.stack([rewards, 10 * rewards])
    assert torch.equal(group_advantages(pair, scale=scale, eps=eps)[0], group_advantages(rewards, scale=scale, eps=eps))


def test_defaults_are_the_papers(example):
    rewards = example.group.rewards
    assert_close(group_advantages(rewards), torch.tensor(example.outcome_advantages, dtype=F64))
    assert (group_advantages(rewards, eps=0.0) - group_advantages(rewards)).abs().max() > 1e-4


@pytest.mark.parametrize("scale", DEVIATION)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("reward", [0.7, 0.1, -1e6 - 0.1])
def test_equal_rewards_give_exactly_zero(reward, dtype, scale):
    for G in range(2, 65):
        rewards = torch.full((2, G), reward, dtype=dtype)
        rewards[1, 0] += 1  # beside a group that does have advantages
        equal, unequal = group_advantages(rewards, scale=scale)
        assert not equal.any()
        assert unequal.abs().min() > 1e-3


@names
def test_equal_rewards_in_objectives(name, example):
    group = example.group
    advantages, step_weights = OBJECTIVES[name](torch.full((6,), 0.7), group.ids, group.mask)
    assert not advantages.any()
    assert torch.equal(step_weights != 0, group.mask)


def test_worked_example(example):
    group, sizes = example.group, padded(example.sizes)
    mask = group.mask.to(F64)
    outcome = torch.tensor(example.outcome_advantages, dtype=F64).unsqueeze(-1) * mask
    inverse = torch.where(group.mask, 1 / sizes, 0.0)
    expected = {
        "grpo": (outcome, mask),
        "prm": (padded(example.step_advantages), mask),
        "lambda_grpo": (outcome, inverse),
    }
    assert PAPER_OBJECTIVES == tuple(expected)
    for name, pair in expected.items():
        for actual, wanted in zip(OBJECTIVES[name](group.rewards, group.ids, group.mask), pair, strict=True):
            assert_close(actual, wanted)
    steps = prm(group.rewards, group.ids, group.mask)[0]
    assert (steps - padded(example.two_digits)).abs().max() < 5e-3


@given(groups())
def test_against_the_tree(group):
    nodes = group.tree_nodes()
    mask = group.mask.to(F64)
    outcome = group_advantages(group.rewards).unsqueeze(-1) * mask
    arguments = group.rewards, group.ids, group.mask
    for actual, wanted in zip(grpo(*arguments), (outcome, mask), strict=True):
        assert_close(actual, wanted)
    steps = group.per_token(lambda p, i, t: nodes[p, i, t].advantage)
    for actual, wanted in zip(prm(*arguments), (steps, mask), strict=True):
        assert_close(actual, wanted)
    inverse = group.per_token(lambda p, i, t: 1 / len(nodes[p, i, t].members))
    for actual, wanted in zip(lambda_grpo(*arguments), (outcome, inverse), strict=True):
        assert_close(actual, wanted)


@given(groups())
def test_mass_is_conserved_per_column(group):
    assert group_advantages(group.rewards).sum(dim=-1).abs().max() < 1e-12
    outcome, process = (f(group.rewards, group.ids, group.mask)[0] for f in (grpo, prm))
    assert_close(process.sum(dim=-2), outcome.sum(dim=-2))


@given(groups())
def test_each_step_weighs_one(group):
    weights = lambda_grpo(group.rewards, group.ids, group.mask)[1].reshape(-1, *group.ids.shape[-2:])
    distinct = [
        [len({tuple(y[: t + 1]) for y in completions if t < len(y)}) for t in range(weights.shape[-1])]
        for completions in group.completions
    ]
    assert_close(weights.sum(dim=-2), torch.tensor(distinct, dtype=F64))  # the prefixes of length t + 1, once each


@given(groups())
def test_the_dial_between_grpo_and_lambda_grpo(group):
    arguments = group.rewards, group.ids, group.mask
    (plain, ones), (_, whole) = grpo(*arguments), lambda_grpo(*arguments)
    for power, wanted in ((0.0, ones), (0.5, whole.sqrt()), (1.0, whole), (2.0, whole.square())):
        advantages, weights = lambda_grpo(*arguments, power=power)
        assert_close(advantages, plain)
        assert_close(weights, wanted)
    with pytest.raises(ValueError, match="power must be finite, got nan"):
        lambda_grpo(*arguments, power=float("nan"))


@scaled
@pytest.mark.parametrize("options", [{"scale": "none"}, {"scale": "population"}, {"eps": 0.5}])
def test_options_reach_the_advantages(name, options, example):
    group = example.group
    a = group_advantages(group.rewards, **options)
    advantages = OBJECTIVES[name](group.rewards, group.ids, group.mask, **options)[0]
    wanted = torch.stack([a[:2].mean(), a[1], a[2:5].mean(), a[2:5].mean(), a[2:5].mean(), a[5]])  # equal rewards in AB
    assert_close(advantages[:, 0], wanted if name == "prm" else a)


@given(groups(leading=((3,), (2, 2))))
def test_batched_equals_looped(group):
    for name, objective in OBJECTIVES.items():
        rewards = group.rewards.abs() if name == "maxrl" else group.rewards  # which knows none below 0
        advantages, weights = objective(rewards, group.ids, group.mask)
        for index in product(*map(range, group.ids.shape[:-2])):
            if group.mask[index].any():
                alone = objective(rewards[index], group.ids[index], group.mask[index])
                assert_close(advantages[index], alone[0], 1e-14)
                assert_close(weights[index], alone[1], 1e-14)
            else:
                assert not advantages[index].any()
                assert not weights[index].any()


@names
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("int_dtype", [torch.int64, torch.int32, torch.uint8])
def test_dtypes_and_purity(name, dtype, int_dtype, example):
    group = example.group
    arguments = group.rewards.to(dtype), group.ids.to(int_dtype), group.mask.clone()
    before = [argument.clone() for argument in arguments]
    wanted = OBJECTIVES[name](group.rewards, group.ids, group.mask)
    for part, exact in zip(OBJECTIVES[name](*arguments), wanted, strict=True):
        assert_close(part, exact.to(dtype), 1e-6)
    assert all(map(torch.equal, arguments, before))


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours, from their papers' equations
# ---------------------------------------------------------------------------------------------------------------------


def test_neighbours_by_hand():
    """Three completions, A B, A C and D, of rewards 1, 0 and 0; deviation √(1/3)."""
    rewards = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    ids = torch.tensor([[1, 2], [1, 3], [4, 0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]]).bool()
    third = torch.tensor([2.0, -1.0, -1.0], dtype=F64) / 3
    for name, a in (
        ("dr_grpo", third),
        ("rloo", torch.tensor([1.0, -0.5, -0.5], dtype=F64)),  # 1 − 0, and 0 − 1/2
        ("maxrl", torch.tensor([2.0, -1.0, -1.0], dtype=F64)),
    ):
        advantages, weights = OBJECTIVES[name](rewards, ids, mask)
        assert_close(advantages, a.unsqueeze(-1) * mask)
        assert torch.equal(weights, mask.to(F64))
    advantages, weights = OBJECTIVES["tempo"](rewards, ids, mask, scale="none")
    # V: 1/3 before, A 1/2, AB 1, AC 0, D 0
    changes = torch.tensor([[1 / 6, 1 / 2], [1 / 6, -1 / 2], [-1 / 3, 0]], dtype=F64)
    assert_close(advantages, (third.unsqueeze(-1) + changes) * mask)
    assert torch.equal(weights, mask.to(F64))
    scaled = OBJECTIVES["tempo"](rewards, ids, mask, eps=0.5)[0]
    assert_close(scaled, advantages / (math.sqrt(1 / 3) + 0.5))


@given(groups())
def test_tempo_against_the_tree(group):
    """Where a step goes on the term is 0; where one begins it is the step's advantage less its parent's."""
    nodes = group.tree_nodes()
    tempo = OBJECTIVES["tempo"](group.rewards, group.ids, group.mask)[0]
    a = group_advantages(group.rewards).unsqueeze(-1)

    def change(p, i, t):
        before = nodes[p, i, t - 1].advantage if t else 0.0
        return nodes[p, i, t].advantage - before

    assert_close(tempo, (a + group.per_token(change)) * group.mask)


@given(groups())
def test_rloo_leaves_one_out(group):
    G = group.rewards.shape[-1]
    others = (group.rewards.sum(dim=-1, keepdim=True) - group.rewards) / (G - 1)
    advantages = OBJECTIVES["rloo"](group.rewards, group.ids, group.mask)[0]
    assert_close(advantages, (group.rewards - others).unsqueeze(-1) * group.mask, 1e-10)


def test_maxrl_without_a_right_answer_and_with_a_reward_below_zero(example):
    group = example.group
    assert not OBJECTIVES["maxrl"](torch.zeros(6), group.ids, group.mask)[0].any()
    with pytest.raises(ValueError, match=r"rewards must be at least 0 for maxrl, got -0\.5"):
        OBJECTIVES["maxrl"](group.rewards - 0.5, group.ids, group.mask)
