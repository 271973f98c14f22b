# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 05 · Where it breaks
#
# The theorem has assumptions, and each of them is needed: take one away and there are groups for which GRPO's loss is
# not the loss with process rewards. In this lab you build such a group for each assumption, with all the others kept.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. measure the gap between the two losses | 3 | 15 |
# | 2. break it by clipping | 3 | 15 |
# | 3. break it by a mean per completion | 2 | 10 |
# | 4. break it by random transitions | 3 | 20 |
# | 5. break it by a denominator per micro-batch | 2 | 10 |
# | 6. say which assumption a setting breaks | 3 | 15 |
# | 7. answer two questions | 4 | 15 |
#
# **Needs** lesson 05 (`lessons/05_where_it_breaks.ipynb`) and two CPU cores; every cell runs in a second or two.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch`, `numpy` and the
# names of the next cell, but not `minigrpo`, which holds the answers.

# %% tags=["setup"]
import torch
from torch import Tensor

# %% tags=["tools"]
import matplotlib.pyplot as plt
import numpy as np

import minigrpo
from grader import check

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## 1 · The gap
#
# Both losses are one formula, with $a_i$ in place of A for GRPO and with the step advantage $A_{i,t}$ for the PRM:
#
# $$s_{i,t} = \min\big(P_{i,t}\,A,\ \text{clip}(P_{i,t},\,1-\epsilon,\,1+\epsilon)\,A\big),
# \qquad L = -\frac{\sum_{i,t} s_{i,t}}{\sum_i \text{len}(y^{(i)})}
# \quad\text{or}\quad L = -\frac1G\sum_i\frac{\sum_t s_{i,t}}{\text{len}(y^{(i)})}$$
#
# The left loss is the token mean, the right one the per-completion mean, `"seq-mean"`. Without an ε, s is just P·A. A
# completion with no token adds 0 to the sum over i, and G still counts it. The gap keeps its sign:
# $L_{\text{GRPO}} - L_{\text{PRM}}$.
#
# Two completions `X Y` and `X Z` with a = +1 and −1, every ratio 2, ε = 0.5. GRPO's s are 1.5, 1.5 and −2, −2 and its
# loss is 0.25; with A = 0 on both X the PRM's s are 0, 1.5 and 0, −2 and its loss is 0.125. The gap is 0.125.
#
# Two completions `X` and `X Z` with a = +1 and −1, every ratio 1, no clip, `"seq-mean"`. GRPO's loss is
# −(1 − 1) / 2 = 0, the PRM's −(0 − 1/2) / 2 = 0.25, the gap −0.25. (In the check's other cases ratio and A are drawn
# at random, so that no gap is 0.)


# %% exercise="lab05.1" points=3 minutes=15 difficulty=1
def loss_gap(
    ratio: Tensor,
    advantages: Tensor,
    process_advantages: Tensor,
    completion_mask: Tensor,
    epsilon: float | None,
    aggregation: str,
) -> float:
    """Measure by how much GRPO's loss is above the loss with process rewards.

    Args: ratio float (G, T), P_{i,t}, any positive number under the mask; advantages float (G,), aᵢ;
        process_advantages float (G, T), A_{i,t}; completion_mask bool (G, T); epsilon > 0, or None for no clip;
        aggregation: "token-mean" or "seq-mean".
    Returns: L_GRPO − L_PRM, with its sign.
    """

    ### BEGIN SOLUTION
    def loss(A: Tensor) -> Tensor:
        s = ratio * A
        if epsilon is not None:
            s = torch.minimum(s, torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * A)
        s = s.masked_fill(~completion_mask, 0.0)
        if aggregation == "token-mean":
            return -s.sum() / completion_mask.count_nonzero()
        lengths = completion_mask.count_nonzero(dim=1)
        return -(s.sum(dim=1) / lengths.clamp(min=1)).mean()

    return float(loss(advantages[:, None]) - loss(process_advantages))
    ### END SOLUTION


# %%
check("lab05.1", loss_gap)

