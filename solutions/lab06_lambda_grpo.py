# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 06 · λ-GRPO: the flaw, the fix, and a fair test
#
# GRPO counts each process step as often as it was sampled. λ-GRPO divides by |λ|. Does that help? You write the loss,
# the paper's trap and the statistics of a fair comparison; then you train, and say what your numbers show.
# (Another paper, arXiv 2510.06870, uses the name λ-GRPO for something else: a learnable preference for lengths.)
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. write the loss of λ-GRPO | 4 | 20 |
# | 2. build the trap as a Gymnasium environment | 4 | 20 |
# | 3. bootstrap an interval from paired seeds | 3 | 15 |
# | 4. compare at each objective's own learning rate | 3 | 15 |
# | 5. turn an interval into a conclusion | 1 | 5 |
# | 6. answer two questions | 5 | 20 |
#
# **Needs** lesson 06 (`lessons/06_lambda_grpo.ipynb`) and two CPU cores; the training below takes less than a minute.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch`, `numpy`,
# `gymnasium` and the names of the next cell, but not `minigrpo`, which holds the answers.

# %% tags=["setup"]
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

# %% tags=["tools"]
import itertools

import matplotlib.pyplot as plt

import minigrpo
from grader import check

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## 1 · The loss
#
# $$L_\lambda = -\frac{1}{\sum_i \text{len}(y^{(i)})} \sum_i \sum_t
# \frac{P_{i,t}\,a_i - D_{i,t}}{|\lambda^{(i,t)}|}$$
#
# $$P_{i,t} = \frac{\pi_\theta}{\pi_{\text{old}}}, \qquad
# D_{i,t} = \beta\Big(\frac{\pi_{\text{ref}}}{\pi_\theta} - \ln \frac{\pi_{\text{ref}}}{\pi_\theta} - 1\Big)$$
#
# A token's whole term is divided, the KL estimate D too; the denominator in front stays the number of tokens. Nothing
# is clipped, and only $\pi_\theta$ learns. The check looks at the value and at the gradient of every log-prob.
#
# Two completions `X Y` and `X Z` with a = 1 and −2, P = 1, β = 0: both X have |λ| = 2, so the loss is
# −(1/2 + 1 − 2/2 − 2) / 4 = 0.375. GRPO's, with 1 in place of each |λ|, is 0.5.


# %% exercise="lab06.1" points=4 minutes=20 difficulty=2
def lambda_grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor,
    advantages: Tensor,
    sizes: Tensor,
    completion_mask: Tensor,
    beta: float,
) -> Tensor:
    """Reduce λ-GRPO's objective to the scalar to minimise.

    Args: logps, old_logps, ref_logps float (G, T), in nats, any finite number under the mask;
        advantages float (G,), aᵢ; sizes int64 (G, T), |λ^(i,t)|, 0 where masked; completion_mask bool (G, T); beta ≥ 0.
    Returns: scalar tensor.
    """
    ### BEGIN SOLUTION
    P = torch.exp(logps - old_logps.detach())
    to_reference = ref_logps.detach() - logps
    D = beta * (torch.exp(to_reference) - to_reference - 1)
    terms = (P * advantages[:, None] - D) / sizes.masked_fill(~completion_mask, 1)
    return -terms[completion_mask].mean()
    ### END SOLUTION


# %%
check("lab06.1", lambda_grpo_loss)

# %% [markdown]
# ## 2 · The trap
#
# The paper's toy task: walk from the root of a binary tree to a leaf. One path of `depth` actions is the target.
#
# | path | reward at its leaf |
# | --- | --- |
# | the target | +1.0 |
# | another path that shares the target's first `n` actions | `r_neg` |
# | any other | +0.7 |
#
# Every reward before the leaf is 0. An observation is the number of the node where you stand: the root is 0, and from
# node k action 0 leads to 2k + 1, action 1 to 2k + 2. An episode terminates at the leaf, and is never truncated.
# `action_space` and `observation_space` are `Discrete`, as small as they can be (all nodes count, the leaves too).
#
# With depth 2, n = 1, r_neg = −0.5 and target `[1, 0]`: action 1 gives node 2 and reward 0.0, then action 1 gives
# node 6 and −0.5, terminated. The path 0, 0 ends in node 3 with +0.7.


