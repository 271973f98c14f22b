"""Lab 11, each step once: the cases, the references and the mistakes of its exercises."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import WORKED_IDS, clear_loss, draw_completions, draw_rewards, pad
from grader.drivers import DRIVERS
from grader.drivers.lab11 import VOCABULARY, ToyTransformer
from grader.exercise import Case, Exercise, Mistake, Part
from minigrpo import packing

# lab11.1: the packed order


def packed_order(
    prompt_ids: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> dict[str, Tensor]:
    packed = _packed(prompt_ids, completion_ids, completion_mask)
    place = packed.place[0].masked_fill(~completion_mask, -1)
    kept = {name: getattr(packed, name)[0] for name in ("ids", "depth", "parent")}
    return kept | {"place": place}


def _packed(prompt_ids: Tensor, completion_ids: Tensor, completion_mask: Tensor):
    """The package's own packing of one group."""
    there = torch.ones(1, len(prompt_ids), dtype=torch.bool)
    group = completion_ids.unsqueeze(0), completion_mask.unsqueeze(0)
    return packing.pack(prompt_ids.unsqueeze(0), there, *group)


def in_the_order_of(rank: Callable[[list[tuple]], list[tuple]]):
    """The packed order with the nodes, tuples of tokens, in another order."""

    def order(prompt_ids, completion_ids, completion_mask):
        L, rows = len(prompt_ids), _rows(completion_ids, completion_mask)
        met = list(dict.fromkeys(tuple(row[: t + 1]) for row in rows for t in range(len(row))))
        nodes = rank(met)
        number = {node: L + k for k, node in enumerate(nodes)} | {(): L - 1}
        place = torch.full_like(completion_ids, -1)
        for i, row in enumerate(rows):
            for t in range(len(row)):
                place[i, t] = number[tuple(row[: t + 1])]
        return {
            "ids": torch.tensor([*prompt_ids.tolist(), *(node[-1] for node in nodes)]),
            "depth": torch.tensor([*range(L), *(L + len(node) - 1 for node in nodes)]),
            "parent": torch.tensor([*range(-1, L - 1), *(number[node[:-1]] for node in nodes)]),
            "place": place,
        }

    return order


def _rows(completion_ids: Tensor, completion_mask: Tensor) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(completion_ids, completion_mask, strict=True)]


def as_met(nodes: list[tuple]) -> list[tuple]:
    return nodes


def by_levels(nodes: list[tuple]) -> list[tuple]:
    return sorted(nodes, key=lambda node: (len(node), node))


def siblings_as_met(nodes: list[tuple]) -> list[tuple]:
    """Depth first, but siblings in the order in which the rows bring them."""
    met = {node: k for k, node in enumerate(nodes)}
    return sorted(nodes, key=lambda node: [met[node[: t + 1]] for t in range(len(node))])


def each_row_by_itself(prompt_ids, completion_ids, completion_mask):
    """Nothing is shared but the prompt."""
    L, rows = len(prompt_ids), _rows(completion_ids, completion_mask)
    starts = np.cumsum([L, *map(len, rows)])
    parents = [
        [L - 1, *range(start, start + len(row) - 1)]
        for start, row in zip(starts[:-1], rows, strict=True)
    ]
    place = torch.full_like(completion_ids, -1)
    place[completion_mask] = torch.arange(L, int(starts[-1]))
    return {
        "ids": torch.cat([prompt_ids, completion_ids[completion_mask]]),
        "depth": torch.tensor([*range(L), *(L + t for row in rows for t in range(len(row)))]),
        "parent": torch.tensor([*range(-1, L - 1), *(p for some in parents for p in some)]),
        "place": place,
    }


def with_padding(prompt_ids, completion_ids, completion_mask):
    return packed_order(prompt_ids, completion_ids, torch.ones_like(completion_mask))


def place_as_depth(prompt_ids, completion_ids, completion_mask):
    found = packed_order(prompt_ids, completion_ids, completion_mask)
    return found | {"depth": torch.arange(len(found["ids"]))}


def depth_without_prompt(prompt_ids, completion_ids, completion_mask):
    found = packed_order(prompt_ids, completion_ids, completion_mask)
    L, depth = len(prompt_ids), found["depth"]
    return found | {"depth": torch.cat([depth[:L], depth[L:] - L])}


def place_before_as_parent(prompt_ids, completion_ids, completion_mask):
    found = packed_order(prompt_ids, completion_ids, completion_mask)
    return found | {"parent": torch.arange(len(found["ids"])) - 1}


def roots_without_parent(prompt_ids, completion_ids, completion_mask):
    found = packed_order(prompt_ids, completion_ids, completion_mask)
    L, parent = len(prompt_ids), found["parent"]
    roots = (parent == L - 1) & (torch.arange(len(parent)) >= L)
    return found | {"parent": parent.masked_fill(roots, -1)}


def place_without_prompt(prompt_ids, completion_ids, completion_mask):
    found = packed_order(prompt_ids, completion_ids, completion_mask)
    place = (found["place"] - len(prompt_ids)).masked_fill(~completion_mask, -1)
    return found | {"place": place}


def padding_at_0(prompt_ids, completion_ids, completion_mask):
    found = packed_order(prompt_ids, completion_ids, completion_mask)
    return found | {"place": found["place"].clamp(min=0)}


def draw_prompt(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.integers(VOCABULARY, size=rng.integers(2, 5)))


