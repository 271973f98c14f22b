"""Lab 10, a run on shared machines: its exercises and its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grader.cases import draw_completions
from grader.exercise import Artifact, Case, Exercise, Mistake, Part, close, difference

Process = dict[str, Tensor]  # what one process holds: completion_ids, completion_mask, prompt


# lab10.1: step sizes where a group is split over processes


def local_step_sizes(gathered: list[Process], rank: int) -> Tensor:
    return sizes_with()(gathered, rank)


def sizes_with(
    *,
    members: Callable[[Process, int], Tensor] | None = None,
    kept: Callable[[list[Process], int], list[Process]] = lambda gathered, rank: gathered,
    masked: bool = True,
    prefix: bool = True,
    place: Callable[[int], int] = lambda rank: rank,
) -> Callable[[list[Process], int], Tensor]:
    """The sizes with one thing exchanged.

    Args:
        members: which group each row of all belongs to; its prompt's, unless given.
        kept: the processes whose rows are compared.
        masked: whether what a mask hides is left out.
        prefix: whether all tokens up to one have to agree, or that one alone.
        place: of the process whose rows are returned.
    """

    def sizes(gathered: list[Process], rank: int) -> Tensor:
        mine = gathered[place(rank)]
        ids, mask = mine["completion_ids"], mine["completion_mask"]
        own = mine["prompt"]
        count = torch.zeros_like(ids)
        for number, other in enumerate(kept(gathered, rank)):
            theirs, hidden = _to_length(other, ids.shape[1])
            group = other["prompt"] if members is None else members(other, number)
            wanted = own if members is None else members(mine, place(rank))
            agree = ids[:, None] == theirs[None]  # (B, B', T)
            if masked:
                agree &= mask[:, None] & hidden[None]
            agree = agree.cumprod(dim=-1) if prefix else agree.long()
            same = (wanted[:, None] == group[None])[..., None]
            count += (agree * same).sum(dim=1)
        return count * mask

    return sizes


def _to_length(process: Process, T: int) -> tuple[Tensor, Tensor]:
    """The ids and the mask of a process, cut or filled up to T tokens."""
    ids, mask = process["completion_ids"], process["completion_mask"]
    rows, had = ids.shape
    if had >= T:
        return ids[:, :T], mask[:, :T]
    return (
        torch.cat([ids, ids.new_zeros(rows, T - had)], dim=1),
        torch.cat([mask, mask.new_zeros(rows, T - had)], dim=1),
    )


def own_rows(gathered: list[Process], rank: int) -> list[Process]:
    return [gathered[rank]]


def of_one_length(gathered: list[Process], rank: int) -> list[Process]:
    """The processes whose tensors are as long as one's own."""
    length = gathered[rank]["completion_ids"].shape[1]
    return [process for process in gathered if process["completion_ids"].shape[1] == length]


def one_group(process: Process, number: int) -> Tensor:
    return torch.zeros_like(process["prompt"])


def group_by_place(process: Process, number: int) -> Tensor:
    """Takes the rows of a process for one group, as if none were split."""
    return torch.full_like(process["prompt"], number)


def draw_processes(groups: int, processes: int, ragged: bool, unlike: tuple[Callable, ...]):
    """Draw groups of 6 whose rows are dealt to the processes, until each of `unlike` answers wrongly.

    Args:
        groups: how many.
        processes: how many.
        ragged: whether each process has a length of its own.
        unlike: wrong functions.
    """

    def draw(rng: np.random.Generator) -> Case:
        while True:
            case = _dealt(rng, groups, processes, ragged)
            right = local_step_sizes(**case)
            if not any(
                torch.equal(wrong(**case), right)
                for wrong in unlike
                if wrong(**case).shape == right.shape
            ):
                return case

    return draw


