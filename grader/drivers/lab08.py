"""Lab 08: gradients of functions that answer with a tensor, and an answer that has no arguments."""

import torch

from grader.drivers import backward


def output_and_grads(namespace, function, arguments):
    """{"output", "grads"}: the gradients of a weighted sum of the output, for the tensors that arguments["wrt"] names.

    arguments["same"] names tensors that are to be one with the first of `wrt`, as where a caller passes it twice.
    """
    arguments = dict(arguments)
    wrt, same = arguments.pop("wrt"), arguments.pop("same", ())
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in wrt}
    output = namespace[function](**arguments | leaves | dict.fromkeys(same, leaves[wrt[0]]))
    if isinstance(output, torch.Tensor) and output.requires_grad:
        weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).view(output.shape)
        backward((output * weights).sum())
    grads = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return {"output": output, "grads": grads}


def without_arguments(namespace, function, arguments):
    """namespace[function](): the arguments are for the judge alone."""
    return namespace[function]()


DRIVERS = {"lab08_output_and_grads": output_and_grads, "lab08_without_arguments": without_arguments}
