# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 02 · Process steps
#
# GRPO gives each completion one reward. But the completions of a group share beginnings, and what is shared has a
# structure: a tree. In this lab you build it, first from the definition, then fast enough for a real batch.
#
# | you will | points | minutes |
# | --- | --- | --- |
# | 1. write the definition of a process set λ | 4 | 15 |
# | 2. count \|λ\| on padded tensors | 5 | 20 |
# | 3. cut a completion into its process steps | 3 | 10 |
# | 4. answer two questions | 4 | 15 |
#
# **Needs** lesson 02 (`lessons/02_process_steps.ipynb`) and two CPU cores; every cell runs in a second or two.
# **Rules** Write your code in the exercise cells. They are graded in a sandbox that knows `torch`, `numpy` and the
# names of the next cell, but not `minigrpo`, which holds the answers.

# %% tags=["setup"]
import torch
from torch import Tensor

# %% tags=["tools"]
import matplotlib.pyplot as plt

from grader import check
from minigrpo import ProcessTree

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% [markdown]
# ## The group
#
# The paper's worked example: six completions of one prompt, each letter a token, each with its reward.

# %%
words = ["ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ"]
rewards = [0.5, 0.5, 1.0, 0.0, 0.0, 0.5]
print(ProcessTree([list(word) for word in words], rewards))

# %% [markdown]
# ## 1 · The definition
#
# The *process set* of token t of completion i holds every completion that agrees with it on tokens 0…t, t included:
#
# $$\lambda^{(i,t)} = \{\, j : y^{(j)}_s = y^{(i)}_s \text{ for all } s \le t \,\}$$
#
# A completion that has ended before t is in no set of token t. For example in `[[7, 8], [7, 9], [7]]` the sets of
# completion 0 are `[0, 1, 2]` at token 0 and `[0]` at token 1.


# %% exercise="lab02.1" points=4 minutes=15 difficulty=1
def process_sets(completions: list[list[int]]) -> list[list[list[int]]]:
    """Find the process set of every token, word for word from the definition.

    Args: completions: G lists of token ids, of any lengths.
    Returns: sets[i][t] is the sorted list of the members of λ^(i,t); sets[i] is as long as completion i.
    """
    ### BEGIN SOLUTION
    sets = []
    for y in completions:
        prefixes = [y[: t + 1] for t in range(len(y))]
        sets.append([[j for j, other in enumerate(completions) if other[: len(p)] == p] for p in prefixes])
    return sets
    ### END SOLUTION


# %%
check("lab02.1", process_sets)

# %% [markdown]
# ## 2 · Sizes, on tensors
#
# A batch comes as `completion_ids` of shape (G, T), padded on the right, and `completion_mask`, True where a token is
# real. We want the size of each token's set:
#
# $$|\lambda^{(i,t)}| = \sum_j \big[\, j \in \lambda^{(i,t)} \,\big], \qquad 0 \text{ where masked}$$
#
# What stands under the mask may be any id, also that of a real token. A G × G × T tensor of comparisons is fine here
# (`minigrpo` sorts instead, so that it needs no such tensor). Try it without a Python loop.


# %% exercise="lab02.2" points=5 minutes=20 difficulty=2
def step_sizes(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Count how many completions share each token's prefix.

    Args: completion_ids int64 (G, T); completion_mask bool (G, T), True where a token is real.
    Returns: int64 (G, T), between 1 and G; 0 where masked.
    """
    ### BEGIN SOLUTION
    real = completion_mask.unsqueeze(0) & completion_mask.unsqueeze(1)
    same_token = real & (completion_ids.unsqueeze(0) == completion_ids.unsqueeze(1))
    shared_so_far = same_token.cumprod(dim=-1)
    return shared_so_far.sum(dim=1)
    ### END SOLUTION


# %%
check("lab02.2", step_sizes)

# %% [markdown]
# Look at what you made: the darker a token, the more completions share it.

# %%
ids = torch.tensor([[ord(c) for c in word.ljust(7)] for word in words])
mask = torch.tensor([[t < len(word) for t in range(7)] for word in words])
figure, axes = plt.subplots(figsize=(6, 3.2))
image = axes.imshow(step_sizes(ids, mask), cmap="Blues", vmin=0, vmax=6)
for i, word in enumerate(words):
    for t, letter in enumerate(word):
        axes.text(t, i, letter, ha="center", va="center")
axes.set(xlabel="token t", ylabel="completion i", title="Three completions share J K L")
figure.colorbar(image, label="|λ|, completions that share the prefix")
plt.show()

# %% [markdown]
# ## 3 · From sizes to steps
#
# Along a completion the sets only shrink, so a new set is a smaller one. A *process step* is a maximal run of tokens
# with the same set: `J K L N Q S T` has sizes 3 3 3 2 2 1 1, thus three steps, `J K L`, `N Q` and `S T`.


# %% exercise="lab02.3" points=3 minutes=10 difficulty=1
def process_steps(sizes: list[int]) -> list[tuple[int, int]]:
    """Cut one completion into its process steps.

    Args: sizes: |λ^(i,t)| for each token t of completion i, at least one.
    Returns: (start, stop) of each step in order; as in a slice, stop is one past its last token.
    """
    ### BEGIN SOLUTION
    changes = [t for t in range(1, len(sizes)) if sizes[t] != sizes[t - 1]]
    return list(zip([0, *changes], [*changes, len(sizes)], strict=True))
    ### END SOLUTION


# %%
check("lab02.3", process_steps)

# %% [markdown]
# ## 4 · Two questions
#
# Answer each in three or four sentences: double-click its cell and replace the last line. A person reads them.

# %% [markdown] exercise="lab02.4" points=2 minutes=7
# **lab02.4** Two completions of a group are identical. What does that do to the tree, to their sets, and to how often
# their tokens count in GRPO's loss?
#
# ### BEGIN SOLUTION
# They stay in one set from their first to their last token, so the leaf of the tree has two members and the tree one
# leaf less. Each of their tokens stands in the loss twice: once for each completion.
#
# *Rubric.* 1 point: one leaf with two members, or sets never below two. 1 point: their tokens count twice.
# ### END SOLUTION

# %% [markdown] exercise="lab02.5" points=2 minutes=8
# **lab02.5** Your tokeniser splits the same word in two ways, so that two completions which read the same have
# different ids. Are they in one process set? Would you want them to be? Give one reason for each side.
#
# ### BEGIN SOLUTION
# Not from the first token that differs on: sets are made of token ids, and the policy gives different ids different
# probabilities, so the theorem's step has to be one of ids. For reading the tree, one would rather merge them, as
# they mean the same.
#
# *Rubric.* 1 point: no, with the reason that probabilities belong to ids. 1 point: a sensible reason for merging.
# ### END SOLUTION
