"""Lab 05, where the equality breaks: the cases, the references and the mistakes of its exercises.

A counterexample has no one right answer, so exercises 2 to 5 have a judge that computes both losses and gradients of
what the student made. It gives each way of failing a name; a named mistake is one that fails in the same way.

`python -m grader.labs.lab05` writes the gaps behind the threshold to grader/thresholds/lab05.json.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import draw_completions, draw_rewards, pad
from grader.exercise import Case, Exercise, Judge, Mistake, Part

REAL_GAP = 0.01  # of the gradients, relative; rounding is 1e-13 at most (grader/thresholds/lab05.json)
LONGEST, LARGEST_ID, LARGEST_REWARD = 12, 999, 100.0
RATIOS = (1e-3, 1e3)

# lab05.1: the gap


def loss_gap(ratio, advantages, process_advantages, completion_mask, epsilon, aggregation):
    outcome = advantages.unsqueeze(1).expand_as(ratio)
    losses = [
        minigrpo.policy_loss(
            ratio.log(),
            torch.zeros_like(ratio),
            A.contiguous(),
            torch.ones_like(ratio),
            completion_mask,
            epsilon=epsilon,
            aggregation=aggregation,
        )
        for A in (outcome, process_advantages)
    ]
    return float(losses[0] - losses[1])


def gap_variant(*, pick=torch.minimum, masked=True, mean="asked", of=lambda x: x):
    """The gap with one part of it exchanged."""

    def gap(ratio, advantages, process_advantages, completion_mask, epsilon, aggregation):
        mask = completion_mask.to(ratio.dtype) if masked else torch.ones_like(ratio)

        def loss(A):
            s = ratio * A if epsilon is None else pick(ratio * A, ratio.clamp(1 - epsilon, 1 + epsilon) * A)
            s = s * mask
            if aggregation == "token-mean" or mean == "token":
                return -s.sum() / mask.sum()
            rows = s.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            return -rows.sum() / ((mask.sum(dim=1) > 0).sum() if mean == "no empty rows" else len(rows))

        return float(of(loss(advantages.unsqueeze(1)) - loss(process_advantages)))

    return gap


def draw_ratios(rng: np.random.Generator, aggregation: str, *, clipped: bool) -> Case:
    """A group with noise in every ratio and every A; with "seq-mean" one of its completions is empty."""
    completions = draw_completions(rng, size=5, longest=5)
    mask = pad(completions)[1]
    if aggregation == "seq-mean":
        mask = torch.cat([mask, torch.zeros_like(mask[:1])])
    return {
        "ratio": torch.from_numpy(rng.normal(size=mask.shape)).mul(0.5).exp(),
        "advantages": minigrpo.group_advantages(draw_rewards(rng, len(mask))),
        "process_advantages": torch.from_numpy(rng.normal(size=mask.shape)),
        "completion_mask": mask,
        "epsilon": float(rng.choice([0.1, 0.2, 0.3])) if clipped else None,
        "aggregation": aggregation,
    }


WORKED_GAP = {
    "ratio": torch.full((2, 2), 2.0, dtype=torch.float64),
    "advantages": torch.tensor([1.0, -1.0], dtype=torch.float64),
    "process_advantages": torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64),
    "completion_mask": torch.ones(2, 2, dtype=torch.bool),
    "epsilon": 0.5,
    "aggregation": "token-mean",
}
WORKED_LENGTHS = WORKED_GAP | {
    "ratio": torch.ones(2, 2, dtype=torch.float64),
    "completion_mask": torch.tensor([[True, False], [True, True]]),
    "epsilon": None,
    "aggregation": "seq-mean",
}


# lab05.2 to lab05.5: judging a counterexample


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
            inspect(arguments, answer)
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


def no_reference(**arguments):
    """Many answers are right."""


def gaps(leaf: Tensor, logps: Tensor, log_ratio: Tensor, ids: Tensor, mask: Tensor, rewards, batches=None, **options):
    """L_GRPO − L_PRM, and the relative distance of their gradients by `leaf`, steps being made of `ids`.

    batches: slices of rows, each divided by its own number of tokens, then averaged; None for one.
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
    """`gaps` of completions whose prefixes have each a log-probability of their own, the gradient's parameters."""
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


