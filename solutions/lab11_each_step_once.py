# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 11 · Each step once
#
# Completions of a process step share its tokens and all that stands before them, so a model gives each of these tokens
# one log-probability. A training pass computes it once for each row. In this lab you compute it once: you lay a group
# out as one sequence, say who sees whom, and write the loss over the nodes of the tree. At the end your loss and your
# gradient are those of the padded rows.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. lay a group out in packed order | 4 | 25 |
# | 2. find where the descendants of each token end | 2 | 10 |
# | 3. write the mask of ancestors | 2 | 5 |
# | 4. read log-probs at the parent | 2 | 10 |
# | 5. write the loss over the nodes | 3 | 15 |
# | 6. write it with the clip | 3 | 15 |
# | 7. put all of it together | 3 | 15 |
# | 8. count what is saved | 2 | 10 |
# | 9–10. answer two questions | 5 | 15 |
#
# **Needs** lesson 11 (`lessons/11_each_step_once.ipynb`), labs 02 and 04, and two CPU cores; every cell runs in some
# seconds.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch`, `numpy` and the
# names of the next cell, but not `minigrpo`, which holds the answers.

# %% tags=["setup"]
import torch
from torch import Tensor

# %% tags=["tools"]
import matplotlib.pyplot as plt

import minigrpo
from grader import check
from grader.drivers.lab11 import ToyTransformer

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## 1 · The packed order
#
# A group becomes one sequence: first the prompt's L tokens, then the completions' tokens, a **node** for each distinct
# prefix: two tokens are one node where their completions agree on all tokens up to and with them. The nodes stand
# **depth first**: right after a node comes the first of its children, and a branch goes on to its end before the next
# one begins. Of siblings the smaller token id stands first. So the prefixes stand as the words of a dictionary do: A,
# A B, A B C, A B D, A C.
#
# For each of the N tokens of this sequence you give its id, its depth (how many tokens stand before it on its own path,
# the prompt's among them) and its parent (the place of the token right before it on that path; −1 for the first token
# of all). For each token of the padded rows you give its place in the sequence, from 0; −1 under the mask.
#
# The prompt `[5, 6]` with completions `[1, 2]`, `[1, 3]` and `[1]` gives
#
# | place | 0 | 1 | 2 | 3 | 4 |
# | --- | --- | --- | --- | --- | --- |
# | ids | 5 | 6 | 1 | 2 | 3 |
# | depth | 0 | 1 | 2 | 3 | 3 |
# | parent | −1 | 0 | 1 | 2 | 2 |
#
# and the rows' places `[[2, 3], [2, 4], [2, −1]]`. Three padded rows of 2 + 2 would be 12 tokens; this sequence has 5.