def draw_branching(rng: np.random.Generator, size: int = 6, longest: int = 5) -> list[list[int]]:
    """Completions of which two or more share a beginning, no token is shared by all, and lengths differ.

    The rows are in no order, and come back to a branch that they have left.
    """
    while True:
        completions = draw_completions(rng, size=size, longest=longest)
        met = list(dict.fromkeys(tuple(y[: t + 1]) for y in completions for t in range(len(y))))
        firsts = {y[0] for y in completions}
        shared = 1 < len(firsts) < size and len(met) < sum(map(len, completions)) - 2
        ragged = len({len(y) for y in completions}) > 1
        orders = [as_met(met), by_levels(met), siblings_as_met(met), sorted(met)]
        if shared and ragged and len(set(map(tuple, orders))) == len(orders):
            return completions


def draw_group(rng: np.random.Generator) -> Case:
    ids, mask = pad(draw_branching(rng))
    return {"prompt_ids": draw_prompt(rng), "completion_ids": ids, "completion_mask": mask}


def draw_padded_like_a_token(rng: np.random.Generator) -> Case:
    """Under their mask the shorter rows go on just as the longest one does."""
    longest = rng.integers(3, size=5).tolist()
    ids, mask = pad([longest[:3], [3, *longest[1:3]], longest, longest[:2], [3, longest[1]]])
    ids = torch.where(mask, ids, ids[2].expand_as(ids))
    return {"prompt_ids": draw_prompt(rng), "completion_ids": ids, "completion_mask": mask}


def small() -> Case:
    """The one in the lab's text."""
    ids, mask = pad([[1, 2], [1, 3], [1]])
    prompt = torch.tensor([5, 6])
    return {"prompt_ids": prompt, "completion_ids": ids, "completion_mask": mask}


def worked() -> Case:
    ids, mask = pad(WORKED_IDS)
    return {
        "prompt_ids": torch.tensor([0, 18, 10]),  # A S K
        "completion_ids": ids,
        "completion_mask": mask,
    }


# lab11.2: where the descendants end


def subtree_end(parent: Tensor) -> Tensor:
    parents = parent.tolist()
    ends = list(range(1, len(parents) + 1))
    for k in reversed(range(len(parents))):
        if parents[k] >= 0:
            ends[parents[k]] = max(ends[parents[k]], ends[k])
    return torch.tensor(ends)


def last_descendant(parent):
    return subtree_end(parent) - 1


def number_of_descendants(parent):
    return subtree_end(parent) - torch.arange(len(parent))


def children_alone(parent):
    end = torch.arange(1, len(parent) + 1)
    for k, before in enumerate(parent.tolist()):
        if before >= 0:
            end[before] = k + 1
    return end


def _first_after(parent: Tensor, stops: Callable[[int, int], bool]) -> Tensor:
    """For each k the first q > k whose depth and k's depth say stop, N where none does."""
    depth: list[int] = []
    for before in parent.tolist():
        depth.append(depth[before] + 1 if before >= 0 else 0)
    N = len(depth)
    return torch.tensor(
        [
            next((q for q in range(k + 1, N) if stops(depth[q], depth[k])), N)
            for k in range(len(depth))
        ]
    )


def next_of_the_same_depth(parent):
    return _first_after(parent, lambda later, own: later == own)


def with_siblings(parent):
    return _first_after(parent, lambda later, own: later < own)


def draw_group_parents(rng: np.random.Generator) -> Case:
    return {"parent": packed_order(**draw_group(rng))["parent"]}


def draw_any_tree(rng: np.random.Generator) -> Case:
    """A tree in depth-first order that is no group's: each node goes on from the path of the one before it.

    Somewhere a path ends, and the next node stands nearer to the root than where it parted.
    """
    while True:
        paths, parents = [[0]], [-1]
        for k in range(1, 14):
            path = paths[-1][: int(rng.integers(1, len(paths[-1]) + 1))]
            parents.append(path[-1])
            paths.append([*path, k])
        case = {"parent": torch.tensor(parents)}
        others = (children_alone, next_of_the_same_depth, with_siblings)
        found = [wrong(**case).tolist() for wrong in others]
        if subtree_end(**case).tolist() not in found and len(set(map(tuple, found))) == 3:
            return case


# lab11.3: the mask of ancestors


def ancestor_mask(end: Tensor) -> Tensor:
    return packing.ancestor_mask(end.unsqueeze(0))[0]


def causal(end):
    return torch.ones(len(end), len(end), dtype=torch.bool).tril()


def transposed(end):
    return ancestor_mask(end).T


def without_itself(end):
    return ancestor_mask(end) & ~torch.eye(len(end), dtype=torch.bool)


def descendants_too(end):
    return ancestor_mask(end) | ancestor_mask(end).T


def one_too_many(end):
    return ancestor_mask(end + 1)


def draw_group_ends(rng: np.random.Generator) -> Case:
    return {"end": subtree_end(**draw_group_parents(rng))}


def draw_any_ends(rng: np.random.Generator) -> Case:
    return {"end": subtree_end(**draw_any_tree(rng))}


# lab11.4: the read-out at the parent


def node_logps(logits: Tensor, ids: Tensor, parent: Tensor) -> Tensor:
    logps = minigrpo.token_logps(logits[parent.clamp(min=0)], ids)
    return logps.where(parent >= 0, 0)


def read_at(rows: Callable[[Tensor], Tensor]):
    """The log-probs read from the logits of other rows, 0 for the first token all the same."""

    def wrong(logits, ids, parent):
        logps = minigrpo.token_logps(logits[rows(parent)], ids)
        return logps.where(parent >= 0, 0)

    return wrong


