"""Groups of completions from a language model: each distinct prefix once, a KV cache, log-probs kept.

The policy is π_θ = softmax(logits / temperature), in sampling and in training. Top-p narrows what is sampled but not
the log-probs that are kept, as in TRL: with top_p below 1 samples are slightly off-policy.

Shapes: P prompts, G completions of a group, L prompt tokens (padded on the left), T completion tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from minigrpo.losses import token_logps

MIN_SAVED = 64  # tokens: one more pass of the model costs about as much


@dataclass(frozen=True)
class Samples:
    """P groups of G completions with their prompts.

    prompt_ids: int (P, L), padded on the left; prompt_mask: bool (P, L); completion_ids: int (P, G, T), padded on the
    right, the EOS its last unmasked token; completion_mask: bool (P, G, T); old_logps: float (P, G, T), ln π_old of
    each token in nats, 0 where masked.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    old_logps: Tensor


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad token lists on the left: int (P, L) and bool (P, L). Raises: ValueError for an empty prompt."""
    if not all(len(prompt) for prompt in prompts) or not prompts:
        raise ValueError(
            f"prompts must each hold a token, got lengths {[len(prompt) for prompt in prompts]}"
        )
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
    return ids, torch.arange(longest) >= longest - lengths


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int,
    max_new_tokens: int,
    eos_ids: Collection[int],
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator,
) -> Samples:
    """Sample a group for each prompt, until an end or max_new_tokens; temperature 0 takes the likeliest token.

    The random numbers come from `generator` alone, one for each completion and token on the CPU, so that samples do
    not depend on the device's generator.

    Args:
        model: with adapters or without.
        prompts: P lists of token ids.
        group_size: G.
        max_new_tokens: T at most.
        eos_ids: tokens that end a completion; such a one is its last.
        pad_id: what stands where nothing was sampled.
        temperature: at least 0; 0 takes the likeliest token.
        top_p: in (0, 1]: of sampling.
        generator: on the CPU.

    Returns: Samples on the model's device. With temperature 0 the log-probs are those at temperature 1.

    Raises: ValueError for an empty prompt, options out of range, or more tokens than the model's context holds.
    """
    ids, mask = pad_prompts(prompts, pad_id)
    ids, mask = ids.to(model.device), mask.to(model.device)  # (P, L)
    check_sampling(model, ids.shape[1], group_size, max_new_tokens, temperature, top_p)
    # The model itself, inside its adapters if it has any.
    causal = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    if causal._is_stateful:  # the state would take in the padding, and is not reordered
        raise ValueError(f"{type(causal).__name__} keeps a state: take a model of attention layers")
    cache = DynamicCache(config=model.config)
    cached = {cache_argument(causal.forward): cache, "use_cache": True}

    # 1. Run the prompts.
    attention, logits = _run_prompts(model, prompts, ids, mask, cache, cached)  # (P, L), (P, V)
    place = attention.sum(dim=1, keepdim=True) - 1  # the position of the last token

    # 2. Sample. From here on the model's batch has a row for each distinct prefix: completions share one until they
    # part, as they share a process step, and what has ended leaves it.
    completions = len(prompts) * group_size
    unfinished = torch.arange(completions, device=model.device)
    prefix = unfinished // group_size  # the row on which each unfinished completion stands
    ends = torch.tensor(sorted(eos_ids), dtype=torch.long, device=model.device)
    tokens = torch.full((completions, max_new_tokens), pad_id, device=model.device)
    sampled = torch.zeros_like(tokens, dtype=torch.bool)
    logps = torch.zeros_like(tokens, dtype=torch.float32)
    for t in range(max_new_tokens):
        draw = torch.rand(completions, 1, generator=generator).to(model.device)[unfinished]
        log_policy = (logits.float() / (temperature or 1.0)).log_softmax(dim=-1)  # (prefixes, V)
        if temperature > 0:
            token = _draw(log_policy.exp(), prefix, draw, top_p)
        else:
            token = log_policy.argmax(dim=-1)[prefix]
        tokens[unfinished, t] = token
        sampled[unfinished, t] = True
        logps[unfinished, t] = log_policy[prefix, token]

        # What has ended leaves.
        goes_on = ~torch.isin(token, ends)
        unfinished = unfinished[goes_on]
        prefix = prefix[goes_on]
        token = token[goes_on]
        if t + 1 == max_new_tokens or len(unfinished) == 0:
            break

        # A row for each distinct pair of prefix and token, made of its parent's row.
        V = logits.shape[-1]
        longer, prefix = torch.unique(prefix * V + token, return_inverse=True)
        parent = longer // V
        token = longer % V
        as_it_is = torch.arange(len(logits), device=model.device)
        if not torch.equal(parent, as_it_is):
            cache.reorder_cache(parent)
        attention = F.pad(attention[parent], (0, 1), value=True)
        place = place[parent] + 1
        step = model(
            input_ids=token.unsqueeze(1),
            attention_mask=attention.long(),
            position_ids=place,
            **cached,
        )
        logits = step.logits[:, -1]  # (prefixes, V)

    shape = (len(prompts), group_size, t + 1)  # no longer than the longest completion
    return Samples(
        prompt_ids=ids,
        prompt_mask=mask,
        completion_ids=tokens[:, : t + 1].reshape(shape),
        completion_mask=sampled[:, : t + 1].reshape(shape),
        old_logps=logps[:, : t + 1].reshape(shape),
    )


def _run_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ids: Tensor,
    mask: Tensor,
    cache: DynamicCache,
    cached: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Fill the cache with the prompts, what all of them begin with in a pass of its own.

    Returns: which columns of the cache hold a token, bool (P, L); the logits of the first new tokens, (P, V).
    """
    start = shared_opening(model, prompts)
    if start:
        opening = torch.tensor(prompts[0][:start], device=model.device).unsqueeze(0)
        model(input_ids=opening, logits_to_keep=1, **cached)
        cache.batch_repeat_interleave(len(prompts))
    # A prompt's padding stands behind the opening, so the columns are: opening, padding, the prompt's own tokens.
    own = mask[:, : mask.shape[1] - start]
    attention = torch.cat([torch.ones_like(mask[:, :start]), own], dim=1)
    prefill = model(
        input_ids=ids[:, start:],
        attention_mask=attention.long(),
        position_ids=positions(attention)[:, start:],
        logits_to_keep=1,
        **cached,
    )
    return attention, prefill.logits[:, -1]


