"""Accuracy on held-out problems, greedy or sampled, with Wilson intervals."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigrpo.llm.models import eos_ids_of
from minigrpo.llm.prompts import check_prompts, encode_prompts
from minigrpo.llm.sampling import sample_completions
from minigrpo.llm.tasks import Task
from minigrpo.stats import pass_at_k, wilson


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, mask: torch.Tensor, eos_ids: Collection[int] = ()
) -> list[str]:
    """Turn completions (…, T) into texts, row by row, without special tokens and those that end a completion."""
    rows = zip(ids.flatten(0, -2).tolist(), mask.flatten(0, -2).sum(dim=-1).tolist(), strict=True)
    kept = ([token for token in row[:length] if token not in eos_ids] for row, length in rows)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in kept]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    max_new_tokens: int,
    problems: int | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    batch: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Solve held-out problems and count.

        accuracy = share of right completions;   pass@k = mean over problems of 1 − C(n − c, k) / C(n, k)

    Args: problems: how many of the held-out ones, all where None; samples: n completions of each (1 where temperature
        is 0, greedy); batch: completions at a time.
    Returns: accuracy with its 95% Wilson interval (ci_low, ci_high), problems, samples, and pass@k with its own
        (pass@k_ci_low, pass@k_ci_high) for k = 1, 2, 4, … n. Intervals count problems, not completions, as those of
        one problem are not independent: where n is above 1 they are a little too wide.
    Raises: ValueError for options out of range, or a prompt that leaves no room for an answer.
    Source: pass@k of Chen et al. 2021, arXiv 2107.03374; interval of Wilson 1927.
    """
    if samples < 1 or (temperature == 0 and samples > 1):
        raise ValueError(f"samples must be at least 1, and 1 where temperature is 0 (greedy), got {samples}")
    kept = task.heldout if problems is None else task.heldout.select(range(min(problems, len(task.heldout))))
    prompts, eos_ids = encode_prompts(tokenizer, kept["prompt"], task.system_prompt), eos_ids_of(model, tokenizer)
    check_prompts(model, "held-out", kept["prompt"], prompts, max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    right: list[int] = []  # right completions of each problem
    size = max(1, batch // samples)
    was_training = model.training
    model.eval()
    for first in range(0, len(kept), size):
        drawn = sample_completions(
            model,
            prompts[first : first + size],
            group_size=samples,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=tokenizer.pad_token_id,
            temperature=temperature,
            generator=generator,
        )
        texts = decode(tokenizer, drawn.completion_ids, drawn.completion_mask, eos_ids)
        answers = [answer for answer in kept["answer"][first : first + size] for _ in range(samples)]
        rewards = [task.reward(text, answer) == 1.0 for text, answer in zip(texts, answers, strict=True)]
        right += [sum(rewards[k : k + samples]) for k in range(0, len(rewards), samples)]
    model.train(was_training)
    return counted(right, samples)


def counted(right: Sequence[int], samples: int) -> dict[str, float]:
    """What `evaluate` returns, from the number of right completions of each problem."""
    size = len(right)

    def mean(k: int) -> tuple[float, float, float]:
        total = sum(pass_at_k(samples, c, k) for c in right)
        return total / size, *wilson(total, size)

    accuracy, low, high = mean(1)
    result = {"accuracy": accuracy, "ci_low": low, "ci_high": high, "problems": size, "samples": samples}
    for k in (2**e for e in range(samples.bit_length())):
        names = (f"pass@{k}", f"pass@{k}_ci_low", f"pass@{k}_ci_high")
        result |= dict(zip(names, mean(k), strict=True))
    return result