# %% [markdown]
# ## What counts as a counterexample
#
# In exercises 2 to 5 you return a small group, and the check computes both losses of it, with all advantages taken from
# your rewards, and then both gradients. The group counts if
#
# $$\frac{\lVert \nabla L_{\text{GRPO}} - \nabla L_{\text{PRM}} \rVert}
# {\max(\lVert \nabla L_{\text{GRPO}} \rVert, 10^{-3})} \ge 0.01$$
#
# while every assumption but the named one holds. (Rounding makes gaps of at most 3e-15, and our own counterexamples
# gaps of 0.12 to 1, over 40 seeds.) Each completion is a list of 1 to 12 token ids (whole numbers from 0 to 999), each
# reward a number from −100 to 100. Completions that are equal get equal rewards.
#
# ## 2 · Clipping
#
# Token mean, ratios that differ from 1, and PPO's clip. One policy made them, so **tokens with the same prefix have
# the same ratio**. For which groups are the losses different? Think of one step with ratio P, and draw
# min(P·a, clip(P)·a) over a: where is it a straight line? Where is its kink?
#
# You don't know ε beforehand, and it can be above 1. For example, `{"completions": [[5, 6], [5, 7]],
# "rewards": [1.0, 0.0], "ratio": [[1.1, 1.0], [1.1, 1.0]]}` is a proper group, but none of its ratios is clipped at
# ε = 0.2, and so its gap is 0.


# %% exercise="lab05.2" points=3 minutes=15 difficulty=2
def clipping_counterexample(epsilon: float, group_size: int) -> dict:
    """Build a group for which only clipping makes the two losses differ.

    Args: epsilon > 0, may be 1 or more; group_size: G ≥ 2.
    Returns: {"completions": G lists of token ids, "rewards": G floats, "ratio": G lists of floats from 0.001 to 1000,
        each as long as its completion}.
    """
    ### BEGIN SOLUTION
    completions = [[0, 1 + i] for i in range(group_size)]
    rewards = [float(i == 0) for i in range(group_size)]
    ratio = [[1.0 + 2.0 * epsilon, 1.0] for _ in completions]
    return {"completions": completions, "rewards": rewards, "ratio": ratio}
    ### END SOLUTION


# %%
check("lab05.2", clipping_counterexample)

# %% [markdown]
# ## 3 · A mean per completion
#
# One update per batch, so every ratio is 1 and nothing is clipped; but the loss is the per-completion mean. A token
# now weighs 1/len of *its own* completion, and the members of a step can differ in that.
#
# The lengths are given: for `lengths = [2, 3]` the group `[[4, 5], [6, 7, 8]]` has the right form. It shares nothing,
# so A is a everywhere and its gap is 0.


# %% exercise="lab05.3" points=2 minutes=10 difficulty=2
def length_counterexample(lengths: list[int]) -> dict:
    """Build a group of these lengths for which only the per-completion mean makes the two losses differ.

    Args: lengths: of the G completions, each from 1 to 8, not all equal.
    Returns: {"completions": G lists of token ids, completion i as long as lengths[i], "rewards": G floats}.
    """
    ### BEGIN SOLUTION
    completions = [[0] * length for length in lengths]
    rewards = [1.0 if length == min(lengths) else 0.0 for length in lengths]
    return {"completions": completions, "rewards": rewards}
    ### END SOLUTION


# %%
check("lab05.3", length_counterexample)

# %% [markdown]
# ## 4 · Random transitions
#
# Now an environment: a state, an action, a next state. A step is keyed **by the actions alone**, as a careless port of
# GRPO to an environment would have it. If an action can lead to two states, members of one step can stand in different
# states, where the policy $\pi_\theta(a \mid s)$, a table with a row of logits for each state, is not the same.
#
# Token mean, every ratio 1. The *values* of both losses are then equal, whatever you do: $\sum_{i\in\lambda} a_i =
# |\lambda|\,A$. The *gradients* are not, and they are what trains. This check looks at the gradient by θ.
#
# You get the environment: `next_states[s][a]` lists the states that may follow. All episodes begin in state 0. With
# `next_states = [[[1], [1, 2]], [[1], [0]], [[2], [0]]]`, action 1 slips in state 0: it leads to 1 or to 2. An episode
# is the list of states **in which it acted** and the list of its actions: states `[0, 2]` and actions `[1, 0]` go from
# 0 to 2 and act there once more. Each environment of the check has one place that slips, not always state 0.


# %% exercise="lab05.4" points=3 minutes=20 difficulty=3
def slipping_counterexample(next_states: list[list[list[int]]]) -> dict:
    """Find episodes of this environment for which steps keyed by actions alone give another gradient.

    Args: next_states[s][a]: the states that may follow action a in state s; one state and action has two, which can
        be reached from state 0; all the others have one.
    Returns: {"states": G lists, "actions": G lists of the same lengths (1 to 12), "rewards": G floats}, G from 2 to 9.
    """
    ### BEGIN SOLUTION
    routes: dict[int, tuple[list[int], list[int]]] = {0: ([0], [])}
    queue = [0]
    for state in queue:
        states, actions = routes[state]
        for action, following in enumerate(next_states[state]):
            if len(following) == 2:
                both = [[*states, after] for after in following]
                return {"states": both, "actions": [[*actions, action, 0]] * 2, "rewards": [1.0, 0.0]}
            if following[0] not in routes:
                routes[following[0]] = ([*states, following[0]], [*actions, action])
                queue.append(following[0])
    raise ValueError("no action slips that can be reached from state 0")
    ### END SOLUTION