def state_gaps(states, actions, rewards, next_states, *, keyed_by_state: bool = False) -> tuple[float, float]:
    """`gaps` of episodes by a table of logits: the smallest of three random tables'."""
    A = len(next_states[0])
    ids, mask = pad(actions)
    rows = pad(states)[0]
    found = []
    for seed in range(3):
        table = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(next_states), A))).requires_grad_()
        logps = minigrpo.token_logps(table[rows], ids)
        keys = rows * A + ids if keyed_by_state else ids
        found.append(gaps(table, logps, torch.zeros_like(logps.detach()), keys, mask, rewards))
    return min(found, key=lambda pair: pair[1])


def _rows(value: Any, name: str, kind: type, low: float, high: float) -> None:
    """Require a list of lists of numbers in a range, 1 to LONGEST of them."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in value):
        raise Flaw("form", f"{name!r} must be a list of lists")
    for i, row in enumerate(value):
        if not 1 <= len(row) <= LONGEST:
            raise Flaw("form", f"{name!r}[{i}] must have 1 to {LONGEST} entries, got {len(row)}")
        _numbers(row, f"{name!r}[{i}]", kind, low, high)


def _numbers(row: Sequence, name: str, kind: type, low: float, high: float) -> None:
    what = "whole numbers" if kind is int else "numbers"
    for entry in row:
        if type(entry) not in (int, kind) or not low <= entry <= high:
            raise Flaw("form", f"{name} must hold {what} from {low:g} to {high:g}, got {entry!r}"[:200])


def _keys(answer: Any, *names: str) -> None:
    if not isinstance(answer, dict) or set(answer) != set(names):
        raise Flaw("form", f"return a dict with the keys {', '.join(map(repr, names))}")


def _same_counts(answer: dict, size: int | None, *names: str) -> None:
    counts = {name: len(answer[name]) for name in names}
    size = counts[names[0]] if size is None else size
    for name, count in counts.items():
        if count != size:
            raise Flaw("form", f"{name!r} must have one entry for each of the {size} completions, got {count}")


def _check_group(answer: dict, size: int) -> None:
    """Completions and rewards in the form asked for, with rewards that differ and tokens that are shared."""
    _rows(answer["completions"], "completions", int, 0, LARGEST_ID)
    _check_rewards(answer["rewards"])
    _same_counts(answer, size, "completions", "rewards")
    given: dict[tuple, float] = {}
    for y, reward in zip(answer["completions"], answer["rewards"], strict=True):
        if given.setdefault(tuple(y), reward) != reward:
            raise Flaw("unfair", "equal completions must get equal rewards: an outcome is a function of the completion")
    if len(set(answer["rewards"])) == 1:
        raise Flaw("rewards", "all rewards are equal, so every advantage is 0, and both losses are")
    if not shared(answer["completions"]):
        raise Flaw("unshared", "no two completions share their first token, so A is a everywhere")


def _check_rewards(rewards: Any) -> None:
    if not isinstance(rewards, (list, tuple)):
        raise Flaw("form", "'rewards' must be a list of numbers")
    _numbers(rewards, "'rewards'", float, -LARGEST_REWARD, LARGEST_REWARD)


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
        raise Flaw("one reward", "in each step that is shared the members have equal rewards, so A is a there too")
    return kept


def _require(gap: tuple[float, float]) -> None:
    if not gap[1] >= REAL_GAP:
        text = f"the gradients differ by {gap[1]:.2g} of their size, less than {REAL_GAP} (the losses by {gap[0]:.2g})"
        raise Flaw("small", text)


# lab05.2: clipping


def inspect_clipping(arguments: Case, answer: Any) -> None:
    _keys(answer, "completions", "rewards", "ratio")
    _check_group(answer, arguments["group_size"])
    completions, rewards, ratio = (answer[name] for name in ("completions", "rewards", "ratio"))
    _rows(ratio, "ratio", float, *RATIOS)
    if [len(row) for row in ratio] != [len(y) for y in completions]:
        raise Flaw("form", "'ratio' must have a number for each token of 'completions'")
    for t, members in shared(completions):
        if len({ratio[i][t] for i in members}) > 1:
            raise Flaw("other ratios", f"completions {members} agree up to token {t}, yet their ratios there differ")
    epsilon = arguments["epsilon"]
    every = [P for row in ratio for P in row]
    if all(1 - epsilon <= P <= 1 + epsilon for P in every):
        name = "from below" if min(every) < 0.9 and max(every) <= 1 else "inside"
        raise Flaw(name, f"nothing is clipped: every ratio is from {1 - epsilon:.3g} to {1 + epsilon:.3g}")
    sets = [
        (t, members) for t, members in shared(completions) if not 1 - epsilon <= ratio[members[0]][t] <= 1 + epsilon
    ]
    if not sets:
        raise Flaw("unshared", "no step that is shared has a ratio which is clipped, so nothing of it is summed")
    mean = sum(rewards) / len(rewards)
    sides = [{rewards[i] > mean for i in members if rewards[i] != mean} for _, members in mixed(sets, rewards)]
    if all(len(side) < 2 for side in sides):
        raise Flaw("one side", "in each clipped step that is shared all advantages have one sign")
    _require(completion_gaps(completions, rewards, ratio, epsilon=epsilon))


def clipped_group(epsilon, group_size, *, ratio=None, rewards=None, first=lambda i: 0):
    """A group that shares its first token, with the ratio there, and a second token for each completion."""
    rewards = rewards or [2.0] + [1.0] * (group_size - 1)
    shared_ratio = 1 + 3 * epsilon if ratio is None else ratio
    return {
        "completions": [[first(i), 10 + i] for i in range(group_size)],
        "rewards": rewards[:group_size],
        "ratio": [[shared_ratio, 1.0]] * group_size,
    }


def clipped_in_one(epsilon, group_size):
    """The ratio that is clipped belongs to one completion, though all share the token."""
    group = clipped_group(epsilon, group_size)
    return group | {"ratio": [[1 + 3 * epsilon, 1.0]] + [[1.0, 1.0]] * (group_size - 1)}


def clipped_at_the_end(epsilon, group_size):
    """Only the tokens that nobody shares are clipped."""
    return clipped_group(epsilon, group_size) | {"ratio": [[1.0, 1 + 3 * epsilon]] * group_size}


def draw_epsilon(rng: np.random.Generator, low: float, high: float) -> Case:
    return {"epsilon": round(float(rng.uniform(low, high)), 3), "group_size": int(rng.integers(2, 9))}


# lab05.3: the mean per completion


def inspect_lengths(arguments: Case, answer: Any) -> None:
    _keys(answer, "completions", "rewards")
    lengths = arguments["lengths"]
    _check_group(answer, len(lengths))
    if [len(y) for y in answer["completions"]] != list(lengths):
        raise Flaw("form", f"the completions must have the lengths {lengths}")
    sets = mixed(shared(answer["completions"]), answer["rewards"])
    if all(len({lengths[i] for i in members}) == 1 for _, members in sets):
        raise Flaw("one length", "in each step that is shared the members have one length, so one weight")
    _require(completion_gaps(answer["completions"], answer["rewards"], aggregation="seq-mean"))


def length_group(lengths, *, first=lambda i, reward: 0, rewards=None):
    rewards = rewards or [3.0 if length == max(lengths) else 1.0 for length in lengths]
    tail = [[10 + length] * (length - 1) for length in lengths]
    completions = [[first(i, reward), *rest] for i, (reward, rest) in enumerate(zip(rewards, tail, strict=True))]
    return {"completions": completions, "rewards": rewards}


def by_place(lengths):
    """Completion 0 wins, whatever the others are: one that equals it should win too."""
    return {"completions": [[0] * length for length in lengths], "rewards": [1.0] + [0.0] * (len(lengths) - 1)}


def draw_lengths(rng: np.random.Generator) -> Case:
    """Three or more lengths, of which the first occurs twice, and all of two or more."""
    lengths = [int(length) for length in rng.choice(np.arange(2, 9), size=rng.integers(3, 6), replace=False)]
    return {"lengths": [lengths[0], *lengths]}


# lab05.4: random transitions


def inspect_slips(arguments: Case, answer: Any) -> None:
    next_states = arguments["next_states"]
    _keys(answer, "states", "actions", "rewards")
    states, actions, rewards = (answer[name] for name in ("states", "actions", "rewards"))
    _rows(states, "states", int, 0, len(next_states) - 1)
    _rows(actions, "actions", int, 0, len(next_states[0]) - 1)
    _check_rewards(rewards)
    _same_counts(answer, None, "states", "actions", "rewards")
    if not 2 <= len(states) <= 9:
        raise Flaw("form", f"a group must have 2 to 9 episodes, got {len(states)}")
    if [len(row) for row in states] != [len(row) for row in actions]:
        raise Flaw("form", "'states' and 'actions' must have equal lengths: the state before each action")
    _check_walks(next_states, states, actions)
    if len(set(rewards)) == 1:
        raise Flaw("rewards", "all rewards are equal, so every advantage is 0, and both losses are")
    apart = [
        (i, j, t)
        for i, j in itertools.combinations(range(len(states)), 2)
        for t in range(min(len(states[i]), len(states[j])))
        if states[i][t] != states[j][t] and actions[i][:t] == actions[j][:t]
    ]
    if not apart:
        name = "ended" if shared(actions) else "no slip"
        raise Flaw(name, "no two episodes act in different states after they took the same actions")
    sets = [(t, members) for t, members in shared(actions) if len({states[i][t] for i in members}) > 1]
    if not sets:
        raise Flaw("next action", "after the slip the episodes take different actions, which ends what they share")
    mixed(sets, rewards)
    _require(state_gaps(states, actions, rewards, next_states))


def _check_walks(next_states, states, actions) -> None:
    for i, (row, taken) in enumerate(zip(states, actions, strict=True)):
        if row[0] != 0:
            raise Flaw("walk", f"every episode begins in state 0, episode {i} in {row[0]}")
        for t in range(len(row) - 1):
            if row[t + 1] not in (following := next_states[row[t]][taken[t]]):
                text = f"episode {i}: action {taken[t]} in state {row[t]} leads to {following}, not to {row[t + 1]}"
                raise Flaw("walk", text)


def slip_group(next_states, *, then=(0, 0), rewards=(2.0, 1.0), steps=0):
    """Two episodes that walk to the place which slips, are parted there, and act once more."""
    routes = {0: ([0], [])}
    for _ in next_states:  # so many rounds reach every state
        for states, actions in list(routes.values()):
            for action, (after, *_) in enumerate(next_states[states[-1]]):
                routes.setdefault(after, ([*states, after], [*actions, action]))
    for states, actions in routes.values():
        for action, following in enumerate(next_states[states[-1]]):
            if len(following) == 2:
                after = [[*states, state] for state in following]
                return {
                    "states": [row[: len(row) - steps] for row in after],
                    "actions": [[*actions, action, then[k]][: len(after[k]) - steps] for k in (0, 1)],
                    "rewards": list(rewards),
                }
    raise ValueError("nothing slips")


def other_actions(next_states):
    """Different states by different actions: nothing random."""
    return {
        "states": [[0, next_states[0][action][0]] for action in (0, 1)],
        "actions": [[0, 0], [1, 0]],
        "rewards": [1.0, 0.0],
    }


def from_the_first(next_states):
    """Takes it that action 0 slips in state 0."""
    return {"states": [[0, 1], [0, 2]], "actions": [[0, 0], [0, 0]], "rewards": [1.0, 0.0]}


def draw_world(rng: np.random.Generator, depth: int) -> Case:
    """Five states and three actions; one place slips, `depth` actions away from state 0 and not nearer."""
    path = [0, *(1 + rng.permutation(4)[:depth]).tolist()]
    next_states = [[[int(rng.integers(5))] for _ in range(3)] for _ in range(5)]
    for here, there in itertools.pairwise(path):
        others = [state for state in range(5) if state not in path[path.index(there) :]]
        for action in range(3):
            next_states[here][action] = [int(rng.choice(others))]
        next_states[here][int(rng.integers(3))] = [int(there)]
    slipping = sorted(rng.choice(np.arange(1, 5), size=2, replace=False).tolist())
    next_states[path[-1]][int(rng.integers(1, 3))] = slipping
    return {"next_states": next_states}


# lab05.5: micro-batches


def batches_of(group_size: int, micro_batches: int) -> list[slice]:
    size = group_size // micro_batches
    return [slice(first, first + size) for first in range(0, group_size, size)]


def inspect_micro_batches(arguments: Case, answer: Any) -> None:
    _keys(answer, "completions", "rewards")
    _check_group(answer, arguments["group_size"])
    completions, rewards = answer["completions"], answer["rewards"]
    batches = batches_of(**arguments)
    tokens = [sum(len(y) for y in completions[rows]) for rows in batches]
    if len(set(tokens)) == 1:
        raise Flaw("equal tokens", f"each micro-batch has {tokens[0]} tokens, so all denominators are equal")
    size = batches[0].stop
    sets = mixed(shared(completions), rewards)
    if all(len({i // size for i in members}) == 1 for _, members in sets):
        raise Flaw("one batch", "each step that is shared lies in one micro-batch, so its members have one denominator")
    _require(completion_gaps(completions, rewards, batches=batches))


def micro_group(group_size, micro_batches, *, shorter=True, first=lambda batch, i: 0, rewards=None):
    size = group_size // micro_batches
    tails = [[10 + i] * (3 if shorter and i < size else 5) for i in range(group_size)]
    completions = [[first(i // size, i), *tail] for i, tail in enumerate(tails)]
    return {"completions": completions, "rewards": rewards or [float(i < size) for i in range(group_size)]}


def lengths_inside(group_size, micro_batches):
    """Lengths differ, but in each micro-batch in the same way."""
    size = group_size // micro_batches
    group = micro_group(group_size, micro_batches)
    completions = [[0, 10 + i] + [1] * (i % size) for i in range(group_size)]
    return group | {"completions": completions}


def alternating(group_size, micro_batches):
    return [float(i % (group_size // micro_batches) == 0) for i in range(group_size)]


def draw_micro_batches(rng: np.random.Generator) -> Case:
    micro_batches = int(rng.integers(2, 4))
    return {"group_size": micro_batches * int(rng.integers(2, 4)), "micro_batches": micro_batches}


# lab05.6: naming the assumption


def broken_assumption(ratio, completion_mask, states, actions, epsilon, aggregation, micro_batches):
    return name_by(ratio, completion_mask, states, actions, epsilon, aggregation, micro_batches)


def name_by(
    ratio, completion_mask, states, actions, epsilon, aggregation, micro_batches, *, above=math.inf, count=None
):
    """The rules in the lab's table; `above` and `count` exchange one of them."""
    lengths = completion_mask.sum(dim=1)
    away = (ratio - 1)[completion_mask]
    away = away.abs() if above is math.inf else away
    if epsilon is not None and (away > epsilon).any():
        return "clipping"
    if aggregation == "seq-mean" and (lengths != lengths[0]).any():
        return "per-completion mean"
    count = count or (lambda rows: int(lengths[rows].sum()))
    if len({count(rows) for rows in micro_batches}) > 1:
        return "micro-batch denominators"
    real = completion_mask.unsqueeze(0) & completion_mask.unsqueeze(1)
    equal = (actions.unsqueeze(0) == actions.unsqueeze(1)).cumprod(dim=-1).bool()
    before = torch.cat([torch.ones_like(equal[..., :1]), equal[..., :-1]], dim=-1)
    parted = before & real & (states.unsqueeze(0) != states.unsqueeze(1))
    return "random transitions" if parted.any() else "none"