def place_before(parent: Tensor) -> Tensor:
    return (torch.arange(len(parent)) - 1).clamp(min=0)


def own_place(parent: Tensor) -> Tensor:
    return torch.arange(len(parent))


def from_the_last(logits, ids, parent):
    return minigrpo.token_logps(logits[parent], ids)


def from_itself(logits, ids, parent):
    return minigrpo.token_logps(logits[parent.clamp(min=0)], ids)


def not_normalised(logits, ids, parent):
    chosen = logits[parent.clamp(min=0)].gather(1, ids.unsqueeze(1)).squeeze(1)
    return chosen.where(parent >= 0, 0)


def probabilities(logits, ids, parent):
    return node_logps(logits, ids, parent).exp().where(parent >= 0, 0)


def roots_at_0(logits, ids, parent):
    """Those whose parent is the prompt's last token get 0, as the first token does."""
    late = torch.arange(len(parent)) > parent + 1
    first = parent[late].min() if late.any() else -1
    return node_logps(logits, ids, parent).masked_fill(parent == first, 0)


def draw_logits(rng: np.random.Generator, group: Callable[[np.random.Generator], Case]) -> Case:
    found = packed_order(**group(rng))
    return {
        "logits": torch.from_numpy(rng.normal(size=(len(found["ids"]), VOCABULARY))),
        "ids": found["ids"],
        "parent": found["parent"],
        "wrt": ["logits"],
    }


def draw_parting_at_once(rng: np.random.Generator) -> Case:
    """Completions of which no two begin alike."""
    firsts = rng.permutation(VOCABULARY)[:5].tolist()
    tails = [rng.integers(VOCABULARY, size=rng.integers(1, 4)).tolist() for _ in firsts]
    ids, mask = pad([[first, *tail] for first, tail in zip(firsts, tails, strict=True)])
    return {"prompt_ids": draw_prompt(rng), "completion_ids": ids, "completion_mask": mask}


# lab11.5 and lab11.6: the loss over the nodes


def loss_with(
    *,
    gather: Callable[..., Tensor] | None = None,
    surrogate: Callable[..., Tensor] | None = None,
    denominator: Callable[..., Tensor] | None = None,
    push: Callable[[Tensor, Tensor], Tensor] = lambda A, w: A * w,
):
    """The loss over the nodes with one part exchanged; right where none is.

    Args:
        gather: (values (G, T), place, N) → (N,), how members' pushes reach their node.
        surrogate: (ratio (N,), S⁺ (N,), S⁻ (N,), epsilon or None) → (N,).
        denominator: (place, N) → a number.
        push: (advantages, step_weights) → (G, T).
    """

    def loss(logps, old_logps, advantages, step_weights, place, epsilon=None):
        N, pushes = len(logps), push(advantages, step_weights)
        up, down = (
            (gather or summed)(part, place, N)
            for part in (pushes.clamp(min=0), pushes.clamp(max=0))
        )
        ratio = (logps - old_logps.detach()).exp()
        per_node = (surrogate or two_sums)(ratio, up, down, epsilon)
        return -per_node.sum() / (denominator or tokens)(place, N)

    return loss


def summed(values: Tensor, place: Tensor, N: int) -> Tensor:
    there = place >= 0
    sums = torch.zeros(N, dtype=values.dtype)
    return sums.index_add(0, place[there], values[there])


def meaned(values: Tensor, place: Tensor, N: int) -> Tensor:
    ones = torch.ones_like(values)
    return summed(values, place, N) / summed(ones, place, N).clamp(min=1)


def padding_at_the_last(values: Tensor, place: Tensor, N: int) -> Tensor:
    sums = torch.zeros(N, dtype=values.dtype)
    return sums.index_add(0, (place % N).flatten(), values.flatten())


def of_one_member(values: Tensor, place: Tensor, N: int) -> Tensor:
    """That of the last, as assignment to equal places leaves it."""
    found = torch.zeros(N, dtype=values.dtype)
    for row, there in zip(values, place, strict=True):
        found[there[there >= 0]] = row[there >= 0]
    return found


def of_the_first(values: Tensor, place: Tensor, N: int) -> Tensor:
    return of_one_member(values.flip(0), place.flip(0), N)


def tokens(place: Tensor, N: int) -> Tensor:
    return (place >= 0).sum()


def two_sums(ratio: Tensor, up: Tensor, down: Tensor, epsilon: float | None) -> Tensor:
    if epsilon is None:
        return ratio * (up + down)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.minimum(ratio, clipped) * up + torch.maximum(ratio, clipped) * down


def one_sum(ratio, up, down, epsilon):
    """PPO's surrogate of the joint push."""
    joint = up + down
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.minimum(ratio * joint, clipped * joint)


def smaller_for_both(ratio, up, down, epsilon):
    return torch.minimum(ratio, ratio.clamp(1 - epsilon, 1 + epsilon)) * (up + down)


def clip_alone(ratio, up, down, epsilon):
    return ratio.clamp(1 - epsilon, 1 + epsilon) * (up + down)


def exchanged(ratio, up, down, epsilon):
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.maximum(ratio, clipped) * up + torch.minimum(ratio, clipped) * down


def never_clipped(ratio, up, down, epsilon):
    return ratio * (up + down)


def positive_alone(ratio, up, down, epsilon):
    return torch.minimum(ratio, ratio.clamp(1 - epsilon, 1 + epsilon)) * up


