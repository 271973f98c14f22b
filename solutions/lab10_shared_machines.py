# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 10 · A run on shared machines
#
# One laptop is enough for `tiny`. A larger model needs several GPUs, and GPUs are shared: a group is split over
# processes, memory has to be planned, a job is stopped at its time limit. In this lab you write the parts that are
# easy to get wrong there, and then you compare GRPO with λ-GRPO over runs that were each interrupted.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. count step sizes where a group is split over processes | 4 | 25 |
# | 2. find the denominator of many micro-batches | 3 | 15 |
# | 3. plan the memory of a run | 4 | 20 |
# | 4. write a job script that survives its time limit | 5 | 35 |
# | 5. make six runs, each interrupted, and hand them in | 6 | 25 |
# | 6–7. draw a conclusion, and answer a question | 5 | 25 |
#
# **Needs** lesson 10 (`lessons/10_scaling_out.ipynb`) and the packages of `requirements.txt`. Everything runs on two
# CPU cores; exercise 5 takes about a minute there. You may make its runs on a cluster, with or without a GPU: **the
# points are the same**.
# **Rules** Exercises 1 to 4 are graded in a sandbox that knows `torch` and the names of the next cell, but not
# `minigrpo`, which holds answers. Exercise 5 is graded by its files.

# %% tags=["setup"]
import torch
from torch import Tensor

# %% tags=["tools"]
import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from grader import bundles, check
from minigrpo.llm.runs import can_resume
from minigrpo.llm.settings import Settings
from minigrpo.llm.training import train

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## 1 · A group on several processes
#
# Each process samples some rows of the batch, so the completions of one prompt may lie on several processes. A step
# needs its whole group: $|\lambda^{(i,t)}|$ counts the completions of the same prompt, **on all processes**, that agree
# with $y^{(i)}$ on the tokens 0…t.
#
# Before the count the processes exchange what they hold. `gathered[r]` is what process r holds:
#
# | name | shape | what |
# | --- | --- | --- |
# | `completion_ids` | int64 (B, T) | its rows; T is the length of **its** longest completion |
# | `completion_mask` | bool (B, T) | which tokens are there; where it is False any id may stand |
# | `prompt` | int64 (B,) | the number of each row's prompt: equal numbers, one group |
#
# T differs from process to process, the order of the rows is any, and a group may lie on one process or on all.
#
# Process 0 holds `5 6 7` of prompt 0 and `5 6 8` of prompt 1; process 1 holds `5 6` and `5`, both of prompt 0. The
# sizes on process 1 are `3 2` and `3 0`: three completions of prompt 0 begin with 5, two with 5 6.


# %% exercise="lab10.1" points=4 minutes=25 difficulty=3
def local_step_sizes(gathered: list[dict[str, Tensor]], rank: int) -> Tensor:
    """Count the step sizes of one process's rows.

    Args:
        gathered: for each process completion_ids int64 (B, T), completion_mask bool (B, T), prompt int64 (B,).
        rank: the process whose rows are asked for.

    Returns:
        int64 (B, T) in the process's own length; 0 where its mask is False.
    """
    ### BEGIN SOLUTION
    longest = max(part["completion_ids"].shape[1] for part in gathered)

    def stretch(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]))

    ids = torch.cat([stretch(part["completion_ids"]) for part in gathered])
    mask = torch.cat([stretch(part["completion_mask"]) for part in gathered])
    prompt = torch.cat([part["prompt"] for part in gathered])
    agree = (ids[:, None] == ids[None]) & mask[:, None] & mask[None]
    agree = agree.cumprod(dim=-1) * (prompt[:, None] == prompt[None])[..., None]
    sizes = agree.sum(dim=1)
    begin = sum(len(part["prompt"]) for part in gathered[:rank])
    B, T = gathered[rank]["completion_ids"].shape
    return sizes[begin : begin + B, :T]
    ### END SOLUTION


# %%
check("lab10.1", local_step_sizes)

