# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 00 · Doctor
#
# Find out what works on this machine, write one line of code, and hand it in for practice. **Nothing here counts.**
#
# | you will | points | minutes |
# | --- | --- | --- |
# | read what works here | – | 3 |
# | 1. write the mean of a group's rewards | 1 | 3 |
# | practise handing in | – | 4 |
#
# **Needs** nothing but the install. **Rules** Write your code in the exercise cell, between its docstring and its end.

# %% tags=["setup"]
import torch

# %% tags=["tools"]
import matplotlib.pyplot as plt

from grader import check
from grader.doctor import report

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## What works here
#
# A line that begins with `missing` says what to do. In a shell: `python -m grader doctor`.

# %%
print(report())

# %% [markdown]
# ## 1 · The mean of a group
#
# GRPO compares each completion's reward with the mean of its group of G:
#
# $$\text{mean}\, r = \frac{1}{G} \sum_{i=1}^{G} r_i$$
#
# Rewards 0, 1, 1, 2 have the mean 1. Write it, run the cell, then run the check under it. Write the sum alone first,
# and see what the check says.


# %% exercise="lab00.1" points=1 minutes=3 difficulty=1
def group_mean(rewards: list[float]) -> float:
    """Take the mean of a group's rewards.

    Args: rewards: G numbers, at least one.
    Returns: their mean.
    """
    ### BEGIN SOLUTION
    return torch.tensor(rewards, dtype=torch.float64).mean().item()
    ### END SOLUTION


# %%
check("lab00.1", group_mean)

# %%
rewards = [0.0, 1.0, 1.0, 2.0]
figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
axes.bar(range(len(rewards)), rewards, color="#56B4E9")
axes.axhline(group_mean(rewards), color="#D55E00", label="the group's mean")
axes.set(xlabel="completion i", ylabel="reward", xticks=range(len(rewards)), title="Above its mean a reward pushes up")
axes.legend()
plt.show()

# %% [markdown]
# ## Hand in, for practice
#
# Save this notebook, then type in a shell, in the course's folder:
#
#     python -m grader check lab00
#     python -m grader submit lab00
#
# The first runs the public cases once more, on the saved notebook. The second writes `lab00.zip`: the notebook and a
# manifest with its hash. It takes unfinished work, too. That file is what you hand in. Public cases are few and known;
# the hidden ones that decide your points are drawn when a lab is graded.
