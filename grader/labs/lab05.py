"""Lab 05, where the equality breaks: the cases, the references and the mistakes of its exercises.

A counterexample has no one right answer, so exercises 2 to 5 have a judge that computes both losses and gradients of
what the student made. It gives each way of failing a name; a named mistake is one that fails in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import draw_completions, draw_rewards, pad
from grader.counterexamples import (
    Flaw,
    check_group,
    check_keys,
    check_rewards,
    check_rows,
    check_same_counts,
    completion_gaps,
    counterexample,
    mixed,
    no_reference,
    require_gap,
    shared,
    state_gaps,
)
from grader.exercise import Case, Exercise, Mistake, Part

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
            s = (
                ratio * A
                if epsilon is None
                else pick(ratio * A, ratio.clamp(1 - epsilon, 1 + epsilon) * A)
            )
            s = s * mask
            if aggregation == "token-mean" or mean == "token":
                return -s.sum() / mask.sum()
            rows = s.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            return -rows.sum() / (
                (mask.sum(dim=1) > 0).sum() if mean == "no empty rows" else len(rows)
            )

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


# lab05.2: clipping


def inspect_clipping(arguments: Case, answer: Any) -> None:
    check_keys(answer, "completions", "rewards", "ratio")
    check_group(answer, arguments["group_size"])
    completions, rewards, ratio = (answer[name] for name in ("completions", "rewards", "ratio"))
    check_rows(ratio, "ratio", float, *RATIOS)
    if [len(row) for row in ratio] != [len(y) for y in completions]:
        raise Flaw("form", "'ratio' must have a number for each token of 'completions'")
    for t, members in shared(completions):
        if len({ratio[i][t] for i in members}) > 1:
            raise Flaw(
                "other ratios",
                f"completions {members} agree up to token {t}, yet their ratios there differ",
            )
    epsilon = arguments["epsilon"]
    every = [P for row in ratio for P in row]
    if all(1 - epsilon <= P <= 1 + epsilon for P in every):
        name = "from below" if min(every) < 0.9 and max(every) <= 1 else "inside"
        raise Flaw(
            name, f"nothing is clipped: every ratio is from {1 - epsilon:.3g} to {1 + epsilon:.3g}"
        )
    sets = [
        (t, members)
        for t, members in shared(completions)
        if not 1 - epsilon <= ratio[members[0]][t] <= 1 + epsilon
    ]
    if not sets:
        raise Flaw(
            "unshared",
            "no step that is shared has a ratio which is clipped, so nothing of it is summed",
        )
    mean = sum(rewards) / len(rewards)
    sides = [
        {rewards[i] > mean for i in members if rewards[i] != mean}
        for _, members in mixed(sets, rewards)
    ]
    if all(len(side) < 2 for side in sides):
        raise Flaw("one side", "in each clipped step that is shared all advantages have one sign")
    require_gap(completion_gaps(completions, rewards, ratio, epsilon=epsilon))


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
    return {
        "epsilon": round(float(rng.uniform(low, high)), 3),
        "group_size": int(rng.integers(2, 9)),
    }


# lab05.3: the mean per completion


def inspect_lengths(arguments: Case, answer: Any) -> None:
    check_keys(answer, "completions", "rewards")
    lengths = arguments["lengths"]
    check_group(answer, len(lengths))
    if [len(y) for y in answer["completions"]] != list(lengths):
        got = [len(y) for y in answer["completions"]]
        raise Flaw("lengths", f"the completions must have the lengths {lengths}, got {got}")
    sets = mixed(shared(answer["completions"]), answer["rewards"])
    if all(len({lengths[i] for i in members}) == 1 for _, members in sets):
        raise Flaw(
            "one length", "in each step that is shared the members have one length, so one weight"
        )
    require_gap(completion_gaps(answer["completions"], answer["rewards"], aggregation="seq-mean"))


def length_group(lengths, *, first=lambda i, reward: 0, rewards=None):
    rewards = rewards or [3.0 if length == max(lengths) else 1.0 for length in lengths]
    tail = [[10 + length] * (length - 1) for length in lengths]
    completions = [
        [first(i, reward), *rest]
        for i, (reward, rest) in enumerate(zip(rewards, tail, strict=True))
    ]
    return {"completions": completions, "rewards": rewards}


def by_place(lengths):
    """Completion 0 wins, whatever the others are: one that equals it should win too."""
    return {
        "completions": [[0] * length for length in lengths],
        "rewards": [1.0] + [0.0] * (len(lengths) - 1),
    }


def draw_lengths(rng: np.random.Generator) -> Case:
    """Three or more lengths, of which the first occurs twice, and all of two or more."""
    lengths = [
        int(length)
        for length in rng.choice(np.arange(2, 9), size=rng.integers(3, 6), replace=False)
    ]
    return {"lengths": [lengths[0], *lengths]}


# lab05.4: random transitions


def inspect_slips(arguments: Case, answer: Any) -> None:
    next_states = arguments["next_states"]
    check_keys(answer, "states", "actions", "rewards")
    states, actions, rewards = (answer[name] for name in ("states", "actions", "rewards"))
    check_rows(states, "states", int, 0, len(next_states) - 1)
    check_rows(actions, "actions", int, 0, len(next_states[0]) - 1)
    check_rewards(rewards)
    check_same_counts(answer, "states", "actions", "rewards")
    if not 2 <= len(states) <= 9:
        raise Flaw("form", f"a group must have 2 to 9 episodes, got {len(states)}")
    if [len(row) for row in states] != [len(row) for row in actions]:
        raise Flaw(
            "form", "'states' and 'actions' must have equal lengths: the state before each action"
        )
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
    sets = [
        (t, members) for t, members in shared(actions) if len({states[i][t] for i in members}) > 1
    ]
    if not sets:
        raise Flaw(
            "next action",
            "after the slip the episodes take different actions, which ends what they share",
        )
    mixed(sets, rewards)
    require_gap(state_gaps(states, actions, rewards, next_states))


def _check_walks(next_states, states, actions) -> None:
    for i, (row, taken) in enumerate(zip(states, actions, strict=True)):
        if row[0] != 0:
            raise Flaw("start", f"every episode begins in state 0, episode {i} in {row[0]}")
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
                    "actions": [
                        [*actions, action, then[k]][: len(after[k]) - steps] for k in (0, 1)
                    ],
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
    check_keys(answer, "completions", "rewards")
    check_group(answer, arguments["group_size"])
    completions, rewards = answer["completions"], answer["rewards"]
    batches = batches_of(**arguments)
    tokens = [sum(len(y) for y in completions[rows]) for rows in batches]
    if len(set(tokens)) == 1:
        raise Flaw(
            "equal tokens",
            f"each micro-batch has {tokens[0]} tokens, so all denominators are equal",
        )
    size = batches[0].stop
    sets = mixed(shared(completions), rewards)
    if all(len({i // size for i in members}) == 1 for _, members in sets):
        raise Flaw(
            "one batch",
            "each step that is shared lies in one micro-batch, so its members have one denominator",
        )
    require_gap(completion_gaps(completions, rewards, batches=batches))


def micro_group(group_size, micro_batches, *, shorter=True, first=lambda batch, i: 0, rewards=None):
    size = group_size // micro_batches
    tails = [[10 + i] * (3 if shorter and i < size else 5) for i in range(group_size)]
    completions = [[first(i // size, i), *tail] for i, tail in enumerate(tails)]
    return {
        "completions": completions,
        "rewards": rewards or [float(i < size) for i in range(group_size)],
    }


def alternating(group_size, micro_batches):
    return [float(i % (group_size // micro_batches) == 0) for i in range(group_size)]


def draw_micro_batches(rng: np.random.Generator) -> Case:
    micro_batches = int(rng.integers(2, 4))
    return {"group_size": micro_batches * int(rng.integers(2, 4)), "micro_batches": micro_batches}


# lab05.6: naming the assumption


def clips(batch: Case) -> bool:
    """Whether an unmasked ratio lies outside 1 ± ε."""
    away = (batch["ratio"] - 1).abs()[batch["completion_mask"]]
    return batch["epsilon"] is not None and bool((away > batch["epsilon"]).any())


def weighs_by_length(batch: Case) -> bool:
    return batch["aggregation"] == "seq-mean" and len(set(_lengths(batch))) > 1


def divides_apart(batch: Case) -> bool:
    """Whether the micro-batches differ in their number of tokens."""
    lengths = _lengths(batch)
    return len({sum(lengths[row] for row in rows) for rows in batch["micro_batches"]}) > 1


def slips(batch: Case, same=lambda a, b, t: a[:t] == b[:t], *, padded: bool = False) -> bool:
    """Whether two completions act in different states at some t, after the same actions.

    same: when the actions a and b of two completions are the same at t; padded: what is masked is compared, too.
    """
    lengths = [batch["states"].shape[1]] * len(batch["states"]) if padded else _lengths(batch)
    rows = list(zip(batch["states"].tolist(), batch["actions"].tolist(), lengths, strict=True))
    return any(
        states[t] != others[t] and same(actions, taken, t)
        for (states, actions, length), (others, taken, other) in itertools.combinations(rows, 2)
        for t in range(min(length, other))
    )


def _lengths(batch: Case) -> list[int]:
    return batch["completion_mask"].sum(dim=1).tolist()


RULES = {
    "clipping": clips,
    "per-completion mean": weighs_by_length,
    "micro-batch denominators": divides_apart,
    "random transitions": slips,
}
SWITCHES = {
    "clipping": lambda batch: batch["epsilon"] is not None,
    "per-completion mean": lambda batch: batch["aggregation"] == "seq-mean",
    "micro-batch denominators": lambda batch: len(batch["micro_batches"]) > 1,
}


def name_with(changed: Mapping[str, Callable[[Case], bool]]) -> Callable[..., str]:
    """The lab's table, row by row, with some of its rules exchanged."""
    rules = {**RULES, **changed}
    return lambda **batch: next((name for name, rule in rules.items() if rule(batch)), "none")


