"""Process steps against the definition of λ^(i,t), word for word, and against the recursive tree."""

from itertools import product
from statistics import fmean

import pytest
import torch
from groups import assert_close, groups, pad, padded
from hypothesis import given

from minigrpo import intermediate_proportion, path_depth, process_rewards, same_prefix, step_mean, step_sizes

OF_IDS = (same_prefix, step_sizes, path_depth, intermediate_proportion)
OF_VALUES = (step_mean, process_rewards)


def call(function, group, values=None, ids=None, mask=None):
    """Call a function of steps with the group's tensors."""
    ids, mask = group.ids if ids is None else ids, group.mask if mask is None else mask
    return (
        function(ids, mask) if function in OF_IDS else function(group.rewards if values is None else values, ids, mask)
    )


def test_worked_example(example):
    group = example.group
    rewards = process_rewards(group.rewards, group.ids, group.mask)
    assert_close(rewards, padded(example.step_rewards))
    assert rewards[2].tolist() == pytest.approx([0.333, 0.333, 0.333, 1.0, 0, 0, 0], abs=5e-4)  # as the paper prints it
    assert torch.equal(step_sizes(group.ids, group.mask), padded(example.sizes).long())
    assert path_depth(group.ids, group.mask).tolist() == [1, 1, 1, 2, 2, 0]
    assert intermediate_proportion(group.ids, group.mask).tolist() == pytest.approx(
        [2 / 4, 2 / 6, 3 / 4, 5 / 7, 5 / 6, 0]
    )


def test_same_prefix_by_hand():
    group = pad([[[1, 2], [1, 2, 3], [1, 4, 3], []]], [[0.0] * 4], garbage=lambda: 3)
    assert same_prefix(group.ids, group.mask).int().tolist() == [
        [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]],
        [[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]],  # token 2 of row 0 is padding, though its id is the same
        [[1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]],  # 3 after 1 4 is another step than 3 after 1 2
        [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]


@given(groups(min_size=1))
def test_definition(group):
    same = same_prefix(group.ids, group.mask)
    G, T = group.ids.shape[-2:]
    assert same.dtype == torch.bool
    assert same.shape == (*group.ids.shape[:-1], G, T)
    flat = same.reshape(-1, G, G, T)
    for p in range(len(flat)):
        for i in range(G):
            for t in range(T):
                members = group.members(p, i, t) if t < len(group.completions[p][i]) else []
                assert flat[p, i, :, t].nonzero().flatten().tolist() == members

    sizes = step_sizes(group.ids, group.mask)
    assert sizes.dtype == torch.int64
    assert torch.equal(sizes, same.sum(dim=-2))
    expected = group.per_token(lambda p, i, t: fmean(group.scores[p][j] for j in group.members(p, i, t)))
    assert_close(step_mean(group.rewards, group.ids, group.mask), expected)


@given(groups())
def test_tree(group):
    nodes = group.tree_nodes()
    sizes = group.per_token(lambda p, i, t: len(nodes[p, i, t].members))
    assert torch.equal(step_sizes(group.ids, group.mask), sizes.long())
    rewards = group.per_token(lambda p, i, t: nodes[p, i, t].reward)
    assert_close(process_rewards(group.rewards, group.ids, group.mask), rewards)

    depths, shares = [], []
    for p, completions in enumerate(group.completions):
        for i, completion in enumerate(completions):
            path = list({id(node): node for (q, j, _), node in nodes.items() if (q, j) == (p, i)}.values())
            depths.append(max(len(path) - 1, 0))
            shares.append(sum(len(node.tokens) for node in path[:-1]) / max(len(completion), 1))
    assert path_depth(group.ids, group.mask).flatten().tolist() == depths
    assert intermediate_proportion(group.ids, group.mask).flatten().tolist() == pytest.approx(shares, rel=1e-6)


@given(groups())
def test_sums_are_conserved(group):
    means = step_mean(group.rewards, group.ids, group.mask)
    sums = torch.where(group.mask, group.rewards.unsqueeze(-1), 0.0).sum(dim=-2)  # Σ over each column's members
    assert_close(means.sum(dim=-2), sums)


@given(groups(leading=((3,), (2, 2))))
def test_batched_equals_looped(group):
    shape = group.ids.shape[:-2]
    for function in OF_IDS + OF_VALUES:
        batched = call(function, group)
        for index in product(*map(range, shape)):
            values, ids, mask = group.rewards[index], group.ids[index], group.mask[index]
            if mask.any():  # alone, a group needs a token
                assert torch.equal(batched[index], call(function, group, values, ids, mask))
            else:
                assert not batched[index].any()


@pytest.mark.parametrize("function", OF_IDS + OF_VALUES)
def test_dtypes_and_purity(function, example):
    group = example.group
    expected = call(function, group)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        assert torch.equal(call(function, group, ids=group.ids.to(dtype)), expected)
    if function in OF_VALUES:
        assert expected.dtype == torch.float64
        assert_close(call(function, group, values=group.rewards.float()), expected.float(), 1e-6)
        assert_close(call(function, group, values=group.rewards.bfloat16()), expected.bfloat16(), 1e-2)
    arguments = group.rewards.clone(), group.ids.clone(), group.mask.clone()
    call(function, group, *arguments)
    assert all(map(torch.equal, arguments, (group.rewards, group.ids, group.mask)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_extreme_ids(dtype):
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    ids = torch.tensor([[low, high], [low, high], [high, high], [low, low]], dtype=dtype)
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]]).bool()
    assert step_sizes(ids, mask).tolist() == [[3, 2], [3, 2], [1, 1], [3, 0]]


def test_group_of_one():
    group = pad([[[4, 4, 5]]], [[0.3]], width=4)
    assert step_sizes(group.ids, group.mask).tolist() == [[1, 1, 1, 0]]
    assert same_prefix(group.ids, group.mask).int().tolist() == [[[1, 1, 1, 0]]]
    assert step_mean(group.rewards, group.ids, group.mask).tolist() == [[0.3, 0.3, 0.3, 0.0]]
    assert path_depth(group.ids, group.mask).tolist() == [0]
    assert intermediate_proportion(group.ids, group.mask).tolist() == [0.0]