# %% exercise="lab11.1" points=4 minutes=25 difficulty=2
def packed_order(prompt_ids: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> dict[str, Tensor]:
    """Lay one group out as a sequence: the prompt, then each token of its tree once, depth first.

    Args: prompt_ids int64 (L,), L ≥ 1; completion_ids int64 (G, T); completion_mask bool (G, T), True where a token is
        real, with any id under the mask; each completion has a token at least.
    Returns: {"ids": int64 (N,), "depth": int64 (N,), "parent": int64 (N,), "place": int64 (G, T)}.
    """
    ### BEGIN SOLUTION
    prompt, L = prompt_ids.tolist(), len(prompt_ids)
    rows = [row[:length] for row, length in zip(completion_ids.tolist(), completion_mask.sum(dim=1), strict=True)]
    prefixes = sorted({tuple(row[: t + 1]) for row in rows for t in range(len(row))})
    number = {(): L - 1} | {prefix: L + k for k, prefix in enumerate(prefixes)}
    place = torch.full_like(completion_ids, -1)
    for i, row in enumerate(rows):
        place[i, : len(row)] = torch.tensor([number[tuple(row[: t + 1])] for t in range(len(row))])
    return {
        "ids": torch.tensor(prompt + [prefix[-1] for prefix in prefixes]),
        "depth": torch.tensor([*range(L), *(L + len(prefix) - 1 for prefix in prefixes)]),
        "parent": torch.tensor([*range(-1, L - 1), *(number[prefix[:-1]] for prefix in prefixes)]),
        "place": place,
    }
    ### END SOLUTION


# %%
check("lab11.1", packed_order)

# %% [markdown]
# ## 2 · Where the descendants end
#
# In depth-first order the descendants of a token follow it without a gap. So one number says where they are: `end[k]`
# is one past the last descendant of k, and k + 1 where k has none. In the table above it is `[5, 5, 5, 4, 5]`.


# %% exercise="lab11.2" points=2 minutes=10 difficulty=2
def subtree_end(parent: Tensor) -> Tensor:
    """Find one past the last descendant of each token.

    Args: parent int64 (N,): the place of each token's parent, smaller than its own; −1 for the first.
    Returns: int64 (N,), places from 1 to N.
    """
    ### BEGIN SOLUTION
    end = torch.arange(1, len(parent) + 1)
    for k in range(len(parent) - 1, 0, -1):
        end[parent[k]] = torch.maximum(end[parent[k]], end[k])
    return end
    ### END SOLUTION


# %%
check("lab11.2", subtree_end)

# %% [markdown]
# ## 3 · The mask of ancestors
#
# In a plain row a token sees all that stands before it. In the packed sequence that would be other branches, too. Here
# query q sees key k where k is q itself or stands before it on its path. You enter the subtree of k at k and leave it
# at `end[k]`, so
#
# $$q \text{ sees } k \iff k \le q < \mathrm{end}[k]$$


# %% exercise="lab11.3" points=2 minutes=5 difficulty=1
def ancestor_mask(end: Tensor) -> Tensor:
    """Say which tokens each token sees: itself and what stands before it on its path.

    Args: end int64 (N,), of exercise 2.
    Returns: bool (N, N), [q, k] True where q sees k.
    """
    ### BEGIN SOLUTION
    places = torch.arange(len(end))
    below = places[:, None] < end[None, :]
    return torch.tril(below)
    ### END SOLUTION


# %%
check("lab11.3", ancestor_mask)

# %% [markdown]
# Look at what you made, for the paper's worked example after a prompt of three letters. Every column is a subtree: it
# begins at its token, and ends where another branch begins.

# %%
words = ["ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ"]
ids = torch.tensor([[ord(letter) for letter in word.ljust(7)] for word in words])
mask = torch.tensor([[t < len(word) for t in range(7)] for word in words])
example = packed_order(torch.tensor([ord(letter) for letter in "ask"]), ids, mask)
seen = ancestor_mask(subtree_end(example["parent"]))
letters = [chr(token) for token in example["ids"].tolist()]
print(f"padded rows {len(words) * (3 + 7)} tokens, packed {len(letters)}: {''.join(letters)}")

# %% alt="The mask of the worked example: a lower triangle in which each branch sees the prompt and its own path only."
figure, axes = plt.subplots(figsize=(5, 4.6), layout="constrained")
axes.imshow(seen, cmap="Blues", vmin=0, vmax=1.4)
axes.set_xticks(range(len(letters)), letters, fontsize=8)
axes.set_yticks(range(len(letters)), letters, fontsize=8)
axes.set(xlabel="key k, by its token", ylabel="query q, by its token", title="Each token sees its own path (blue)")
plt.show()

# %% [markdown]
# ## 4 · The read-out at the parent
#
# The logits at a token predict what comes after it. In a plain row the token before is one place before. In the packed
# sequence it is the parent, wherever that stands: B and C in A B, A C are both read at A. The first tokens of
# completions are read at the last token of the prompt. Nothing predicts the first token of all: its log-prob is 0.
#
# $$\ln \pi_k = \ln \operatorname{softmax}(\mathrm{logits}_{\mathrm{parent}[k]})_{\mathrm{ids}[k]}$$


# %% exercise="lab11.4" points=2 minutes=10 difficulty=1
def node_logps(logits: Tensor, ids: Tensor, parent: Tensor) -> Tensor:
    """Give each token of the packed sequence its log-prob.

    Args: logits float (N, V), of the tokens of the sequence; ids int64 (N,); parent int64 (N,), −1 for the first.
    Returns: float (N,), in nats; 0 where the parent is −1.
    """
    ### BEGIN SOLUTION
    table = logits.log_softmax(dim=-1)
    predicted = table[parent[1:], ids[1:]]
    return torch.cat([torch.zeros_like(predicted[:1]), predicted])
    ### END SOLUTION


# %%
check("lab11.4", node_logps)

# %% [markdown]
# ## 5 · The loss over the nodes
#
# The rows' loss sums over completions and tokens, each with its advantage A and its step weight w (1 for GRPO, 1/|λ|
# for λ-GRPO). The members $\lambda_v$ of a node v share its ratio P, so take P out of their sum:
#
# $$L = -\frac{1}{\sum_i \mathrm{len}(y^{(i)})} \sum_i\sum_t w_{i,t}\,P_{i,t}\,A_{i,t}
# = -\frac{1}{\sum_i \mathrm{len}(y^{(i)})} \sum_v P_v\,S_v, \qquad S_v = \sum_{i \in \lambda_v} w_i A_i$$
#
# $S_v$ is a sum over |λ| members, not their mean: the node is computed once, and counts as often as it was sampled. The
# denominator stays the number of tokens *before* packing. The prompt's tokens have no members, so that S = 0 there.
#
# In the group of exercise 1 let w = 1, A = +1, −1 and +1, and P = 1. Then S is 1, 1 and −1 for the three nodes 1, 2 and
# 3, and L = −(1 + 1 − 1) / 5 = −0.2.


# %% exercise="lab11.5" points=3 minutes=15 difficulty=2
def tree_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, step_weights: Tensor, place: Tensor) -> Tensor:
    """Reduce the objective over the nodes to the scalar to minimise, without clipping.

    Args: logps, old_logps float (N,), ln π_θ and ln π_old of the packed sequence, in nats;
        advantages, step_weights float (G, T), of the rows, any numbers under the mask;
        place int64 (G, T), of exercise 1: −1 under the mask.
    Returns: scalar tensor.
    """
    ### BEGIN SOLUTION
    real = place >= 0
    push = (step_weights * advantages)[real]
    S = torch.zeros_like(logps).index_add(0, place[real], push)
    P = (logps - old_logps.detach()).exp()
    return -(P * S).sum() / real.sum()
    ### END SOLUTION