# %%
check("lab05.4", slipping_counterexample)

# %% [markdown]
# ## 5 · Micro-batches
#
# A group that does not fit into memory is cut into M micro-batches of consecutive completions, G/M in each. Every
# ratio is 1. The bug, common in the wild: each micro-batch divides by **its own** number of tokens, and the M losses
# are averaged. (The advantages and the steps are those of the whole group, as they should be.)
#
# With `group_size` 4 and `micro_batches` 2, completions 0 and 1 are one micro-batch, 2 and 3 the other. The group
# `[[5, 1], [5, 2], [5, 3], [5, 4]]` has four tokens in each, both denominators are right up to a constant, and its gap
# is 0 for any rewards.


# %% exercise="lab05.5" points=2 minutes=10 difficulty=2
def micro_batch_counterexample(group_size: int, micro_batches: int) -> dict:
    """Build a group for which only the denominators of its micro-batches make the two losses differ.

    Args: group_size: G; micro_batches: M ≥ 2, a divisor of G.
    Returns: {"completions": G lists of token ids, "rewards": G floats}.
    """
    ### BEGIN SOLUTION
    first = group_size // micro_batches
    completions = [[0, 1 + i] if i < first else [0, 1 + i, 2, 2] for i in range(group_size)]
    rewards = [1.0 if i < first else 0.0 for i in range(group_size)]
    return {"completions": completions, "rewards": rewards}
    ### END SOLUTION


# %%
check("lab05.5", micro_batch_counterexample)

# %% [markdown]
# ## The map of equality
#
# Your `loss_gap` on 200 random groups for each of seven settings. `draw` makes a group of six completions; `world` is a
# random bit for each token, the environment's part in what happens, and `ratio` belongs to the whole history.


# %%
def draw(rng: np.random.Generator, slips: bool) -> tuple:
    """Draw actions, mask, ids of action and world together, advantages, and ratios by prefix."""
    actions, world = torch.from_numpy(rng.integers(2, size=(2, 6, 5)))
    both = actions + 2 * world * slips
    mask = torch.arange(5) < torch.from_numpy(rng.integers(1, 6, size=(6, 1)))
    prefix = both.clone()  # the number of each history
    for t in range(1, 5):
        prefix[:, t] = 4 * (prefix[:, t - 1] + 1) + both[:, t]
    ratio = torch.from_numpy(rng.normal(size=int(prefix.max()) + 1)).mul(0.3).exp()[prefix]
    return actions, mask, both, minigrpo.group_advantages(torch.from_numpy(rng.normal(size=6))), ratio


# %%
def gap_of(group: tuple, key: int = 0, rows: slice = slice(None), epsilon=None, aggregation="token-mean", on=False):
    """The gap, with steps keyed by group[key], on some rows of the group; `on`: every ratio is 1."""
    mask, a, ratio = group[1], group[3], torch.ones_like(group[4]) if on else group[4]
    A = minigrpo.step_mean(a, group[key], mask)
    return loss_gap(ratio[rows], a[rows], A[rows], mask[rows], epsilon, aggregation)


# %%
halves = (slice(0, 3), slice(3, 6))
settings = {
    "token mean, one update": (False, lambda g: gap_of(g, on=True)),
    "off-policy, not clipped": (False, gap_of),
    "clipping, ε = 0.2": (False, lambda g: gap_of(g, epsilon=0.2)),
    "per-completion mean": (False, lambda g: gap_of(g, on=True, aggregation="seq-mean")),
    "a denominator per micro-batch": (False, lambda g: sum(gap_of(g, on=True, rows=half) for half in halves) / 2),
    "slipping, keyed by action": (True, gap_of),
    "slipping, keyed by state and action": (True, lambda g: gap_of(g, key=2)),
}
rng = np.random.default_rng(0)
gaps = {name: [abs(gap(draw(rng, slips))) for _ in range(200)] for name, (slips, gap) in settings.items()}

# %%
figure, axes = plt.subplots(figsize=(7, 3.6))
for row, values in enumerate(gaps.values()):
    broken = np.median(values) > 1e-9
    style = {"color": "#D55E00", "marker": "x"} if broken else {"color": "#0072B2", "marker": "o"}
    axes.scatter(np.maximum(values, 1e-18), row + rng.uniform(-0.25, 0.25, 200), s=12, alpha=0.5, **style)
