"""Advantages and step weights: by hand, and against the recursive tree."""

import math
from itertools import product

import pytest
import torch
from groups import assert_close, groups, padded
from hypothesis import given

from minigrpo import OBJECTIVES, group_advantages, grpo, lambda_grpo, prm

F64 = torch.float64
DEVIATION = {"std": math.sqrt(14 / 3), "population": math.sqrt(14 / 4), "none": 1.0}  # of 0, 1, 2, 5: Σ(r − 2)² = 14
names = pytest.mark.parametrize("name", ["grpo", "prm", "lambda_grpo"])


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
    assert list(OBJECTIVES) == list(expected)
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


@names
@pytest.mark.parametrize("options", [{"scale": "none"}, {"scale": "population"}, {"eps": 0.5}])
def test_options_reach_the_advantages(name, options, example):
    group = example.group
    a = group_advantages(group.rewards, **options)
    advantages = OBJECTIVES[name](group.rewards, group.ids, group.mask, **options)[0]
    wanted = torch.stack([a[:2].mean(), a[1], a[2:5].mean(), a[2:5].mean(), a[2:5].mean(), a[5]])  # equal rewards in AB
    assert_close(advantages[:, 0], wanted if name == "prm" else a)


@given(groups(leading=((3,), (2, 2))))
def test_batched_equals_looped(group):
    for objective in OBJECTIVES.values():
        advantages, weights = objective(group.rewards, group.ids, group.mask)
        for index in product(*map(range, group.ids.shape[:-2])):
            if group.mask[index].any():
                alone = objective(group.rewards[index], group.ids[index], group.mask[index])
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
