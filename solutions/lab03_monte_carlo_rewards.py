# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 03 · Monte-Carlo process rewards
#
# How good is a beginning? Go on from it many times and average what comes out. A group does this all by itself: those
# who share a beginning are its continuations. In this lab you read step rewards off a group, then pay for fresh
# continuations, and compare the two.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. average rewards over process sets | 4 | 15 |
# | 2. turn step rewards into step advantages | 3 | 10 |
# | 3. estimate the value of a prefix from fresh continuations | 4 | 15 |
# | 4. measure bias and variance | 2 | 10 |
# | 5. answer two questions | 4 | 15 |
#
# **Needs** lesson 03 (`lessons/03_monte_carlo_rewards.ipynb`) and two CPU cores; every cell runs in some seconds.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch`, `numpy` and the
# names of the next cell, but not `minigrpo`, which holds the answers.

# %% tags=["setup"]
import math

import torch
from torch import Tensor

# %% tags=["tools"]
import matplotlib.pyplot as plt

from grader import check
from minigrpo.envs import PathTreeEnv

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## The group
#
# The paper's worked example again: six completions, each letter a token, each with its reward.

# %%
words = ["ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ"]
rewards = torch.tensor([0.5, 0.5, 1.0, 0.0, 0.0, 0.5], dtype=torch.float64)
ids = torch.tensor([[ord(letter) for letter in word.ljust(7)] for word in words])
mask = torch.tensor([[t < len(word) for t in range(7)] for word in words])

# %% [markdown]
# ## 1 · Step rewards
#
# λ^(i,t) holds the completions that agree with completion i on tokens 0…t (lab 02). The reward of a step is their mean:
#
# $$R_{i,t} = \frac{1}{|\lambda^{(i,t)}|} \sum_{j \in \lambda^{(i,t)}} r_j, \qquad 0 \text{ where masked}$$
#
# Three completions begin with J K L, and earned 1, 0 and 0: the step J K L is worth 1/3. What follows differs, and so
# do the rewards: M is worth 1.0, N Q is worth 0.
#
# Averaging conserves sums: at every token t the step rewards of those who are still there sum to their rewards,
# $\sum_i R_{i,t} = \sum_i r_i$. Use it to find your own errors.