def broken_assumption(**batch) -> str:
    return name_with({})(**batch)


def name_at_the_first_switch(**batch) -> str:
    """Ends at the first setting that is switched on, whatever the rows below it would find."""
    name = next((name for name, on in SWITCHES.items() if on(batch)), "random transitions")
    return name if RULES[name](batch) else "none"


def name_with_padding(**batch) -> str:
    everything = batch | {"completion_mask": torch.ones_like(batch["completion_mask"])}
    return "clipping" if clips(everything) else broken_assumption(**batch | {"epsilon": None})


def any_ratio(batch: Case) -> bool:
    return batch["epsilon"] is not None and bool(
        (batch["ratio"] != 1)[batch["completion_mask"]].any()
    )


def clips_above(batch: Case) -> bool:
    away = (batch["ratio"] - 1)[batch["completion_mask"]]
    return batch["epsilon"] is not None and bool((away > batch["epsilon"]).any())


def clips_at_a_fifth(batch: Case) -> bool:
    return batch["epsilon"] is not None and clips(batch | {"epsilon": 0.2})


def counts_rows(batch: Case) -> bool:
    return len({len(rows) for rows in batch["micro_batches"]}) > 1


def counts_neighbours(batch: Case) -> bool:
    """Takes each micro-batch for as many consecutive rows as any other."""
    lengths, M = _lengths(batch), len(batch["micro_batches"])
    return len({sum(lengths[rows]) for rows in batches_of(len(lengths), M)}) > 1


