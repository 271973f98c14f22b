"""The tree by hand: nodes, numbers, the picture; and that its nodes are the process sets of the definition."""

import pytest
from groups import groups
from hypothesis import given

from minigrpo import ProcessTree


def test_worked_example(example):
    tree = ProcessTree(example.words, example.group.scores[0])
    steps = [("".join(node.tokens), node.start, node.members, [len(node.children)]) for node in tree.nodes]
    assert steps == [
        ("AB", 0, (0, 1), [2]),
        ("CD", 2, (0,), [0]),
        ("EFHI", 2, (1,), [0]),
        ("JKL", 0, (2, 3, 4), [2]),
        ("M", 3, (2,), [0]),
        ("NQ", 3, (3, 4), [2]),
        ("ST", 5, (3,), [0]),
        ("U", 5, (4,), [0]),
        ("VWYZ", 0, (5,), [0]),
    ]
    assert ["".join(root.tokens) for root in tree.roots] == ["AB", "JKL", "VWYZ"]
    assert ["".join(node.tokens) for node in tree.path(3)] == ["JKL", "NQ", "ST"]
    for i in range(6):
        nodes = [node for node in tree.path(i) for _ in node.tokens]
        assert [node.reward for node in nodes] == pytest.approx([float(r) for r in example.step_rewards[i]], rel=1e-12)
        assert [node.advantage for node in nodes] == pytest.approx(example.step_advantages[i], rel=1e-12)
        assert [node.advantage for node in nodes] == pytest.approx(example.two_digits[i], abs=5e-3)


@pytest.mark.parametrize(("scale", "unit"), [("std", 2**0.5 + 0.5), ("population", 1.5), ("none", 1.0)])
def test_scales_by_hand(scale, unit):
    tree = ProcessTree(["a", "b"], [1, 3], scale=scale, eps=0.5)  # mean 2; std √2 unbiased, 1 of the population
    assert [node.advantage for node in tree.nodes] == pytest.approx([-1 / unit, 1 / unit], rel=1e-14)
    assert tree.mean == 2


@given(groups(leading=((),)))
def test_nodes_are_the_process_sets(group):
    tree, completions = group.tree(), group.completions[0]
    for i, completion in enumerate(completions):
        path = tree.path(i)
        assert [token for node in path for token in node.tokens] == completion
        assert [node.start for node in path] == [sum(len(n.tokens) for n in path[:k]) for k in range(len(path))]
        for node in path:
            for t in range(node.start, node.start + len(node.tokens)):
                assert list(node.members) == group.members(0, i, t)
        assert all(above.members != below.members for above, below in zip(path, path[1:], strict=False))  # maximal
        assert all(below in above.children for above, below in zip(path, path[1:], strict=False))
        assert path[:1] == [root for root in tree.roots if i in root.members]
    prefixes = {tuple(y[: t + 1]) for y in completions for t in range(len(y))}
    assert sum(len(node.tokens) for node in tree.nodes) == len(prefixes)  # no node twice


def test_picture():
    texts = ["the cat sat", "the cat", "the dog", "no", "no way"]  # mean −1/2, Σ(r + 1/2)² = 10, std √(10/4)
    assert str(ProcessTree([text.split() for text in texts], [1, 0, 0.5, -3, -1])) == (
        "5 completions, mean reward -0.500\n"
        "├─ the        R +0.50  A +0.63  |λ| 3\n"
        "│  ├─ cat     R +0.50  A +0.63  |λ| 2\n"
        "│  │  └─ sat  R +1.00  A +0.95  |λ| 1\n"
        "│  └─ dog     R +0.50  A +0.63  |λ| 1\n"
        "└─ no         R -2.00  A -0.95  |λ| 2\n"
        "   └─ way     R -1.00  A -0.32  |λ| 1"
    )


@pytest.mark.parametrize(("length", "shown"), [(30, "x" + " x" * 29), (31, f"{'x ' * 14} … {' x' * 14} (31 tokens)")])
def test_long_steps_are_shortened(length, shown):
    lines = str(ProcessTree([["x"] * length, ["y"]], [0.0, 1.0])).splitlines()
    assert lines[1].split("  R ")[0].rstrip() == f"├─ {shown}"
    assert lines[1].index("R") == lines[2].index("R")  # columns stay aligned


def test_equal_rewards_give_exactly_zero():
    assert not any(node.advantage for node in ProcessTree(["ab", "ac", "b"], [0.1] * 3).nodes)