def _dealt(rng: np.random.Generator, groups: int, processes: int, ragged: bool) -> Case:
    """Groups of 6 in any order, dealt to processes; under the masks stand tokens that occur."""
    names = rng.choice(90, size=groups, replace=False)
    rows = [(int(name), y) for name in names for y in draw_completions(rng, size=6)]
    order = rng.permutation(len(rows))
    each = len(rows) // processes
    dealt = [[rows[at] for at in order[r * each : (r + 1) * each]] for r in range(processes)]
    longest = max(len(y) for _, y in rows)
    lengths = [max(len(y) for _, y in part) if ragged else longest for part in dealt]
    gathered = [_process(part, T, rng) for part, T in zip(dealt, lengths, strict=True)]
    return {"gathered": gathered, "rank": int(rng.integers(1, processes))}


def _process(rows: list[tuple[int, list[int]]], T: int, rng: np.random.Generator) -> Process:
    ids = torch.from_numpy(rng.integers(3, size=(len(rows), T)))
    mask = torch.zeros(len(rows), T, dtype=torch.bool)
    for at, (_, y) in enumerate(rows):
        ids[at, : len(y)] = torch.tensor(y)
        mask[at, : len(y)] = True
    return {
        "completion_ids": ids,
        "completion_mask": mask,
        "prompt": torch.tensor([name for name, _ in rows]),
    }


def _worked_process(ids: list[list[int]], mask: list[list[int]], prompt: list[int]) -> Process:
    return {
        "completion_ids": torch.tensor(ids),
        "completion_mask": torch.tensor(mask, dtype=torch.bool),
        "prompt": torch.tensor(prompt),
    }


WORKED_PROCESSES = {
    "gathered": [
        _worked_process([[5, 6, 7], [5, 6, 8]], [[1, 1, 1], [1, 1, 1]], [0, 1]),
        _worked_process([[5, 6], [5, 9]], [[1, 1], [1, 0]], [0, 0]),
    ],
    "rank": 1,
}


# lab10.2: the denominator


def micro_batch_losses(
    terms: list[Tensor], masks: list[Tensor], tokens: list[list[int]]
) -> list[Tensor]:
    return losses_with()(terms, masks, tokens)


def losses_with(
    *,
    denominator: Callable[[list[int], list[list[int]], int], float] | None = None,
    masked: bool = True,
) -> Callable[..., list[Tensor]]:
    """The losses with another denominator: of (the process's own tokens, everybody's, which micro-batch)."""

    def losses(terms: list[Tensor], masks: list[Tensor], tokens: list[list[int]]) -> list[Tensor]:
        own = [int(mask.sum()) for mask in masks]
        found = []
        for at, (values, mask) in enumerate(zip(terms, masks, strict=True)):
            of = denominator or _whole_update
            total = (values * mask).sum() if masked else values.sum()
            found.append(-total / of(own, tokens, at))
        return found

    return losses


def _whole_update(own: list[int], tokens: list[list[int]], at: int) -> float:
    return sum(map(sum, tokens)) / len(tokens)


def draw_micro_batches(processes: tuple[int, ...], batches: tuple[int, ...]):
    """Draw the terms of one process's micro-batches, of unlike size, and the counts of all."""

    def draw(rng: np.random.Generator) -> Case:
        M = int(rng.choice(batches))
        masks = []
        for size in rng.permutation(np.arange(2, 2 + M)):
            lengths = torch.from_numpy(rng.integers(1, 7, size=int(size)))
            lengths[0] = int(size) + 2  # so that no two micro-batches are as long
            masks.append(torch.arange(8)[None] < lengths[:, None])
        terms = [torch.from_numpy(rng.normal(size=tuple(mask.shape))) + 0.5 for mask in masks]
        own = [int(mask.sum()) for mask in masks]
        count = int(rng.choice(processes))
        others = [rng.integers(20, 90, size=M).tolist() for _ in range(count - 1)]
        tokens = [own, *others]
        order = rng.permutation(count)
        return {"terms": terms, "masks": masks, "tokens": [tokens[at] for at in order]}

    return draw


WORKED_BATCHES = {
    "terms": [torch.tensor([[1.0, 9.0]]), torch.tensor([[2.0, 4.0]])],
    "masks": [torch.tensor([[True, False]]), torch.tensor([[True, True]])],
    "tokens": [[1, 2], [3, 4]],
}


# lab10.3: memory