axes.set(xscale="log", xlabel="|loss of GRPO − loss with process rewards| (0 is drawn at 1e-18)")
axes.set_yticks(range(len(gaps)), list(gaps))
axes.invert_yaxis()
axes.axvline(1e-9, color="black", linewidth=0.8, linestyle=":")
axes.set_title("Equal to rounding (o), or clearly not (x)")
figure.tight_layout()
plt.show()

# %% [markdown]
# A cross on the left is a group that happens to escape: nothing that is shared is clipped, say, or both halves have
# equally many tokens. The two rows at the bottom are off-policy, so that slipping parts the values as well.
#
# ## 6 · Name the assumption
#
# Somebody shows you a batch and the settings it was trained with. Which assumption does it break? A setting that is
# switched on need not break anything: look at what the batch makes of it.
#
# | answer | broken when |
# | --- | --- |
# | `"clipping"` | there is an ε, and a ratio is below 1 − ε or above 1 + ε |
# | `"per-completion mean"` | `aggregation` is `"seq-mean"`, and completions differ in length |
# | `"micro-batch denominators"` | the micro-batches differ in their number of tokens |
# | `"random transitions"` | two completions took equal actions before t, and act in different states at t |
# | `"none"` | none of these |
#
# At most one is broken in each case. What stands under the mask is noise. All completions begin in one state.
# What follows may depend on all actions before, and the rows of a micro-batch need not be neighbours.
# With mask `[[1, 1], [1, 0]]`, ratios `[[1.1, 1.0], [1.1, 9.0]]` and ε = 0.2 nothing is clipped: the 9 is masked.


# %% exercise="lab05.6" points=3 minutes=15 difficulty=2
def broken_assumption(
    ratio: Tensor,
    completion_mask: Tensor,
    states: Tensor,
    actions: Tensor,
    epsilon: float | None,
    aggregation: str,
    micro_batches: list[list[int]],
) -> str:
    """Name the assumption of the theorem that a batch breaks.

    Args: ratio float, completion_mask bool, states and actions int64, all (G, T), masked on the right only;
        epsilon > 0 or None; aggregation: "token-mean" or "seq-mean"; micro_batches: the rows of each.
    Returns: one of the five names in the table.
    """
    ### BEGIN SOLUTION
    lengths = completion_mask.sum(dim=1)
    real = ratio[completion_mask]
    if epsilon is not None and bool(((real < 1 - epsilon) | (real > 1 + epsilon)).any()):
        return "clipping"
    if aggregation == "seq-mean" and len(set(lengths.tolist())) > 1:
        return "per-completion mean"
    if len({int(lengths[rows].sum()) for rows in micro_batches}) > 1:
        return "micro-batch denominators"
    state_after: dict[tuple[int, ...], int] = {}
    for i, length in enumerate(lengths.tolist()):
        for t in range(length):
            state = int(states[i, t])
            if state_after.setdefault(tuple(actions[i, :t].tolist()), state) != state:
                return "random transitions"
    return "none"
    ### END SOLUTION


# %%
check("lab05.6", broken_assumption)

# %% [markdown]
# ## 7 · Two questions
#
# Answer each in three or four sentences. They are read by a person.

# %% [markdown] exercise="lab05.7" points=2 minutes=7
# **lab05.7** In exercise 2 a step whose members all have a > 0 makes no gap, even where its ratio is clipped. Why? And
# what could you give each step in place of its one advantage A, so that clipped GRPO is a sum over steps again?
#
# ### BEGIN SOLUTION
# For a fixed ratio, min(P·a, clip(P)·a) is a straight line in a on either side of a = 0, with a kink there. On one side
# the sum over the members is the line at their sum, so |λ| times the value at the mean A. With members on both sides
# it is not. Two sums per step repair it: that of the positive a and that of the negative a, each clipped by itself.
#
# *Rubric.* 1 point: linear on each side of 0, kink at 0. 1 point: two sums (or means), of max(a, 0) and min(a, 0).
# ### END SOLUTION

# %% [markdown] exercise="lab05.8" points=2 minutes=8
# **lab05.8** A paper states the token mean; its code divides by each completion's length by default. Does GRPO, run
# with that code, still learn? Does the paper's theorem describe it? How would you find out which loss a library uses?
#
# ### BEGIN SOLUTION
# It learns: it is still a policy gradient, in which tokens of short completions weigh more. The theorem does not
# describe it, since members of a step with different lengths have different weights, and their sum is not |λ|·A. Read
# the default of the option and, better, feed a group of two lengths with known values, and compare the loss with both
# formulas.
#
# *Rubric.* 1 point: learns, but the equality fails, with the reason. 1 point: a test on values, or the code's default,
# rather than the documentation alone.
# ### END SOLUTION