def completion_logps(
    model: PreTrainedModel, samples: Samples, rows: slice, *, temperature: float = 1.0
) -> Tensor:
    """Compute ln π_θ of every completion token in one plain forward pass, for some of the P·G rows.

    Args:
        model: gradient flows into it.
        samples: P groups.
        rows: which of the P·G completions, in order.
        temperature: that of the samples; 0 means 1.

    Returns: float (rows, T) in nats, float32; gradient flows into the model. Training has quicker ways: `forward`.
    """
    T = samples.completion_ids.shape[2]
    ids, mask = (x[rows] for x in rows_of(samples))
    output = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions(mask),
        use_cache=False,
        logits_to_keep=T + 1,
    )
    return token_logps(output.logits[:, :-1].float() / (temperature or 1.0), ids[:, -T:])


def rows_of(samples: Samples) -> tuple[Tensor, Tensor]:
    """Every completion with its prompt before it: ids int and mask bool, both (P·G, L + T)."""
    G = samples.completion_ids.shape[1]

    def joined(prompt: Tensor, completion: Tensor) -> Tensor:
        return torch.cat([prompt.repeat_interleave(G, dim=0), completion.flatten(0, 1)], dim=1)

    ids = joined(samples.prompt_ids, samples.completion_ids)
    mask = joined(samples.prompt_mask, samples.completion_mask)
    return ids, mask


