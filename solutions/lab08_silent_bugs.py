# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 08 · Silent bugs
#
# A training script can be wrong without any error. It runs, the loss is a number, and the curve even rises a little.
# This lab holds such a script with six bugs, all of them real ones. You find out which run suffers from which, and
# mend the six functions.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. name the bug behind each of six runs | 6 | 30 |
# | 2–7. mend six functions | 10 | 45 |
# | 8–9. answer two questions | 4 | 15 |
#
# **Needs** lessons 01 to 06 and two CPU cores; every cell runs in a few seconds.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch` and the names of the
# next cell, but not `minigrpo`, and not the broken functions: write each one anew.

# %% tags=["setup"]
import torch
from torch import Tensor

# %% tags=["tools"]
import matplotlib.pyplot as plt

from grader import check
from grader.labs.lab08 import CAUSES, RUNS

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## The task
#
# The policy spells. Tokens are `a` (0), `b` (1) and `.` (2), which ends a word. Prompt 0 asks for `ba.` and prompt 1
# for `abba.`; the reward is the share of the word that is right from its beginning on, times a stake: 10 for prompt 0,
# 0.1 for prompt 1. The server has a time limit, so that a completion may be cut off before it ends. Whatever follows
# in the tensor is filler, 0, and **reads like an `a`**.

# %%
END, FILLER = 2, 0
WORDS = [[1, 0, END], [0, 1, 1, 0, END]]
STAKES = torch.tensor([[10.0], [0.1]], dtype=torch.float64)
G, T, V = 16, 6, 3


