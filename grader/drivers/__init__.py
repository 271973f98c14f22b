"""What runs beside the student's code, in the worker; the grader runs the same drivers on the reference.

A driver takes the student's globals, the name of a function and its arguments, and returns a plain value (protocol.py).
A module here imports torch, numpy and gymnasium only, and may add to its own `DRIVERS`; all are merged.
"""

import importlib
import pkgutil


def call(namespace, function, arguments):
    """namespace[function](**arguments)."""
    return namespace[function](**arguments)


def loss_and_grads(namespace, function, arguments):
    """{"loss": the scalar, "grads": {name: ∂loss/∂name}} for the tensors that arguments["wrt"] names; 0 if unused."""
    wrt, arguments = arguments["wrt"], {k: v for k, v in arguments.items() if k != "wrt"}
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in wrt}
    loss = namespace[function](**arguments | leaves)
    loss.backward()
    grads = {name: leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach(), "grads": grads}


DRIVERS = {"call": call, "loss_and_grads": loss_and_grads}
for _module in pkgutil.iter_modules(__path__):
    _more = importlib.import_module(f"{__name__}.{_module.name}").DRIVERS
    assert not DRIVERS.keys() & _more.keys(), f"{_module.name} takes the name of another driver"
    DRIVERS |= _more
