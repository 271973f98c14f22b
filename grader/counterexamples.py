"""Judging a counterexample to GRPO = PRM: both losses and gradients of what a student made are computed and compared.

A counterexample has no one right answer. Each way of failing has a name, so that a named mistake is one that fails in
the same way. Lab 05 uses all of it; `grader/thresholds/lab05.py` measures how far real gaps are from rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import pad
from grader.exercise import Case, Judge

# of the gradients, relative; rounding is 1e-13 at most (grader/thresholds/lab05.json)
REAL_GAP = 0.01
LONGEST, LARGEST_ID, LARGEST_REWARD = 12, 999, 100.0


class Flaw(Exception):
    """Why a group is no counterexample: the name of the way in which it fails, and a sentence."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def counterexample(inspect: Callable[[Case, dict], None]) -> Judge:
    """A judge from a function that raises Flaw for what is no counterexample.

    Where a mistake's answer stands in for what was expected, an answer is "right" if it fails in the mistake's way. The
    reference gives None, for there is nothing to compare with and nothing to show.
    """

    def flaw(arguments: Case, answer: Any) -> Flaw | None:
        try:
            inspect(arguments, to_python(answer))
        except Flaw as found:
            return found
        return None

    def judge(arguments: Case, expected: Any, answer: Any) -> str | None:
        found = flaw(arguments, answer)
        wanted = None if expected is None else flaw(arguments, expected)
        if (found and found.name) == (wanted and wanted.name):
            return None
        return str(found) if found else "this is a counterexample"

    return judge


def to_python(answer: Any) -> Any:
    """The answer with numpy's numbers as Python's, so that they are judged and computed with as such."""
    if isinstance(answer, np.generic):
        return answer.item()
    if isinstance(answer, (list, tuple)):
        return [to_python(item) for item in answer]
    return (
        {key: to_python(item) for key, item in answer.items()}
        if isinstance(answer, dict)
        else answer
    )


def no_reference(**arguments):
    """Many answers are right."""


def gaps(
    leaf: Tensor,
    logps: Tensor,
    log_ratio: Tensor,
    ids: Tensor,
    mask: Tensor,
    rewards,
    batches=None,
    **options,
):
    """L_GRPO − L_PRM, and the relative distance of their gradients by `leaf`, steps being made of `ids`.

    batches: slices of rows, each divided by its own number of tokens, then averaged; None for one.

    Args:
        leaf: the parameters.
        logps: float (G, T), with gradient into the leaf.
        log_ratio: float (G, T), ln(π_θ/π_old).
        ids: int (G, T), what makes tokens equal.
        mask: bool (G, T).
        rewards: G numbers.
        batches: slices of rows, each divided by its own number of tokens, then averaged; None for one.
        options: of `policy_loss`.
    """
    rewards = torch.tensor(rewards, dtype=torch.float64)
    old_logps = logps.detach() - log_ratio
    losses, gradients = [], []
    for name in ("grpo", "prm"):
        tensors = (logps, old_logps, *minigrpo.OBJECTIVES[name](rewards, ids, mask), mask)
        parts = [[tensor[rows] for tensor in tensors] for rows in batches or [slice(None)]]
        losses.append(sum(minigrpo.policy_loss(*part, **options) for part in parts) / len(parts))
        gradients.append(torch.autograd.grad(losses[-1], leaf, retain_graph=True)[0])
    size = gradients[0].norm().clamp(min=1e-3)
    return (losses[0] - losses[1]).item(), ((gradients[0] - gradients[1]).norm() / size).item()


def completion_gaps(completions, rewards, ratio=None, **options) -> tuple[float, float]:
    """`gaps` of completions whose prefixes have each a log-probability of their own, the gradient's parameters.

    Args:
        completions: lists of token ids.
        rewards: a number each.
        ratio: π_θ/π_old of each token; None for 1.
        options: of `gaps`.
    """
    ids, mask = pad(completions)
    prefixes: dict[tuple, int] = {}
    node = torch.zeros_like(ids)
    log_ratio = torch.zeros(ids.shape, dtype=torch.float64)
    for i, y in enumerate(completions):
        for t in range(len(y)):
            node[i, t] = prefixes.setdefault(tuple(y[: t + 1]), len(prefixes))
            log_ratio[i, t] = math.log(ratio[i][t]) if ratio else 0.0
    leaf = torch.zeros(len(prefixes), dtype=torch.float64, requires_grad=True)
    return gaps(leaf, leaf[node], log_ratio, ids, mask, rewards, **options)


