# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 07 · Overlap: is the PRM of a real model non-trivial?
#
# The theorem always holds. But if no two completions of a group share a token, each completion is one step, and the
# process reward model that GRPO hides is the outcome reward once more. Whether it says anything is a question to
# measure. In this lab you write the two measures, and take them to groups sampled from SmolLM2-135M.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. count how deep a completion's path is | 3 | 10 |
# | 2. measure how much of it is shared | 3 | 10 |
# | 3. compute the entropy of each token | 3 | 10 |
# | 4. say how strongly two measures go together | 3 | 15 |
# | 5. answer two questions | 4 | 15 |
#
# **Needs** lesson 07 (`lessons/07_real_trees.ipynb`) and two CPU cores; every cell runs in a second or two.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch`, `numpy` and the
# names of the next cell, but not `minigrpo`, which holds the answers.

# %% tags=["setup"]
import torch
from torch import Tensor

# %% tags=["tools"]
import json
from pathlib import Path

import matplotlib.pyplot as plt

from grader import check
from minigrpo import step_sizes

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## 1 · Path depth
#
# Along a completion the sets λ only shrink, so a new set is a smaller one. The *path depth* of completion i is the
# number of distinct sets along it, minus one: 0 is flat, nothing but one step.
#
# $$\text{depth}_i = \#\{\, \lambda^{(i,t)} : t < \text{len}(y^{(i)}) \,\} - 1$$
#
# You get the sizes |λ|, 0 where masked, as lab 02 made them. Sizes `3 3 3 2 2 1 1 0` belong to a path of depth 2. A
# completion with no token at all has depth 0.


# %% exercise="lab07.1" points=3 minutes=10 difficulty=1
def path_depth(sizes: Tensor) -> Tensor:
    """Count the process steps between root and leaf of each completion.

    Args: sizes int64 (G, T), |λ^(i,t)|, 0 where masked (on the right).
    Returns: int64 (G,), at least 0.
    """
    ### BEGIN SOLUTION
    shrinks = sizes[:, 1:] < sizes[:, :-1]
    still_there = sizes[:, 1:] > 0
    return torch.logical_and(shrinks, still_there).long().sum(dim=1)
    ### END SOLUTION


# %%
check("lab07.1", path_depth)

# %% [markdown]
# ## 2 · Intermediate proportion
#
# The tokens outside a completion's *last* step are those whose step reward can differ from its own outcome:
#
# $$\text{proportion}_i = \frac{\#\{\, t : \lambda^{(i,t)} \ne \lambda^{(i,\text{last})} \,\}}{\text{len}(y^{(i)})}$$
#
# For sizes `3 3 3 2 2 1 1 0` it is 5/7. Two identical completions stay in one set of two to their end: that is their
# last step, so they share everything and their proportion counts none of it. An empty completion has proportion 0.


# %% exercise="lab07.2" points=3 minutes=10 difficulty=2
def intermediate_proportion(sizes: Tensor) -> Tensor:
    """Measure the share of each completion's tokens that lie outside its last step.

    Args: sizes int64 (G, T), |λ^(i,t)|, 0 where masked (on the right).
    Returns: float (G,), from 0 to below 1.
    """
    ### BEGIN SOLUTION
    lengths = (sizes > 0).sum(dim=1)
    ends = (lengths - 1).clamp(min=0).unsqueeze(1)
    outside = (sizes > sizes.gather(1, ends)).sum(dim=1)
    return outside / lengths.clamp(min=1)
    ### END SOLUTION


# %%
check("lab07.2", intermediate_proportion)

# %% [markdown]
# Look at both on real groups: 36 completions of one prompt by SmolLM2-135M, at four temperatures
# (`lessons/data/make.py` sampled them).


# %%
def sizes_of(completions: list[list[int]]) -> Tensor:
    """|λ| of each token of a group, 0 where there is none."""
    T = max(len(y) for y in completions)
    ids = torch.tensor([y + [0] * (T - len(y)) for y in completions])
    return step_sizes(ids, torch.tensor([[t < len(y) for t in range(T)] for y in completions]))


data = json.loads(Path("../lessons/data/smollm2_samples.json").read_text(encoding="utf-8"))
groups = [group | {"sizes": sizes_of(group["completion_ids"])} for group in data["groups"]]
depths = torch.stack([path_depth(group["sizes"]).double().mean() for group in groups])
proportions = torch.stack([intermediate_proportion(group["sizes"]).double().mean() for group in groups])
entropies = torch.tensor([group["entropy"] for group in groups])
print(f"{len(groups)} groups; depth {depths.mean():.1f}, intermediate proportion {proportions.mean():.2f} on average")

# %%
COLORS = {0.4: "o#0072B2", 0.7: "s#E69F00", 1.0: "D#009E73", 1.3: "^#CC79A7"}
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), sharex=True)
for axes, values, name in zip(panels, (depths, proportions), ("path depth", "intermediate proportion"), strict=True):
    for temperature, style in COLORS.items():
        chosen = torch.tensor([group["temperature"] == temperature for group in groups])
        axes.plot(entropies[chosen], values[chosen], style[0], color=style[1:], alpha=0.8, label=f"{temperature}")
    axes.set(xlabel="entropy of the samples, nats per token", ylabel=f"mean {name}")