# %%
check("lab11.5", tree_loss)

# %% [markdown]
# ## 6 · Two sums under the clip
#
# PPO's clip is applied to each completion's token: $\min(P A,\ \mathrm{clip}(P)\,A)$, with clip(P) between 1 − ε and
# 1 + ε. For A > 0 that is $\min(P, \mathrm{clip}\,P)\cdot A$, for A < 0 it is $\max(P, \mathrm{clip}\,P)\cdot A$. Of
# the members of one node some may have A > 0 and others A < 0. So their pushes do not join to one sum, but to two:
#
# $$S^+_v = \sum_{i\in\lambda_v} w_i \max(A_i, 0), \qquad S^-_v = \sum_{i\in\lambda_v} w_i \min(A_i, 0)$$
#
# $$L = -\frac{1}{\sum_i \mathrm{len}(y^{(i)})} \sum_v \Big(\min(P_v, \mathrm{clip}\,P_v)\,S^+_v
# + \max(P_v, \mathrm{clip}\,P_v)\,S^-_v\Big)$$
#
# A node with P = 1.5, ε = 0.2 and two members, A = +1 and −1, w = 1: the rows have 1.2 and −1.5, together −0.3. With
# one sum, S = 0, nothing would be left.


# %% exercise="lab11.6" points=3 minutes=15 difficulty=3
def clipped_tree_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, step_weights: Tensor, place: Tensor, epsilon: float
) -> Tensor:
    """Reduce the clipped objective over the nodes to the scalar to minimise.

    Args: as in exercise 5; step_weights ≥ 0; epsilon of the clip, between 0 and 1.
    Returns: scalar tensor.
    """
    ### BEGIN SOLUTION
    real = place >= 0
    push, nodes = (step_weights * advantages)[real], place[real]
    positive = torch.zeros_like(logps).index_add(0, nodes, push.clamp(min=0))
    negative = torch.zeros_like(logps).index_add(0, nodes, push.clamp(max=0))
    P = (logps - old_logps.detach()).exp()
    clipped = P.clamp(1 - epsilon, 1 + epsilon)
    per_node = torch.minimum(P, clipped) * positive + torch.maximum(P, clipped) * negative
    return -per_node.sum() / real.sum()
    ### END SOLUTION