def state_gaps(
    states, actions, rewards, next_states, *, keyed_by_state: bool = False
) -> tuple[float, float]:
    """`gaps` of episodes by a table of logits: the smallest of three random tables'.

    Args:
        states: of each episode.
        actions: of each episode.
        rewards: a number each.
        next_states: of each state and action.
        keyed_by_state: whether steps are made of states and actions.
    """
    A = len(next_states[0])
    ids, mask = pad(actions)
    rows = pad(states)[0]
    found = []
    for seed in range(3):
        table = torch.from_numpy(
            np.random.default_rng(seed).normal(size=(len(next_states), A))
        ).requires_grad_()
        logps = minigrpo.token_logps(table[rows], ids)
        keys = rows * A + ids if keyed_by_state else ids
        found.append(gaps(table, logps, torch.zeros_like(logps.detach()), keys, mask, rewards))
    return min(found, key=lambda pair: pair[1])


def check_rows(value: Any, name: str, kind: type, low: float, high: float) -> None:
    """Require a list of lists of numbers in a range, 1 to LONGEST of them.

    Args:
        value: what was given.
        name: of it, for messages.
        kind: int or float.
        low: the least entry.
        high: the largest entry.
    """
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(row, (list, tuple)) for row in value
    ):
        raise Flaw("form", f"{name!r} must be a list of lists")
    for i, row in enumerate(value):
        if not 1 <= len(row) <= LONGEST:
            raise Flaw("form", f"{name!r}[{i}] must have 1 to {LONGEST} entries, got {len(row)}")
        check_numbers(row, f"{name!r}[{i}]", kind, low, high)


def check_numbers(row: Sequence, name: str, kind: type, low: float, high: float) -> None:
    what = "whole numbers" if kind is int else "numbers"
    for entry in row:
        if type(entry) not in (int, kind) or not low <= entry <= high:
            raise Flaw(
                "form", f"{name} must hold {what} from {low:g} to {high:g}, got {entry!r}"[:200]
            )


def check_keys(answer: Any, *names: str) -> None:
    if not isinstance(answer, dict) or set(answer) != set(names):
        raise Flaw("form", f"return a dict with the keys {', '.join(map(repr, names))}")


def check_same_counts(answer: dict, *names: str) -> None:
    size = len(answer[names[0]])
    for name in names:
        if len(answer[name]) != size:
            text = (
                f"{name!r} must have {size} entries, as {names[0]!r} has, got {len(answer[name])}"
            )
            raise Flaw("form", text)


def check_group(answer: dict, size: int) -> None:
    """Completions and rewards in the form asked for, with rewards that differ and tokens that are shared."""
    check_rows(answer["completions"], "completions", int, 0, LARGEST_ID)
    check_rewards(answer["rewards"])
    if len(answer["completions"]) != size:
        raise Flaw(
            "size", f"'completions' must hold {size} completions, got {len(answer['completions'])}"
        )
    check_same_counts(answer, "completions", "rewards")
    given: dict[tuple, float] = {}
    for y, reward in zip(answer["completions"], answer["rewards"], strict=True):
        if given.setdefault(tuple(y), reward) != reward:
            raise Flaw(
                "unfair",
                "equal completions must get equal rewards: an outcome is a function of the completion",
            )
    if len(set(answer["rewards"])) == 1:
        raise Flaw("rewards", "all rewards are equal, so every advantage is 0, and both losses are")
    if not shared(answer["completions"]):
        raise Flaw("unshared", "no two completions share their first token, so A is a everywhere")


def check_rewards(rewards: Any) -> None:
    if not isinstance(rewards, (list, tuple)):
        raise Flaw("form", "'rewards' must be a list of numbers")
    check_numbers(rewards, "'rewards'", float, -LARGEST_REWARD, LARGEST_REWARD)


def shared(rows: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """The sets of two or more rows which agree up to a token, each as (token, members)."""
    sets: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        for t in range(len(row)):
            sets.setdefault(tuple(row[: t + 1]), []).append(i)
    return [(len(prefix) - 1, members) for prefix, members in sets.items() if len(members) > 1]


def mixed(sets: list, rewards: Sequence[float]) -> list[tuple[int, list[int]]]:
    """Those sets whose members have different rewards. Raises Flaw where there is none."""
    kept = [(t, members) for t, members in sets if len({rewards[i] for i in members}) > 1]
    if not kept:
        raise Flaw(
            "one reward",
            "in each step that is shared the members have equal rewards, so A is a there too",
        )
    return kept


def require_gap(gap: tuple[float, float]) -> None:
    if not gap[1] >= REAL_GAP:
        text = f"the gradients differ by {gap[1]:.2g} of their size, less than {REAL_GAP} (the losses by {gap[0]:.2g})"
        raise Flaw("small", text)