def name_by_the_switches(ratio, completion_mask, states, actions, epsilon, aggregation, micro_batches):
    if epsilon is not None:
        return "clipping"
    if aggregation == "seq-mean":
        return "per-completion mean"
    if len(micro_batches) > 1:
        return "micro-batch denominators"
    return name_by(ratio, completion_mask, states, actions, None, "token-mean", micro_batches)


def name_with_padding(ratio, completion_mask, states, actions, epsilon, aggregation, micro_batches):
    everything = torch.ones_like(completion_mask)
    if name_by(ratio, everything, states, states, epsilon, "token-mean", [[0]]) == "clipping":
        return "clipping"
    return name_by(ratio, completion_mask, states, actions, None, aggregation, micro_batches)


def name_by_states(ratio, completion_mask, states, actions, epsilon, aggregation, micro_batches):
    found = name_by(ratio, completion_mask, states, actions, epsilon, aggregation, micro_batches)
    same_actions = torch.zeros_like(actions)
    return found if found != "none" else name_by(ratio, completion_mask, states, same_actions, None, "", micro_batches)


def name_above_only(**arguments):
    return name_by(**arguments, above=0)


def name_by_rows(**arguments):
    return name_by(**arguments, count=len)


def judge_names(arguments: Case, expected: list[str], answer: Any) -> str | None:
    """Compare name by name, and describe the first batch that is named wrongly."""
    if not isinstance(answer, list) or len(answer) != len(expected):
        return "the answer must be one of the five names"
    for call, want, got in zip(arguments["calls"], expected, answer, strict=True):
        if type(got) is not str or want != got:
            lengths = call["completion_mask"].sum(dim=1).tolist()
            real = call["ratio"][call["completion_mask"]]
            return (
                f"epsilon {call['epsilon']}, {call['aggregation']}, lengths {lengths}, micro_batches "
                f"{call['micro_batches']}, unmasked ratios from {real.min():.2f} to {real.max():.2f}: "
                f"expected {want!r}, got {got!r}"
            )
    return None