def memory_gb(
    parameters: int,
    adapters: int,
    beta: float,
    layers: int,
    keys: int,
    vocabulary: int,
    completions: int,
    micro_batch: int,
    prompt_tokens: int,
    new_tokens: int,
    floats: int,
) -> dict[str, float]:
    trained = adapters or parameters
    frozen = parameters if adapters or beta else 0
    length = prompt_tokens + new_tokens
    found = {
        "weights": 4 * (trained + frozen),
        "gradients": 4 * trained,
        "moments": 8 * trained,
        "KV cache": 8 * layers * keys * completions * length,
        "logits": 24 * micro_batch * new_tokens * vocabulary,
        "activations": 4 * micro_batch * length * floats,
    }
    return _summed({name: value / 1e9 for name, value in found.items()})


def _summed(parts: dict[str, float]) -> dict[str, float]:
    states = parts["weights"] + parts["gradients"] + parts["moments"]
    largest = max(parts["KV cache"], parts["logits"] + parts["activations"])
    return parts | {"all": 1.0 + states + largest}


def memory_where(change: Callable[[dict[str, float], dict[str, Any]], dict[str, float]], **given):
    """The memory with parts exchanged: (parts, arguments) → parts; `given` replaces arguments."""

    def memory(**arguments) -> dict[str, float]:
        arguments |= {name: of(arguments) for name, of in given.items()}
        parts = memory_gb(**arguments)
        parts.pop("all")
        return _summed(parts | change(parts, arguments))

    return memory


def _both_at_once(**arguments) -> dict[str, float]:
    parts = memory_gb(**arguments)
    return parts | {"all": 1.0 + sum(value for name, value in parts.items() if name != "all")}


def _binary(**arguments) -> dict[str, float]:
    parts = memory_gb(**arguments)
    parts.pop("all")
    return _summed({name: value * 1e9 / 2**30 for name, value in parts.items()})


def draw_run(adapters: bool, beta: tuple[float, ...]):
    """Draw a model and a run; of the KV cache and the training pass now one is larger, now the other."""

    def draw(rng: np.random.Generator) -> Case:
        layers, keys = int(rng.integers(12, 33)), 64 * int(rng.integers(2, 9))
        parameters = int(rng.integers(100, 2000)) * 1_000_000
        prompts, size = int(rng.integers(4, 17)), int(rng.choice([4, 8, 16]))
        return {
            "parameters": parameters,
            "adapters": parameters // int(rng.integers(40, 90)) if adapters else 0,
            "beta": float(rng.choice(beta)),
            "layers": layers,
            "keys": keys,
            "vocabulary": 1000 * int(rng.integers(32, 152)),
            "completions": prompts * size,
            "micro_batch": int(rng.choice([2, 4, 8])),
            "prompt_tokens": int(rng.integers(50, 300)),
            "new_tokens": int(rng.integers(100, 900)),
            "floats": layers * int(rng.integers(2000, 9000)),
        }

    return draw


WORKED_RUN = {
    "parameters": 135_000_000,
    "adapters": 0,
    "beta": 0.04,
    "layers": 30,
    "keys": 192,
    "vocabulary": 50_000,
    "completions": 64,
    "micro_batch": 16,
    "prompt_tokens": 200,
    "new_tokens": 100,
    "floats": 400_000,
}


# lab10.4: a job script

# The lab's own; each blank is filled in by `script_with`.
SCRIPT = """#!/bin/bash
#SBATCH --job-name=lab10
#SBATCH --array={array}
#SBATCH --time={minutes}
#SBATCH --output=%x-%a.log
{options}
objectives=({objectives})
{choose}
folder={folder}
{launch} python -m minigrpo llm train --objective "$objective" --seed "$seed" --out "$folder" {resume}
{after}
"""
CHOICE = {
    "objective": "${objectives[SLURM_ARRAY_TASK_ID / SEEDS]}",
    "seed": "$((SLURM_ARRAY_TASK_ID % SEEDS))",
}


def job_script(objectives: list[str], seeds: int, minutes: int, update_seconds: int) -> str:
    return script_with()(objectives, seeds, minutes, update_seconds)