# %%
check("lab11.6", clipped_tree_loss)

# %% [markdown]
# ## 7 · The whole update
#
# Now put your functions together. `model(ids, positions, mask)` is a small transformer that takes **one** sequence: ids
# and positions (N,), the mask (N, N), and it gives the logits (N, V). It runs once, and has room for each token once,
# so that rows do not fit. Which of your numbers are the positions? (Call your functions of exercises 1 to 4 and 6; what
# is wrong there is wrong here, so mend it there first.)
#
# `old_logps` come from the sampler, one for each token of the rows. Members of a node have the same, so take any of
# them for the node; tokens of the prompt may have 0.


# %% exercise="lab11.7" points=3 minutes=15 difficulty=2
def packed_loss(
    model,
    prompt_ids: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    step_weights: Tensor,
    epsilon: float,
) -> Tensor:
    """Compute the clipped loss of a group from one pass over its packed sequence.

    Args: model: as above; prompt_ids, completion_ids, completion_mask as in exercise 1;
        old_logps float (G, T), in nats; advantages, step_weights float (G, T); all three any numbers under the mask;
        epsilon of the clip.
    Returns: scalar tensor, from which gradients reach the model's weights.
    """
    ### BEGIN SOLUTION
    packed = packed_order(prompt_ids, completion_ids, completion_mask)
    sees = ancestor_mask(subtree_end(packed["parent"]))
    logits = model(packed["ids"], packed["depth"], sees)
    logps = node_logps(logits, packed["ids"], packed["parent"])
    before = torch.zeros_like(logps)
    before[packed["place"][completion_mask]] = old_logps[completion_mask]
    return clipped_tree_loss(logps, before, advantages, step_weights, packed["place"], epsilon)
    ### END SOLUTION


# %%
check("lab11.7", packed_loss)

# %% [markdown]
# Is it true? Here are the padded rows, each through the model by itself, in double precision, and the package's
# loss on them. Random groups, the three objectives, and a policy that has moved, so that the clip is at work.


# %%
def row_logps(model, prompt: Tensor, completions: Tensor) -> Tensor:
    """The log-probs (G, T) of padded rows, as a plain causal model gives them."""
    T, rows = completions.shape[1], []
    for completion in completions:
        row = torch.cat([prompt, completion])  # (L + T,)
        causal = torch.ones(len(row), len(row)).tril().bool()
        logits = model(row, torch.arange(len(row)), causal)
        rows.append(minigrpo.token_logps(logits[-T - 1 : -1], completion))
    return torch.stack(rows)


def draw(seed: int, objective: str, moved: float = 0.5) -> tuple:
    """A group of 6 completions of at most 5 tokens with its old log-probs, as `packed_loss` takes it."""
    generator = torch.Generator().manual_seed(seed)
    prompt, completions = torch.arange(3), torch.randint(3, (6, 5), generator=generator)
    lengths = torch.randint(1, 6, (6, 1), generator=generator)
    real = torch.arange(5) < lengths
    rewards = torch.randn(6, generator=generator, dtype=torch.float64)
    shift = moved * torch.randn(99, generator=generator, dtype=torch.float64)
    place = packed_order(prompt, completions, real)["place"]
    old = row_logps(ToyTransformer(seed), prompt, completions).detach() + shift[place]
    return prompt, completions, real, old, *minigrpo.OBJECTIVES[objective](rewards, completions, real)


# %% [markdown]
# The gap is that of lab 04: the norm of the difference of both gradients, over that of the rows' gradient.


# %%
def gradient(model: ToyTransformer, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.weights.values()))])