# %% exercise="lab03.1" points=4 minutes=15 difficulty=2
def step_rewards(rewards: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Give each token the mean reward of the completions that share its prefix.

    Args: rewards float (G,); completion_ids int64 (G, T); completion_mask bool (G, T), True where a token is real,
        with any id under the mask.
    Returns: float (G, T), in the units of the rewards; 0 where masked.
    """
    ### BEGIN SOLUTION
    result = torch.zeros_like(completion_ids, dtype=rewards.dtype)
    for i, t in completion_mask.nonzero():
        begins_alike = (completion_ids[:, : t + 1] == completion_ids[i, : t + 1]).all(dim=1)
        result[i, t] = rewards[begins_alike & completion_mask[:, t]].mean()
    return result
    ### END SOLUTION


# %%
check("lab03.1", step_rewards)

# %% [markdown]
# ## 2 · Step advantages
#
# Outcome rewards become advantages by the group's mean and std; step rewards by the very same two numbers:
#
# $$A_{i,t} = \frac{R_{i,t} - \operatorname{mean} r}{\operatorname{std} r + \text{eps}}, \qquad 0 \text{ where masked}$$
#
# Mean and unbiased std are those of the outcome rewards r, in which each completion counts once. In the worked example
# mean r = 0.4167 and std r = 0.3764, so M has (1 − 0.4167) / 0.3765 = 1.55 and J K L has −0.22.


# %% exercise="lab03.2" points=3 minutes=10 difficulty=1
def step_advantages(step_rewards: Tensor, rewards: Tensor, completion_mask: Tensor, eps: float = 1e-4) -> Tensor:
    """Compare each token's step reward with the rewards of the group.

    Args: step_rewards float (G, T), any numbers under the mask; rewards float (G,), not all equal;
        completion_mask bool (G, T); eps > 0.
    Returns: float (G, T), in standard deviations; 0 where masked.
    """
    ### BEGIN SOLUTION
    unit = torch.std(rewards, correction=1) + eps
    return ((step_rewards - torch.mean(rewards)) / unit).masked_fill(~completion_mask, 0.0)
    ### END SOLUTION


# %%
check("lab03.2", step_advantages)

# %% [markdown]
# Look at what you made. GRPO is said to know no process rewards, yet these come out of its own group, for nothing.

# %%
advantages = step_advantages(step_rewards(rewards, ids, mask), rewards, mask)
figure, axes = plt.subplots(figsize=(6.4, 3.4))
image = axes.imshow(advantages.where(mask, torch.nan), cmap="PuOr", vmin=-1.6, vmax=1.6)
for i, t in mask.nonzero().tolist():
    shade = "white" if abs(advantages[i, t]) > 1 else "black"
    axes.text(t, i, f"{words[i][t]}\n{advantages[i, t]:+.2f}", ha="center", va="center", color=shade, fontsize=8)
labels = [f"{word}  r = {r:.1f}" for word, r in zip(words, rewards.tolist(), strict=True)]
axes.set_yticks(range(6), labels)
axes.set(xlabel="token t", title="J K L is pushed down, though J K L M is the best")
figure.colorbar(image, label="step advantage A (standard deviations)")
plt.show()

# %% [markdown]
# ## 3 · Fresh continuations
#
# A group gives one prefix |λ| continuations: many near the root, a single one near the leaves. Who wants more of them
# has to pay: sample n fresh continuations of the prefix, and take their mean as its value. Its standard error is
#
# $$\hat Q = \frac1n \sum_{k=1}^{n} r^{(k)}, \qquad
# \operatorname{se} = \frac{\operatorname{std}(r^{(1)}, \dots, r^{(n)})}{\sqrt n}$$
#
# with the unbiased std. `sample_outcome(prefix, generator)` goes on from the tokens of `prefix` to the end and gives
# the reward. All its randomness comes from the generator, so make one `torch.Generator()` with the seed, and call
# `sample_outcome` n times, one after the other, with the whole prefix. The check follows you number by number.
#
# Outcomes 1, 0, 0, 1 give Q̂ = 0.5 and se = 0.5774 / 2 = 0.2887.


# %% exercise="lab03.3" points=4 minutes=15 difficulty=2
def fresh_value(sample_outcome, prefix: list[int], samples: int, seed: int) -> tuple[float, float]:
    """Estimate the value of a prefix from fresh continuations.

    Args: sample_outcome: a function of (prefix, generator) that gives the reward of one continuation, a float;
        prefix: token ids; samples: n ≥ 2; seed: of the generator.
    Returns: the mean of n outcomes and its standard error, in the units of the reward.
    """
    ### BEGIN SOLUTION
    source = torch.Generator()
    source.manual_seed(seed)
    found = torch.tensor([sample_outcome(prefix, source) for _ in range(samples)], dtype=torch.float64)
    return found.mean().item(), found.std().item() / math.sqrt(samples)
    ### END SOLUTION


# %%
check("lab03.3", fresh_value)

# %% [markdown]
# ## 4 · Bias and variance
#
# Estimate the same truth again and again, in independent runs. The *bias* is how far the estimates are off on
# average, the *variance* how much they scatter around their own average:
#
# $$\operatorname{bias} = \operatorname{mean}_k \hat Q_k - Q, \qquad
# \operatorname{variance} = \frac{1}{K-1}\sum_k \big(\hat Q_k - \operatorname{mean}_k \hat Q_k\big)^2$$
#
# Estimates 1, 2, 6 of the truth 2 have bias 1 and variance 7.


# %% exercise="lab03.4" points=2 minutes=10 difficulty=1
def bias_and_variance(estimates: Tensor, truth: float) -> dict[str, Tensor]:
    """Describe how an estimator errs, for each of S settings of it.

    Args: estimates float (K, S): a row for each of K ≥ 2 independent runs; truth: what they estimate.
    Returns: {"bias": float (S,), "variance": float (S,)}, the variance unbiased.
    """
    ### BEGIN SOLUTION
    return {"bias": (estimates - truth).mean(0), "variance": torch.var(estimates, 0)}
    ### END SOLUTION


# %%
check("lab03.4", bias_and_variance)

# %% [markdown]
# Now use all of it on the tree of lab 01: depth 4, every action L or R with probability one half. The prefix is R, and
# its true value is the mean of its eight leaves.

# %%
tree, PREFIX = PathTreeEnv(target=[1, 0, 1, 1], r_neg=-0.5), [1]
leaves = [[1, *((leaf >> k) & 1 for k in range(3))] for leaf in range(8)]
truth = sum(map(tree.outcome, leaves)) / 8


def sample_outcome(prefix: list[int], generator: torch.Generator) -> float:
    rest = torch.randint(2, (4 - len(prefix),), generator=generator).tolist()
    return tree.outcome([*prefix, *rest])


print(f"true value of R: {truth:.4f}")
print("six continuations:", fresh_value(sample_outcome, PREFIX, samples=6, seed=0))

# %% [markdown]
# First the fresh estimator, 200 runs for each number of samples. Then groups of 16 whole walks: your `step_rewards`
# gives R its value for free, from as many samples as walks happened to begin with R.

# %%
counts, runs = [2, 4, 8, 16, 32], range(200)
fresh = torch.tensor([[fresh_value(sample_outcome, PREFIX, n, 1000 * k + n)[0] for n in counts] for k in runs])
generator, by_size = torch.Generator().manual_seed(0), {}
for _ in range(600):
    walks = torch.randint(2, (16, 4), generator=generator)
    values = step_rewards(torch.tensor([tree.outcome(w) for w in walks.tolist()]), walks, torch.ones_like(walks) > 0)
    if (walks[:, 0] == 1).any():
        by_size.setdefault(int((walks[:, 0] == 1).sum()), []).append(values[walks[:, 0] == 1, 0][0])
sizes = sorted(size for size, found in by_size.items() if len(found) >= 30)
found = bias_and_variance(fresh, truth)
grouped = [bias_and_variance(torch.stack(by_size[size])[:, None], truth) for size in sizes]

# %%
one = torch.tensor([tree.outcome(leaf) for leaf in leaves]).var(correction=0)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axes, key in ((left, "bias"), (right, "variance")):
    axes.plot(counts, found[key], "o", color="#0072B2", label="fresh continuations")
    axes.plot(sizes, [entry[key] for entry in grouped], "s", color="#D55E00", label="the group's own, n = |λ|")
    axes.set(xlabel="samples n", xscale="log")
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
left.axhline(0, color="#4D4D4D", linestyle=":")
left.set(ylabel="bias (reward)", ylim=(-0.3, 0.3), title="Neither is biased…")
right.plot(counts, one / torch.tensor(counts), color="#4D4D4D", linestyle=":", label="variance of one outcome / n")
right.set(ylabel="variance (reward²)", yscale="log", title="…and both scatter as 1/n")
right.legend()
plt.show()

# %% [markdown]
# ## 5 · Two questions
#
# Answer each in three or four sentences: double-click its cell and replace the last line. A person reads them.

# %% [markdown] exercise="lab03.5" points=2 minutes=7
# **lab03.5** Towards the leaves of a group's tree most sets have one member. How good is the step reward there,
# compared with the root? Which prefixes would you spend fresh continuations on?
#
# ### BEGIN SOLUTION
# It is still unbiased, but with |λ| = 1 it is one outcome: its variance is that of a single continuation, |λ| times
# what it is in a set of |λ|. Fresh samples are worth most where the set is small and the outcome still open: deep
# prefixes whose continuations differ in reward, not those whose end is certain.
#
# *Rubric.* 1 point: unbiased, or a single sample, with variance ∝ 1/|λ|. 1 point: where sets are small and outcomes
# still vary.
# ### END SOLUTION

# %% [markdown] exercise="lab03.6" points=2 minutes=8
# **lab03.6** A completion of length T has T prefixes; each should get n fresh continuations. How many continuations is
# that for a group of G, and what do the group's own step rewards cost? When are fresh ones worth it?
#
# ### BEGIN SOLUTION
# Up to G·T·n continuations (fewer where prefixes are shared), against none beyond the G that GRPO samples anyway. It
# pays where samples are cheap next to what a better signal brings, for example one prefix per step instead of per
# token, in a short task, or once to make training data for a reward model.
#
# *Rubric.* 1 point: about G·T·n against nothing extra. 1 point: a sensible condition.
# ### END SOLUTION
