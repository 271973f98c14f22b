"""ln π_θ of sampled completions with gradient, three ways that give the same numbers, and which one pays.

    padded   every completion with its prompt before it, as rows of one length
    shared   each prompt once; its keys and values serve the G completions, which are rows
    packed   each token of the tree once (`minigrpo.packing`), under a mask of ancestors

Shapes: P prompts, L prompt tokens, G completions of a group, T tokens, N tokens of a packed tree, H hidden units.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minigrpo.llm.models import reason_of
from minigrpo.llm.sampling import (
    Samples,
    cache_argument,
    completion_logps,
    context_of,
    layer_configs,
    positions,
    rows_of,
    window_of,
)
from minigrpo.llm.settings import Settings
from minigrpo.losses import token_logps
from minigrpo.packing import (
    PackedGroups,
    ancestor_blocks,
    ancestor_mask,
    ancestor_rule,
    inner_tokens,
    pack,
    unpack,
)

TREE = "tree"  # the name of `tree_attention` in transformers
LOGITS_AT_ONCE = 2**25  # 128 MB in float32
FORWARDS = ("padded", "shared", "packed")
# Fitted by benchmarks/packing.py: operations of a linear layer in the time, forward and back, of …
ATTENTION = 2.7  # … one operation in the attention
LAYER = 2.7e8  # … a layer that is called for nothing
BLOCK = 5.4e7  # … one more block of queries in a layer
AGREEMENT = {"float32": 1e-3, "bfloat16": 0.5}  # nats, on random tokens, where a wrong mask is off by more than 1


def padded_logps(model: PreTrainedModel, samples: Samples, *, temperature: float = 1.0) -> Tensor:
    """Compute the log-probs in one pass over P·G rows of L + T tokens.

    Returns: float32 (P, G, T) in nats, 0 where masked.
    """
    P, G, T = samples.completion_ids.shape
    ids, mask = (x[:, :-1] for x in rows_of(samples))  # (P·G, L + T − 1), the last token predicts nothing
    hidden = model.base_model(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
    ).last_hidden_state
    return _logps_of_rows(model, hidden[:, -T:].view(P, G, T, -1), samples, temperature)


def shared_logps(model: PreTrainedModel, samples: Samples, *, temperature: float = 1.0) -> Tensor:
    """Compute the log-probs with one pass over the prompts and one over the completions, which see its cache.

    Returns: float32 (P, G, T) in nats, 0 where masked. Not for gradient checkpointing, which drops the cache.
    """
    P, G, T = samples.completion_ids.shape
    cache = DynamicCache(config=model.config)
    cached = {cache_argument(model.base_model.forward): cache, "use_cache": True}
    mask = samples.prompt_mask
    prompt = model.base_model(
        input_ids=samples.prompt_ids, attention_mask=mask.long(), position_ids=positions(mask), **cached
    ).last_hidden_state
    hidden = prompt[:, -1:].unsqueeze(1).expand(P, G, 1, -1)  # predicts each completion's first token
    if T > 1:
        cache.batch_repeat_interleave(G)
        seen = torch.cat([mask.repeat_interleave(G, dim=0), samples.completion_mask.flatten(0, 1)[:, :-1]], dim=1)
        completion = model.base_model(
            input_ids=samples.completion_ids.flatten(0, 1)[:, :-1],
            attention_mask=seen.long(),
            position_ids=positions(seen)[:, mask.shape[1] :],
            **cached,
        ).last_hidden_state
        hidden = torch.cat([hidden, completion.view(P, G, T - 1, -1)], dim=2)
    return _logps_of_rows(model, hidden, samples, temperature)


def packed_logps(model: PreTrainedModel, packed: PackedGroups, *, temperature: float = 1.0) -> Tensor:
    """Compute the log-prob of every node of the trees in one pass over P sequences of M tokens, the inner ones.

    Returns: float32 (P, N) in nats, 0 where there is no node.
    Raises: ValueError for a model without position ids, or a path longer than its context.
    """
    check_positions(model)
    longest, (context, words) = int(packed.depth.max()) + 1, context_of(model.config)
    if longest > context:  # by its depth: how long the packed sequence is makes no difference
        raise ValueError(
            f"packed has a path of {longest} tokens, which must fit into {words}: shorten prompt or completions"
        )
    ids, depth, end, parent = inner_tokens(packed)
    blocks = {"blocks": ancestor_blocks(end)} if model.config._attn_implementation == TREE else {}
    hidden = model.base_model(
        input_ids=ids, attention_mask=_mask_of(model, end), position_ids=depth, use_cache=False, **blocks
    ).last_hidden_state  # (P, M, H)
    node = packed.multiplicity > 0
    parents = hidden[node.nonzero()[:, 0], parent[node]]  # (nodes, H)
    logps = chosen_logps(model, parents, packed.ids[node], temperature)
    return torch.zeros(node.shape, dtype=logps.dtype, device=logps.device).masked_scatter(node, logps)


def _mask_of(model: PreTrainedModel, end: Tensor) -> Tensor | BlockMask:
    """The mask of ancestors as the model's attention takes it, (P, 1, M, M)."""
    kind = model.config._attn_implementation
    if kind == "flex_attention":
        P, M = end.shape
        return create_block_mask(ancestor_rule(end), P, None, M, M, device=end.device)
    mask = ancestor_mask(end).unsqueeze(1)
    if kind == "eager":
        return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    return mask


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    blocks: Sequence[tuple[Tensor, Tensor]] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa attention; for a packed tree part by part, each with the keys of `ancestor_blocks`."""
    if not blocks:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    parts = [
        sdpa_attention_forward(module, part, key[:, :, keys], value[:, :, keys], mask, **options)[0]
        for part, (keys, mask) in zip(query.chunk(len(blocks), dim=2), blocks, strict=True)
    ]
    return torch.cat(parts, dim=1), None


AttentionInterface.register(TREE, tree_attention)
AttentionMaskInterface.register(TREE, sdpa_mask)


def chosen_logps(model: PreTrainedModel, hidden: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """ln π of tokens (n,) from the hidden states (n, H) before them; never more logits at once than LOGITS_AT_ONCE."""
    head, finish = model.get_output_embeddings(), _after_head(model, temperature or 1.0)

    def logps(hidden: Tensor, ids: Tensor) -> Tensor:
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a softmax
        return token_logps(finish(logits), ids)

    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(ids) <= size:
        return logps(hidden, ids)
    parts = zip(hidden.split(size), ids.split(size), strict=True)
    return torch.cat([checkpoint(logps, *part, use_reentrant=False) for part in parts])  # logits are made again


def _after_head(model: PreTrainedModel, temperature: float) -> Callable[[Tensor], Tensor]:
    """What is done to the logits after the head: Gemma's cap, Cohere's scale, Granite's divisor, the temperature."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    if cap:
        return lambda logits: cap / temperature * torch.tanh(logits * (factor / cap))
    factor /= temperature
    return lambda logits: logits if factor == 1 else logits * factor  # a pass over all of them is dear


