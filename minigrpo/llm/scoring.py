"""Prompts → samples → texts → rewards: how groups come about, in training, in evaluation and elsewhere.

Shapes: P prompts, G completions of a group, T tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigrpo.llm.models import eos_ids_of
from minigrpo.llm.prompts import encode_prompts
from minigrpo.llm.sampling import Samples, sample_completions
from minigrpo.llm.tasks import Task


@dataclass(frozen=True)
class Scored:
    """P groups of G completions with what the verifier said of them.

    samples: the tokens and their log-probs; texts: P·G, group by group; rewards: float (P, G), on the samples' device.
    """

    samples: Samples
    texts: list[str]
    rewards: Tensor


def score_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Mapping[str, Sequence[str]],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator,
) -> Scored:
    """Sample a group for each problem, and let the task's verifier reward each completion.

    Args:
        model: the policy, in evaluation mode; with adapters or without.
        tokenizer: its own, with a chat template.
        task: whose system prompt and reward are used.
        problems: "prompt" and "answer", P texts each.
        group_size: G.
        max_new_tokens: T at most.
        temperature: of the policy; 0 takes the likeliest token.
        top_p: of sampling, in (0, 1].
        generator: of the random numbers, on the CPU.

    Raises:
        ValueError: as `encode_prompts` and `sample_completions`.
    """
    eos_ids = eos_ids_of(model, tokenizer)
    samples = sample_completions(
        model,
        encode_prompts(tokenizer, problems["prompt"], task.system_prompt),
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        pad_id=tokenizer.pad_token_id,
        temperature=temperature,
        top_p=top_p,
        generator=generator,
    )
    texts = decode(tokenizer, samples.completion_ids, samples.completion_mask, eos_ids)
    # one a completion
    answers = [answer for answer in problems["answer"] for _ in range(group_size)]
    scores = [task.reward(text, answer) for text, answer in zip(texts, answers, strict=True)]
    rewards = torch.tensor(scores, device=samples.old_logps.device).view(-1, group_size)  # (P, G)
    return Scored(samples, texts, rewards)


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor, mask: Tensor, eos_ids: Collection[int] = ()
) -> list[str]:
    """Turn completions into texts, row by row, without special tokens.

    Args:
        tokenizer: the model's own.
        ids: int (…, T).
        mask: bool (…, T), True for the tokens of a completion.
        eos_ids: tokens that end a completion, special or not; they are left out.
    """
    lengths = mask.flatten(0, -2).sum(dim=-1).tolist()
    texts = []
    for row, length in zip(ids.flatten(0, -2).tolist(), lengths, strict=True):
        tokens = [token for token in row[:length] if token not in eos_ids]
        texts.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return texts


def first_group(update: int, problems: dict[str, list[str]], scored: Scored) -> dict[str, Any]:
    """The first group of an update, without padding, as a line of rollouts.jsonl.

    Args:
        update: its number.
        problems: P of them.
        scored: their groups.
    """
    lengths = scored.samples.completion_mask[0].sum(dim=-1).tolist()
    rows = zip(scored.samples.completion_ids[0].tolist(), lengths, strict=True)
    return {
        "update": update,
        "prompt": problems["prompt"][0],
        "completions": scored.texts[: len(lengths)],
        "completion_ids": [ids[:length] for ids, length in rows],
        "rewards": scored.rewards[0].tolist(),
    }