# %% [markdown]
# ## 2 · One denominator for many micro-batches
#
# The loss of an update is a mean over all its tokens:
#
# $$L = -\frac{1}{N}\sum_{\text{all tokens of the update}} s_{i,t},
# \qquad N = \text{number of these tokens}$$
#
# Yet no process ever sees them all. Each has some micro-batches, calls `backward()` on a loss for each of them, and the
# gradients **add up**. Then the gradients of the processes are **averaged** (this is what PyTorch's
# `DistributedDataParallel` does), and the optimiser makes its step. Which loss does a process have to call `backward()`
# on, for each of its micro-batches, so that the optimiser gets the gradient of L?
#
# `tokens[r][m]` is the number of tokens in micro-batch m of process r. Your own process is one of them; its terms are
# already multiplied by their step weights.
#
# Two processes have two micro-batches each, with 1 and 2 tokens here and 3 and 4 there, N = 10. Ours have the terms
# `1 9`, of which the 9 is padding, and `2 4`. Their losses are −0.2 and −1.2: with the average over two processes, each
# token gets the weight 1/10.


# %% exercise="lab10.2" points=3 minutes=15 difficulty=2
def micro_batch_losses(terms: list[Tensor], masks: list[Tensor], tokens: list[list[int]]) -> list[Tensor]:
    """Give the losses of one process's micro-batches.

    Args:
        terms: for each micro-batch s_{i,t}, float (B, T).
        masks: for each micro-batch which tokens are there, bool (B, T).
        tokens: for each process, for each of its micro-batches, how many tokens are there.

    Returns:
        A scalar tensor for each micro-batch.
    """
    ### BEGIN SOLUTION
    processes = len(tokens)
    N = sum(count for counts in tokens for count in counts)
    return [-processes * (s * mask).sum() / N for s, mask in zip(terms, masks, strict=True)]
    ### END SOLUTION


# %%
check("lab10.2", micro_batch_losses)

# %% [markdown]
# ## 3 · The memory of a run
#
# Before a job waits in a queue for an hour one should know that it fits. This is what `llm train` needs, in bytes. It
# keeps all weights in float32, 4 bytes a number.
#
# | part | bytes |
# | --- | --- |
# | weights | 4 of each weight, trained or frozen |
# | gradients | 4 of each trained weight |
# | moments | AdamW keeps two numbers of each trained weight |
# | KV cache, while it samples | a key and a value: 2 · 4 · layers · keys, of each token of each completion and prompt |
# | logits, while it trains | 24 · vocabulary, of each new token of each row of the micro-batch |
# | activations, while it trains | 4 · floats, of each token of each row of the micro-batch, prompt included |
#
# - Without adapters (`adapters` = 0) all `parameters` are trained. With adapters these are trained and all `parameters`
#   are frozen.
# - With β > 0 a reference is needed: a frozen copy of all `parameters`. With adapters it is there already: the frozen
#   base without them.
# - Sampling and training take turns. So of the KV cache, and logits and activations together, the **larger** counts.
# - 1 GB more for CUDA itself. 1 GB is 10⁹ bytes.
#
# 24 bytes of a logit are the logits, a copy, their log-softmax, and the gradients of the three. It is an estimate on
# the cautious side: `minigrpo/llm/gpu.py` computes the same, and finds `floats` from the model's shape.


# %% exercise="lab10.3" points=4 minutes=20 difficulty=2
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
    """Compute the GB that a run needs.

    Args:
        parameters: weights of the model.
        adapters: weights of its adapters; 0 where there are none.
        beta: of the KL term; 0 where there is no reference.
        layers: of the model.
        keys: numbers of a key, in one layer.
        vocabulary: of the model.
        completions: that are sampled at a time, P · G.
        micro_batch: rows of one training pass.
        prompt_tokens: of a prompt.
        new_tokens: of a completion.
        floats: that the backward pass needs of a token.

    Returns:
        GB by the names "weights", "gradients", "moments", "KV cache", "logits", "activations" and "all".
    """
    ### BEGIN SOLUTION
    trained = adapters if adapters else parameters
    frozen = parameters if adapters or beta > 0 else 0
    tokens = prompt_tokens + new_tokens
    parts = {
        "weights": 4 * (trained + frozen),
        "gradients": 4 * trained,
        "moments": 2 * 4 * trained,
        "KV cache": 2 * 4 * layers * keys * completions * tokens,
        "logits": 24 * vocabulary * micro_batch * new_tokens,
        "activations": 4 * floats * micro_batch * tokens,
    }
    parts = {name: size / 10**9 for name, size in parts.items()}
    always = parts["weights"] + parts["gradients"] + parts["moments"]
    in_turn = max(parts["KV cache"], parts["logits"] + parts["activations"])
    return parts | {"all": always + in_turn + 1}
    ### END SOLUTION


