"""What runs beside the student's code, in the worker; the grader runs the same drivers on the reference.

A driver takes the student's globals, the name of a function and its arguments, and returns a plain value (protocol.py).
A module here imports torch, numpy, gymnasium and the protocol only, and may add to its own `DRIVERS`; all are merged.

What the function returns is handed on as it is where a driver can do nothing with it, so that the judge says what it
must be; where there is no answer without it, `number` says so. An exception of another kind is the student's own.
"""

import importlib
import pkgutil

import torch

from grader.protocol import ProtocolError

LARGEST = 2**20  # entries
WANTED = {float: "a number", int: "a whole number", bool: "True or False"}
NOT_FINITE = "NaN or infinity"  # stands for a tensor that holds one, since NaN does not travel


def named(value):
    """The value, or NOT_FINITE in the place of a tensor (one of an answer's size) that is not finite."""
    small = isinstance(value, torch.Tensor) and value.numel() <= LARGEST
    return NOT_FINITE if small and not value.isfinite().all() else value


def number(value, what="the answer", kind=float):
    """The value as a float, int or bool. Raises: ProtocolError that says what it must be."""
    try:
        return kind(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ProtocolError(f"{what} must be {WANTED[kind]}, got {value!r:.80}") from error


def backward(value):
    """The gradients of a scalar tensor, into its leaves; of anything else there are none."""
    if isinstance(value, torch.Tensor) and value.requires_grad and value.numel() == 1:
        value.backward()


def call(namespace, function, arguments):
    """namespace[function](**arguments), or NOT_FINITE."""
    return named(namespace[function](**arguments))


def each(namespace, function, arguments):
    """The answers to arguments["calls"], each of them a dict of arguments: a single one could be guessed."""
    return [call(namespace, function, one) for one in arguments["calls"]]


def loss_and_grads(namespace, function, arguments):
    """{"loss": the scalar, "grads": {name: ∂loss/∂name}} for the tensors that arguments["wrt"] names; 0 if unused.

    arguments["under_mask"] names tensors that get NaN where arguments["completion_mask"] is False.
    """
    arguments = dict(arguments)
    wrt = arguments.pop("wrt")
    for name in arguments.pop("under_mask", ()):
        arguments[name] = arguments[name].masked_fill(~arguments["completion_mask"], float("nan"))
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in wrt}
    loss = namespace[function](**arguments | leaves)
    backward(loss)
    grads = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return {"loss": named(loss), "grads": {name: named(grad) for name, grad in grads.items()}}


DRIVERS = {"call": call, "each": each, "loss_and_grads": loss_and_grads}
for _module in pkgutil.iter_modules(__path__):
    _more = importlib.import_module(f"{__name__}.{_module.name}").DRIVERS
    assert not DRIVERS.keys() & _more.keys(), f"{_module.name} takes the name of another driver"
    DRIVERS |= _more