# %% exercise="lab06.2" points=4 minutes=20 difficulty=2
class TrapEnv(gym.Env):
    """The trap: a binary tree with one best leaf among the worst.

    Args: depth ≥ 1; n from 0 to depth − 1; r_neg: the reward of a near miss; target: `depth` actions, 0 or 1.
    """

    def __init__(self, depth: int, n: int, r_neg: float, target: list[int]) -> None:
        ### BEGIN SOLUTION
        self.depth, self.n, self.r_neg, self.target = depth, n, r_neg, list(target)
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Discrete(2 ** (depth + 1) - 1)
        ### END SOLUTION

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        """Go back to the root. Returns: the observation and an empty dict."""
        super().reset(seed=seed)
        ### BEGIN SOLUTION
        self.node, self.taken = 0, []
        return self.node, {}
        ### END SOLUTION

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """Take an action. Returns: observation, reward, terminated, truncated, and an empty dict."""
        ### BEGIN SOLUTION
        self.taken.append(int(action))
        self.node = 2 * self.node + 1 + int(action)
        if len(self.taken) < self.depth:
            return self.node, 0.0, False, False, {}
        near = self.taken[: self.n] == self.target[: self.n]
        reward = 1.0 if self.taken == self.target else float(self.r_neg) if near else 0.7
        return self.node, reward, True, False, {}
        ### END SOLUTION


# %%
check("lab06.2", TrapEnv)

# %% [markdown]
# ## 3 · An interval from paired seeds
#
# Run both objectives with the same seeds: the same targets, the same random numbers. Seeds differ much from one
# another, the two runs of one seed less, so look at each seed's **difference**. How sure is the mean of S differences?
# The *percentile bootstrap* (Efron 1979) asks the data: draw S of the S differences with replacement, take their mean,
# do that many times, and give the 2.5% and the 97.5% quantile of all those means.
#
# For a = `[3, 1, 2]` and b = `[1, 0, 2]` the differences are `[2, 1, 0]`, their mean is 1, and the interval is close to
# (0, 2). The check allows you another random generator than ours: an end may be 0.2 standard errors of the mean away
# from ours. (Over 40 draws of scores and 40 bootstrap seeds each, none was more than 0.14 away.) The same seed has to
# give the same interval again, and another seed draws anew.


# %% exercise="lab06.3" points=3 minutes=15 difficulty=2
def paired_interval(a: Tensor, b: Tensor, resamples: int, seed: int) -> tuple[float, float]:
    """Bootstrap a 95% interval of the mean of a − b over paired seeds.

    Args: a, b float (S,): the scores of two objectives, entry s of both from seed s; resamples, 10,000 in the check;
        seed of the bootstrap.
    Returns: (low, high).
    """
    ### BEGIN SOLUTION
    d = (a - b).numpy()
    rows = np.random.default_rng(seed).integers(len(d), size=(resamples, len(d)))
    means = d[rows].mean(axis=1)
    return tuple(float(end) for end in np.quantile(means, (0.025, 0.975)))
    ### END SOLUTION


# %%
check("lab06.3", paired_interval)

# %% [markdown]
# ## 4 · At whose learning rate?
#
# λ-GRPO divides by |λ| ≥ 1, so its gradient is shorter, and the learning rate that suits one objective is too large or
# too small for the other. A fair comparison tunes each. But who picks the best of many rates, and reports how well it
# did on the very seeds that picked it, reports luck too. So:
#
# - each objective's own rate is the one with the highest mean score over the **first** `tuning` seeds (the smallest of
#   them where several are equal);
# - the differences, candidate − baseline, each at its own rate, are taken on the **other** seeds, seed by seed.
#
# With `rates = [1.0, 2.0]`, `tuning` 1, baseline `[[0.5, 0.2, 0.4], [0.1, 0.9, 0.9]]` and candidate
# `[[0.3, 0.0, 0.0], [0.6, 0.7, 0.5]]` the baseline gets rate 1.0, the candidate 2.0, the differences are `[0.5, 0.1]`.


# %% exercise="lab06.4" points=3 minutes=15 difficulty=2
def fair_comparison(rates: list[float], baseline: Tensor, candidate: Tensor, tuning: int) -> dict:
    """Compare two objectives, each at a learning rate chosen on other seeds than those that are compared.

    Args: rates: R learning rates, from small to large; baseline, candidate float (R, S): the score for each rate and
        seed; tuning: number of seeds, from the first, which choose; 0 < tuning < S.
    Returns: {"baseline_rate": float, "candidate_rate": float, "differences": float tensor (S − tuning,)}.
    """
    ### BEGIN SOLUTION
    rows = [int(scores[:, :tuning].mean(dim=1).argmax()) for scores in (baseline, candidate)]
    held_out = [scores[row, tuning:] for scores, row in zip((baseline, candidate), rows, strict=True)]
    return {
        "baseline_rate": rates[rows[0]],
        "candidate_rate": rates[rows[1]],
        "differences": held_out[1] - held_out[0],
    }
    ### END SOLUTION


# %%
check("lab06.4", fair_comparison)

