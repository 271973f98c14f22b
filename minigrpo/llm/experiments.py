"""The paper's claims on a language model: the theorem on the whole model, overlap over a run, objectives compared."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minigrpo.llm import runs
from minigrpo.llm.evaluation import evaluate
from minigrpo.llm.models import LoadedModel, load_model
from minigrpo.llm.sampling import completion_logps
from minigrpo.llm.scoring import Scored, score_groups
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import Task, load_task
from minigrpo.llm.training import train
from minigrpo.llm.update import autocast
from minigrpo.losses import policy_loss
from minigrpo.objectives import OBJECTIVES, PAPER_OBJECTIVES
from minigrpo.stats import interval
from minigrpo.tree import ProcessTree

OVERLAP = ("path_depth", "intermediate_proportion", "step_size")
TOLERANCE = 1e-5  # relative, in float32
BATCH = 1024  # completions at a time where many are sampled


# ---------------------------------------------------------------------------------------------------------------------
# The theorem
# ---------------------------------------------------------------------------------------------------------------------


def theorem(settings: Settings, *, tries: int = 20) -> tuple[list[dict], dict, ProcessTree]:
    """Sample one group whose rewards differ, and compare the gradients of the objectives on every weight.

        loss_gap = |L_GRPO − L| / max(‖∇L_GRPO‖, 1e-3);   grad_gap = ‖∇L_GRPO − ∇L‖ / max(‖∇L_GRPO‖, 1e-3)

    Args:
        settings: model, task, group size, sampling and dtype are used.
        tries: groups sampled until one has rewards that differ; a group of equal rewards has no gradient.

    Returns:
        One row {case, loss_gap, grad_gap, grad_norm} for `prm` against `grpo`; the same for `lambda_grpo`, which is
        another objective; and the group's tree of text.

    Raises:
        ValueError: where no group had rewards that differ, or the model or task can't be had.
    """
    task = load_task(settings.task, train_size=settings.train_size, heldout_size=settings.eval_size)
    loaded = load_model(settings.model, device=settings.device)
    model = loaded.model.eval()
    scored = _group_with_gradient(loaded, task, settings, min(tries, len(task.train)))

    samples, mask = scored.samples, scored.samples.completion_mask
    with autocast(settings):
        logps = completion_logps(model, samples, slice(None), temperature=settings.temperature)
    logps = logps.view_as(samples.old_logps)
    weights = list(model.parameters())
    sides = {}
    for name in PAPER_OBJECTIVES:
        advantages, step_weights = OBJECTIVES[name](scored.rewards, samples.completion_ids, mask)
        loss = policy_loss(logps, logps, advantages, step_weights, mask)
        gradient = torch.autograd.grad(loss, weights, retain_graph=True)
        sides[name] = loss.item(), torch.cat([g.flatten() for g in gradient])

    row = _compared(f"{settings.model}, {settings.task}", *sides["grpo"], *sides["prm"])
    other = _compared("lambda_grpo", *sides["grpo"], *sides["lambda_grpo"])
    tree = _text_tree(loaded.tokenizer, samples.completion_ids[0], mask[0], scored.rewards[0])
    return [row], other, tree


def _group_with_gradient(loaded: LoadedModel, task: Task, settings: Settings, tries: int) -> Scored:
    """The first group, of the first problems of a task, whose rewards differ."""
    for k in range(tries):
        scored = score_groups(
            loaded.model,
            loaded.tokenizer,
            task,
            task.train[k : k + 1],
            group_size=settings.group_size,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            generator=torch.Generator().manual_seed(settings.seed + k),
        )
        if (scored.rewards != scored.rewards[0, 0]).any():
            return scored
    raise ValueError(
        f"none of {tries} groups had rewards that differ: take another task or temperature"
    )


def _compared(case: str, loss: float, gradient: Tensor, other_loss: float, other: Tensor) -> dict:
    """A row of the theorem."""
    unit = gradient.norm().clamp(min=1e-3)
    return {
        "case": case,
        "loss_gap": abs(loss - other_loss) / unit.item(),
        "grad_gap": ((gradient - other).norm() / unit).item(),
        "grad_norm": gradient.norm().item(),
    }


def _text_tree(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor, mask: Tensor, rewards: Tensor
) -> ProcessTree:
    """The tree of a group, int and bool (G, T) and float (G,), with its tokens as text."""
    texts = []
    for row, length in zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True):
        texts.append([tokenizer.decode([token]).replace("\n", "⏎") for token in row[:length]])
    return ProcessTree(texts, rewards.tolist())


# ---------------------------------------------------------------------------------------------------------------------
# Overlap
# ---------------------------------------------------------------------------------------------------------------------


def overlap(run: str | Path) -> list[dict]:
    """How much the groups of a run shared, update by update: the paper's Experiment 1 at our scale."""
    columns = ("update", "reward", "entropy", *OVERLAP)
    settings = runs.read_settings(run)
    same = {"task": settings.task, "group_size": settings.group_size}
    return [same | {name: row[name] for name in columns} for row in runs.read_metrics(run, columns)]


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
) -> Generator[dict, None, bool]:
    """Train every objective at every learning rate with paired seeds; skip what is finished.

    A run that was stopped goes on from its checkpoint; one that has none begins anew.

    Args:
        settings: of each run, but for objective, learning rate and seed.
        out: the folder of the runs' folders.
        objectives: names of OBJECTIVES.
        seeds: how many; they are 0 … seeds − 1.
        learning_rates: each with every objective.
        progress: show bars.

    Yields:
        A row a run: objective, learning_rate, seed, `summary` of it, and its `curve`.

    Returns:
        Whether all runs reached their end; False after a signal, which ends the run in progress with a checkpoint.

    Raises:
        ValueError: for a run that is there already with other settings; as `train`.
    """
    for seed, objective, lr in itertools.product(range(seeds), objectives, learning_rates):
        run = Path(out) / f"{objective}-lr{lr:g}-seed{seed}"
        same = {"objective": objective, "learning_rate": lr, "seed": seed}
        if not train(dataclasses.replace(settings, **same), run, resume="auto", progress=progress):
            return False
        rows = runs.read_metrics(run)
        yield same | summary(rows) | {"curve": curve(rows)}
    return True


