"""Groups for tests: the paper's worked example, and random ragged groups with what the definitions say about them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import Tensor

from minigrpo import ProcessTree

REWARDS = (-1.0, -0.5, 0.0, 0.25, 1.0, 2.5)  # exact in binary, as are their sums


@dataclass(frozen=True)
class Group:
    """Completions and rewards as plain lists (one group after the other), and as padded tensors."""

    completions: list[list[list[int]]]  # group, completion, token
    scores: list[list[float]]  # group, completion
    ids: Tensor  # int64 (…, G, T)
    mask: Tensor  # bool (…, G, T)
    rewards: Tensor  # float64 (…, G)

    def __repr__(self) -> str:
        return f"Group({self.completions}, {self.scores}, ids={self.ids.tolist()})"

    def tree(self) -> ProcessTree:
        """The tree of an unbatched group."""
        return ProcessTree(self.completions[0], self.scores[0])

    def per_token(self, value) -> Tensor:
        """Fill float64 (…, G, T) with value(group, completion, token), 0 where there is no token."""
        G, T = self.ids.shape[-2:]
        flat = torch.zeros(len(self.completions), G, T, dtype=torch.float64)
        for p, completions in enumerate(self.completions):
            for i, completion in enumerate(completions):
                for t in range(len(completion)):
                    flat[p, i, t] = value(p, i, t)
        return flat.reshape(self.ids.shape)

    def members(self, p: int, i: int, t: int) -> list[int]:
        """λ^(i,t), word for word: the completions that agree with completion i on tokens 0…t inclusive."""
        prefix = self.completions[p][i][: t + 1]
        return [j for j, other in enumerate(self.completions[p]) if other[: t + 1] == prefix]

    def tree_nodes(self) -> dict:
        """(group, completion, token) → node, read off one `ProcessTree` a group."""
        nodes = {}
        for p, completions in enumerate(self.completions):
            if any(completions):
                tree = ProcessTree(completions, self.scores[p])
                for i in range(len(completions)):
                    for node in tree.path(i):
                        nodes |= {(p, i, t): node for t in range(node.start, node.start + len(node.tokens))}
        return nodes


def pad(
    completions: list[list[list[int]]], scores: list[list[float]], leading=(), width=None, garbage=lambda: 0
) -> Group:
    """Make a Group of lists, with `garbage()` for every id under the mask."""
    T = width or max(len(y) for group in completions for y in group)
    ids = [[y + [garbage() for _ in range(T - len(y))] for y in group] for group in completions]
    mask = [[[t < len(y) for t in range(T)] for y in group] for group in completions]
    shape = (*leading, len(completions[0]), T)
    return Group(
        completions=completions,
        scores=scores,
        ids=torch.tensor(ids).reshape(shape),
        mask=torch.tensor(mask).reshape(shape),
        rewards=torch.tensor(scores, dtype=torch.float64).reshape(shape[:-1]),
    )


@st.composite
def groups(
    draw, min_size=2, leading=((), (3,), (2, 2)), vocabularies=((0,), (0, 1), (0, 1, 2), (-1, 2**60, 2**60 + 1))
):
    """Ragged groups full of overlap: each completion goes on from a prefix of an earlier one, or from nothing.

    Duplicates, completions that end inside others, empty rows and (but for the first group) groups without a token
    all occur; ids under the mask are real tokens, negative or huge.
    """
    shape = draw(st.sampled_from(leading))
    size = draw(st.integers(min_size, 6))
    tokens = draw(st.sampled_from(vocabularies))
    noise = random.Random(draw(st.integers(0, 99)))
    completions: list[list[list[int]]] = []
    for p in range(math.prod(shape)):
        group: list[list[int]] = []
        for i in range(size):
            prefix = draw(st.sampled_from([[], *group]))
            prefix = prefix[: draw(st.integers(0, len(prefix)))]
            tail = st.lists(st.sampled_from(tokens), min_size=int(p == i == 0), max_size=4)
            group.append(prefix + draw(tail))
        noise.shuffle(group)
        completions.append(group)
    scores = [draw(st.lists(st.sampled_from(REWARDS), min_size=size, max_size=size)) for _ in completions]
    width = max(len(y) for group in completions for y in group) + draw(st.integers(0, 2))
    garbage = draw(st.sampled_from([tokens, (*tokens, -1, -(2**63), 2**62)]))
    return pad(completions, scores, shape, width, lambda: noise.choice(garbage))


@dataclass(frozen=True)
class WorkedExample:
    """The paper's example, every number by hand; per-token lists are as ragged as the completions."""

    group: Group
    words: list[str]
    sizes: list[list[int]]
    step_rewards: list[list[Fraction]]
    step_advantages: list[list[float]]  # exact
    two_digits: list[list[float]]  # as the paper prints them
    outcome_advantages: list[float]  # exact


def worked_example() -> WorkedExample:
    """Six completions; mean r = 5/12, Σ(r − 5/12)² = 7/4 − 6·25/144 = 17/24, so std r = √(17/24 / 5) = √(17/120)."""
    words = ["ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ"]
    rewards = [Fraction(1, 2), Fraction(1, 2), Fraction(1), Fraction(0), Fraction(0), Fraction(1, 2)]
    half, third, one, zero = Fraction(1, 2), Fraction(1, 3), Fraction(1), Fraction(0)
    step_rewards = [
        [half] * 4,
        [half] * 6,
        [third] * 3 + [one],
        [third] * 3 + [zero] * 4,
        [third] * 3 + [zero] * 3,
        [half] * 4,
    ]
    unit = math.sqrt(Fraction(17, 120)) + 1e-4
    printed = {half: 0.22, third: -0.22, one: 1.55, zero: -1.11}
    return WorkedExample(
        group=pad([[[ord(letter) for letter in word] for word in words]], [[float(r) for r in rewards]]),
        words=words,
        sizes=[[2, 2, 1, 1], [2, 2, 1, 1, 1, 1], [3, 3, 3, 1], [3, 3, 3, 2, 2, 1, 1], [3, 3, 3, 2, 2, 1], [1, 1, 1, 1]],
        step_rewards=step_rewards,
        step_advantages=[[float(r - Fraction(5, 12)) / unit for r in row] for row in step_rewards],
        two_digits=[[printed[r] for r in row] for row in step_rewards],
        outcome_advantages=[float(r - Fraction(5, 12)) / unit for r in rewards],
    )


def padded(rows: list[list]) -> Tensor:
    """Ragged rows as float64 (G, T), 0 where there is no token."""
    T = max(map(len, rows))
    return torch.tensor([[float(x) for x in row] + [0.0] * (T - len(row)) for row in rows], dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Same shape and dtype, and ‖difference‖∞ within `tolerance` of the expected size (at least 1e-3)."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * max(expected.abs().max().item(), 1e-3)