# %% [markdown]
# ## 5 · A conclusion
#
# An interval that lies above 0 says "higher", one below 0 says "lower". One that holds 0, be it at its very end, says
# "not told apart", which is not the same as "equal". `conclusion(0.1, 0.3)` is `"higher"`.


# %% exercise="lab06.5" points=1 minutes=5 difficulty=1
def conclusion(low: float, high: float) -> str:
    """Say what an interval of a mean difference shows.

    Args: low ≤ high: its ends.
    Returns: "higher", "lower" or "not told apart".
    """
    ### BEGIN SOLUTION
    if low <= 0 <= high:
        return "not told apart"
    return "higher" if low > 0 else "lower"
    ### END SOLUTION


# %%
check("lab06.5", conclusion)

# %% [markdown]
# ## Now try it
#
# Your loss, your environment, your statistics: a table of logits, a row for each node, learns the trap with n = 2 and
# r_neg = −1. 40 seeds train at once, in groups of 16; each seed has a target of its own.

# %%
SEEDS, TUNING = 40, 10
PATHS = torch.tensor(list(itertools.product((0, 1), repeat=4)))  # (16, 4)
traps = [TrapEnv(4, 2, -1.0, np.random.default_rng(seed).integers(2, size=4).tolist()) for seed in range(SEEDS)]


def walk(env: TrapEnv, path: list[int]) -> tuple[list[int], float]:
    """The node before each action, and the reward at the leaf."""
    nodes, reward = [env.reset()[0]], 0.0
    for action in path:
        node, reward, *_ = env.step(action)
        nodes.append(node)
    return nodes[:-1], reward


NODES = torch.tensor([walk(traps[0], path)[0] for path in PATHS.tolist()])
REWARDS = torch.tensor([[walk(env, path)[1] for path in PATHS.tolist()] for env in traps], dtype=torch.float64)
print(f"rewards of the 16 leaves of seed 0: {REWARDS[0].tolist()}")

# %% [markdown]
# With 1 in place of each |λ| your loss is GRPO's, so one function serves both. All seeds go through it as one batch of
# 40 · 16 rows; it divides by the tokens of all of them, thus `SEEDS * loss`.


# %%
def loss_of(logps: Tensor, leaves: Tensor, once: bool) -> Tensor:
    """Your loss on (SEEDS, 16) sampled leaves; `once` for λ-GRPO, else GRPO."""
    mask = torch.ones(SEEDS, 16, 4, dtype=torch.bool)
    sizes = minigrpo.step_sizes(PATHS[leaves], mask) if once else mask.long()
    a = minigrpo.group_advantages(REWARDS.gather(1, leaves)).flatten()
    new = logps.gather(1, leaves.unsqueeze(-1).expand(-1, -1, 4)).flatten(0, 1)
    old = new.detach()
    return lambda_grpo_loss(new, old, old, a, sizes.flatten(0, 1), mask.flatten(0, 1), 0.0)


# %%
def train(once: bool, rate: float, optimiser) -> Tensor:
    """How often each seed sampled its target in the last 50 of 250 updates: (SEEDS,)."""
    theta = torch.zeros(SEEDS, 15, 2, dtype=torch.float64, requires_grad=True)
    steps, generator, hits = optimiser([theta], lr=rate), torch.Generator().manual_seed(0), []
    target = REWARDS.argmax(dim=1, keepdim=True)
    for _ in range(250):
        logps = theta.log_softmax(dim=-1)[:, NODES, PATHS]  # (SEEDS, 16, 4)
        leaves = torch.multinomial(logps.detach().sum(dim=-1).exp(), 16, replacement=True, generator=generator)
        hits.append((leaves == target).double().mean(dim=1))
        steps.zero_grad()
        (SEEDS * loss_of(logps, leaves, once)).backward()
        steps.step()
    return torch.stack(hits[-50:]).mean(dim=0)


# %%
sweeps = {"SGD": (torch.optim.SGD, [0.5, 1.0, 2.0, 5.0, 20.0]), "Adam": (torch.optim.Adam, [0.01, 0.03, 0.1, 0.3])}
scores = {
    (name, once): torch.stack([train(once, rate, optimiser) for rate in rates])
    for name, (optimiser, rates) in sweeps.items()
    for once in (False, True)
}
print({f"{name}, {'λ-GRPO' if once else 'GRPO'}": score.mean(dim=1).tolist() for (name, once), score in scores.items()})

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
for axes, (name, (_, rates)) in zip(panels, sweeps.items(), strict=True):
    for once, style in ((False, "o--"), (True, "s-")):
        score, colour = scores[name, once], "#0072B2" if once else "#D55E00"
        axes.plot(rates, score.mean(dim=1), style, color=colour, label="λ-GRPO" if once else "GRPO")
        ends = [paired_interval(row, torch.zeros_like(row), 2000, 0) for row in score]
        axes.fill_between(rates, *zip(*ends, strict=True), color=colour, alpha=0.15)
    axes.set(xscale="log", xlabel="learning rate", title=f"a table of logits, {name}")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
    axes.set_xticks([], minor=True)