def shared_opening(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all prompts share and that are worth a pass of their own.

    They are mostly the chat template's. 0 where they are too few to pay, or where the model has a sliding window, which
    would count the padding behind them.
    """
    first = prompts[0]
    shortest = min(map(len, prompts))
    differing = (t for t in range(shortest - 1) if any(prompt[t] != first[t] for prompt in prompts))
    start = next(differing, shortest - 1)
    saved = start * (len(prompts) - 1)
    return start if saved >= MIN_SAVED and window_of(model) == math.inf else 0


def layer_configs(model: nn.Module) -> Sequence[PretrainedConfig]:
    """The configuration of each layer: one for all in most models, and in all before transformers knew others."""
    config = model.config.get_text_config()
    return getattr(config, "per_layer_config", [config] * config.num_hidden_layers)


def window_of(model: nn.Module) -> float:
    """How many tokens a model's shortest sliding window spans, ∞ where it has none."""
    return min(
        getattr(config, "sliding_window", None) or math.inf for config in layer_configs(model)
    )


def context_of(config: PretrainedConfig) -> tuple[float, str]:
    """How many tokens a model may see (∞ where its configuration names no limit), and that in words.

    Under longrope it is the length up to which keys are rotated by one set of factors: beyond it those in a cache, and
    those of shorter rows in the same pass, would be rotated by the wrong one.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    # One for each kind of layer.
    ropes = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    switched = [part for part in ropes if part.get("rope_type") == "longrope"]
    switches = [part.get("original_max_position_embeddings", math.inf) for part in switched]
    context = getattr(config, "max_position_embeddings", None) or math.inf
    if min(switches, default=math.inf) < context:
        shortest = min(switches)
        return shortest, f"the {shortest} tokens up to which the model's longrope keeps its factors"
    return context, f"the model's context of {context}"


def cache_argument(forward: Callable[..., Any]) -> str:
    """What a model's forward calls its cache: transformers has renamed it."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def positions(mask: Tensor) -> Tensor:
    """Position of each token among the unmasked of its row: bool (B, L) → int (B, L); 0 where padded on the left."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def check_sampling(
    model: PreTrainedModel,
    prompt_tokens: int,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> None:
    """Refuse options out of range with a ValueError that names them.

    Args:
        model: whose context counts.
        prompt_tokens: of the longest prompt.
        group_size: at least 1.
        max_new_tokens: at least 1.
        temperature: at least 0.
        top_p: in (0, 1].
    """
    for name, value in (("group_size", group_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    check_context(model, prompt_tokens, max_new_tokens)


def check_context(
    model: nn.Module, prompt_tokens: int, max_new_tokens: int, where: str = ""
) -> None:
    """Require that a prompt leaves room for an answer. Raises: ValueError that begins with `where`.

    Args:
        model: whose context counts.
        prompt_tokens: of a prompt.
        max_new_tokens: of its answer at most.
        where: how the message begins.
    """
    context, words = context_of(model.config)
    if prompt_tokens + max_new_tokens > context:
        raise ValueError(
            f"{where}prompt of {prompt_tokens} tokens and max_new_tokens {max_new_tokens} must fit into {words}: "
            "shorten the prompt or max_new_tokens"
        )


def _draw(policy: Tensor, row: Tensor, draw: Tensor, top_p: float) -> Tensor:
    """Draw a token from a row of a policy by each uniform number: float (B, V), int (N,), float (N, 1) → int (N,).

    With top_p only the likeliest tokens that together hold top_p of the probability can be drawn.
    """
    order = None
    if top_p < 1:
        policy, order = policy.sort(dim=-1, descending=True)
        policy = torch.where(policy.cumsum(dim=-1) - policy < top_p, policy, 0)
    cumulated = policy.cumsum(dim=-1)[row]  # (N, V)
    token = torch.searchsorted(cumulated, draw * cumulated[:, -1:], right=True)
    token = token.clamp(max=policy.shape[-1] - 1)
    if order is not None:
        token = order[row].gather(1, token)
    return token.squeeze(1)
