# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 09 · From toy to language model
#
# All that you built works on a real model. You write the verifier, choose settings that fit a machine, and fine-tune
# a language model with adapters. What you hand in is the adapter: the grader puts it into its base model and lets it
# solve fresh problems.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. read the answer out of a completion | 5 | 20 |
# | 2. choose settings that fit | 4 | 20 |
# | 3. train an adapter | 6 | 20 |
# | 4–5. answer two questions | 4 | 15 |
#
# **Needs** lesson 09 (`lessons/09_language_models.ipynb`) and the packages of `requirements.txt`. With `tiny`, which
# comes with the course, training takes under a minute on two idle CPU cores; SmolLM2-135M takes some minutes there, and
# less on a GPU. **Every base gives the same points**, by the same rules.
# **Rules** Exercises 1 and 2 are graded in a sandbox that knows `torch` and the names of the next cell. Exercise 3 is
# graded by its files.

# %% tags=["setup"]
import re

import torch

# %% tags=["tools"]
import json
from pathlib import Path

import matplotlib.pyplot as plt

from grader import adapters, check
from minigrpo.llm.settings import Settings
from minigrpo.llm.training import train

# %% [markdown]
# ## 1 · The verifier
#
# A verifier reads a text that a model wrote. The rules here:
#
# - The answer is the last number in the last `\boxed{…}`; where there is no box, the last number of the whole text.
#   What a box holds is anything but braces. A box without a number holds no answer.
# - A number is digits, or digits in threes set apart by commas (`1,000`, but `1, 2` and `1,2` are two numbers, and so
#   are `7,2024` and `1234,567`); then a point and digits, where they follow. In `27.` the point ends the sentence.
# - A `-` right before it is its sign, unless a digit, a letter or a `)` stands right before the `-`: `10-3` ends in 3
#   and `=-3` in −3.
# - No number: `None`.
#
# | text | answer |
# | --- | --- |
# | `25-4=21` | 21 |
# | `\boxed{7} after 3 tries` | 7 |
# | `It is 1,000.` | 1000 |
# | `I can't.` | None |


# %% exercise="lab09.1" points=5 minutes=20 difficulty=2
def extract_answer(completion: str) -> float | None:
    r"""Read the answer out of a completion.

    Args: completion: any text.
    Returns: the number, or None where there is none.
    """
    ### BEGIN SOLUTION
    boxed = re.findall(r"\\boxed{([^{}]*)}", completion)
    place = boxed[-1] if boxed else completion
    sign, whole, decimals = r"((?<![\dA-Za-z)])-)?", r"(\d{1,3}(?:,\d{3})+(?!\d)|\d+)", r"(\.\d+)?"
    numbers = re.findall(sign + whole + decimals, place, re.ASCII)
    return float("".join(numbers[-1]).replace(",", "")) if numbers else None
    ### END SOLUTION


# %%
check("lab09.1", extract_answer)

# %%
answers = ["25-4=21", "The sum is \\boxed{1,021}.", "12 - 5 = -7, no: 7", "10-3", "=-3", "I give up"]
for text in answers:
    print(f"{text:30} → {extract_answer(text)}")

# %% [markdown]
# ## 2 · Settings that fit
#
# An update of GRPO has `completions` samples: `prompts` × `group_size`. They pass through the model in micro-batches of
# `micro_batch` rows, which changes the memory and not the gradient. Three rules:
#
# - **Groups that teach.** A group whose rewards are all equal has advantages of 0. With the chance p of a right answer
#   this happens with probability $p^G + (1-p)^G$. Take the smallest G that divides `completions` and makes it at most
#   0.1; if there is none, G = `completions`.
# - **All of them.** prompts × group_size = completions.
# - **What fits.** The model takes `model_gb`, and each token of a row in the micro-batch `mb_per_token` (1 GB is
#   1000 MB). Take the largest `micro_batch` that divides `completions` and fits into `memory_gb`.
#
# With 64 completions, p = 0.5, 200 tokens, 4 GB of memory, a model of 2 GB and 0.5 MB a token: G = 8, since G = 4 gives
# 0.125; 16 rows take 1.6 GB, 32 would take 3.2. So 8 prompts, groups of 8, micro-batches of 16. One row always fits.
# With 12 completions and p = 0.15 even a group of 12 is all wrong in 14% of cases, so one prompt gets all 12.


