"""The paper's claims on a language model: the theorem on the whole model, overlap over a run, objectives compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minigrpo.llm.evaluation import decode
from minigrpo.llm.models import LoadedModel, load_model
from minigrpo.llm.prompts import encode_prompts, fix_date
from minigrpo.llm.sampling import completion_logps, sample_completions
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import load_task
from minigrpo.llm.training import check_folder, date_of, load_checkpoint, prepare, read_manifest, train
from minigrpo.losses import policy_loss
from minigrpo.objectives import OBJECTIVES
from minigrpo.stats import interval
from minigrpo.tree import ProcessTree

OVERLAP = ("path_depth", "intermediate_proportion", "step_size")
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
    tries = min(tries, len(task.train))
    for k in range(tries):
        problem = task.train[k]
        samples = sample_completions(
            model,
            encode_prompts(tokenizer, [problem["prompt"]], task.system_prompt),
            group_size=settings.group_size,
            max_new_tokens=settings.max_new_tokens,
            eos_ids=loaded.eos_ids,
            pad_id=tokenizer.pad_token_id,
            temperature=settings.temperature,
            generator=torch.Generator().manual_seed(settings.seed + k),
        )
        texts = decode(tokenizer, samples.completion_ids, samples.completion_mask, loaded.eos_ids)
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


# ---------------------------------------------------------------------------------------------------------------------
# Runs, from their folders
# ---------------------------------------------------------------------------------------------------------------------


def read_settings(run: str | Path) -> Settings:
    """The settings of a run, from its manifest.json. Raises: ValueError where it is missing or not whole."""
    saved = read_manifest(Path(run))["settings"]
    try:
        return Settings(**saved)
    except (TypeError, ValueError) as error:
        path = Path(run) / "manifest.json"
        raise ValueError(f"{path} holds no settings of this version of minigrpo: {error}") from error


def read_metrics(run: str | Path, columns: Sequence[str] = ("update", "reward")) -> list[dict]:
    """The rows of a run's metrics.jsonl.

    Args: columns: what each row must have.
    Raises: ValueError for a file that is missing, empty, or at a line no JSON, or no row with these columns.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"{path} is missing: {run} is not the folder of a run")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:  # no UTF-8, or no JSON
            raise ValueError(f"{path}, line {number}: {error}") from error
        missing = [name for name in columns if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path}, line {number}: {missing[0]!r} is missing, so it is no row of a run")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: the run in {run} has made no update yet")
    return rows


def load_run(run: str | Path, settings: Settings) -> tuple[LoadedModel, int]:
    """The model of a run with the weights, or the adapters, of its last checkpoint, and the updates behind it.

    Args: run: its folder; settings: its own, on whatever device.
    Raises: ValueError for a checkpoint that is missing, cut short or another model's; as `load_model`.
    """
    run = Path(run)
    if not (run / "checkpoint.safetensors").exists():
        raise ValueError(f"{run / 'checkpoint.safetensors'} is missing: the run has written none yet")
    loaded = load_model(settings.model, device=settings.device)
    loaded = fix_date(loaded, date_of(read_manifest(run), run))
    model = prepare(loaded.model, settings)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    update = load_checkpoint(run, trained, torch.optim.AdamW(trained.values()))
    return dataclasses.replace(loaded, model=model.eval()), min(update, settings.updates)


def overlap(run: str | Path) -> list[dict]:
    """How much the groups of a run shared, update by update: the paper's Experiment 1 at our scale."""
    kept = ("update", "reward", "entropy", *OVERLAP)
    settings = read_settings(run)
    same = {"task": settings.task, "group_size": settings.group_size}
    return [same | {name: row[name] for name in kept} for row in read_metrics(run, kept)]


