"""Accuracy on held-out problems, greedy or sampled, with Wilson intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigrpo.llm.prompts import check_prompts, encode_prompts
from minigrpo.llm.scoring import score_groups
from minigrpo.llm.tasks import Task
from minigrpo.stats import pass_at_k, wilson


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

    Args:
        model: the policy; it is left in the mode, of training or evaluation, that it came in.
        tokenizer: its own, with a chat template.
        task: whose held-out problems are solved.
        max_new_tokens: of a completion at most.
        problems: how many of the held-out ones, all where None.
        samples: n completions of each; 1 where temperature is 0.
        temperature: 0 is greedy.
        batch: completions at a time.
        seed: of sampling.

    Returns:
        accuracy with its 95% Wilson interval (ci_low, ci_high), problems, samples, and pass@k with its own
        (pass@k_ci_low, pass@k_ci_high) for k = 1, 2, 4, … n. Intervals count problems, not completions, as those of
        one problem are not independent: where n is above 1 they are a little too wide.

    Raises:
        ValueError: for options out of range, or a prompt that leaves no room for an answer.

    Source: pass@k of Chen et al. 2021, arXiv 2107.03374; interval of Wilson 1927.
    """
    if samples < 1 or (temperature == 0 and samples > 1):
        raise ValueError(
            f"samples must be at least 1, and 1 where temperature is 0 (greedy), got {samples}"
        )
    heldout = (
        task.heldout
        if problems is None
        else task.heldout.select(range(min(problems, len(task.heldout))))
    )
    prompts = encode_prompts(tokenizer, heldout["prompt"], task.system_prompt)
    check_prompts(model, "held-out", heldout["prompt"], prompts, max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    size = max(1, batch // samples)  # problems at a time
    was_training = model.training
    model.eval()
    right: list[int] = []  # right completions of each problem
    for first in range(0, len(heldout), size):
        scored = score_groups(
            model,
            tokenizer,
            task,
            heldout[first : first + size],
            group_size=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=generator,
        )
        right += (scored.rewards == 1.0).sum(dim=1).tolist()
    model.train(was_training)
    return counted(right, samples)


def counted(right: Sequence[int], samples: int) -> dict[str, float]:
    """What `evaluate` returns, from the number of right completions of each problem."""
    size = len(right)

    def mean(k: int) -> tuple[float, float, float]:
        total = sum(pass_at_k(samples, c, k) for c in right)
        return total / size, *wilson(total, size)

    accuracy, low, high = mean(1)
    result = {
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "problems": size,
        "samples": samples,
    }
    for k in (2**e for e in range(samples.bit_length())):
        names = (f"pass@{k}", f"pass@{k}_ci_low", f"pass@{k}_ci_high")
        result |= dict(zip(names, mean(k), strict=True))
    return result
