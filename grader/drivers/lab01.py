"""Lab 01: NaN under the mask, and several calls in one case."""

import torch

NOT_FINITE = "NaN or infinity"  # stands for a tensor that holds one, since NaN does not travel


def named(value):
    """The value, or NOT_FINITE in its place."""
    return NOT_FINITE if isinstance(value, torch.Tensor) and not value.isfinite().all() else value


def finite(namespace, function, arguments):
    """namespace[function](**arguments), or NOT_FINITE."""
    return named(namespace[function](**arguments))


def each(namespace, function, arguments):
    """The answers to arguments["calls"], each of them a dict of arguments."""
    return [finite(namespace, function, call) for call in arguments["calls"]]


def finite_loss(namespace, function, arguments):
    """{"loss", "grads"} as `loss_and_grads`; arguments["under_mask"] names tensors that get NaN under the mask."""
    arguments = dict(arguments)
    wrt = arguments.pop("wrt")
    for name in arguments.pop("under_mask", ()):
        arguments[name] = arguments[name].masked_fill(~arguments["completion_mask"], float("nan"))
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in wrt}
    loss = namespace[function](**arguments | leaves)
    loss.backward()
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return {"loss": named(loss.detach()), "grads": {name: named(grad) for name, grad in grads.items()}}


DRIVERS = {"finite": finite, "each": each, "finite_loss": finite_loss}
