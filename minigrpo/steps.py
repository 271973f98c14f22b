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
    Returns: bool (…, G, G, T), indexed [i, j, t]. Raises: TypeError or ValueError from `check_group`.
    """
    check_group(completion_ids, completion_mask)
    both = completion_mask.unsqueeze(-2) & completion_mask.unsqueeze(-3)
    agree = both & (completion_ids.unsqueeze(-2) == completion_ids.unsqueeze(-3))  # (…, G, G, T)
    return agree.cumprod(dim=-1).bool()


def step_sizes(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Count how many completions share each token's prefix, in O(G·T·log G) time and O(G·T) memory.

        |λ^(i,t)| = Σⱼ [ j ∈ λ^(i,t) ]

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: int64 (…, G, T), 1 to G; 0 where masked. Raises: TypeError or ValueError from `check_group`.
    """
    check_group(completion_ids, completion_mask)
    return _sum_over_sets(completion_mask.long(), _process_sets(completion_ids, completion_mask))


def step_mean(values: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Average a value per completion over the members of each token's process set.

        v̄_{i,t} = 1/|λ^(i,t)| · Σ_{j ∈ λ^(i,t)} vⱼ

    Args:
        values: float (…, G), in any unit.
        completion_ids: int (…, G, T).
        completion_mask: bool (…, G, T).

    Returns:
        (…, G, T) in the dtype and unit of `values`; 0 where masked.

    Raises:
        TypeError, ValueError: for wrong dtypes or shapes, values that are not finite, or from `check_group`.
    """
    check_group(completion_ids, completion_mask)
    check_tensor("values", values, "float", completion_ids.shape[:-1])
    check_finite("values", values)
    members = completion_mask.to(values.dtype)
    sets = _process_sets(completion_ids, completion_mask)
    sums = _sum_over_sets(values.unsqueeze(-1) * members, sets)
    return sums / _sum_over_sets(members, sets).clamp(min=1)


def process_rewards(rewards: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Give each token its step reward, the Monte-Carlo estimate of the expected outcome from that step.

        R_{i,t} = mean of r over λ^(i,t)

    Args:
        rewards: float (…, G), in the units of the task.
        completion_ids: int (…, G, T).
        completion_mask: bool (…, G, T).

    Returns:
        (…, G, T) in the dtype and units of `rewards`; 0 where masked.

    Raises:
        TypeError, ValueError: as `step_mean` and `check_rewards`.
    """
    check_rewards(rewards)
    return step_mean(rewards, completion_ids, completion_mask)


def path_depth(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Count the process steps between root and leaf: the distinct sets along a completion, minus one (flat = 0).

        depthᵢ = |{ λ^(i,t) : t unmasked }| − 1

    The paper counts the process steps between root and leaf and leaves open whether the ends belong to them. Here the
    last step does not.

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: int64 (…, G); 0 for an empty row. Raises: TypeError or ValueError from `check_group`.
    """
    # sets are nested, so a new set is a smaller one
    sizes = step_sizes(completion_ids, completion_mask)
    return ((sizes[..., 1:] < sizes[..., :-1]) & completion_mask[..., 1:]).sum(dim=-1)


def intermediate_proportion(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Give the share of a completion's tokens that lie outside its last step, between 0 and 1.

        pᵢ = |{ t unmasked : |λ^(i,t)| > min over s of |λ^(i,s)| }| / len(y⁽ⁱ⁾)

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T).
    Returns: (…, G) in torch's default float dtype; 0 for an empty row. Raises: TypeError or ValueError as above.
    """
    sizes = step_sizes(completion_ids, completion_mask)
    last = sizes.masked_fill(~completion_mask, completion_mask.shape[-2]).amin(dim=-1, keepdim=True)
    outside = ((sizes > last) & completion_mask).sum(dim=-1)
    return outside / completion_mask.sum(dim=-1).clamp(min=1)


def sort_prefixes(completion_ids: Tensor, completion_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the rows of all groups once, so that equal prefixes stand together: the tree, depth first.

    Args: completion_ids int (…, G, T), completion_mask bool (…, G, T), P groups in all.
    Returns: order int64 (P·G,), the sorted rows, group after group, a completion before those that go on from it;
        first int64 (P·G, T), for each sorted row the first one with the same tokens 0…t.
    """
    G, T = completion_ids.shape[-2:]
    ids, mask = completion_ids.long().reshape(-1, T), completion_mask.reshape(-1, T)
    ended = ids[mask].min() - 1  # sorts before every token
    place = torch.arange(len(ids), device=ids.device)
    group = (place // G).unsqueeze(1)  # keeps the groups apart
    rows = torch.cat([group, torch.where(mask, ids, ended)], dim=1)  # (P·G, 1 + T)
    order = torch.unique(rows, dim=0, return_inverse=True)[1].argsort()  # lexicographic
    rows = rows[order]
    agree = (rows[1:] == rows[:-1]).cumprod(dim=1)[:, 1:]  # with the row above
    agree = F.pad(agree, (0, 0, 1, 0))  # (P·G, T)
    return order, (place.unsqueeze(1) * (1 - agree)).cummax(dim=0).values


def _process_sets(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Label each token's set λ^(i,t) by a number that no other set of token t has: (…, G, T) → int64 (P·G, T)."""
    order, first = sort_prefixes(completion_ids, completion_mask)
    return torch.empty_like(first).index_copy(0, order, first)


def _sum_over_sets(values: Tensor, sets: Tensor) -> Tensor:
    """Sum (…, G, T) over the members of each token's set, and give every member the sum."""
    rows = values.reshape(sets.shape)
    return torch.zeros_like(rows).scatter_add(0, sets, rows).gather(0, sets).reshape(values.shape)