def script_with(
    *,
    lead: Callable[[int], int] = lambda seconds: 2 * seconds,
    signal: str = "TERM@{}",
    requeue: str = "#SBATCH --requeue",
    mode: str = "append",
    launch: str = "srun",
    resume: str = "--auto-resume",
    folder: str = "runs/$objective-$seed",
    codes: str = "130|143",
    task: str = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
    end: str = "exit $rc",
    **choice: str,
) -> Callable[..., str]:
    """The script with some blanks filled in otherwise; `choice` replaces entries of CHOICE.

    Args:
        lead: seconds of the signal before the limit, by those of an update.
        signal: which.
        requeue: the line that allows it.
        mode: of the log.
        launch: what stands before python.
        resume: how it goes on.
        folder: of a run.
        codes: with which a task is queued again.
        task: its id.
        end: the last line.
    """

    def script(objectives: list[str], seeds: int, minutes: int, update_seconds: int) -> str:
        asked = signal.format(lead(update_seconds))
        lines = [f"#SBATCH --signal={asked}" * bool(asked), requeue, f"#SBATCH --open-mode={mode}"]
        chosen = [f"{name}={text}" for name, text in (CHOICE | choice).items()]
        after = ["rc=$?", f"case $rc in {codes}) scontrol requeue {task} ;; esac", end]
        return SCRIPT.format(
            array=f"0-{len(objectives) * seeds - 1}",
            minutes=minutes,
            options="\n".join(line for line in lines if line),
            objectives=" ".join(objectives),
            choose="\n".join(chosen).replace("SEEDS", str(seeds)),
            folder=folder,
            launch=launch,
            resume=resume,
            after="\n".join(after),
        )

    return script


def draw_jobs(shows: tuple[str, ...], *stories: str, most_seeds: int = 2):
    """Draw an array and a cluster on which a long run needs three jobs or four.

    Args:
        shows: the fields of the report.
        stories: what the tasks go through; each occurs.
        most_seeds: from 2 on.
    """

    def draw(rng: np.random.Generator) -> Case:
        minutes, update = int(rng.integers(4, 9)), int(rng.integers(8, 16))
        loading = int(rng.integers(20, 50))
        fit = (60 * minutes - loading) // update
        names = rng.choice(["grpo", "lambda_grpo", "prm", "dr_grpo", "rloo"], size=2, replace=False)
        seeds = int(rng.integers(2, most_seeds + 1))
        tasks = len(names) * seeds
        told = [str(story) for story in rng.permutation([*stories] * tasks)[:tasks]]
        told[: len(stories)] = stories  # each occurs
        return {
            "objectives": [str(name) for name in names],
            "seeds": seeds,
            "minutes": minutes,
            "update_seconds": update,
            "cluster": {
                "stories": told,
                "loading": loading,
                "updates": int(fit * rng.uniform(2.1, 2.6)),
                "shows": list(shows),
            },
        }

    return draw


def judge_jobs(arguments: Case, expected: dict, answer: Any) -> str | None:
    """Judge what became of the jobs; where nothing ran, the stand-in has said why."""
    wrong = difference(expected, answer, 0.0)
    said = (
        [value for value in answer.values() if isinstance(value, str)]
        if wrong and isinstance(answer, dict)
        else []
    )
    return said[0] if said and said[0] else wrong


# lab10.5: the bundle


def grade(contents, seed: int) -> list[dict]:
    # loads transformers, which the other exercises have no need of
    from grader.bundles import grade

    return grade(contents, seed)