# %% exercise="lab09.2" points=4 minutes=20 difficulty=2
def choose_settings(
    completions: int, success: float, tokens: int, memory_gb: float, model_gb: float, mb_per_token: float
) -> dict[str, int]:
    """Choose prompts, group size and micro-batch for a machine and a task.

    Args: completions of an update; success: the chance p that a completion is right, between 0 and 1; tokens of a row,
        prompt and completion; memory_gb of the machine; model_gb, what the model takes; mb_per_token of a row.
    Returns: {"prompts": …, "group_size": …, "micro_batch": …}, whole numbers.
    """
    ### BEGIN SOLUTION
    divisors = [d for d in range(1, completions + 1) if completions % d == 0]
    teaching = [G for G in divisors if success**G + (1 - success) ** G <= 0.1]
    G = teaching[0] if teaching else completions
    rows = (memory_gb - model_gb) * 1000 / (tokens * mb_per_token)
    micro_batch = max(b for b in divisors if b <= rows)
    return {"prompts": completions // G, "group_size": G, "micro_batch": micro_batch}
    ### END SOLUTION


# %%
check("lab09.2", choose_settings)

# %%
chances = [0.03 * k for k in range(1, 33)]
machine = {"completions": 64, "tokens": 200, "memory_gb": 4.0, "model_gb": 2.0, "mb_per_token": 0.5}
sizes = [choose_settings(success=p, **machine)["group_size"] for p in chances]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.step(chances, sizes, where="mid", color="#0072B2")
axes.set(xlabel="chance that a completion is right", ylabel="group size G", ylim=(0, 68))
axes.set_title("Problems too hard or too easy need large groups")
plt.show()

# %% [markdown]
# ## 3 · Train an adapter
#
# Choose a base: `tiny` writes sums and differences of three numbers one operation at a time and is right half the
# time; `smollm2-135m` adds two numbers from 2 to 49. `write_task` gives the task's name for the settings.
#
# Write two calls: `train(Settings(…), run)`, with adapters (`lora_rank`), and `adapters.save_adapter`, which takes the
# run's folder and the adapter's. `Settings` documents its fields. Start from:
#
# | base | updates | prompts × group | learning rate | rank, alpha | tokens | evaluated on |
# | --- | --- | --- | --- | --- | --- | --- |
# | `tiny` | 60 | 8 × 8 | 1e-3 | 8, 16 | 16 | 200 |
# | `smollm2-135m`, at temperature 0.7 | 12 | 4 × 8 | 2e-4 | 8, 16 | 16 | 60 |
#
# **Points** 1 for an adapter that the grader can read and that was trained (rank up to 64, float32, all linear layers
# or some). 3 for at least **10 percentage points** more right answers than the base on fresh problems, greedily
# decoded, at most 16 tokens. 2 for claims that hold: the accuracies in `metrics.jsonl`, before and after, on at least
# 50 problems (`eval_size`), have to lie within 3.5 standard errors of what the grader finds.
# `grader/thresholds/lab09.json` holds what these settings gave: `tiny` gained 24 to 36 points over 32 seeds,
# `smollm2-135m` 18 and 41 on the two that were run. On two cores it takes `smollm2-135m` some three minutes.

# %%
BASE = "tiny"  # or "smollm2-135m"
if BASE == "tiny":
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FOLDER = Path("runs") / f"lab09_{BASE}"
FOLDER.mkdir(parents=True, exist_ok=True)
TASK = adapters.write_task(BASE, FOLDER)
RUN = FOLDER / f"run{len(list(FOLDER.glob('run*')))}"  # each time the cell is run it names a new run
OUT = FOLDER / "adapter"
print(f"task {TASK} on {DEVICE}; the run goes into {RUN}, its adapter into {OUT}")


# %% exercise="lab09.3" points=6 minutes=20 difficulty=2
def train_adapter(base: str, task: str, device: str, run: Path, out: Path) -> None:
    """Train an adapter on a base model and save it.

    Args: base, task, device: for the settings; run: the folder of the run; out: the folder of the adapter.
    """
    ### BEGIN SOLUTION
    common = {"model": base, "task": task, "device": device, "max_new_tokens": 16, "lora_rank": 8, "lora_alpha": 16}
    if base == "tiny":
        settings = Settings(**common, updates=60, learning_rate=1e-3, eval_size=200)
    else:
        small = {"prompts": 4, "micro_batch": 16, "eval_size": 60}
        settings = Settings(**common, **small, updates=12, learning_rate=2e-4, temperature=0.7)
    train(settings, run, progress=False)
    adapters.save_adapter(run, out)
    ### END SOLUTION


# %%
train_adapter(BASE, TASK, DEVICE, RUN, OUT)

# %%
rows = [json.loads(line) for line in (OUT / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
tested = [row for row in rows if "eval_accuracy" in row]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot([row["update"] for row in rows], [row["reward"] for row in rows], color="0.7", label="reward of the samples")
low, high = ([abs(row[f"eval_ci_{end}"] - row["eval_accuracy"]) for row in tested] for end in ("low", "high"))
points = [row["update"] for row in tested], [row["eval_accuracy"] for row in tested]
axes.errorbar(*points, yerr=[low, high], fmt="o-", color="#0072B2", capsize=3, label="held-out accuracy, greedy")
axes.set(xlabel="update", ylabel="share of right answers", ylim=(0, 1))
axes.set_title(f"{BASE} learns: {points[1][0]:.0%} before, {points[1][-1]:.0%} after {rows[-1]['update']} updates")
axes.legend()
plt.show()

# %% [markdown]
# Look at the files as the grader will, with a seed that is not its own.

# %%
contents = {name: (OUT / name).read_bytes() for name in adapters.FILES}
for part in adapters.grade(contents, seed=0):
    print(f"{part['earned']} of {part['points']}  {part['name']}  {part['feedback']}")

# %% [markdown]
# **Hand in** with `python -m grader submit lab09 --files labs/runs/lab09_tiny/adapter` (the folder that `OUT` named),
# which packs the notebook and the three files.
#
# ## 4 · Two questions
#
# Answer each in three or four sentences. They are read by a person.

# %% [markdown] exercise="lab09.4" points=2 minutes=7
# **lab09.4** Your reward is the verifier's: the last number counts. Describe a completion that earns the reward and
# that you would not want, and a change of the verifier that refuses it. What would the change cost?
#
# ### BEGIN SOLUTION
# A model that guesses without working, or lists many numbers and ends on a likely one, earns it; so does one whose
# steps are wrong and whose last number is right by luck. Asking for one box, or for steps that are each true, refuses
# these. It costs right answers in another form, which now count as wrong, and it makes the reward rarer at first.
#
# *Rubric.* 1 point: a completion that the rules really reward. 1 point: a change, with what it costs.
# ### END SOLUTION

# %% [markdown] exercise="lab09.5" points=2 minutes=8
# **lab09.5** The grader evaluates on fresh problems and allows 3.5 standard errors between your claim and what it
# finds. Why not on your own held-out problems, and why not demand that both numbers be equal?
#
# ### BEGIN SOLUTION
# One's own held-out problems can be trained on, or settings can be picked by them, so that they no longer measure
# what was not seen. An accuracy of n problems is a sample with a standard error of √(p(1 − p)/n), for 200 problems
# about 3 points, so two honest measurements differ; demanding equality would punish honest runs.
#
# *Rubric.* 1 point: problems that were seen or chosen by no longer measure. 1 point: sampling error of both numbers.
# ### END SOLUTION