def log_probs_weighed(logps, old_logps, advantages, step_weights, place, epsilon=None):
    return loss_with(surrogate=lambda ratio, up, down, epsilon: ratio.log() * (up + down))(
        logps, old_logps * 0, advantages, step_weights, place, epsilon
    )


def negated(**parts):
    right = loss_with(**parts)
    return lambda *arguments, **named: -right(*arguments, **named)


tree_loss = loss_with()
clipped_tree_loss = loss_with()


def draw_loss(rng: np.random.Generator, *, objective: str, clipped: bool) -> Case:
    """The nodes of a group whose policy has moved; where both signs meet in a node, its ratio lies outside the clip."""
    while True:
        group = draw_group(rng)
        place = packed_order(**group)["place"]
        ids, mask = group["completion_ids"], group["completion_mask"]
        N = int(place.max()) + 1
        rewards = draw_rewards(rng, len(ids))
        advantages, step_weights = minigrpo.OBJECTIVES[objective](rewards, ids, mask)
        old = torch.from_numpy(-rng.exponential(1.0, size=N))
        case = {
            "logps": old + torch.from_numpy(rng.uniform(-0.7, 0.7, size=N)),
            "old_logps": old,
            "advantages": _any_where_masked(rng, advantages, mask),
            "step_weights": _any_where_masked(rng, step_weights, mask),
            "place": place,
            "wrt": ["logps"],
        }
        if clipped:
            case["epsilon"] = float(rng.choice([0.1, 0.2, 0.3]))
        if clipped:
            telling = _clips(case, objective)
        else:
            telling = objective == "prm" or _counts_members(case)  # of PRM all members agree
        if telling and clear_loss(tree_loss, case):
            return case


def _any_where_masked(rng: np.random.Generator, values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.from_numpy(rng.uniform(0.5, 2.0, size=mask.shape)))


def _clips(case: Case, objective: str) -> bool:
    """Whether the clip holds nodes, and each way to use it gives a loss and a gradient of its own.

    Of PRM one sum is right.
    """
    ways = [two_sums, smaller_for_both, clip_alone, exchanged, never_clipped, positive_alone]
    if objective != "prm":
        ways.append(one_sum)
    return _all_apart([_loss_and_gradient(loss_with(surrogate=way), case) for way in ways])


def _counts_members(case: Case) -> bool:
    """Whether sums over members, means, and one member alone give losses or gradients of their own."""
    ways = [summed, meaned, of_one_member, of_the_first]
    return _all_apart([_loss_and_gradient(loss_with(gather=way), case) for way in ways])


def _all_apart(found: list[Tensor]) -> bool:
    """Whether no two of these are nearly equal, next to the first of them."""
    allowed = 1e-3 * found[0].abs().max()
    pairs = itertools.combinations(found, 2)
    return all((one - other).abs().max() > allowed for one, other in pairs)


def _loss_and_gradient(loss: Callable[..., Tensor], case: Case) -> Tensor:
    found = DRIVERS["loss_and_grads"]({"loss": loss}, "loss", case)
    return torch.cat([found["loss"].detach().reshape(1), found["grads"]["logps"]])


# lab11.7: the whole update


def packed_loss_with(
    *,
    positions: str = "depth",
    mask: Callable[[Tensor], Tensor] = ancestor_mask,
    read: Callable[..., Tensor] = node_logps,
    old: Callable[..., Tensor] = of_one_member,
    loss: Callable[..., Tensor] = clipped_tree_loss,
):
    """One pass over the packed group and the loss over its nodes, with one part exchanged; right where none is."""

    def packed_loss(
        model,
        prompt_ids,
        completion_ids,
        completion_mask,
        old_logps,
        advantages,
        step_weights,
        epsilon,
    ):
        found = packed_order(prompt_ids, completion_ids, completion_mask)
        ids, parent, place = found["ids"], found["parent"], found["place"]
        found["place of the token"] = torch.arange(len(ids))
        logits = model(ids, found[positions], mask(subtree_end(parent)))
        logps = read(logits, ids, parent)
        before = old(old_logps, place, len(ids))
        return loss(logps, before, advantages, step_weights, place, epsilon)

    return packed_loss


def packed_loss(
    model,
    prompt_ids,
    completion_ids,
    completion_mask,
    old_logps,
    advantages,
    step_weights,
    epsilon,
):
    """By the package's packing and loss."""
    packed = _packed(prompt_ids, completion_ids, completion_mask)
    mask = packing.ancestor_mask(packed.end)[0]
    logits = model(packed.ids[0], packed.depth[0], mask)
    logps = node_logps(logits, packed.ids[0], packed.parent[0])
    rows = (old_logps, advantages, step_weights)
    rows = (value.masked_fill(~completion_mask, 0).unsqueeze(0) for value in rows)
    return packing.tree_loss(logps.unsqueeze(0), *rows, packed, epsilon=epsilon)


def draw_update(rng: np.random.Generator, *, moved: bool) -> Case:
    """A group, and the log-probs that its sampler gave it: those of the model, or others where it has moved."""
    while True:
        group, seed = draw_group(rng), int(rng.integers(10_000))
        ids, mask = group["completion_ids"], group["completion_mask"]
        packed = _packed(**group)
        with torch.no_grad():
            logits = ToyTransformer(seed)(
                packed.ids[0], packed.depth[0], packing.ancestor_mask(packed.end)[0]
            )
            logps = node_logps(logits, packed.ids[0], packed.parent[0])
        if moved:
            logps = logps + torch.from_numpy(rng.uniform(-0.5, 0.5, size=len(logps)))
        name = str(rng.choice(["grpo", "lambda_grpo"]))
        advantages, step_weights = minigrpo.OBJECTIVES[name](draw_rewards(rng, len(ids)), ids, mask)
        old = packing.unpack(logps.unsqueeze(0), packed)[0]
        case = {
            "model_seed": seed,
            **group,
            "old_logps": _any_where_masked(rng, old, mask),
            "advantages": _any_where_masked(rng, advantages, mask),
            "step_weights": _any_where_masked(rng, step_weights, mask),
            "epsilon": 0.2,
        }
        if _clear_update(case, moved):
            return case