ARTIFACTS = (
    Artifact(id="lab10.5", points=6, files=("runs.json", "runs.safetensors"), grade=grade),
)
EXERCISES = (
    Exercise(
        id="lab10.1",
        function="local_step_sizes",
        reference=local_step_sizes,
        judge=close(),
        parts=(
            Part(
                name="one group on two processes",
                points=1,
                draw=draw_processes(1, 2, ragged=False, unlike=(sizes_with(kept=own_rows),)),
                hint="a step's members may lie on any process: count over the rows of all.",
            ),
            Part(
                name="groups in any order",
                points=2,
                draw=draw_processes(
                    3,
                    3,
                    ragged=False,
                    unlike=(
                        sizes_with(kept=own_rows),
                        sizes_with(members=one_group),
                        sizes_with(members=group_by_place),
                        sizes_with(masked=False),
                    ),
                ),
                hint="two rows are of one group where their `prompt` is equal, wherever they lie.",
            ),
            Part(
                name="each process has its own length",
                points=1,
                draw=draw_processes(
                    2,
                    3,
                    ragged=True,
                    unlike=(
                        sizes_with(kept=of_one_length),
                        sizes_with(masked=False),
                        sizes_with(prefix=False),
                    ),
                ),
                hint="bring all to one length, and what you add belongs to no completion; answer in your own length.",
                examples=(WORKED_PROCESSES,),
            ),
        ),
        mistakes=(
            Mistake(
                name="own rows alone",
                hint="you count the rows of this process alone; the others hold members of the same steps.",
                wrong=sizes_with(kept=own_rows),
            ),
            Mistake(
                name="groups mixed",
                hint="you count rows of other groups: a step belongs to one prompt.",
                wrong=sizes_with(members=one_group),
            ),
            Mistake(
                name="a process is a group",
                hint="you take the rows of a process for its groups; a group is dealt to several.",
                wrong=sizes_with(members=group_by_place),
            ),
            Mistake(
                name="padding counted",
                hint="you compare what stands under a mask: a completion that has ended shares no further step.",
                wrong=sizes_with(masked=False),
            ),
            Mistake(
                name="other lengths left out",
                hint="you leave out processes whose tensors have another length: fill them up, with a mask of False.",
                wrong=sizes_with(kept=of_one_length),
            ),
            Mistake(
                name="token alone",
                hint="you compare token by token; a step is shared where all tokens up to it agree.",
                wrong=sizes_with(prefix=False),
            ),
            Mistake(
                name="rank 0",
                hint="you answer for process 0, whatever `rank` says.",
                wrong=sizes_with(place=lambda rank: 0),
            ),
        ),
    ),
    Exercise(
        id="lab10.2",
        function="micro_batch_losses",
        reference=micro_batch_losses,
        driver="lab10_losses_and_grads",
        judge=close(),
        parts=(
            Part(
                name="micro-batches of one process",
                points=1,
                draw=draw_micro_batches((1,), (2, 3)),
                hint="all micro-batches of an update have one denominator: the tokens of all of them.",
            ),
            Part(
                name="processes with one micro-batch",
                points=1,
                draw=draw_micro_batches((2, 4), (1,)),
                hint="the gradients of the processes are averaged afterwards, so the loss has to be larger by "
                "their number.",
            ),
            Part(
                name="both",
                points=1,
                draw=draw_micro_batches((2, 3), (2, 3)),
                hint="the denominator is the number of tokens of the whole update, over the number of processes.",
                examples=(WORKED_BATCHES,),
            ),
        ),
        mistakes=(
            Mistake(
                name="mean of micro-batches",
                hint="you take the mean of each micro-batch, and of these means: a token of a short one counts more.",
                wrong=losses_with(denominator=lambda own, tokens, at: own[at] * len(own)),
            ),
            Mistake(
                name="mean per process",
                hint="you divide by the tokens of this process alone: a token counts more where there are few.",
                wrong=losses_with(denominator=lambda own, tokens, at: sum(own)),
            ),
            Mistake(
                name="divided by the processes twice",
                hint="you divide by the tokens of all, and the average over the processes divides once more.",
                wrong=losses_with(denominator=lambda own, tokens, at: sum(map(sum, tokens))),
            ),
            Mistake(
                name="divided by the micro-batches too",
                hint="you divide by the number of micro-batches too: their gradients are added, not averaged.",
                wrong=losses_with(
                    denominator=lambda own, tokens, at: _whole_update(own, tokens, at) * len(own)
                ),
            ),
            Mistake(
                name="padding counted",
                hint="you add the terms under the mask.",
                wrong=losses_with(masked=False),
            ),
        ),
    ),
    Exercise(
        id="lab10.3",
        function="memory_gb",
        reference=memory_gb,
        judge=close(),
        parts=(
            Part(
                name="every weight is trained",
                points=1,
                draw=draw_run(adapters=False, beta=(0.0,)),
                hint="weights, gradients and both moments are 4 bytes each for every weight that is trained.",
            ),
            Part(
                name="a reference beside it",
                points=1,
                draw=draw_run(adapters=False, beta=(0.01, 0.04)),
                hint="with β above 0 a frozen copy of all weights stands beside the model.",
                examples=(WORKED_RUN,),
            ),
            Part(
                name="adapters on a frozen base",
                points=1,
                draw=draw_run(adapters=True, beta=(0.0,)),
                hint="under adapters they alone are trained, and all weights of the base are frozen.",
            ),
            Part(
                name="adapters and a reference",
                points=1,
                draw=draw_run(adapters=True, beta=(0.01, 0.04)),
                hint="under adapters the frozen base is the reference, too: there is no second copy.",
            ),
        ),
        mistakes=(
            Mistake(
                name="one moment",
                hint="Adam keeps two moments of each trained weight, 8 bytes; your number is that of one.",
                wrong=memory_where(lambda parts, a: {"moments": parts["moments"] / 2}),
            ),
            Mistake(
                name="no moments",
                hint="Adam's two moments take 8 bytes of each trained weight.",
                wrong=memory_where(lambda parts, a: {"moments": 0.0}),
            ),
            Mistake(
                name="frozen base trained",
                hint="you give the frozen base gradients and moments: under adapters it has none.",
                wrong=memory_where(
                    lambda parts, a: (
                        {
                            "gradients": 4 * (a["parameters"] + a["adapters"]) / 1e9,
                            "moments": 8 * (a["parameters"] + a["adapters"]) / 1e9,
                        }
                        if a["adapters"]
                        else {}
                    )
                ),
            ),
            Mistake(
                name="no reference",
                hint="with β above 0 and every weight trained, a frozen copy is needed as the reference.",
                wrong=memory_where(lambda parts, a: {}, beta=lambda a: 0.0),
            ),
            Mistake(
                name="a copy beside adapters",
                hint="under adapters no second copy is needed: the reference is the base without them.",
                wrong=memory_where(
                    lambda parts, a: {
                        "weights": parts["weights"]
                        + 4e-9 * a["parameters"] * bool(a["adapters"] and a["beta"])
                    }
                ),
            ),
            Mistake(
                name="logits of one row",
                hint="logits are made for every row of the micro-batch; yours are those of one row.",
                wrong=memory_where(lambda parts, a: {"logits": parts["logits"] / a["micro_batch"]}),
            ),
            Mistake(
                name="logits of all completions",
                hint="logits are made for a micro-batch at a time, not for all completions.",
                wrong=memory_where(
                    lambda parts, a: {
                        "logits": parts["logits"] * a["completions"] / a["micro_batch"]
                    }
                ),
            ),
            Mistake(
                name="keys without values",
                hint="the cache holds keys and values: two numbers where you count one.",
                wrong=memory_where(lambda parts, a: {"KV cache": parts["KV cache"] / 2}),
            ),
            Mistake(
                name="cache of new tokens",
                hint="the prompt's keys and values are in the cache, too.",
                wrong=memory_where(
                    lambda parts, a: {
                        "KV cache": parts["KV cache"]
                        * a["new_tokens"]
                        / (a["prompt_tokens"] + a["new_tokens"])
                    }
                ),
            ),
            Mistake(
                name="both phases at once",
                hint="sampling and training take turns: of the cache and the training pass the larger one counts.",
                wrong=_both_at_once,
            ),
            Mistake(
                name="GiB",
                hint="you divide by 1024³; a GB is 10⁹ bytes, on data sheets and here.",
                wrong=_binary,
            ),
        ),
    ),
    Exercise(
        id="lab10.4",
        function="job_script",
        reference=job_script,
        driver="lab10_on_slurm",
        judge=judge_jobs,
        parts=(
            Part(
                name="each run once",
                points=1,
                draw=draw_jobs(("runs", "folders"), "short", most_seeds=4),
                hint="from the task's number follow one objective and one seed, and from these the folder.",
                draws=2,
            ),
            Part(
                name="stopped in time",
                points=1,
                draw=draw_jobs(("at the limit",), "long"),
                hint="the signal has to reach training, early enough for an update and its checkpoint.",
                draws=2,
            ),
            Part(
                name="goes on to its end",
                points=2,
                draw=draw_jobs(
                    ("at the limit", "queued again", "states", "updates", "log", "folders"),
                    "long",
                    "busy",
                ),
                hint="a run that was stopped in time (130, or 143 while it loads) is queued again and goes on in its "
                "folder.",
                draws=2,
            ),
            Part(
                name="ends as it should",
                points=1,
                draw=draw_jobs(("states", "exit codes"), "short", "fails", "refused"),
                hint="a run that is done, or that fails by its own fault, is not queued again; the script ends with "
                "its code.",
                draws=2,
            ),
        ),
        mistakes=(
            Mistake(
                name="no srun",
                hint="without srun there is no step, and the signal goes to steps: training hears nothing of it.",
                wrong=script_with(launch=""),
            ),
            Mistake(
                name="signal too late",
                hint="the signal leaves no time for the update in progress and its checkpoint: ask for it earlier.",
                wrong=script_with(lead=lambda seconds: seconds // 2),
            ),
            Mistake(
                name="signal to the script",
                hint="B: sends the signal to the script alone, not to the step in which training runs.",
                wrong=script_with(signal="B:TERM@{}"),
            ),
            Mistake(
                name="a signal that is not known",
                hint="training knows TERM and INT; any other signal ends it at once, without a checkpoint.",
                wrong=script_with(signal="USR1@{}"),
            ),
            Mistake(
                name="no signal",
                hint="without --signal the job is killed at its limit, between two checkpoints.",
                wrong=script_with(signal=""),
            ),
            Mistake(
                name="not queued again",
                hint="a job that was stopped in time ends there: the script has to call scontrol requeue, "
                "and --requeue has to allow it.",
                wrong=script_with(codes="never"),
            ),
            Mistake(
                name="the whole array",
                hint="$SLURM_JOB_ID of the last task is that of the array: all tasks are put back. Name the task as "
                "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.",
                wrong=script_with(task="$SLURM_JOB_ID"),
            ),
            Mistake(
                name="143 forgotten",
                hint="143 is SIGTERM while the libraries load: nothing is wrong with the run, queue it again.",
                wrong=script_with(codes="130"),
            ),
            Mistake(
                name="failed runs again",
                hint="you queue again what failed by itself: it fails again, for ever.",
                wrong=script_with(codes="[!0]*"),
            ),
            Mistake(
                name="everything again",
                hint="you queue again whatever the code is, also a run that is done.",
                wrong=script_with(codes="*"),
            ),
            Mistake(
                name="exit code lost",
                hint="the script ends with its last command's code, so a failure looks like success: exit $rc.",
                wrong=script_with(end="echo end"),
            ),
            Mistake(
                name="no resume",
                hint="the second start finds a run in its folder and refuses: it needs --auto-resume.",
                wrong=script_with(resume=""),
            ),
            Mistake(
                name="always --resume",
                hint="--resume refuses a folder without a checkpoint, so the first start fails: --auto-resume "
                "takes both.",
                wrong=script_with(resume="--resume"),
            ),
            Mistake(
                name="a new folder at each start",
                hint="each start has a folder of its own, so every run begins anew and none comes to its end.",
                wrong=script_with(folder="runs/$objective-$seed-$SLURM_RESTART_COUNT"),
            ),
            Mistake(
                name="log lost",
                hint="a job that is queued again truncates its log, unless it asks for --open-mode=append.",
                wrong=script_with(mode="truncate"),
            ),
            Mistake(
                name="one objective",
                hint="every task trains the first objective: take it from SLURM_ARRAY_TASK_ID.",
                wrong=script_with(objective="${objectives[0]}"),
            ),
            Mistake(
                name="seeds are not paired",
                hint="the task's number is taken for the seed: both objectives need the same seeds, from 0 on.",
                wrong=script_with(seed="$SLURM_ARRAY_TASK_ID"),
            ),
            Mistake(
                name="one folder for all seeds",
                hint="runs of several seeds share a folder: the second finds another's run there, and refuses.",
                wrong=script_with(folder="runs/$objective"),
            ),
        ),
    ),
)
