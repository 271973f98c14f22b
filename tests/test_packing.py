"""The packed tree against paths and prefixes written out as lists, and its loss against the loss of the rows."""

import pytest
import torch
from groups import groups, pad
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from minigrpo import OBJECTIVES, policy_loss, step_sizes
from minigrpo.packing import (
    ancestor_blocks,
    ancestor_mask,
    ancestor_rule,
    inner_tokens,
    node_sum,
    pack,
    tree_loss,
    unpack,
)


def prompts(count, seed=0, longest=4):
    """Random prompts of 1 … longest tokens: int (P, L), bool (P, L), and as lists."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count, 1), generator=generator)
    mask = torch.arange(longest) >= longest - lengths
    ids = torch.randint(50, 90, (count, longest), generator=generator)
    return ids, mask, [ids[p, mask[p]].tolist() for p in range(count)]


def packed_of(group):
    ids, mask, texts = prompts(len(group.completions))
    G, T = group.ids.shape[-2:]
    return pack(ids, mask, group.ids.view(-1, G, T), group.mask.view(-1, G, T)), texts


def path(packed, p, place):
    """The places from the root to a place, by its parents."""
    places = []
    while place >= 0:
        places.append(place)
        place = packed.parent[p, place].item()
    return places[::-1]


@given(groups(min_size=1))
def test_every_prefix_once_depth_first(group):
    packed, texts = packed_of(group)
    N = packed.ids.shape[1]
    sizes = step_sizes(group.ids, group.mask).view(packed.place.shape)
    mask = ancestor_mask(packed.end)
    longest = 0
    for p, completions in enumerate(group.completions):
        prefixes = {tuple(y[: t + 1]) for y in completions for t in range(len(y))}
        used = len(texts[p]) + len(prefixes)
        longest = max(longest, used)
        assert (packed.multiplicity[p] > 0).sum() == len(prefixes)
        assert packed.multiplicity[p].sum() == sum(map(len, completions))
        for i, y in enumerate(completions):
            for t in range(len(y)):
                place = packed.place[p, i, t].item()
                way = path(packed, p, place)
                assert [packed.ids[p, k].item() for k in way] == texts[p] + y[: t + 1]
                assert packed.depth[p, place] == len(way) - 1
                assert packed.multiplicity[p, place] == sizes[p, i, t]
                assert mask[p, place].nonzero().flatten().tolist() == way
                j, s = divmod(packed.source[p, place].item(), packed.place.shape[2])
                assert s == t
                assert j == min(group.members(p, i, t))
            assert (packed.place[p, i, len(y) :] == N).all()
        for k in range(used, N):  # padding
            assert mask[p, k].nonzero().flatten().tolist() == [k]
            assert packed.multiplicity[p, k] == 0
        for k in range(len(texts[p])):  # the prompt
            assert mask[p, k].nonzero().flatten().tolist() == list(range(k + 1))
            assert packed.source[p, k] == -1
    assert longest == N
    assert torch.equal(mask, create_mask(ancestor_rule(packed.end), len(mask), 1, N, N, device="cpu")[:, 0])


@given(groups(min_size=1), st.integers(1, 9))
def test_blocks_are_the_mask(group, size):
    """Each run of queries has all that it sees among its keys, and no key that none of it sees."""
    packed, _ = packed_of(group)
    mask = ancestor_mask(packed.end)
    blocks = ancestor_blocks(packed.end, size)
    parts = mask.chunk(len(blocks), dim=1)
    assert len(parts) == len(blocks) >= min(mask.shape[1] // (2 * size), 2)
    for part, (keys, seen) in zip(parts, blocks, strict=True):
        assert keys.tolist() == part.any(dim=(0, 1)).nonzero().flatten().tolist()
        assert torch.equal(seen[:, 0], part[:, :, keys])


@given(groups(min_size=1))
def test_inner_tokens(group):
    """All tokens that are someone's parent, each with its own path; what remains in a shorter tree sees itself."""
    packed, texts = packed_of(group)
    ids, depth, end, parent = inner_tokens(packed)
    mask = ancestor_mask(end)
    used = [sorted({k for k in packed.parent[p].tolist() if k >= 0}) for p in range(len(ids))]
    assert ids.shape[1] == max(map(len, used))
    for p, places in enumerate(used):
        M = len(places)
        for m, k in enumerate(places):
            way = path(packed, p, k)
            assert [places[j] for j in mask[p, m].nonzero().flatten().tolist()] == way
            assert (ids[p, m], depth[p, m]) == (packed.ids[p, k], len(way) - 1)
        for m in range(M, ids.shape[1]):
            assert mask[p, m].nonzero().flatten().tolist() == [m]
        for node in packed.multiplicity[p].nonzero().flatten().tolist():
            assert places[parent[p, node]] == packed.parent[p, node]


