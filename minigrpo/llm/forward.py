"""The forwards: ways to compute ln π_θ of sampled completions, with gradient, that give the same numbers.

    padded   every completion with its prompt before it, as rows of one length
    shared   each prompt once; its keys and values serve the G completions, which are rows
    packed   each token of the tree once (`minigrpo.packing`), under a mask of ancestors

Each is an entry of FORWARDS; a new way is a new entry. `agreement` decides which of them a model may use,
`cheapest_forward` which of those a batch takes.

Shapes: P prompts, L prompt tokens, G completions of a group, T tokens, N tokens of a packed tree, M of them inner ones,
H hidden units.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minigrpo.llm.sampling import (
    Samples,
    cache_argument,
    context_of,
    layer_configs,
    positions,
    rows_of,
)
from minigrpo.losses import policy_loss, token_logps
from minigrpo.packing import (
    PackedGroups,
    ancestor_blocks,
    ancestor_mask,
    ancestor_rule,
    inner_tokens,
    pack,
    tree_loss,
    unpack,
)

# names in transformers: of `tree_attention`, and of `flex_tree_attention`
TREE, FLEX = "tree", "flex_tree"
# tokens of a packed sequence from which FlexAttention is used where it was asked for; below about so many it was
# reported to lose (0.72 times as fast at 512 tokens, 1.31 times at 2,048, on an H200). Not measured here: docs/gpu.md
FLEX_FROM = 1024
MAX_LOGITS = 2**25  # computed at once: 128 MB in float32

# The cost model counts in FLOPs of a linear layer, forward and back. Fitted by benchmarks/packing.py:
ATTENTION_FLOP = 1.9  # what a FLOP of the attention costs
# what a pass costs however few tokens it has, in tokens: weights are read, gradients written
PASS_TOKENS = 105
BLOCK_UNIT = 1.7e5  # what one more block of queries costs for each unit of the heads' width: keys are gathered


class Forward(NamedTuple):
    """One way to compute log-probs and their loss. A layout is what it works on: Samples, or a tree made of them."""

    layout: Callable[[Samples], Any]
    # (model, layout, *, temperature) → (P, G, T), or (P, N) of the nodes of a tree
    logps: Callable[..., Tensor]
    # (logps, old_logps, advantages, step_weights, layout, **options) → scalar
    loss: Callable[..., Tensor]
    rows: Callable[[Tensor, Any], Tensor]  # (logps, layout) → (P, G, T)
    cost: Callable[[Any, ForwardCosts], float]  # (layout, costs) → FLOPs of a linear layer
    needs_cache: bool = False  # which gradient checkpointing drops


# ---------------------------------------------------------------------------------------------------------------------
# Log-probs
# ---------------------------------------------------------------------------------------------------------------------


def padded_logps(model: PreTrainedModel, samples: Samples, *, temperature: float = 1.0) -> Tensor:
    """Compute ln softmax(z/τ) of each token in one pass over P·G rows of L + T tokens.

    Args:
        model: without adapters around it; gradient flows into it.
        samples: of P prompts.
        temperature: τ of the policy; 0 means 1.

    Returns:
        float32 (P, G, T) in nats, 0 where masked.
    """
    P, G, T = samples.completion_ids.shape
    ids, mask = rows_of(samples)
    ids, mask = ids[:, :-1], mask[:, :-1]  # (P·G, L + T − 1): the last token predicts nothing
    output = model.base_model(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
    )
    hidden = output.last_hidden_state[:, -T:].view(P, G, T, -1)
    return _logps_of_rows(model, hidden, samples, temperature)


def shared_logps(model: PreTrainedModel, samples: Samples, *, temperature: float = 1.0) -> Tensor:
    """Compute ln softmax(z/τ) with one pass over the prompts and one over the completions, which see its cache.

    Args:
        model: without adapters around it, and without gradient checkpointing, which drops the cache.
        samples: of P prompts.
        temperature: τ of the policy; 0 means 1.

    Returns:
        float32 (P, G, T) in nats, 0 where masked.
    """
    P, G, T = samples.completion_ids.shape
    cache = DynamicCache(config=model.config)
    cached = {cache_argument(model.base_model.forward): cache, "use_cache": True}
    mask = samples.prompt_mask
    prompt = model.base_model(
        input_ids=samples.prompt_ids,
        attention_mask=mask.long(),
        position_ids=positions(mask),
        **cached,
    )
    # The prompt's last token predicts each completion's first.
    hidden = prompt.last_hidden_state[:, -1:].unsqueeze(1).expand(P, G, 1, -1)
    if T > 1:
        cache.batch_repeat_interleave(G)  # P prompts → P·G rows
        prompts_seen = mask.repeat_interleave(G, dim=0)  # (P·G, L)
        completions_seen = samples.completion_mask.flatten(0, 1)[:, :-1]  # (P·G, T − 1)
        seen = torch.cat([prompts_seen, completions_seen], dim=1)
        completions = model.base_model(
            input_ids=samples.completion_ids.flatten(0, 1)[:, :-1],
            attention_mask=seen.long(),
            position_ids=positions(seen)[:, mask.shape[1] :],
            **cached,
        )
        rest = completions.last_hidden_state.view(P, G, T - 1, -1)
        hidden = torch.cat([hidden, rest], dim=2)  # (P, G, T, H)
    return _logps_of_rows(model, hidden, samples, temperature)


def packed_logps(
    model: PreTrainedModel, packed: PackedGroups, *, temperature: float = 1.0
) -> Tensor:
    """Compute ln softmax(z/τ) of every node of the trees in one pass over P sequences of M tokens, the inner ones.

    Args:
        model: without adapters around it.
        packed: the trees of P prompts.
        temperature: τ of the policy; 0 means 1.

    Returns:
        float32 (P, N) in nats, 0 where there is no node.

    Raises:
        ValueError: for a model without position ids, or a path longer than its context.
    """
    check_positions(model)
    _check_depth(model, packed)
    ids, depth, end, parent = inner_tokens(packed)
    output = model.base_model(
        input_ids=ids,
        position_ids=depth,
        use_cache=False,
        **ancestors_seen(model.config._attn_implementation, end, model.dtype),
    )
    node = packed.multiplicity > 0  # (P, N)
    tree = node.nonzero()[:, 0]  # (nodes,): which of the P trees each node stands in
    parents = output.last_hidden_state[tree, parent[node]]  # (nodes, H)
    logps = chosen_logps(model, parents, packed.ids[node], temperature)
    return torch.zeros(node.shape, dtype=logps.dtype, device=logps.device).masked_scatter(
        node, logps
    )


def check_positions(model: PreTrainedModel) -> None:
    """Require a model with a body, told where tokens stand, that sees them by attention alone. Raises: ValueError."""
    if model.base_model is model:
        raise ValueError(
            f"{type(model).__name__} can't be run without its head: take another model"
        )
    if (
        "position_ids" not in inspect.signature(model.base_model.forward).parameters
        or model._is_stateful
    ):
        raise ValueError(
            f"{type(model).__name__} takes no position ids or keeps a state: take a model of attention layers"
        )


def _check_depth(model: PreTrainedModel, packed: PackedGroups) -> None:
    """Require that the longest path fits; how long the packed sequence is makes no difference."""
    longest = int(packed.depth.max()) + 1
    context, words = context_of(model.config)
    if longest > context:
        raise ValueError(
            f"packed has a path of {longest} tokens, which must fit into {words}: shorten prompt or completions"
        )


def chosen_logps(model: PreTrainedModel, hidden: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Compute ln π of tokens from the hidden states before them, never more than MAX_LOGITS logits at once.

    Args:
        model: whose head makes the logits.
        hidden: float (n, H).
        ids: int (n,), the tokens.
        temperature: of the policy; 0 means 1.

    Returns:
        float32, or float64 for a model of it, (n,) in nats.
    """
    head = model.get_output_embeddings()
    finish = _after_head(model, temperature or 1.0)

    def logps(hidden: Tensor, ids: Tensor) -> Tensor:
        logits = head(hidden)
        # bfloat16 is too coarse for a softmax
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return token_logps(finish(logits), ids)

    size = max(1, MAX_LOGITS // head.weight.shape[0])  # tokens at a time
    if len(ids) <= size:
        return logps(hidden, ids)
    parts = zip(hidden.split(size), ids.split(size), strict=True)
    # logits are made again
    return torch.cat([checkpoint(logps, *part, use_reentrant=False) for part in parts])


def _after_head(model: PreTrainedModel, temperature: float) -> Callable[[Tensor], Tensor]:
    """What is done to the logits after the head: Gemma's cap, Cohere's scale, Granite's divisor, the temperature."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    factor = scale / divisor
    if cap:
        return lambda logits: cap / temperature * torch.tanh(logits * (factor / cap))
    factor /= temperature
    # a pass over all of them is dear
    return lambda logits: logits if factor == 1 else logits * factor


def _logps_of_rows(
    model: PreTrainedModel, hidden: Tensor, samples: Samples, temperature: float
) -> Tensor:
    """Log-probs (P, G, T), 0 where masked, from the hidden states (P, G, T, H) before each token."""
    mask = samples.completion_mask
    logps = chosen_logps(model, hidden[mask], samples.completion_ids[mask], temperature)
    return torch.zeros(mask.shape, dtype=logps.dtype, device=logps.device).masked_scatter(
        mask, logps
    )


# ---------------------------------------------------------------------------------------------------------------------
# Attention over a tree
# ---------------------------------------------------------------------------------------------------------------------


def ancestors_seen(kind: str, end: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """The mask of ancestors as a kind of attention takes it, in the arguments of a model.

    Args:
        kind: of attention, as transformers names it, TREE or FLEX.
        end: int (P, M), as in PackedGroups.
        dtype: of the model.

    Returns: "attention_mask" (P, 1, M, M), and for TREE "blocks".
    """
    P, M = end.shape
    if kind == "flex_attention" or (kind == FLEX and M >= FLEX_FROM):
        rule = create_block_mask(ancestor_rule(end), P, None, M, M, device=end.device)
        return {"attention_mask": rule}
    mask = ancestor_mask(end).unsqueeze(1)
    if kind == "eager":  # it adds its mask to the scores
        added = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return {"attention_mask": added}
    blocks = {"blocks": ancestor_blocks(end)} if kind in (TREE, FLEX) else {}
    return {"attention_mask": mask} | blocks


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    blocks: Sequence[tuple[Tensor, Tensor]] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa attention; for a packed tree part by part, each with the keys of `ancestor_blocks`.

    Args:
        module: the attention layer.
        query: float (P, heads, M, head size).
        key: float (P, key heads, M, head size).
        value: as the key.
        attention_mask: for all queries at once, used where there are no blocks.
        blocks: of `ancestor_blocks`: for each run of queries the keys that it sees, and its mask.
        options: what transformers hands on.
    """
    if not blocks:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    parts = [
        sdpa_attention_forward(module, part, key[:, :, keys], value[:, :, keys], mask, **options)[0]
        for part, (keys, mask) in zip(query.chunk(len(blocks), dim=2), blocks, strict=True)
    ]
    return torch.cat(parts, dim=1), None


def flex_tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """torch's FlexAttention where the mask is one of its own, else `tree_attention`.

    Args: as `tree_attention`.
    """
    attend = flex_attention_forward if isinstance(attention_mask, BlockMask) else tree_attention
    return attend(module, query, key, value, attention_mask, **options)


AttentionInterface.register(TREE, tree_attention)
AttentionInterface.register(FLEX, flex_tree_attention)
for name in (TREE, FLEX):
    AttentionMaskInterface.register(name, sdpa_mask)


# ---------------------------------------------------------------------------------------------------------------------
# Cost
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardCosts:
    """What a forward and backward pass of a model costs, in FLOPs of its linear layers.

    cost = token · tokens + scored · tokens whose log-prob is asked + pair · pairs in the attention
           + call · passes + block · blocks of queries beyond the first
    """

    token: float
    scored: float
    pair: float
    call: float
    block: float = 0.0  # runs of an earlier version wrote none

    def of(
        self, *, tokens: int, scored: int, pairs: int, passes: int = 1, blocks: int = 1
    ) -> float:
        """The cost of some tokens, pairs, passes and blocks.

        Args:
            tokens: that go through the layers.
            scored: whose log-prob is asked.
            pairs: of queries and keys in the attention.
            passes: of the whole model.
            blocks: of queries.
        """
        work = self.token * tokens + self.scored * scored + self.pair * pairs
        return work + self.call * passes + self.block * (blocks - 1)


def forward_costs(model: PreTrainedModel) -> ForwardCosts:
    """Read a model's costs off its sizes and three measured constants."""
    body = sum(weight.numel() for weight in model.base_model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()  # looked up, not multiplied
    head = model.get_output_embeddings().weight.numel()
    width = sum(_width_of_heads(layer) for layer in layer_configs(model))  # over all layers
    token = 2.0 * (body - embeddings)
    return ForwardCosts(
        token=token,
        scored=2.0 * head,
        # a pair takes two products over the heads' width, one for its score and one for its value
        pair=ATTENTION_FLOP * 4 * width,
        call=PASS_TOKENS * token,
        block=BLOCK_UNIT * width,
    )


def _width_of_heads(layer: Any) -> int:
    """Heads times their size, by the configuration of a layer."""
    size = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
    return layer.num_attention_heads * size


def padded_cost(samples: Samples, costs: ForwardCosts) -> float:
    """The cost of `padded_logps`, from the shapes alone."""
    P, G, L, T = _sizes(samples)
    scored = int(samples.completion_mask.sum())
    return costs.of(tokens=P * G * (L + T), scored=scored, pairs=P * G * (L + T) ** 2)


def shared_cost(samples: Samples, costs: ForwardCosts) -> float:
    """The cost of `shared_logps`, from the shapes alone."""
    P, G, L, T = _sizes(samples)
    scored = int(samples.completion_mask.sum())
    pairs = P * (L * L + G * T * (L + T))
    return costs.of(tokens=P * (L + G * T), scored=scored, pairs=pairs, passes=2)


def packed_cost(packed: PackedGroups, costs: ForwardCosts) -> float:
    """The cost of `packed_logps`, from the shapes alone."""
    end = inner_tokens(packed)[2]
    masks = [mask for _, mask in ancestor_blocks(end)]
    return costs.of(
        tokens=end.numel(),
        scored=int((packed.multiplicity > 0).sum()),
        pairs=sum(mask.numel() for mask in masks),
        blocks=len(masks),
    )


def _sizes(samples: Samples) -> tuple[int, int, int, int]:
    """P, G, L and the T tokens that are run, as the last predicts nothing."""
    P, G, T = samples.completion_ids.shape
    return P, G, samples.prompt_ids.shape[1], T - 1


# ---------------------------------------------------------------------------------------------------------------------
# The entries
# ---------------------------------------------------------------------------------------------------------------------


def as_sampled(samples: Samples) -> Samples:
    """The layout of rows: the samples as they are."""
    return samples


def pack_samples(samples: Samples) -> PackedGroups:
    """The layout of a tree for each prompt."""
    return pack(
        samples.prompt_ids, samples.prompt_mask, samples.completion_ids, samples.completion_mask
    )


def rows_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    step_weights: Tensor,
    samples: Samples,
    **options: Any,
) -> Tensor:
    """`policy_loss` of log-probs (P, G, T).

    Args:
        logps: float (P, G, T), ln π_θ in nats.
        old_logps: float (P, G, T), ln π_old in nats.
        advantages: float (P, G, T).
        step_weights: float (P, G, T).
        samples: whose mask is used.
        options: of `policy_loss`.
    """
    return policy_loss(
        logps, old_logps, advantages, step_weights, samples.completion_mask, **options
    )


def as_rows(logps: Tensor, samples: Samples) -> Tensor:
    """Log-probs that are rows already."""
    return logps


FORWARDS: dict[str, Forward] = {
    "padded": Forward(as_sampled, padded_logps, rows_loss, as_rows, padded_cost),
    "shared": Forward(as_sampled, shared_logps, rows_loss, as_rows, shared_cost, needs_cache=True),
    "packed": Forward(pack_samples, packed_logps, tree_loss, unpack, packed_cost),
}


def forward_cost(name: str, samples: Samples, costs: ForwardCosts) -> float:
    """The cost of one of FORWARDS for a batch, from its shapes alone.

    Args:
        name: of FORWARDS.
        samples: the batch.
        costs: the model's.
    """
    forward = FORWARDS[name]
    return forward.cost(forward.layout(samples), costs)


def cheapest_forward(
    samples: Samples, costs: ForwardCosts, usable: Collection[str], *, window: float = math.inf
) -> tuple[str, Any]:
    """Choose the cheapest forward for a batch; the padded one where the model's window would matter.

    Args:
        samples: the batch.
        costs: the model's.
        usable: names of forwards that the model may use.
        window: tokens that its shortest sliding window spans.

    Returns:
        The name of one of FORWARDS, and its layout of the samples.
    """
    if samples.prompt_ids.shape[1] + samples.completion_ids.shape[2] > window:
        return "padded", FORWARDS["padded"].layout(samples)
    layouts = {name: FORWARDS[name].layout(samples) for name in usable}
    name = min(usable, key=lambda name: FORWARDS[name].cost(layouts[name], costs))
    return name, layouts[name]