def summary(rows: Sequence[dict]) -> dict:
    """What a run came to.

    Args:
        rows: of its metrics.

    Returns:
        first, best and last held-out accuracy; updates_to_90, the first update at which accuracy had risen 90% of the
        way to its best; and the mean of each column of OVERLAP.

    Raises:
        ValueError: for a run that was never evaluated.
    """
    evaluated = [(row["update"], row["eval_accuracy"]) for row in rows if "eval_accuracy" in row]
    if not evaluated:
        raise ValueError("no row has eval_accuracy: the run was never evaluated")
    accuracies = [accuracy for _, accuracy in evaluated]
    first, last = accuracies[0], accuracies[-1]
    best = float(np.max(accuracies))
    updates_to_90 = next(
        update for update, accuracy in evaluated if accuracy >= first + 0.9 * (best - first)
    )
    shared = {name: float(np.mean([row[name] for row in rows])) for name in OVERLAP}
    return {"first": first, "best": best, "last": last, "updates_to_90": updates_to_90} | shared


def curve(rows: Sequence[dict]) -> list[dict]:
    """A run at the updates at which it was evaluated: {update, eval_accuracy, reward}.

    One update's samples are few, so `reward` is their mean over the updates since the evaluation before.
    """
    points = []
    rewards = []
    for row in rows:
        rewards.append(row["reward"])
        if "eval_accuracy" in row:
            reward = float(np.mean(rewards))
            points.append(
                {"update": row["update"], "eval_accuracy": row["eval_accuracy"], "reward": reward}
            )
            rewards = []
    return points


MEASURES = ("last", "best", "updates_to_90")


def differences(rows: Sequence[dict]) -> list[dict]:
    """Compare each objective with the first one, seed by seed, at each learning rate and at each one's best.

    The best rate of an objective is the one at which its runs ended highest, on the mean over the seeds. It was chosen
    on the same runs, so that both ends of that comparison are a little too high.

    Args:
        rows: of `compare`.

    Returns:
        A row for each pair and measure (the last and best accuracy, updates to 90%): {difference, learning_rates (of
        both), at: "each rate" or "best rates", measure, seeds, mean, ci_low, ci_high}: 95%, paired bootstrap.
    """
    # objective and learning rate → seed → row
    by_setting: dict[tuple[str, float], dict[int, dict]] = {}
    for row in rows:
        by_setting.setdefault((row["objective"], row["learning_rate"]), {})[row["seed"]] = row
    first, *others = dict.fromkeys(objective for objective, _ in by_setting)
    differences = []
    for other in others:
        for at, ours, theirs in _paired_rates(by_setting, first, other):
            same = {"difference": f"{other} − {first}", "at": at, "learning_rates": [ours, theirs]}
            pairs = by_setting[other, ours], by_setting[first, theirs]
            differences += [
                same | {"measure": name} | interval(_paired(*pairs, name)) for name in MEASURES
            ]
    return differences