def test_by_hand():
    """Prompt 9 9; completions a b, a b c, a d and a b again: nodes a, b, c, d in this order."""
    group = pad([[[1, 2], [1, 2, 3], [1, 4], [1, 2]]], [[0.0] * 4])
    packed = pack(torch.tensor([[0, 9, 9]]), torch.tensor([[False, True, True]]), group.ids[None], group.mask[None])
    assert packed.ids.tolist() == [[9, 9, 1, 2, 3, 4]]
    assert packed.depth.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert packed.parent.tolist() == [[-1, 0, 1, 2, 3, 2]]
    assert packed.end.tolist() == [[6, 6, 6, 5, 5, 6]]
    assert packed.multiplicity.tolist() == [[0, 0, 4, 3, 1, 1]]
    assert packed.source.tolist() == [[-1, -1, 0, 1, 5, 7]]
    assert packed.place.tolist() == [[[2, 3, 6], [2, 3, 4], [2, 5, 6], [2, 3, 6]]]
    ids, depth, end, parent = inner_tokens(packed)  # without c and d
    assert (ids.tolist(), depth.tolist(), end.tolist()) == ([[9, 9, 1, 2]], [[0, 1, 2, 3]], [[4, 4, 4, 4]])
    assert parent.tolist() == [[0, 0, 1, 2, 3, 2]]
    assert node_sum(torch.ones(1, 4, 3), packed).tolist() == [[0, 0, 4, 3, 1, 1]]
    assert unpack(torch.arange(6.0)[None], packed).tolist() == [[[2, 3, 0], [2, 3, 4], [2, 5, 0], [2, 3, 0]]]


@given(
    groups(),
    st.sampled_from(sorted(OBJECTIVES)),
    st.sampled_from([None, 0.2]),
    st.sampled_from([0.0, 0.04]),
    st.sampled_from([None, 100]),
)
def test_loss_and_gradient_are_those_of_the_rows(group, objective, epsilon, beta, num_tokens):
    """Log-probs that are the same over a step, as a model gives them; clipping bites, since ratios are 0.3 to 3."""
    packed, _ = packed_of(group)
    shape = packed.place.shape
    mask, rewards = group.mask.view(shape), group.rewards.view(shape[:2])
    rewards = rewards.abs() if objective == "maxrl" else rewards  # which knows none below 0
    tensors = OBJECTIVES[objective](rewards, group.ids.view(shape), mask)
    logps, old, ref = (torch.randn(packed.ids.shape, dtype=torch.float64).mul(0.5).requires_grad_() for _ in range(3))
    options = {"epsilon": epsilon, "beta": beta, "num_tokens": num_tokens}
    reference = {"ref_logps": unpack(ref, packed)} if beta else {}
    rows = policy_loss(unpack(logps, packed), unpack(old, packed), *tensors, mask, **options, **reference)
    reference = {"ref_logps": ref} if beta else {}
    tree = tree_loss(logps, unpack(old, packed), *tensors, packed, **options, **reference)
    expected = torch.autograd.grad(rows, logps)[0]
    actual = torch.autograd.grad(tree, logps)[0]
    assert abs(tree - rows).item() <= 1e-12 * max(expected.norm().item(), abs(rows.item()), 1e-3)
    assert (actual - expected).norm() <= 1e-12 * max(expected.norm().item(), 1e-3)


def test_loss_has_no_gradient_into_old_and_reference():
    packed, _ = packed_of(pad([[[1, 2], [1, 3]]], [[0.0, 1.0]]))
    values = [torch.zeros(packed.ids.shape).requires_grad_() for _ in range(3)]
    ones = torch.ones(packed.place.shape)
    logps, old, ref = values
    tree_loss(logps, unpack(old, packed), ones, ones, packed, beta=0.1, ref_logps=ref).backward()
    assert logps.grad.norm() > 0.1
    assert old.grad is None or not old.grad.any()
    assert ref.grad is None or not ref.grad.any()


