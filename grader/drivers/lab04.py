"""Lab 04: pairs of losses of one θ, built from plain tables."""

import torch

from grader.drivers import number


def pairs_of_losses(namespace, function, arguments):
    """function(loss_a, loss_b, theta) for each row of weights_b, all with the same theta: a tensor (K,).

    A loss is −Σₙ weightₙ · ln π_θ(idsₙ | statesₙ), with π_θ(· | s) = softmax of row s of theta (S, V).
    """
    states, ids = arguments["states"], arguments["ids"]
    theta = arguments["theta"].clone()

    def loss(weights):
        return lambda theta: -(weights * theta.log_softmax(dim=-1)[states, ids]).sum()

    loss_a = loss(arguments["weights_a"])
    gaps = [number(namespace[function](loss_a, loss(row), theta)) for row in arguments["weights_b"]]
    return torch.tensor(gaps, dtype=torch.float64)


DRIVERS = {"pairs_of_losses": pairs_of_losses}