def draw_setting(rng: np.random.Generator, kind: str, real: bool, clipped: float) -> Case:
    """A batch and settings under which `kind` is broken, or (`real` False) looks as if it were and isn't.

    clipped: the one ratio that is outside where clipping is broken.
    """
    actions = torch.from_numpy(rng.integers(2, size=(6, 4)))
    lengths = rng.permutation([1, 2, 2, 3, 4, 4])
    if kind == "per-completion mean" and not real:
        lengths = np.full(6, rng.integers(2, 4))
    if kind == "micro-batch denominators":
        lengths = np.array([1, 4, 2, 3, 3, 2]) if not real else np.sort(lengths)
    mask = torch.arange(4) < torch.from_numpy(lengths).unsqueeze(1)
    states = torch.zeros_like(actions)
    for t in range(3):
        states[:, t + 1] = 2 * states[:, t] + 1 + actions[:, t]
    ratio = torch.from_numpy(rng.uniform(0.85, 1.15, size=actions.shape))
    row = int(lengths.argmax())
    if kind == "random transitions" and real:
        twin = (row + 1) % 6
        actions[twin], states[twin], mask[twin] = actions[row], states[row], mask[row]
        states[twin, 1] += 2
    if kind == "clipping" and real:
        ratio[row, 0] = clipped
    ratio = torch.where(mask, ratio, torch.from_numpy(rng.uniform(0.1, 5.0, size=actions.shape)))
    states = torch.where(mask, states, torch.from_numpy(rng.integers(20, size=actions.shape)))
    actions = torch.where(mask, actions, torch.from_numpy(rng.integers(2, size=actions.shape)))
    return {
        "ratio": ratio,
        "completion_mask": mask,
        "states": states,
        "actions": actions,
        "epsilon": 0.2 if kind == "clipping" else None,
        "aggregation": "seq-mean" if kind == "per-completion mean" else "token-mean",
        "micro_batches": [[0, 1], [2, 3], [4, 5]] if kind == "micro-batch denominators" else [[0, 1, 2, 3, 4, 5]],
    }


