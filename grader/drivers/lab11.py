"""Lab 11: a toy transformer that takes one sequence, with positions and a mask of its caller's, and the way back."""

import math

import torch

from grader.drivers import backward, named

VOCABULARY, POSITIONS, WIDTH, HEADS, LAYERS = 6, 40, 8, 2, 2


class ToyTransformer:
    """Two layers of attention over one sequence, float64, the same weights for the same seed.

    model(ids, positions, mask) gives the logits (N, VOCABULARY) of N tokens: ids and positions int (N,), mask bool
    (N, N), [q, k] True where q sees k. Row k of the logits predicts what comes after token k.
    """

    def __init__(self, seed, room=None):
        """Draw the weights. With `room`, the model runs once, and on so many tokens at most."""
        generator = torch.Generator().manual_seed(seed)
        shapes = {"token": (VOCABULARY, WIDTH), "position": (POSITIONS, WIDTH)}
        for layer in range(LAYERS):
            shapes |= {f"{name}{layer}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
            shapes |= {f"wide{layer}": (WIDTH, 2 * WIDTH), f"narrow{layer}": (2 * WIDTH, WIDTH)}
        shapes["head"] = (WIDTH, VOCABULARY)
        self.weights = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for name, shape in shapes.items()
        }
        self.room = room
        self.passes = 0

    def __call__(self, ids, positions, mask):
        self._check(ids, positions, mask)
        self.passes += 1
        x = self.weights["token"][ids] + self.weights["position"][positions]  # (N, WIDTH)
        for layer in range(LAYERS):
            x = x + self._attend(_norm(x), mask, layer)
            wide = torch.tanh(self._times(_norm(x), f"wide{layer}"))
            x = x + self._times(wide, f"narrow{layer}")
        return self._times(_norm(x), "head")

    def _times(self, x, name):
        weight = self.weights[name]
        return x @ weight / math.sqrt(len(weight))

    def _attend(self, x, mask, layer):
        """Attention of all heads: (N, WIDTH) → (N, WIDTH)."""
        query, key, value = (
            self._times(x, f"{name}{layer}").view(len(x), HEADS, -1).transpose(0, 1)
            for name in ("query", "key", "value")
        )  # (HEADS, N, WIDTH / HEADS)
        scores = query @ key.transpose(1, 2)  # (HEADS, N, N)
        shares = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return (shares @ value).transpose(0, 1).reshape(x.shape)

    def _check(self, ids, positions, mask):
        """Refuse what is no single sequence, in a sentence."""
        N = len(ids)
        if ids.shape != (N,) or positions.shape != (N,) or mask.shape != (N, N):
            shapes = ", ".join(str(tuple(value.shape)) for value in (ids, positions, mask))
            raise ValueError(f"the model takes ids (N,), positions (N,), mask (N, N), got {shapes}")
        if mask.dtype != torch.bool or not mask.diagonal().all():
            raise ValueError("mask must be bool, and each token must see itself")
        if positions.min() < 0 or positions.max() >= POSITIONS:
            raise ValueError(f"positions must be from 0 to {POSITIONS - 1}")
        if self.room is not None and (self.passes or self.room < N):
            raise ValueError(
                f"the model runs once, on at most {self.room} tokens, which hold each prefix once; "
                f"this is pass {self.passes + 1}, with {N}"
            )


def _norm(x):
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def packed_pass(namespace, function, arguments):
    """{"loss", "grads"} of function(model, …): the model is drawn from model_seed, the gradients are of its weights.

    The model has room for the prompt and each distinct prefix once.
    """
    arguments = dict(arguments)
    ids, mask = arguments["completion_ids"].tolist(), arguments["completion_mask"].sum(dim=1)
    prefixes = {tuple(row[:t]) for row, n in zip(ids, mask, strict=True) for t in range(1, n + 1)}
    room = len(arguments["prompt_ids"]) + len(prefixes)
    model = ToyTransformer(arguments.pop("model_seed"), room)
    loss = namespace[function](model, **arguments)
    backward(loss)
    grads = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in model.weights.items()
    }
    return {"loss": named(loss), "grads": {name: named(grad) for name, grad in grads.items()}}


DRIVERS = {"lab11_packed_pass": packed_pass}