# %%
check("lab10.3", memory_gb)

# %%
model = {"parameters": 135_000_000, "layers": 30, "keys": 192, "vocabulary": 49_152, "floats": 373_000}
run = {"completions": 64, "prompt_tokens": 200, "new_tokens": 256, "beta": 0.0}
rows = [1, 2, 4, 8, 16, 32, 64]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for adapters, color, label in ((0, "#0072B2", "every weight"), (4_900_000, "#D55E00", "adapters")):
    needed = [memory_gb(adapters=adapters, micro_batch=n, **model, **run)["all"] for n in rows]
    axes.plot(rows, needed, "o-", color=color, label=label)
axes.axhline(16, color="0.6", linestyle="--", label="a card of 16 GB")
axes.set_xscale("log", base=2)
axes.set_yscale("log", base=2)
ticks = {"xticks": rows, "xticklabels": rows, "yticks": rows[2:], "yticklabels": rows[2:]}
axes.set(xlabel="rows in a micro-batch", ylabel="GB", **ticks)
axes.set_title("SmolLM2-135M: the micro-batch decides what fits")
axes.legend()
plt.show()

# %% [markdown]
# ## 4 · A job that survives its time limit
#
# On a cluster a scheduler starts your script, here Slurm, and ends it at its time limit. A run that takes longer has to
# stop in time, with a checkpoint, and to go on in a further job. What you need to know:
#
# - **An array** is one script for many tasks: with `--array=0-5` it is started six times, each time with another
#   number in `SLURM_ARRAY_TASK_ID`. Each task trains one objective with one seed, 0 … seeds − 1, in a folder of its
#   own.
# - **A signal before the limit.** `--signal=TERM@90` sends SIGTERM 90 seconds before the limit, or somewhat earlier, to
#   the *steps* of the job, that is, to what `srun` started. It goes to nothing else. (With `B:` in front it goes to the
#   script alone.)
# - **Training** that gets SIGTERM finishes the update it is at, writes a checkpoint and ends with exit code 130. An
#   update with its checkpoint takes at most `update_seconds`. While it loads its libraries SIGTERM ends it at once,
#   with code 143 and without a checkpoint; nothing is wrong then. At the limit everything is killed, the script too.
# - **Queued again.** `scontrol requeue 71_4` puts task 4 of array 71 back into the queue, and the same script starts
#   once more with the same number; 71 stands in `SLURM_ARRAY_JOB_ID`. `SLURM_JOB_ID` is another number for each task,
#   but the last task's is that of the array, and would put all tasks back. On this cluster only a job with `--requeue`
#   may be queued again. Its log is emptied at each start, unless it says `--open-mode=append`.
# - **Folders.** A run refuses a folder that holds a run. `--resume` goes on from its checkpoint, and refuses a folder
#   without one. `--auto-resume` goes on where there is a checkpoint and begins where there is none.
# - **Failures.** A run that fails by its own fault ends with 1, and with 2 where its settings are wrong. It would fail
#   again, so it must not be queued again. The script's own exit code is what the scheduler shows you: it has to be the
#   one of the run.
#
# `objectives` and `seeds` give the array, `minutes` the time limit. Return the text of the script, with all blanks of
# `TEMPLATE` filled in, or one of your own. The grader does not read it: a small stand-in for Slurm runs it in bash (so
# the check needs Linux or macOS) with a `python`, an `srun` and a `scontrol` of its own, and looks at what happens. It
# counts the seconds instead of waiting. It knows no `trap`.

# %% exercise="lab10.4" points=5 minutes=35 difficulty=3
TEMPLATE = """#!/bin/bash
#SBATCH --job-name=lab10
#SBATCH --output=%x-%a.log
#SBATCH --array={array}
#SBATCH --time={minutes}
#SBATCH {signal}
#SBATCH {requeue}
#SBATCH {open_mode}

objectives=({objectives})
objective={objective}
seed={seed}

{launch} python -m minigrpo llm train --objective $objective --seed $seed --out {folder} {resume}
rc=$?
{queue_again}
{end}
"""