def gaps(seed: int, objective: str, loss_of_group) -> tuple[float, float]:
    """How far a packed loss and its gradient are from those of the rows."""
    group = draw(seed, objective)
    prompt, completions, real, old, advantages, weights = group
    model, other = ToyTransformer(seed), ToyTransformer(seed)
    rows = minigrpo.policy_loss(row_logps(model, prompt, completions), old, advantages, weights, real, epsilon=0.2)
    nodes = loss_of_group(other, *group, 0.2)
    ours, theirs = gradient(other, nodes), gradient(model, rows)
    return (nodes - rows).abs().item(), ((ours - theirs).norm() / theirs.norm()).item()


# %%
for objective in ("grpo", "prm", "lambda_grpo"):
    found = [gaps(seed, objective, packed_loss) for seed in range(20)]
    loss_gap, gradient_gap = (max(column) for column in zip(*found, strict=True))
    print(f"{objective:12} largest gap of 20 groups: loss {loss_gap:.0e}, gradient {gradient_gap:.0e}")

# %% [markdown]
# And each of its pieces is needed. Here your `packed_loss` is run again with one piece exchanged. A few wrong marks lie
# at the left all the same: where no clipped node has members of both signs, one sum is enough, and where the clip holds
# all but the first branch, nothing that the others see matters. One group is no test.


# %%
def exchanged(positions: bool = False, causal: bool = False, before: bool = False, one_sum: bool = False):
    """Your pieces, with one of them as in a plain row, or one sum for two."""

    def loss(model, prompt, completions, real, old, advantages, weights, epsilon):
        tree = packed_order(prompt, completions, real)
        N, place = len(tree["ids"]), tree["place"]
        end = torch.full((N,), N) if causal else subtree_end(tree["parent"])
        logits = model(tree["ids"], torch.arange(N) if positions else tree["depth"], ancestor_mask(end))
        logps = node_logps(logits, tree["ids"], torch.arange(-1, N - 1) if before else tree["parent"])
        old_nodes = torch.zeros(N, dtype=old.dtype).index_put((place[real],), old[real])
        if not one_sum:
            return clipped_tree_loss(logps, old_nodes, advantages, weights, place, epsilon)
        push = torch.zeros(N, dtype=old.dtype).index_add(0, place[real], (weights * advantages)[real])
        ratio = (logps - old_nodes).exp()
        joint = torch.minimum(ratio * push, ratio.clamp(1 - epsilon, 1 + epsilon) * push)
        return -joint.sum() / real.sum()

    return loss


variants = {
    "yours": packed_loss,
    "one sum under the clip": exchanged(one_sum=True),
    "place as position": exchanged(positions=True),
    "siblings seen": exchanged(causal=True),
    "read at the place before": exchanged(before=True),
}
found = {name: [gaps(seed, "grpo", loss)[1] for seed in range(20)] for name, loss in variants.items()}

# %% alt="Gaps of the gradient on a log axis: yours near 1e-16; with a wrong piece 0.01 to 10, but for a few groups."
figure, axes = plt.subplots(figsize=(6.6, 3), layout="constrained")
for row, (name, values) in enumerate(found.items()):
    colour, marker = ("#0072B2", "o") if name == "yours" else ("#D55E00", "x")
    axes.plot([max(value, 1e-18) for value in values], [row] * len(values), marker, color=colour, alpha=0.7)
axes.set_yticks(range(len(found)), list(found))
axes.invert_yaxis()
axes.set(xscale="log", xlabel="gap of the gradient to that of the padded rows (a mark a group)")
axes.set_title("The same gradient, or another one")
plt.show()

# %% [markdown]
# ## 8 · What is saved
#
# A pass over padded rows computes G rows of L + T tokens, T being the longest completion's length; padding is computed
# like all else. Packed, each token of the sequence of exercise 1 is computed once. The share that is saved is
# 1 − packed / padded.
#
# With L = 100 the completions `[7, 8]`, `[7, 9]`, `[7]` and `[7, 8, 5]` have 4 · 103 = 412 tokens in padded rows and
# 100 + 4 = 104 packed: 74.8% is saved.