def _logps_of_rows(model: PreTrainedModel, hidden: Tensor, samples: Samples, temperature: float) -> Tensor:
    """Log-probs (P, G, T), 0 where masked, from the hidden states (P, G, T, H) before each token."""
    mask = samples.completion_mask
    logps = chosen_logps(model, hidden[mask], samples.completion_ids[mask], temperature)
    return torch.zeros(mask.shape, dtype=logps.dtype, device=logps.device).masked_scatter(mask, logps)


def micro_batches(samples: Samples, groups: Tensor, rows: int) -> Iterator[tuple[Tensor, slice]]:
    """Cut a batch into parts of at most `rows` completions: whole groups, or a share of one group's completions.

    Args: groups int (P′,), those to take. Yields: groups and completions of a part.
    """
    G = samples.completion_ids.shape[1]
    for part in groups.split(max(1, rows // G)):
        for start in range(0, G, rows if rows < G else G):
            yield part, slice(start, min(start + rows, G))


def select(samples: Samples, groups: Tensor, completions: slice) -> Samples:
    """Keep some groups and of these some completions, without the padding that none of them needs."""
    prompt_ids, prompt_mask = samples.prompt_ids[groups], samples.prompt_mask[groups]
    taken = (samples.completion_ids, samples.completion_mask, samples.old_logps)
    ids, mask, old_logps = (tensor[groups][:, completions] for tensor in taken)
    L, T = prompt_mask.sum(dim=1).max(), mask.sum(dim=2).max()
    return Samples(prompt_ids[:, -L:], prompt_mask[:, -L:], ids[..., :T], mask[..., :T], old_logps[..., :T])


@dataclass(frozen=True)
class Costs:
    """What a pass of a model costs, in operations of its linear layers (a multiplication and an addition are two).

    cost = token · tokens + scored · tokens whose log-prob is asked + pair · pairs in the attention + call · passes
           + block · blocks of queries beyond the first
    """

    token: float
    scored: float
    pair: float
    call: float
    block: float = 0.0  # runs of an earlier version wrote none


def costs_of(model: PreTrainedModel) -> Costs:
    """Read a model's costs off its sizes and three measured constants."""
    config = model.config.get_text_config()
    widths = [
        layer.num_attention_heads * (getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)
        for layer in layer_configs(model)
    ]
    embeddings = model.get_input_embeddings().weight.numel()
    return Costs(
        token=2.0 * (sum(weight.numel() for weight in model.base_model.parameters()) - embeddings),
        scored=2.0 * model.get_output_embeddings().weight.numel(),
        pair=ATTENTION * 4 * sum(widths),
        call=LAYER * config.num_hidden_layers,
        block=BLOCK * config.num_hidden_layers,
    )


def cost(way: str, samples: Samples, packed: PackedGroups, costs: Costs) -> float:
    """The cost of one of FORWARDS for a batch, from its shapes alone."""
    P, L = samples.prompt_ids.shape
    G, T = samples.completion_ids.shape[1], samples.completion_ids.shape[2] - 1  # the last token predicts nothing
    scored, blocks = int(samples.completion_mask.sum()), 1
    if way == "packed":
        end = inner_tokens(packed)[2]
        tokens, passes, scored = end.numel(), 1, int((packed.multiplicity > 0).sum())
        masks = [mask for _, mask in ancestor_blocks(end)]
        pairs, blocks = sum(mask.numel() for mask in masks), len(masks)
    elif way == "shared":
        tokens, pairs, passes = P * (L + G * T), P * (L * L + G * T * (L + T)), 2
    else:
        tokens, pairs, passes = P * G * (L + T), P * G * (L + T) ** 2, 1
    work = costs.token * tokens + costs.scored * scored + costs.pair * pairs
    return work + costs.call * passes + costs.block * (blocks - 1)


def choose(
    samples: Samples, packed: PackedGroups, *, costs: Costs, ways: tuple[str, ...], window: float = math.inf
) -> str:
    """Name the cheapest of some ways for a batch; padded where the model's window would matter."""
    if samples.prompt_ids.shape[1] + samples.completion_ids.shape[2] > window:
        return "padded"
    return min(ways, key=lambda way: cost(way, samples, packed, costs))


def ways_of(model: PreTrainedModel, settings: Settings) -> tuple[tuple[str, ...], str]:
    """Name the ways in which a run may compute its updates, and say why not the one asked for ("" for no reason).

    A model is trained padded where its kind speaks against the others, or where their log-probs of two small groups of
    random tokens differ from the padded ones. The groups are the same for every run, and so is the answer.

    Raises: ValueError for a model whose log-probs can't be computed here at all, or are NaN.
    """
    check_positions(model)
    samples, limit = probe(model), AGREEMENT[settings.dtype]
    with torch.no_grad():
        expected = completion_logps(model, samples, slice(None)).view_as(samples.old_logps)
        gap = _gap(padded_logps(model, samples), expected, samples)
    if math.isnan(gap):
        raise ValueError(f"{type(model).__name__} gives log-probs that are no numbers: its weights may be broken")
    if gap > limit:
        raise ValueError(
            f"{type(model).__name__} does more to its logits than its head, in a way unknown here: log-probs differ by "
            f"{gap:.1g} nats"
        )
    ways, reason = ("padded",), ""
    if settings.update != "padded":
        ways, reason = _fitting(model, settings, samples)
    if settings.update in ("auto", "padded"):
        return ways, reason
    return ((settings.update,), "") if settings.update in ways else (("padded",), reason)


def check_positions(model: PreTrainedModel) -> None:
    """Require a model with a body, told where tokens stand, that sees them by attention alone. Raises ValueError."""
    if model.base_model is model:
        raise ValueError(f"{type(model).__name__} can't be run without its head: take another model")
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters or model._is_stateful:
        raise ValueError(
            f"{type(model).__name__} takes no position ids or keeps a state: take a model of attention layers"
        )


def _fitting(model: PreTrainedModel, settings: Settings, samples: Samples) -> tuple[tuple[str, ...], str]:
    """The ways that a model's kind allows, and in which it agrees with itself."""
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or []), *(getattr(config, "attention_layers", None) or [])}
    other = kinds - {"full_attention", "sliding_attention", "global"}
    if other:
        return ("padded",), f"the model has layers of another kind than full attention: {', '.join(sorted(other))}"
    if model.config._attn_implementation not in ("sdpa", TREE, "eager", "flex_attention"):
        return ("padded",), f"attention {model.config._attn_implementation!r} takes no mask of ancestors"
    if samples.prompt_ids.shape[1] + samples.completion_ids.shape[2] > window_of(model):
        return ("padded",), f"the model's sliding window of {window_of(model)} tokens is too short"
    if settings.lora_dropout or draws_dropout(model, samples):  # new adapters add nothing yet, with dropout or without
        return ("padded",), "dropout is active, and draws for each row"
    # The cache that is to be shared is dropped under gradient checkpointing.
    ways = tuple(way for way in FORWARDS if way != "shared" or not settings.gradient_checkpointing)
    limit = AGREEMENT[settings.dtype]
    try:
        gap = disagreement(model, samples, ways)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError) as error:  # what a model says of a mask it can't read
        return ("padded",), f"the model takes no mask of ancestors ({reason_of(error)})"
    if not gap <= limit:  # not even where it is NaN
        return ("padded",), f"the ways' log-probs of one group differ by {gap:.1g} nats, above {limit:g}"
    return ways, "gradient checkpointing drops the cache that is to be shared" * ("shared" not in ways)