def follows_twice(batch: Case) -> bool:
    """Whether one state and action is followed by two states, whatever came before."""
    after: dict[tuple[int, int], int] = {}
    return any(
        after.setdefault((states[t], actions[t]), states[t + 1]) != states[t + 1]
        for states, actions, length in zip(
            batch["states"].tolist(), batch["actions"].tolist(), _lengths(batch), strict=True
        )
        for t in range(length - 1)
    )


def judge_names(arguments: Case, expected: list[str], answer: Any) -> str | None:
    """Compare name by name."""
    if not isinstance(answer, list) or len(answer) != len(expected):
        return "the answer must be one of the five names"
    for at, (want, got) in enumerate(zip(expected, answer, strict=True)):
        if type(got) is not str or want != got:
            return f"calls[{at}]: expected {want!r}, got {got!r}"[:200]
    return None


WIDTH, LENGTHS = 4, (1, 2, 2, 3, 4, 4)  # tokens; half of all 16 are in 2 rows, or in 3


def draw_batch(
    rng: np.random.Generator,
    lengths: Sequence[int] | np.ndarray | None = None,
    *,
    slip: int | None = None,
    one_state_a_history: bool = False,
) -> Case:
    """A batch in a world where a state depends on all actions before it, with settings that break nothing.

    One state and action is followed by two states, after different actions, unless each history has a state of its own.
    Ratios have two decimals, so that a batch is printed as it is.

    slip: the token where two completions that took equal actions act in different states; they part in the action they
    take there, so that no other pair shows it.
    """
    rows = rng.permutation(LENGTHS) if lengths is None else np.asarray(lengths)
    actions = rng.integers(2, size=(len(rows), WIDTH))
    first, second = np.argsort(-rows, kind="stable")[:2]
    # the two longest begin apart and go on alike
    actions[second, :2] = 1 - actions[first, 0], actions[first, 1]
    histories = [h for t in range(WIDTH) for h in itertools.product((0, 1), repeat=t)]
    world = dict(
        zip(
            histories,
            range(len(histories)) if one_state_a_history else [0, *_states(rng)],
            strict=True,
        )
    )
    if slip is not None:
        actions[second, :slip], actions[second, slip] = (
            actions[first, :slip],
            1 - actions[first, slip],
        )
    states = [[world[tuple(row[:t])] for t in range(WIDTH)] for row in actions.tolist()]
    for row, taken in zip(states, actions.tolist(), strict=True):
        if slip is not None and taken[: slip + 1] == actions[second, : slip + 1].tolist():
            row[slip] = row[slip] % 5 + 1
    mask = torch.arange(WIDTH) < torch.from_numpy(rows).unsqueeze(1)
    batch = {
        "ratio": torch.from_numpy(rng.uniform(0.91, 1.09, size=actions.shape)).round(decimals=2),
        "completion_mask": mask,
        "states": torch.where(
            mask, torch.tensor(states), torch.from_numpy(rng.integers(20, 40, size=actions.shape))
        ),
        "actions": torch.where(
            mask, torch.from_numpy(actions), torch.from_numpy(rng.integers(2, size=actions.shape))
        ),
        "epsilon": None,
        "aggregation": "token-mean",
        "micro_batches": [list(range(len(rows)))],
    }
    return batch | {"ratio": _noise_under_mask(rng, batch)}