def _clear_update(case: Case, moved: bool) -> bool:
    """Whether the loss is large enough, and each piece of the pass is seen in the gradient.

    It is not where the clip holds all but the first path.
    """
    ways = [
        packed_loss,
        packed_loss_with(mask=causal),
        packed_loss_with(positions="place of the token"),
        packed_loss_with(read=read_at(place_before)),
    ]
    if moved:
        ways += [
            packed_loss_with(loss=loss_with(surrogate=way)) for way in (one_sum, never_clipped)
        ]
    found = [DRIVERS["lab11_packed_pass"]({"f": way}, "f", case) for way in ways]
    large = abs(found[0]["loss"].item()) > 0.05
    return large and _all_apart([answer["grads"]["head"] for answer in found])


# lab11.8: what is saved


def count_tokens(prompt_length: int, completions: list[list[int]]) -> dict[str, float]:
    return counts_with()(prompt_length, completions)


def _prefixes(completions: list[list[int]]) -> int:
    return len({tuple(y[: t + 1]) for y in completions for t in range(len(y))})


def counts_with(
    *,
    padded: Callable[[int, list], int] = lambda L, ys: len(ys) * (L + max(map(len, ys))),
    packed: Callable[[int, list], int] = lambda L, ys: L + _prefixes(ys),
    saved: Callable[[int, int], float] = lambda padded, packed: 1 - packed / padded,
):
    """The three numbers with one of them counted otherwise."""

    def counts(prompt_length, completions):
        rows, nodes = padded(prompt_length, completions), packed(prompt_length, completions)
        return {"padded": rows, "packed": nodes, "saved": saved(rows, nodes)}

    return counts


def tokens_at_places(L, completions):
    return L + len({(t, token) for y in completions for t, token in enumerate(y)})


def distinct_completions(L, completions):
    return L + sum(map(len, {tuple(y) for y in completions}))


def draw_counts(rng: np.random.Generator) -> Case:
    """A group with two equal completions, one of which could be counted at once."""
    completions = draw_branching(rng, size=6, longest=6)
    return {
        "prompt_length": int(rng.integers(3, 30)),
        "completions": [*completions, completions[0]],
    }


def draw_counts_apart(rng: np.random.Generator) -> Case:
    """Long completions that part at their first token, but for two: little to save beside the prompt."""
    tails = [rng.integers(9, size=rng.integers(4, 9)).tolist() for _ in range(5)]
    completions = [[first, *tail] for first, tail in enumerate(tails)]
    completions.append([*completions[0][:2], 9, 9])
    # a prompt as long as all the padding of five rows would hide which of the two was left out
    G, T = len(completions), max(map(len, completions))
    padding = G * T - sum(map(len, completions))
    lengths = [L for L in range(1, 5) if (G - 1) * L != padding]
    return {
        "prompt_length": int(rng.choice(lengths)),
        "completions": [completions[k] for k in rng.permutation(G)],
    }


