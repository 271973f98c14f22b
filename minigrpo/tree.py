"""The tree of process steps over plain lists: the picture, and an oracle that shares no code with `steps`.

It is written from the definition, by recursion: completions that share their next token go on together, and a node
ends where they part or where one of them ends. Standard library only; the page of `to_html` is made in `explorer`.
Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minigrpo.explorer import frame, page

DEVIATIONS = {"std": statistics.stdev, "population": statistics.pstdev}


@dataclass(frozen=True)
class Node:
    """One process step: a maximal run of tokens with the same process set λ.

    tokens: the run; start: its first token's place t; members: indices of the completions in λ, ascending;
    reward: R, the mean outcome reward over λ; advantage: A; children: the steps that follow it.
    """

    tokens: tuple[Hashable, ...]
    start: int
    members: tuple[int, ...]
    reward: float
    advantage: float
    children: tuple[Node, ...]


class ProcessTree:
    """The process sets of a group as a tree, with the step reward and step advantage of each node.

        R(λ) = mean of r over λ
        A(λ) = (R(λ) − mean r) / (std r + eps)

    `roots` are the first steps, `nodes` all of them, depth first; `str()` draws the tree, `to_html()` is a page on
    which one can touch it, and a notebook shows that page.

    Args: completions: G ≥ 2 sequences of hashable tokens (lists of ids, lists of words, or strings), unpadded, of any
        lengths, at least one not empty; rewards: G finite numbers; scale, eps: as in `minigrpo.group_advantages`.
    Raises: ValueError for a group of fewer than two, counts that differ, rewards that are not finite, only empty
        completions, an unknown scale.
    """

    def __init__(
        self,
        completions: Sequence[Sequence[Hashable]],
        rewards: Sequence[float],
        *,
        scale: str = "std",
        eps: float = 1e-4,
    ) -> None:
        self.completions = [tuple(completion) for completion in completions]
        self.rewards = [float(reward) for reward in rewards]
        if len(self.completions) < 2 or not any(self.completions):
            raise ValueError(
                f"completions must hold at least two, one of them not empty, got {len(self.completions)} "
                f"with {sum(map(len, self.completions))} tokens"
            )
        if len(self.rewards) != len(self.completions):
            raise ValueError(
                f"rewards must hold one number a completion ({len(completions)}), got {len(rewards)}"
            )
        if not all(map(math.isfinite, self.rewards)):
            raise ValueError(f"rewards must be finite, got {self.rewards}")
        if scale not in ("std", "population", "none"):
            raise ValueError(f"scale must be one of none, population, std, got {scale!r}")
        self.mean = statistics.mean(self.rewards)  # exact, so that equal rewards have A = 0
        self.scale, self.eps = scale, eps
        self._unit = 1.0 if scale == "none" else DEVIATIONS[scale](self.rewards) + eps
        self.roots = self._grow(range(len(self.completions)), 0)

    def _grow(self, members: Sequence[int], start: int) -> tuple[Node, ...]:
        """Make the nodes that begin at token `start` below a node with these members."""
        branches: dict[Hashable, list[int]] = {}
        for i in members:
            if start < len(self.completions[i]):  # a completion that has ended leaves the set
                branches.setdefault(self.completions[i][start], []).append(i)
        return tuple(self._node(tuple(branch), start) for branch in branches.values())

    def _node(self, members: tuple[int, ...], start: int) -> Node:
        """Make the longest run of tokens that these members share from `start` on, and what follows it."""
        end = start + 1
        first = self.completions[members[0]]
        while end < len(first) and all(
            self.completions[i][end : end + 1] == (first[end],) for i in members
        ):
            end += 1
        reward = statistics.mean(self.rewards[i] for i in members)
        advantage = (reward - self.mean) / self._unit
        return Node(first[start:end], start, members, reward, advantage, self._grow(members, end))

    @property
    def nodes(self) -> list[Node]:
        """All nodes, depth first."""

        def walk(nodes: Sequence[Node]) -> Iterator[Node]:
            for node in nodes:
                yield node
                yield from walk(node.children)

        return list(walk(self.roots))

    def path(self, completion: int) -> list[Node]:
        """The steps of one completion from root to leaf."""
        steps: list[Node] = []
        nodes = self.roots
        while node := next((node for node in nodes if completion in node.members), None):
            steps.append(node)
            nodes = node.children
        return steps

    def to_html(self, *, texts: Sequence[Sequence[str]] | None = None, caption: str = "") -> str:
        """Make the explorer of this group: one HTML page, whole in itself, whose rewards and objective can be changed.

        Args: texts: the text of each token, where the tokens are ids; caption: what the group is, the prompt say.
        Raises: ValueError where `texts` does not have a text for each token of each completion.
        """
        if texts is None:
            shown = [[str(token) for token in completion] for completion in self.completions]
        else:
            shown = [list(row) for row in texts]
        if [len(row) for row in shown] != [len(completion) for completion in self.completions]:
            expected, got = list(map(len, self.completions)), list(map(len, shown))
            raise ValueError(
                f"texts must hold a text for each token, {expected} a completion, got {got}"
            )
        return page(
            completions=shown,
            rewards=self.rewards,
            steps=list(self._places(self.roots, -1, itertools.count())),
            scale=self.scale,
            eps=self.eps,
            joint=" " if texts is None else "",  # texts of a tokenizer bring their own spaces
            caption=caption,
        )

    def _places(
        self, nodes: Sequence[Node], parent: int, number: Iterator[int]
    ) -> Iterator[dict[str, Any]]:
        """Yield where each node lies, depth first, with the number of its parent (−1: none)."""
        for node in nodes:
            own = next(number)
            yield {
                "start": node.start,
                "length": len(node.tokens),
                "members": node.members,
                "parent": parent,
            }
            yield from self._places(node.children, own, number)

    def _repr_html_(self) -> str:
        """The explorer in a frame, for a notebook: its styles stay its own, and its numbers too."""
        return frame(self.to_html(), lines=max(len(self.completions), len(self.nodes)))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Draw the tree: a line a step, with its reward R, advantage A and the size |λ| of its set."""
        drawn = list(self._draw(self.roots, ""))
        width = max(len(picture) for picture, _ in drawn)
        head = f"{len(self.completions)} completions, mean reward {self.mean:.3f}"
        lines = [
            f"{picture:<{width}}  R {node.reward:+.2f}  A {node.advantage:+.2f}  |λ| {len(node.members)}"
            for picture, node in drawn
        ]
        return "\n".join([head, *lines])

    def _draw(self, nodes: Sequence[Node], indent: str) -> Iterator[tuple[str, Node]]:
        """Yield each node below `indent` with the left side of its line."""
        for node in nodes:
            last = node is nodes[-1]
            text = " ".join(map(str, node.tokens))
            if len(text) > 60:
                text = f"{text[:28]} … {text[-28:]} ({len(node.tokens)} tokens)"
            yield f"{indent}{'└─' if last else '├─'} {text}", node
            yield from self._draw(node.children, indent + ("   " if last else "│  "))