def _states(rng: np.random.Generator) -> list[int]:
    """States 1 to 5 for the histories of 1 to 3 actions: the two first actions lead to one, which then leads to two."""
    here, *after = rng.integers(1, 6, size=3).tolist()
    return [
        here,
        here,
        *after,
        *(state % 5 + 1 for state in after),
        *rng.integers(1, 6, size=8).tolist(),
    ]


def _noise_under_mask(rng: np.random.Generator, batch: Case) -> Tensor:
    noise = torch.from_numpy(rng.choice([0.1, 0.3, 3.0, 5.0], size=batch["ratio"].shape))
    return torch.where(batch["completion_mask"], batch["ratio"], noise)


def draw_clipped(rng: np.random.Generator, side: int) -> Case:
    """One ratio is outside, above (side 1) or below (side −1)."""
    batch, epsilon = draw_batch(rng), round(float(rng.uniform(0.1, 0.15)), 2)
    batch["ratio"][rng.integers(6), 0] = round(1 + side * epsilon * 1.2, 2)
    return batch | {"epsilon": epsilon}


def draw_inside(rng: np.random.Generator) -> Case:
    """Ratios up to nine tenths of a large ε away from 1, under the mask, too."""
    batch, epsilon = draw_batch(rng), round(float(rng.uniform(0.3, 0.4)), 2)
    ratio = (
        torch.from_numpy(rng.uniform(-0.9, 0.9, size=(6, WIDTH)))
        .mul(epsilon)
        .add(1)
        .round(decimals=2)
    )
    ratio[rng.integers(6), 0] = round(1 + 0.9 * epsilon, 2)
    return batch | {"epsilon": epsilon, "ratio": ratio}


