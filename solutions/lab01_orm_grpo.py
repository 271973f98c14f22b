# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 01 · GRPO with outcome rewards
#
# One prompt, G completions, one reward for each: from this alone GRPO learns. In this lab you write its three parts,
# put them into a training loop, and watch a policy find its way through a small tree.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. compare each completion with its group | 4 | 15 |
# | 2. read the log-probabilities of the sampled tokens | 3 | 10 |
# | 3. write the clipped loss, with masks | 6 | 25 |
# | 4. train, look, answer two questions | 4 | 15 |
#
# **Needs** lesson 01 (`lessons/01_policy_gradients_to_grpo.ipynb`) and two CPU cores; training takes half a minute.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch`, `numpy` and the
# names of the next cell, but not `minigrpo`, which holds the answers.

# %% tags=["setup"]
import torch
from torch import Tensor

# %% tags=["tools"]
import matplotlib.pyplot as plt

from grader import check
from minigrpo.policies import make_policy
from minigrpo.rollout import make_envs, sample_group

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## 1 · Better or worse than the group
#
# A reward of 0.5 says little until we know what the others of the group got. The advantage of completion i is
#
# $$a_i = \frac{r_i - \operatorname{mean} r}{\operatorname{std} r + \text{eps}}$$
#
# with mean and std of its own group, and the unbiased std (G − 1 in its denominator). Rewards `[0, 0, 1]` have mean
# 1/3 and std 0.5774, so with eps = 1e-4 their advantages are `[−0.5772, −0.5772, 1.1545]`.
#
# Two groups teach nothing, and their advantages must be 0:
# - all rewards are equal. Exactly 0 then, also where rounding makes the mean of 0.1, 0.1, 0.1 a little more than 0.1;
# - a group of one (G = 1), which has nobody to be compared with.
#
# Where the check calls your function more than once in a case, it shows `calls`, a list with the arguments of each.


# %% exercise="lab01.1" points=4 minutes=15 difficulty=1
def group_advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """Compare each completion's reward with its group.

    Args: rewards float (…, G): the last dimension is a group, any before it count groups; eps > 0.
    Returns: float (…, G), exactly 0 in a group of equal rewards and in a group of one.
    """
    ### BEGIN SOLUTION
    deviation = rewards - rewards.mean(dim=-1, keepdim=True)
    spread = rewards.std(dim=-1, keepdim=True) if rewards.shape[-1] > 1 else torch.zeros_like(rewards)
    alike = (rewards == rewards[..., :1]).all(dim=-1, keepdim=True)
    return torch.where(alike, 0.0, deviation / (spread + eps))
    ### END SOLUTION


# %%
check("lab01.1", group_advantages)

# %% [markdown]
# ## 2 · What did the policy think of its tokens?
#
# For each place the policy gives V logits z, one for each token of the vocabulary. Of the token that was sampled we
# want the log-probability, in nats:
#
# $$\ln \pi_\theta(y_{i,t}) = z_{y_{i,t}} - \ln \sum_v e^{z_v}$$
#
# Place t of the logits predicts token t: nothing has to be shifted. Logits `[1, 3]` and token 0 give
# 1 − ln(e¹ + e³) = −2.1269. Logits may be hundreds apart; the answer must still be finite.


# %% exercise="lab01.2" points=3 minutes=10 difficulty=1
def token_logps(logits: Tensor, completion_ids: Tensor) -> Tensor:
    """Read the log-probability of each sampled token off the logits at its place.

    Args: logits float (G, T, V); completion_ids int64 (G, T), from 0 to V − 1.
    Returns: float (G, T), in nats.
    """
    ### BEGIN SOLUTION
    normalised = torch.log_softmax(logits, dim=-1)
    return torch.take_along_dim(normalised, completion_ids[..., None], dim=-1)[..., 0]
    ### END SOLUTION


# %%
check("lab01.2", token_logps)

# %% [markdown]
# ## 3 · The loss
#
# With the ratio $P_{i,t} = \pi_\theta(y_{i,t}) / \pi_{\text{old}}(y_{i,t})$ the loss is
#
# $$\text{loss} = -\frac{1}{\sum_{i,t} m_{i,t}} \sum_{i,t} m_{i,t}\,
# \min\!\big(P_{i,t}\,a_i,\; \operatorname{clip}(P_{i,t}, 1-\varepsilon, 1+\varepsilon)\,a_i\big)$$
#
# where m is the mask, 1 for a real token. Four things are easy to get wrong:
# - one denominator for the whole batch, the number of unmasked tokens: the *token mean* of lesson 01;
# - the minimum makes the clip one-sided: which side depends on the sign of a;
# - `old_logps` belong to the policy that sampled: a constant, into which no gradient flows;
# - what stands under the mask has no part in the loss or its gradient. It may be NaN, and 0 · NaN is NaN.
#
# One token with ratio 1.5, a = 2 and ε = 0.2: min(3.0, 2.4) = 2.4. With a = −2: min(−3.0, −2.4) = −3.0.
#
# The check looks at the loss and at its gradient with respect to the tensors which it lists as `wrt`; those under
# `under_mask` got NaN wherever the mask is False.


