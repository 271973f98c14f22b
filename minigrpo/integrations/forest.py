"""Rows of a trainer as a forest: each token that rows share is computed once, and what is asked of it given to all.

Rows of one prompt share it and what their completions begin with; rows of other prompts, such as those under one system
prompt, may share their beginning too. One pass through the model sees every token of the forest once, each under a mask
of its own ancestors, and at its own position:

    ln π(y_{i,t} | x_i, y_{i,<t})  is read at the parent of y_{i,t}

Shapes: B rows, S tokens of a row, T of them at its end to be scored, N tokens of the forest, M of them inner ones, U
parents that predict, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from minigrpo.llm.forward import TREE, ForwardCosts, ancestor_mask_for
from minigrpo.packing import ancestor_blocks, inner_tokens, pack_rows


@dataclass(frozen=True)
class Forest:
    """What a model is run on, and where the scored tokens are found in it.

    ids, depth, end int (1, M): of the inner tokens, as PackedGroups. kept int (U,): the places of those that predict.
    parent and token int (nodes,): of each distinct scored token, the one of the U that predicts it, and its id.
    scored bool (B, T), and node int (scored,): which of the distinct ones each scored token is.
    """

    ids: Tensor
    depth: Tensor
    end: Tensor
    scored: Tensor
    node: Tensor
    parent: Tensor
    token: Tensor
    kept: Tensor


def make_forest(input_ids: Tensor, attention_mask: Tensor, T: int) -> Forest:
    """Lay rows out.

    Args:
        input_ids: int (B, S), a prompt padded on the left and a completion padded on the right.
        attention_mask: (B, S), 1 = a token.
        T: tokens at the end of a row that are scored.
    """
    mask = attention_mask.bool()
    packed = pack_rows(input_ids, mask)
    ids, depth, end, parents = inner_tokens(packed)
    scored = mask[:, -T:]
    # where a scored token stands in its row without the padding
    where = mask.cumsum(dim=1)[:, -T:] - 1  # (B, T)
    nodes = packed.place[0].gather(1, where.clamp(min=0))[scored]  # (scored,), of N
    distinct, node = nodes.unique(return_inverse=True)
    kept, parent = parents[0, distinct].unique(return_inverse=True)
    return Forest(ids, depth, end, scored, node, parent, packed.ids[0, distinct], kept)


def forest_logps(
    model: nn.Module,
    config: PretrainedConfig,
    forest: Forest,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute ln softmax(z/τ) of each scored token, and the entropy before it, in one pass over the forest.

    Args:
        model: a causal one of transformers, in whatever wraps it; gradient flows into it.
        config: the model's, by which it chooses its attention; with TREE the mask goes in block by block.
        forest: of the rows.
        temperature: τ of the policy.
        entropies: whether these are asked for; they have no gradient.

    Returns:
        Two float (B, T), in nats, 0 where nothing is scored; the second None where it was not asked for.
    """
    kind = config._attn_implementation
    blocks = {"blocks": ancestor_blocks(forest.end)} if kind == TREE else {}
    output = model(
        input_ids=forest.ids,
        attention_mask=ancestor_mask_for(kind, forest.end, next(model.parameters()).dtype),
        position_ids=forest.depth,
        use_cache=False,
        logits_to_keep=forest.kept,
        **blocks,
    )
    logits = output.logits[0]  # (U, V)
    # bfloat16 is too coarse for a softmax
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logps = logits.log_softmax(dim=-1)  # (U, V)
    found = _rows(logps[forest.parent, forest.token], forest)
    if not entropies:
        return found, None
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(dim=-1)  # (U,)
    return found, _rows(entropy[forest.parent], forest)


def _rows(values: Tensor, forest: Forest) -> Tensor:
    """Give every scored token the value of its node: (nodes,) → (B, T), 0 elsewhere."""
    rows = torch.zeros(forest.scored.shape, dtype=values.dtype, device=values.device)
    return rows.masked_scatter(forest.scored, values[forest.node])


def forest_cost(forest: Forest, costs: ForwardCosts) -> float:
    """What the pass over a forest costs, in FLOPs of a linear layer, by its shapes alone."""
    masks = [mask for _, mask in ancestor_blocks(forest.end)]
    return costs.of(
        tokens=forest.ids.numel(),
        scored=len(forest.kept),
        pairs=sum(mask.numel() for mask in masks),
        blocks=len(masks),
    )


def rows_cost(attention_mask: Tensor, T: int, costs: ForwardCosts) -> float:
    """What TRL's pass over padded rows costs, in the same unit.

    Args:
        attention_mask: (B, S).
        T: tokens at the end of a row that are scored.
        costs: the model's.
    """
    B, S = attention_mask.shape
    return costs.of(tokens=B * S, scored=B * T, pairs=B * S * S)