def draw_on_policy(rng: np.random.Generator) -> Case:
    """Every ratio is 1, but under the mask."""
    batch = draw_batch(rng)
    ratio = _noise_under_mask(rng, batch | {"ratio": torch.ones_like(batch["ratio"])})
    return batch | {"ratio": ratio, "epsilon": 0.2}


def draw_micro_batched(rng: np.random.Generator, *, real: bool) -> Case:
    """Two micro-batches of any rows: 8 tokens each in 2 and 4 rows, or (real) 3 rows each and not 8 tokens.

    The first and the last three rows hold 8 tokens each where the micro-batches don't, and don't where those do.
    """
    while True:
        lengths, rows = rng.permutation(LENGTHS), rng.permutation(6)
        parts = [rows[:3], rows[3:]] if real else [rows[:2], rows[2:]]
        if (lengths[parts[0]].sum() != 8) == real and (lengths[:3].sum() == 8) == real:
            return draw_batch(rng, lengths) | {"micro_batches": [part.tolist() for part in parts]}


def draw_all_switched_on(rng: np.random.Generator) -> Case:
    """Everything is on and breaks nothing; the environment slips."""
    rows = rng.permutation(6).tolist()
    on = {"epsilon": 0.2, "aggregation": "seq-mean", "micro_batches": [rows[:3], rows[3:]]}
    return draw_batch(rng, [3] * 6, slip=int(rng.integers(1, 3))) | on


ONE_BROKEN = (
    draw_batch,
    lambda rng: draw_batch(rng, one_state_a_history=True),
    lambda rng: draw_batch(rng, [WIDTH] * 6),
    lambda rng: draw_clipped(rng, 1),
    lambda rng: draw_clipped(rng, -1),
    lambda rng: draw_batch(rng, rng.permutation([3] * 5 + [2])) | {"aggregation": "seq-mean"},
    lambda rng: draw_micro_batched(rng, real=True),
    lambda rng: draw_batch(rng, sorted(LENGTHS)) | {"micro_batches": [[0, 1], [2, 3], [4, 5]]},
    lambda rng: draw_batch(rng, slip=1),
    lambda rng: draw_batch(rng, slip=int(rng.integers(2, WIDTH))),
)
SWITCHED_ON = (
    draw_inside,
    draw_on_policy,
    lambda rng: draw_batch(rng, [int(rng.integers(2, WIDTH))] * 6) | {"aggregation": "seq-mean"},
    lambda rng: draw_micro_batched(rng, real=False),
    draw_all_switched_on,
)


def draw_settings(
    rng: np.random.Generator, batches: Sequence[Callable[[np.random.Generator], Case]]
) -> Case:
    calls = [draw(rng) for draw in batches]
    return {"calls": [calls[k] for k in rng.permutation(len(calls))]}