panels[0].set_ylabel("target frequency")
panels[0].legend()
figure.suptitle("Which objective leads depends on the learning rate, and on the optimiser")
figure.tight_layout()
plt.show()

# %% [markdown]
# Bands are 95% intervals of each mean by itself. Because the seeds are paired, the difference is known better than two
# bands suggest. At each rate, and then each objective at its own rate (on the 30 seeds that did not choose it). An
# interval that excludes 0 can still be too small to matter; and of eleven such intervals one may well miss by chance.


# %%
rows = []
for name, (_, rates) in sweeps.items():
    grpo, once = scores[name, False], scores[name, True]
    pairs = [(f"{name}, {rate:g}", *pair) for rate, *pair in zip(rates, once, grpo, strict=True)]
    fair = fair_comparison(rates, grpo, once, TUNING)
    d = fair["differences"]
    own = f"{name}, λ-GRPO at {fair['candidate_rate']:g}, GRPO at {fair['baseline_rate']:g}"
    rows += [(label, *paired_interval(a, b, 10_000, 0)) for label, a, b in [*pairs, (own, d, torch.zeros_like(d))]]
for label, low, high in rows:
    print(f"{label:34} [{low:+.3f}, {high:+.3f}]  λ-GRPO is {conclusion(low, high)}")

# %%
figure, axes = plt.subplots(figsize=(7, 3.8))
looks = {"higher": ("#0072B2", "^"), "lower": ("#D55E00", "v"), "not told apart": ("#666666", "o")}
for place, (_, low, high) in enumerate(rows):
    colour, marker = looks[conclusion(low, high)]
    axes.plot([low, high], [place, place], color=colour)
    axes.plot((low + high) / 2, place, marker, color=colour)
axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
axes.invert_yaxis()
axes.axvline(0, color="black", linewidth=0.8)
for said, (colour, marker) in looks.items():
    axes.plot([], [], marker, color=colour, label=said)
axes.legend(title="λ-GRPO is", loc="lower right")
axes.set(xlabel="λ-GRPO − GRPO, target frequency, 95% interval", title="One task, three conclusions")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 6 · Two questions
#
# They are read by a person.

# %% [markdown] exercise="lab06.6" points=2 minutes=8
# **lab06.6** Below a node with many branches, two have the same A = +1; of 16 completions one was sampled 6 times, the
# other twice. How strongly do GRPO and λ-GRPO push each of the two actions? What does that say about λ-GRPO as a policy
# gradient?
#
# ### BEGIN SOLUTION
# GRPO's terms of the first action sum to 6·A, those of the second to 2·A, in proportion to how often each was sampled:
# that makes the estimate unbiased. In λ-GRPO both sum to 1·A, so the rarer gets a stronger push for each time that it
# was sampled. λ-GRPO is no unbiased policy gradient any more: of two equally good branches it favours the rarer.
#
# *Rubric.* 1 point: 6 to 2 against 1 to 1. 1 point: biased towards the rarer, not the gradient of the expected reward.
# ### END SOLUTION

# %% [markdown] exercise="lab06.7" points=3 minutes=12
# **lab06.7** Is λ-GRPO better than GRPO? Answer in at most six sentences, from your two plots: what you found for each
# optimiser, with intervals; one other explanation of a difference than “steps are counted once”; and what your data
# can't tell.
#
# ### BEGIN SOLUTION
# For example: under SGD it depends on the rate. At 0.5 λ-GRPO was lower, by 0.12 to 0.30, as its shorter gradient had
# not arrived after 250 updates; from 1 to 5 the two were not told apart; at 20 it was higher, by 0.22 to 0.52. With
# each at a rate of its own, chosen on other seeds, it was higher by 0.03 to 0.14. Under Adam, at the rates where either
# works (0.03 and 0.1), any difference was at most about 0.05, of either sign. A shorter gradient is the other
# explanation: a control would scale GRPO's to the same norm. One cell of a toy task, a table as policy, and 40 seeds
# say nothing about language models.
#
# *Rubric.* 1 point: both optimisers, with intervals or their conclusions, and the dependence on the rate. 1 point: the
# size of the gradient (or another real alternative). 1 point: limits, and no claim that goes beyond the intervals: a
# well-argued "not told apart" is as good as "higher".
# ### END SOLUTION