KINDS = ("clipping", "per-completion mean", "micro-batch denominators", "random transitions")


REAL = [*((kind, True) for kind in KINDS), ("none", False)]


def draw_settings(rng: np.random.Generator, kinds: Sequence[tuple[str, bool]], clipped: float) -> Case:
    calls = [draw_setting(rng, kind, real, clipped) for kind, real in kinds]
    return {"calls": [calls[k] for k in rng.permutation(len(calls))]}


EXERCISES = (
    Exercise(
        id="lab05.1",
        function="loss_gap",
        reference=loss_gap,
        parts=(
            Part(
                "token mean, clipped",
                1,
                lambda rng: draw_ratios(rng, "token-mean", clipped=True),
                "take min(P·A, clip(P)·A) of each token, once with a and once with A, and divide by the real tokens.",
                examples=(WORKED_GAP,),
            ),
            Part(
                "token mean, no clip",
                1,
                lambda rng: draw_ratios(rng, "token-mean", clipped=False),
                "with epsilon None a token's term is P·A.",
            ),
            Part(
                "per-completion mean",
                1,
                lambda rng: draw_ratios(rng, "seq-mean", clipped=True),
                "divide each row by its own length (an empty one adds 0), then by G.",
                examples=(WORKED_LENGTHS,),
            ),
        ),
        mistakes=(
            Mistake(
                "clip without min",
                "you use the clipped ratio alone; the term is the smaller of P·A and clip(P)·A.",
                gap_variant(pick=lambda plain, clipped: clipped),
            ),
            Mistake(
                "max", "you take the larger of P·A and clip(P)·A; it is the smaller.", gap_variant(pick=torch.maximum)
            ),
            Mistake("padding", "what is masked has no part in the sum, nor in the count.", gap_variant(masked=False)),
            Mistake(
                "other sign",
                "your sign is the other one: both are losses, with the minus, and it is GRPO's less the PRM's.",
                gap_variant(of=lambda gap: -gap),
            ),
            Mistake("no sign", "keep the sign: the gap can be negative.", gap_variant(of=abs)),
            Mistake(
                "token mean always",
                "with “seq-mean” each row is divided by its own length first.",
                gap_variant(mean="token"),
            ),
            Mistake(
                "empty rows left out",
                "with “seq-mean” the last division is by G, and a completion with no token counts in it.",
                gap_variant(mean="no empty rows"),
            ),
        ),
    ),
    Exercise(
        id="lab05.2",
        function="clipping_counterexample",
        reference=no_reference,
        judge=counterexample(inspect_clipping),
        parts=(
            Part(
                "ε below 1",
                2,
                lambda rng: draw_epsilon(rng, 0.05, 0.9),
                "a clipped step, shared by completions with a above 0 and with a below 0, at one ratio.",
                examples=({"epsilon": 0.2, "group_size": 2},),
            ),
            Part(
                "ε of 1 and more",
                1,
                lambda rng: draw_epsilon(rng, 1.0, 3.0),
                "the ratio has to depend on ε; no ratio is below 1 − ε here.",
            ),
        ),
        mistakes=(
            Mistake(
                "a fixed ratio",
                "nothing is clipped for this ε: make the ratio from ε, and larger than 1 + ε.",
                lambda epsilon, group_size: clipped_group(epsilon, group_size, ratio=1.06),
            ),
            Mistake(
                "clipped from below",
                "a ratio below 1 − ε does it for small ε; from ε = 1 on there is none, as ratios are above 0.",
                lambda epsilon, group_size: clipped_group(epsilon, group_size, ratio=max(1 - 1.05 * epsilon, 0.005)),
            ),
            Mistake(
                "not shared",
                "what is clipped is not shared. In a set of one A is a, so clipping does the same to both losses.",
                clipped_at_the_end,
            ),
            Mistake(
                "different ratios in a step",
                "you gave tokens with the same prefix different ratios. That breaks another assumption, too.",
                clipped_in_one,
            ),
            Mistake(
                "equal rewards",
                "without different rewards there is no advantage, and no loss to compare.",
                lambda epsilon, group_size: clipped_group(epsilon, group_size, rewards=[1.0] * group_size),
            ),
        ),
    ),
    Exercise(
        id="lab05.3",
        function="length_counterexample",
        reference=no_reference,
        judge=counterexample(inspect_lengths),
        parts=(
            Part(
                "given lengths",
                2,
                draw_lengths,
                "let completions of different lengths share a step, and give them different rewards.",
                examples=({"lengths": [2, 3]}, {"lengths": [1, 1, 4]}),
            ),
        ),
        mistakes=(
            Mistake(
                "nothing shared",
                "your completions share nothing: every set has one member, and there A is a.",
                lambda lengths: length_group(lengths, first=lambda i, reward: i),
            ),
            Mistake(
                "equal rewards",
                "without different rewards there is no advantage, and no loss to compare.",
                lambda lengths: length_group(lengths, rewards=[1.0] * len(lengths)),
            ),
            Mistake(
                "shared by equal rewards",
                "in your shared steps all have one reward, so A is a. Let winners and losers share.",
                lambda lengths: length_group([*lengths], first=lambda i, reward: int(reward)),
            ),
            Mistake(
                "equal completions, other rewards",
                "two of your completions are equal and have different rewards. Make the reward depend on the length.",
                by_place,
            ),
            Mistake(
                "other lengths",
                "the lengths are an argument: completion i must have lengths[i] tokens.",
                lambda lengths: {"completions": [[0, 1], [0, 2, 3]], "rewards": [1.0, 0.0], "lengths": lengths},
            ),
        ),
    ),
    Exercise(
        id="lab05.4",
        function="slipping_counterexample",
        reference=no_reference,
        judge=counterexample(inspect_slips),
        parts=(
            Part(
                "state 0 slips",
                1,
                lambda rng: draw_world(rng, 0),
                "two episodes, equal actions; the slip parts them, and both act once more with one action.",
                examples=({"next_states": [[[1], [1, 2]], [[1], [0]], [[2], [0]]]},),
            ),
            Part(
                "another state slips",
                2,
                lambda rng: draw_world(rng, 2),
                "first walk to the state where an action has two followers (search from state 0).",
            ),
        ),
        mistakes=(
            Mistake(
                "different actions",
                "your episodes part by different actions. Then they are in different sets, and nothing is random.",
                other_actions,
            ),
            Mistake(
                "a fixed place",
                "your episodes make moves that this environment has not. Find the place that slips in next_states.",
                from_the_first,
            ),
            Mistake(
                "no action after the slip",
                "while your episodes share their actions they are in the same states. A state is the one before its "
                "action: after the slip both have to act once more.",
                lambda next_states: slip_group(next_states, steps=1),
            ),
            Mistake(
                "another action after the slip",
                "take the same action after the slip: only then are both in one set there, in different states.",
                lambda next_states: slip_group(next_states, then=(0, 1)),
            ),
            Mistake(
                "equal rewards",
                "without different rewards there is no advantage, and no loss to compare.",
                lambda next_states: slip_group(next_states, rewards=(1.0, 1.0)),
            ),
        ),
    ),
    Exercise(
        id="lab05.5",
        function="micro_batch_counterexample",
        reference=no_reference,
        judge=counterexample(inspect_micro_batches),
        parts=(
            Part(
                "given sizes",
                2,
                draw_micro_batches,
                "a step shared across micro-batches that differ in their number of tokens, with different rewards.",
                examples=({"group_size": 4, "micro_batches": 2},),
            ),
        ),
        mistakes=(
            Mistake(
                "equal lengths",
                "your micro-batches have equally many tokens, so their denominators are one constant.",
                lambda group_size, micro_batches: micro_group(group_size, micro_batches, shorter=False),
            ),
            Mistake(
                "shared in one micro-batch",
                "members with different rewards share a step only inside a micro-batch; share across two of them.",
                lambda group_size, micro_batches: micro_group(
                    group_size,
                    micro_batches,
                    first=lambda batch, i: batch,
                    rewards=alternating(group_size, micro_batches),
                ),
            ),
            Mistake(
                "nothing shared",
                "your completions share nothing: every set has one member, and there A is a.",
                lambda group_size, micro_batches: micro_group(group_size, micro_batches, first=lambda batch, i: i),
            ),
            Mistake(
                "equal rewards",
                "without different rewards there is no advantage, and no loss to compare.",
                lambda group_size, micro_batches: micro_group(group_size, micro_batches, rewards=[1.0] * group_size),
            ),
        ),
    ),
    Exercise(
        id="lab05.6",
        function="broken_assumption",
        reference=broken_assumption,
        driver="each",
        judge=judge_names,
        parts=(
            Part(
                "one broken, or none",
                1,
                lambda rng: draw_settings(rng, REAL, clipped=0.6),
                "go through the table row by row.",
            ),
            Part(
                "switched on, but nothing broken",
                2,
                lambda rng: draw_settings(rng, [*((kind, False) for kind in KINDS), *REAL], clipped=1.5),
                "a switch alone breaks nothing: look at the ratios, lengths, token counts and states of the batch.",
            ),
        ),
        mistakes=(
            Mistake(
                "by the switch",
                "you look at the settings alone. Ask what they do to this batch: are there ratios outside, "
                "lengths or token counts that differ?",
                name_by_the_switches,
            ),
            Mistake("padding", "a ratio under the mask is noise, and clips nothing.", name_with_padding),
            Mistake(
                "any states",
                "different states are fine where the actions before differ. Compare completions with equal actions.",
                name_by_states,
            ),
            Mistake("from above only", "a ratio below 1 − ε is clipped as well.", name_above_only),
            Mistake(
                "rows counted",
                "you count the rows of each micro-batch; its denominator is its number of tokens.",
                name_by_rows,
            ),
        ),
    ),
)


