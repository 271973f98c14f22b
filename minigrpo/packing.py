"""A group as one packed tree: each process step's tokens once, with the loss and the gradient of the padded rows.

Completions of a process step share its tokens, its positions and all that came before, so its log-probs are one and
the same; what differs is how much each member pushes on them. The loss is therefore a sum over the nodes of the tree:

    S⁺ᵥ = Σ_{i ∈ λᵥ} wᵢ·max(Aᵢ, 0),   S⁻ᵥ = Σ_{i ∈ λᵥ} wᵢ·min(Aᵢ, 0),   Wᵥ = Σ_{i ∈ λᵥ} wᵢ
    L   = −Σᵥ ( min(P, clip P)·S⁺ᵥ + max(P, clip P)·S⁻ᵥ − β·Wᵥ·k3ᵥ ) / Σᵢ len(y⁽ⁱ⁾)

with the objective's advantages A and step_weights w. Without clipping the first two are P·(S⁺ + S⁻): for GRPO and the
PRM the sum of the members' advantages, for λ-GRPO their mean, the plain sum over the tree.

Shapes: P prompts, L prompt tokens (padded on the left), G completions of a group, T tokens (padded on the right),
N tokens of a packed sequence (padded on the right).
Source: the theorem of Sullivan & Koller, ICML 2026, arXiv 2509.21154, read as a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.checks import check_alike, check_group, check_loss_options, check_tensor
from minigrpo.losses import clipped_surrogate, kl_k3
from minigrpo.steps import sort_prefixes

BLOCK = 128  # queries that see the keys of one another's paths


@dataclass(frozen=True)
class PackedGroups:
    """P sequences of N tokens: a prompt, then every token of its tree once, depth first.

    ids int (P, N): the tokens, 0 in the padding. depth int (P, N): how many tokens stand before it on its path, its
    position id. parent int (P, N): the place of the token before it, −1 for the first. end int (P, N): one past its
    last descendant; q descends from k, or is k, where k ≤ q < end[k]. multiplicity int (P, N): |λ|, 0 where no node is.
    source int (P, N): i·T + t of the first completion that has it, −1 where no node is. place int (P, G, T): where
    each token of the completions went, N where masked.
    """

    ids: Tensor
    depth: Tensor
    parent: Tensor
    end: Tensor
    multiplicity: Tensor
    source: Tensor
    place: Tensor


def pack(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> PackedGroups:
    """Lay every group out as one sequence, in O(P·(L + G·T·log G)) time and without a loop over tokens.

    Args:
        prompt_ids: int (P, L), padded on the left.
        prompt_mask: bool (P, L).
        completion_ids: int (P, G, T), padded on the right.
        completion_mask: bool (P, G, T).

    Returns: PackedGroups, N the longest sequence; on the device of the ids.

    Raises: TypeError or ValueError from `check_group`, for prompts of another shape, padded on the right or empty.
    """
    check_group(completion_ids, completion_mask)
    _check_prompts(prompt_ids, prompt_mask, completion_ids)
    return _lay_out(prompt_ids, prompt_mask, completion_ids, completion_mask)


def pack_rows(ids: Tensor, mask: Tensor) -> PackedGroups:
    """Lay rows out as one sequence, whatever they share from their first token on: a forest.

    Args:
        ids: int (B, S), padded on the left, on the right or on both sides.
        mask: bool (B, S), True = a token.

    Returns: PackedGroups with P = 1, G = B and T = S for the rows without their padding on the left; roots have the
        parent −1, and trees see nothing of one another under `ancestor_mask`.

    Raises: TypeError or ValueError from `check_group`, as for a hole in a row.
    """
    check_tensor("mask", mask, "bool", ids.shape)
    first = mask.long().argmax(dim=1, keepdim=True)  # (B, 1)
    there = torch.arange(ids.shape[1], device=ids.device) + first  # (B, S)
    inside = there < ids.shape[1]
    there = there.where(inside, 0)
    ids, mask = ids.gather(1, there).unsqueeze(0), (mask.gather(1, there) & inside).unsqueeze(0)
    check_group(ids, mask)
    nothing = ids[:, 0, :0]  # (1, 0), a prompt
    return _lay_out(nothing, nothing.bool(), ids, mask)


def _lay_out(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> PackedGroups:
    """The body of `pack`, for prompts that may be empty."""
    P, G, T = completion_ids.shape
    device = completion_ids.device

    # 1. Which tokens make a node: of the sorted rows, the first that has the same tokens 0…t.
    order, first = sort_prefixes(completion_ids, completion_mask)  # (P·G,), (P·G, T)
    sorted_mask = completion_mask.flatten(0, 1)[order]
    new = sorted_mask & (first == torch.arange(P * G, device=device).unsqueeze(1))  # (P·G, T)
    new = new.view(P, G * T)

    # 2. Number the nodes of each tree in depth-first order, those of the prompt first.
    lengths = prompt_mask.sum(dim=1, keepdim=True)  # (P, 1)
    numbers = lengths + new.cumsum(dim=1) - 1  # (P, G·T)
    size = lengths + new.sum(dim=1, keepdim=True)  # (P, 1)
    N = int(size.max())

    # 3. Where each token stands: at the number of its node; what is masked at N, one column too far.
    place = numbers.view(P * G, T).gather(0, first).masked_fill(~sorted_mask, N)
    place = torch.empty_like(place).index_copy(0, order, place).view(P, G, T)
    prompt_place = (prompt_mask.cumsum(dim=1) - 1).masked_fill(~prompt_mask, N)  # (P, L)
    slots = torch.cat([prompt_place, place.flatten(1)], dim=1)  # (P, L + G·T)

    def put(prompt: Tensor, completion: Tensor, fill: Tensor | int, reduce: str = "amax") -> Tensor:
        """Bring values of tokens, (P, L) and (P, G, T), to their nodes, (P, N)."""
        prompt = prompt.expand_as(prompt_place)
        completion = completion.expand_as(place).flatten(1)
        values = torch.cat([prompt, completion], dim=1)  # (P, L + G·T)
        nodes = torch.zeros(P, N + 1, dtype=torch.long, device=device) + fill
        return nodes.scatter_reduce(1, slots, values.long(), reduce, include_self=False)[:, :N]

    # 4. What a node is to know: depth, parent, where its descendants end, how often it was sampled, and one source.
    t = torch.arange(T, device=device)
    prompt_end = (
        (lengths - 1).unsqueeze(1).expand(P, G, 1)
    )  # the parent of each completion's first token
    before = torch.cat([prompt_end, place[..., :-1]], dim=2)  # (P, G, T)
    last = place.masked_fill(~completion_mask, -1).amax(
        dim=2, keepdim=True
    )  # (P, G, 1), of its row
    index = (torch.arange(G, device=device) * T).unsqueeze(1) + t  # (G, T)
    none = torch.zeros_like(prompt_place)
    one = torch.ones_like(place)
    return PackedGroups(
        ids=put(prompt_ids, completion_ids, 0),
        depth=put(prompt_place, lengths.unsqueeze(2) + t, 0),
        parent=put(prompt_place - 1, before, -1),
        end=put(size, last + 1, torch.arange(1, N + 2, device=device)),
        multiplicity=put(none, one, 0, "sum"),
        source=put(none - 1, index, -1, "amin"),
        place=place,
    )


def inner_tokens(packed: PackedGroups) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the M tokens that others come after: the last of a path predicts nothing, and no model need see it.

    Returns: ids, depth and end of these (P, M), as in PackedGroups, and parent (P, N): the place among them.
    """
    # (P, N)
    inner = packed.end > torch.arange(1, packed.ids.shape[1] + 1, device=packed.ids.device)
    before = F.pad(inner.cumsum(dim=1), (1, 0))  # (P, 1 + N), how many stand before a place
    M = int(before[:, -1].max())
    kept = inner.long().argsort(dim=1, descending=True, stable=True)[:, :M]
    ids, depth, end = (values.gather(1, kept) for values in (packed.ids, packed.depth, packed.end))
    # where none is: itself alone
    end = before.gather(1, end).maximum(torch.arange(1, M + 1, device=end.device))
    return ids, depth, end, before.gather(1, packed.parent.clamp(min=0))