def probe(model: PreTrainedModel) -> Samples:
    """Two small groups of random tokens, with prompts of unequal length and completions that part and end early."""
    generator = torch.Generator().manual_seed(0)
    prompts, ids = (
        torch.randint(0, model.config.get_text_config().vocab_size, shape, generator=generator)
        for shape in ((2, 5), (2, 4, 7))
    )
    ids[:, 1, :3], ids[:, 2, :1] = ids[:, 0, :3], ids[:, 0, :1]
    mask = torch.arange(7) < torch.tensor([[7, 6, 7, 4], [5, 7, 7, 7]]).unsqueeze(2)
    prompt_mask = torch.arange(5) >= torch.tensor([[0], [2]])
    device = model.device
    return Samples(*(x.to(device) for x in (prompts, prompt_mask, ids, mask, torch.zeros(2, 4, 7))))


@torch.no_grad()
def draws_dropout(model: PreTrainedModel, samples: Samples) -> bool:
    """Whether the model in training gives other log-probs each time."""
    was_training = model.training
    model.train()
    first, second = padded_logps(model, samples), padded_logps(model, samples)
    model.train(was_training)
    return not torch.equal(first, second)


@torch.no_grad()
def disagreement(model: PreTrainedModel, samples: Samples, ways: Sequence[str]) -> float:
    """The largest difference in nats between padded log-probs and those of other ways; NaN where one is NaN."""
    packed = pack(samples.prompt_ids, samples.prompt_mask, samples.completion_ids, samples.completion_mask)
    expected, gaps = padded_logps(model, samples), [0.0]
    if "shared" in ways:
        gaps.append(_gap(shared_logps(model, samples), expected, samples))
    if "packed" in ways:
        gaps.append(_gap(unpack(packed_logps(model, packed), packed), expected, samples))
    return torch.tensor(gaps).max().item()  # Python's max would pass over NaN


def _gap(logps: Tensor, expected: Tensor, samples: Samples) -> float:
    """The largest difference of log-probs (P, G, T), NaN where there is one."""
    return (logps - expected)[samples.completion_mask].abs().max().item()
