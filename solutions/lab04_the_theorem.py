# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 04 · The theorem
#
# GRPO with outcome rewards and GRPO with Monte-Carlo process rewards: two losses, one value, one gradient. In this lab
# you write the second loss, walk through the proof in code, and then try to catch the theorem out.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. write the loss with process rewards | 5 | 20 |
# | 2. cut one token of a group into its sets | 2 | 10 |
# | 3. compute the proof, line by line | 4 | 20 |
# | 4. measure the gap between two gradients | 3 | 10 |
# | 5. answer two questions | 4 | 15 |
#
# **Needs** lesson 04 (`lessons/04_the_theorem.ipynb`) and two CPU cores; every cell runs in some seconds.
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
# ## 1 · The loss with process rewards
#
# $$\text{loss} = -L_{\text{PRM}}
# = -\frac{1}{\sum_i \text{len}(y^{(i)})} \sum_i \sum_t \big( P_{i,t}\,A_{i,t} - D_{i,t} \big),
# \qquad A_{i,t} = \frac{1}{|\lambda^{(i,t)}|}\sum_{j \in \lambda^{(i,t)}} a_j$$
#
# $$P_{i,t} = \frac{\pi_\theta}{\pi_{\text{old}}}, \qquad
# D_{i,t} = \beta\Big(\frac{\pi_{\text{ref}}}{\pi_\theta} - \ln \frac{\pi_{\text{ref}}}{\pi_\theta} - 1\Big)$$
#
# (L is the objective, to maximise; you write the loss.) The only difference to GRPO is A where GRPO has a. You get the
# sets as a tensor: `sets[i, j, t]` is True where j is in λ^(i,t). Nothing is clipped here; only $\pi_\theta$ learns.
#
# Two completions `X Y` and `X Z` with a = +1 and −1, P = 1, β = 0: A is 0 on both X, +1 on Y, −1 on Z, and the loss
# is −(0 + 1 + 0 − 1) / 4 = 0. GRPO's is −(1 + 1 − 1 − 1) / 4 = 0, too. But the gradient at each X is not the same: 0
# here, ∓1/4 there. The check looks at the gradient of every single log-prob, so it can tell the two losses apart.


# %% exercise="lab04.1" points=5 minutes=20 difficulty=2
def prm_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor,
    advantages: Tensor,
    sets: Tensor,
    completion_mask: Tensor,
    beta: float,
) -> Tensor:
    """Reduce the objective with Monte-Carlo process rewards to the scalar to minimise.

    Args: logps, old_logps, ref_logps float (G, T), in nats, any finite number under the mask;
        advantages float (G,), aᵢ; completion_mask bool (G, T); beta ≥ 0;
        sets bool (G, G, T), [i, j, t] True where j ∈ λ^(i,t), False where masked.
    Returns: scalar tensor.
    """
    ### BEGIN SOLUTION
    sizes = sets.sum(dim=1)
    process = (sets * advantages[None, :, None]).sum(dim=1) / sizes.masked_fill(sizes == 0, 1)
    P = torch.exp(logps - old_logps.detach())
    ref_over_policy = torch.exp(ref_logps.detach() - logps)
    D = beta * (ref_over_policy - torch.log(ref_over_policy) - 1)
    return -(P * process - D)[completion_mask].mean()
    ### END SOLUTION


# %%
check("lab04.1", prm_loss)

# %% [markdown]
# ## 2 · The proof begins with a sum in another order
#
# GRPO sums over completions, then over tokens. The proof sums over tokens, then over the sets λ of that token, then
# over the members of each set. That is allowed because at every token t the sets are a *partition* of the completions
# which have a token t: each of them is in exactly one set. (Lesson 04 went step by step, and a step may have
# several tokens; here each of them is taken by itself. It is the same sum.)
#
# In `[[7, 8], [7, 9], [7], [7, 8, 5]]` the sets of token 1 are `[[0, 3], [1]]`: completion 2 has ended.


# %% exercise="lab04.2" points=2 minutes=10 difficulty=1
def step_sets(completions: list[list[int]], t: int) -> list[list[int]]:
    """Cut the completions that have a token t into the sets that agree on tokens 0…t.

    Args: completions: G lists of token ids, of any lengths; t ≥ 0.
    Returns: the sets, each a sorted list of members, in the order of their first members.
    """
    ### BEGIN SOLUTION
    sets: dict[tuple[int, ...], list[int]] = {}
    for i, completion in enumerate(completions):
        if len(completion) > t:
            sets.setdefault(tuple(completion[: t + 1]), []).append(i)
    return list(sets.values())
    ### END SOLUTION


# %%
check("lab04.2", step_sets)