EXERCISES = (
    Exercise(
        id="lab05.1",
        function="loss_gap",
        reference=loss_gap,
        parts=(
            Part(
                name="token mean, clipped",
                points=1,
                draw=lambda rng: draw_ratios(rng, "token-mean", clipped=True),
                hint="take min(P·A, clip(P)·A) of each token, once with a and once with A, and divide "
                "by the real tokens.",
                examples=(WORKED_GAP,),
            ),
            Part(
                name="token mean, no clip",
                points=1,
                draw=lambda rng: draw_ratios(rng, "token-mean", clipped=False),
                hint="with epsilon None a token's term is P·A.",
            ),
            Part(
                name="per-completion mean",
                points=1,
                draw=lambda rng: draw_ratios(rng, "seq-mean", clipped=True),
                hint="divide each row by its own length (an empty one adds 0), then by G.",
                examples=(WORKED_LENGTHS,),
            ),
        ),
        mistakes=(
            Mistake(
                name="clip without min",
                hint="you use the clipped ratio alone; the term is the smaller of P·A and clip(P)·A.",
                wrong=gap_variant(pick=lambda plain, clipped: clipped),
            ),
            Mistake(
                name="max",
                hint="you take the larger of P·A and clip(P)·A; it is the smaller.",
                wrong=gap_variant(pick=torch.maximum),
            ),
            Mistake(
                name="padding",
                hint="what is masked has no part in the sum, nor in the count.",
                wrong=gap_variant(masked=False),
            ),
            Mistake(
                name="other sign",
                hint="your sign is the other one: both are losses, with the minus, and it is GRPO's less the PRM's.",
                wrong=gap_variant(of=lambda gap: -gap),
            ),
            Mistake(
                name="no sign",
                hint="keep the sign: the gap can be negative.",
                wrong=gap_variant(of=abs),
            ),
            Mistake(
                name="token mean always",
                hint="with “seq-mean” each row is divided by its own length first.",
                wrong=gap_variant(mean="token"),
            ),
            Mistake(
                name="empty rows left out",
                hint="with “seq-mean” the last division is by G, and a completion with no token counts in it.",
                wrong=gap_variant(mean="no empty rows"),
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
                name="ε below 1",
                points=2,
                draw=lambda rng: draw_epsilon(rng, 0.05, 0.9),
                hint="a clipped step, shared by completions with a above 0 and with a below 0, at one ratio.",
                examples=({"epsilon": 0.2, "group_size": 2},),
            ),
            Part(
                name="ε of 1 and more",
                points=1,
                draw=lambda rng: draw_epsilon(rng, 1.0, 3.0),
                hint="the ratio has to depend on ε; no ratio is below 1 − ε here.",
            ),
        ),
        mistakes=(
            Mistake(
                name="a fixed ratio",
                hint="nothing is clipped for this ε: make the ratio from ε, and larger than 1 + ε.",
                wrong=lambda epsilon, group_size: clipped_group(epsilon, group_size, ratio=1.06),
            ),
            Mistake(
                name="clipped from below",
                hint="a ratio below 1 − ε does it for small ε; from ε = 1 on there is none, as ratios are above 0.",
                wrong=lambda epsilon, group_size: clipped_group(
                    epsilon, group_size, ratio=max(1 - 1.05 * epsilon, 0.005)
                ),
            ),
            Mistake(
                name="not shared",
                hint="what is clipped is not shared. In a set of one A is a, so clipping does the same to both losses.",
                wrong=clipped_at_the_end,
            ),
            Mistake(
                name="different ratios in a step",
                hint="you gave tokens with the same prefix different ratios. That breaks another assumption, too.",
                wrong=clipped_in_one,
            ),
            Mistake(
                name="equal rewards",
                hint="without different rewards there is no advantage, and no loss to compare.",
                wrong=lambda epsilon, group_size: clipped_group(
                    epsilon, group_size, rewards=[1.0] * group_size
                ),
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
                name="given lengths",
                points=2,
                draw=draw_lengths,
                hint="let completions of different lengths share a step, and give them different rewards.",
                examples=({"lengths": [2, 3]}, {"lengths": [1, 1, 4]}),
            ),
        ),
        mistakes=(
            Mistake(
                name="nothing shared",
                hint="your completions share nothing: every set has one member, and there A is a.",
                wrong=lambda lengths: length_group(lengths, first=lambda i, reward: i),
            ),
            Mistake(
                name="equal rewards",
                hint="without different rewards there is no advantage, and no loss to compare.",
                wrong=lambda lengths: length_group(lengths, rewards=[1.0] * len(lengths)),
            ),
            Mistake(
                name="shared by equal rewards",
                hint="in your shared steps all have one reward, so A is a. Let winners and losers share.",
                wrong=lambda lengths: length_group([*lengths], first=lambda i, reward: int(reward)),
            ),
            Mistake(
                name="equal completions, other rewards",
                hint="two of your completions are equal and have different rewards. Make the reward "
                "depend on the length.",
                wrong=by_place,
            ),
            Mistake(
                name="fixed lengths",
                hint="the lengths are an argument: completion i must have lengths[i] tokens.",
                wrong=lambda lengths: length_group([2, 3]),
            ),
            Mistake(
                name="other lengths",
                hint="completion i must have exactly lengths[i] tokens.",
                wrong=lambda lengths: length_group([length + 1 for length in lengths]),
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
                name="state 0 slips",
                points=1,
                draw=lambda rng: draw_world(rng, 0),
                hint="two episodes, equal actions; the slip parts them, and both act once more with one action.",
                examples=({"next_states": [[[1], [1, 2]], [[1], [0]], [[2], [0]]]},),
            ),
            Part(
                name="another state slips",
                points=2,
                draw=lambda rng: draw_world(rng, 2),
                hint="first walk to the state where an action has two followers (search from state 0).",
            ),
        ),
        mistakes=(
            Mistake(
                name="different actions",
                hint="your episodes part by different actions. Then they are in different sets, and nothing is random.",
                wrong=other_actions,
            ),
            Mistake(
                name="a fixed place",
                hint="your episodes make moves that this environment has not. Find the place that slips "
                "in next_states.",
                wrong=from_the_first,
            ),
            Mistake(
                name="no action after the slip",
                hint="while your episodes share their actions they are in the same states. A state is "
                "the one before its action: after the slip both have to act once more.",
                wrong=lambda next_states: slip_group(next_states, steps=1),
            ),
            Mistake(
                name="another action after the slip",
                hint="take the same action after the slip: only then are both in one set there, in different states.",
                wrong=lambda next_states: slip_group(next_states, then=(0, 1)),
            ),
            Mistake(
                name="equal rewards",
                hint="without different rewards there is no advantage, and no loss to compare.",
                wrong=lambda next_states: slip_group(next_states, rewards=(1.0, 1.0)),
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
                name="given sizes",
                points=2,
                draw=draw_micro_batches,
                hint="a step shared across micro-batches that differ in their number of tokens, with "
                "different rewards.",
                examples=({"group_size": 4, "micro_batches": 2},),
            ),
        ),
        mistakes=(
            Mistake(
                name="equal lengths",
                hint="your micro-batches have equally many tokens, so their denominators are one constant.",
                wrong=lambda group_size, micro_batches: micro_group(
                    group_size, micro_batches, shorter=False
                ),
            ),
            Mistake(
                name="shared in one micro-batch",
                hint="members with different rewards share a step only inside a micro-batch; share across two of them.",
                wrong=lambda group_size, micro_batches: micro_group(
                    group_size,
                    micro_batches,
                    first=lambda batch, i: batch,
                    rewards=alternating(group_size, micro_batches),
                ),
            ),
            Mistake(
                name="nothing shared",
                hint="your completions share nothing: every set has one member, and there A is a.",
                wrong=lambda group_size, micro_batches: micro_group(
                    group_size, micro_batches, first=lambda batch, i: i
                ),
            ),
            Mistake(
                name="equal rewards",
                hint="without different rewards there is no advantage, and no loss to compare.",
                wrong=lambda group_size, micro_batches: micro_group(
                    group_size, micro_batches, rewards=[1.0] * group_size
                ),
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
                name="one broken, or none",
                points=1,
                draw=lambda rng: draw_settings(rng, ONE_BROKEN),
                hint="go through the table row by row.",
            ),
            Part(
                name="switched on, but nothing broken",
                points=2,
                draw=lambda rng: draw_settings(rng, (*SWITCHED_ON, *ONE_BROKEN)),
                hint="a switch alone breaks nothing: look at the ratios, lengths, token counts and "
                "states of the batch.",
            ),
        ),
        mistakes=(
            Mistake(
                name="by the switch",
                hint="you look at the settings alone. Ask what they do to this batch: are there ratios "
                "outside, lengths or token counts that differ?",
                wrong=name_with(SWITCHES),
            ),
            *(
                Mistake(
                    name=f"by the switch: {name}",
                    hint=hint,
                    wrong=name_with({name: SWITCHES[name]}),
                )
                for name, hint in (
                    (
                        "clipping",
                        "an ε alone clips nothing: is a ratio below 1 − ε, or above 1 + ε?",
                    ),
                    (
                        "per-completion mean",
                        "“seq-mean” alone breaks nothing: do the completions differ in length?",
                    ),
                    (
                        "micro-batch denominators",
                        "micro-batches that have equally many tokens break nothing.",
                    ),
                )
            ),
            Mistake(
                name="the first switch alone",
                hint="you end at the first setting that is switched on. Where it breaks nothing, go on "
                "to the next row.",
                wrong=name_at_the_first_switch,
            ),
            Mistake(
                name="padding",
                hint="a ratio under the mask is noise, and clips nothing.",
                wrong=name_with_padding,
            ),
            Mistake(
                name="any ratio",
                hint="a ratio that is not 1 need not be clipped: it has to be outside 1 ± ε.",
                wrong=name_with({"clipping": any_ratio}),
            ),
            Mistake(
                name="from above only",
                hint="a ratio below 1 − ε is clipped as well.",
                wrong=name_with({"clipping": clips_above}),
            ),
            Mistake(
                name="an ε of 0.2",
                hint="ε is an argument; yours is always 0.2.",
                wrong=name_with({"clipping": clips_at_a_fifth}),
            ),
            Mistake(
                name="rows counted",
                hint="you count the rows of each micro-batch; its denominator is its number of tokens.",
                wrong=name_with({"micro-batch denominators": counts_rows}),
            ),
            Mistake(
                name="neighbouring rows",
                hint="you cut the batch into equal pieces; micro_batches says which rows go together, "
                "and these may be any.",
                wrong=name_with({"micro-batch denominators": counts_neighbours}),
            ),
            Mistake(
                name="any states",
                hint="different states are fine where the actions before differ. Compare completions "
                "with equal actions.",
                wrong=name_with(
                    {"random transitions": lambda batch: slips(batch, lambda a, b, t: True)}
                ),
            ),
            Mistake(
                name="states under the mask",
                hint="states under the mask are noise: compare them only where both completions act.",
                wrong=name_with({"random transitions": lambda batch: slips(batch, padded=True)}),
            ),
            Mistake(
                name="token 1 alone",
                hint="you look for a slip at t = 1 alone; it may come later.",
                wrong=name_with(
                    {
                        "random transitions": lambda batch: slips(
                            batch, lambda a, b, t: t == 1 and a[0] == b[0]
                        )
                    }
                ),
            ),
            Mistake(
                name="the action at t, too",
                hint="you ask for equal actions up to t, and t itself counts no more: the state comes "
                "before its action.",
                wrong=name_with(
                    {
                        "random transitions": lambda batch: slips(
                            batch, lambda a, b, t: a[: t + 1] == b[: t + 1]
                        )
                    }
                ),
            ),
            Mistake(
                name="one action before",
                hint="one state and action may have two followers where the actions before differ: "
                "compare all of them.",
                wrong=name_with({"random transitions": follows_twice}),
            ),
        ),
    ),
)