panels[0].legend(title="temperature")
figure.suptitle("How sure the model is, and how much its completions share")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 3 · Entropy
#
# The plot needs to know how unsure the model was. Above, entropy is estimated from the samples; with the logits z of a
# place in hand it is exact:
#
# $$p_v = \frac{e^{z_v}}{\sum_u e^{z_u}}, \qquad H = -\sum_v p_v \ln p_v$$
#
# For two equal logits it is ln 2 = 0.6931. Logits can be large (`exp(1000)` is infinite), and a token that may not be
# sampled has logit −∞: its probability is 0 and so is its part of the sum.


# %% exercise="lab07.3" points=3 minutes=10 difficulty=2
def token_entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of the next token at each place.

    Args: logits float (…, V), any size; −inf for a token that can't occur, at least one per place is finite.
    Returns: float (…,), in nats, from 0 to ln V.
    """
    ### BEGIN SOLUTION
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, torch.zeros_like(p)).sum(dim=-1)
    ### END SOLUTION


# %%
check("lab07.3", token_entropy)

# %% [markdown]
# ## 4 · Do they go together?
#
# The cloud above is no line, so compare ranks instead of values: *Spearman's* ρ is the correlation of ranks,
#
# $$\rho = \frac{\sum_k (a_k - \bar a)(b_k - \bar b)}
# {\sqrt{\sum_k (a_k - \bar a)^2}\,\sqrt{\sum_k (b_k - \bar b)^2}}$$
#
# where a and b are the ranks of x and y from 1 to N; equal values share the mean of their ranks, so `[5, 7, 7]` has
# ranks 1, 2.5, 2.5. It is 1 where y grows whenever x does, −1 where it falls.


# %% exercise="lab07.4" points=3 minutes=15 difficulty=2
def rank_correlation(x: list[float], y: list[float]) -> float:
    """Compute Spearman's rank correlation.

    Args: x, y: N numbers each, neither all equal.
    Returns: ρ, from −1 to 1.
    """

    ### BEGIN SOLUTION
    def ranks(values: list[float]) -> Tensor:
        v = torch.tensor(values, dtype=torch.float64)
        below = (v.unsqueeze(0) < v.unsqueeze(1)).sum(dim=1)
        tied = (v.unsqueeze(0) == v.unsqueeze(1)).sum(dim=1)
        return below + (tied + 1) / 2

    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    return float((a * b).sum() / (a.norm() * b.norm()))
    ### END SOLUTION


# %%
check("lab07.4", rank_correlation)

# %%
for name, values in (("path depth", depths), ("intermediate proportion", proportions)):
    rho = rank_correlation(entropies.tolist(), values.tolist())
    print(f"entropy and {name:24} ρ = {rho:+.2f} over {len(groups)} groups")

# %% [markdown]
# And over a training run? `lessons/data/runs.json` holds what training runs of SmolLM2-135M wrote at each update (the
# group is another size there). If the paper is right, overlap rises while entropy falls.

# %%
runs = json.loads(Path("../lessons/data/runs.json").read_text(encoding="utf-8"))["runs"]
figure, axes = plt.subplots(figsize=(6.4, 3.4))
kinds = sorted({(run["group_size"], run["temperature"], run["objective"]) for run in runs})
for (size, heat, objective), color in zip(kinds, ("#0072B2", "#D55E00", "#56B4E9", "#E69F00"), strict=False):
    same = [run for run in runs if (run["group_size"], run["temperature"], run["objective"]) == (size, heat, objective)]
    shares = torch.tensor([[row["intermediate_proportion"] for row in run["rows"]] for run in same])  # (seeds, updates)
    axes.plot(shares.T, color=color, alpha=0.25, linewidth=1)
    axes.plot(shares.mean(dim=0), color=color, linewidth=2.5, label=f"{objective}, G = {size}, temperature {heat}")
axes.set(xlabel="update", ylabel="mean intermediate proportion", title="Completions share more as SmolLM2 trains")
axes.set_ylim(0, 1)
axes.legend(fontsize=7, loc="lower right")
plt.show()

# %% [markdown]
# ## 5 · Two questions
#
# Answer each in three or four sentences. They are read by a person.

# %% [markdown] exercise="lab07.5" points=2 minutes=7
# **lab07.5** Is the process reward model that GRPO hides non-trivial for this model? Say which numbers of yours decide
# it, and name one way in which another setting (group size, temperature, task) would change the answer.
#
# ### BEGIN SOLUTION
# Yes where the mean depth is clearly above 0 and a good part of the tokens lies outside the last step: read off the two
# numbers at the temperature that would be used. Larger groups and lower temperatures make more overlap; long free text
# at a high temperature makes trees that branch at the first tokens and are flat from there on.
#
# *Rubric.* 1 point: answers with depth and proportion of its own, not with the theorem. 1 point: one setting with the
# right direction.
# ### END SOLUTION

# %% [markdown] exercise="lab07.6" points=2 minutes=8
# **lab07.6** All completions of a group are identical. What are path depth and intermediate proportion by our
# definition, what is |λ|, and what would GRPO learn from the group? Is that a weakness of the measures?
#
# ### BEGIN SOLUTION
# Depth 0 and proportion 0, as there is one set and it is the last; |λ| = G at every token; the rewards are equal, so
# all advantages are 0 and nothing is learnt. The measures speak of steps whose reward can differ from the outcome, and
# there are none, so 0 is right for that; but who reads them as "how much is shared" is misled: a policy that collapses
# ends at 0, as one that never overlaps does.
#
# *Rubric.* 1 point: 0, 0, G and no gradient. 1 point: a reasoned judgement of the measure.
# ### END SOLUTION