# %% [markdown]
# ## 3 · The proof, line by line
#
# Leave out D and the denominator, which are the same on both sides. Then
#
# $$\begin{aligned}
# \textstyle\sum_i\sum_t P_{i,t}\,a_i
# &= \textstyle\sum_t\sum_\lambda\sum_{i\in\lambda} P_{i,t}\,a_i && \text{(exchanged)}\\
# &= \textstyle\sum_t\sum_\lambda P_\lambda \sum_{i\in\lambda} a_i && \text{(factored)}\\
# &= \textstyle\sum_t\sum_\lambda |\lambda|\,P_\lambda\,A_\lambda && \text{(averaged)}\\
# &= \textstyle\sum_t\sum_\lambda\sum_{i\in\lambda} P_{i,t}\,A_\lambda && \text{(prm)}
# \end{aligned}$$
#
# where $A_\lambda$ is the mean of a over λ, and $P_\lambda$ the ratio that its members share at token t: take that of
# the set's first member. Write each line as it stands. Some cases of the check break an assumption on purpose, so that
# the lines part; that is how you see where the proof needs it.
#
# One set of two members with ratios 1 and 3, a = 1 and 2, at the only token: the lines are 7, 7, 3, 3 and 6.


# %% exercise="lab04.3" points=4 minutes=20 difficulty=2
def proof_lines(
    ratio: Tensor, advantages: Tensor, completion_mask: Tensor, partitions: list[list[list[int]]]
) -> dict[str, float]:
    """Compute the five sums of the proof.

    Args: ratio float (G, T), P_{i,t}, any finite number under the mask; advantages float (G,), aᵢ;
        completion_mask bool (G, T); partitions: for each of the T tokens its sets, each a list of members.
    Returns: {"grpo", "exchanged", "factored", "averaged", "prm"}: the five lines, from the first.
    """
    ### BEGIN SOLUTION
    grpo = (ratio * advantages[:, None] * completion_mask.to(ratio.dtype)).sum()
    exchanged = factored = averaged = prm = 0.0
    for t, partition in enumerate(partitions):
        for members in partition:
            shared, A = ratio[members[0], t], advantages[members].mean()
            exchanged = exchanged + torch.dot(ratio[members, t], advantages[members])
            factored = factored + shared * advantages[members].sum()
            averaged = averaged + len(members) * shared * A
            prm = prm + (ratio[members, t] * A).sum()
    lines = {"grpo": grpo, "exchanged": exchanged, "factored": factored, "averaged": averaged, "prm": prm}
    return {name: float(value) for name, value in lines.items()}
    ### END SOLUTION


# %%
check("lab04.3", proof_lines)

# %% [markdown]
# Look at what you made. With equal ratios in a step all lines agree. Then each completion's ratios get noise of their
# own, as dropout would give: the first two lines still agree, for the exchange needs no assumption.

# %%
words = ["ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ"]
ids = torch.tensor([[ord(letter) for letter in word.ljust(7)] for word in words])
mask = torch.tensor([[t < len(word) for t in range(7)] for word in words])
rewards = torch.tensor([0.5, 0.5, 1.0, 0.0, 0.0, 0.5], dtype=torch.float64)
a = minigrpo.group_advantages(rewards)
partitions = [step_sets([[ord(letter) for letter in word] for word in words], t) for t in range(7)]
noise = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
equal = proof_lines(torch.ones(6, 7, dtype=torch.float64), a, mask, partitions)
noisy = proof_lines((0.3 * noise).exp(), a, mask, partitions)

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.4))
axes.plot(list(equal), list(equal.values()), "o-", color="#0072B2", label="equal ratios in a step")
axes.plot(list(noisy), list(noisy.values()), "s--", color="#D55E00", label="noise in every ratio")
axes.set(xlabel="line of the proof", ylabel="value of the line", title="Two lines of the proof need equal ratios")
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# ## 4 · The gradient check
#
# A proof about values is not enough: what trains is the gradient. The gap between the gradients of two losses is
#
# $$\operatorname{gap} = \frac{\lVert \nabla_\theta L_a - \nabla_\theta L_b \rVert}
# {\max(\lVert \nabla_\theta L_a \rVert, 10^{-3})}$$
#
# with the Euclidean norm over all entries of θ. The floor keeps a gradient of almost nothing from making a large gap.
# For $L_a = \theta_1^2 / 2$ and $L_b = \theta_1 \theta_2$ at θ = (3, 4) the gradients are (3, 0) and (4, 3), and the
# gap is √10 / 3 = 1.0541.
#
# The check makes its losses from tables: −Σₙ wₙ · ln π_θ(idsₙ | statesₙ), where row s of θ holds the logits of state s.
# `weights_a` gives `loss_a`, each row of `weights_b` one `loss_b`; what is expected is the list of their gaps.