def sample(theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a group for each prompt: completion_ids int64 (2, G, T), padded, and lengths int64 (2, G)."""
    draws = torch.multinomial(theta.softmax(dim=-1).flatten(0, 1), G, replacement=True, generator=generator)
    ids = draws.view(2, T, G).mT.clone()
    ended = (ids == END).long().cumsum(dim=-1).eq(0).sum(dim=-1) + 1  # the end token belongs to its completion
    room = torch.randint(2, T + 1, (2, G), generator=generator)  # tokens until the server's time is up
    lengths = torch.minimum(ended, room)
    for row, length in zip(ids.flatten(0, 1), lengths.flatten().tolist(), strict=True):
        row[length:] = FILLER
    return ids, lengths


# %%
def score(ids: Tensor, lengths: Tensor) -> Tensor:
    """The share of its word that each completion gets right: float64 (2, G)."""
    shares = torch.zeros(2, G, dtype=torch.float64)
    for prompt, word in enumerate(WORDS):
        for i, (row, length) in enumerate(zip(ids[prompt].tolist(), lengths[prompt].tolist(), strict=True)):
            right = [a == b for a, b in zip(row[:length], word, strict=False)]
            shares[prompt, i] = (right + [False]).index(False) / len(word)
    return shares


# %% [markdown]
# ## The script as it was found
#
# Six functions, each with one bug. They are short, and each looks reasonable. What each is *meant* to do:
#
# | function | meant to give |
# | --- | --- |
# | `completion_mask` | True at the `length` real tokens of each completion, the end token among them |
# | `step_sizes` | the number of completions that share the token's whole prefix, 0 where masked |
# | `group_advantages` | $(r_i - \text{mean}\, r) / (\text{std}\, r + 10^{-4})$ in each group, std with n − 1 |
# | `surrogate` | the ratio $\pi_\theta / \pi_\text{old}$ times the advantage; the old policy is a constant |
# | `kl_penalty` | $\beta \cdot (x - \ln x - 1)$ with $x = \pi_\text{ref} / \pi_\theta$, a cost, added to the loss |
# | `batch_loss` | the mean over all real tokens of the batch, whatever the size of the micro-batches |


# %%
def buggy_completion_mask(lengths, T):
    places = torch.arange(1, T + 1)
    return places < lengths.unsqueeze(-1)


def buggy_step_sizes(completion_ids, completion_mask):
    same = completion_ids.unsqueeze(-3) == completion_ids.unsqueeze(-2)
    shared = same.cumprod(dim=-1)
    return shared.sum(dim=-2) * completion_mask


def buggy_group_advantages(rewards):
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return centred / (rewards.std() + 1e-4)


# %%
def buggy_surrogate(logps, old_logps, advantages):
    ratio = (logps - old_logps).exp()
    return ratio * advantages


def buggy_kl_penalty(logps, ref_logps, beta):
    log_ratio = ref_logps.detach() - logps
    return beta * (log_ratio - log_ratio.expm1())


def buggy_batch_loss(losses, completion_mask, micro_batch):
    batches = zip(losses.split(micro_batch), completion_mask.split(micro_batch), strict=True)
    means = [(rows * real).sum() / real.sum().clamp(min=1) for rows, real in batches]
    return torch.stack(means).mean()


# %% [markdown]
# The rest of the script has no bug. It is λ-GRPO: each token's term is divided by |λ|. One update a batch, so the old
# policy is the policy itself and `logps` is handed over twice.


# %%
def losses_of(f: dict, theta: Tensor, ids: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's loss and its weight 1/|λ|, both (2, G, T)."""
    chosen = ids.unsqueeze(-1)
    policies = theta, torch.zeros_like(theta)  # the reference is the policy that began
    tables = (x.log_softmax(dim=-1).unsqueeze(1).expand(-1, G, -1, -1) for x in policies)
    logps, ref_logps = (table.gather(-1, chosen).squeeze(-1) for table in tables)
    weights = 1 / f["step_sizes"](ids, mask).clamp(min=1)
    cost = f["kl_penalty"](logps, ref_logps, 0.2)
    return weights * (cost - f["surrogate"](logps, logps, advantages.unsqueeze(-1).expand(ids.shape))), weights


def slope(f: dict, theta: Tensor, losses: Tensor, mask: Tensor, micro_batch: int) -> Tensor:
    """The gradient of the batch's loss."""
    loss = f["batch_loss"](losses.flatten(0, 1), mask.flatten(0, 1), micro_batch)
    return torch.autograd.grad(loss, theta, retain_graph=True)[0]


# %%
def measure(ids, lengths, mask, shares, weights, theta, gradient, whole) -> dict[str, float]:
    """What one update looked like from outside."""
    paths = [(p, *row[: n + 1]) for p in (0, 1) for row, real in zip(ids[p].tolist(), mask[p].tolist(), strict=True)
             for n in range(sum(real))]  # fmt: skip
    log_probs = theta.detach().log_softmax(dim=-1)
    ends = ids.gather(-1, lengths.unsqueeze(-1) - 1) == END
    return {
        "word 0": shares[0].mean().item(),
        "word 1": shares[1].mean().item(),
        "ended": ends.double().mean().item(),
        "gradient": gradient.norm().item(),
        "KL": (log_probs.exp() * (log_probs - torch.tensor(1 / V).log())).sum(dim=-1).mean().item(),
        "Σ 1/|λ| ÷ prefixes": ((weights * mask).sum() / len(set(paths))).item(),
        "gap": ((gradient - whole).norm() / whole.norm().clamp(min=1e-9)).item(),
    }


# %%
def train(f: dict, seed: int = 0, updates: int = 200) -> list[dict[str, float]]:
    """Train with the six functions of `f`; a row of measurements an update."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(2, T, V, dtype=torch.float64, requires_grad=True)
    rows = []
    for _ in range(updates):
        ids, lengths = sample(theta.detach(), generator)
        mask, shares = f["completion_mask"](lengths, T), score(ids, lengths)
        losses, weights = losses_of(f, theta, ids, mask, f["group_advantages"](STAKES * shares))
        gradient, whole = (slope(f, theta, losses, mask, size) for size in (2, 2 * G))
        rows.append(measure(ids, lengths, mask, shares, weights, theta, gradient, whole))
        # Logits stay bounded, so that what runs away can still be looked at.
        theta = (theta.detach() - 6.0 * gradient).clamp(-9, 9).requires_grad_()
    return rows


# %% [markdown]
# ## 1 · Diagnosis
#
# Six runs of `train`, A to F, were recorded. **Each has one of the six bugs**, and five right functions. Beside them is
# a healthy run. You see, as means of the last 50 updates: how much of each word is right; how many completions end by
# themselves; the gradient's norm; the KL divergence from the policy that began; and two quantities that are known
# beforehand:
#
# - Σ 1/|λ| over a group's tokens counts each prefix once. Divided by the number of different prefixes it is **1**.
# - The gradient does not depend on the size of the micro-batches, so the *gap* between micro-batches of two rows and
#   the whole batch is **0**.

# %%
columns = list(RUNS["healthy"][0])
print(f"{'run':9}" + "  ".join(columns))
for run, rows in RUNS.items():
    means = [sum(row[name] for row in rows[-50:]) / 50 for name in columns]
    print(f"{run:9}" + "  ".join(f"{mean:{len(name)}.2f}" for name, mean in zip(columns, means, strict=True)))

# %%
figure, panels = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
for run, axes in zip("ABCDEF", panels.flat, strict=True):
    for name, color, style in (("word 0", "#0072B2", "-"), ("word 1", "#D55E00", "-"), ("KL", "#009E73", ":")):
        axes.plot([row[name] for row in RUNS["healthy"]], color="0.8", linestyle=style, linewidth=0.8)
        axes.plot([row[name] for row in RUNS[run]], color=color, linestyle=style, label=name)
    axes.set_title(f"run {run}")
panels[0, 0].legend(loc="lower right", fontsize=8)
figure.supxlabel("update")
figure.supylabel("share of the word that is right; KL in nats")
figure.suptitle("Two of the six look healthy here (grey): a learning curve does not show every bug")
plt.show()

# %% [markdown]
# These are the causes to choose from: six true ones, six that nobody has. Read the table, then the functions above.
# Which function could make just that column go wrong?

# %%
for key, text in CAUSES.items():
    print(f"{key:22} {text}")


# %% exercise="lab08.1" points=6 minutes=30 difficulty=2
def diagnosis() -> dict[str, str]:
    """Name the cause of what each run suffers from.

    Returns: a dict with the keys "A" … "F"; each value is a key of CAUSES, as in {"A": "rate too small", …}.
    """
    ### BEGIN SOLUTION
    return {
        "A": "KL rewarded",  # KL goes on rising past the healthy run's
        "B": "mask too short",  # few completions end: the end token is never trained
        "C": "mean of means",  # the gap is not 0
        "D": "no gradient",  # the gradient's norm is 0 from the first update on
        "E": "padding shared",  # Σ 1/|λ| is below the number of prefixes
        "F": "std of the batch",  # word 1, of the small stake, is never learned
    }
    ### END SOLUTION


# %% [markdown]
# The check looks at the form alone; whether you are right you learn when the lab is graded.

# %%
check("lab08.1", diagnosis)

# %% [markdown]
# ## 2 · The mask
#
# A completion of length n has n real tokens, at the places 0 … n − 1. Lengths `[3, 1]` with T = 4 give
# `[[1, 1, 1, 0], [1, 0, 0, 0]]`. A length may be 0.


# %% exercise="lab08.2" points=1 minutes=5 difficulty=1
def completion_mask(lengths: Tensor, T: int) -> Tensor:
    """Mark the real tokens of each completion.

    Args: lengths int64 (…, G), from 0 to T; T: the padded length.
    Returns: bool (…, G, T), True where a token is real.
    """
    ### BEGIN SOLUTION
    return lengths.unsqueeze(-1) > torch.arange(T, device=lengths.device)
    ### END SOLUTION


# %%
check("lab08.2", completion_mask)

# %% [markdown]
# ## 3 · The sizes of process sets
#
# $$|\lambda^{(i,t)}| = \#\{\, j : y^{(j)}_s = y^{(i)}_s \text{ for all } s \le t,\ \text{all of them real} \,\}$$
#
# In the group `b a a`, `b`, `.` the sizes are `2 1 1`, `2`, `1`: the second has ended after `b`, though its filler
# reads like `a`.


# %% exercise="lab08.3" points=2 minutes=10 difficulty=2
def step_sizes(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Count how many completions of the group share each token's prefix.

    Args: completion_ids int64 (P, G, T), anything under the mask; completion_mask bool (P, G, T).
    Returns: int64 (P, G, T), between 1 and G; 0 where masked.
    """
    ### BEGIN SOLUTION
    real = completion_mask.unsqueeze(-2) & completion_mask.unsqueeze(-3)
    agree = real & (completion_ids.unsqueeze(-2) == completion_ids.unsqueeze(-3))
    return agree.cumprod(dim=-1).sum(dim=-2)
    ### END SOLUTION


# %%
check("lab08.3", step_sizes)

# %% [markdown]
# ## 4 · Advantages
#
# $$a_i = \frac{r_i - \text{mean}\, r}{\text{std}\, r + 10^{-4}}, \qquad \text{both over the completions of } i\text{'s
# own group, std with } n - 1$$
#
# Two groups with rewards `0 10` and `0 0.1` have nearly the same advantages, −0.71 and +0.71.


# %% exercise="lab08.4" points=2 minutes=5 difficulty=1
def group_advantages(rewards: Tensor) -> Tensor:
    """Centre and scale the rewards of each group.

    Args: rewards float (P, G).
    Returns: (P, G); 0 in a group of equal rewards.
    """
    ### BEGIN SOLUTION
    std, mean = torch.std_mean(rewards, dim=-1, keepdim=True)
    return (rewards - mean) / (std + 1e-4)
    ### END SOLUTION


# %%
check("lab08.4", group_advantages)

# %% [markdown]
# ## 5 · The surrogate
#
# $$P_{i,t} \cdot a_i = \frac{\pi_\theta(y_{i,t})}{\pi_\text{old}(y_{i,t})} \cdot a_i, \qquad \nabla (P\,a) =
# P \cdot a \cdot \nabla \ln \pi_\theta$$
#
# The script hands one tensor over twice. The ratio is then 1 in value. What is its gradient meant to be?


# %% exercise="lab08.5" points=2 minutes=10 difficulty=2
def surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    """Weigh the probability ratio by the advantage, without a clip.

    Args: logps, old_logps float (…, T), in nats, which may be one tensor; advantages (…, T).
    Returns: (…, T), to maximise. Gradient flows into logps; old_logps is a constant.
    """
    ### BEGIN SOLUTION
    constant = old_logps.detach()
    return torch.exp(logps - constant) * advantages
    ### END SOLUTION


# %%
check("lab08.5", surrogate)

# %% [markdown]
# ## 6 · The KL penalty
#
# $$D_{i,t} = \beta \cdot (x - \ln x - 1), \qquad x = \pi_\text{ref}(y_{i,t}) / \pi_\theta(y_{i,t})$$
#
# It is 0 where both policies agree and above 0 elsewhere. With ln x = 0.1 and β = 1 it is 0.0052.


# %% exercise="lab08.6" points=1 minutes=5 difficulty=1
def kl_penalty(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """Give the cost of leaving the reference at each token; it is added to the loss.

    Args: logps, ref_logps float (…, T), in nats; beta ≥ 0.
    Returns: (…, T), at least 0. Gradient flows into logps; ref_logps is a constant.
    """
    ### BEGIN SOLUTION
    log_x = ref_logps.detach().sub(logps)
    return beta * (torch.expm1(log_x) - log_x)
    ### END SOLUTION


# %%
check("lab08.6", kl_penalty)

# %% [markdown]
# ## 7 · A batch in micro-batches
#
# Where a batch does not fit into memory its rows come in micro-batches of `micro_batch` rows, and the sum of their
# losses is the batch's:
#
# $$L = \sum_{\text{micro-batches } B} \frac{\sum_{i \in B} \sum_t m_{i,t}\, \ell_{i,t}}{N}, \qquad N = \text{?}$$
#
# Say what N has to be for L to be the mean over all real tokens. Rows with 1 and with 3 real tokens, all losses 1 in
# the first and 2 in the second, give 7/4, whether they come together or one by one. The last micro-batch may be
# smaller.


# %% exercise="lab08.7" points=2 minutes=10 difficulty=2
def batch_loss(losses: Tensor, completion_mask: Tensor, micro_batch: int) -> Tensor:
    """Add up the losses of a batch's micro-batches.

    Args: losses float (N, T), anything finite under the mask; completion_mask bool (N, T); micro_batch ≥ 1 rows.
    Returns: a scalar, the same for every micro_batch.
    """
    ### BEGIN SOLUTION
    num_tokens = completion_mask.sum()
    total = losses.new_zeros(())
    for start in range(0, len(losses), micro_batch):
        rows = slice(start, start + micro_batch)
        total = total + losses[rows][completion_mask[rows]].sum() / num_tokens
    return total
    ### END SOLUTION


# %%
check("lab08.7", batch_loss)

# %% [markdown]
# ## Mended
#
# Your six functions in the script, beside the script as it was found.

# %%
broken = {name.removeprefix("buggy_"): value for name, value in list(globals().items()) if name.startswith("buggy_")}
mended = {name: globals()[name] for name in broken}
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for functions, style, label in ((mended, "-", "mended"), (broken, ":", "as found")):
    rows = train(functions)
    for name, color in (("word 0", "#0072B2"), ("word 1", "#D55E00")):
        axes.plot([row[name] for row in rows], style, color=color, label=f"{name}, {label}")
axes.set(xlabel="update", ylabel="share of the word that is right", ylim=(0, 1.2))
axes.set_title("Six short repairs, and the script learns both words")
axes.legend(ncols=2)
plt.show()

# %% [markdown]
# ## 8 · Two questions
#
# Answer each in three or four sentences. They are read by a person.

# %% [markdown] exercise="lab08.8" points=2 minutes=7
# **lab08.8** Run A reaches higher rewards than the healthy run. Why is it broken all the same, and how would you have
# found out, had you only looked at rewards?
#
# ### BEGIN SOLUTION
# Its KL term pays the policy for leaving the reference, so it is not held back as it was meant to be: here the task
# rewards that, but with a real model and a reward that can be gamed the policy runs away from sensible text. Rewards
# alone cannot show it. A logged KL does, compared with a run at β = 0, or a unit test: the penalty must never be
# negative.
#
# *Rubric.* 1 point: it is paid for distance, or nothing keeps it near the reference. 1 point: a check that would show
# it (log the KL, test the sign, compare with β = 0).
# ### END SOLUTION

# %% [markdown] exercise="lab08.9" points=2 minutes=8
# **lab08.9** Two of the bugs hardly change the learning curves, and were found by a quantity that is known beforehand.
# Name two more such quantities that you would log or test in a GRPO script, and the bug that each would catch.
#
# ### BEGIN SOLUTION
# For example: advantages of each group sum to 0 (a wrong mean or axis); the ratio is 1 at the first pass over fresh
# samples (log-probabilities of training and sampling differ: temperature, dropout, a shifted token); KL to the
# reference is 0 before the first update; the loss of a batch does not change when padding is added.
#
# *Rubric.* 1 point for each quantity that is known beforehand, with a bug that would really change it.
# ### END SOLUTION