# %% exercise="lab01.3" points=6 minutes=25 difficulty=2
def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, completion_mask: Tensor, epsilon: float
) -> Tensor:
    """Reduce the clipped objective to the scalar to minimise.

    Args: logps, old_logps float (G, T), in nats; advantages float (G,), one for each completion;
        completion_mask bool (G, T), True where a token is real; epsilon in (0, 1).
    Returns: scalar tensor.
    """
    ### BEGIN SOLUTION
    per_token = advantages[:, None].expand(completion_mask.shape)[completion_mask]
    ratio = torch.exp(logps[completion_mask] - old_logps.detach()[completion_mask])
    limited = torch.clip(ratio, 1 - epsilon, 1 + epsilon)
    return -torch.min(per_token * ratio, per_token * limited).mean()
    ### END SOLUTION


# %%
check("lab01.3", policy_loss)

# %% [markdown]
# Look at what you made: the loss of one token as its ratio grows, and its slope, which is what the policy feels.

# %%
ratios = torch.linspace(0.4, 1.6, 121, dtype=torch.float64)
figure, axes = plt.subplots(figsize=(6, 3.4))
for a, colour, line in ((1.0, "#0072B2", "-"), (-1.0, "#D55E00", "--")):
    place = (torch.zeros(1, 1), torch.tensor([a]), torch.ones(1, 1, dtype=torch.bool))
    losses = [policy_loss(ratio.log().reshape(1, 1), *place, epsilon=0.2) for ratio in ratios]
    axes.plot(ratios, losses, line, color=colour, label=f"advantage {a:+.0f}".replace("-", "−"))
axes.axvspan(0.8, 1.2, color="#DDDDDD", zorder=0, label="1 ± ε")
axes.set(xlabel="ratio π/π_old of the token", ylabel="loss of the token")
axes.set_title("The clip stops a push, on one side only")
axes.legend(loc="center left")
plt.show()

# %% [markdown]
# ## 4 · It learns
#
# The task is a binary tree of depth 4 (`minigrpo/PathTree-v0`). Each action is a token, L or R. One path of the
# sixteen pays 1.0; those that share its first action and then miss it pay −0.5; the other half of the tree pays a
# comfortable 0.7. Sixteen walks are a group. The loop below is all there is to GRPO, and the three functions are yours.


# %%
def learn(seed: int, updates: int = 120, learning_rate: float = 20.0) -> list[float]:
    """Train a table of logits; give the mean reward of each update's group."""
    envs, curve = make_envs("minigrpo/PathTree-v0", 16, n=1, r_neg=-0.5), []
    policy, generator = make_policy("tabular", 31, 2), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(policy.parameters(), lr=learning_rate)
    for _ in range(updates):
        group = sample_group(envs, policy, generator=generator)
        ids, mask = group.completion_ids, group.completion_mask
        new = token_logps(policy(group.states, ids), ids)
        optimizer.zero_grad()
        policy_loss(new, group.old_logps, group_advantages(group.rewards), mask, epsilon=0.2).backward()
        optimizer.step()
        curve.append(group.rewards.mean().item())
    return curve


# %%
curves = torch.tensor([learn(seed) for seed in range(6)])
figure, axes = plt.subplots(figsize=(6, 3.6))
axes.plot(curves.T, color="#0072B2", alpha=0.45)
for level, text in ((1.0, "the target"), (0.7, "the comfortable half")):
    axes.axhline(level, color="#D55E00", linestyle=":")
    axes.text(118, level + 0.03, text, ha="right", color="#D55E00")
axes.set(xlabel="update", ylabel="mean reward of the group", ylim=(-0.4, 1.15))
axes.set_title("Six seeds: every run learns, not every one finds the target")
plt.show()

# %% [markdown]
# Play: `learning_rate=5.0`, other seeds, `n=2` or `r_neg=-1.5` in `make_envs`. Lab 06 comes back to this tree.
#
# Then two questions. Answer each in three or four sentences: double-click its cell and replace the last line. A person
# reads them.

# %% [markdown] exercise="lab01.4" points=2 minutes=7
# **lab01.4** Halfway through training all sixteen walks of a group earn 0.7. What is the gradient of this update? What
# would happen without your rule for equal rewards, and what does it mean for a task which the policy always or never
# solves?
#
# ### BEGIN SOLUTION
# All advantages are 0, so the gradient is 0 and the update teaches nothing. Without the rule, rounding divided by eps
# would make tiny random advantages, or NaN with no eps at all. Prompts that are always or never solved cost samples
# and give no signal: choose others, or sample more.
#
# *Rubric.* 1 point: the gradient is zero, as all advantages are. 1 point: such prompts waste samples, with either the
# rounding (or NaN) or a way out.
# ### END SOLUTION

# %% [markdown] exercise="lab01.5" points=2 minutes=8
# **lab01.5** Replace the token mean by the mean of each completion's own mean. One right completion has 10 tokens,
# another has 100. Compare how much each of their tokens weighs in the two losses. Which long completions profit?
#
# ### BEGIN SOLUTION
# In the token mean every token weighs the same, so the long completion moves the policy ten times as much in all.
# With means of rows each completion has the same total, and a token of the long one counts a tenth. Long wrong
# completions profit: their penalty is spread over more tokens.
#
# *Rubric.* 1 point: equal weight of tokens against a tenth. 1 point: long wrong ones are punished less per token.
# ### END SOLUTION