# %% exercise="lab11.8" points=2 minutes=10 difficulty=1
def count_tokens(prompt_length: int, completions: list[list[int]]) -> dict[str, float]:
    """Count the tokens that a model computes for a group, padded and packed.

    Args: prompt_length: L ≥ 1; completions: G lists of token ids, of any lengths ≥ 1.
    Returns: {"padded": int, "packed": int, "saved": float}, saved between 0 and 1.
    """
    ### BEGIN SOLUTION
    padded = len(completions) * (prompt_length + max(len(y) for y in completions))
    nodes = {tuple(y[:stop]) for y in completions for stop in range(1, len(y) + 1)}
    packed = prompt_length + len(nodes)
    return {"padded": padded, "packed": packed, "saved": 1 - packed / padded}
    ### END SOLUTION


# %%
check("lab11.8", count_tokens)

# %% [markdown]
# What is saved depends on what is shared. Sixteen completions of 64 tokens share their first S tokens, after prompts of
# three lengths. (What one gains in time is less than that: lesson 11 measures it.)

# %%
shares = [0, 8, 16, 24, 32, 40, 48, 56, 64]
curves = {
    L: [count_tokens(L, [[0] * S + [1 + i] * (64 - S) for i in range(16)])["saved"] for S in shares]
    for L in (4, 64, 512)
}

# %% alt="Share of tokens saved against shared tokens, for three prompt lengths: all curves rise to 94 percent."
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (L, curve), style, colour in zip(
    curves.items(), ("o-", "s--", "^:"), ("#D55E00", "#0072B2", "#009E73"), strict=True
):
    axes.plot([S / 64 for S in shares], curve, style, color=colour, label=f"prompt of {L} tokens")
axes.axhline(15 / 16, color="#4D4D4D", linewidth=0.8)
axes.text(0, 0.95, "15 of 16 rows: no more can be saved", fontsize=8, va="bottom")
axes.set(xlabel="share of a completion that all have in common", ylabel="share of the tokens saved", ylim=(0, 1.06))
axes.set_title("A long prompt saves much, overlap the rest")
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## 9 · Two questions
#
# Answer each in three to five sentences: double-click its cell and replace the last line. A person reads them.

# %% [markdown] exercise="lab11.9" points=2 minutes=7
# **lab11.9** Your model is trained with dropout. May you pack, and will loss and gradient be those of the padded rows?
# Say which assumption decides it, and where your code uses it.
#
# ### BEGIN SOLUTION
# Dropout draws noise for each row, so the members of a node have different log-probs in padded rows, and the packed
# pass has one draw for all of them: neither loss nor gradient are equal, only alike on average at best. What decides is
# that members of a step share their ratio P; the code uses it where one log-prob of a node stands for all members
# (P taken out of the sum, S⁺ and S⁻), and one old log-prob too. It could still be trained packed, as another algorithm,
# but not as the same update.
#
# *Rubric.* 1 point: not equal, since members of a node no longer have one log-prob. 1 point: where it enters, the sum
# over members with one P (or one old log-prob) a node.
# ### END SOLUTION

# %% [markdown] exercise="lab11.10" points=3 minutes=8
# **lab11.10** A colleague packs, divides the loss by the number of nodes and gives each node the mean of its members'
# advantages, “since every node is there once”. Which objective comes close to that loss? What differs from GRPO's
# update, and what from that objective's? For which groups would you not pack at all?
#
# ### BEGIN SOLUTION
# The mean of the members' advantages, once a node, is λ-GRPO (step weights 1/|λ|): each step counts once, whatever its
# |λ|. GRPO would weigh a node by the sum over its members, so steps that many completions share are pushed less here
# than there. From λ-GRPO it differs by the denominator: Σ len is larger than the number of nodes, so the gradient is
# scaled up by Σ len over nodes, and differently for each batch. I would not pack groups that share next to nothing, as
# long completions that part at once after a short prompt: few tokens are saved, and attention over one long sequence
# computes many pairs that the mask then forbids.
#
# *Rubric.* 1 point: λ-GRPO, as the multiplicity is lost. 1 point: the denominator, a scale that changes with the
# overlap. 1 point: little shared and long completions, with a reason (tokens saved against pairs in the attention).
# ### END SOLUTION