# %% exercise="lab04.4" points=3 minutes=10 difficulty=2
def gradient_gap(loss_a, loss_b, theta: Tensor) -> float:
    """Measure how far the gradients of two losses are apart.

    Args: loss_a, loss_b: functions of a tensor like theta, each giving a scalar; theta float, of any shape, which must
        be left as it is: other gaps are measured at the same theta.
    Returns: the gap, at least 0.
    """
    ### BEGIN SOLUTION
    grads = []
    for loss in (loss_a, loss_b):
        point = theta.detach().clone().requires_grad_(True)
        loss(point).backward()
        grads.append(point.grad)
    size = torch.linalg.vector_norm(grads[0])
    return float(torch.linalg.vector_norm(grads[0] - grads[1]) / max(size, torch.tensor(1e-3)))
    ### END SOLUTION


# %%
check("lab04.4", gradient_gap)

# %% [markdown]
# Now try to catch the theorem out. Each random group has six completions of at most five tokens; θ holds the logits of
# every prefix. `losses` gives three functions of θ: GRPO's loss, your own with process rewards, and λ-GRPO's.


# %%
def losses(rng: np.random.Generator) -> list:
    """Draw a group; give its losses as functions of theta (31, 2)."""
    ids, rewards = torch.from_numpy(rng.integers(2, size=(6, 5))), torch.from_numpy(rng.normal(size=6))
    mask = torch.arange(5) < torch.from_numpy(rng.integers(1, 6, size=(6, 1)))
    prefix = torch.zeros_like(ids)  # the number of what stands before each token
    for t in range(4):
        prefix[:, t + 1] = 2 * prefix[:, t] + 1 + ids[:, t]
    sets, a = minigrpo.same_prefix(ids, mask), minigrpo.group_advantages(rewards)
    pairs = [minigrpo.OBJECTIVES[name](rewards, ids, mask) for name in ("grpo", "lambda_grpo")]
    grpo, once = (lambda new, pair=pair: minigrpo.policy_loss(new, new, *pair, mask) for pair in pairs)
    kinds = [grpo, lambda new: prm_loss(new, new, new, a, sets, mask, beta=0.0), once]
    return [lambda theta, loss=loss: loss(minigrpo.token_logps(theta[prefix], ids)) for loss in kinds]


# %%
rng, gaps = np.random.default_rng(0), []
for _ in range(300):
    grpo, process, once = losses(rng)
    theta = torch.from_numpy(rng.normal(size=(31, 2)))
    gaps.append([gradient_gap(grpo, process, theta), gradient_gap(grpo, once, theta)])
logs = np.log10(np.maximum(gaps, 1e-18)).T
figure, axes = plt.subplots(figsize=(6.4, 3.4))
bins = np.arange(-18, 1.01, 0.25)
axes.hist(logs[0], bins, color="#0072B2", label="GRPO and your PRM loss")
axes.hist(logs[1], bins, color="#D55E00", hatch="//", label="GRPO and λ-GRPO")
axes.set_xticks(range(-18, 1, 3), [f"1e{power}" for power in range(-18, 1, 3)])
axes.set(xlabel="gap between the gradients (0 is drawn at 1e-18)", ylabel="groups of 300")
axes.set_title("The theorem holds to rounding, and the check can fail")
axes.legend()
plt.show()

# %% [markdown]
# ## 5 · Two questions
#
# Answer each in three or four sentences: double-click its cell and replace the last line. A person reads them.

# %% [markdown] exercise="lab04.5" points=2 minutes=7
# **lab04.5** You train with dropout, so that two completions with one prefix get different probabilities. Which lines
# of the proof fail, and which still hold? Does GRPO stop working?
#
# ### BEGIN SOLUTION
# The exchange of sums holds, as it only reorders, and so does Σ a = |λ|·A, which only defines A. Taking P out of the
# sum (factored), and putting it back in (prm), need equal ratios and fail. GRPO is the same algorithm as before; only
# its reading as a process reward model is no longer exact.
#
# *Rubric.* 1 point: factoring and prm fail, exchange and averaging hold. 1 point: GRPO goes on, the equality does not.
# ### END SOLUTION

# %% [markdown] exercise="lab04.6" points=2 minutes=8
# **lab04.6** With respect to each single log-prob the two losses have different gradients (exercise 1); with respect to
# θ they are equal (exercise 4). How can both be? What would you see if the check of exercise 4 met only groups of equal
# rewards?
#
# ### BEGIN SOLUTION
# Members of a set share their probability at t, so they are one function of θ: only the sum of their coefficients
# reaches θ, and Σ aᵢ = Σ A over the set. With equal rewards all advantages are 0, both gradients are 0 and the gap is 0
# for any loss, right or wrong: the check would pass and show nothing.
#
# *Rubric.* 1 point: shared probabilities, only the sum over the set counts. 1 point: 0 = 0 proves nothing.
# ### END SOLUTION
