"""Lab 03: a sampler of outcomes from any prefix, made of plain tables."""

import torch


def from_prefix(namespace, function, arguments):
    """function(sample_outcome, prefix, samples, seed) → its two numbers.

    The task is a binary tree whose depth is that of `leaf_rewards`, 2^depth of them; `right` is the probability of
    action 1 in each of the 2^depth − 1 inner nodes, numbered level by level.
    """
    arguments = dict(arguments)
    right, leaf_rewards = arguments.pop("right"), arguments.pop("leaf_rewards")

    def sample_outcome(prefix, generator):
        node, inner = 0, len(right)
        for action in prefix:
            node = 2 * node + 1 + action
        while node < inner:
            uniform = torch.rand((), generator=generator, dtype=torch.float64)
            node = 2 * node + 1 + int(uniform < right[node])
        return float(leaf_rewards[node - inner])

    return namespace[function](sample_outcome, **arguments)


DRIVERS = {"from_prefix": from_prefix}
