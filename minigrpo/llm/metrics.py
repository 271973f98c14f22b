"""The columns of metrics.jsonl, and what they warn of. docs/metrics.md says what each means. A column of an update is
made in `update`, one of an evaluation in `training.held_out`, all others here."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minigrpo.llm.sampling import Samples
from minigrpo.llm.settings import Settings
from minigrpo.steps import intermediate_proportion, path_depth, step_sizes

PATIENCE = 5  # updates that must go wrong before a warning
HELP = "see docs/troubleshooting.md"
SAME = 40  # letters; warnings that begin so are the same, whatever number follows
# nats a token; rounding was up to 1e-6 and 0.02 on small models
MISMATCH = {"float32": 1e-3, "bfloat16": 0.1}


def describe(samples: Samples, rewards: Tensor, eos_ids: Collection[int]) -> dict[str, float]:
    """What a batch of groups is like.

    Args:
        samples: P groups of G completions.
        rewards: float (P, G).
        eos_ids: the tokens that end a completion; one that none of them ended is capped.

    Returns:
        reward: the mean; entropy: −mean ln π_old over tokens in nats, an estimate; length: tokens of a completion;
        capped: share of completions; zero_variance: share of groups whose rewards are all equal; path_depth,
        intermediate_proportion and step_size: how much a group shares; tokens: of the batch.
    """
    ids, mask = samples.completion_ids, samples.completion_mask
    ends = torch.tensor(sorted(eos_ids), dtype=ids.dtype, device=ids.device)
    ended = (torch.isin(ids, ends) & mask).any(dim=-1)  # (P, G)
    columns = {
        "reward": rewards.mean(),
        "entropy": -samples.old_logps[mask].mean(),
        "length": mask.sum(dim=-1).float().mean(),
        "capped": (~ended).float().mean(),
        "zero_variance": (rewards == rewards[:, :1]).all(dim=1).float().mean(),
        "path_depth": path_depth(ids, mask).float().mean(),
        "intermediate_proportion": intermediate_proportion(ids, mask).mean(),
        "step_size": step_sizes(ids, mask)[mask].float().mean(),
        "tokens": mask.sum(),
    }
    return {name: value.item() for name, value in columns.items()}


def gathered(learned: list[dict[str, Any]]) -> dict[str, Any]:
    """What the last of an update's rounds saw, as columns of metrics; nothing where there was none."""
    return {name: value for each in learned[-1:] for name, value in each.items() if name != "gap"}


def spent(tokens: int, started: float, settings: Settings) -> dict[str, float | None]:
    """Time and memory of an update, without its evaluation, as columns of metrics.

    Args:
        tokens: sampled in it.
        started: when, by `time.perf_counter`.
        settings: the run's.
    """
    seconds = time.perf_counter() - started
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "memory_gb": memory_gb(settings),
    }


def memory_gb(settings: Settings) -> float | None:
    """The most memory the run has held: the device's on CUDA, the process's elsewhere, None where that isn't known."""
    if settings.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(settings.device) / 1e9
    if sys.platform == "win32":
        return None
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def warnings_of(history: Sequence[dict[str, Any]], settings: Settings) -> list[str]:
    """Say in plain words what keeps a run from learning, once it has lasted PATIENCE updates."""
    last = history[-PATIENCE:]
    if len(last) < PATIENCE:
        return []
    warnings = []
    if all(row["zero_variance"] == 1 for row in last):
        warnings.append(
            f"in the last {PATIENCE} updates every group had equal rewards, so the loss is exactly 0 and nothing is "
            f"learned: take easier or harder problems, larger groups or a higher temperature; {HELP}#loss-is-0"
        )
    if all(row["entropy"] < 0.01 for row in last):
        warnings.append(
            "the entropy is gone: all completions of a group are alike; lower the learning rate or raise beta; "
            f"{HELP}#all-completions-are-alike"
        )
    if all(row["capped"] > 0.9 for row in last):
        warnings.append(
            f"nearly all completions end at max_new_tokens ({settings.max_new_tokens}) and not by themselves: raise "
            f"it; {HELP}#completions-are-cut-off"
        )
    return warnings


def mismatch(gaps: Sequence[float], settings: Settings, dropout: bool) -> list[str]:
    """Say where the first pass on a batch gives other log-probs than its sampling did, beyond what rounding does.

    Args:
        gaps: mean |ln π_θ − ln π_old| over tokens in nats, of each round; the first has the weights that sampled.
        settings: the run's.
        dropout: whether the model draws any, which makes a difference of its own.
    """
    limit = MISMATCH[settings.dtype]
    if not gaps or dropout or gaps[0] <= limit:
        return []
    return [
        f"the log-probs of sampling and of training differ by {gaps[0]:.2g} nats a token under the same weights, and "
        f"rounding in {settings.dtype} explains {limit:g}: the gradient is not that of the policy that sampled; "
        f"{HELP}#sampling-and-training-disagree"
    ]


def progress_bar(settings: Settings, first: int, shown: bool) -> tqdm:
    """The bar of a run.

    Args:
        settings: the run's.
        first: the update that it begins with.
        shown: whether anybody sees it.
    """
    return tqdm(
        total=settings.updates,
        initial=first,
        disable=not shown,
        desc=settings.objective,
        unit=" updates",
    )


def show(bar: tqdm, history: Sequence[dict[str, Any]], last: bool) -> None:
    """Tell a watcher how the update went. A warning is said once for as long as it lasts.

    Args:
        bar: the run's.
        history: rows of metrics, up to the update's own.
        last: whether no update comes after it.
    """
    row = history[-1]
    told = {warning[:SAME] for before in history[-2:-1] for warning in before.get("warnings", ())}
    for warning in row["warnings"]:
        if warning[:SAME] not in told:
            tqdm.write(f"update {row['update']}: {warning}")
    bar.set_postfix(
        {name: f"{row[name]:.2f}" for name in ("reward", "eval_accuracy") if name in row}
    )
    bar.update(not last)