def job_script(objectives: list[str], seeds: int, minutes: int, update_seconds: int) -> str:
    """Write the script of an array that trains each objective with each seed.

    Args:
        objectives: their names.
        seeds: how many; they are 0 … seeds − 1.
        minutes: the time limit of a job.
        update_seconds: what an update takes with its checkpoint, at most.

    Returns:
        The text of the script.
    """
    ### BEGIN SOLUTION
    blanks = {
        "array": f"0-{len(objectives) * seeds - 1}",
        "minutes": minutes,
        "signal": f"--signal=TERM@{update_seconds + 10}",
        "requeue": "--requeue",
        "open_mode": "--open-mode=append",
        "objectives": " ".join(objectives),
        "objective": f"${{objectives[$((SLURM_ARRAY_TASK_ID / {seeds}))]}}",
        "seed": f"$((SLURM_ARRAY_TASK_ID % {seeds}))",
        "launch": "srun",
        "folder": "runs/lab10/$objective-$seed",
        "resume": "--auto-resume",
        "queue_again": "if [ $rc = 130 ] || [ $rc = 143 ]; then\n"
        "  scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\nfi",
        "end": "exit $rc",
    }
    return TEMPLATE.format(**blanks)
    ### END SOLUTION


# %%
check("lab10.4", job_script)

# %%
print(job_script(["grpo", "lambda_grpo"], 3, minutes=20, update_seconds=30))

# %% [markdown]
# ## 5 · Six runs, each interrupted
#
# Now compare GRPO with λ-GRPO on `tiny`: two objectives with three seeds each, so that each seed makes a **pair**. The
# two runs of a pair differ in the objective alone. Each run is interrupted at least once, and goes on. Choose your
# seeds before you look at a result, and take others than your neighbours: then the class has many pairs.
#
# `train(settings, folder, resume=…, max_minutes=…)` stops in time with a checkpoint, as at SIGTERM, and then returns
# False; True says that the run is at its end. `can_resume(folder)` says whether there is a checkpoint. On a cluster,
# use your script, with the options below added, and copy the six folders into one; there `scancel --signal=TERM 71_4`
# interrupts task 4 of array 71 by hand, and with 400 updates there is time for it.
#
# **Settings.** `tiny`, the task `arithmetic`, every weight (no adapters), the same settings for all six but `objective`
# and `seed`, and
#
# | updates | prompts × group | learning rate | tokens | evaluated on |
# | --- | --- | --- | --- | --- |
# | 60 (20 to 400) | 8 × 8 | 1e-4 | 16 (12 to 24) | 200 problems (100 to 400) |
#
# The values in brackets are what the grader takes; other numbers you may choose. With `minutes` of 0.01 the first call
# stops after an update or a few, and the second goes on to the end.
#
# **Points** 2 for six whole runs: each folder has its checkpoint of the last update, and its `metrics.jsonl` each
# update exactly once and in order. 1 for a fair comparison: three pairs, and settings that differ in the objective
# alone. 1 for interruptions: `manifest.json` says of each run where it went on (`resumed`). 2 for claims that hold: the
# grader lets each checkpoint solve problems again. What `metrics.jsonl` says of the first and the last accuracy has to
# lie within 3 percentage points of what it finds on the same problems, and the last within 4 standard errors of what it
# finds on 200 fresh ones. No two checkpoints may be the same, and none may be untrained. **Which objective is better
# earns nothing.**
#
# `grader/thresholds/lab10.json` holds what these settings gave over 32 seeds.

# %%
RUNS = Path("runs") / "lab10"
SEEDS = [0, 1, 2]  # three of your own
MINUTES = 0.01  # after which the first call of `train` stops