# ---------------------------------------------------------------------------------------------------------------------
# Objectives compared
# ---------------------------------------------------------------------------------------------------------------------


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

    A run that was stopped goes on from its checkpoint; one that has none begins anew.

    Yields: a row a run: objective, learning_rate, seed, `summary` of it, and its `curve`.
    Raises: ValueError for a run that is there already with other settings; as `train`.
    """
    for seed in range(seeds):
        for objective in objectives:
            for lr in learning_rates:
                run = Path(out) / f"{objective}-lr{lr:g}-seed{seed}"
                own = dataclasses.replace(settings, objective=objective, learning_rate=lr, seed=seed)
                if not _is_finished(run, own) and not train(
                    own, run, resume=(run / "checkpoint.safetensors").exists(), progress=progress
                ):
                    raise KeyboardInterrupt
                rows = read_metrics(run)
                same = {"objective": objective, "learning_rate": lr, "seed": seed}
                yield same | summary(rows) | {"curve": curve(rows)}


def _is_finished(run: Path, settings: Settings) -> bool:
    """Whether a run got to its end; what one without a checkpoint left is cleared away."""
    if not (run / "manifest.json").exists():
        return False
    check_folder(run, settings, resume=True)
    if not (run / "checkpoint.safetensors").exists():
        for name in ("manifest.json", "metrics.jsonl", "rollouts.jsonl"):
            (run / name).unlink(missing_ok=True)
        return False
    return read_metrics(run)[-1]["update"] == settings.updates


def summary(rows: Sequence[dict]) -> dict:
    """First, best and last held-out accuracy, when it had risen 90% of the way to its best, and the mean overlap."""
    evaluated = [(row["update"], row["eval_accuracy"]) for row in rows if "eval_accuracy" in row]
    if not evaluated:
        raise ValueError("no row has eval_accuracy: the run was never evaluated")
    first, last = evaluated[0][1], evaluated[-1][1]
    best = float(np.max([accuracy for _, accuracy in evaluated]))
    soon = next(update for update, accuracy in evaluated if accuracy >= first + 0.9 * (best - first))
    shared = {name: float(np.mean([row[name] for row in rows])) for name in OVERLAP}
    return {"first": first, "best": best, "last": last, "updates_to_90": soon} | shared


def curve(rows: Sequence[dict]) -> list[dict]:
    """A run at the updates at which it was evaluated: {update, eval_accuracy, reward}.

    One update's samples are few, so `reward` is their mean over the updates since the evaluation before.
    """
    points, rewards = [], []
    for row in rows:
        rewards.append(row["reward"])
        if "eval_accuracy" in row:
            reward = float(np.mean(rewards))
            points.append({"update": row["update"], "eval_accuracy": row["eval_accuracy"], "reward": reward})
            rewards = []
    return points


MEASURES = ("last", "best", "updates_to_90")


def differences(rows: Sequence[dict]) -> list[dict]:
    """Compare each objective with the first one, seed by seed, at each learning rate and at each one's best.

    The best rate of an objective is the one at which its runs ended highest, on the mean over the seeds. It was chosen
    on the same runs, so that both ends of that comparison are a little too high.

    Args: rows: of `compare`.
    Returns: a row for each pair and measure (the last and best accuracy, updates to 90%): {difference, learning_rates
        (of both), at: "each rate" or "best rates", measure, seeds, mean, ci_low, ci_high}: 95%, paired bootstrap.
    """
    runs: dict[tuple[str, float], dict[int, dict]] = {}
    for row in rows:
        runs.setdefault((row["objective"], row["learning_rate"]), {})[row["seed"]] = row

    def best(objective: str) -> float:
        ends = {
            lr: np.mean([row["last"] for row in seeds.values()])
            for (name, lr), seeds in runs.items()
            if name == objective
        }
        return max(ends, key=ends.__getitem__)

    first, *others = dict.fromkeys(objective for objective, _ in runs)
    found = []
    for other in others:
        rates = [(lr, lr) for name, lr in runs if name == other and (first, lr) in runs]
        pairs = [("each rate", *pair) for pair in sorted(rates)] + [("best rates", best(other), best(first))]
        for at, ours, theirs in pairs:
            a, b = runs[other, ours], runs[first, theirs]
            for measure in MEASURES:
                paired = np.array([a[seed][measure] - b[seed][measure] for seed in sorted(a.keys() & b.keys())], float)
                same = {"difference": f"{other} − {first}", "at": at, "learning_rates": [ours, theirs]}
                found.append(same | {"measure": measure} | interval(paired))
    return found