def test_plain_sum_over_the_tree():
    """λ-GRPO without clipping: every node once, with the mean of its members' advantages."""
    group = pad([[[1, 2], [1, 2, 3], [1, 4], [5]]], [[1.0, 0.0, 0.0, 2.0]])
    packed, _ = packed_of(group)
    advantages, step_weights = OBJECTIVES["lambda_grpo"](group.rewards, group.ids, group.mask)
    logps = torch.zeros(packed.ids.shape, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(packed.place.shape, dtype=torch.float64)
    tree_loss(logps, zeros, advantages[None], step_weights[None], packed, num_tokens=1).backward()
    mean = OBJECTIVES["prm"](group.rewards, group.ids, group.mask)[0]
    for i, y in enumerate(group.completions[0]):
        for t in range(len(y)):
            assert logps.grad[0, packed.place[0, i, t]].item() == pytest.approx(-mean[i, t].item(), rel=1e-12)


def test_no_loop_over_tokens():
    """The calls of torch do not grow with the group, but for those inside the one sort."""

    def calls(G, T):
        ids = torch.randint(0, 2, (2, G, T))
        with torch.profiler.profile() as profile:
            pack(torch.ones(2, 3).long(), torch.ones(2, 3).bool(), ids, torch.ones_like(ids).bool())
        ours = ("aten::scatter_reduce", "aten::cummax", "aten::gather", "aten::cumsum", "aten::argsort", "aten::cat")
        return {event.key: event.count for event in profile.key_averages() if event.key in ours}

    assert calls(4, 8) == calls(16, 512)
    assert calls(4, 8)["aten::scatter_reduce"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": torch.ones(2, 3)}, "prompt_ids must have an int dtype"),
        ({"prompt_ids": torch.ones(1, 3).long()}, r"prompt_ids must have shape \(P, L\) with P = 2"),
        ({"prompt_mask": torch.ones(2, 2).bool()}, r"prompt_mask must have shape \(2, 3\), got \(2, 2\)"),
        ({"prompt_mask": torch.tensor([[True, False, True], [True] * 3])}, "pad on the left"),
        ({"prompt_mask": torch.tensor([[True, True, False], [True] * 3])}, "pad on the left"),
        ({"prompt_mask": torch.zeros(2, 3).bool()}, "a token at least"),
        ({"completion_ids": torch.ones(4, 5).long(), "completion_mask": torch.ones(4, 5).bool()}, r"shape \(P, G, T\)"),
        ({"completion_mask": torch.tensor([True, False, True, True, True]).expand(2, 4, 5)}, "no holes"),
    ],
)
def test_bad_groups(change, message):
    arguments = {
        "prompt_ids": torch.ones(2, 3).long(),
        "prompt_mask": torch.ones(2, 3).bool(),
        "completion_ids": torch.ones(2, 4, 5).long(),
        "completion_mask": torch.ones(2, 4, 5).bool(),
    }
    with pytest.raises((TypeError, ValueError), match=message):
        pack(**arguments | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logps": torch.zeros(1, 3)}, "logps must have shape"),
        ({"old_logps": torch.zeros(1, 3, 2)}, r"must have shape \(1, 3, 2\), got \(1, 2, 2\)"),
        ({"ref_logps": torch.zeros(1, 3)}, "ref_logps must have shape"),
        ({"beta": 0.1}, "ref_logps must be given"),
        ({"epsilon": -1.0}, "epsilon must be above 0"),
        ({"num_tokens": 0}, "num_tokens must be above 0"),
    ],
)
def test_bad_loss_options(change, message):
    packed, _ = packed_of(pad([[[1, 2], [1, 3]]], [[0.0, 1.0]]))
    rows = torch.zeros(packed.place.shape)
    arguments = {"logps": torch.zeros(packed.ids.shape), "old_logps": rows, "advantages": rows, "step_weights": rows}
    with pytest.raises(ValueError, match=message):
        tree_loss(**arguments | {"packed": packed} | change)
