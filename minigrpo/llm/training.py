"""GRPO, its process-reward twin and λ-GRPO on a language model: the loop.

Objective and loss are those of the toy trainer. Departures from the paper's setting, each an option or said here:
- The temperature is part of the policy, in sampling and in the loss (`temperature`); the paper's loss has none.
- With `top_p` below 1 samples are slightly off-policy: the log-probs that are kept are those of the whole policy.
- Neither clip nor KL term by default (`epsilon`, `beta`); several updates on a batch where `iterations` is above 1.
- Where β is 0, groups whose rewards are all equal have no gradient: they are left out of the passes.
- "seq-mean" is computed as a token mean under weights (`update.seq_mean_weights`).
- Gradients longer than `max_grad_norm` are scaled down to it.

The prompts and samples of an update follow from the seed and the update's number alone, so that a run that was resumed
repeats one that was not interrupted. Rooms: `scoring` samples and rewards, `update` descends, `runs` keeps the folder,
`metrics` describes.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minigrpo.llm import runs
from minigrpo.llm.evaluation import evaluate
from minigrpo.llm.found import found, found_lines
from minigrpo.llm.metrics import (
    describe,
    gathered,
    mismatch,
    progress_bar,
    show,
    spent,
    warnings_of,
)
from minigrpo.llm.models import LoadedModel, load_model
from minigrpo.llm.prompts import fix_date, longest_prompt
from minigrpo.llm.scoring import Scored, first_group, score_groups
from minigrpo.llm.settings import Settings
from minigrpo.llm.signals import deadline, stop_signals
from minigrpo.llm.tasks import Task, load_task
from minigrpo.llm.trackers import start_trackers
from minigrpo.llm.update import Learner, descend, new_learner, trained_weights
from minigrpo.objectives import OBJECTIVES


def train(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool | str = False,
    max_minutes: float | None = None,
    report_to: Collection[str] = (),
    progress: bool = True,
    tell: bool = False,
) -> bool:
    """Fine-tune a model, and leave the folder of a run (`runs`).

    A row of metrics describes the model after `update` optimiser rounds: its samples, what the next round did with
    them, and its held-out accuracy where it was evaluated; the last row, `update` = updates, has no round after it.
    SIGTERM and Ctrl-C end the run after the round in progress, with a checkpoint; so does `max_minutes`, before the
    round that would not be over in time.

    Args:
        settings: of the run.
        out: its folder.
        resume: go on from its last checkpoint; "auto": if there is one, else start, and leave alone what is done.
        max_minutes: of this call, the loading of the model included; None: no end but the run's.
        report_to: names of `TRACKERS`, which get each row too.
        progress: show a bar.
        tell: say on stderr what was found at the start.

    Returns:
        Whether the run reached its end.

    Raises:
        ValueError: for a folder that another process trains in, a model or task that can't be had, a prompt that leaves
            no room for an answer, settings other than the checkpoint's, a run that is not whole, or a loss that is no
            number.
        FileExistsError: where `out` holds a run and `resume` is False.
        OSError: where it can't be written.
    """
    run = Path(out)
    in_time = deadline(max_minutes)
    trackers = start_trackers(report_to, run, settings)  # before anything is loaded
    with runs.held(run):
        if resume == "auto" and runs.is_done(run, settings):
            return True
        task, loaded, learner, first, history = begin(settings, run, resume, tell)
        objective = OBJECTIVES[settings.objective]
        bar = progress_bar(settings, first, shown=progress)
        with bar, trackers(first) as report, stop_signals() as stop:
            for update in range(first, settings.updates + 1):
                last = update == settings.updates
                evaluated = last or update % settings.eval_every == 0
                row: dict[str, Any] = {"update": update}
                row |= held_out(loaded, task, settings) if evaluated else {}
                started = time.perf_counter()
                torch.manual_seed(seed_of(settings, update))  # of dropout

                # 1. Sample a group for each prompt, and let the verifier reward it.
                problems = problems_of(task, settings, update)
                scored = sample(loaded, task, problems, settings, update)
                samples = scored.samples
                if evaluated:
                    runs.append_rollout(run, first_group(update, problems, scored))

                # 2. The objective turns rewards and shared prefixes into advantages and step weights, both (P, G, T).
                advantages, step_weights = objective(
                    scored.rewards,
                    samples.completion_ids,
                    samples.completion_mask,
                    scale=settings.scale,
                )

                # 3. Descend on the loss, μ times on these samples.
                learner.model.train()
                rounds = 0 if last else settings.iterations
                learned = [
                    descend(learner, samples, advantages, step_weights) for _ in range(rounds)
                ]

                # 4. Write down what happened, and how far the run got.
                row |= describe(samples, scored.rewards, loaded.eos_ids) | gathered(learned)
                row |= spent(row["tokens"], started, settings)
                history.append(row)
                row["warnings"] = warnings_of(history, settings)
                row["warnings"] += mismatch(
                    [each["gap"] for each in learned], settings, learner.dropout
                )
                runs.append_metrics(run, row)
                report(row)
                show(bar, history, last)
                early = not last and bool(stop or not in_time())
                if early or last or (update + 1) % settings.save_every == 0:
                    runs.save_checkpoint(
                        run, update + 1, trained_weights(learner.model), learner.optimizer
                    )
                if early:
                    return False
        return True


def begin(
    settings: Settings, run: Path, resume: bool | str, tell: bool
) -> tuple[Task, LoadedModel, Learner, int, list[dict[str, Any]]]:
    """Get everything ready, or refuse before anything is written.

    Args:
        settings: of the run.
        run: its folder.
        resume: go on from its checkpoint.
        tell: say on stderr what was found.

    Returns: the task; the model, with its adapters; the learner; the update to go on from; and the rows before it.
    """
    auto = resume == "auto"
    if auto:
        resume = runs.can_resume(run)
    if resume or (auto and runs.has_manifest(run)):
        runs.check_resumable(run, settings)
    else:
        runs.check_new(run)
    date = runs.read_date(run) if resume else datetime.date.today()
    torch.manual_seed(settings.seed)  # of the adapters' first weights
    task = load_task(settings.task, train_size=settings.train_size, heldout_size=settings.eval_size)
    loaded = fix_date(load_model(settings.model, device=settings.device), date)
    facts = found(loaded, task, settings, longest_prompt(loaded, task, settings.max_new_tokens))
    learner, reason = new_learner(loaded.model, settings, runs.read_costs(run) if resume else None)
    facts["updates"] = forwards_line(learner, reason)
    first, history = 0, []
    if resume:
        first = runs.load_checkpoint(run, trained_weights(learner.model), learner.optimizer)
        history = runs.rewind(run, first, settings)
        if first <= settings.updates:  # it has not reached its end
            runs.note_resumed(run, first)
    else:
        if auto:  # killed before its first checkpoint
            runs.clear_unsaved(run)
        runs.write_manifest(run, settings, loaded, learner.costs, date, facts)
    if tell:
        for line in found_lines(facts):
            tqdm.write(line, file=sys.stderr)
    elif reason:
        tqdm.write(f"updates are computed {' or '.join(learner.forwards)}: {reason}")
    return task, replace(loaded, model=learner.model), learner, first, history


def forwards_line(learner: Learner, reason: str) -> str:
    """How updates are computed, and why so."""
    why = reason or ("as asked" if len(learner.forwards) == 1 else "whichever is cheapest")
    return f"{' or '.join(learner.forwards)}, {why}"


def seed_of(settings: Settings, number: int) -> int:
    """The seed of an update's samples, or of an epoch's order."""
    return settings.seed * 1_000_003 + number


def problems_of(task: Task, settings: Settings, update: int) -> dict[str, list[str]]:
    """The P problems of an update: the training problems in an order that is shuffled anew for each epoch.

    Args:
        task: whose training problems are taken.
        settings: P and the seed are used.
        update: its number.
    """
    size = len(task.train)

    def order(epoch: int) -> Tensor:
        return torch.randperm(
            size, generator=torch.Generator().manual_seed(seed_of(settings, epoch))
        )

    places = range(update * settings.prompts, (update + 1) * settings.prompts)
    return task.train[[int(order(place // size)[place % size]) for place in places]]


def sample(
    loaded: LoadedModel, task: Task, problems: dict[str, list[str]], settings: Settings, update: int
) -> Scored:
    """The groups of an update, from the policy as it is.

    Args:
        loaded: the policy.
        task: whose verifier rewards.
        problems: P of them.
        settings: the run's.
        update: its number, of which the seed follows.
    """
    return score_groups(
        loaded.model.eval(),
        loaded.tokenizer,
        task,
        problems,
        group_size=settings.group_size,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        generator=torch.Generator().manual_seed(seed_of(settings, update)),
    )


def held_out(loaded: LoadedModel, task: Task, settings: Settings) -> dict[str, float]:
    """Greedy accuracy on the held-out problems, as columns of metrics.

    Args:
        loaded: the policy.
        task: whose held-out problems are solved.
        settings: the run's.
    """
    result = evaluate(loaded.model, loaded.tokenizer, task, max_new_tokens=settings.max_new_tokens)
    return {f"eval_{name}": result[name] for name in ("accuracy", "ci_low", "ci_high", "problems")}