def _paired_rates(
    by_setting: dict[tuple[str, float], dict[int, dict]], first: str, other: str
) -> Iterator[tuple[str, float, float]]:
    """The pairs of learning rates, of another objective and the first, at which they are compared."""
    for lr in sorted(lr for name, lr in by_setting if name == other):
        if (first, lr) in by_setting:
            yield "each rate", lr, lr
    yield "best rates", _best_rate(by_setting, other), _best_rate(by_setting, first)


def _best_rate(by_setting: dict[tuple[str, float], dict[int, dict]], objective: str) -> float:
    """The learning rate at which an objective's runs ended highest, on the mean over their seeds."""
    ends = {
        lr: np.mean([row["last"] for row in seeds.values()])
        for (name, lr), seeds in by_setting.items()
        if name == objective
    }
    return max(ends, key=ends.__getitem__)


def _paired(ours: dict[int, dict], theirs: dict[int, dict], measure: str) -> np.ndarray:
    """The differences of a measure, seed by seed, over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    return np.array([ours[seed][measure] - theirs[seed][measure] for seed in seeds], float)


# ---------------------------------------------------------------------------------------------------------------------
# pass@k
# ---------------------------------------------------------------------------------------------------------------------


# What two runs share when they are compared
SETTING = ("model", "task", "group_size", "temperature", "updates", "learning_rate")


def pass_at_k(
    folders: Sequence[str | Path], known: Sequence[dict] = (), *, samples: int = 64
) -> Generator[dict, None, bool]:
    """Evaluate each run of `compare` by pass@k, on its held-out problems and at its own temperature.

        pass@k = mean over problems of 1 − C(n − c, k) / C(n, k),   c of n samples right

    Args:
        folders: that hold runs' folders.
        known: rows of an earlier call: what stands there is not evaluated again.
        samples: n, a problem.

    Yields:
        A row a run: {*SETTING, objective, seed, samples, pass@1, pass@2, pass@4, … pass@n}.

    Returns:
        True, at the end.

    Raises:
        ValueError: where no run is in a folder; as `evaluate`.
    """
    found = []
    for folder in folders:
        own = runs.run_folders(Path(folder))
        if not own:
            raise ValueError(f"{folder} holds no run: make some by `llm compare --out {folder}`")
        found += own
    for run in found:
        settings = runs.read_settings(run)
        names = (*SETTING, "objective", "seed")
        same = {name: getattr(settings, name) for name in names} | {"samples": samples}
        row = next((row for row in known if row.items() >= same.items()), None)
        yield row or same | _passes(run, settings, samples)
    return True


def _passes(run: Path, settings: Settings, samples: int) -> dict[str, float]:
    """pass@1, pass@2, … of a run's last checkpoint."""
    task = load_task(settings.task, train_size=settings.train_size, heldout_size=settings.eval_size)
    loaded, _ = runs.load_run(run, settings)
    found = evaluate(
        loaded.model,
        loaded.tokenizer,
        task,
        max_new_tokens=settings.max_new_tokens,
        samples=samples,
        temperature=settings.temperature,
        batch=max(samples, BATCH),
    )
    return {name: found[name] for name in _ks(samples)}


def _ks(samples: int) -> list[str]:
    """pass@1, pass@2, pass@4, … as far as n samples go."""
    return [f"pass@{2**e}" for e in range(samples.bit_length())]


def pass_differences(rows: Sequence[dict]) -> list[dict]:
    """The paired difference of each pass@k between each objective and the first, in each setting, over the seeds.

    Args: rows: of `pass_at_k`.
    Returns: a row for each setting and k: {*SETTING, difference, k, seeds, mean, ci_low, ci_high}, with 95% bootstrap
        intervals.
    """
    settings: dict[tuple, dict[str, dict[int, dict]]] = {}
    for row in rows:
        own = settings.setdefault(tuple(row[name] for name in SETTING), {})
        own.setdefault(row["objective"], {})[row["seed"]] = row
    differences = []
    for values, by_objective in settings.items():
        first, *others = by_objective
        for other in others:
            label = dict(zip(SETTING, values, strict=True)) | {"difference": f"{other} − {first}"}
            for name in [name for name in rows[0] if name.startswith("pass@")]:
                paired = _paired(by_objective[other], by_objective[first], name)
                k = int(name.removeprefix("pass@"))
                differences.append(label | {"k": k} | interval(paired))
    return differences
