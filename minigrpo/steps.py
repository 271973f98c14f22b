"""Process steps: the tree of shared prefixes that every group of completions carries.

λ^(i,t) is the set of completions that agree with y⁽ⁱ⁾ on tokens 0…t inclusive; a maximal run of tokens with the same
set is one process step. A completion that has ended leaves the set, padding belongs to no set.
Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.

Shapes: G completions of a group, T tokens; "…" is any number of leading dimensions, one group for each index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minigrpo.checks import check_finite, check_group, check_rewards, check_tensor


def same_prefix(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Say which pairs of completions agree on tokens 0…t: the definition of λ, in G² memory.

        j ∈ λ^(i,t)  ⇔  y⁽ⁱ⁾ₛ = y⁽ʲ⁾ₛ and both unmasked, for every s ≤ t

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: bool (…, G, G, T), indexed [i, j, t].
    Raises: TypeError or ValueError from `check_group`.
    """
    check_group(completion_ids, completion_mask)
    both = completion_mask.unsqueeze(-2) & completion_mask.unsqueeze(-3)
    agree = both & (completion_ids.unsqueeze(-2) == completion_ids.unsqueeze(-3))  # (…, G, G, T)
    return agree.cumprod(dim=-1).bool()


def step_sizes(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Count how many completions share each token's prefix, in O(G·T·log G) time and O(G·T) memory.

        |λ^(i,t)| = Σⱼ [ j ∈ λ^(i,t) ]

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: int64 (…, G, T), between 1 and G; 0 where masked.
    Raises: TypeError or ValueError from `check_group`.
    """
    check_group(completion_ids, completion_mask)
    return _sum_over_sets(completion_mask.long(), _process_sets(completion_ids, completion_mask))


def step_mean(values: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Average a value per completion over the members of each token's process set.

        v̄_{i,t} = 1/|λ^(i,t)| · Σ_{j ∈ λ^(i,t)} vⱼ

    Args: values float (…, G), completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: (…, G, T) in the dtype of `values`; 0 where masked.
    Raises: TypeError or ValueError for wrong dtypes or shapes, values that are not finite, or from `check_group`.
    """
    check_group(completion_ids, completion_mask)
    check_tensor("values", values, "float", completion_ids.shape[:-1])
    check_finite("values", values)
    members = completion_mask.to(values.dtype)
    sets = _process_sets(completion_ids, completion_mask)
    return _sum_over_sets(values.unsqueeze(-1) * members, sets) / _sum_over_sets(members, sets).clamp(min=1)


def process_rewards(rewards: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Give each token its step reward, the Monte-Carlo estimate of the expected outcome from that step.

        R_{i,t} = mean of r over λ^(i,t)

    Args: rewards float (…, G), in the task's reward units; completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: (…, G, T) in the dtype and units of `rewards`; 0 where masked.
    Raises: TypeError or ValueError as `step_mean` and `check_rewards`.
    """
    check_rewards(rewards)
    return step_mean(rewards, completion_ids, completion_mask)


def path_depth(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Count the process steps between root and leaf: the distinct sets along a completion, minus one (flat = 0).

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: int64 (…, G); 0 for an empty row. The ends are our reading: the paper leaves them open.
    Raises: TypeError or ValueError from `check_group`.
    """
    sizes = step_sizes(completion_ids, completion_mask)  # sets are nested, so a new set is a smaller one
    return ((sizes[..., 1:] < sizes[..., :-1]) & completion_mask[..., 1:]).sum(dim=-1)


def intermediate_proportion(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Give the share of a completion's tokens that lie outside its last step, between 0 and 1.

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: (…, G) in torch's default float dtype; 0 for an empty row.
    Raises: TypeError or ValueError from `check_group`.
    """
    sizes = step_sizes(completion_ids, completion_mask)
    last = sizes.masked_fill(~completion_mask, completion_mask.shape[-2]).amin(dim=-1, keepdim=True)
    outside = ((sizes > last) & completion_mask).sum(dim=-1)
    return outside / completion_mask.sum(dim=-1).clamp(min=1)


def _process_sets(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Label each token's set λ^(i,t) by a number in [0, G) that is its own among the sets of token t: (…, G, T).

    Rows are sorted so that equal prefixes stand together; a set is then a run of neighbours that agree so far.
    """
    tokens = (_dense_rank(completion_ids) + 1).masked_fill(~completion_mask, 0)  # (…, G, T), 0: ended
    rank, base = tokens, tokens.shape[-2] + 1
    while rank.shape[-1] > 1:  # ranks of neighbouring columns merge into the rank of the longer run: T/2, T/4, … 1
        rank = F.pad(rank, (0, rank.shape[-1] % 2))
        rank = _dense_rank(rank[..., 0::2] * base + rank[..., 1::2])
    order = rank.argsort(dim=-2).expand_as(tokens)
    rows = tokens.gather(-2, order)
    agree = (rows[..., 1:, :] == rows[..., :-1, :]) & (rows[..., 1:, :] > 0)
    starts = 1 - agree.cumprod(dim=-1)  # 1 where a row opens a new set
    return torch.empty_like(rows).scatter(-2, order, F.pad(starts.cumsum(dim=-2), (0, 0, 1, 0)))


def _dense_rank(values: Tensor) -> Tensor:
    """Rank each entry among the G of its column, equal entries sharing a rank: (…, G, T) → int64 in [0, G)."""
    ordered, order = values.sort(dim=-2)
    rank = (ordered[..., 1:, :] != ordered[..., :-1, :]).cumsum(dim=-2)
    return torch.empty_like(order).scatter(-2, order, F.pad(rank, (0, 0, 1, 0)))


def _sum_over_sets(values: Tensor, sets: Tensor) -> Tensor:
    """Sum (…, G, T) over the members of each token's set, and give every member the sum."""
    return torch.zeros_like(values).scatter_add(-2, sets, values).gather(-2, sets)
