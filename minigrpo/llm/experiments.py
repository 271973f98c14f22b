"""The paper's claims on a language model: the theorem on the whole model, overlap over a run, objectives compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minigrpo.llm.evaluation import decode, encode_prompts
from minigrpo.llm.models import load_model
from minigrpo.llm.sampling import completion_logps, sample_completions
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import load_task
from minigrpo.llm.training import train
from minigrpo.losses import policy_loss
from minigrpo.objectives import OBJECTIVES
from minigrpo.tree import ProcessTree

TOLERANCE = 1e-5  # relative, in float32


def theorem(settings: Settings, *, tries: int = 20) -> tuple[list[dict], dict, ProcessTree]:
    """Sample one group whose rewards differ, and compare the gradients of the objectives on every weight.

        loss_gap = |L_GRPO − L| / max(‖∇L_GRPO‖, 1e-3);   grad_gap = ‖∇L_GRPO − ∇L‖ / max(‖∇L_GRPO‖, 1e-3)

    Args: settings: model, task, group size and sampling are used; tries: groups sampled until one has rewards that
        differ (a group of equal rewards has no gradient).
    Returns: one row {case, loss_gap, grad_gap, grad_norm} for `prm` against `grpo`; the same for `lambda_grpo`, which
        is another objective; and the group's tree of text.
    Raises: ValueError where no group had rewards that differ, or the model or task can't be had.
    """
    task = load_task(settings.task, train_size=settings.train_size, heldout_size=settings.eval_size)
    loaded = load_model(settings.model, device=settings.device)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    for k in range(tries):
        problem = task.train[k]
        samples = sample_completions(
            model,
            encode_prompts(tokenizer, [problem["prompt"]], task.system_prompt),
            group_size=settings.group_size,
            max_new_tokens=settings.max_new_tokens,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            temperature=settings.temperature,
            generator=torch.Generator().manual_seed(settings.seed + k),
        )
        texts = decode(tokenizer, samples.completion_ids, samples.completion_mask)
        rewards = torch.tensor([[task.reward(text, problem["answer"]) for text in texts]], device=model.device)
        if (rewards != rewards[0, 0]).any():
            break
    else:
        raise ValueError(f"none of {tries} groups had rewards that differ: take another task or temperature")
    weights = list(model.parameters())
    logps = completion_logps(model, samples, slice(None), temperature=settings.temperature).view_as(samples.old_logps)
    mask, found = samples.completion_mask, {}
    for name, objective in OBJECTIVES.items():
        loss = policy_loss(logps, logps, *objective(rewards, samples.completion_ids, mask), mask)
        gradient = torch.autograd.grad(loss, weights, retain_graph=True)
        found[name] = loss.item(), torch.cat([g.flatten() for g in gradient])
    rows = [_compared(f"{settings.model}, {settings.task}", *found["grpo"], *found["prm"])]
    other = _compared("lambda_grpo", *found["grpo"], *found["lambda_grpo"])
    return rows, other, _text_tree(tokenizer, samples.completion_ids[0], mask[0], rewards[0])


def _compared(case: str, loss: float, gradient: Tensor, other_loss: float, other: Tensor) -> dict:
    """A row of the theorem."""
    unit = gradient.norm().clamp(min=1e-3)
    return {
        "case": case,
        "loss_gap": abs(loss - other_loss) / unit.item(),
        "grad_gap": ((gradient - other).norm() / unit).item(),
        "grad_norm": gradient.norm().item(),
    }


def _text_tree(tokenizer, ids: Tensor, mask: Tensor, rewards: Tensor) -> ProcessTree:
    """The tree of a group with its tokens as text."""
    rows = zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True)
    texts = [[tokenizer.decode([token]).replace("\n", "⏎") for token in row[:length]] for row, length in rows]
    return ProcessTree(texts, rewards.tolist())


def read_metrics(run: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl. Raises: ValueError that names file and line where a line is no JSON."""
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"{path} is missing: {run} is not the folder of a run")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def overlap(run: str | Path) -> list[dict]:
    """How much the groups of a run shared, update by update: the paper's Experiment 1 at our scale."""
    kept = ("update", "reward", "entropy", "path_depth", "intermediate_proportion", "step_size")
    settings = json.loads((Path(run) / "manifest.json").read_text(encoding="utf-8"))["settings"]
    same = {"task": settings["task"], "group_size": settings["group_size"]}
    return [same | {name: row[name] for name in kept} for row in read_metrics(run)]


def compare(
    settings: Settings,
    out: str | Path,
    *,
    objectives: Sequence[str],
    seeds: int,
    learning_rates: Sequence[float],
    progress: bool = True,
) -> Iterator[dict]:
    """Train every objective at every learning rate with paired seeds 0 … seeds − 1; skip what is finished.

    Yields: a row a run: objective, learning_rate, seed, first and last held-out accuracy, and the update at which the
        accuracy first reached 90% of the run's rise to its best.
    """
    for seed in range(seeds):
        for objective in objectives:
            for lr in learning_rates:
                run = Path(out) / f"{objective}-lr{lr:g}-seed{seed}"
                own = dataclasses.replace(settings, objective=objective, learning_rate=lr, seed=seed)
                rows = read_metrics(run) if (run / "metrics.jsonl").exists() else []
                if not rows or rows[-1]["update"] < own.updates:
                    resumable = (run / "checkpoint.safetensors").exists()
                    if not train(own, run, resume=resumable, progress=progress):
                        raise KeyboardInterrupt
                    rows = read_metrics(run)
                yield {"objective": objective, "learning_rate": lr, "seed": seed} | summary(rows)


def summary(rows: Sequence[dict]) -> dict:
    """First, best and last held-out accuracy of a run, and when it had risen 90% of the way to its best."""
    evaluated = [(row["update"], row["eval_accuracy"]) for row in rows if "eval_accuracy" in row]
    first, last = evaluated[0][1], evaluated[-1][1]
    best = float(np.max([accuracy for _, accuracy in evaluated]))
    soon = next(update for update, accuracy in evaluated if accuracy >= first + 0.9 * (best - first))
    return {"first": first, "best": best, "last": last, "updates_to_90": soon}
