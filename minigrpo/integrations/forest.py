"""Rows of a trainer as a forest: each token that rows share is computed once, and what is asked of it given to all.

Rows of one prompt share it and what their completions begin with; rows of other prompts, such as those under one system
prompt, may share their beginning too. One pass through the model sees every token of the forest once, each under a mask
of its own ancestors, and at its own position:

    ln π(y_{i,t} | x_i, y_{i,<t})  is read at the parent of y_{i,t}

Shapes: B rows, S tokens of a row, T of them at its end to be scored, N tokens of the forest, M of them that predict
another, U of these whose prediction is scored, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from minigrpo.llm.forward import ForwardCosts, ancestors_seen
from minigrpo.losses import token_logps
from minigrpo.packing import BLOCK, inner_tokens, pack_rows
from minigrpo.steps import sort_prefixes

IGNORED = -100  # the label of what is not scored, in all of transformers


@dataclass(frozen=True)
class Forest:
    """What a model is run on, and where the scored tokens are found in it.

    ids, depth, end int (1, M): as of `inner_tokens`. label int (1, M): the token that comes after each, IGNORED where
    it is not scored. scored bool (B, T), and place int (scored,): where among the M each scored token is predicted.
    """

    ids: Tensor
    depth: Tensor
    end: Tensor
    label: Tensor
    scored: Tensor
    place: Tensor


def make_forest(input_ids: Tensor, attention_mask: Tensor, T: int) -> Forest:
    """Lay rows out so that each token of the forest predicts one other.

    Rows share a token where they agree on the next one too: where they part, the last that they share stands once for
    each branch, at one position and after the same ancestors.

    Args:
        input_ids: int (B, S), a prompt padded on the left and a completion padded on the right.
        attention_mask: (B, S), 1 = a token.
        T: tokens at the end of a row that are scored.
    """
    mask = attention_mask.bool()
    pairs, base = _pairs(input_ids, mask)
    packed = pack_rows(pairs, mask)
    pairs, depth, end, parents = inner_tokens(packed)
    ids = pairs // base
    scored = mask[:, -T:]
    # where a scored token stands in its row without the padding
    where = mask.cumsum(dim=1)[:, -T:] - 1  # (B, T)
    nodes = packed.place[0].gather(1, where.clamp(min=0))[scored]  # (scored,), of N
    place = parents[0, nodes]
    label = torch.full_like(ids, IGNORED)
    label[0, place] = input_ids[:, -T:][scored]
    return Forest(ids, depth, end, label, scored, place)


def _pairs(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Each token and the next one as one number, token · base + next + 1, or + 0 where a row ends: int (B, S)."""
    base = int(input_ids.max()) + 2
    following = F.pad((input_ids + 1) * mask, (0, 1))[:, 1:]
    return input_ids * base + following, base


def forest_sizes(input_ids: Tensor, attention_mask: Tensor, T: int) -> tuple[int, int]:
    """M of the forest of some rows, and U of these whose prediction is scored, without laying it out.

    Args:
        input_ids: as `make_forest`.
        attention_mask: as `make_forest`.
        T: as `make_forest`.
    """
    mask = attention_mask.bool()
    pairs, base = _pairs(input_ids, mask)
    predicts = mask & (pairs % base > 0)
    scored = predicts.clone()
    scored[:, : -T - 1] = False
    # rows without their padding on the left
    there = (~mask).long().argsort(dim=1, stable=True)
    pairs, mask, predicts, scored = (x.gather(1, there) for x in (pairs, mask, predicts, scored))
    order, first = sort_prefixes(pairs.unsqueeze(0), mask.unsqueeze(0))  # (B,), (B, S)
    new = first == torch.arange(len(order), device=order.device).unsqueeze(1)
    return int((new & predicts[order]).sum()), int((new & scored[order]).sum())


def forest_logps(
    model: nn.Module,
    config: PretrainedConfig,
    forest: Forest,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    fused: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute ln softmax(z/τ) of each scored token, and the entropy before it, in one pass over the forest.

    Args:
        model: a causal one of transformers, in whatever wraps it; gradient flows into it.
        config: the model's, by which it chooses its attention; with TREE the mask goes in block by block.
        forest: of the rows.
        temperature: τ of the policy.
        entropies: whether these are asked for.
        fused: whether the model has TRL's head, which gives both, at its own τ, without all logits at once.

    Returns:
        Two float (B, T), in nats, 0 where nothing is scored; the second None where it was not asked for.
    """
    run = partial(
        model,
        input_ids=forest.ids,
        position_ids=forest.depth,
        use_cache=False,
        **ancestors_seen(config._attn_implementation, forest.end, next(model.parameters()).dtype),
    )
    if fused:
        output = run(shift_labels=forest.label, fused_lm_head=True)
        found, entropy = output.log_probs[0], output.entropy if entropies else None  # (M,)
    else:
        found, entropy = _from_logits(run, forest, temperature, entropies)
    return _rows(found, forest), None if entropy is None else _rows(entropy.view(-1), forest)


def _from_logits(
    run: Callable[..., Any], forest: Forest, temperature: float, entropies: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probs and entropies (M,) from the model's own logits, 0 where nothing is scored.

    Args:
        run: the model on the forest.
        forest: of the rows.
        temperature: τ of the policy.
        entropies: whether these are asked for; they have no gradient.
    """
    there = forest.label[0] != IGNORED  # (M,)
    logits = run(logits_to_keep=there.nonzero()[:, 0]).logits[0]  # (U, V)
    # bfloat16 is too coarse for a softmax
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    nothing = torch.zeros(there.shape, dtype=logits.dtype, device=logits.device)
    found = nothing.masked_scatter(there, token_logps(logits, forest.label[0][there]))
    if not entropies:
        return found, None
    with torch.no_grad():
        logps = logits.log_softmax(dim=-1)
        return found, nothing.masked_scatter(there, -(logps.exp() * logps).sum(dim=-1))


def _rows(values: Tensor, forest: Forest) -> Tensor:
    """Give every scored token the value of its place: (M,) → (B, T), 0 elsewhere."""
    rows = torch.zeros(forest.scored.shape, dtype=values.dtype, device=values.device)
    return rows.masked_scatter(forest.scored, values[forest.place])


def forest_cost(tokens: int, scored: int, S: int, costs: ForwardCosts) -> float:
    """About what the pass over a forest costs, in FLOPs of a linear layer: a block of queries sees a path and itself.

    Args:
        tokens: M of the forest.
        scored: U of them.
        S: tokens of a row.
        costs: the model's.
    """
    blocks = max(1, tokens // BLOCK)
    seen = min(tokens, S + BLOCK)
    return costs.of(tokens=tokens, scored=scored, pairs=tokens * seen, blocks=blocks)


def rows_cost(attention_mask: Tensor, T: int, costs: ForwardCosts) -> float:
    """What TRL's pass over padded rows costs, in the same unit.

    Args:
        attention_mask: (B, S).
        T: tokens at the end of a row that are scored.
        costs: the model's.
    """
    B, S = attention_mask.shape
    return costs.of(tokens=B * S, scored=B * T, pairs=B * S * S)