EXERCISES = (
    Exercise(
        id="lab11.1",
        function="packed_order",
        reference=packed_order,
        parts=(
            Part(
                name="random groups",
                points=3,
                draw=draw_group,
                hint="the prompt, then a node for each distinct beginning of a completion, in the order of a "
                "dictionary; for each node its token, its depth (the prompt's tokens count), its parent's place.",
                examples=(small(), worked()),
            ),
            Part(
                name="padding that looks like a token",
                points=1,
                draw=draw_padded_like_a_token,
                hint="what stands under the mask makes no node, and its place is −1, whatever its id.",
            ),
        ),
        mistakes=(
            Mistake(
                name="order of the rows",
                hint="you number nodes as the rows bring them. A later row that goes on from an early branch then "
                "stands far from it, and descendants have a gap. Sort first.",
                wrong=in_the_order_of(as_met),
            ),
            Mistake(
                name="level by level",
                hint="you go level by level: all first tokens, then all second ones. Depth first goes down one "
                "branch to its end before the next begins.",
                wrong=in_the_order_of(by_levels),
            ),
            Mistake(
                name="siblings as they come",
                hint="your tree is right, and depth first. But siblings stand in the order of the rows; the "
                "smaller token id goes first.",
                wrong=in_the_order_of(siblings_as_met),
            ),
            Mistake(
                name="nothing shared",
                hint="each row has nodes of its own: a beginning that rows share is one node, and all of them point "
                "to it.",
                wrong=each_row_by_itself,
            ),
            Mistake(
                name="padding makes nodes",
                hint="padding makes nodes in your order. Tokens under the mask are not there.",
                wrong=with_padding,
            ),
            Mistake(
                name="place as depth",
                hint="your depth is the place in the packing. A token's position is how many tokens stand before "
                "it on its own path; other branches are not before it.",
                wrong=place_as_depth,
            ),
            Mistake(
                name="depth without the prompt",
                hint="your depth of a completion's tokens begins at 0. The prompt stands before them: it begins at "
                "L.",
                wrong=depth_without_prompt,
            ),
            Mistake(
                name="parent is the place before",
                hint="your parent is the place before. After the end of a branch that is a token of another branch.",
                wrong=place_before_as_parent,
            ),
            Mistake(
                name="first tokens have no parent",
                hint="the first token of a completion has a parent: the last token of the prompt, at L − 1. Only the "
                "first token of the prompt has none.",
                wrong=roots_without_parent,
            ),
            Mistake(
                name="place without the prompt",
                hint="your places of a completion's tokens begin at 0. They count from the prompt's first token.",
                wrong=place_without_prompt,
            ),
            Mistake(
                name="padding at place 0",
                hint="you send the padding to place 0, which is a token of the prompt. Under the mask the place is "
                "−1.",
                wrong=padding_at_0,
            ),
        ),
    ),
    Exercise(
        id="lab11.2",
        function="subtree_end",
        reference=subtree_end,
        parts=(
            Part(
                name="packed groups",
                points=1,
                draw=draw_group_parents,
                hint="one past the last descendant; a token without descendants ends at k + 1.",
                examples=({"parent": torch.tensor([-1, 0, 1, 2, 2, 1])},),
            ),
            Part(
                name="any tree",
                points=1,
                draw=draw_any_tree,
                hint="descendants are children, their children, and so on: take the largest place of all, plus one.",
            ),
        ),
        mistakes=(
            Mistake(
                name="last descendant",
                hint="you give the place of the last descendant; `end` is one past it.",
                wrong=last_descendant,
            ),
            Mistake(
                name="number of descendants",
                hint="you count the tokens of the subtree. `end` is a place in the packing: k and that number.",
                wrong=number_of_descendants,
            ),
            Mistake(
                name="children alone",
                hint="you stop at the last child; its own descendants belong to the subtree too. Going through the "
                "places from the last to the first, each child's end is known before its parent's.",
                wrong=children_alone,
            ),
            Mistake(
                name="next of the same depth",
                hint="you go on to the next token of the same depth. The subtree ends before that where a token "
                "nearer to the root comes first.",
                wrong=next_of_the_same_depth,
            ),
            Mistake(
                name="siblings counted",
                hint="your subtree holds later siblings as well: it ends at the first later token that is no deeper "
                "than k, and a sibling is no deeper.",
                wrong=with_siblings,
            ),
        ),
    ),
    Exercise(
        id="lab11.3",
        function="ancestor_mask",
        reference=ancestor_mask,
        parts=(
            Part(
                name="packed groups",
                points=1,
                draw=draw_group_ends,
                hint="[q, k] is True where k ≤ q < end[k].",
                examples=({"end": torch.tensor([6, 6, 5, 4, 5, 6])},),
            ),
            Part(
                name="any tree",
                points=1,
                draw=draw_any_ends,
                hint="[q, k] is True where k ≤ q < end[k].",
            ),
        ),
        mistakes=(
            Mistake(
                name="siblings seen",
                hint="each token sees all that stands before it, other branches too: the plain causal mask. It "
                "comes out too where end[q] is compared; end[k] tells whether q is still below k.",
                wrong=causal,
            ),
            Mistake(
                name="rows and columns exchanged",
                hint="your mask is the transposed one: its row is the query q, its column the key k that q sees.",
                wrong=transposed,
            ),
            Mistake(
                name="not itself",
                hint="a token sees itself: k ≤ q, not k < q.",
                wrong=without_itself,
            ),
            Mistake(
                name="descendants seen",
                hint="your tokens see what comes after them on their paths: that is the answer they are to predict.",
                wrong=descendants_too,
            ),
            Mistake(
                name="one too many",
                hint="you take q ≤ end[k]. The token at end[k] is the first that does not descend from k.",
                wrong=one_too_many,
            ),
        ),
    ),
    Exercise(
        id="lab11.4",
        function="node_logps",
        reference=node_logps,
        driver="lab08_output_and_grads",
        parts=(
            Part(
                name="packed groups",
                points=1,
                draw=lambda rng: draw_logits(rng, draw_group),
                hint="ln softmax of the logits at the parent, at the id of the token; 0 where the parent is −1. The "
                "gradient with respect to the logits counts too.",
            ),
            Part(
                name="completions that part at once",
                points=1,
                draw=lambda rng: draw_logits(rng, draw_parting_at_once),
                hint="the first token of every completion is read at the last token of the prompt.",
            ),
        ),
        mistakes=(
            Mistake(
                name="read at the place before",
                hint="you read at the place before, as in a plain row. After the end of a branch another branch "
                "stands there; the token was predicted at its parent.",
                wrong=read_at(place_before),
            ),
            Mistake(
                name="read at its own place",
                hint="you read a token at its own place. The logits there predict what comes after it.",
                wrong=read_at(own_place),
            ),
            Mistake(
                name="−1 is the last row",
                hint="the first token has parent −1, and logits[-1] is the last row. Nothing predicts that token: 0.",
                wrong=from_the_last,
            ),
            Mistake(
                name="first token read at itself",
                hint="you read the first token at place 0, at itself. Nothing predicts it: 0.",
                wrong=from_itself,
            ),
            Mistake(
                name="not normalised",
                hint="you return logits. A log-prob is the logit minus the log of the sum of all exponentials.",
                wrong=not_normalised,
            ),
            Mistake(
                name="probabilities",
                hint="you return probabilities; take their logarithm (log_softmax does both).",
                wrong=probabilities,
            ),
            Mistake(
                name="roots at 0",
                hint="your first tokens of completions have 0. They were sampled, and the last token of the prompt "
                "predicts them.",
                wrong=roots_at_0,
            ),
        ),
    ),
    Exercise(
        id="lab11.5",
        function="tree_loss",
        reference=tree_loss,
        driver="loss_and_grads",
        parts=(
            Part(
                name="GRPO",
                points=2,
                draw=lambda rng: draw_loss(rng, objective="grpo", clipped=False),
                hint="−Σ P·S over all nodes, S being the sum of w·A over the members; divided by the number of "
                "unmasked tokens before packing.",
            ),
            Part(
                name="λ-GRPO",
                points=1,
                draw=lambda rng: draw_loss(rng, objective="lambda_grpo", clipped=False),
                hint="as in the first part; the step weights here are 1/|λ|, and come into the sum like any others.",
            ),
        ),
        mistakes=(
            Mistake(
                name="multiplicity lost",
                hint="you take the mean of the members' pushes. A node stands for |λ| tokens of the rows: sum them. "
                "(Where the step weights are 1/|λ|, the sum is a mean by itself.)",
                wrong=loss_with(gather=meaned),
            ),
            Mistake(
                name="last member alone",
                hint="one member of each node counts, the last. `S[place] = x` overwrites, and so does "
                "`S[place] += x`: of equal places one remains. index_add adds them all.",
                wrong=loss_with(gather=of_one_member),
            ),
            Mistake(
                name="first member alone",
                hint="the first member of each node counts alone; the others push on the same node.",
                wrong=loss_with(gather=of_the_first),
            ),
            Mistake(
                name="padding in the last node",
                hint="padding has the place −1, which is the last node for an index. Leave it out.",
                wrong=loss_with(gather=padding_at_the_last),
            ),
            Mistake(
                name="divided by the nodes",
                hint="you divide by the number of places in the packing. The denominator stays Σ len: the unmasked "
                "tokens of the rows.",
                wrong=loss_with(denominator=lambda place, N: N),
            ),
            Mistake(
                name="divided by the completions' nodes",
                hint="you divide by the number of nodes. The denominator stays Σ len: a shared token counts once for "
                "each row.",
                wrong=loss_with(denominator=lambda place, N: len(place[place >= 0].unique())),
            ),
            Mistake(
                name="divided by all cells",
                hint="you divide by G·T, padding included. The denominator is the number of unmasked tokens.",
                wrong=loss_with(denominator=lambda place, N: place.numel()),
            ),
            Mistake(
                name="no step weights",
                hint="the step weights have no effect in your loss.",
                wrong=loss_with(push=lambda A, w: A),
            ),
            Mistake(
                name="no ratio",
                hint="you weigh ln π_θ where the ratio P = π_θ/π_old belongs.",
                wrong=log_probs_weighed,
            ),
            Mistake(
                name="sign",
                hint="you return the objective. The loss is what is minimised: its negative.",
                wrong=negated(),
            ),
        ),
    ),
    Exercise(
        id="lab11.6",
        function="clipped_tree_loss",
        reference=clipped_tree_loss,
        driver="loss_and_grads",
        parts=(
            Part(
                name="steps that agree",
                points=1,
                draw=lambda rng: draw_loss(rng, objective="prm", clipped=True),
                hint="all members of a node share one advantage here (PRM), so S⁺ or S⁻ is 0: min(P, clip P)·S⁺ + "
                "max(P, clip P)·S⁻.",
            ),
            Part(
                name="steps of both signs",
                points=2,
                draw=lambda rng: draw_loss(rng, objective="grpo", clipped=True),
                hint="members of a node push up and down here (GRPO): sum the positive pushes and the negative ones "
                "apart.",
            ),
        ),
        mistakes=(
            Mistake(
                name="one sum",
                hint="you clip the joint push of a node. Its members of A > 0 stop at 1 + ε and those of A < 0 at "
                "1 − ε, each by itself: two sums, S⁺ and S⁻.",
                wrong=loss_with(surrogate=one_sum),
            ),
            Mistake(
                name="min for both",
                hint="you weigh both sums by min(P, clip P). A negative push turns the minimum around: S⁻ takes "
                "max(P, clip P).",
                wrong=loss_with(surrogate=smaller_for_both),
            ),
            Mistake(
                name="clip alone",
                hint="you clip P wherever it leaves the interval. PPO takes the worse of P·A and clip(P)·A: a ratio "
                "that went the wrong way is not clipped.",
                wrong=loss_with(surrogate=clip_alone),
            ),
            Mistake(
                name="min and max exchanged",
                hint="min and max are exchanged: S⁺ takes the smaller of P and clip P, S⁻ the larger.",
                wrong=loss_with(surrogate=exchanged),
            ),
            Mistake(
                name="no clip",
                hint="epsilon has no effect in your loss.",
                wrong=loss_with(surrogate=never_clipped),
            ),
            Mistake(
                name="no negative pushes",
                hint="S⁻ is lost: completions below the mean push down, and that is half of the gradient.",
                wrong=loss_with(surrogate=positive_alone),
            ),
            Mistake(
                name="multiplicity lost",
                hint="S⁺ and S⁻ are sums over the members of a node, not means, nor one member's push: a node stands "
                "for |λ| tokens of the rows.",
                wrong=loss_with(gather=meaned),
            ),
            Mistake(
                name="last member alone",
                hint="one member of each node counts, the last: `S[place] = x` overwrites, and so does `S[place] += "
                "x`.",
                wrong=loss_with(gather=of_one_member),
            ),
            Mistake(
                name="divided by the nodes",
                hint="you divide by the number of places in the packing. The denominator stays Σ len: the unmasked "
                "tokens of the rows.",
                wrong=loss_with(denominator=lambda place, N: N),
            ),
            Mistake(
                name="padding in the last node",
                hint="padding has the place −1, which is the last node for an index. Leave it out.",
                wrong=loss_with(gather=padding_at_the_last),
            ),
            Mistake(
                name="sign",
                hint="you return the objective. The loss is what is minimised: its negative.",
                wrong=negated(),
            ),
        ),
    ),
    Exercise(
        id="lab11.7",
        function="packed_loss",
        reference=packed_loss,
        driver="lab11_packed_pass",
        parts=(
            Part(
                name="a first update",
                points=1,
                draw=lambda rng: draw_update(rng, moved=False),
                hint="one pass over the packed ids, with depth as positions and the mask of ancestors; then "
                "exercises 4 and 6.",
            ),
            Part(
                name="a policy that has moved",
                points=2,
                draw=lambda rng: draw_update(rng, moved=True),
                hint="old_logps (G, T) has one value a node, whichever member you take it from: bring it to (N,), "
                "then clip.",
            ),
        ),
        mistakes=(
            Mistake(
                name="siblings seen",
                hint="your tokens see other branches: give the model the mask of ancestors, not the plain causal "
                "one.",
                wrong=packed_loss_with(mask=causal),
            ),
            Mistake(
                name="place as position",
                hint="you give the model the places 0…N − 1 as positions. A token's position is its depth.",
                wrong=packed_loss_with(positions="place of the token"),
            ),
            Mistake(
                name="read at the place before",
                hint="you read log-probs at the place before. A node was predicted at its parent.",
                wrong=packed_loss_with(read=read_at(place_before)),
            ),
            Mistake(
                name="old log-probs summed",
                hint="you sum the old log-probs over the members. They are the same |λ| times: take any one.",
                wrong=packed_loss_with(old=summed),
            ),
            Mistake(
                name="one sum",
                hint="the loss is that of one sum a node. Under clipping there are two: use exercise 6.",
                wrong=packed_loss_with(loss=loss_with(surrogate=one_sum)),
            ),
            Mistake(
                name="no clip",
                hint="the loss is not clipped: use exercise 6, not 5.",
                wrong=packed_loss_with(loss=loss_with(surrogate=never_clipped)),
            ),
            Mistake(
                name="multiplicity lost",
                hint="the loss takes means over members where sums belong.",
                wrong=packed_loss_with(loss=loss_with(gather=meaned)),
            ),
            Mistake(
                name="divided by the nodes",
                hint="the loss is divided by the number of places in the packing. The denominator stays Σ len.",
                wrong=packed_loss_with(loss=loss_with(denominator=lambda place, N: N)),
            ),
        ),
    ),
    Exercise(
        id="lab11.8",
        function="count_tokens",
        reference=count_tokens,
        parts=(
            Part(
                name="random groups",
                points=1,
                draw=draw_counts,
                hint="padded: G rows of the prompt and the longest completion. Packed: the prompt once, and each "
                "distinct beginning once.",
                examples=(
                    {"prompt_length": 100, "completions": [[7, 8], [7, 9], [7], [7, 8, 5]]},
                    {"prompt_length": 3, "completions": WORKED_IDS},
                ),
            ),
            Part(
                name="completions that part at once",
                points=1,
                draw=draw_counts_apart,
                hint="where little is shared the prompt is still there G times in the rows, and once in the packing.",
            ),
        ),
        mistakes=(
            Mistake(
                name="padding not counted",
                hint="you count the rows without their padding. A padded row has the length of the longest, and is "
                "computed whole.",
                wrong=counts_with(padded=lambda L, ys: len(ys) * L + sum(map(len, ys))),
            ),
            Mistake(
                name="prompt once in the rows",
                hint="every padded row holds the prompt: G·(L + T).",
                wrong=counts_with(padded=lambda L, ys: L + len(ys) * max(map(len, ys))),
            ),
            Mistake(
                name="prompt in every branch",
                hint="you count the prompt G times in the packing. There it stands once.",
                wrong=counts_with(packed=lambda L, ys: len(ys) * L + _prefixes(ys)),
            ),
            Mistake(
                name="no prompt",
                hint="the prompt's tokens pass through the model too: they count in both.",
                wrong=counts_with(
                    padded=lambda L, ys: len(ys) * max(map(len, ys)),
                    packed=lambda L, ys: _prefixes(ys),
                ),
            ),
            Mistake(
                name="equal tokens merged",
                hint="you count a token once for each position. Only completions that agree on all tokens before "
                "share it.",
                wrong=counts_with(packed=tokens_at_places),
            ),
            Mistake(
                name="distinct completions",
                hint="you drop completions that are there twice, and no more. Those that part later share their "
                "beginning too.",
                wrong=counts_with(packed=distinct_completions),
            ),
            Mistake(
                name="ratio",
                hint="`saved` is a share of the padded tokens, 1 − packed/padded; you give how many times as many "
                "they are.",
                wrong=counts_with(saved=lambda padded, packed: padded / packed),
            ),
            Mistake(
                name="share that is left",
                hint="you give the share that is left. `saved` is 1 minus that.",
                wrong=counts_with(saved=lambda padded, packed: packed / padded),
            ),
        ),
    ),
)