def measure(seeds: int = 40) -> dict:
    """Relative gaps of the gradients over seeds: of clean counterexamples, and of random groups that break nothing."""

    def three(values: list[float]) -> dict:
        return {"min": min(values), "median": float(np.median(values)), "max": max(values), "seeds": len(values)}

    broken: dict[str, list[float]] = {f"lab05.{k}": [] for k in (2, 3, 4, 5)}
    kept: dict[str, list[float]] = {"token mean, ratios by prefix": [], "slipping, keyed by state and action": []}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        case = draw_epsilon(rng, 0.05, 3.0)
        group = clipped_group(**case)
        broken["lab05.2"].append(completion_gaps(*group.values(), epsilon=case["epsilon"])[1])
        kept["token mean, ratios by prefix"].append(completion_gaps(*group.values())[1])
        group = length_group(**draw_lengths(rng))
        broken["lab05.3"].append(completion_gaps(*group.values(), aggregation="seq-mean")[1])
        world = draw_world(rng, 2)
        walks = slip_group(**world)
        broken["lab05.4"].append(state_gaps(*walks.values(), **world)[1])
        by_state = state_gaps(*walks.values(), **world, keyed_by_state=True)[1]
        kept["slipping, keyed by state and action"].append(by_state)
        case = draw_micro_batches(rng)
        group = micro_group(**case)
        broken["lab05.5"].append(completion_gaps(*group.values(), batches=batches_of(**case))[1])
    return {
        "threshold": REAL_GAP,
        "counterexamples": {name: three(values) for name, values in broken.items()},
        "nothing broken": {name: three(values) for name, values in kept.items()},
    }


if __name__ == "__main__":
    from minigrpo.files import write_json

    write_json(Path(__file__).parents[1] / "thresholds" / "lab05.json", measure())