def ancestor_mask(end: Tensor) -> Tensor:
    """Say which tokens each token sees: itself and what stands before it on its path.

    Args: end int (P, N), as in PackedGroups. Returns: bool (P, N, N), [p, q, k]: q attends to k. A padded token sees
    itself alone.
    """
    k = torch.arange(end.shape[1], device=end.device)
    q = k.unsqueeze(1)
    return (k <= q) & (q < end.unsqueeze(1))


def ancestor_blocks(end: Tensor, size: int = BLOCK) -> list[tuple[Tensor, Tensor]]:
    """Cut `ancestor_mask` into runs of about `size` queries, each with the keys that one of them sees at least.

    A run sees its paths and nothing of the branches before it, so that the pairs do not grow with the square of N.

    Returns: for each part of `chunk`ed queries its keys, int (K,), and the mask, bool (P, 1, queries, K).
    """
    places = torch.arange(end.shape[1], device=end.device)
    blocks = []
    for q in places.chunk(max(1, len(places) // size)):
        keys = ((places <= q[-1]) & (end > q[0])).any(dim=0).nonzero()[:, 0]
        blocks.append(
            (keys, ((keys <= q.unsqueeze(1)) & (q.unsqueeze(1) < end[:, None, keys])).unsqueeze(1))
        )
    return blocks


def ancestor_rule(end: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Give `ancestor_mask` as a rule (p, head, q, k) → bool, for `create_block_mask` of torch's FlexAttention."""
    return lambda p, head, q, k: (k <= q) & (q < end[p, k])


def node_sum(values: Tensor, packed: PackedGroups) -> Tensor:
    """Sum a value per completion token over the members of each node: (P, G, T) → (P, N), 0 for the prompt."""
    P, N = packed.ids.shape
    sums = torch.zeros(P, N + 1, dtype=values.dtype, device=values.device)
    return sums.scatter_add(1, packed.place.flatten(1), values.flatten(1))[:, :N]


def unpack(values: Tensor, packed: PackedGroups) -> Tensor:
    """Give every completion token its node's value: (P, N) → (P, G, T), 0 where masked."""
    return F.pad(values, (0, 1)).gather(1, packed.place.flatten(1)).view_as(packed.place)


def tree_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    step_weights: Tensor,
    packed: PackedGroups,
    *,
    epsilon: float | None = None,
    beta: float = 0.0,
    ref_logps: Tensor | None = None,
    num_tokens: int | Tensor | None = None,
) -> Tensor:
    """`policy_loss` on the tree, each node once; the module's header has the equation.

    Args:
        logps: float (P, N), of the nodes, in nats.
        old_logps: float (P, G, T) in nats, equal over a step up to rounding: their mean is taken.
        advantages: float (P, G, T), as an objective gives them.
        step_weights: float (P, G, T), as an objective gives them.
        packed: the trees.
        epsilon: as in `policy_loss`.
        beta: as in `policy_loss`.
        ref_logps: float (P, N) in nats, needed where β > 0.
        num_tokens: the denominator; None: the number of unpacked tokens.

    Returns: scalar, the same as `policy_loss` with "token-mean" on the rows. What is no node has no part in it.

    Raises: TypeError or ValueError for wrong dtypes or shapes, options out of range, or β > 0 without `ref_logps`.
    """
    check_alike(old_logps=old_logps, advantages=advantages, step_weights=step_weights)
    check_tensor("old_logps", old_logps, "float", packed.place.shape)
    for name, value in (("logps", logps), ("ref_logps", ref_logps)):
        if value is not None:
            check_tensor(name, value, "float", packed.ids.shape)
    check_loss_options(epsilon, beta, "token-mean", num_tokens, has_reference=ref_logps is not None)
    node = packed.multiplicity > 0  # (P, N)

    def summed(values: Tensor) -> Tensor:
        return node_sum(values, packed)[node]  # (P, G, T) → (nodes,)

    # A node's copies differ in their advantages alone, and the clip is linear in these on either side of 0.
    push = step_weights * advantages  # (P, G, T)
    old = summed(old_logps) / packed.multiplicity[node]
    logps = logps[node]
    up = clipped_surrogate(logps, old, summed(push.clamp(min=0)), epsilon)
    down = clipped_surrogate(logps, old, summed(push.clamp(max=0)), epsilon)
    per_node = up + down
    if beta > 0 and ref_logps is not None:
        per_node = per_node - beta * summed(step_weights) * kl_k3(logps, ref_logps[node])
    return -per_node.sum() / (packed.multiplicity.sum() if num_tokens is None else num_tokens)


def _check_prompts(prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor) -> None:
    """Require a prompt (P, L), padded on the left, for each group of (P, G, T)."""
    if completion_ids.ndim != 3:
        raise ValueError(
            f"completion_ids must have shape (P, G, T), got {tuple(completion_ids.shape)}"
        )
    check_tensor("prompt_ids", prompt_ids, "int")
    if prompt_ids.ndim != 2 or len(prompt_ids) != len(completion_ids):
        raise ValueError(
            f"prompt_ids must have shape (P, L) with P = {len(completion_ids)} as completion_ids, "
            f"got {tuple(prompt_ids.shape)}"
        )
    check_tensor("prompt_mask", prompt_mask, "bool", prompt_ids.shape)
    if (
        not prompt_mask[:, -1:].all()
        or (prompt_mask[:, :-1] & ~prompt_mask[:, 1:]).any()
        or not prompt_ids.shape[1]
    ):
        raise ValueError(
            "prompt_mask must be False up to each prompt's start and True after it (pad on the left, a token at least)"
        )