# %% exercise="lab10.5" points=6 minutes=25 difficulty=2
def make_runs(folder: Path, seeds: list[int], minutes: float) -> None:
    """Make six runs, and interrupt each: folder/objective-seed for both objectives and each seed.

    Args:
        folder: for the folders of the runs.
        seeds: three.
        minutes: after which a run is interrupted.
    """
    ### BEGIN SOLUTION
    same = {"updates": 60, "learning_rate": 1e-4, "max_new_tokens": 16, "eval_size": 200}
    for seed in seeds:
        for objective in ("grpo", "lambda_grpo"):
            out = folder / f"{objective}-{seed}"
            settings = Settings(objective=objective, seed=seed, **same)
            if not can_resume(out):
                train(settings, out, max_minutes=minutes, progress=False)
            train(settings, out, resume=True, progress=False)
    ### END SOLUTION


# %%
make_runs(RUNS, SEEDS, MINUTES)

# %% [markdown]
# What each run says of itself, and the differences of the pairs. With three pairs the interval is
# $\bar d \pm 4.30 \cdot s/\sqrt 3$: 4.30 is the 97.5 % point of the t distribution with 2 degrees of freedom.

# %%
last = {}
for path in sorted(RUNS.glob("*/metrics.jsonl")):
    last[path.parent.name] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["eval_accuracy"]
differences = [last[f"lambda_grpo-{seed}"] - last[f"grpo-{seed}"] for seed in SEEDS]
middle, half = statistics.mean(differences), 4.303 * statistics.stdev(differences) / 3**0.5
for name, accuracy in last.items():
    print(f"{name:16} {accuracy:.3f}")
print(f"λ-GRPO − GRPO: {', '.join(f'{d:+.3f}' for d in differences)}; mean {middle:+.3f} ± {half:.3f}")

# %% [markdown]
# Look at the runs as the grader will, with a seed that is not its own.

# %%
contents, left_out = bundles.pack_runs(RUNS)
for sentence in left_out:
    print(sentence)
for part in bundles.grade(contents, seed=0):
    print(f"{part['earned']} of {part['points']}  {part['name']}  {part['feedback']}")

# %% [markdown]
# **Hand in** with `python -m grader submit lab10 --runs labs/runs/lab10` (the folder that `RUNS` named). It packs the
# notebook and, of the runs, the manifests, the metrics and the weights in half precision, about 10 MB.
#
# ## 6 · Your conclusion, and a question
#
# They are read by a person.

# %% [markdown] exercise="lab10.6" points=3 minutes=15
# **lab10.6** What do your six runs say about λ-GRPO against GRPO? Give the differences of the pairs, their mean and its
# interval, say what the interval allows you to conclude and what it does not, and how many pairs you would need to see
# a difference of 2 percentage points.
#
# ### BEGIN SOLUTION
# An example, from the seeds 0, 1 and 2: differences of −1.5, −8 and 0 points, mean −3.2, interval ±10.6. It holds 0,
# and also differences of several points in both directions, so these runs don't tell which is better; they do not show
# that both are equal either. The standard deviation of a difference is about 4.3 points, so for an interval of ±2
# points one needs (2 · 4.3 / 2)² ≈ 18 pairs, with t about 20, if three pairs tell the deviation well, which they don't.
# It is one model, one task and one learning rate. The 200 problems alone give each accuracy a standard error of about
# 3 points, of which a part cancels in a pair, as both runs solve the same problems.
#
# *Rubric.* 1 point: numbers that agree with the files, as pairs, with an interval. 1 point: a conclusion that follows
# from the interval; “no difference was found” is one, “they are equal” is not. 1 point: a number of pairs with its
# reason.
# ### END SOLUTION

# %% [markdown] exercise="lab10.7" points=2 minutes=10
# **lab10.7** A run was stopped between two checkpoints, and goes on from the last one. Which updates stand in
# `metrics.jsonl` twice if nobody takes care, and what would a plot of it show? And what besides weights does a
# checkpoint need, so that the run goes on as if it had not been stopped?
#
# ### BEGIN SOLUTION
# The updates after the checkpoint are made again, so that their rows would be there twice; a plot would go back and
# show the same updates once more, and a mean over rows would count them twice. The rows after the checkpoint have to be
# dropped first. Besides the weights one needs the optimiser's moments and its count of steps, the number of the update,
# and whatever the prompts and samples follow from: here the seed and the update's number are enough.
#
# *Rubric.* 1 point: the rows after the checkpoint, and what they do. 1 point: moments, and the state of the random
# numbers or of the order of prompts.
# ### END SOLUTION
